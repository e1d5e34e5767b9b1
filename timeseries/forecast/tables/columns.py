"""Columns of a table by their part: series name, stamps, targets, exogenous; and their numbers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from shared.errors import Fault
from shared.pipeline import error_faults
from timeseries.forecast.config import ForecastDataConfig
from timeseries.forecast.series import Floats
from timeseries.forecast.tables import stamps, table
from timeseries.forecast.tables.table import ID_COLUMN, SHOWN, Table

_COUNTERS = ("Unnamed: ", "index", "level_0", "__index_level_")


class Columns(NamedTuple):
    """Names of the columns by their part."""

    targets: tuple[str, ...]
    past: tuple[str, ...]
    future: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.targets, *self.past, *self.future)


class TableColumns:
    """One table and what was found in its columns: `faults`, and `notes` on what was inferred."""

    def __init__(self, given: Table, data: ForecastDataConfig, source: str) -> None:
        self.frame, self.rows = given
        self.data, self.source = data, source
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self._texts: dict[str, tuple[Floats, NDArray[np.int64]]] = {}

    def fault(self, found: str, wanted: str = "", mend: str = "", where: str = "") -> None:
        self.faults.append(Fault(self.source, found, wanted, mend, where))

    def warn(self, found: str, mend: str, where: str) -> None:
        self.faults.append(Fault(self.source, found, "", mend, where, "warning"))
        self.notes.append(f"{where}: {found}; {mend}")

    @property
    def failed(self) -> bool:
        return bool(error_faults(self.faults))

    def listed(self, at: Iterable[int], cells: Sequence[object] | None = None) -> str:
        """The first rows at the positions `at`, with what they hold, and how many there are."""
        at = list(at)
        held = [""] * len(at) if cells is None else [f" ({_short(cell)!r})" for cell in cells]
        said = ", ".join(f"row {self.rows[i]}{text}" for i, text in list(zip(at, held))[:SHOWN])
        return said + (f" ({len(at):,} in all)" if len(at) > SHOWN else "")

    def trim(self) -> None:
        """Leave out blank rows at the end (spreadsheets add them) and a first column that merely counts rows."""
        frame = self.frame
        if len(frame) and all(stamps.missing(cell) for cell in frame.iloc[-1]):
            blank = np.ones(len(frame), bool)
            for name in frame.columns:
                blank &= frame[name].map(stamps.missing).to_numpy(bool)
            full = np.flatnonzero(~blank)
            end = int(full[-1]) + 1 if len(full) else 0
            self.notes.append(f"{len(frame) - end} blank rows at the end are left out")
            self.frame, self.rows = frame.iloc[:end], self.rows[:end]
        first = str(frame.columns[0]) if frame.shape[1] > 1 else ""
        if first == "column 1" or first.startswith(_COUNTERS):
            cells = self.frame[first]
            if (
                pd.api.types.is_numeric_dtype(cells)
                and len(cells) > 1
                and (np.diff(cells.to_numpy()) == 1).all()
            ):
                self.notes.append("the first column counts rows and is left out")
                self.frame = self.frame.drop(columns=first)

    def drop_blank(self, date_column: str) -> None:
        """Leave out rows without stamp or anything else."""
        cells = self.frame[date_column]
        empty = np.flatnonzero((cells.isna() | (cells.astype(object) == "")).to_numpy(bool))
        blank = [int(i) for i in empty if all(stamps.missing(cell) for cell in self.frame.iloc[i])]
        if blank:
            self.notes.append(f"blank rows are left out: {self.listed(blank)}")
            keep = np.delete(np.arange(len(self.frame)), blank)
            self.frame, self.rows = self.frame.iloc[keep], self.rows[keep]

    # ------------------------------------------------------------ which column is what

    def id_column(self) -> str | None:
        """The column that names the series of a long table; None for a wide one."""
        name = self.data.id_column or ID_COLUMN
        if self.data.layout == "wide" or (self.data.layout == "auto" and name not in self.frame.columns):
            return None
        if name not in self.frame.columns:
            self._absent(name, "id_column")
            return None
        return name

    def _absent(self, name: str, key: str) -> None:
        near = difflib.get_close_matches(name, self.frame.columns, 1, 0.5)
        has = ", ".join(self.frame.columns[:8]) + (", …" if self.frame.shape[1] > 8 else "")
        mend = f"is {near[0]!r} meant?" if near else f"correct data.{key} or the header"
        self.fault(f"no column {name!r}", f"one of {has}", mend, f"data.{key}")

    def date_column(self, id_column: str | None) -> str | None:
        """The column of stamps, as given or found by its content; None where rows are numbered."""
        given, data = self.data.date_column, self.data
        if given == "":
            return None
        if given is not None:
            if given in self.frame.columns:
                return given
            self._absent(given, "date_column")
            return None
        taken = (*data.targets, *data.past_columns, *data.future_columns, id_column or "")
        found = stamps.find_column(self.frame, taken)
        self.notes.append(
            f"stamps are in column {found}" if found else "no column of stamps: rows are numbered steps"
        )
        return found

    def columns(self, taken: set[str | None]) -> Columns | None:
        """Parts of the columns: numbers not named are targets, text not named is left out, with a note."""
        data = self.data
        for key in ("targets", "past_columns", "future_columns"):
            for name in getattr(data, key):
                if name not in self.frame.columns:
                    self._absent(name, key)
                elif name in taken:
                    self.fault(
                        f"{name} holds stamps or ids", "columns of numbers", "leave it out", f"data.{key}"
                    )
        named = {*data.targets, *data.past_columns, *data.future_columns}
        unnamed = [name for name in self.frame.columns if name not in taken and name not in named]
        targets = data.targets or tuple(name for name in unnamed if self._numeric(name))
        unused = [name for name in unnamed if name not in targets]
        if unused:
            why = "not asked for" if data.targets else "no numbers"
            self.notes.append(f"left out ({why}): {', '.join(unused[:8])}{', …' if len(unused) > 8 else ''}")
        if not targets:
            has = ", ".join(self.frame.columns[:8])
            self.fault(f"no numbers in the columns {has}", "at least one column to forecast", "add it")
            for name in [name for name in unnamed if not _is_stamps(self.frame[name])][:SHOWN]:
                self._bad_cells(name, self._parsed(name)[1])
        if self.failed:
            return None
        return Columns(tuple(targets), data.past_columns, data.future_columns)

    def _numeric(self, name: str) -> bool:
        """Numbers, or text with numbers in it, whose other cells are then faults."""
        column = self.frame[name]
        if pd.api.types.is_numeric_dtype(column.dtype):
            return True
        if _is_stamps(column):
            return False
        values, bad = self._parsed(name)
        some = [str(cell) for cell in column.iloc[bad[:50]]]
        return not bool(np.isnan(values).all()) or (
            bool(some) and all(_grouped(c) or _comma(c) for c in some)
        )

    def _parsed(self, name: str) -> tuple[Floats, NDArray[np.int64]]:
        if name not in self._texts:
            self._texts[name] = table.numbers_in(self.frame[name], self.data)
        return self._texts[name]

    # ------------------------------------------------------------ numbers

    def values(self, columns: Columns) -> Floats | None:
        """(rows, columns) float64; None where a cell is neither a finite number nor missing."""
        out = np.empty((len(self.frame), len(columns.all)))
        fine = True
        for index, name in enumerate(columns.all):
            column = self.frame[name]
            bad = np.empty(0, np.int64)
            if pd.api.types.is_complex_dtype(column.dtype):
                bad = np.arange(len(column))
            elif pd.api.types.is_numeric_dtype(column.dtype):
                out[:, index] = column.to_numpy(np.float64, na_value=np.nan)
            elif _is_stamps(column):
                bad = np.arange(len(column))
            else:
                out[:, index], bad = self._parsed(name)
            if len(bad):
                self._bad_cells(name, bad)
            endless = np.flatnonzero(np.isinf(out[:, index])) if not len(bad) else bad[:0]
            if len(endless):
                where = self.listed(endless, [f"{out[i, index]:g}" for i in endless[:SHOWN]])
                self.fault(f"infinite in {where}", "finite numbers", "correct the cells, or empty them", name)
            fine = fine and not len(bad) and not len(endless)
        return out if fine else None

    def _bad_cells(self, name: str, bad: NDArray[np.int64]) -> None:
        cells = [str(cell) for cell in self.frame[name].iloc[bad[:50]]]
        where = self.listed(bad, [*cells, *[""] * (len(bad) - len(cells))])
        dotted = self.data.decimal == "point"
        if dotted and all(_comma(cell) for cell in cells) and not all(_grouped(cell) for cell in cells):
            self.fault(f"decimal commas in {where}", "numbers such as 1.5", "set data.decimal=comma", name)
        elif all(_grouped(cell) for cell in cells):
            either = dotted and all(_comma(cell) for cell in cells)
            mend = "write 1234.5" + (", or set data.decimal=comma if 1,234 is a fraction" if either else "")
            self.fault(f"thousands separators in {where}", "plain numbers", mend, name)
        else:
            mend = "correct the cells, empty them if missing, or name columns in data.targets"
            self.fault(f"text in {where}", "numbers", mend, name)


def _is_stamps(column: pd.Series) -> bool:
    return bool(
        pd.api.types.is_datetime64_any_dtype(column.dtype) or isinstance(column.dtype, pd.PeriodDtype)
    )


def _short(cell: object) -> str:
    text = str(cell)
    return text if len(text) <= 24 else text[:23] + "…"


def _grouped(cell: str) -> bool:
    """Digits in threes: 1,234 or 1 234 567.8."""
    pattern = r"[+-]?\d{1,3}([,.' \u00a0\u202f])\d{3}(?:\1\d{3})*(?:[.,]\d+)?"
    return bool(re.fullmatch(pattern, cell.strip()))


def _comma(cell: str) -> bool:
    return bool(re.fullmatch(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?", cell.strip()))
