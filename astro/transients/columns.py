"""A table's columns by their meaning: which is what, by the names told or known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from astro.transients import surveys
from astro.transients.config_read import ReadConfig
from astro.transients.lightcurve import WAVELENGTHS, Floats
from astro.transients.points import Ints
from astro.transients.surveys import LAYOUTS, TABLE, Layout
from astro.transients.tables import Table, invalid
from shared.errors import Fault

_WHOLE = re.compile(r"\d+\.0+")
_ABSENT = ("", "nan", "null", "none", "na", "n/a", "-", "--")
EXACT = 2**53
"""From here on a number with a decimal point is not every whole number."""
_FEATURES = ("time", "band", "flux", "error", "detected", "redshift", "redshift_error", "ebv")


def layout_of(frame: pd.DataFrame, config: ReadConfig) -> Layout:
    """The layout told, or the one whose columns are there."""
    if config.format == "auto":
        found = surveys.recognised(str(name) for name in frame.columns)
        # Others name their columns as PLAsTiCC does, but not their bands.
        if found.bands is surveys.PASSBANDS:
            kinds = set(map(_name, pd.unique(frame["passband"].dropna())))
            if not kinds <= set(surveys.PASSBANDS) or config.survey not in (None, found.survey):
                return TABLE
        return found
    return TABLE if config.format == "table" else LAYOUTS[config.format]


class Columns:
    """A table of observations, the metadata beside it, and what is said of them while they are read: `notes` on what
    was decided, `faults` (warnings) on what is odd."""

    def __init__(self, table: Table, config: ReadConfig, metadata: pd.DataFrame | None, source: str) -> None:
        self.table, self.config, self.source = table, config, source
        self.frame = _once(table.frame.rename(columns=str), source)
        self.about = None if metadata is None else _once(metadata.rename(columns=str), "metadata")
        self.layout = layout_of(self.frame, config)
        self.survey = config.survey or (config.table_survey if self.layout is TABLE else self.layout.survey)
        self.notes = [f"format: {self.layout.name}, bands of {self.survey}", *self.layout.notes]
        """Of the table."""
        self.common: list[str] = list(self.layout.notes)
        """Those that are every curve's too."""
        self.faults: list[Fault] = []

    def say(self, text: str) -> None:
        self.notes.append(text)
        self.common.append(text)

    def find(self, role: str, frame: pd.DataFrame, names: tuple[str, ...]) -> str | None:
        """The column of `role`: the one told, else the first of `names`; case is ignored in tables of unknown make.

        Raises `DataInvalid` for one told that is not there, or that is truth.
        """
        told = self.config.column(role)
        if told == "":
            return None
        if told is not None:
            if told not in frame.columns:
                if frame is not self.frame or role not in self.layout.columns:
                    return None  # it may be in the other of the two tables
                raise self.no(role, f"no column {told}", frame)
            if role in _FEATURES and surveys.TRUTH.match(told):
                found = f"{told} is truth"
                raise invalid(self.source, found, f"an observed {role}", "name another column", told)
            return told
        return self.known(frame, names)

    def known(self, frame: pd.DataFrame, names: tuple[str, ...]) -> str | None:
        """The first of `names` that `frame` has, whatever was told."""
        exact = next((name for name in names if name in frame.columns), None)
        if exact is not None or self.layout is not TABLE:
            return exact
        low = {str(name).strip().lower(): str(name) for name in reversed(frame.columns)}
        return next((low[name] for name in names if name in low), None)

    def no(self, role: str, found: str, frame: pd.DataFrame | None = None) -> Exception:
        """The fault for a column that is not there."""
        frame = self.frame if frame is None else frame
        have = ", ".join(map(str, frame.columns[:12])) + (", …" if len(frame.columns) > 12 else "")
        known = self.layout.columns.get(role, ())
        wanted = f"a column of {_plural(role)}" + (f" ({', '.join(known[:6])})" if known else "")
        return invalid(
            self.source, found, wanted, f"name it in data.read.{role}_column (columns: {have})", role
        )

    def column(self, role: str) -> str | None:
        """Of the observations."""
        return self.find(role, self.frame, self.layout.columns.get(role, ()))

    def needed(self, role: str) -> str:
        """Raises `DataInvalid` where there is none."""
        name = self.column(role)
        if name is None:
            raise self.no(role, f"no column of {_plural(role)}")
        return name

    def numbers(self, name: str, frame: pd.DataFrame | None = None) -> Floats:
        """(N,) floats; NaN for what is no number, which is told, the first of it with its place."""
        column = (self.frame if frame is None else frame)[name]
        if not pd.api.types.is_numeric_dtype(column):
            given, column = column, pd.to_numeric(column.astype(object), errors="coerce")
            text = given[column.isna() & given.notna()].astype(str)
            text = text[~text.str.strip().str.lower().isin(_ABSENT)]
            if len(text) and column.notna().any():  # nothing but text is said where the column is needed
                own = frame is None or frame is self.frame
                place = f"in row {text.index[0] + 1}" if own else f"of {text.index[0]}"
                found = f"{text.iloc[0][:40]!r} {place}" + f" and {len(text) - 1} more" * (len(text) > 1)
                fault = Fault(self.source, found, "numbers", "taken as absent", name, "warning")
                self.faults += [fault] if fault not in self.faults else []
        return column.to_numpy(dtype=float, na_value=np.nan)


def _plural(role: str) -> str:
    return "fluxes" if role == "flux" else f"{role}s".replace("_", " ")


def _once(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """`frame`. Raises `DataInvalid` where two columns have one name."""
    again = frame.columns[frame.columns.duplicated()]
    if len(again):
        raise invalid(source, f"two columns {again[0]}", "one of a name", "rename or drop one", str(again[0]))
    return frame


def text_columns(config: ReadConfig) -> frozenset[str]:
    """Names, in lower case, of columns that hold ids, which are text whatever they look like."""
    known = (
        name
        for layout in (TABLE, *LAYOUTS.values())
        for names in (layout.columns, layout.about)
        for name in names.get("id", ())
    )
    return frozenset(name.lower() for name in (*known, config.id_column or "") if name)


# ---------------------------------------------------------------- names and bands


def names_of(column: Any) -> tuple[Ints, list[str]]:
    """((N,) index, −1 where absent; names in order of appearance): 615, 615.0, "615 " and b"615" are one."""
    code, values = pd.factorize(pd.Series(column), use_na_sentinel=True)
    texts = [_name(value) for value in values]
    ids = [text for text in dict.fromkeys(texts) if text]
    place = {text: index for index, text in enumerate(ids)}
    table = np.array([place.get(text, -1) for text in texts] + [-1], dtype=np.int64)
    return table[code], ids


def _name(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")  # so that two that differ still do
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    text = str(value).strip()
    return text.partition(".")[0] if _WHOLE.fullmatch(text) else text


def last_rows(code: Ints, count: int) -> Ints:
    """The last row of each name: of two entries for one object the later counts."""
    out = np.zeros(count, np.int64)
    given = np.flatnonzero(code >= 0)
    out[code[given]] = given
    return out


def banded(
    code: Ints, values: list[Any], survey: str, extra: Mapping[str, str]
) -> tuple[Ints, tuple[str, ...]]:
    """Rows' bands as `Rows` wants them, from the index of each row into `values` (−1 = none given)."""
    bands = tuple(WAVELENGTHS[survey])
    unknown: list[str] = []
    table = []
    for value in [*values, None]:
        name = None if value is None else surveys.band_name(value, survey, extra)
        if name is not None:
            table.append(bands.index(name))
            continue
        unknown.append("(none given)" if value is None else f"'{_name(value)}'")
        table.append(-len(unknown))
    return np.array(table, dtype=np.int64)[code], tuple(unknown)
