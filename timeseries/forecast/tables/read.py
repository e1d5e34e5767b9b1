"""Any user's tables as series: a frame, a file, or a folder of files.

Reading a data set twice in one process costs once, as long as its files stay as they are.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.errors import DataInvalid, Fault, ItemError
from shared.pipeline import error_faults
from timeseries.forecast.config import ForecastConfig, ForecastDataConfig
from timeseries.forecast.series import Floats, Series
from timeseries.forecast.tables import stamps, table
from timeseries.forecast.tables.reader import Reader, Reading

_READ_BY = (
    *(
        "layout",
        "date_column",
        "id_column",
        "freq",
        "targets",
        "past_columns",
        "future_columns",
        "missing",
        "gaps",
    ),
    *("duplicates", "unsorted", "max_rows", "sep", "decimal", "encoding", "date_format"),
)
"""Keys of the configuration that change what a table reads as."""
_KEPT = 4
"""Data sets remembered."""
_cache: OrderedDict[Any, Reading] = OrderedDict()


# ---------------------------------------------------------------- one table


def read_frame(frame: pd.DataFrame, data: ForecastDataConfig, source: str = "frame") -> list[Series]:
    """The series of a frame; an index of stamps counts as a column. Raises `DataInvalid` with every fault."""
    return _frame(frame, data, source).checked()


def read_file(path: Path, data: ForecastDataConfig) -> list[Series]:
    """The series in a CSV (also gzipped), TSV or Parquet file. Raises `DataInvalid` with every fault."""
    return _file(Path(path), data).checked()


def _frame(frame: pd.DataFrame, data: ForecastDataConfig, source: str) -> Reading:
    try:
        table.require_names((str(name) for name in frame.columns), source)
        table.require_length(len(frame), data, source)
        return Reader(table.of_frame(frame), data, source).read()
    except DataInvalid as err:
        return Reading(faults=err.faults)


def _file(path: Path, data: ForecastDataConfig) -> Reading:
    try:
        return Reader(table.load(path, data), data, str(path)).read()
    except DataInvalid as err:
        return Reading(faults=err.faults)


# ---------------------------------------------------------------- a data set


def read_dataset(path: Path, data: ForecastDataConfig) -> list[Series]:
    """The series in a file, or in a folder of files of one kind. Raises `DataInvalid` with all their faults."""
    return read_all(Path(path), data).checked()


def read_all(path: Path, data: ForecastDataConfig) -> Reading:
    """What `read_dataset` read, with its faults and what was inferred. Never raises for bad data."""
    try:
        files = files_in(path)
    except DataInvalid as err:
        return Reading(faults=err.faults)
    key = _key(files, data)
    if key in _cache:
        _cache.move_to_end(key)
        return _cache[key]
    reading = _file(files[0], data) if files == [path] else _folder(files, data)
    _cache[key] = reading
    # Told what was inferred, the reader would read the same: training asks so.
    _cache[_key(files, data.model_copy(update=completed(reading)))] = reading
    while len(_cache) > 2 * _KEPT:
        _cache.popitem(last=False)
    return reading


def files_in(path: Path) -> list[Path]:
    """The tables at `path`, a file or a folder, by name. Raises `DataInvalid` when there is none."""
    try:
        if not path.is_dir():
            path.stat()
            return [path]
        every = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as err:
        fault = Fault(path, err.strerror or str(err), "a table or a folder of tables", "check the path")
        raise DataInvalid([fault]) from None
    tables = [entry for entry in every if table.is_table(entry) and entry.is_file()]
    found = [entry for entry in tables if not table.stem(entry).endswith(table.FORECAST)]
    if not found:
        what = f"0 of {len(every)} files match *{', *'.join(table.SUFFIXES)}"
        raise DataInvalid([Fault(path, what, "at least one table", "check the path")])
    stems = [table.stem(entry) for entry in found]
    twice = [entry.name for entry, stem in zip(found, stems) if stems.count(stem) > 1]
    if twice:
        raise DataInvalid(
            [Fault(path, f"one series twice: {', '.join(twice[:4])}", "one file a series", "rename one")]
        )
    return found


def _key(files: Sequence[Path], data: ForecastDataConfig) -> Any:
    seen = []
    for path in files:
        try:
            facts = path.stat()
            seen.append((str(path.absolute()), str(path), facts.st_mtime_ns, facts.st_size))
        except OSError:
            seen.append((str(path.absolute()), str(path), -1, -1))
    return tuple(seen), tuple(getattr(data, name) for name in _READ_BY)


def _folder(files: Sequence[Path], data: ForecastDataConfig) -> Reading:
    """Each file a series called as the file; all with the columns and the step of the first sound one."""
    out: Reading | None = None
    faults: list[Fault] = []
    for path in files:
        one = _file(path, data)
        faults += one.faults
        if error_faults(one.faults):
            continue
        series = one.series
        if one.layout == "long":
            series = [replace(each, id=f"{table.stem(path)}/{each.id}") for each in series]
        if out is None:
            out = replace(one, series=series)
            continue
        if one.date_column != out.date_column:
            found = f"stamps in {one.date_column or 'no column'}"
            wanted = f"{out.date_column or 'none'} as in {Path(out.series[0].source).name}"
            faults.append(Fault(path, found, wanted, "name it alike in all files"))
            continue
        try:
            out.series += [_as_first(each, out) for each in series]
        except ItemError as err:
            faults.append(err.fault)
    if out is None:
        return Reading(faults=faults)
    return replace(out, faults=faults)


def _as_first(series: Series, out: Reading) -> Series:
    first = out.series[0]
    extra = [name for name in series.channels if name not in first.channels]
    if extra:
        wanted = f"those of {Path(first.source).name}"
        raise ItemError(
            series.source, f"columns {_names(extra)} more", wanted, "name the columns in data.targets"
        )
    wanted_columns = (first.channels, first.past_columns, first.future_columns)
    return _matched(series, wanted_columns, out.freq, f"as in {Path(first.source).name}")


def completed(reading: Reading) -> dict[str, Any]:
    """Keys of the configuration's ``data`` that were inferred, for a reader of the same table later."""
    if not reading.series:
        return {}
    return {
        "layout": reading.layout,
        "date_column": reading.date_column,
        "id_column": reading.id_column,
        "freq": reading.freq,
        "targets": reading.series[0].channels,
    }


# ---------------------------------------------------------------- columns by name


def match_columns(series: Series, config: ForecastConfig) -> Series:
    """`series` with the columns of the configuration in their order; others are left out, with a note.

    Raises `ItemError` naming what is missing, and where the step differs from ``data.freq``.
    """
    data = config.data
    wanted = (data.targets or series.channels, data.past_columns, data.future_columns)
    told = data.freq is not None or data.date_column == ""
    return _matched(series, wanted, data.freq if told else series.freq, "as the model was trained on")


def _matched(series: Series, wanted: tuple[tuple[str, ...], ...], freq: str | None, why: str) -> Series:
    if (series.channels, series.past_columns, series.future_columns) == wanted and series.freq == freq:
        return series
    source = series.source or series.id
    known = _by_name(series)
    targets, past, future = wanted
    missing = [name for names in wanted for name in names if name not in known]
    if missing:
        raise ItemError(source, f"no column {_names(missing)}", f"the columns {why}", "add or rename them")
    if not _same_step(series.freq, freq):
        found, right = (f"a step of {f}" if f else "numbered rows" for f in (series.freq, freq))
        raise ItemError(source, found, f"{right} {why}", "resample it, or train on such data")
    extra = [name for name in known if name not in {*targets, *past, *future}]
    notes = (f"left out: {_names(extra)}",) if extra else ()
    rows = len(series)
    return replace(
        series,
        values=_stack([known[name][:rows] for name in targets], rows),
        channels=targets,
        past=_stack([known[name][:rows] for name in past], rows),
        past_columns=past,
        future=_stack([known[name] for name in future], rows),
        future_columns=future,
        notes=(*series.notes, *notes),
    )


def _by_name(series: Series) -> dict[str, Floats]:
    parts = (
        (series.values, series.channels),
        (series.past, series.past_columns),
        (series.future, series.future_columns),
    )
    return {name: part[:, index] for part, names in parts for index, name in enumerate(names)}


def _stack(columns: Sequence[Floats], rows: int) -> Floats:
    """(rows or more, columns); a column that ends earlier is missing there."""
    if not columns:
        return np.empty((rows, 0))
    longest = max(map(len, columns))
    return np.stack([np.concatenate([c, np.full(longest - len(c), np.nan)]) for c in columns], 1)


def _same_step(one: str | None, other: str | None) -> bool:
    if one is None or other is None:
        return one is other
    return stamps.step_key(one) == stamps.step_key(other)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


# ---------------------------------------------------------------- out


def fingerprint(series: Iterable[Series]) -> str:
    """sha256 over names, stamps and values of what was read, whatever file it came from."""
    digest = hashlib.sha256()
    for one in series:
        names = "\0".join(
            (one.id, one.freq or "", *one.channels, "", *one.past_columns, "", *one.future_columns)
        )
        digest.update(names.encode())
        digest.update(f"\0{one.times[0]}\0{len(one)}\0{len(one.future)}\0".encode())
        for part in (one.values, one.past, one.future):
            digest.update(np.ascontiguousarray(part + 0.0).tobytes())  # −0 and 0 are one value
    return digest.hexdigest()


def to_frame(series: Series) -> pd.DataFrame:
    """A wide frame with the stamps in ``date`` (``step`` where rows are numbered); future rows have no targets."""
    total = max(len(series), len(series.future))
    out: dict[str, Any] = {"step" if series.freq is None else "date": series.stamps(total - len(series))}
    for name, column in _by_name(series).items():
        out[name] = np.concatenate([column, np.full(total - len(column), np.nan)])
    return pd.DataFrame(out)
