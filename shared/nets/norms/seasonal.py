"""Autoformer's norm of a seasonal part (Wu et al. 2021, arXiv 2106.13008, official code): its mean over time is 0."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from shared.nets.norms.layers import LayerNorm, masked_mean
from shared.nets.options import Positive
from shared.nets.registry import register


@register("norm", "seasonal", paper="Autoformer, Wu et al. 2021, arXiv 2106.13008", cost="L C")
class SeasonalNorm(LayerNorm):
    """Layer norm of every token, minus its mean over the (valid) tokens."""

    per_token: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = True

    def __init__(self, dim: int, *, eps: Positive = 1e-5) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        return y - masked_mean(y, mask).view(len(y), *[1] * (y.ndim - 2), -1)
