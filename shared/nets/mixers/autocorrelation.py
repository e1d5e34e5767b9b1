"""Auto-Correlation (Autoformer, Wu et al. 2021, arXiv 2106.13008, section 3.2): a series is mixed with itself, shifted
by the delays at which it resembles itself most.

    R(τ) = mean over channels of Σ_t q[t + τ] k[t]      circular; by FFT (eq. 8, Wiener–Khinchin)
    τ_1 … τ_n = the n = ⌊factor · ln L⌋ delays of largest R      (eq. 6)
    out[t] = W_o Σ_i softmax(R(τ))_i (W_v y)[t + τ_i] + b_o      circular

Training takes the delays of the batch's mean R, prediction those of each series; the weights are each series' own.

The published layer averages R over heads and channels and shifts all channels alike, so heads are without effect, and

    Σ_c q_c[t] k_c[s] = x[t]ᵀ (W_qᵀ W_k) y[s],      W_o Σ_i w_i (W_v y)[t + τ_i] = (W_o W_v) Σ_i w_i y[t + τ_i]:

for many tokens the products of the weights are made first, which leaves two of the four maps of tokens; the cross
spectrum is summed over channels before the one inverse transform of R; and the shifted sum is itself a correlation, of
y with the weights standing at their delays, for which y's spectrum is at hand. No shifted copy is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets.layout import without_autocast
from shared.nets.mixers.base import TokenMixer
from shared.nets.ops.fft_conv import working_dtype
from shared.nets.options import Positive
from shared.nets.registry import register

MERGE_FROM = 2
"""Tokens a channel from which the product of two C × C maps is worth its C³."""


class TopDelays(nn.Module):
    """R (B, L) → the chosen delays and their weights, (B, n) each; a module so that hooks can read them."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def number(self, length: int) -> int:
        """n of a series of `length` steps: at least one delay, at most all."""
        return min(max(int(self.factor * math.log(length)), 1), length)

    def forward(self, r: Tensor) -> tuple[Tensor, Tensor]:
        n = self.number(r.shape[1])
        if not self.training:
            values, delays = r.topk(n, 1)
            return delays, values.softmax(1)
        delays = r.mean(0).topk(n).indices.expand(len(r), n)
        return delays, r.gather(1, delays).softmax(1)


@register(
    "mixer",
    "autocorrelation",
    paper="Autoformer, Wu et al. 2021, arXiv 2106.13008",
    cost="L log L C + L C²",
)
class AutoCorrelation(TokenMixer):
    """Masked: invalid tokens are zeros in R, and each sum of shifted tokens is over the valid ones.

    `key_bias`, as published: it adds the same to R at every delay, which softmax undoes, unless keys are fewer than
    queries.
    """

    ndims: ClassVar[frozenset[int]] = frozenset({1})
    masks: ClassVar[bool] = True

    def __init__(
        self, dim: int, ndim: int = 1, *, factor: Positive = 3, key_bias: bool = False, **place: Any
    ) -> None:
        super().__init__(dim, ndim, **place)
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=key_bias)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.choose = TopDelays(factor)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.between(x, x, mask)

    def between(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries x (B, L, C), keys and values y (B, S, C) → (B, L, C).

        As published: L ≠ S compares the first min(L, S) steps of y, followed by zeros. `mask` (B, L) is for L = S.
        """
        length = x.shape[1]
        with without_autocast(x):  # delays are chosen by comparing sums, which half precision would confuse
            kind = self.query.weight.dtype
            x, y = x.to(kind), y[:, :length].to(kind)
            valid = y.new_ones(1, y.shape[1]) if mask is None else mask.to(kind)
            y = y if mask is None else y * valid[..., None]
            seen, present = _spectrum(y, length), _spectrum(valid, length)
            delays, weights = self.choose(self._correlation(x, seen, present, mask))
            at = _spectrum(_placed(delays, weights, length), length).conj()
            mixed = torch.fft.irfft(seen * at[..., None], n=length, dim=1).to(kind)
            whole = mask is None and y.shape[1] == length
            cover = None if whole else torch.fft.irfft(present * at, n=length, dim=1)[..., None].to(kind)
        if mask is None or cover is None:
            return self._project(mixed, cover)
        return self._project(mixed * (cover > 1e-5) / cover.clamp(min=1e-5), None)

    def _correlation(self, x: Tensor, seen: Tensor, present: Tensor, mask: Tensor | None) -> Tensor:
        """R (B, L) of x with the keys of y; `seen` (B, F, C) is y's spectrum, `present` that of its valid tokens."""
        length, wq, bq = x.shape[1], self.query.weight, self.query.bias
        q = _both(x, wq, bq, self.key.weight.T)
        q = q if mask is None else q * mask[..., None]
        cross = (_spectrum(q, length) * seen.conj()).sum(-1)
        if self.key.bias is not None:
            u = x @ (self.key.bias @ wq) + bq @ self.key.bias
            cross = cross + _spectrum(u if mask is None else u * mask, length) * present.conj()
        return torch.fft.irfft(cross, n=length, dim=1) / self.dim

    def _project(self, mixed: Tensor, cover: Tensor | None) -> Tensor:
        """W_o (W_v mixed + b_v cover) + b_o; cover, the sum of the weights that met a token, is 1 by default."""
        wv, wo, bias = self.value.weight, self.out.weight, self.out.weight @ self.value.bias
        if cover is None:
            return _both(mixed, wv, None, wo, bias + self.out.bias)
        return _both(mixed, wv, None, wo, self.out.bias) + cover * bias

    # ------------------------------------------------------------ the unified view

    def matrix(self, x: Tensor) -> Tensor:
        """Row t has the weight of delay τ at t + τ: circulant."""
        length = x.shape[1]
        seen, present = _spectrum(x, length), _spectrum(x.new_ones(1, length), length)
        delays, weights = self.choose(self._correlation(x, seen, present, None))
        placed = _placed(delays, weights, length)
        steps = torch.arange(length, device=x.device)
        return placed[:, (steps - steps[:, None]) % length][:, None]

    def values(self, x: Tensor) -> Tensor:
        return self.value(x)[:, None]  # type: ignore[no-any-return]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.out(mixed[:, 0])  # type: ignore[no-any-return]

    def readers(self) -> Sequence[nn.Linear]:
        return (self.query, self.key, self.value)

    def writers(self) -> Sequence[nn.Module]:
        return (self.out,)


def _both(
    x: Tensor, first: Tensor, between: Tensor | None, second: Tensor, last: Tensor | None = None
) -> Tensor:
    """second (first x + between) + last, of (B, L, C)."""
    if len(x) * x.shape[1] < MERGE_FROM * len(first):
        return F.linear(F.linear(x, first, between), second, last)
    if between is not None:
        last = second @ between if last is None else second @ between + last
    return F.linear(x, second @ first, last)


def _spectrum(x: Tensor, length: int) -> Tensor:
    """(B, S, …) → (B, L // 2 + 1, …), zeros after the last step."""
    return torch.fft.rfft(x.to(working_dtype(x)), n=length, dim=1)


def _placed(delays: Tensor, weights: Tensor, length: int) -> Tensor:
    """(B, L): each weight at its delay, else 0."""
    return weights.new_zeros(len(weights), length).scatter(1, delays, weights)
