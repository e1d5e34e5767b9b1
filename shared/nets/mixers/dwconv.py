"""ConvNeXt's token mixer (Liu et al. 2022, arXiv 2201.03545): one large depthwise convolution."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shared.nets.layout import Conv, positions, tokens
from shared.nets.mixers.base import TokenMixer
from shared.nets.options import Count
from shared.nets.registry import register

PAPER = "A ConvNet for the 2020s, Liu et al. 2022, arXiv 2201.03545"


@register("mixer", "dwconv", paper=PAPER, cost="L k^n C")
class DepthwiseConv(TokenMixer):
    """y = w ∗ x + b, k^n weights a channel (section 2.5); zeros beyond the border.

    k is 7, in three dimensions 5: 125 products a value, where 7 would take 343. Causal: zeros on the left only; its
    state is the last k − 1 tokens. Masked: invalid tokens are zeros, as the border is.
    """

    causal_forms: ClassVar[frozenset[bool]] = frozenset({False, True})
    stateful: ClassVar[bool] = True
    masks: ClassVar[bool] = True

    def __init__(
        self, dim: int, ndim: int, *, kernel: Count | None = None, bias: bool = True, **place: Any
    ) -> None:
        super().__init__(dim, ndim, **place)
        self.kernel = kernel if kernel is not None else (5 if ndim == 3 else 7)
        if self.kernel < 1 or (self.kernel % 2 == 0 and not self.causal):
            raise ValueError(f"kernel {self.kernel}; an odd one wanted (causal: any)")
        self.conv = Conv(dim, dim, self.kernel, ndim, groups=dim, bias=bias, causal=self.causal)
        weights: Any = self.conv.conv
        nn.init.trunc_normal_(weights.weight, std=0.02)
        if bias:
            nn.init.zeros_(weights.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.conv(x if mask is None else x * mask[..., None])  # type: ignore[no-any-return]

    # A matrix for every channel: entry (i, j) is the weight at the offset j − i.

    def matrix(self, x: Tensor) -> Tensor:
        at = positions(x.shape[1:-1], x.device)
        before = self.kernel - 1 if self.causal else self.kernel // 2
        offsets = at[None] - at[:, None] + before  # (L, L, n)
        inside = ((offsets >= 0) & (offsets < self.kernel)).all(-1)
        weight: Tensor = self.conv.conv.weight.flatten(1)  # type: ignore[operator,union-attr]
        steps = self.kernel ** torch.arange(self.ndim - 1, -1, -1, device=x.device)
        picked = weight[:, (offsets * steps).sum(-1).clamp(0, weight.shape[1] - 1)]
        return (picked * inside)[None]

    def values(self, x: Tensor) -> Tensor:
        return tokens(x).transpose(1, 2)[..., None]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        bias: Any = self.conv.conv.bias
        out = mixed[..., 0].transpose(1, 2).reshape(x.shape)
        return out if bias is None else out + bias

    def init_state(self, batch: int) -> Tensor:
        weight: Any = self.conv.conv.weight
        return weight.new_zeros(batch, self.kernel - 1, self.dim)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        seen = torch.cat([state, x[:, None]], 1)
        weights: Any = self.conv.conv
        out = torch.einsum("bkc,ck->bc", seen, weights.weight[:, 0])
        return out if weights.bias is None else out + weights.bias, seen[:, 1:]
