"""Mamba (Gu and Dao 2023, arXiv 2312.00752): a state-space model whose step size, input and read-out depend on tokens.

    x, z = W_in u            two branches of E = 2C channels (section 3.4, figure 3)
    x = SiLU(conv(x))        depthwise, causal, 4 tokens
    δ, B, C = W_x x          rank R = ⌈C/16⌉, N = 16 states each
    Δ = softplus(W_Δ δ + b)  section 3.2, algorithm 2
    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_t,   y_t = C_t · h_t + D x_t
    out = W_out (y · SiLU(z))

Maps are read along several paths, as in Vision Mamba (Zhu et al. 2024, arXiv 2401.09417: forth and back) and VMamba
(Liu et al. 2024, arXiv 2401.10166: along each axis too): x is put in the path's order, goes through convolution and
scan, and returns to its place; the paths' outputs are summed before the gate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets.layout import count, tokens
from shared.nets.mixers.base import TokenMixer
from shared.nets.ops.selective_scan import selective_recurrence, selective_scan
from shared.nets.options import Count, Positive, Whole
from shared.nets.registry import register, register_backbone

PAPER = "Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu and Dao 2023, arXiv 2312.00752"
METHODS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "chunked": selective_scan,
    "recurrent": selective_recurrence,
}
Path = tuple[int, bool]
"""The axis that runs fastest, and whether the path goes back to front."""


class StepSize(nn.Module):
    """softplus(W δ + b) with the paper's start (section 3.6): softplus(b) log-uniform in [0.001, 0.1], W uniform in
    ±R^−½. No `nn.Linear`, whose weights the networks' common start would overwrite."""

    def __init__(self, rank: int, out: int) -> None:
        super().__init__()
        bound = max(rank, 1) ** -0.5
        self.weight = nn.Parameter(torch.empty(out, rank).uniform_(-bound, bound)) if rank else None
        start = torch.exp(torch.empty(out).uniform_(math.log(1e-3), math.log(1e-1))).clamp(min=1e-4)
        self.bias = nn.Parameter(start + torch.log(-torch.expm1(-start)))

    def forward(self, low: Tensor | None, like: Tensor) -> Tensor:
        """(…, R) → (…, E); with R = 0 the bias alone, for every token of `like`."""
        if low is None or self.weight is None:
            before = self.bias.expand(like.shape)
        else:
            before = F.linear(low, self.weight, self.bias)
        return F.softplus(before.to(torch.promote_types(before.dtype, torch.float32)))


class SelectiveSSM(nn.Module):
    """Convolution and selective state-space model of one path, (B, L, E) → (B, L, E), under the official names.

    `selective=False` is the linear time-invariant ablation (section 4.6, table 6): Δ, B and C the same for all tokens.
    """

    no_decay: ClassVar[frozenset[str]] = frozenset({"A_log", "D"})

    def __init__(self, width: int, states: int, rank: int, kernel: int, selective: bool) -> None:
        super().__init__()
        self.rank, self.states, self.kernel = rank, states, kernel
        self.conv1d = nn.Conv1d(width, width, kernel, groups=width)
        self.x_proj = nn.Linear(width, rank + 2 * states, bias=False) if selective else None
        self.fixed = None if selective else nn.Parameter(torch.randn(2 * states))
        self.dt_proj = StepSize(rank if selective else 0, width)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(width, 1))
        self.D = nn.Parameter(torch.ones(width))

    def convolve(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """SiLU(conv(x)), causal; `before` (B, kernel − 1, E) are the tokens before the first, zero by default."""
        x = F.pad(x, [0, 0, self.kernel - 1, 0]) if before is None else torch.cat([before, x], 1)
        return F.silu(self.conv1d(x.transpose(1, 2)).transpose(1, 2))

    def parameters_of(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Δ (B, L, E), A (E, N), B and C (B, L, N) for the convolved x. Δ = 0 where invalid: the state stays as it is,
        for exp(0) = 1 and nothing comes in."""
        low = None
        if self.x_proj is not None:
            low, b, c = self.x_proj(x).split([self.rank, self.states, self.states], -1)
        else:
            b, c = self.fixed.expand(*x.shape[:-1], -1).chunk(2, -1)  # type: ignore[union-attr]
        delta = self.dt_proj(low, x)
        if mask is not None:
            delta = delta * mask[..., None]
        return delta, -torch.exp(self.A_log.to(delta.dtype)), b, c


@register("mixer", "mamba", paper=PAPER, cost="L C N")
class Mamba(TokenMixer):
    """Selective state-space model along one path (causal), or along several.

    `scan: raster` reads the map row by row, forth and back; `scan: cross` does so along every axis, 2n paths. In one
    dimension both are the bidirectional form. `shared`: one set of weights for all paths, else one each.
    `method: recurrent` is the token-by-token reference of the chunked scan. Masked: invalid tokens leave state and
    convolution untouched. State of a step: the convolution's last inputs (B, kernel − 1, E) and h (B, E, N).
    """

    causal_forms: ClassVar[frozenset[bool]] = frozenset({False, True})
    masks: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        ndim: int,
        *,
        states: Count = 16,
        expand: Positive = 2,
        kernel: Count = 4,
        rank: Whole | None = None,
        scan: str = "cross",
        shared: bool = False,
        selective: bool = True,
        method: str = "chunked",
        **place: Any,
    ) -> None:
        super().__init__(dim, ndim, **place)
        if scan not in ("raster", "cross"):
            raise ValueError(f"scan {scan!r}; raster or cross wanted")
        if method not in METHODS:
            raise ValueError(f"method {method!r}; one of {', '.join(METHODS)} wanted")
        if min(states, kernel) < 1 or round(expand * dim) < 1:
            raise ValueError(f"states {states}, kernel {kernel}, expand {expand}; all above 0 wanted")
        self.width, self.states, self.kernel = round(expand * dim), states, kernel
        self.scan = METHODS[method]
        axes = [ndim - 1] if scan == "raster" else list(range(ndim - 1, -1, -1))
        self.orders: list[Path] = [(axis, back) for axis in axes for back in (False, True)]
        if self.causal:
            self.orders = [(0, False)]
        self.in_proj = nn.Linear(dim, 2 * self.width, bias=False)
        rank = math.ceil(dim / 16) if rank is None else rank
        sets = 1 if shared else len(self.orders)
        self.paths = nn.ModuleList(
            SelectiveSSM(self.width, states, rank, kernel, selective) for _ in range(sets)
        )
        self.out_proj = nn.Linear(self.width, dim, bias=False)

    def readers(self) -> Sequence[nn.Linear]:
        return (self.in_proj,)

    def writers(self) -> Sequence[nn.Module]:
        return (self.out_proj,)

    # ------------------------------------------------------------ whole maps

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        inner, gate = self.in_proj(x).chunk(2, -1)
        if mask is not None:
            inner = inner * mask[..., None]
        read, scanned = self._paths(inner, mask)
        y, _ = self.scan(*scanned)
        total = self._sum(y + read, x.shape[1:-1])
        return self.out_proj(total.to(gate.dtype) * F.silu(gate))  # type: ignore[no-any-return]

    def _paths(self, inner: Tensor, mask: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All paths as one batch (paths · B, L, E): D x, and the arguments of the scan."""
        lines = [_along(inner, order) for order in self.orders]
        valid = [None if mask is None else _along(mask[..., None], order)[..., 0] for order in self.orders]
        if len(self.paths) == 1:
            lines = [torch.cat(lines)]
            valid = [None if mask is None else torch.cat([v for v in valid if v is not None])]
        made = []
        for path, line, good in zip(self.paths, lines, valid):
            x = path.convolve(line)  # type: ignore[operator]
            made.append((path.D * x, x, *path.parameters_of(x, good)))  # type: ignore[operator]
        if len(made) == 1:
            return made[0][0], made[0][1:]
        read, x, delta, b, c = (torch.cat([m[i] for m in made]) for i in (0, 1, 2, 4, 5))
        a = torch.cat([m[3].expand(len(inner), -1, -1) for m in made])
        return read, (x, delta, a, b, c)

    def _sum(self, y: Tensor, size: Sequence[int]) -> Tensor:
        """(paths · B, L, E) → (B, *S, E)."""
        parts = y.chunk(len(self.orders))
        total = _back(parts[0], size, self.orders[0])
        for part, order in zip(parts[1:], self.orders[1:]):
            total = total + _back(part, size, order)
        return total

    # ------------------------------------------------------------ one token at a time

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        like = self.in_proj.weight
        states = like.new_zeros(
            batch, self.width, self.states, dtype=torch.promote_types(like.dtype, torch.float32)
        )
        return like.new_zeros(batch, self.kernel - 1, self.width), states

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if not self.causal:
            raise NotImplementedError
        path: Any = self.paths[0]
        before, h = state
        inner, gate = self.in_proj(x[:, None]).chunk(2, -1)
        read = path.convolve(inner, before)
        delta, a, b, c = path.parameters_of(read)
        y, h = selective_recurrence(read, delta, a, b, c, h)
        out = self.out_proj((y + path.D * read).to(gate.dtype) * F.silu(gate))
        return out[:, 0], (torch.cat([before, inner], 1)[:, 1:], h)

    # ------------------------------------------------------------ the unified view

    def matrix(self, x: Tensor) -> Tensor:
        """(B, paths · E, L, L): Σ_n C_t exp(A Σ_{s<j≤t} Δ_j) Δ_s B_s for s ≤ t on the path, and D on the diagonal;
        tokens in the map's order. L² E N exponentials: for small L."""
        inner = self.in_proj(x).chunk(2, -1)[0]
        _, (_, delta, a, b, c) = self._paths(inner, None)
        length, total = delta.shape[1], delta.cumsum(1)
        since = (total[:, :, None] - total[:, None]).clamp(min=0)  # (paths · B, t, s, E)
        mixed = torch.zeros_like(since)
        for decay, enter, leave in zip(a.unbind(-1), b.to(a.dtype).unbind(-1), c.to(a.dtype).unbind(-1)):
            seen = leave[:, :, None] * enter[:, None]
            mixed += torch.exp(since * decay.view(-1, 1, 1, self.width)) * seen[..., None]
        mixed = (mixed * delta[:, None]).movedim(-1, 1).tril()
        parts = []
        for at, (order, part) in enumerate(zip(self.orders, mixed.chunk(len(self.orders)))):
            skip = self.paths[at % len(self.paths)].D[:, None].expand(-1, length)  # type: ignore[index, union-attr]
            place = torch.arange(length, device=x.device).view(1, *x.shape[1:-1], 1)
            place = _along(place, order).flatten().argsort()
            parts.append(part[:, :, place][..., place] + torch.diag_embed(skip))
        return torch.cat(parts, 1)

    def values(self, x: Tensor) -> Tensor:
        """(B, paths · E, L, 1): the convolved x of every path."""
        inner = self.in_proj(x).chunk(2, -1)[0]
        _, (read, *_) = self._paths(inner, None)
        parts = zip(read.chunk(len(self.orders)), self.orders)
        return torch.cat([tokens(_back(p, x.shape[1:-1], o)).transpose(1, 2) for p, o in parts], 1)[..., None]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Sum over the paths, gate, W_out."""
        gate = self.in_proj(x).chunk(2, -1)[1]
        total = mixed[..., 0].unflatten(1, (len(self.orders), -1)).sum(1).transpose(1, 2)
        return self.out_proj(total.reshape(gate.shape) * F.silu(gate))  # type: ignore[no-any-return]

    def extra_macs(self, size: Sequence[int]) -> int:
        """Entry, recurrence and read-out of every state, Δ x and D x; exponentials not counted."""
        return len(self.orders) * count(size) * self.width * (3 * self.states + 2)


def _along(x: Tensor, order: Path) -> Tensor:
    """(B, *S, E) → (B, L, E) in the order of a path."""
    axis, back = order
    line = tokens(x.movedim(1 + axis, -2))
    return line.flip(1) if back else line


def _back(line: Tensor, size: Sequence[int], order: Path) -> Tensor:
    """The inverse: (B, L, E) → (B, *S, E)."""
    axis, back = order
    rest = [n for at, n in enumerate(size) if at != axis]
    line = line.flip(1) if back else line
    return line.view(len(line), *rest, size[axis], line.shape[-1]).movedim(-2, 1 + axis)


def _stack(dim: int, depth: int) -> dict[str, Any]:
    """Section 3.4: norm and mixer, repeated; no other channel mixer. Causal, so that it streams."""
    norm = {"name": "rmsnorm", "eps": 1e-5}
    return {
        "stem": {"name": "patch", "patch": 1},
        "dims": [dim],
        "depths": [depth],
        "mixers": ["mamba"],
        "ffn": None,
        "norm": norm,
        "final_norm": norm,
        "head": "last",
        "causal": True,
    }


_SERIES: dict[str, Any] = {"ndim": 1, "in_chans": 1, "num_classes": 0, "img_size": (64,)}
register_backbone("mamba_xs", _stack(64, 2), paper=PAPER, published=_SERIES)
register_backbone("mamba_s_1d", _stack(128, 4), paper=PAPER, published=_SERIES)
register_backbone("mamba_130m", _stack(768, 24), paper=PAPER, published={**_SERIES, "in_chans": 768})
