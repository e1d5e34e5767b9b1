"""MetaFormer's mixers without parameters (Yu et al. 2022, arXiv 2111.11418): pooling, and none at all.

The paper's point: the block around the mixer does most of the work. Pool(x) = AvgPool_k(x) − x (eq. 4; the residual
branch carries x itself), padding not counted in the mean.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from shared.nets.layout import average_pool, positions, tokens
from shared.nets.mixers.base import TokenMixer
from shared.nets.options import Count
from shared.nets.registry import register

PAPER = "MetaFormer Is Actually What You Need for Vision, Yu et al. 2022, arXiv 2111.11418"


@register("mixer", "pool", paper=PAPER, cost="L k^n C")
class Pool(TokenMixer):
    """Mean of the k^n neighbours minus the token itself. Masked: mean of the valid neighbours."""

    masks: ClassVar[bool] = True

    def __init__(self, dim: int, ndim: int, *, kernel: Count = 3, **place: Any) -> None:
        super().__init__(dim, ndim, **place)
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} is even; an odd one wanted")
        self.kernel = kernel

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        k, pad = self.kernel, self.kernel // 2
        if mask is None:
            return average_pool(x, k, 1, pad, count_padding=False) - x
        valid = mask[..., None].to(x.dtype)
        total, there = average_pool(x * valid, k, 1, pad), average_pool(valid, k, 1, pad)
        return (total / there.clamp(min=1e-6) - x) * valid

    def matrix(self, x: Tensor) -> Tensor:
        at = positions(x.shape[1:-1], x.device)
        near = ((at[:, None] - at[None]).abs() <= self.kernel // 2).all(-1).to(x.dtype)
        return (near / near.sum(1, keepdim=True) - torch.eye(len(at), dtype=x.dtype, device=x.device))[
            None, None
        ]

    def values(self, x: Tensor) -> Tensor:
        return tokens(x)[:, None]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return mixed[:, 0].reshape(x.shape)


@register("mixer", "identity", paper=PAPER, cost="0")
class Identity(TokenMixer):
    """0 · x: the residual branch alone. The floor that every mixer is measured against."""

    causal_forms: ClassVar[frozenset[bool]] = frozenset({False, True})
    masks: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return 0 * x

    def init_state(self, batch: int) -> tuple[()]:
        return ()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return 0 * x, state
