"""The tokeniser of Compact Transformers (Hassani et al. 2021, arXiv 2104.05704, section 3.3): convolutions in place of
patches, so that few images suffice and neighbouring tokens overlap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets.layout import Conv, Size, channels_last, max_pool
from shared.nets.options import Count
from shared.nets.registry import register
from shared.nets.stems.base import Stem

PAPER = "Escaping the Big Data Paradigm with Compact Transformers, Hassani et al. 2021, arXiv 2104.05704"
_POOL, _STEP, _EDGE = 3, 2, 1
"""Kernel, stride and padding of every pooling."""


@register("stem", "cct", paper=PAPER, cost="L k^n Cin C")
class ConvTokeniser(Stem):
    """x₀ = MaxPool(ReLU(Conv(x))), equation 4, `convs` times; the convolutions have no bias. All but the last give
    `width` channels. Stride and padding follow the kernel as in the official code: 3 → 1, 7 → 2."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        ndim: int,
        *,
        kernel: Count = 3,
        convs: Count = 1,
        width: Count = 64,
        stride: Count | None = None,
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or convs < 1:
            raise ValueError(f"kernel {kernel}, convs {convs}; an odd kernel and at least one conv wanted")
        self.kernel, self.step = kernel, max(1, kernel // 2 - 1) if stride is None else stride
        self.stride = ((self.step * _STEP) ** convs,) * ndim
        sizes = [in_chans, *[width] * (convs - 1), dim]
        self.convs = nn.ModuleList(
            Conv(a, b, kernel, ndim, stride=self.step, bias=False) for a, b in pairwise(sizes)
        )
        for layer in self.convs:
            weights: Any = layer.conv
            nn.init.kaiming_normal_(weights.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        for conv in self.convs:
            x = max_pool(F.relu(conv(x)), _POOL, _STEP, _EDGE)
        return x

    def out_size(self, size: Sequence[int]) -> Size:
        for _ in self.convs:
            for step in (self.step, _STEP):  # odd kernels, half of them beyond each end
                size = [(n - 1) // step + 1 for n in size]
        return tuple(size)
