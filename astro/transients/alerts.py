"""Alerts of LSST, ELAsTiCC and ZTF, as Avro files or as records a broker has decoded, to light curves.

Fields are taken by name with an alias table, never by position, so any schema major reads as far as its names are
known; what is missing is listed, and the rest is read. Only the fields below are ever decoded: a packet's images stay
in the file, and a curve's `source` says which packet that is (``file#3``): `raw_alert` brings it whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from astro.transients import photometry, surveys
from astro.transients.columns import banded
from astro.transients.config_read import ReadConfig
from astro.transients.lightcurve import SOLAR_SYSTEM, UNREADABLE, ZERO_POINT, LightCurve
from astro.transients.points import SNR_RULE, Objects, Rows, counted, curves_of
from shared.errors import Fault

Record = Mapping[str, Any]
LSST_FIELDS: Mapping[str, tuple[str, ...]] = {
    "midpointMjdTai": ("midpointMjdTai", "midPointTai", "midPointMjdTai"),
    "band": ("band", "filterName"),
    "psfFlux": ("psfFlux", "psFlux"),
    "psfFluxErr": ("psfFluxErr", "psFluxErr"),
}
"""Required field, as schema 11 calls it → names in order of preference (schemas 3 to 11, ELAsTiCC 0.9)."""
LSST_OBJECT: Mapping[str, tuple[str, ...]] = {
    "redshift": ("hostgal_zphot", "z_final"),
    "redshift_error": ("hostgal_zphot_err", "z_final_err"),
    "ebv": ("mwebv",),
}
"""Of ELAsTiCC's diaObject only: LSST's alerts have no host redshift."""
KNOWN_MAJORS = range(1, 12)
_IDS = ("diaObjectId", "ssObjectId", "timeWithdrawnMjdTai")
_ZTF_FIELDS = ("jd", "fid", "magpsf", "sigmapsf", "isdiffpos", "diffmaglim")
_ZTF_FORCED = ("jd", "fid", "forcediffimflux", "forcediffimfluxunc", "magzpsci")
_WANTED: Mapping[str, frozenset[str]] = {
    "alert": frozenset(
        (
            *("diaSource", "prvDiaSources", "prvDiaForcedSources", "diaObject", "diaSourceId", "alertId"),
            *("objectId", "candidate", "prv_candidates", "fp_hists", "candid"),
        )
    ),
    "diaSource": frozenset((*_IDS, *(name for names in LSST_FIELDS.values() for name in names))),
    "diaObject": frozenset(("diaObjectId", *(name for names in LSST_OBJECT.values() for name in names))),
    "candidate": frozenset(_ZTF_FIELDS),
    "fp_hist": frozenset(_ZTF_FORCED),
}
_SAME_AS = {"diaForcedSource": "diaSource", "prv_candidate": "candidate"}
_DETECTION, _FORCED = 1, 0


@dataclass
class Packet:
    """One alert: its object, and per point (time MJD, band, flux, error, detected or NaN, rank)."""

    id: str
    survey: str
    points: list[tuple[Any, ...]] = field(default_factory=list)
    about: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    status: str | None = None
    common: tuple[str, ...] = ()


# ---------------------------------------------------------------- one record


def packet_of(record: Record, fallback: str, namespace: str = "") -> Packet:
    """`record` as a `Packet`, whatever is missing; `fallback` is the id of one that names no object."""
    if "candidate" in record:
        out = _ztf(record, fallback)
    elif "diaSource" in record or "diaObject" in record or "prvDiaSources" in record:
        out = _lsst(record, fallback, namespace)
    else:
        out = Packet(fallback, "lsst", notes=["missing required fields: diaSource (LSST) or candidate (ZTF)"])
        out.status = UNREADABLE
    if not out.points and out.status is None and any(n.startswith("missing") for n in out.notes):
        out.status = UNREADABLE
    return out


def _lsst(record: Record, fallback: str, namespace: str) -> Packet:
    source = record.get("diaSource") or {}
    about = record.get("diaObject") or {}
    elasticc = namespace.startswith("elasticc")
    unit = "zero point 27.5 (ELAsTiCC)" if elasticc else "nJy"
    out = Packet(fallback, "lsst", common=(f"fluxes from {unit} to {ZERO_POINT}; {SNR_RULE}",))
    name = source.get("diaObjectId") or about.get("diaObjectId")
    if name:
        out.id = str(name)
    elif source.get("ssObjectId"):
        out.id, out.status = f"ssObject {source['ssObjectId']}", SOLAR_SYSTEM
    else:
        out.notes.append("missing required fields: diaSource.diaObjectId")
    scale = 1.0 if elasticc else float(photometry.factor(31.4))
    _lsst_points(out, "prvDiaForcedSources", record.get("prvDiaForcedSources") or (), scale, _FORCED)
    _lsst_points(out, "prvDiaSources", record.get("prvDiaSources") or (), scale, _DETECTION)
    _lsst_points(out, "diaSource", [source], scale, _DETECTION)
    for role, names in LSST_OBJECT.items():
        value = next((about[n] for n in names if about.get(n) is not None), None)
        if value is not None:
            out.about[role] = float(value)
    return out


def _lsst_points(out: Packet, where: str, rows: Sequence[Record], scale: float, rank: int) -> None:
    if not rows:
        return
    first = rows[0]
    names = {want: next((n for n in known if n in first), "") for want, known in LSST_FIELDS.items()}
    missing = [f"{where}.{want}" for want, name in names.items() if not name]
    if missing:
        out.notes.append(f"missing required fields: {', '.join(missing)}")
        return
    time, band, flux, error = names.values()
    seen = 1.0 if rank == _DETECTION else np.nan
    withdrawn = 0
    for row in rows:
        if row.get("timeWithdrawnMjdTai") is not None:
            withdrawn += 1
            continue
        f, e = row.get(flux), row.get(error)
        point = (f if f is None else f * scale, e if e is None else e * scale, seen, rank)
        out.points.append((row.get(time), row.get(band), *point))
    if withdrawn:
        out.notes.append(f"{counted(withdrawn, 'point')} withdrawn by the survey left out")


def _ztf(record: Record, fallback: str) -> Packet:
    """Difference magnitudes, negative where isdiffpos says so; DN of forced photometry by each image's zero point."""
    note = f"magnitudes taken as AB, to flux at {ZERO_POINT}; {SNR_RULE}"
    out = Packet(str(record.get("objectId") or fallback), "ztf", common=(note,))
    if not record.get("objectId"):
        out.notes.append("missing required fields: objectId")
    limits = 0
    for row in record.get("fp_hists") or ():
        flux, error, zero = (row.get(n) for n in _ZTF_FORCED[2:])
        good = None not in (flux, error, zero) and flux > -99_998
        scale = float(photometry.factor(zero)) if good else np.nan
        point = (flux * scale, error * scale) if good else (None, None)
        out.points.append((_mjd(row.get("jd")), row.get("fid"), *point, np.nan, _FORCED))
    for row in (*(record.get("prv_candidates") or ()), record.get("candidate") or {}):
        missing = [f"candidate.{n}" for n in _ZTF_FIELDS[:4] if n not in row]
        if missing:
            out.notes.append(f"missing required fields: {', '.join(missing)}")
            continue
        if row["magpsf"] is None:
            limits += 1
            continue
        sign = -1.0 if str(row.get("isdiffpos", "t")).lower() in ("f", "0", "false") else 1.0
        magnitude, error = (np.array(row[n], dtype=float) for n in ("magpsf", "sigmapsf"))
        f, e = photometry.from_magnitudes(magnitude, error)
        out.points.append((_mjd(row["jd"]), row["fid"], sign * float(f), float(e), 1.0, _DETECTION))
    if limits:
        out.notes.append(f"{counted(limits, 'upper limit')} left out")
    return out


def _mjd(jd: float | None) -> float | None:
    return None if jd is None else jd - photometry.JD_OFFSET


# ---------------------------------------------------------------- many


def curves_from(packets: Sequence[tuple[Packet, str]], config: ReadConfig, merge: bool) -> list[LightCurve]:
    """One curve a (packet, source), in order; with `merge` one an object, of all points of its packets."""
    out: list[LightCurve | None] = []
    groups: dict[str, tuple[list[int], list[tuple[int, Packet, str]]]] = {}
    seen: dict[tuple[str, str], int] = {}
    for packet, source in packets:
        key = (packet.survey, packet.id)
        index = seen.setdefault(key, len(out)) if merge else len(out)
        if index == len(out):
            out.append(None)
            groups.setdefault(packet.survey, ([], []))[0].append(index)
        groups[packet.survey][1].append((index, packet, source))
    for survey, (places, members) in groups.items():
        local = {index: code for code, index in enumerate(places)}
        some = [(local[index], packet, source) for index, packet, source in members]
        for index, curve in zip(places, _survey_curves(survey, len(places), some, config)):
            out[index] = curve
    return [curve for curve in out if curve is not None]


def _survey_curves(
    survey: str, count: int, members: Iterable[tuple[int, Packet, str]], config: ReadConfig
) -> list[LightCurve]:
    objects = Objects.named([""] * count, "")
    code: list[int] = []
    points: list[tuple[Any, ...]] = []
    common: dict[str, None] = {}
    for index, packet, source in members:
        objects.ids[index] = packet.id
        objects.source[index] = objects.source[index] or source
        objects.notes[index] += [note for note in packet.notes if note not in objects.notes[index]]
        common |= dict.fromkeys(packet.common)
        for role, value in packet.about.items():
            getattr(objects, role)[index] = value
        if packet.status is not None:
            objects.status[index] = packet.status
        elif objects.status.get(index) == UNREADABLE and packet.points:
            del objects.status[index]
        code += [index] * len(packet.points)
        points += packet.points
    z, error, bad = photometry.clean_redshift(objects.redshift, objects.redshift_error, False)
    for place in np.flatnonzero(bad):
        objects.notes[place].append(f"redshift {objects.redshift[place]:g} taken as absent")
    objects.redshift, objects.redshift_error = z, error
    rows = _rows(code, points, survey)
    return curves_of(rows, objects, survey, config, tuple(common))


def _rows(code: list[int], points: list[tuple[Any, ...]], survey: str) -> Rows:
    time, band, flux, error, detected, rank = zip(*points) if points else ((), (), (), (), (), ())
    values = [value for value in dict.fromkeys(band) if value is not None]
    place = {value: index for index, value in enumerate(values)}
    index = np.array([place.get(value, -1) for value in band], dtype=np.int64)
    bands, unknown = banded(index, values, survey, surveys.FILTER_IDS if survey == "ztf" else {})
    return Rows(
        code=np.array(code, dtype=np.int64),
        time=np.array(time, dtype=float),  # None becomes NaN
        band=bands,
        flux=np.array(flux, dtype=float),
        error=np.array(error, dtype=float),
        detected=np.array(detected, dtype=float),
        rank=np.array(rank, dtype=np.int64),
        unknown=unknown,
    )


def read_alert(
    record: Record, config: ReadConfig | None = None, source: str = "alert", namespace: str = ""
) -> LightCurve:
    """The curve of one alert that a broker has decoded: all points the packet holds.

    `namespace` is its schema's (``elasticc.v0_9_1``): ELAsTiCC's fluxes have another zero point than LSST's.
    """
    pair = (packet_of(record, source, namespace), source)
    return curves_from([pair], config or ReadConfig(), merge=False)[0]


def iter_alerts(
    path: Path, config: ReadConfig | None = None, faults: list[Fault] | None = None, batch: int = 512
) -> Iterator[LightCurve]:
    """One curve an alert, in the file's order, `batch` at a time; what stops the file early goes to `faults`."""
    group: list[tuple[Packet, str]] = []
    for pair in _packets(path, [] if faults is None else faults, []):
        group.append(pair)
        if len(group) == batch:
            yield from curves_from(group, config or ReadConfig(), merge=False)
            group = []
    yield from curves_from(group, config or ReadConfig(), merge=False)


class Batch:
    """All alerts of some files, one curve an object: `add_file` each, then `curves`."""

    def __init__(self, config: ReadConfig) -> None:
        self.config = config
        self.packets: list[tuple[Packet, str]] = []
        self.faults: list[Fault] = []
        self.notes: list[str] = []

    def add_file(self, path: Path) -> None:
        self.packets += _packets(path, self.faults, self.notes)

    def curves(self) -> list[LightCurve]:
        return curves_from(self.packets, self.config, merge=True)


# ---------------------------------------------------------------- Avro


def _packets(path: Path, faults: list[Fault], notes: list[str]) -> Iterator[tuple[Packet, str]]:
    """(packet, ``file#index``) of an Avro file; a damaged one ends early, with a fault."""
    import fastavro

    index = 0
    try:
        with open(path, "rb") as file:
            written = fastavro.reader(file).writer_schema
            namespace = _namespace(written)
            _say_schema(path, namespace, faults, notes)
            file.seek(0)
            records: Any = fastavro.reader(file, reader_schema=_pruned(written))
            for record in records:
                source = f"{path}#{index}"
                packet = packet_of(record, f"{path.stem}#{index}", namespace)
                if packet.status == UNREADABLE:
                    packet.notes.append(f"raw packet: {source}")
                yield packet, source
                index += 1
    except (
        ValueError,
        EOFError,
        OSError,
        KeyError,
        IndexError,
        TypeError,
        fastavro.schema.SchemaParseException,
    ) as err:
        said = (str(err).splitlines() or [type(err).__name__])[0][:200]
        found = f"damaged after {index} alerts ({said})"
        faults.append(Fault(path, found, "a whole Avro file", "copy it again"))


def raw_alert(source: str) -> dict[str, Any]:
    """The whole packet, images and all, that a curve's `source` (``file#3``) names."""
    import fastavro

    path, _, index = source.rpartition("#")
    with open(path, "rb") as file:
        return cast(dict[str, Any], next(islice(iter(fastavro.reader(file)), int(index), None)))


def _namespace(schema: Any) -> str:
    if not isinstance(schema, dict):
        return ""
    name = str(schema.get("name", ""))
    return str(schema.get("namespace") or name.rpartition(".")[0])


def _say_schema(path: Path, namespace: str, faults: list[Fault], notes: list[str]) -> None:
    note = f"format: alerts, schema {namespace or 'without a namespace'}"
    if note not in notes:
        notes.append(note)
    digits = namespace.partition("lsst.v")[2].partition("_")[0]
    if digits.isdigit() and int(digits) not in KNOWN_MAJORS:
        found = f"schema major {digits}"
        mend = "fields were taken by name; look at the notes of the curves"
        faults.append(Fault(path, found, f"one up to {KNOWN_MAJORS[-1]}", mend, severity="warning"))


def _pruned(schema: Any, kind: str | None = None) -> Any:
    """`schema` with only the fields that are read, so that the decoder skips the rest (images above all)."""
    if isinstance(schema, list):
        return [_pruned(part, kind) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") == "array":
        return {**schema, "items": _pruned(schema["items"], kind)}
    if schema.get("type") != "record":
        return schema
    name = str(schema["name"]).rpartition(".")[2]
    wanted = _WANTED.get("alert" if kind is None else _SAME_AS.get(name, name))
    if wanted is None:
        return schema
    fields = [{**f, "type": _pruned(f["type"], f["name"])} for f in schema["fields"] if f["name"] in wanted]
    return {**schema, "fields": fields} if fields else schema
