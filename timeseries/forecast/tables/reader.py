"""One table as series, wide (a column a channel) or long (``unique_id, ds, y``), checked in one pass.

Nothing is mended in silence: what was inferred or mended is a sentence in `Series.notes`, and what is wrong is a
`Fault` naming the rows as a spreadsheet shows them (the header is row 1) with their stamps. Missing values stay NaN.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shared.errors import DataInvalid, Fault
from shared.pipeline import error_faults
from timeseries.forecast.series import Floats, Series
from timeseries.forecast.tables import stamps, table
from timeseries.forecast.tables.columns import Columns, TableColumns
from timeseries.forecast.tables.grid import Lined, Rows, on_calendar
from timeseries.forecast.tables.table import SHOWN

REGULAR = 0.5
"""Least share of the steps that the most common one must have to be called the step of a series."""
SENTINELS = (-9999.0, -999.0, -99999.0)
"""What loggers write for a missing reading."""

_Times = dict[str, tuple[pd.DatetimeIndex | None, int]]
"""Stamps of every series, or none and the number of its first row."""


@dataclass
class Reading:
    """What a table held. With an error among `faults`, `series` may be incomplete."""

    series: list[Series] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    layout: str = "wide"
    date_column: str = ""
    id_column: str | None = None
    freq: str | None = None

    def checked(self) -> list[Series]:
        """The series. Raises `DataInvalid` when there is an error."""
        if error_faults(self.faults):
            raise DataInvalid(error_faults(self.faults))
        return self.series


class Reader(TableColumns):
    """One table, on its way to series."""

    def read(self) -> Reading:
        """Never raises for bad data: every fault is in the reading."""
        self.trim()
        if not len(self.frame):
            self.fault("no rows", "at least two", "write the table again")
            return Reading(faults=self.faults)
        id_column = self.id_column()
        date_column = self.date_column(id_column)
        if date_column is not None:
            self.drop_blank(date_column)
        columns = self.columns({id_column, date_column})
        layout = "long" if id_column else "wide"
        if self.data.layout == "auto":
            self.notes.insert(0, f"{layout} table")
        reading = Reading([], self.faults, layout, date_column or "", id_column)
        groups = self._groups(id_column)
        times = self._times(date_column, groups)
        values = self.values(columns) if columns is not None else None
        if times is None:
            return reading
        steps = self._steps(times)
        if steps is not None and columns is not None:
            self._fill(reading, columns, values, groups, times, steps)
        return reading

    # ------------------------------------------------------------ rows

    def _groups(self, id_column: str | None) -> dict[str, NDArray[np.int64]]:
        """Positions of the rows of every series, in the order in which series appear."""
        if id_column is None:
            return {table.stem(self.source): np.arange(len(self.frame))}
        empty = np.flatnonzero(self.frame[id_column].map(stamps.missing).to_numpy(bool))
        if len(empty):
            self.fault(f"no name in {self.listed(empty)}", "the name of a series", "fill it in", id_column)
        ids = self.frame[id_column].astype(str).str.strip()
        codes, names = pd.factorize(ids)
        order = np.argsort(codes, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(codes, minlength=len(names)))[:-1])
        return {str(name): part for name, part in zip(names, parts)}

    def _times(self, name: str | None, groups: dict[str, NDArray[np.int64]]) -> _Times | None:
        """None after a fault."""
        if name is None:
            return dict.fromkeys(groups, (None, 0))
        column = self.frame[name]
        if len(groups) == 1 or not pd.api.types.is_numeric_dtype(column.dtype):
            whole = stamps.parse(column, self.data)
            if self._bad_stamps(name, np.arange(len(column)), whole):
                return None
            self.notes += [f"{name}: {note}" for note in whole.notes]
            return {
                k: (None if whole.times is None else whole.times[at], whole.first) for k, at in groups.items()
            }
        out: _Times = {}
        for key, at in groups.items():  # numbers may count the rows of every series anew
            parsed = stamps.parse(column.iloc[at], self.data)
            if self._bad_stamps(name, at, parsed):
                return None
            out[key] = parsed.times, parsed.first
        if len({times is None for times, _ in out.values()}) > 1:
            self.fault(
                "counts rows in some series and dates others", "one kind of stamp", "correct them", name
            )
            return None
        return out

    def _bad_stamps(self, name: str, at: NDArray[np.int64], parsed: stamps.Parsed) -> bool:
        if not len(parsed.bad):
            return False
        bad = at[parsed.bad]
        cells = self.frame[name].iloc[bad[:SHOWN]].map(_cell).tolist()
        where = self.listed(bad, [*cells, *[""] * (len(bad) - len(cells))])
        self.fault(f"no stamp in {where}", parsed.wanted, parsed.mend, name)
        return True

    # ------------------------------------------------------------ the step

    def _steps(self, times: _Times) -> dict[str, str | None] | None:
        """The step of every series: as given, with the anchor of its own stamps, or the most common one.

        None after a fault.
        """
        if all(stamped is None for stamped, _ in times.values()):
            return dict.fromkeys(times)
        given = self.data.freq
        if given is not None:
            try:
                given = stamps.offset_of(given).freqstr
            except ValueError:
                self.fault(f"{given!r} is no step", stamps.ACCEPTED, "correct it", "data.freq")
                return None
        inferred: dict[str, str | None] = {}
        for key, (stamped, _) in times.items():
            assert stamped is not None
            step, share = stamps.infer(stamped.sort_values().unique())
            inferred[key] = step if share >= REGULAR else None
        known = Counter(step for step in inferred.values() if step is not None)
        common = given or (known.most_common(1)[0][0] if known else None)
        if common is None:
            self._no_step(times)
            return None
        out: dict[str, str | None] = {}
        for key, step in inferred.items():
            same = step is not None and stamps.step_key(step) == stamps.step_key(common)
            if (
                step is not None
                and not same
                and self._other_step(step, common, key if len(times) > 1 else "")
            ):
                continue
            stamped = times[key][0]
            out[key] = step if same or stamped is None else stamps.anchored(common, stamped)
        return out

    def _other_step(self, step: str, common: str, where: str) -> bool:
        """Whether the step is a fault. Days may be business days, and a finer calendar leaves gaps where asked for."""
        if self.data.freq is None:
            self.fault(f"a step of {step}", f"{common} as in most series", "give series of one step", where)
            return True
        if self.data.gaps == "mask" or "B" in (step, common):
            return False
        self.fault(f"a step of {step}", f"{common} (data.freq)", f"set data.freq={step}, or resample", where)
        return True

    def _no_step(self, times: _Times) -> None:
        longest = max((stamped for stamped, _ in times.values() if stamped is not None), key=len)
        unique = longest.sort_values().unique()
        if len(unique) < 2:
            self.fault(f"{len(longest)} row", "at least two, to see the step", "add rows, or set data.freq")
            return
        steps, counts = np.unique(np.diff(unique.asi8), return_counts=True)
        order = np.argsort(-counts, kind="stable")[:3]
        said = ", ".join(
            f"{stamps.fixed_step(int(steps[i]))} ({counts[i]:,} of {counts.sum():,})" for i in order
        )
        months = np.median(steps) >= 28 * 86_400 * 10**9
        wanted = "one step between rows" + ("; months by their first or last day" if months else "")
        mend = "resample the table, or set data.freq, and data.gaps=mask if stamps are absent"
        self.fault(f"steps vary: {said}", wanted, mend)

    # ------------------------------------------------------------ series

    def _fill(
        self,
        reading: Reading,
        columns: Columns,
        values: Floats | None,
        groups: dict[str, NDArray[np.int64]],
        times: _Times,
        steps: dict[str, str | None],
    ) -> None:
        """Put every series on its calendar; without values (a fault), only to see what is wrong with the stamps."""
        reading.freq = Counter(steps.values()).most_common(1)[0][0] if steps else None
        if reading.freq is not None:
            self.notes.append(f"step {reading.freq}" + ("" if self.data.freq else ", the most common one"))
        common = tuple(self.notes)
        for key, at in groups.items():
            if key not in steps:
                continue
            self.notes = list(common)
            where = key if reading.layout == "long" else reading.date_column
            held = values[at] if values is not None else np.empty((len(at), 0))
            rows = Rows(held, self.rows[at], times[key][0], times[key][1])
            lined, faults = on_calendar(rows, steps[key], self.data, self.source, where)
            self.faults += faults
            if lined is not None and values is not None:
                self.notes += lined.notes
                reading.series.append(self._one(key, lined, columns, steps[key], reading.layout))

    def _one(self, key: str, lined: Lined, columns: Columns, freq: str | None, layout: str) -> Series:
        """A series from rows on their calendar; those after the last target belong to `future` alone."""
        c, p = len(columns.targets), len(columns.targets) + len(columns.past)
        values, past, future = lined.values[:, :c], lined.values[:, c:p], lined.values[:, p:]
        seen = np.flatnonzero(np.isfinite(values).any(1))
        rows = int(seen[-1]) + 1 if len(seen) else len(values)
        ahead = np.flatnonzero(np.isfinite(future[rows:]).any(1)) if columns.future else np.empty(0, np.int64)
        if len(ahead):
            future = future[: rows + int(ahead[-1]) + 1]
            self.notes.append(
                f"{', '.join(columns.future)} known for {len(future) - rows} steps past the last row"
            )
        else:
            rows = len(values)
        for part, names, missing_are in (
            (values, columns.targets, "they weigh nothing in training and scores"),
            (past, columns.past, "the last value before stands for them"),
            (future, columns.future, "the line between their neighbours stands for them"),
        ):
            for index, name in enumerate(names):
                where = f"{key}:{name}" if layout == "long" else name
                self._judge(part[:rows, index], lined, where, missing_are)
        return Series(
            key,
            lined.times[:rows],  # type: ignore[arg-type]
            freq,
            np.ascontiguousarray(values[:rows]),
            columns.targets,
            np.ascontiguousarray(past[:rows]),
            columns.past,
            np.ascontiguousarray(future),
            columns.future,
            self.source,
            tuple(self.notes),
        )

    def _judge(self, column: Floats, lined: Lined, where: str, missing_are: str) -> None:
        """Say what is missing, constant or marked in one column of one series."""
        finite = np.isfinite(column)
        if not finite.any():
            self.fault(
                "no value at all", "numbers", "remove the column, or name others in data.targets", where
            )
            return
        real = lined.row[: len(column)] >= 0
        missing = np.flatnonzero(~finite & real)
        if len(missing):
            first = ", ".join(
                f"row {lined.row[i]}" + (f" ({stamps.shown(lined.times[i])})" if lined.dated else "")
                for i in missing[:SHOWN]
            )
            more = ", …" if len(missing) > SHOWN else ""
            found = f"{len(missing):,} of {int(real.sum()):,} values missing: {first}{more}"
            if self.data.missing == "fail":
                self.fault(found, "a value in every row", "fill them, or set data.missing=mask", where)
            else:
                self.warn(found, missing_are, where)
        known = column[finite]
        low = float(known.min())
        if len(known) > 1 and low == known.max():
            self.warn(f"constant ({low:g})", "its scale is kept at 1", where)
        elif low in SENTINELS and low < np.median(known):
            count = int((known == low).sum())
            self.warn(
                f"{low:g} occurs {count:,} times", "empty these cells if it marks missing readings", where
            )


def _cell(cell: object) -> str:
    if stamps.missing(cell):
        return ""
    return f"{cell:.12g}" if isinstance(cell, float) else str(cell)
