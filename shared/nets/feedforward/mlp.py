"""The plain channel mixer: two linear maps with an activation between them, token by token."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from shared.nets.mixers.base import ChannelMixer
from shared.nets.norms.layers import ACTIVATIONS
from shared.nets.options import Positive, Share
from shared.nets.registry import register


@register(
    "feedforward",
    "mlp",
    paper="Attention Is All You Need, Vaswani et al. 2017, arXiv 1706.03762",
    cost="L C² ratio",
)
class Mlp(ChannelMixer):
    """W₂ act(W₁ x + b₁) + b₂, hidden width ratio · C."""

    def __init__(
        self,
        dim: int,
        ndim: int,
        *,
        ratio: Positive = 4,
        activation: str = "gelu",
        dropout: Share = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, ndim)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r}; one of {', '.join(ACTIVATIONS)} wanted")
        hidden = round(dim * ratio)
        self.fc1, self.fc2 = nn.Linear(dim, hidden, bias=bias), nn.Linear(hidden, dim, bias=bias)
        self.activation, self.drop = ACTIVATIONS[activation], nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.drop(self.fc2(self.drop(self.activation(self.fc1(x)))))  # type: ignore[no-any-return]

    def readers(self) -> Sequence[nn.Linear]:
        return (self.fc1,)

    def writers(self) -> Sequence[nn.Module]:
        return (self.fc2,)
