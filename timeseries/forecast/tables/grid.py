"""Rows put on their calendar: order, repeats, gaps and odd stamps, each as the configuration says."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shared.errors import Fault
from timeseries.forecast.config import ForecastDataConfig
from timeseries.forecast.series import Floats
from timeseries.forecast.tables import stamps
from timeseries.forecast.tables.table import SHOWN


class Rows(NamedTuple):
    """Rows of one series as they stand in the table. No `times`: steps numbered from `first`."""

    values: Floats
    row: NDArray[np.int64]
    """As a spreadsheet numbers them."""
    times: pd.DatetimeIndex | None
    first: int


class Lined(NamedTuple):
    """Rows on a regular calendar; `row` is −1 where the table had none."""

    values: Floats
    row: NDArray[np.int64]
    times: pd.DatetimeIndex | pd.RangeIndex
    notes: tuple[str, ...]

    @property
    def dated(self) -> bool:
        return isinstance(self.times, pd.DatetimeIndex)


def on_calendar(
    rows: Rows, freq: str | None, data: ForecastDataConfig, source: str, where: str
) -> tuple[Lined | None, list[Fault]]:
    """(`rows` in order and without repeats on the calendar of `freq`, faults); None after an error."""
    if rows.times is None or freq is None:
        numbered = pd.RangeIndex(rows.first, rows.first + len(rows.values))
        return Lined(rows.values, rows.row, numbered, ()), []
    work = _Work(data, source, where, freq)
    ordered = work.distinct(work.sorted(rows))
    lined = work.lined(ordered)
    failed = any(fault.severity == "error" for fault in work.faults)
    return (None if failed else lined), work.faults


class _Work:
    def __init__(self, data: ForecastDataConfig, source: str, where: str, freq: str) -> None:
        self.data, self.source, self.where, self.freq = data, source, where, freq
        self.faults: list[Fault] = []
        self.notes: list[str] = []

    def _fault(self, found: str, wanted: str, mend: str) -> None:
        self.faults.append(Fault(self.source, found, wanted, mend, self.where))

    def _mended(self, found: str, how: str) -> None:
        self.notes.append(f"{found}; {how}")
        self.faults.append(Fault(self.source, found, "", how, self.where, "warning"))

    def _listed(self, rows: Rows, at: NDArray[np.int64]) -> str:
        assert rows.times is not None
        said = ", ".join(f"row {rows.row[i]} ({stamps.shown(rows.times[i])})" for i in at[:SHOWN])
        return said + (f" ({len(at):,} in all)" if len(at) > SHOWN else "")

    def sorted(self, rows: Rows) -> Rows:
        """In the order of the stamps; rows of one stamp keep theirs."""
        assert rows.times is not None
        steps = np.diff(rows.times.asi8)
        back = np.flatnonzero(steps < 0) + 1
        if not len(back):
            return rows
        if (steps <= 0).all():
            found = f"newest row first, from row {rows.row[0]} ({stamps.shown(rows.times[0])})"
        else:
            found = f"stamps go back at {self._listed(rows, back)}"
        if self.data.unsorted == "fail":
            self._fault(found, "rising stamps", "sort the table, or set data.unsorted=sort")
        else:
            self._mended(found, "rows were sorted")
        order = np.argsort(rows.times.asi8, kind="stable")
        return Rows(rows.values[order], rows.row[order], rows.times[order], 0)

    def distinct(self, rows: Rows) -> Rows:
        """One row a stamp."""
        assert rows.times is not None
        new = np.concatenate([[True], np.diff(rows.times.asi8) > 0])
        again = np.flatnonzero(~new)
        if not len(again):
            return rows
        found = f"stamps repeat at {self._listed(rows, again)}"
        starts = np.flatnonzero(new)
        ends = np.append(starts[1:], len(new)) - 1
        keep = ends if self.data.duplicates == "last" else starts
        values = rows.values[keep]
        if self.data.duplicates == "fail":
            hint = self._clock_change(rows.times[again])
            self._fault(
                found, "every stamp once", f"remove them, or set data.duplicates=first, last or mean{hint}"
            )
        elif self.data.duplicates == "mean":
            values = _means(rows.values, starts)
            self._mended(found, "their means were taken")
        else:
            self._mended(found, f"the {self.data.duplicates} of each was kept")
        return Rows(values, rows.row[keep], rows.times[keep], 0)

    def lined(self, rows: Rows) -> Lined | None:
        """On every stamp of the calendar."""
        assert rows.times is not None
        places, on, first = stamps.positions(rows.times, self.freq)
        odd = np.flatnonzero(~on)
        if len(odd):
            found = f"off the step at {self._listed(rows, odd)}"
            hint = self._clock_change(rows.times[odd])
            self._fault(found, f"a row every {self.freq}", f"correct these stamps, or set data.freq{hint}")
            return None
        length = int(places[-1]) + 1
        if length > self.data.max_rows:
            found = f"{length:,} steps of {self.freq} from {stamps.shown(first)} to {stamps.shown(rows.times[-1])}"
            self._fault(
                found,
                f"{self.data.max_rows:,} at most (data.max_rows)",
                "correct the stamps, or set data.freq",
            )
            return None
        if length == len(rows.row):
            return Lined(rows.values, rows.row, rows.times, tuple(self.notes))
        self._gaps(rows, places)
        values = np.full((length, rows.values.shape[1]), np.nan)
        values[places] = rows.values
        row = np.full(length, -1, np.int64)
        row[places] = rows.row
        times = pd.date_range(first, periods=length, freq=self.freq)
        if moved := np.flatnonzero(times[places] != rows.times).tolist():
            where = self._listed(rows, np.array(moved))
            self._fault(f"off the calendar of {self.freq} at {where}", "stamps on it", "set data.freq")
            return None
        return Lined(values, row, times.as_unit("ns"), tuple(self.notes))

    def _gaps(self, rows: Rows, places: NDArray[np.int64]) -> None:
        assert rows.times is not None
        holes = np.diff(places) - 1
        at = np.flatnonzero(holes)
        said = ", ".join(
            f"{holes[i]:,} after row {rows.row[i]} ({stamps.shown(rows.times[i])})" for i in at[:SHOWN]
        )
        more = f" ({len(at):,} gaps in all)" if len(at) > SHOWN else ""
        found = f"stamps absent: {said}{more}"
        if self.data.gaps == "fail":
            hint = self._clock_change(rows.times[at])
            mend = f"add the rows, or set data.gaps=mask to leave them missing{hint}"
            self._fault(found, f"a row every {self.freq}", mend)
        else:
            self._mended(found, f"these {int(holes.sum()):,} steps are missing values")

    def _clock_change(self, times: pd.DatetimeIndex) -> str:
        """A hint where the faults lie in the small hours of a Sunday in spring or autumn, as summer time's do."""
        if stamps.step_key(self.freq)[1] >= 86_400 * 10**9 or stamps.step_key(self.freq)[0] != "ns":
            return ""
        night = (times.dayofweek == 6) & (times.hour <= 3) & times.month.isin([3, 4, 9, 10, 11])
        return "; is it summer time? then write stamps in UTC" if len(times) and night.all() else ""


def _means(values: Floats, starts: NDArray[np.int64]) -> Floats:
    """Means of the known values of each run of rows; NaN where none is known."""
    seen = np.isfinite(values)
    total = np.add.reduceat(np.where(seen, values, 0), starts)
    count = np.add.reduceat(seen.astype(np.float64), starts)
    out: Floats = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return out
