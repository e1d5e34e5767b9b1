"""The gated channel mixer of Llama and its kin."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets.mixers.base import ChannelMixer
from shared.nets.options import Positive, Share
from shared.nets.registry import register


@register(
    "feedforward",
    "swiglu",
    paper="GLU Variants Improve Transformer, Shazeer 2020, arXiv 2002.05202",
    cost="1.5 L C² ratio",
)
class SwiGLU(ChannelMixer):
    """W₃ (SiLU(W₁ x) ⊙ W₂ x), hidden width ratio · C; no biases, as published."""

    def __init__(
        self, dim: int, ndim: int, *, ratio: Positive = 4, dropout: Share = 0.0, bias: bool = False
    ) -> None:
        super().__init__(dim, ndim)
        hidden = round(dim * ratio)
        self.gate, self.value = nn.Linear(dim, hidden, bias=bias), nn.Linear(dim, hidden, bias=bias)
        self.out, self.drop = nn.Linear(hidden, dim, bias=bias), nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.drop(self.out(F.silu(self.gate(x)) * self.value(x)))  # type: ignore[no-any-return]

    def readers(self) -> Sequence[nn.Linear]:
        return (self.gate, self.value)

    def writers(self) -> Sequence[nn.Module]:
        return (self.out,)
