"""A file as a table: text or Parquet bytes to a frame, with every row numbered as a spreadsheet shows it.

Nothing is guessed past the bytes: the kind of file is known by its first bytes, a table's shape by its header, and
whatever does not fit is a `Fault` with its rows. No code in a file is ever run.
"""

from __future__ import annotations

import csv
import io
import re
import stat
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shared.errors import DataInvalid, Fault
from timeseries.forecast.config import ForecastDataConfig

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
ID_COLUMN = "unique_id"
MAX_BYTES = 4 * 2**30
"""Longest text, after decompression: a small gzip file can hold terabytes."""
SHOWN = 5
"""Rows that a message lists."""
_NOT_TABLES = {
    b"PK\x03\x04": "an Excel or zip file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF file",
    b"<!": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b'{"': "JSON",
    b"[{": "JSON",
}
_WANTED = "a CSV, TSV or Parquet table"
_NULLS = pa.array(
    (
        *("", "NA", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaN", "nan", "NAN", "-nan", "-NaN", "NaT"),
        *("NULL", "null", "Null", "None", "none", "#VALUE!", "#DIV/0!"),
    )
)
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$"


class Table(NamedTuple):
    """Columns of float64 (text that was all numbers), or of text; `rows` are numbered as a spreadsheet shows them."""

    frame: pd.DataFrame
    rows: NDArray[np.int64]


FORECAST = ".forecast"
"""Between a forecast's name and its suffix; such files are not taken for inputs when a folder is searched."""


def is_table(path: Path) -> bool:
    """Whether the name is that of a table."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def stem(source: str | Path) -> str:
    """A file's name without the suffix: the id of its series."""
    name = Path(source).name
    known = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(known)] or name


def load(path: Path, data: ForecastDataConfig) -> Table:
    """The table in `path`. Raises `DataInvalid` naming the path as given."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            what = "a folder" if path.is_dir() else "not a regular file"
            raise _invalid(path, what, _WANTED, "check the path")
        if path.stat().st_size == 0:
            raise _invalid(path, "empty file", _WANTED, "write the table again")
        with open(path, "rb") as file:
            head = file.read(8)
        if head.startswith(b"PAR1"):
            return _parquet(path, data)
        if path.suffix.lower() == ".parquet":
            raise _invalid(path, "does not begin as Parquet does", "a Parquet table", "write it again")
        content = _gunzip(path) if head.startswith(b"\x1f\x8b") else _bounded(path)
    except OSError as err:
        raise _invalid(path, err.strerror or str(err), _WANTED, "check the path") from None
    return parse_csv(content, data, path)


def _invalid(source: str | Path, found: str, wanted: str = "", mend: str = "") -> DataInvalid:
    return DataInvalid([Fault(source, found, wanted, mend)])


def _bounded(path: Path) -> bytes:
    if path.stat().st_size > MAX_BYTES:
        raise _too_big(path)
    return path.read_bytes()


def _too_big(path: Path) -> DataInvalid:
    return _invalid(path, "more than 4 GiB of text", "4 GiB at most", "split it, or write Parquet")


def _gunzip(path: Path) -> bytes:
    """The whole content: the checksum at the end is verified."""
    import gzip

    out = io.BytesIO()
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(1 << 22):
                out.write(block)
                if out.tell() > MAX_BYTES:
                    raise _too_big(path)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise _invalid(path, "gzip data is cut or damaged", "a whole file", "copy it again") from None
    return out.getvalue()


# ---------------------------------------------------------------- Parquet


def _parquet(path: Path, data: ForecastDataConfig) -> Table:
    try:
        with pq.ParquetFile(path) as file:
            meta = file.metadata
            size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
            require_length(meta.num_rows, data, path)
            if size > MAX_BYTES:
                raise _invalid(path, f"{size:,} bytes of columns", "4 GiB at most", "split the table")
            table = file.read()
        require_names(_plain_names(table), path)
        frame = table.to_pandas()
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as err:
        # Arrow's own words begin a damaged file's message; the first line is enough for a person.
        text = str(err).splitlines()[0][:80] if str(err) else type(err).__name__
        raise _invalid(path, f"Parquet is cut or damaged ({text})", "a whole file", "copy it again") from None
    return of_frame(frame)


def _plain_names(table: pa.Table) -> list[str]:
    return [str(name) for name in table.column_names]


def of_frame(frame: pd.DataFrame) -> Table:
    """A user's frame; an index of stamps becomes the column ``date`` (or its own name)."""
    if isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex | pd.MultiIndex):
        names = [str(n) if n is not None else "date" for n in frame.index.names]
        frame = frame.reset_index(names=names)
    frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    return Table(frame, np.arange(2, len(frame) + 2))


# ---------------------------------------------------------------- CSV


def parse_csv(content: bytes, data: ForecastDataConfig, source: str | Path) -> Table:
    """CSV text to a frame: a column whose every cell is a number or missing becomes float64. Raises `DataInvalid`."""
    content = _utf8(content, data, source).rstrip(b"\r\n ")
    if not content.strip():
        raise _invalid(source, "empty file", _WANTED, "write the table again")
    if b'"' not in content:  # quoted cells may hold line ends
        require_length(content.count(b"\n"), data, source)
    if content.count(b'"') % 2:
        row = next(i for i, line in enumerate(content.split(b"\n"), 1) if line.count(b'"') % 2)
        raise _invalid(
            source, f"a quotation mark in row {row} without its other", "pairs", "close or remove it"
        )
    tabs = str(source).lower().endswith((".tsv", ".tsv.gz"))
    sep = data.sep or ("\t" if tabs else ",")
    names = _header(content, sep, source)
    table, rows = _records(content, names, sep, source)
    require_length(len(rows), data, source)
    if not len(rows):
        raise _invalid(source, "a header and no rows", "at least two rows", "write the table again")
    keep = {data.id_column or ID_COLUMN, data.date_column if data.date_format else None}
    columns = {}
    for name, column in zip(names, table.columns):
        numbers = None if name in keep else fast_numbers(column, data)
        columns[name] = column.to_pandas() if numbers is None else numbers
    return Table(pd.DataFrame(columns), rows)


def _utf8(content: bytes, data: ForecastDataConfig, source: str | Path) -> bytes:
    """The text as UTF-8 without mark or NUL."""
    for magic, what in _NOT_TABLES.items():
        if content.lstrip()[: len(magic)] == magic:
            raise _invalid(source, what, _WANTED, "export it as CSV")
    name = data.encoding.lower().replace("_", "-")
    if name in ("utf-8", "utf8", "ascii"):
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise _invalid(source, "UTF-16 text", "UTF-8", "set data.encoding=utf-16, or save it as UTF-8")
        _refuse_nul(content, source)
        content = content.removeprefix(b"\xef\xbb\xbf")
        try:
            content.decode("utf-8")
        except UnicodeDecodeError as err:
            row = content.count(b"\n", 0, err.start) + 1
            found = f"byte {content[err.start]:#04x} in row {row} is not UTF-8"
            raise _invalid(
                source, found, "UTF-8 text", "set data.encoding=latin-1, or save it as UTF-8"
            ) from None
        return content
    try:
        text = content.decode(data.encoding)
    except (UnicodeError, LookupError) as err:
        mend = "set data.encoding to what the file was written in"
        raise _invalid(source, f"not {data.encoding} text ({str(err)[:60]})", data.encoding, mend) from None
    encoded = text.removeprefix("\ufeff").encode("utf-8", "replace")
    _refuse_nul(encoded, source)
    return encoded


def _refuse_nul(content: bytes, source: str | Path) -> None:
    at = content.find(b"\0")
    if at < 0:
        return
    if content.count(b"\0", 0, 4096) > 8 or content[:4096].count(b"\n") == 0:
        raise _invalid(source, "binary data", _WANTED, "export it as CSV")
    row = content.count(b"\n", 0, at) + 1
    raise _invalid(source, f"a NUL byte in row {row}", "text", "write the table again")


def _header(content: bytes, sep: str, source: str | Path) -> list[str]:
    """Names of the columns; an unnamed one is called by its number. Raises `DataInvalid`."""
    try:
        text = io.StringIO(content[: 1 << 22].decode("utf-8", "ignore"), newline="")
        first = next(csv.reader(text, delimiter=sep))
    except (csv.Error, StopIteration) as err:
        raise _invalid(source, f"no header ({err})", _WANTED, "begin with the columns' names") from None
    if len(first) == 1:
        other = next((s for s in (";", "\t", ",", "|") if s != sep and s in first[0]), None)
        if other is not None:
            shown = {"\t": r'"\t"'}.get(other, f"'{other}'")
            more = " and data.decimal=comma if numbers read 1,5" if other == ";" else ""
            found = f"one column {first[0][:40]!r}"
            raise _invalid(source, found, f"columns divided by {sep!r}", f"set data.sep={shown}{more}")
    names = [name.strip() or f"column {number}" for number, name in enumerate(first, 1)]
    require_names(names, source)
    # Detectors are often named by number; a row of decimals or with a date is a table without a header.
    decimals = all(_is_number(name) for name in first) and any(set(name) & set(".eE") for name in first)
    if decimals or any(re.match(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}", name) for name in names):
        found = f"row 1 holds values ({', '.join(first[:2])}, …)"
        raise _invalid(source, found, "the columns' names", "add a header")
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def require_names(names: Iterable[str], source: str | Path) -> None:
    """Raise `DataInvalid` unless every name is there once."""
    names = list(names)
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        where = [[i + 1 for i, name in enumerate(names) if name == one] for one in twice[:SHOWN]]
        said = ", ".join(f"{name} (columns {', '.join(map(str, at))})" for name, at in zip(twice, where))
        raise _invalid(source, f"named twice: {said}", "every column once", "rename or remove one")


def require_length(rows: int, data: ForecastDataConfig, source: str | Path) -> None:
    """Raise `DataInvalid` for a table longer than ``data.max_rows``."""
    if rows > data.max_rows:
        found = f"{rows:,} rows"
        raise _invalid(
            source, found, f"{data.max_rows:,} at most (data.max_rows)", "split it, or raise data.max_rows"
        )


def _records(
    content: bytes, names: list[str], sep: str, source: str | Path
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Every cell as text, and the row numbers; blank lines are passed over. Raises `DataInvalid`."""
    skipped: list[int] = []
    ragged: list[tuple[int, int]] = []

    def odd(row: Any) -> str:
        if not row.text.strip():
            skipped.append(row.number)
        else:
            ragged.append((row.number, row.actual_columns))
        return "skip"

    places = [f"c{i}" for i in range(len(names))]
    widest = max(len(line) for line in content[: 1 << 24].splitlines()[:2]) if content else 0
    try:
        table = pa_csv.read_csv(
            io.BytesIO(content),
            pa_csv.ReadOptions(
                use_threads=False, column_names=places, skip_rows=0, block_size=max(1 << 24, 8 * widest)
            ),
            pa_csv.ParseOptions(
                delimiter=sep,
                invalid_row_handler=odd,
                newlines_in_values=b'"' in content,
                ignore_empty_lines=False,
            ),
            pa_csv.ConvertOptions(column_types=dict.fromkeys(places, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowException as err:
        text = str(err).splitlines()[0][:80]
        raise _invalid(source, f"cannot be read as CSV ({text})", _WANTED, "write the table again") from None
    if ragged:
        first = ", ".join(f"row {number} has {count} fields" for number, count in ragged[:SHOWN])
        more = f" ({len(ragged)} such rows)" if len(ragged) > SHOWN else ""
        mend = "correct these rows; quote cells that hold the separator"
        raise _invalid(source, first + more, f"{len(names)} fields as in the header", mend)
    rows = np.delete(np.arange(1, len(table) + len(skipped) + 1), np.array(skipped, np.int64) - 1)
    return table.slice(1), rows[1:]


# ---------------------------------------------------------------- numbers in text


def fast_numbers(column: pa.ChunkedArray, data: ForecastDataConfig) -> NDArray[np.float64] | None:
    """The column as float64 if every cell is a number or missing, else None."""
    try:
        numbers = pc.cast(column, pa.float64())
    except pa.ArrowInvalid:
        text = _trimmed(column, data)
        try:
            numbers = pc.cast(pc.if_else(pc.is_in(text, _NULLS), None, text), pa.float64())
        except pa.ArrowInvalid:
            return None
    out: NDArray[np.float64] = numbers.to_numpy()
    return out


def _trimmed(column: Any, data: ForecastDataConfig) -> Any:
    text = pc.utf8_trim_whitespace(column)
    return pc.replace_substring(text, ",", ".", max_replacements=1) if data.decimal == "comma" else text


def numbers_in(
    cells: Iterable[Any], data: ForecastDataConfig
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(values, positions of cells that are neither number nor missing). Truth values are 1 and 0."""
    text = pa.array([None if cell is None or cell is pd.NA else str(cell) for cell in cells], pa.string())
    text = pc.fill_null(_trimmed(text, data), "")
    lower = pc.utf8_lower(text)
    text = pc.if_else(pc.equal(lower, "true"), "1", pc.if_else(pc.equal(lower, "false"), "0", text))
    missing = pc.is_in(text, _NULLS)
    good = pc.match_substring_regex(text, _NUMBER)
    values = pc.cast(pc.if_else(good, text, None), pa.float64()).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~(missing.to_numpy(zero_copy_only=False) | good.to_numpy(zero_copy_only=False)))
    return values, bad
