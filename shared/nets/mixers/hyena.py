"""Hyena on one, two or three axes (Poli et al. 2023, arXiv 2302.10866; N-D: Zimerman and Wolf 2024, arXiv 2309.13600).

(x₀, x₁, …, v) = dwconv₃(W_in u);  v ← h_o ∗ (x_o v) + b_o v for each long filter;  y = W_out(x₀ v).

A filter h is as long as the map and a function of the place (`shared.nets.ops.implicit_filter`); the convolution is
done by transforms (`shared.nets.ops.fft_conv`). Work: L log L a channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import product
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets.layout import Conv, Size, channels_first, channels_last, per_axis, tokens, without_autocast
from shared.nets.mixers.base import TokenMixer
from shared.nets.ops.fft_conv import (
    along_axis,
    axis_conv,
    fft_conv_groups,
    plan,
    spectrum,
    toeplitz,
    working_dtype,
)
from shared.nets.ops.implicit_filter import ImplicitFilter
from shared.nets.options import Count, Positive, Share, Whole
from shared.nets.registry import register, register_backbone

PAPER = "Multi-Dimensional Hyena for Spatial Inductive Bias, Zimerman and Wolf 2024, arXiv 2309.13600"
Taps = tuple[Tensor, Size]
"""A filter (G, C, *K) and its tap at offset 0, by axis."""
Convolution = Callable[[Tensor], Tensor]
Direction = Literal["causal", "seq", "quadrants", "centred"]
_DIRECTIONS = ("causal", "seq", "quadrants", "centred")
_CAUSAL_LENGTH = 1024
_DENSE_SIDE = 64
"""Up to this side an axis of a product filter is a dense matrix, above it a transform."""
_KEPT = 2
"""Map sizes whose ready filters are kept."""


@register("mixer", "hyena", paper=PAPER, cost="L log(L) C + L C²")
class Hyena(TokenMixer):
    """Gates and filters as long as the map, by transforms (`shared.nets.ops.fft_conv`).

    `order` r ≥ 2: r gates, r − 1 long filters. `direction`: causal (one orthant), seq (the public default: causal,
    turned round for every other filter), quadrants (the 2^n orthants, one filter turned, mixed by a linear map),
    centred (2S − 1 taps, both sides; the default but for causal networks).

    `length` (by axis): place where t = 1, and the longest filter. By default it is the map's own side: another
    resolution samples the same function anew. A causal network takes the side it was built for (1024 where unknown):
    were it the sequence's own length, a token would depend on how many come after it. `step` remembers `length` tokens.
    `filter`: "product" of one function an axis (the public default; dense products on short axes), or "joint", one
    function of all axes (3-D 32³ × 48 on one core: 2 to 3 times the time to predict, 8 to train). `normalise`: see
    `ImplicitFilter`; "none" as published. Masked tokens are zero before every convolution. `legacy` computes as the
    public 2-D layer. Options named as those of MONAI's HyenaMixer stand for the same.
    """

    causal_forms: ClassVar[frozenset[bool]] = frozenset({False, True})
    masks: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        ndim: int,
        *,
        order: Count = 2,
        filter: str = "product",
        direction: Direction | None = None,
        length: Count | Sequence[Count] | None = None,
        normalise: str = "energy",
        bands: Whole = 1,
        short_conv_kernel_size: Count = 3,
        kernel_mlp_hidden_dim: Count = 64,
        kernel_num_layers: Count = 3,
        kernel_omega_0: Positive = 1.0,
        dropout: Share = 0.0,
        legacy: bool = False,
        **place: Any,
    ) -> None:
        super().__init__(dim, ndim, **place)
        self.order, self.legacy, k = order, legacy, short_conv_kernel_size
        self.direction = direction or ("causal" if self.causal else "centred")
        if order < 2 or self.direction not in _DIRECTIONS:
            raise ValueError(f"order ≥ 2 and direction {', '.join(_DIRECTIONS)} wanted")
        if self.causal and self.direction != "causal":
            raise ValueError(f"direction {self.direction!r} looks ahead; causal wanted in a causal network")
        if k % 2 == 0 and not self.causal:
            raise ValueError(f"short_conv_kernel_size {k} is even; an odd one wanted")
        if length is None and self.causal:
            length = self.size or _CAUSAL_LENGTH
        self.length = None if length is None else per_axis(length, ndim)
        self.in_proj, self.out_proj = nn.Linear(dim, (order + 1) * dim), nn.Linear(dim, dim)
        inner = (order + 1) * dim
        self.short_conv = Conv(inner, inner, k, ndim, groups=inner, causal=self.causal)
        self.filter = ImplicitFilter(
            dim, ndim, order - 1, form=filter, width=kernel_mlp_hidden_dim, layers=kernel_num_layers,
            omega=kernel_omega_0, bands=bands, normalise=normalise, legacy=legacy,
        )  # fmt: skip
        self.joint = ndim == 1 or filter == "joint"
        self.bias = nn.Parameter(torch.randn(order - 1, dim))
        self.orthants = list(product((False, True), repeat=ndim)) if self.direction == "quadrants" else []
        self.mix = nn.Linear(len(self.orthants) * dim, dim) if self.orthants else None
        self.drop = nn.Dropout(dropout)
        self._ready: dict[Any, tuple[Any, list[Any]]] = {}

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        *gates, v = self._streams(x, mask)
        valid = None if mask is None else mask[:, None, None]
        v = v[:, None]
        for o, conv in enumerate(self._convolutions(x)):
            v = self.drop(v * gates[-1 - o][:, None])
            v = v if valid is None else v * valid
            v = torch.addcmul(conv(v), self.bias[o].view(-1, *[1] * self.ndim).to(v.dtype), v)
        return self._project(v * gates[0][:, None])

    def _streams(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """x₀ … and v, each (B, C, *S)."""
        u = self.in_proj(x)
        return channels_first(self.short_conv(u if mask is None else u * mask[..., None])).split(self.dim, 1)

    def _project(self, y: Tensor) -> Tensor:
        """(B, G, C, *S) → (B, *S, C)."""
        y = channels_last(y.flatten(1, 2))
        return self.out_proj(y if self.mix is None else self.mix(y))  # type: ignore[no-any-return]

    def readers(self) -> Sequence[nn.Linear]:
        return (self.in_proj,)

    def writers(self) -> Sequence[nn.Module]:
        return (self.out_proj,)

    # ------------------------------------------------------------ filters

    def taps(self, size: Sequence[int], dtype: torch.dtype = torch.float32) -> list[list[Taps]]:
        """The filters for maps of `size`, one entry a filter: one N-D (joint) or one an axis (product)."""
        unit = self.length or tuple(size)
        both = self.direction == "centred"
        whole = unit if self.causal else tuple(min(s, u) for s, u in zip(size, unit))
        parts = self.filter(whole, unit, both, dtype)
        found = []
        for o in range(self.order - 1):
            turned = self.direction == "seq" and (o == 0 if self.legacy else o % 2 == 0)
            one: list[Taps] = []
            for a, h in enumerate(parts):
                axes = list(range(self.ndim)) if self.joint else [a]
                one.append(self._turned(h[o : o + 1], axes, turned, both))
            found.append(one)
        return found

    def _turned(self, h: Tensor, axes: Sequence[int], turned: bool, both: bool) -> Taps:
        """(1, C, *K) of one orthant or both sides → the filter in its direction, or one filter an orthant."""
        sides, dims = h.shape[2:], list(range(2, h.ndim))
        if both:
            return h, tuple(k // 2 for k in sides)
        if not self.orthants:
            return (h.flip(dims), tuple(k - 1 for k in sides)) if turned else (h, (0,) * len(sides))
        each = []
        for orthant in self.orthants:
            back = [orthant[a] for a in axes]
            edges = [
                e for k, b in reversed(list(zip(sides, back))) for e in ((0, k - 1) if b else (k - 1, 0))
            ]
            each.append(F.pad(h.flip([d for d, b in zip(dims, back) if b]), edges))
        return torch.cat(each), tuple(k - 1 for k in sides)

    def _convolutions(self, x: Tensor) -> list[Convolution]:
        """The long convolutions for maps like x."""
        size, dtype = tuple(x.shape[1:-1]), working_dtype(x)
        with without_autocast(x):
            if self.training or torch.is_grad_enabled() or x.is_meta or torch.compiler.is_compiling():
                return [self._operator(one, size, False) for one in self.taps(size, dtype)]
            make = lambda: [self._operator(one, size, True) for one in self.taps(size, dtype)]  # noqa: E731
            return self._kept((size, dtype, x.device), make)

    def _kept(self, key: tuple[Any, ...], make: Callable[[], list[Any]]) -> list[Any]:
        """What `make` gives, kept for prediction (no gradients) until a parameter of the filters is written to or
        moved. No part of the state dict."""
        made_of = tuple(
            (p.data_ptr(), 0 if p.is_inference() else p._version) for p in self.filter.parameters()
        )
        known = self._ready.get(key)
        if known is None or known[0] != made_of:
            self._ready.pop(key, None)
            while len(self._ready) >= _KEPT:
                self._ready.pop(next(iter(self._ready)))
            known = self._ready[key] = (made_of, make())
        return known[1]

    def train(self, mode: bool = True) -> Hyena:
        self._ready.clear()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ready": {}}

    def _operator(self, one: list[Taps], size: Size, keep: bool) -> Convolution:
        """`keep`: filters are transformed now, once."""
        if self.causal:
            one = [(h[:, :, : size[0]], origin) for h, origin in one]
        if len(one) == 1:
            h, origin = one[0]
            return spectrum(h, size, origin) if keep else lambda v: fft_conv_groups(v, h, origin)
        steps = [_axis_operator(h, origin, size[a], a, keep) for a, (h, origin) in enumerate(one)]
        return lambda v: reduce(lambda y, step: step(y), steps, v)

    def extra_macs(self, size: Sequence[int]) -> int:
        """Of the transforms, the filters' own not counted: they are made once."""
        reach = [min(s, u) for s, u in zip(size, self.length or size)]
        wide = self.direction == "centred" or bool(self.orthants)
        groups, total = max(len(self.orthants), 1), 0.0
        for axes in [list(range(self.ndim))] if self.joint else [[a] for a in range(self.ndim)]:
            side = [size[a] for a in axes]
            if not self.joint and side[0] <= _DENSE_SIDE:
                continue  # a matrix product, counted as such
            made = plan(
                side,
                [2 * reach[a] - 1 if wide else reach[a] for a in axes],
                [(reach[a] - 1) * wide for a in axes],
            )
            ahead, times, back = made.macs
            total += math.prod(size) // math.prod(side) * (ahead + groups * (times + back))
        return round(total * self.dim * (self.order - 1))

    # ------------------------------------------------------------ the mixing matrix, a head a channel (and orthant)

    def matrix(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[1:-1])
        *gates, _ = (s.flatten(2)[:, None, :, :, None] for s in self._streams(x, None))
        length = math.prod(size)
        mixed = torch.eye(length, dtype=x.dtype, device=x.device)
        for o, one in enumerate(self.taps(size, working_dtype(x))):
            whole = toeplitz(
                reduce(_outer, [h for h, _ in one]), size, [at for _, origin in one for at in origin]
            )
            whole = whole + torch.diag_embed(self.bias[o][:, None].expand(-1, length))
            mixed = whole.to(x.dtype) @ (gates[-1 - o] * mixed)
        return (gates[0] * mixed).flatten(1, 2)

    def values(self, x: Tensor) -> Tensor:
        v = tokens(channels_last(self._streams(x, None)[-1])).transpose(1, 2)[..., None]
        return v.repeat(1, max(len(self.orthants), 1), 1, 1)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self._project(mixed[..., 0].reshape(len(x), -1, self.dim, *x.shape[1:-1]))

    # ------------------------------------------------------------ one token at a time (causal)

    def init_state(self, batch: int) -> tuple[Tensor, ...]:
        """Past inputs of the short convolution, then of each long one, newest last; they grow up to the filters."""
        short = self.bias.new_zeros(
            batch, self.short_conv.conv.kernel_size[0] - 1, (self.order + 1) * self.dim
        )
        return (short, *(self.bias.new_zeros(batch, 0, self.dim) for _ in range(self.order - 1)))

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        short = torch.cat([state[0], self.in_proj(x)[:, None]], 1)
        conv = self.short_conv.conv
        *gates, v = (torch.einsum("bkc,ck->bc", short, conv.weight[:, 0]) + conv.bias).split(self.dim, -1)
        after = [short[:, 1:]]
        for o, h in enumerate(self._step_taps(x)):
            v = v * gates[-1 - o]
            past = torch.cat([state[1 + o], v[:, None]], 1)[:, -len(h) :]
            after.append(past)
            v = torch.einsum("blc,lc->bc", past, h[-past.shape[1] :].to(x.dtype)) + self.bias[o] * v
        return self.out_proj(v * gates[0]), tuple(after)

    def _step_taps(self, x: Tensor) -> list[Tensor]:
        """(length, C) of each filter, last tap first."""
        dtype, length = working_dtype(x), self.length or (1,)
        make = lambda: [one[0][0][0].flip(-1).t().contiguous() for one in self.taps(length, dtype)]  # noqa: E731
        with without_autocast(x):
            if self.training or torch.is_grad_enabled():
                return make()
            return self._kept(("step", dtype, x.device), make)


def _outer(h: Tensor, axis: Tensor) -> Tensor:
    """(G, C, *K), (G, C, k) → (G, C, *K, k)."""
    return h[..., None] * axis.view(*axis.shape[:2], *[1] * (h.ndim - 2), -1)


def _axis_operator(h: Tensor, origin: Size, side: int, axis: int, keep: bool) -> Convolution:
    if side <= _DENSE_SIDE:
        matrix = toeplitz(h, (side,), origin)
        return lambda v: axis_conv(v, matrix, axis)
    conv = spectrum(h, (side,), origin) if keep else lambda v: fft_conv_groups(v, h, origin)
    return lambda v: along_axis(conv, v, axis)


_XS: dict[str, Any] = {"dims": [64], "depths": [2], "mixers": ["hyena"]}
register_backbone(
    "hyena_xs",
    {"stem": {"name": "patch", "patch": 1}, **_XS},
    paper=PAPER,
    published={"ndim": 1, "in_chans": 1, "num_classes": 10, "img_size": (1024,)},
)
register_backbone(
    "hyena_xs_3d",
    {"stem": {"name": "patch", "patch": 4}, **_XS},
    paper=PAPER,
    published={"ndim": 3, "in_chans": 4, "num_classes": 2, "img_size": (64, 64, 64)},
)
