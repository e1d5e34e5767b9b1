"""Shifted-window attention in one, two and three dimensions.

Swin (Liu et al. 2021, arXiv 2103.14030), section 3.2: attention inside disjoint windows of w^n tokens; every second
block moves the windows by w // 2, so that neighbours meet. The move is cyclic, and tokens that only the wrap-around
brought together do not see each other ("seam", figure 4). Eq. 4: softmax(q kᵀ / √d + B) v, B from a table of
(2w − 1)^n relative positions a head.

Swin V2 (Liu et al. 2022, arXiv 2111.09883), ``cosine``, eq. 2: cos(q, k) · τ + B, τ = exp(min(s, ln 100)) learned a
head (section 3.2), B = 16 σ(MLP(offsets)) with offsets on a logarithmic scale (eq. 4, section 3.3).

Along an axis not longer than the window, the window is the whole axis and nothing moves, as in the official code. The
official code lets tokens attend to the zeros that fill a map up to whole windows; here the filling is no key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets.layout import per_axis, tokens
from shared.nets.mixers.base import TokenMixer, heads_of
from shared.nets.options import Count, Share, Whole
from shared.nets.registry import register
from shared.nets.windows import Group, Windows, relative_index, windows_of

PAPER = "Swin Transformer, Liu et al. 2021, arXiv 2103.14030"
V2 = "Swin Transformer V2, Liu et al. 2022, arXiv 2111.09883"
_LARGEST = math.log(100)
_HIDDEN = 512
"""Hidden width of V2's bias network."""


@register("mixer", "window", paper=PAPER, cost="L w^n C")
class WindowAttention(TokenMixer):
    """`window` tokens a side (one number, or one an axis); blocks of odd index shift by half of it, or by `shift`.

    `cosine` takes V2's scores and bias; `trained_window` is the window its bias network was trained with, where that
    differs. Masked: invalid tokens are no keys.
    """

    masks: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"window": 3}

    def __init__(
        self,
        dim: int,
        ndim: int,
        *,
        window: Count | Sequence[Count] = 7,
        shift: Whole | Sequence[Whole] | None = None,
        heads: Count | None = None,
        head_dim: Count = 32,
        qkv_bias: bool = True,
        cosine: bool = False,
        trained_window: Count | Sequence[Count] | None = None,
        dropout: Share = 0.0,
        **place: Any,
    ) -> None:
        super().__init__(dim, ndim, **place)
        self.window, self.heads = per_axis(window, ndim), heads_of(dim, heads, head_dim)
        half = tuple(w // 2 for w in self.window) if self.index % 2 else (0,) * ndim
        self.shift = half if shift is None else per_axis(shift, ndim)
        if min(self.window) < 1 or any(not 0 <= s < w for s, w in zip(self.shift, self.window)):
            raise ValueError(
                f"window {self.window}, shift {self.shift}; window ≥ 1, 0 ≤ shift < window wanted"
            )
        self.cosine, self.dropout = cosine, dropout
        # Without bias on the keys in V2, where it would turn them; in V1 the softmax cancels it.
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias and not cosine)
        self.proj = nn.Linear(dim, dim)
        if not cosine:
            self.table = nn.Parameter(torch.empty(math.prod(2 * w - 1 for w in self.window), self.heads))
            nn.init.trunc_normal_(self.table, std=0.02)
            return
        if qkv_bias:
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.qv_bias = qkv_bias
        self.log_scale = nn.Parameter(torch.full((self.heads, 1, 1), math.log(10)))
        self.bias_net = nn.Sequential(
            nn.Linear(ndim, _HIDDEN), nn.ReLU(inplace=True), nn.Linear(_HIDDEN, self.heads, bias=False)
        )
        trained = self.window if trained_window is None else per_axis(trained_window, ndim)
        self.register_buffer("offsets", _log_offsets(self.window, trained), persistent=False)

    # ------------------------------------------------------------ parts

    def _windows(self, x: Tensor) -> Windows:
        """How this map is cut; axes not longer than the window are taken whole."""
        size = tuple(x.shape[1:-1])
        window = tuple(min(w, n) for w, n in zip(self.window, size))
        shift = tuple(0 if n <= w else s for s, w, n in zip(self.shift, self.window, size))
        return windows_of(size, window, shift)

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(A, N, C) → each (A, H, N, d)."""
        bias: Tensor | None = self.qkv.bias
        if self.cosine and self.qv_bias:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        if self.cosine:
            scale = self.log_scale.clamp(max=_LARGEST).exp()
            q, k = (F.normalize(q, dim=-1) * scale).to(v.dtype), F.normalize(k, dim=-1).to(v.dtype)
        return q, k, v

    def _bias(self, window: Sequence[int]) -> Tensor:
        """B, (H, N, N), of windows that may be smaller than the table's."""
        table = 16 * torch.sigmoid(self.bias_net(self.offsets)) if self.cosine else self.table
        index = torch.from_numpy(relative_index(tuple(window), self.window)).to(table.device)
        length = math.prod(window)
        return table.index_select(0, index).view(length, length, self.heads).permute(2, 0, 1).contiguous()

    def _scores(self, bias: Tensor, group: Group, valid: Tensor | None) -> Tensor:
        """What is added to the scores of a group's windows, (1 or windows, H, N, N): B, −∞ where none may look."""
        allowed = None if group.allowed is None else torch.from_numpy(group.allowed).to(bias.device)
        if valid is not None:  # a token always sees itself, so that no row is empty
            keys = valid[:, None, None] | torch.eye(bias.shape[-1], dtype=torch.bool, device=bias.device)
            allowed = keys if allowed is None else keys & allowed
        # Four axes: torch's fast kernel takes no three.
        return bias[None] if allowed is None else bias[None].masked_fill(~allowed, float("-inf"))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, added: Tensor) -> Tensor:
        drop = self.dropout if self.training else 0.0
        if q.device.type == "cpu" and added.requires_grad:
            # torch's fast kernel on the CPU has no gradient for the bias, and its slow one looks for empty rows.
            weights = ((q * self._scale) @ k.transpose(-1, -2) + added).softmax(-1)
            return F.dropout(weights, drop).to(v.dtype) @ v
        return F.scaled_dot_product_attention(q, k, v, added, drop, scale=self._scale)

    @property
    def _scale(self) -> float:
        return 1.0 if self.cosine else (self.dim // self.heads) ** -0.5

    # ------------------------------------------------------------ forward

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        cut, batch = self._windows(x), x.shape[0]
        rows, back = cut.rows(batch, x.device)
        gathered = x.reshape(-1, x.shape[-1]).index_select(0, rows).view(-1, cut.length, x.shape[-1])
        valid = None if mask is None else mask.reshape(-1).index_select(0, rows).view(-1, cut.length)
        q, k, v = self._qkv(gathered)
        bias, seen = self._bias(cut.window).to(q.dtype), []
        for group in cut.groups:  # windows without seam or filling need no mask; the others share one a group
            part = slice(group.start * batch, group.stop * batch)
            added = self._scores(bias, group, None if valid is None else valid[part])
            mixed = self._attend(q[part], k[part], v[part], added)
            seen.append(mixed.transpose(1, 2).reshape(-1, self.dim))
        whole = seen[0] if len(seen) == 1 else torch.cat(seen)
        return self.proj(whole.index_select(0, back)).view(x.shape)  # type: ignore[no-any-return]

    def readers(self) -> Sequence[nn.Linear]:
        return () if self.cosine else (self.qkv,)

    def writers(self) -> Sequence[nn.Module]:
        return (self.proj,)

    # ------------------------------------------------------------ the unified view

    def matrix(self, x: Tensor) -> Tensor:
        cut, batch = self._windows(x), x.shape[0]
        rows, _ = cut.rows(batch, x.device)
        q, k, _ = self._qkv(
            x.reshape(-1, x.shape[-1]).index_select(0, rows).view(-1, cut.length, x.shape[-1])
        )
        bias, total = self._bias(cut.window), cut.tokens
        whole = x.new_zeros(batch, self.heads, total + 1, total + 1)  # the filling's row and column go
        for group in cut.groups:
            part = slice(group.start * batch, group.stop * batch)
            scores = q[part] @ k[part].transpose(-1, -2) * self._scale + self._scores(bias, group, None)
            weights = scores.softmax(-1).unflatten(0, (-1, batch)).permute(1, 2, 0, 3, 4)
            at = torch.from_numpy(cut.places[group.start : group.stop]).to(x.device)
            whole[:, :, at[:, :, None], at[:, None, :]] = weights.to(whole.dtype)
        return whole[..., :total, :total]

    def values(self, x: Tensor) -> Tensor:
        return self._qkv(tokens(x))[2]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.proj(mixed.transpose(1, 2).flatten(2)).view(x.shape)  # type: ignore[no-any-return]


def _log_offsets(window: Sequence[int], trained: Sequence[int]) -> Tensor:
    """V2's eq. 4 for every entry of the table, (∏(2w − 1), n): sign(Δ) log₂(1 + 8 |Δ| / (w' − 1)) / 3."""
    lines = []
    for w, of in zip(window, trained):
        offset = np.arange(1 - w, w) * 8 / max(of - 1, 1)
        lines.append(np.sign(offset) * np.log2(1 + np.abs(offset)) / 3)
    grid = np.stack(np.meshgrid(*lines, indexing="ij"), -1)
    return torch.from_numpy(grid.reshape(-1, len(lines)).astype(np.float32))
