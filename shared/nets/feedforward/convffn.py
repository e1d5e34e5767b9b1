"""A channel mixer that looks at its neighbours: a depthwise convolution between the two linear maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from shared.nets.layout import Conv
from shared.nets.mixers.base import ChannelMixer
from shared.nets.norms.layers import ACTIVATIONS
from shared.nets.options import Count, Positive
from shared.nets.registry import register


@register(
    "feedforward",
    "conv_mlp",
    paper="RMT: Retentive Networks Meet Vision Transformers, Fan et al. 2023, arXiv 2309.11523",
    cost="L C (C + k^n) ratio",
)
class ConvMlp(ChannelMixer):
    """h = act(W₁ x + b₁); W₂ (h + DWConv_k(h)) + b₂, hidden width ratio · C. Masked: invalid tokens are zeros to the
    convolution, as what lies beyond the border is."""

    per_token: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = True

    def __init__(
        self, dim: int, ndim: int, *, ratio: Positive = 4, kernel: Count = 3, activation: str = "gelu"
    ) -> None:
        super().__init__(dim, ndim)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r}; one of {', '.join(ACTIVATIONS)} wanted")
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} is even; an odd one wanted")
        hidden = round(dim * ratio)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.conv = Conv(hidden, hidden, kernel, ndim, groups=hidden)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = self.activation(self.fc1(x))
        if mask is not None:
            hidden = hidden * mask[..., None]
        return self.fc2(hidden + self.conv(hidden))  # type: ignore[no-any-return]

    def readers(self) -> Sequence[nn.Linear]:
        return (self.fc1,)

    def writers(self) -> Sequence[nn.Module]:
        return (self.fc2,)
