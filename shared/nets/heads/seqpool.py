"""Sequence pooling (Hassani et al. 2021, arXiv 2104.05704, section 3.2): the network says which tokens count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shared.nets.heads.pool import Head
from shared.nets.norms.layers import masked_mean
from shared.nets.registry import register
from shared.nets.stems.cct import PAPER


@register("head", "seqpool", paper=PAPER, cost="L C")
class SequencePool(Head):
    """softmax(x w + b)ᵀ x over the (valid) tokens (equations 2 and 3). w = 0 is the mean. Without classes there is
    nothing to learn it from: then the mean."""

    def __init__(self, dim: int, num_classes: int, **options: Any) -> None:
        super().__init__(dim, num_classes, **options)
        self.attention = nn.Linear(dim, 1) if num_classes else None

    def pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.attention is None:
            return masked_mean(x, mask)
        flat = x.flatten(1, -2)
        score = self.attention(flat)[..., 0]
        if mask is not None:
            score = score.masked_fill(~mask.flatten(1), torch.finfo(score.dtype).min)
        return torch.einsum("bl,blc->bc", score.softmax(1).to(flat.dtype), flat)
