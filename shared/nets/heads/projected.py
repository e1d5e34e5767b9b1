"""A head that widens the last map before it is pooled."""

from __future__ import annotations

from torch import Tensor, nn

from shared.nets.heads.pool import Head
from shared.nets.norms.layers import ACTIVATIONS, masked_mean
from shared.nets.options import Count
from shared.nets.registry import make, register


@register(
    "head",
    "projected",
    paper="RMT: Retentive Networks Meet Vision Transformers, Fan et al. 2023, arXiv 2309.11523",
    cost="L C width",
)
class ProjectedHead(Head):
    """fc(mean(act(BN(W x + b)))): every token to `width` channels, batch norm, activation, mean over the (valid)
    tokens, linear classifier. Without classes it is the final norm alone."""

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        norm: str = "none",
        width: Count = 1024,
        width_norm: str = "batchnorm",
        activation: str = "silu",
    ) -> None:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r}; one of {', '.join(ACTIVATIONS)} wanted")
        super().__init__(dim, 0, norm=norm)
        if num_classes:
            self.proj, self.width_norm = nn.Linear(dim, width), make("norm", width_norm, width)
            self.fc = nn.Linear(width, num_classes)
        self.activation = ACTIVATIONS[activation]

    def pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if isinstance(self.fc, nn.Identity):
            return masked_mean(x, mask)
        return masked_mean(self.activation(self.width_norm(self.proj(x), mask)), mask)
