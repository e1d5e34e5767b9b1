"""Any user's light curves: a table, an astropy table, a survey's pair of files, alerts, or a folder of them.

One `LightCurve` an input object comes out, in input order, with a status, whatever was wrong with it (spec section 8).
What makes a whole table unreadable (an unknown unit, times that cannot be days) is a `Fault` instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from astro.transients import alerts, surveys, tables
from astro.transients.columns import layout_of, text_columns
from astro.transients.config_read import ReadConfig
from astro.transients.lightcurve import LightCurve
from astro.transients.reader import Reader
from astro.transients.tables import Table, invalid
from shared.errors import DataInvalid, Fault
from shared.pipeline import error_faults

if TYPE_CHECKING:
    from astropy.table import Table as AstropyTable

ALERT_SUFFIXES = (".avro",)


@dataclass
class Reading:
    """What was read, what is wrong with it, and what was taken for granted."""

    curves: list[LightCurve] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    """Of the whole table: its format, unit, time scale, rules applied."""

    def checked(self) -> list[LightCurve]:
        """The curves. Raises `DataInvalid` with every fault where one is an error."""
        if error_faults(self.faults):
            raise DataInvalid(self.faults)
        return self.curves


# ---------------------------------------------------------------- in memory


def read_frame(
    frame: pd.DataFrame,
    config: ReadConfig | None = None,
    metadata: pd.DataFrame | None = None,
    source: str = "frame",
) -> list[LightCurve]:
    """The curves of a long frame, one row an observation. Raises `DataInvalid`."""
    return _read(Table(frame), config or ReadConfig(), metadata, source).checked()


def read_text(text: str, config: ReadConfig | None = None, source: str = "text") -> list[LightCurve]:
    """The curves in the text of a CSV file. Raises `DataInvalid`."""
    config = config or ReadConfig()
    return _read(tables.of_text(text, source, text_columns(config)), config, None, source).checked()


def read_table(
    table: AstropyTable,
    config: ReadConfig | None = None,
    metadata: pd.DataFrame | None = None,
    source: str = "table",
) -> list[LightCurve]:
    """The curves of an astropy table, whose column units, times and ``meta`` count. Raises `DataInvalid`."""
    return _read(tables.of_astropy(table), config or ReadConfig(), metadata, source).checked()


def _read(table: Table, config: ReadConfig, metadata: pd.DataFrame | None, source: str) -> Reading:
    try:
        reader = Reader(table, config, metadata, source)
        curves = reader.read()
    except DataInvalid as err:
        return Reading(faults=[*table.faults, *err.faults])
    return Reading(curves, [*table.faults, *reader.faults], tuple(reader.notes))


# ---------------------------------------------------------------- files


def read_path(path: Path, config: ReadConfig | None = None) -> list[LightCurve]:
    """The curves in a file or in a folder's files, by name. Raises `DataInvalid` with every fault."""
    return read_all(path, config).checked()


def read_all(path: Path, config: ReadConfig | None = None) -> Reading:
    """What `read_path` read, with its faults and notes. Never raises for bad data."""
    out = Reading()
    try:
        for part in read_files(path, config):
            out.curves += part.curves
            out.faults += part.faults
            out.notes = tuple(dict.fromkeys((*out.notes, *part.notes)))
    except DataInvalid as err:
        out.faults += err.faults
    return out


def read_files(path: Path, config: ReadConfig | None = None) -> Iterator[Reading]:
    """File by file, so that a survey need not fit in memory; all alerts of a folder come together, first.

    An object of a later table that has the name of an earlier one is called ``file/name``. Raises `DataInvalid`
    when there is nothing to read.
    """
    config = config or ReadConfig()
    packets, others = files_in(Path(path), config)
    seen: set[str] = set()
    if packets:
        reading = read_alerts(packets, config)
        seen.update(curve.id for curve in reading.curves)
        yield reading
    for file in others:
        reading = _file(file, config)
        again = seen.intersection(curve.id for curve in reading.curves)
        if again:
            what = f"{len(again)} objects named as in an earlier file"
            reading.faults.append(
                Fault(file, what, "", f"called {stem(file)}/… in the output", severity="warning")
            )
            reading.curves = [
                replace(c, id=f"{stem(file)}/{c.id}") if c.id in again else c for c in reading.curves
            ]
        seen.update(curve.id for curve in reading.curves)
        yield reading


def files_in(path: Path, config: ReadConfig) -> tuple[list[Path], list[Path]]:
    """(alert files, tables of observations) at `path`, a file or a folder, by name."""
    if not path.is_dir():
        head = tables.first_bytes(path)
        return ([path], []) if head.startswith(tables.AVRO) else ([], [path])
    every = sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith("."))
    packets = [f for f in every if f.name.lower().endswith(ALERT_SUFFIXES)]
    given = [f for f in every if f.name.lower().endswith(tables.SUFFIXES)]
    beside = {name for f in given for name in surveys.metadata_names(f.name)}
    others = [f for f in given if f.name not in beside]
    if config.metadata is not None:
        others = [f for f in others if f.resolve() != config.metadata.resolve()]
    if not packets and not others:
        what = f"none of {len(every)} files is *{', *'.join((*tables.SUFFIXES, *ALERT_SUFFIXES))}"
        folders = any(f.is_dir() and not f.name.startswith(".") for f in path.iterdir())
        raise invalid(path, what, tables.WANTED, "give the folders in it" if folders else "check the path")
    return packets, others


def read_alerts(files: Sequence[Path], config: ReadConfig) -> Reading:
    """One curve an object of all alerts in `files`. Never raises for bad data: a damaged file is a fault and a curve
    that is unreadable."""
    batch = alerts.Batch(config)
    for file in files:
        batch.add_file(file)
    return Reading(batch.curves(), batch.faults, tuple(batch.notes))


def _file(path: Path, config: ReadConfig) -> Reading:
    try:
        texts = text_columns(config)
        table = tables.load(path, texts)
        beside = config.metadata or _metadata_beside(path, table, config)
        metadata = tables.load(beside, texts).frame if beside is not None else None
    except DataInvalid as err:
        return Reading(faults=err.faults)
    reading = _read(table, config, metadata, str(path))
    if beside is not None:
        reading.notes += (f"metadata: {beside.name}",)
    return reading


def _metadata_beside(path: Path, table: Table, config: ReadConfig) -> Path | None:
    names = layout_of(table.frame, config).metadata_names(path.name)
    return next((file for name in names if (file := path.with_name(name)).is_file()), None)


def stem(path: Path) -> str:
    """Its name without the suffix of a table."""
    known = next((s for s in tables.SUFFIXES if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(known)] or path.name
