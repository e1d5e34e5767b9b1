"""Forecasts that learn nothing, from the last values of the window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.errors import UsageError
from timeseries.forecast.windows import Inputs


class Naive(nn.Module):
    """The last value, or with `season` the one that many steps before, goes on: (B, 1, H, C). No parameters.

    A missing value is replaced by the last valid one a whole number of seasons before it, then by the last valid one of
    all, and by 0, the mean of the training rows, where the window holds none.
    """

    def __init__(self, horizon: int, season: int = 0) -> None:
        super().__init__()
        self.horizon, self.season = horizon, season

    def forward(self, inputs: Inputs) -> Tensor:
        """Raises `UsageError` where the window is shorter than the season."""
        x, mask = inputs.x, inputs.mask
        if self.season > x.shape[1]:
            raise UsageError(
                f"model.season: {self.season} steps; at most data.input_length, {x.shape[1]}, wanted; "
                "lengthen data.input_length, or set model.season=0"
            )
        last, known = _last_valid(x, mask, 1)
        if self.season > 1:
            seasonal, there = _last_valid(x, mask, self.season)
            last, known = torch.where(there, seasonal, last), there | known
        last = torch.where(known, last, 0.0)
        return last.repeat(1, -(-self.horizon // last.shape[1]), 1)[:, None, : self.horizon]


def _last_valid(x: Tensor, mask: Tensor, season: int) -> tuple[Tensor, Tensor]:
    """(B, L, C) → (B, season, C): of each phase the last valid value, and whether there is one. The window's last row
    has the last phase."""
    start = -x.shape[1] % season
    x, mask = (nn.functional.pad(v, (0, 0, start, 0)).unflatten(1, (-1, season)) for v in (x, mask))
    cycle = torch.arange(1, x.shape[1] + 1, device=x.device).view(1, -1, 1, 1)
    latest, at = (mask * cycle).max(1, keepdim=True)
    return x.gather(1, at)[:, 0], latest[:, 0] > 0
