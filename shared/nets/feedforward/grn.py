"""ConvNeXt V2's channel mixer (Woo et al. 2023, arXiv 2301.00808): channels compete by how strong they are in the
whole map."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from shared.nets.mixers.base import ChannelMixer
from shared.nets.norms.layers import ACTIVATIONS
from shared.nets.options import Positive
from shared.nets.registry import register

PAPER = "ConvNeXt V2, Woo et al. 2023, arXiv 2301.00808"


class GlobalResponseNorm(nn.Module):
    """Equations 1–3: g_c = ‖x_c‖₂ over the map, y = x + a · x · g / mean_c(g) + b; a = b = 0 at the start.

    Masked: the norm of the valid tokens.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim)), eps

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        valid = x if mask is None else x * mask[..., None]
        strength = torch.linalg.vector_norm(valid, dim=tuple(range(1, x.ndim - 1)), keepdim=True)
        share = strength / (strength.mean(-1, keepdim=True) + self.eps)
        return x + self.weight * (x * share) + self.bias


@register("feedforward", "grn_mlp", paper=PAPER, cost="L C² ratio")
class GrnMlp(ChannelMixer):
    """W₂ GRN(act(W₁ x + b₁)) + b₂, hidden width ratio · C."""

    per_token: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = True

    def __init__(self, dim: int, ndim: int, *, ratio: Positive = 4, activation: str = "gelu") -> None:
        super().__init__(dim, ndim)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r}; one of {', '.join(ACTIVATIONS)} wanted")
        hidden = round(dim * ratio)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.activation, self.grn = ACTIVATIONS[activation], GlobalResponseNorm(hidden)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.fc2(self.grn(self.activation(self.fc1(x)), mask))  # type: ignore[no-any-return]
