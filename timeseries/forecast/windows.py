"""From series to windows: the papers' borders, train-only scaling, batches of (input, horizon) cut from one array.

A window starting at row s reads rows s … s + L − 1 and forecasts rows s + L … s + L + H − 1. A window belongs to the
part (train, validation, test) in which its horizon lies; its input may begin in the part before, as in the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import DataInvalid, Fault
from timeseries.forecast.config import ForecastDataConfig
from timeseries.forecast.series import Floats, Series, time_features

Part = Literal["train", "val", "test"]
PARTS: tuple[Part, ...] = ("train", "val", "test")


class Inputs(NamedTuple):
    """What a model sees of B windows, all float32, scaled; missing values are 0 (the mean) with `mask` False."""

    x: Tensor
    """(B, L, C)"""
    mask: Tensor
    """(B, L, C) bool, True where a value was there."""
    past: Tensor
    """(B, L, P)"""
    future: Tensor
    """(B, L + H, F)"""
    marks: Tensor
    """(B, L + H, M) calendar features"""

    def to(self, device: torch.device) -> Inputs:
        """The same on another device."""
        return Inputs(*(each.to(device) for each in self))


class Batch(NamedTuple):
    """Windows with their answers."""

    inputs: Inputs
    y: Tensor
    """(B, H, C) scaled; 0 where missing."""
    y_mask: Tensor
    """(B, H, C) bool"""

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(self.inputs.to(device), self.y.to(device), self.y_mask.to(device))


@dataclass(frozen=True)
class Borders:
    """Rows of one series: training [0, train), validation horizons in [train, val), test horizons in [val, test)."""

    train: int
    val: int
    test: int

    def span(self, part: Part, length: int) -> tuple[int, int]:
        """First and last-plus-one row that windows of `part` with inputs of `length` may touch."""
        return {
            "train": (0, self.train),
            "val": (max(self.train - length, 0), self.val),
            "test": (max(self.val - length, 0), self.test),
        }[part]


def borders(series: Series, data: ForecastDataConfig) -> Borders:
    """Where the parts end. Raises `DataInvalid` when the dates lie outside the series."""
    n = len(series)
    if data.split == "auto" and (months := _ett_month(series)) is not None:
        return Borders(12 * months, 16 * months, 20 * months)
    if data.split == "counts":
        assert data.counts is not None
        a, b, c = data.counts
        return Borders(min(a, n), min(a + b, n), min(a + b + c, n))
    if data.split == "dates":
        assert data.dates is not None
        return _dated(series, data.dates)
    train, _, test = data.fractions
    kept = round(n * min(sum(data.fractions), 1.0))
    a, c = int(train * n), int(test * n)
    return Borders(a, kept - c, kept)


def division(series: Series, data: ForecastDataConfig) -> str:
    """How `borders` came about, in words."""
    if data.split == "auto" and _ett_month(series) is not None:
        return "the papers' borders of ETT"
    return "fractions" if data.split == "auto" else data.split


def _ett_month(series: Series) -> int | None:
    """Rows of a 30-day month if this is one of the four ETT tables (which leave rows after 20 months unused)."""
    names = {*series.channels, *series.past_columns, *series.future_columns}
    if not names <= {"HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"}:
        return None
    return {("h", 17_420): 720, ("15min", 69_680): 2_880}.get((series.freq or "", len(series)))


def _dated(series: Series, dates: tuple[str, str]) -> Borders:
    where = f"{series.source or series.id}:data.dates"
    if not isinstance(series.times, pd.DatetimeIndex):
        raise DataInvalid(
            [Fault(where, "rows without dates", "a date column", "set data.split=fractions or counts")]
        )
    try:
        stamps = [pd.Timestamp(text) for text in dates]
        a, b = (int(series.times.searchsorted(stamp)) for stamp in stamps)  # type: ignore[arg-type]
    except (ValueError, TypeError) as err:
        raise DataInvalid(
            [Fault(where, str(err)[:80], "two dates such as 2017-07-01", "correct them")]
        ) from None
    if not 0 < a <= b < len(series):
        found = f"{dates[0]} and {dates[1]} leave {a}, {b - a}, {len(series) - b} rows"
        span = f"dates inside {series.times[0]} … {series.times[-1]}, in order"
        raise DataInvalid([Fault(where, found, span, "correct them")])
    return Borders(a, b, len(series))


# ---------------------------------------------------------------- scaling


@dataclass(frozen=True)
class Scale:
    """Mean and population standard deviation of every column of one series, over the rows it was fitted on."""

    values: tuple[Floats, Floats]
    past: tuple[Floats, Floats]
    future: tuple[Floats, Floats]

    @classmethod
    def fit(cls, series: Series, rows: int) -> Scale:
        """Of the first `rows` rows; a column that is constant or empty there keeps scale 1."""
        return cls(*(_moments(a[:rows]) for a in (series.values, series.past, series.future)))

    def apply(self, values: Floats) -> Floats:
        """(…, C) original → scaled."""
        return (values - self.values[0]) / self.values[1]

    def undo(self, values: NDArray[Any]) -> Floats:
        """(…, C) scaled → original units."""
        return np.asarray(values, np.float64) * self.values[1] + self.values[0]

    def plain(self) -> dict[str, list[list[float]]]:
        """For JSON; `Scale.of` reads it back exactly."""
        return {
            name: [list(map(float, side)) for side in getattr(self, name)]
            for name in ("values", "past", "future")
        }

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Scale:
        pair = [
            tuple(np.asarray(side, np.float64) for side in stored[k]) for k in ("values", "past", "future")
        ]
        return cls(*pair)  # type: ignore[arg-type]


def _moments(values: Floats) -> tuple[Floats, Floats]:
    if not values.size:
        width = values.shape[1]
        return np.zeros(width), np.ones(width)
    seen = np.isfinite(values)
    count = np.maximum(seen.sum(0), 1)
    mean = np.where(seen, values, 0).sum(0) / count
    spread = np.sqrt(np.where(seen, (values - mean) ** 2, 0).sum(0) / count)
    return mean, np.where(spread > 1e-12 * np.maximum(np.abs(mean), 1e-300), spread, 1.0)


# ---------------------------------------------------------------- windows


@dataclass(frozen=True, eq=False)
class Prepared:
    """One series, scaled: float32 (T, ·) arrays, missing values 0; every column lies contiguous in memory."""

    series: Series
    scale: Scale
    borders: Borders

    @cached_property
    def x(self) -> NDArray[np.float32]:
        return _filled(self.scale.apply(self.series.values))

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        return np.asfortranarray(np.isfinite(self.series.values))

    @cached_property
    def past(self) -> NDArray[np.float32]:
        mean, std = self.scale.past
        return _filled(_rows((carried(self.series.past) - mean) / std, len(self.series)))

    @cached_property
    def future(self) -> NDArray[np.float32]:
        """(T or more, F)"""
        mean, std = self.scale.future
        return _filled(_rows((bridged(self.series.future) - mean) / std, len(self.series)))

    @cached_property
    def marks(self) -> NDArray[np.float32]:
        return np.asfortranarray(time_features(self.series.times, self.series.freq))


def carried(values: Floats) -> Floats:
    """(T, P) with the last known value in place of missing ones, so that no later row is seen; those before the first
    stay missing."""
    known = np.isfinite(values)
    latest = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], -1), 0)
    return np.where(latest >= 0, np.take_along_axis(values, np.maximum(latest, 0), 0), np.nan)


def bridged(values: Floats) -> Floats:
    """(T, F) of columns known ahead, missing values on the line between their neighbours; the nearest at the ends."""
    out, steps = values.copy(), np.arange(len(values))
    for column in out.T:
        known = np.isfinite(column)
        if known.any() and not known.all():
            column[~known] = np.interp(steps[~known], steps[known], column[known])
    return out


def _rows(values: Floats, rows: int) -> Floats:
    """No columns: `rows` rows of nothing."""
    return values if values.size else np.empty((rows, 0))


def _filled(values: Floats) -> NDArray[np.float32]:
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32, order="F")


class Windows:
    """All windows of one part of several series, stride 1; `batch` gathers any of them.

    Windows whose horizon holds no value at all are left out. Without `calendar` batches have no marks (M = 0), for
    models that do not read them.
    """

    def __init__(
        self, prepared: Sequence[Prepared], part: Part, length: int, horizon: int, calendar: bool = True
    ) -> None:
        self.prepared, self.part, self.length, self.horizon = list(prepared), part, length, horizon
        self.calendar = calendar
        starts: list[NDArray[np.int64]] = []
        for number, one in enumerate(self.prepared):
            first, last = one.borders.span(part, length)
            begin = np.arange(first, last - length - horizon + 1)
            if not one.mask.all() and len(begin):
                known = np.concatenate([[0], one.mask.any(1).cumsum()])
                begin = begin[known[begin + length + horizon] > known[begin + length]]
            starts.append(np.stack([np.full(len(begin), number), begin], 1))
        self.index: NDArray[np.int64] = np.concatenate(starts) if starts else np.empty((0, 2), np.int64)
        """(N, 2): series number, first row."""

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, chosen: Sequence[int] | NDArray[np.int64] | slice) -> Batch:
        """The windows numbered `chosen`, in that order. In memory the steps of a channel lie together, so that linear
        maps over time need no copy; masks of a series without missing values are one True, expanded."""
        picked = self.index[chosen]
        rows = self._rows
        starts = torch.from_numpy(picked[:, 1] + rows.shift[picked[:, 0]])
        length, total = self.length, self.length + self.horizon
        x, y = _cut(rows.x, starts, length), _cut(rows.x, starts + length, self.horizon)
        if rows.mask is None:
            there = torch.ones((), dtype=torch.bool)
            mask, y_mask = there.expand(x.shape), there.expand(y.shape)
        else:
            mask, y_mask = _cut(rows.mask, starts, length), _cut(rows.mask, starts + length, self.horizon)
        past, future = _cut(rows.past, starts, length), _cut(rows.future, starts, total)
        marks = _cut(rows.marks, starts, total) if self.calendar else x.new_empty(x.shape[0], total, 0)
        return Batch(Inputs(x, mask, past, future, marks), y, y_mask)

    @property
    def complete(self) -> bool:
        """Whether no target value of these series is missing."""
        return self._rows.mask is None

    @cached_property
    def _rows(self) -> _Rows:
        """The rows that these windows touch, of all series one after the other: a batch is then one gather. A single
        series is not copied."""
        whole = all(one.mask.all() for one in self.prepared)
        names = ("x", "mask", "past", "future", "marks")
        if len(self.prepared) == 1:
            shift, columns = np.zeros(1, np.int64), [getattr(self.prepared[0], name).T for name in names]
        else:
            spans = [one.borders.span(self.part, self.length) for one in self.prepared]
            spans = [(first, max(first, last)) for first, last in spans]
            sizes = np.array([last - first for first, last in spans], np.int64)
            shift = np.cumsum(sizes) - sizes - np.array([first for first, _ in spans], np.int64)
            columns = [
                np.concatenate(
                    [getattr(one, name)[slice(*span)].T for one, span in zip(self.prepared, spans)], 1
                )
                for name in names
            ]
        x, mask, past, future, marks = (torch.from_numpy(np.ascontiguousarray(each)) for each in columns)
        return _Rows(shift, x, None if whole else mask, past, future, marks)


class _Rows(NamedTuple):
    """Columns (·, T) of several series end to end; row r of series n is row r + shift[n]. No `mask`: nothing is
    missing."""

    shift: NDArray[np.int64]
    x: Tensor
    mask: Tensor | None
    past: Tensor
    future: Tensor
    marks: Tensor


def _cut(columns: Tensor, starts: Tensor, length: int) -> Tensor:
    """(B, length, ·) beginning at `starts`, each column contiguous."""
    count, rows = columns.shape
    if not count or not len(starts):
        return columns.new_empty(len(starts), length, count)
    every = columns.as_strided((rows - length + 1, count, length), (1, rows, 1))  # a view
    return every.index_select(0, starts).mT


def require_windows(prepared: Sequence[Prepared], length: int, horizon: int) -> None:
    """Raise `DataInvalid` unless every part has a window, naming the rows needed and the largest lengths that work."""
    faults = []
    for part in PARTS:
        if len(Windows(prepared, part, length, horizon)):
            continue
        longest = max(prepared, key=lambda one: len(one.series))
        first, last = longest.borders.span(part, length)
        rows = last - first
        fit = rows - length if part == "train" else min(rows - length, horizon)
        mend = (
            f"set data.horizon={fit} or less, or shorten data.input_length"
            if fit >= 1
            else "give a longer series, or set data.split and data.fractions"
        )
        where = longest.series.source or longest.series.id
        faults.append(
            Fault(
                where,
                f"{part} part of {rows} rows",
                f"{length} + {horizon} = {length + horizon} (input_length + horizon)",
                mend,
            )
        )
    if faults:
        raise DataInvalid(faults)
