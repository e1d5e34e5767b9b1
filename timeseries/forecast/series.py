"""A series as every part of the pipeline sees it, and its calendar."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Series:
    """One multivariate series on a regular calendar; NaN is a missing value.

    `times` are the T stamps of the rows (a DatetimeIndex), or a RangeIndex where the table has no dates. `future` may
    have more rows than T: those beyond are known for steps still to come.
    """

    id: str
    times: pd.DatetimeIndex | pd.RangeIndex
    freq: str | None
    """pandas alias of the step (``h``, ``15min``, ``W-TUE``); None where rows are only numbered."""
    values: Floats
    """(T, C) what is forecast, original units."""
    channels: tuple[str, ...]
    past: Floats = field(default_factory=lambda: np.empty((0, 0)))
    """(T, P) known up to the last row."""
    past_columns: tuple[str, ...] = ()
    future: Floats = field(default_factory=lambda: np.empty((0, 0)))
    """(T or more, F) known beyond it."""
    future_columns: tuple[str, ...] = ()
    source: str = ""
    """File it came from, for messages."""
    notes: tuple[str, ...] = ()
    """What was inferred or mended while reading, in sentences."""

    def __len__(self) -> int:
        return len(self.values)

    def stamps(self, steps: int) -> pd.DatetimeIndex | pd.RangeIndex:
        """The T + `steps` stamps: its own and those of the steps after the last row."""
        if not isinstance(self.times, pd.DatetimeIndex):
            return pd.RangeIndex(self.times.start, self.times.start + len(self) + steps)
        ahead = pd.date_range(self.times[-1], periods=steps + 1, freq=self.freq)[1:]
        return pd.DatetimeIndex(self.times.append(ahead))


def time_features(times: pd.DatetimeIndex | pd.RangeIndex, freq: str | None) -> NDArray[np.float32]:
    """(T, M) calendar features in [−0.5, 0.5], coarser than the step (Autoformer's ``timeF``).

    Hourly: hour/23, weekday/6, (day − 1)/30, (day of year − 1)/365, each minus 0.5; finer steps put minute/59 (and
    second/59) first, daily has no hour, weekly (day − 1)/30 and (week − 1)/52, monthly (month − 1)/11. Numbered rows
    have none, M = 0.
    """
    if freq is None or not isinstance(times, pd.DatetimeIndex):
        return np.empty((len(times), 0), np.float32)
    columns = [_FEATURES[name](times) for name in feature_names(freq)]
    return np.stack([np.asarray(c, np.float64) - 0.5 for c in columns], 1).astype(np.float32)


def feature_names(freq: str | None) -> tuple[str, ...]:
    """Names of the calendar features of a step."""
    if freq is None:
        return ()
    offset = pd.tseries.frequencies.to_offset(freq)
    base: Any = offset.rule_code.split("-")[0] if offset is not None else ""
    for codes, names in _BY_STEP.items():
        if base in codes.split():
            return tuple(names.split())
    return ("month",)


_BY_STEP = {
    "s ms us ns": "second minute hour weekday day dayofyear",
    "min": "minute hour weekday day dayofyear",
    "h bh cbh": "hour weekday day dayofyear",
    "D": "weekday day dayofyear",
    "B C": "weekday day dayofyear",
    "W": "day week",
}
_FEATURES: dict[str, Any] = {
    "second": lambda t: t.second / 59,
    "minute": lambda t: t.minute / 59,
    "hour": lambda t: t.hour / 23,
    "weekday": lambda t: t.dayofweek / 6,
    "day": lambda t: (t.day - 1) / 30,
    "dayofyear": lambda t: (t.dayofyear - 1) / 365,
    "week": lambda t: (t.isocalendar().week.to_numpy(dtype=float) - 1) / 52,
    "month": lambda t: (t.month - 1) / 11,
}
