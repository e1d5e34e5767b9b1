"""A file as a table of columns: CSV (also gzipped), Parquet, ECSV, FITS; and an astropy table as the same.

The kind of file is known by its first bytes. Values are as in the file; nothing in it is ever run.
"""

from __future__ import annotations

import gzip
import warnings
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from shared.errors import DataInvalid, Fault, first_line

if TYPE_CHECKING:
    from astropy.table import Table as AstropyTable

SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".ecsv", ".fits", ".fits.gz", ".fit")
AVRO = b"Obj\x01"
BYTES_A_ROW, PACKED = 40, 5
"""Of text, and how many times less it is when packed: about"""
WANTED = "a CSV, Parquet, ECSV or FITS table, or Avro alerts"
_DAMAGED = (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, pa.ArrowException, zlib.error)


@dataclass
class Table:
    """Columns, with what the file says of them."""

    frame: pd.DataFrame
    units: dict[str, str] = field(default_factory=dict)
    """Column → unit as astropy writes it; empty where the kind of file has no units."""
    scales: dict[str, str] = field(default_factory=dict)
    """Column → utc, tai, …, of those that were times: they are MJD now."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    """Warnings: rows that are no rows."""


def invalid(
    source: str | Path, found: str, wanted: str = "", mend: str = "", column: str = ""
) -> DataInvalid:
    """One fault, as an exception."""
    return DataInvalid([Fault(source, found, wanted, mend, column)])


def first_bytes(path: Path, size: int = 16) -> bytes:
    """The first bytes, of what is inside where it is gzipped. Raises `DataInvalid`."""
    try:
        with open(path, "rb") as file:
            head = file.read(size)
        if not head.startswith(b"\x1f\x8b"):
            return head
        with gzip.open(path, "rb") as packed:
            return packed.read(size)
    except (OSError, EOFError, zlib.error) as err:
        said = getattr(err, "strerror", None) or str(err)
        raise invalid(path, said, WANTED, "check the path") from None


def load(path: Path, texts: Collection[str] = ()) -> Table:
    """The table in `path`. Columns named as one of `texts`, in lower case, are text, also where all are numbers: an id
    0615 is not 615. Raises `DataInvalid`."""
    head = first_bytes(path)
    if not head.strip():
        raise invalid(path, "empty file", WANTED, "write the table again")
    try:
        if head.startswith(b"PAR1"):
            return Table(
                pq.read_table(path).to_pandas(strings_to_categorical=True, integer_object_nulls=True)
            )
        if head.startswith((b"SIMPLE  =", b"# %ECSV")):
            from astropy.table import Table as AstropyTable

            kind = "fits" if head.startswith(b"SIMPLE") else "ascii.ecsv"
            with warnings.catch_warnings():  # of units and headers: what matters becomes a fault
                warnings.simplefilter("ignore")
                return of_astropy(AstropyTable.read(path, format=kind))
        if b"\0" in head:
            raise invalid(path, "neither text nor a known kind of table", WANTED, "export it as one of these")
        return _csv_file(path, texts)
    except DataInvalid:
        raise
    except _DAMAGED as err:
        raise invalid(
            path, f"cannot be read ({first_line(err)})", "a whole table", "write or copy it again"
        ) from None


def about_rows(path: Path) -> int:
    """How many rows a table has, without reading it: Parquet says so, else about; 0 where it cannot be told."""
    try:
        if first_bytes(path).startswith(b"PAR1"):
            return int(pq.read_metadata(path).num_rows)
        return path.stat().st_size * (PACKED if path.name.lower().endswith(".gz") else 1) // BYTES_A_ROW
    except (DataInvalid, *_DAMAGED):
        return 0


# ---------------------------------------------------------------- CSV


def _csv_file(path: Path, texts: Collection[str]) -> Table:
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        header = gzip.GzipFile(fileobj=raw).readline() if packed else raw.readline()
    kind = "gzip" if packed else None
    return _csv(path, header, lambda: pa.input_stream(str(path), compression=kind), texts)


def of_text(text: str, source: str, texts: Collection[str] = ()) -> Table:
    """The table in the text of a CSV file, as `load` reads one. Raises `DataInvalid`."""
    content = text.encode()
    try:
        return _csv(source, content.split(b"\n", 1)[0], lambda: pa.BufferReader(content), texts)
    except _DAMAGED as err:
        raise invalid(source, first_line(err), "a table as CSV text", "correct it", "csv") from None


def _csv(source: str | Path, header: bytes, stream: Callable[[], Any], texts: Collection[str]) -> Table:
    sep = max((",", "\t", ";"), key=lambda mark: header.count(mark.encode()))
    try:
        names = [name.strip().strip('"') for name in header.decode("utf-8-sig").split(sep)]
    except UnicodeDecodeError:
        raise _not_text(source) from None
    bad: list[int] = []

    def skip(row: Any) -> str:
        bad.append(row.number or 0)
        return "skip"

    def parse(types: dict[str, pa.DataType]) -> pd.DataFrame:
        bad.clear()
        with stream() as opened:
            table = pa_csv.read_csv(
                opened,
                read_options=pa_csv.ReadOptions(use_threads=False),  # so that rows have numbers
                parse_options=pa_csv.ParseOptions(delimiter=sep, invalid_row_handler=skip),
                convert_options=pa_csv.ConvertOptions(strings_can_be_null=True, column_types=types),
            )
        return table.to_pandas(integer_object_nulls=True)

    ids = {name: pa.dictionary(pa.int32(), pa.string()) for name in names if name.lower() in texts}
    try:
        frame = parse(ids)
    except pa.ArrowInvalid as err:
        if "UTF8" in str(err):
            raise _not_text(source) from None
        # A word among numbers, late in the file: as text, then number by number.
        frame = parse(dict.fromkeys(names, pa.string()))
    faults = []
    if bad:
        rows = ", ".join(str(n) for n in bad[:5] if n) or "?"
        what = f"{len(bad)} rows without one value a column (rows {rows}{', …' if len(bad) > 5 else ''})"
        faults.append(Fault(source, what, "one value a column", "left out", severity="warning"))
    return Table(frame, faults=faults)


def _not_text(source: str | Path) -> DataInvalid:
    return invalid(source, "text that is not UTF-8", "UTF-8", "write the table in UTF-8")


# ---------------------------------------------------------------- astropy


def of_astropy(table: AstropyTable) -> Table:
    """Columns with their units; times (`astropy.time.Time`) as MJD. Columns of arrays are left out."""
    from astropy.time import Time

    out = Table(pd.DataFrame(index=range(len(table))), meta=dict(table.meta))
    columns: dict[str, Any] = {}
    for name in table.colnames:
        column = table[name]
        if isinstance(column, Time):
            columns[name], out.scales[name] = np.asarray(column.mjd, float), str(column.scale)
            continue
        unit = getattr(column, "unit", None)
        if unit is not None and str(unit):
            out.units[name] = str(unit)
        values = getattr(column, "value", column)
        array = np.ma.asanyarray(values)
        if array.ndim == 1:
            columns[name] = _native(array)
    out.frame = pd.DataFrame(columns)
    return out


def _native(array: Any) -> Any:
    """A plain array: native byte order, text for bytes, NaN (None for text) where masked."""
    mask = np.ma.getmaskarray(array)
    plain = np.asarray(np.ma.getdata(array))
    if plain.dtype.kind == "S":
        plain = np.char.strip(np.char.decode(plain, "utf-8", "replace"))
    if plain.dtype.kind in "iuf":
        plain = plain.astype(plain.dtype.newbyteorder("="))
        if not mask.any():
            return plain
        if plain.dtype.kind == "f":
            return np.where(mask, np.nan, plain)
    objects = plain.astype(object)
    objects[mask] = None
    return objects
