"""Neighbourhood attention, plain (NA, Hassani et al. 2023, arXiv 2204.07143) and dilated (DiNA, Hassani and Shi 2022,
arXiv 2209.15001): softmax attention of every token to the k^n tokens around it.

    NA(x)ᵢ = softmax(qᵢ K_ρ(i)ᵀ / √d + B(i, ρ(i))) V_ρ(i)

ρ(i) are the k nearest places along each axis in steps of δ, on the same grid of every δ-th token as i; at a border the
window is moved inside the map rather than cut, so that every token has k^n keys. B is learned by offset, (2k − 1)^n
values a head. A network alternates δ = 1, which sees what is near, with the largest δ that fits, ⌊s / k⌋, which spans
the map (DiNAT, section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets.layout import Size, per_axis
from shared.nets.mixers.base import TokenMixer, heads_of
from shared.nets.ops.neighbours import Limits, Plan, attend_tiles, plan_of
from shared.nets.options import Count, Share
from shared.nets.registry import register

KERNELS = {1: 7, 2: 7, 3: 5}
TILES = {1: 32, 2: 6, 3: 3}
"""Queries a tile and axis: few more keys than a window has, and products large enough to be fast."""
LIMITS = Limits(cached=2**17, scores=2**22, kept=2**24)


@register(
    "mixer",
    "neighbourhood",
    paper="Dilated Neighborhood Attention Transformer, Hassani and Shi 2022, arXiv 2209.15001",
    cost="L k^n C",
)
class NeighbourhoodAttention(TokenMixer):
    """`kernel` k, odd, by default 7 (5 in three dimensions), and `dilation` δ, each one number or one an axis.

    `dilation: max` is ⌊s / k⌋ of the map at hand in every second block of a stage (those of odd index) and 1 in the
    others. Where δ = 1 and an axis is shorter than k, its tokens see all of it (the middle of the bias table serves);
    δ k > s is refused. Causal form: the token itself and the k − 1 before it in steps of δ, fewer at the start; `max`
    then belongs to the size the network is built for. Masked: invalid tokens are no keys.

    `tile`: queries taken together along an axis, or a few more where that is the whole axis (see
    `ops.neighbours`); 1 gathers the keys of every token by itself.
    """

    causal_forms: ClassVar[frozenset[bool]] = frozenset({False, True})
    masks: ClassVar[bool] = True
    stateful: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"kernel": 3, "dilation": "max"}

    def __init__(
        self,
        dim: int,
        ndim: int,
        *,
        kernel: Count | Sequence[Count] | None = None,
        dilation: Count | str | Sequence[Count] = 1,
        heads: Count | None = None,
        head_dim: Count = 32,
        bias: bool = True,
        qkv_bias: bool = True,
        dropout: Share = 0.0,
        tile: Count | None = None,
        **place: Any,
    ) -> None:
        super().__init__(dim, ndim, **place)
        self.kernel = per_axis(KERNELS[ndim] if kernel is None else kernel, ndim)
        if min(self.kernel) < 1 or any(k % 2 == 0 for k in self.kernel):
            raise ValueError(f"kernel {list(self.kernel)}; odd numbers wanted")
        if tile is not None and tile < 1:
            raise ValueError(f"tile {tile}; 1 or more wanted")
        self.tile = TILES[ndim] if tile is None else tile
        self.dilation = self._dilation_of(dilation)
        if self.size is not None:
            self.windows(self.size)
        self.heads = heads_of(dim, heads, head_dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)
        offsets = math.prod(self.kernel if self.causal else [2 * k - 1 for k in self.kernel])
        self.bias = nn.Parameter(torch.empty(self.heads, offsets)) if bias else None
        if self.bias is not None:
            nn.init.trunc_normal_(self.bias, std=0.02)
        self.dropout = dropout

    def _dilation_of(self, dilation: int | str | Sequence[int]) -> Size | None:
        """None: as large as the map allows."""
        if isinstance(dilation, str):
            if dilation != "max":
                raise ValueError(f"dilation {dilation!r}; a number or max wanted")
            if self.index % 2 == 0:
                return (1,) * self.ndim
            if not self.causal:
                return None
            if self.size is None:
                raise ValueError(
                    "dilation max of a causal network needs the input size; give img_size or a number"
                )
            return (max(self.size[0] // self.kernel[0], 1),)
        found = per_axis(dilation, self.ndim)
        if min(found) < 1:
            raise ValueError(f"dilation {list(found)}; 1 or more wanted")
        return found

    def windows(self, size: Sequence[int]) -> tuple[Size, Size]:
        """k and δ by axis on a map of `size`. Raises ValueError where they do not fit."""
        dilation = self.dilation or tuple(max(s // k, 1) for s, k in zip(size, self.kernel))
        if self.causal:
            return self.kernel, dilation
        kernel = tuple(min(k, s) if d == 1 else k for k, s, d in zip(self.kernel, size, dilation))
        for axis, (k, s, d) in enumerate(zip(kernel, size, dilation)):
            if d * k > s:
                raise ValueError(
                    f"kernel {k} at dilation {d} spans {d * k} of the {s} tokens along axis {axis}; "
                    f"no more than {s} wanted"
                )
        return kernel, dilation

    def _plan(self, x: Tensor, tile: Count | None = None) -> Plan:
        size = tuple(x.shape[1:-1])
        try:
            kernel, dilation = self.windows(size)
        except ValueError as err:
            raise UsageError(
                f"backbone: mixer 'neighbourhood': {err}; give larger inputs, or dilation: max"
            ) from err
        # Nothing is computed on the meta device, only counted: there, what the paper counts, the keys of each token.
        side = 1 if x.is_meta else tile or self.tile
        sides = tuple(_side(-(-s // d), k, side) for s, d, k in zip(size, dilation, kernel))
        return plan_of(size, kernel, dilation, sides, self.kernel, self.causal).on(x.device)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, L, H, d)."""
        qkv = self.qkv(x.flatten(1, -2)).unflatten(-1, (3, self.heads, -1))
        return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        valid = None if mask is None else mask.flatten(1)
        drop = self.dropout if self.training else 0.0
        mixed = attend_tiles(*self._qkv(x), self._plan(x), self.bias, valid, limits=LIMITS, dropout=drop)
        return self.proj(mixed.flatten(2)).view(x.shape)  # type: ignore[no-any-return]

    def readers(self) -> Sequence[nn.Linear]:
        return (self.qkv,)

    def writers(self) -> Sequence[nn.Module]:
        return (self.proj,)

    def matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self._qkv(x)
        plan = self._plan(x, tile=1)
        keys, offsets = plan.keys[plan.home], plan.offsets[plan.kind[plan.home], 0]  # (L, k^n)
        added = (
            torch.zeros((), dtype=q.dtype, device=q.device) if self.bias is None else self.bias[:, offsets]
        )
        added = added.expand(self.heads, *offsets.shape).masked_fill(offsets < 0, float("-inf"))
        dense = added.new_full((self.heads, len(keys), len(keys)), float("-inf"))
        dense = dense.scatter(2, keys.long().expand(self.heads, -1, -1), added)
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * q.shape[-1] ** -0.5
        return (scores + dense).softmax(-1)

    def values(self, x: Tensor) -> Tensor:
        return self._qkv(x)[2].transpose(1, 2)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.proj(mixed.transpose(1, 2).flatten(2)).view(x.shape)  # type: ignore[no-any-return]

    # Causal form, one token at a time: the last (k − 1) δ keys and values are all it needs.

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        empty = self.proj.weight.new_zeros(batch, self.heads, 0, self.dim // self.heads)
        return empty, empty

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        (kernel,), dilation = self.kernel, (self.dilation or (1,))[0]
        q, k, v = (t.transpose(1, 2) for t in self._qkv(x[:, None]))
        keys, values = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        last = keys.shape[2] - 1
        seen = torch.arange(last % dilation, last + 1, dilation, device=x.device)[-kernel:]
        bias = None if self.bias is None else self.bias[None, :, None, -len(seen) :].to(q.dtype)
        mixed = F.scaled_dot_product_attention(
            q, keys.index_select(2, seen), values.index_select(2, seen), attn_mask=bias
        )
        start = max(last + 1 - (kernel - 1) * dilation, 0)
        return self.proj(mixed.flatten(1)), (keys[:, :, start:], values[:, :, start:])


def _side(length: int, kernel: int, side: int) -> int:
    """Queries a tile along an axis. Where a tile would read nearly all keys of the axis, it is one tile."""
    return length if side > 1 and 5 * length <= 6 * (side + kernel - 1) else side
