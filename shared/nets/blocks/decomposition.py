"""Series decomposition (Autoformer, Wu et al. 2021, arXiv 2106.13008, eq. 1): a moving average and what it leaves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.nets.layout import average_pool


def moving_average(x: Tensor, kernel: int) -> Tensor:
    """(B, L, C) → the same: the mean of `kernel` (odd) steps around each; the ends are repeated beyond the series."""
    side = kernel // 2
    first, last = x[:, :1].expand(-1, side, -1), x[:, -1:].expand(-1, side, -1)
    # torch's one-dimensional pooling beats running sums and a banded matrix from 96 steps to 1440, backward too.
    return average_pool(torch.cat([first, x, last], 1), kernel, 1)


class SeriesDecomposition(nn.Module):
    """x (B, L, C) → seasonal, trend; their sum is x. Raises ValueError for an even kernel, which has no middle."""

    def __init__(self, kernel: int = 25) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel {kernel}; an odd one wanted")
        self.kernel = kernel

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        trend = moving_average(x, self.kernel)
        return x - trend, trend

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}"
