"""What sktime hands to a forecaster, as a `Series`; and the lengths that so many rows allow."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from timeseries.forecast.series import Series
from timeseries.forecast.tables.stamps import infer

MOST_ABSENT = 100
"""Rows of the calendar for each one given, beyond which its step is taken to be a mistake."""
ERRORS_WANTED = 20
"""Windows held back if the series allows: a 90 % interval needs 19 errors of a step."""


class Calendar(NamedTuple):
    """A regular index from the first row to the last, and further."""

    index: Any
    """Of the user's type: what tables are matched by."""
    times: Any
    """DatetimeIndex or RangeIndex."""
    freq: str | None


def step_of(index: pd.Index) -> str | None:
    """The step of dates or periods; None for numbers. Raises `ValueError` for dates without one."""
    if isinstance(index, pd.PeriodIndex):
        return str(index.freqstr)
    if not isinstance(index, pd.DatetimeIndex):
        return None
    freq = (
        index.freqstr
        or (pd.infer_freq(index) if len(index) > 2 else None)
        or infer(index.tz_localize(None))[0]
    )
    if freq is None:
        raise ValueError(
            f"y: {len(index)} stamps without a regular step; one wanted; give it with y.asfreq('D'), say"
        )
    return str(freq)


def calendar(first: Any, last: Any, step: str | None, ahead: int = 0) -> Calendar:
    """All steps from `first` to `last`, and `ahead` more."""
    if isinstance(first, pd.Period):
        index: Any = pd.period_range(first, last + ahead, freq=step)
        times = index.to_timestamp()
        return Calendar(index, times, times.freqstr or infer(times)[0] or "D")
    if step is not None:
        index = pd.date_range(first, last, freq=step)
        if ahead:
            index = index.append(pd.date_range(last, periods=ahead + 1, freq=step)[1:])
        return Calendar(index, index.tz_localize(None), step)
    index = pd.RangeIndex(int(first), int(last) + 1 + ahead)
    return Calendar(index, index, None)


def _before(first: Any, steps: int, step: str | None) -> Any:
    """The stamp `steps` earlier."""
    if isinstance(first, pd.Timestamp):
        return pd.date_range(end=first, periods=steps + 1, freq=step)[0]
    return first - steps


def series_of(
    y: pd.DataFrame, X: pd.DataFrame | None, end: Any, step: str | None, ahead: int = 0, least: int = 0
) -> tuple[Series, Calendar]:
    """The rows of `y` up to the stamp `end` on their calendar, absent ones missing, and X, which may reach `ahead`
    steps further, as the calendar returned does. Fewer than `least` rows get missing ones put before them.

    Raises `ValueError` for stamps off the calendar.
    """
    y = y.loc[y.index <= end]
    if not len(y):
        raise ValueError(f"y: no rows up to {end}; at least 2 wanted; give earlier ones")
    whole = calendar(y.index[0], end, step, ahead)
    rows = len(whole.index) - ahead
    if rows > MOST_ABSENT * (len(y) + 1):
        raise ValueError(
            f"y: {len(y)} rows on {rows:,} steps of {step or 1}; rows a step apart wanted; check it"
        )
    if rows < least:
        whole, rows = calendar(_before(y.index[0], least - rows, step), end, step, ahead), least
    off = ~y.index.isin(whole.index)
    if off.any():
        raise ValueError(
            f"y: {y.index[off][0]} is not on the calendar of step {step}; mend it, or use y.asfreq"
        )
    values = y.reindex(whole.index[:rows]).to_numpy(np.float64)
    future = np.empty((0, 0)) if X is None else X.reindex(whole.index).to_numpy(np.float64, copy=True)
    channels = tuple(f"y{i}" for i in range(y.shape[1]))  # of the model's own: users' names may be anything
    columns = () if X is None else tuple(f"x{i}" for i in range(X.shape[1]))
    series = Series(
        "y", whole.times[:rows], whole.freq, values, channels, future=future, future_columns=columns
    )
    return series, whole


def merged(old: pd.DataFrame | None, new: pd.DataFrame | None, name: str) -> pd.DataFrame | None:
    """Old rows and new ones, which win. Columns by name where these are the same, else by position.

    Columns of `new` that `old` lacks are left out. Raises `ValueError` where some are missing.
    """
    if old is None or new is None:
        return old if new is None else new
    if set(old.columns) <= set(new.columns):
        new = new[old.columns]
    elif len(old.columns) == len(new.columns) == 1:
        new = new.set_axis(old.columns, axis=1)
    else:
        absent = ", ".join(str(c) for c in old.columns if c not in new.columns)
        raise ValueError(f"{name}: columns {absent} missing; those of fit wanted; add them")
    if len(new) and len(old) and new.index[0] > old.index[-1]:
        return pd.concat([old, new])
    return pd.concat([old.loc[~old.index.isin(new.index)], new]).sort_index()


class Plan(NamedTuple):
    """How rows are used."""

    train: int
    """Rows before those held back."""
    length: int
    horizon: int
    notes: tuple[str, ...] = ()
    """What was shortened."""


def plan(rows: int, length: int, horizon: int, held_back: float) -> Plan:
    """Lengths that `rows` allow, none longer than asked. Where no window fits beside the rows held back, inputs get
    half of what there is, and windows the other half. Raises `ValueError` below 2 rows."""
    if rows < 2:
        raise ValueError(f"y: {rows} row; at least 2 wanted; give a longer series")
    notes = []
    if horizon > rows // 2:
        notes.append(f"{rows // 2} steps forecast at once instead of {horizon}, and going on from these")
        horizon = rows // 2
    train = rows - tail(rows, horizon, held_back)
    if length > train - horizon:
        shorter = (train - horizon + 1) // 2
        notes.append(f"inputs of {shorter} rows instead of {length}")
        length = shorter
    return Plan(train, length, horizon, tuple(notes))


def tail(rows: int, horizon: int, held_back: float) -> int:
    """How many of the last rows are held back: the share `held_back`, or as many as give `ERRORS_WANTED` windows, but
    a third at most; none where that would not hold one horizon."""
    if not held_back:
        return 0
    found = min(max(round(held_back * rows), horizon + ERRORS_WANTED - 1), rows // 3)
    return found if found >= horizon else 0


def odd_at_most(kernel: int, length: int) -> int:
    """The largest odd number within both."""
    return min(kernel, length - (length + 1) % 2)
