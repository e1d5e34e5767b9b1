"""Manhattan self-attention (RMT, Fan et al. 2023, arXiv 2309.11523): attention that fades with distance.

RetNet's decay γ^(n−m) for text becomes γ^|i−j|₁ in space, written here as it is computed, a bias in the logarithm:

    MaSA(x) = softmax(q̂ k̂ᵀ / √d + D_h) v,    D_h[i, j] = g_h |i − j|₁,    g_h = ln(1 − 2^(−a − b h / H))

q̂, k̂ are rotary pairs at the angles 10000^(−t), t from 0 to 1, times the token's flat position. Split along the axes D
separates: one softmax along the last axis mixes the values, the next one along the axis before it mixes the result,
and so on to the first. Local context is added to the mixed values: LePE(v) = DWConv_5(v).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets.layout import Conv, positions
from shared.nets.mixers.base import TokenMixer, heads_of
from shared.nets.options import Count, Whole
from shared.nets.registry import register

SCORES = 2**24
"""Biased scores held at a time; queries go in parts beyond it."""


@register(
    "mixer",
    "manhattan",
    paper="RMT: Retentive Networks Meet Vision Transformers, Fan et al. 2023, arXiv 2309.11523",
    cost="L² C whole, L Σs C split",
)
class Manhattan(TokenMixer):
    """`mode` whole: every token sees every other. split: along one axis after the other, the last one first.

    `decay` (a, b) sets each head's g, null is no decay; `rotary` turns queries and keys by their position; `lepe` is
    the kernel of the convolution of the values, 0 for none. Masked: invalid tokens are no keys, and zeros to the
    convolution.
    """

    masks: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        ndim: int,
        *,
        mode: Literal["whole", "split"] = "whole",
        heads: Count | None = None,
        head_dim: Count = 32,
        decay: Sequence[float] | None = (2.0, 4.0),
        rotary: bool = True,
        lepe: Whole = 5,
        **place: Any,
    ) -> None:
        super().__init__(dim, ndim, **place)
        if mode not in ("whole", "split"):
            raise ValueError(f"mode {mode!r}; whole or split wanted")
        if decay is not None and (len(decay) != 2 or min(decay) < 0 or decay[0] == 0):
            raise ValueError(f"decay {list(decay)}; two numbers a > 0 and b ≥ 0 wanted, or null")
        if lepe and lepe % 2 == 0:
            raise ValueError(f"lepe {lepe} is even; an odd kernel wanted, or 0")
        self.heads = heads_of(dim, heads, head_dim)
        if rotary and dim // self.heads % 2:
            raise ValueError(f"{dim // self.heads} channels a head; an even number wanted for rotary pairs")
        self.mode, self.rotary = mode, rotary
        self.decay = [
            0.0 if decay is None else math.log(1 - 2 ** (-decay[0] - decay[1] * h / self.heads))
            for h in range(self.heads)
        ]
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.lepe = Conv(dim, dim, lepe, ndim, groups=dim) if lepe else None
        self.proj = nn.Linear(dim, dim)
        for layer in (
            self.q,
            self.k,
            self.v,
        ):  # small at first, as in RetNet; a network's own rule may follow
            nn.init.xavier_normal_(layer.weight, gain=2**-2.5)
        nn.init.xavier_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k = self._queries_keys(x)
        v = self.v(x)
        mixed = self._mix(q, k, self._by_head(v), mask)
        return self._out(mixed, v, mask)

    def _out(self, mixed: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """mixed (B, *S, H, d), v (B, *S, C)."""
        out = mixed.flatten(-2)
        if self.lepe is not None:
            out = out + self.lepe(v if mask is None else v * mask[..., None])
        return self.proj(out)  # type: ignore[no-any-return]

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, *S, C) → (B, *S, H, d)."""
        return x.unflatten(-1, (self.heads, -1))

    def _queries_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each (B, *S, H, d), turned by position."""
        q, k = self._by_head(self.q(x)), self._by_head(self.k(x))
        if not self.rotary:
            return q, k
        size = tuple(x.shape[1:-1])
        dtype = torch.promote_types(self.q.weight.dtype, torch.float32)
        cos, sin = rotation(size, q.shape[-1], dtype, x.device)
        return turn(q, cos, sin), turn(k, cos, sin)

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """v (B, *S, H, e) mixed, the same shape."""
        if self.mode == "whole":
            size = tuple(q.shape[1:-2])
            q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
            seen = self._attend(q, k, v, size, None if mask is None else mask.flatten(1))
            return seen.transpose(1, 2).unflatten(1, size)
        for axis in range(self.ndim, 0, -1):
            v = self._along(q, k, v, mask, axis)
        return v

    def _along(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, axis: int) -> Tensor:
        """Attention inside every line along one axis (1…n)."""
        lines = [t.movedim(axis, -3) for t in (q, k, v)]  # (B, …, s, H, e)
        before, length = lines[2].shape[:-3], lines[2].shape[-3]
        q, k, v = (t.flatten(0, -4).transpose(1, 2) for t in lines)  # (B · lines, H, s, e)
        valid = None if mask is None else mask.movedim(axis, -1).flatten(0, -2)
        seen = self._attend(q, k, v, (length,), valid).transpose(1, 2)
        return seen.unflatten(0, before).movedim(-3, axis)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, ...], valid: Tensor | None) -> Tensor:
        """q, k (N, H, L, d), v (N, H, L, e), valid (N, L) → (N, H, L, e); queries in parts where scores are many."""
        length = q.shape[2]
        images = 1 if valid is None else q.shape[0]
        step = max(1, min(length, SCORES // (self.heads * length * images)))
        parts = []
        for at in range(0, length, step):
            bias = self._bias(size, at, min(at + step, length), q, valid)
            parts.append(F.scaled_dot_product_attention(q[:, :, at : at + step], k, v, attn_mask=bias))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def _bias(
        self, size: tuple[int, ...], first: int, last: int, like: Tensor, valid: Tensor | None
    ) -> Tensor:
        """Of the queries first…last: (1 or N, H, queries, L); −∞ for invalid keys other than the token itself, so that
        no row is empty."""
        bias = decay_bias(size, first, last, self.decay, like)
        if valid is None:
            return bias
        own = torch.arange(first, last, device=like.device)[:, None] == torch.arange(
            valid.shape[1], device=like.device
        )
        return bias.masked_fill(~(valid[:, None, None] | own), float("-inf"))

    def readers(self) -> Sequence[nn.Linear]:
        return (self.q, self.k, self.v)

    def writers(self) -> Sequence[nn.Module]:
        return (self.proj,)

    def matrix(self, x: Tensor) -> Tensor:
        """The passes of the split mode multiplied into one matrix: what they make of the unit vectors."""
        q, k = self._queries_keys(x)
        size, length = x.shape[1:-1], math.prod(x.shape[1:-1])
        unit = torch.eye(length, dtype=q.dtype, device=x.device).view(1, *size, 1, length)
        mixed = self._mix(q, k, unit.expand(len(x), *size, self.heads, length), None)
        return mixed.flatten(1, -3).transpose(1, 2)

    def values(self, x: Tensor) -> Tensor:
        return self._by_head(self.v(x)).flatten(1, -3).transpose(1, 2)

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self._out(mixed.transpose(1, 2).unflatten(1, x.shape[1:-1]), self.v(x), None)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Every pair (x₂ₜ, x₂ₜ₊₁) of x (B, *S, H, d) rotated; cos, sin (*S, 1, d/2)."""
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)


def rotation(
    size: Sequence[int], width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin of (flat position · 10000^(−t)), each (*S, 1, d/2)."""
    rates = 1.0 / 10_000 ** torch.linspace(0, 1, width // 2, dtype=dtype, device=device)
    angles = torch.arange(math.prod(size), dtype=dtype, device=device)[:, None] * rates
    return angles.cos().view(*size, 1, -1), angles.sin().view(*size, 1, -1)


def decay_bias(size: Sequence[int], first: int, last: int, decay: Sequence[float], like: Tensor) -> Tensor:
    """g_h |i − j|₁ of the queries i = first…last to all tokens j: (1, H, queries, L), type and device of `like`."""
    at = positions(size, like.device)
    distance = (at[first:last, None] - at[None]).abs().sum(-1)
    rates = torch.tensor(decay, dtype=torch.float64).to(like)
    return rates[None, :, None, None] * distance.to(like.dtype)
