"""Scores of forecasts, summed window by window: scaled as published, in original units, and of two naive forecasts.

Definitions are sktime's (`sktime.performance_metrics.forecasting`, the tests prove equality), over every value that is
there: MSE, MAE, RMSE; MASE (Hyndman and Koehler 2006) against the seasonal naive forecast of the training rows; sMAPE
as 2|e| / (|y| + |ŷ|), between 0 and 2; coverage, width and mean pinball loss of the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from timeseries.forecast.series import Floats
from timeseries.forecast.windows import Batch, Prepared, Windows

_PERIODS = {"ME": 12, "MS": 12, "BME": 12, "BMS": 12, "QE": 4, "QS": 4, "BQE": 4, "BQS": 4, "W": 52, "B": 5}
_CYCLES = tuple(pd.Timedelta(cycle).value for cycle in ("1D", "1h", "1min"))


def season_of(freq: str | None, rows: int) -> int:
    """Steps of the calendar's period: a day for steps within a day, a week for days, a year for weeks and longer.

    A period of which `rows` do not hold two gives way to the next shorter one (hour, minute), at last to 1.
    """
    if freq is None:
        return 1
    offset: Any = pd.tseries.frequencies.to_offset(freq)
    found = [_PERIODS.get(offset.rule_code.split("-")[0], 1) // offset.n]
    if isinstance(offset, pd.offsets.Day):
        found = [7 // offset.n] if 7 % offset.n == 0 else []
    elif isinstance(offset, pd.offsets.Tick):
        found = [cycle // offset.nanos for cycle in _CYCLES if cycle % offset.nanos == 0]
    return next((season for season in found if 1 < season <= rows // 2), 1)


def naive_error(values: Floats, season: int) -> Floats:
    """(C,) mean absolute error of repeating the value `season` rows back, over the rows `values` (T, C).

    NaN where that is 0 or nothing is known: MASE has no meaning there.
    """
    change = np.abs(values[season:] - values[:-season])
    known = np.isfinite(change)
    total = np.where(known, change, 0).sum(0)
    return np.where(total > 0, total, np.nan) / np.maximum(known.sum(0), 1)


def carried(values: NDArray[np.float32], mask: NDArray[np.bool_], season: int) -> NDArray[np.float32]:
    """(T, C) `values`, each missing one replaced by the last known one of the same phase (0 before the first)."""
    if mask.all():
        return values
    rows, channels = values.shape
    blocks = -(-rows // season)
    number = np.full((blocks * season, channels), -1)
    number[:rows] = np.where(mask, np.arange(rows)[:, None], -1)
    last = np.maximum.accumulate(number.reshape(blocks, season, channels)).reshape(-1, channels)[:rows]
    found: NDArray[np.float32] = np.take_along_axis(values, np.maximum(last, 0), 0)
    return np.where(last >= 0, found, np.float32(0))


class Naive:
    """Forecasts that repeat the last `season` known rows before the forecast, taken from the series themselves."""

    def __init__(self, prepared: Sequence[Prepared], season: int, horizon: int) -> None:
        self.season, self._phase = season, torch.arange(horizon) % season
        rows = [np.asfortranarray(carried(one.x, one.mask, season)) for one in prepared]
        self._last = [sliding_window_view(each, season, axis=0) for each in rows]

    def __call__(self, numbers: NDArray[np.int64], origins: NDArray[np.int64]) -> Tensor:
        """(B, H, C) scaled; `origins` are the first rows forecast, each at least `season`."""
        first = origins - self.season
        if bool((numbers == numbers[0]).all()):
            last = self._last[numbers[0]][first]  # (B, C, season)
        else:
            last = np.stack([self._last[number][row] for number, row in zip(numbers, first)])
        return torch.from_numpy(last)[..., self._phase].mT


class Tally:
    """Sums of errors over windows: by step and channel, by series and channel, and by window.

    `add` takes the windows in any order and batches; nothing as large as the forecasts themselves is kept.
    """

    def __init__(self, windows: Windows, channels: int, levels: Sequence[float]) -> None:
        self.windows, self.levels = windows, tuple(levels)
        self.by_step: dict[str, Tensor] = {}
        """Name → (H, C) sums, float64."""
        self.by_series: dict[str, Tensor] = {}
        """Name → (S, C) sums."""
        self.by_window: dict[str, NDArray[np.float64]] = {}
        """Name → (N,) sums."""
        self._channels = channels
        mean, std = (np.stack([one.scale.values[i] for one in windows.prepared]) for i in (0, 1))
        self._mean, self._std = torch.from_numpy(mean).float(), torch.from_numpy(std).float()

    def add(
        self,
        chosen: NDArray[np.int64],
        batch: Batch,
        point: Tensor,
        bounds: Tensor,
        naive: Mapping[str, Naive],
    ) -> None:
        """Count the windows numbered `chosen`: `point` (B, H, C), `bounds` (B, K, 2, H, C), scaled."""
        picked = self.windows.index[chosen]
        numbers, origins = picked[:, 0], picked[:, 1] + self.windows.length
        mask = batch.y_mask
        one_for_all = not any(mask.stride())  # nothing is missing in any series, see `Windows.batch`
        known = None if bool((mask[0, 0, 0] if one_for_all else mask).all()) else mask
        forecasts = {"": point} | {f"{name}_": model(numbers, origins) for name, model in naive.items()}
        self._sum("count", chosen, mask.float(), None)
        for name, forecast in forecasts.items():
            error = forecast - batch.y
            self._sum(f"{name}absolute", chosen, error.abs(), known)
            self._sum(f"{name}square", chosen, error.square_(), known)
        self._sum("smape", chosen, self._symmetric(numbers, batch.y, point), known)
        for number in range(len(self.levels)):
            low, high = bounds[:, number, 0], bounds[:, number, 1]
            outside = (low - batch.y).clamp_(min=0).add_((batch.y - high).clamp_(min=0))
            self._sum(f"inside {number}", chosen, (outside == 0).float(), known)
            self._sum(f"outside {number}", chosen, outside, known)
            self._sum(f"width {number}", chosen, (high - low).expand_as(outside), known)

    def _symmetric(self, numbers: NDArray[np.int64], y: Tensor, point: Tensor) -> Tensor:
        """2|e| / (|y| + |ŷ|) in original units; 0 where both are 0."""
        group = torch.from_numpy(numbers)
        mean, std = self._mean[group][:, None], self._std[group][:, None]
        true, said = torch.addcmul(mean, y, std), torch.addcmul(mean, point, std)
        error = (true - said).abs_().mul_(2)
        return error.div_(true.abs_().add_(said.abs_())).nan_to_num_(nan=0.0)

    def _sum(self, name: str, chosen: NDArray[np.int64], values: Tensor, known: Tensor | None) -> None:
        """Add (B, H, C) `values` where `known` to the sums called `name`."""
        if known is not None:
            values = values.masked_fill(~known, 0)
        if name not in self.by_step:
            series, steps = len(self.windows.prepared), self.windows.horizon
            self.by_step[name] = torch.zeros(steps, self._channels, dtype=torch.float64)
            self.by_series[name] = torch.zeros(series, self._channels, dtype=torch.float64)
        # Float32 sums of one batch (torch adds in pairs), float64 from batch to batch: twice as fast, 1e-7 apart.
        numbers = torch.from_numpy(self.windows.index[chosen, 0])
        steps_sum = values.sum(0).double()
        self.by_step[name] += steps_sum
        if bool((numbers == numbers[0]).all()):
            self.by_series[name][numbers[0]] += steps_sum.sum(0)
        else:
            self.by_series[name].index_add_(0, numbers, values.sum(1).double())
        if name.endswith(("count", "square", "absolute")):
            kept = self.by_window.setdefault(name, np.zeros(len(self.windows)))
            kept[chosen] = values.sum((1, 2)).numpy()
