"""Alerts of LSST, ELAsTiCC and ZTF, as Avro files or as records a broker has decoded, to light curves.

Fields are taken by name with an alias table, never by position, so any schema major reads as far as its names are
known; what is missing is listed, and the rest is read. Only the fields below are ever decoded: a packet's images stay
in the file, and a curve's `source` says which packet that is (``file#3``): `raw_alert` brings it whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from astro.transients import photometry
from astro.transients.avro import Schema, records
from astro.transients.config_read import ReadConfig
from astro.transients.history import DETECTION, FORCED, Packet, Points, curves, learn
from astro.transients.lightcurve import SOLAR_SYSTEM, UNREADABLE, ZERO_POINT, Floats, LightCurve
from astro.transients.points import SNR_RULE, counted
from shared.errors import Fault
from shared.pipeline import error_faults

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
NO_ERROR = -1.0
"""Of a redshift that came without one; `photometry.clean_redshift` takes it as absent."""
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

# ---------------------------------------------------------------- one record


def packet_of(record: Record, fallback: str, namespace: str = "") -> Packet:
    """`record` as a `Packet`, whatever is missing or wrong; `fallback` is the id of one that names no object."""
    try:
        out = _packet(record, fallback, namespace)
        set().union(*(part.band for part in out.points))  # what cannot be compared is no band
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as err:
        survey = "ztf" if isinstance(record, Mapping) and "candidate" in record else "lsst"
        notes = [f"cannot be read: {_line(err)}"]
        out = Packet(_named(record) or fallback, survey, notes=notes, status=UNREADABLE)
    return out


def _named(record: Any) -> str:
    """The object of an alert, whatever else is wrong with it; empty where it names none."""
    parts = (record.get("diaSource"), record.get("diaObject"), record) if isinstance(record, Mapping) else ()
    for part in parts:
        if isinstance(part, Mapping):
            for key in ("diaObjectId", "objectId"):
                if (name := part.get(key)) and name == name:  # NaN is no name
                    return str(name)
    return ""


def _packet(record: Record, fallback: str, namespace: str) -> Packet:
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
    if name := _named({"diaSource": source, "diaObject": about}):
        out.id = name
    elif source.get("ssObjectId"):
        out.id, out.status = f"ssObject {source['ssObjectId']}", SOLAR_SYSTEM
    else:
        out.notes.append("missing required fields: diaSource.diaObjectId")
    scale = 1.0 if elasticc else float(photometry.factor(31.4))
    _lsst_points(out, "prvDiaForcedSources", _listed(record, "prvDiaForcedSources"), scale, FORCED)
    _lsst_points(out, "prvDiaSources", _listed(record, "prvDiaSources"), scale, DETECTION)
    _lsst_points(out, "diaSource", [source], scale, DETECTION)
    name = next((n for n in LSST_FIELDS["midpointMjdTai"] if n in source), "")
    _dated(out, f"diaSource.{name}", source.get(name))
    for role, names in LSST_OBJECT.items():
        values = (float(about[n]) for n in names if about.get(n) is not None)
        value = next((each for each in values if each >= 0), None)  # −9 and NaN say that there is none
        if value is not None:
            out.about[role] = value
    if "redshift" in out.about:  # of one alert: an older one's error is another value's
        out.about.setdefault("redshift_error", NO_ERROR)
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
    gone = [row for row in rows if row.get("timeWithdrawnMjdTai") is not None]
    kept = [row for row in rows if row.get("timeWithdrawnMjdTai") is None] if gone else rows
    for some in (kept, gone):
        if some:
            time, band, flux, error = ([row.get(name) for row in some] for name in names.values())
            f, e = _floats(flux) * scale, _floats(error) * scale
            out.points.append(Points(_days(time), band, f, e, rank, some is gone))


def _listed(record: Record, name: str) -> list[Record]:
    """Empty where there is none; Parquet's lists come as arrays."""
    rows = record.get(name)
    return [] if rows is None else list(rows)


def _floats(values: list[Any]) -> Floats:
    out = np.array(values, dtype=float)  # None becomes NaN
    if out.ndim != 1:
        raise ValueError("a list where a number is wanted")
    return out


def _days(time: list[Any], zero: float = 0.0) -> Floats:
    """MJD, given from `zero`; NaN where that is no date of our time."""
    mjd = _floats(time) - zero
    return np.where(photometry.dated(mjd), mjd, np.nan)


def _dated(out: Packet, field: str, time: Any, zero: float = 0.0) -> None:
    """A packet's own time; where there is none, every other packet's is later."""
    found = float(_days([time], zero)[0])
    if not np.isnan(found):
        out.at = found
    elif time is not None and np.isfinite(time):
        wanted = "a Julian date" if zero else "an MJD"
        out.notes.append(f"cannot be a date: {field} {time:.10g}; {wanted} wanted")


def _ztf(record: Record, fallback: str) -> Packet:
    """Difference magnitudes, negative where isdiffpos says so; DN of forced photometry by each image's zero point."""
    note = f"magnitudes taken as AB, to flux at {ZERO_POINT}; {SNR_RULE}"
    out = Packet(str(record.get("objectId") or fallback), "ztf", common=(note,))
    if not record.get("objectId"):
        out.notes.append("missing required fields: objectId")
    if forced := _listed(record, "fp_hists"):
        jd, fid, flux, error, zero = ([row.get(name) for row in forced] for name in _ZTF_FORCED)
        f = _floats(flux)
        scale = np.where(f > -99_998, photometry.factor(_floats(zero)), np.nan)
        out.points.append(
            Points(_days(jd, photometry.JD_OFFSET), fid, f * scale, _floats(error) * scale, FORCED)
        )
    candidate = record.get("candidate") or {}
    _dated(out, "candidate.jd", candidate.get("jd"), photometry.JD_OFFSET)
    rows = _ztf_candidates(out, (*_listed(record, "prv_candidates"), candidate))
    if rows:
        jd, fid, magnitude, error = ([row[name] for row in rows] for name in _ZTF_FIELDS[:4])
        f, e = photometry.from_magnitudes(_floats(magnitude), _floats(error))
        negative = [str(row.get("isdiffpos", "t")).lower() in ("f", "0", "false") for row in rows]
        out.points.append(
            Points(_days(jd, photometry.JD_OFFSET), fid, np.where(negative, -f, f), e, DETECTION)
        )
    return out


def _ztf_candidates(out: Packet, rows: Sequence[Record]) -> list[Record]:
    """Those with a magnitude; what the others lack goes to the packet's notes."""
    needed, whole = set(_ZTF_FIELDS[:4]), []
    for row in rows:
        if needed <= row.keys():
            whole.append(row)
            continue
        missing = [f"candidate.{name}" for name in _ZTF_FIELDS[:4] if name not in row]
        note = f"missing required fields: {', '.join(missing)}"
        if note not in out.notes:
            out.notes.append(note)
    kept = [row for row in whole if row["magpsf"] is not None]
    if len(kept) < len(whole):
        out.notes.append(f"{counted(len(whole) - len(kept), 'upper limit')} left out")
    return kept


# ---------------------------------------------------------------- many


def read_alert(
    record: Record, config: ReadConfig | None = None, source: str = "alert", namespace: str = ""
) -> LightCurve:
    """The curve of one alert that a broker has decoded: all points the packet holds.

    `namespace` is its schema's (``elasticc.v0_9_1``): ELAsTiCC's fluxes have another zero point than LSST's.
    """
    pair = (packet_of(record, source, namespace), source)
    return curves(learn([pair], None), config or ReadConfig())[0]


class Batch:
    """All alerts of some files, one curve an object: `add_file` each, then `curves`."""

    def __init__(self, config: ReadConfig) -> None:
        self.config = config
        self.packets: list[tuple[Packet, str]] = []
        self.faults: list[Fault] = []
        self.notes: list[str] = []
        self._schema = Schema()

    def add_file(self, path: Path) -> None:
        """A damaged file's missing part becomes an object of its own, so that it does not vanish."""
        faults: list[Fault] = []
        read = list(packets_in(path, str(path), path.stem, faults, self.notes, self._schema))
        self.packets += read
        for fault in error_faults(faults):
            lost = Packet(f"{path.stem}#{len(read)}", "lsst", notes=[fault.found], status=UNREADABLE)
            self.packets.append((lost, str(path)))
        self.faults += faults

    def curves(self) -> list[LightCurve]:
        return curves(learn(self.packets, {}), self.config)


# ---------------------------------------------------------------- Avro


def packets_in(
    file: Path | bytes, name: str, stem: str, faults: list[Fault], notes: list[str], schema: Schema
) -> Iterator[tuple[Packet, str]]:
    """(packet, ``name#index``) of an Avro file, or its content; a damaged one ends early, with a fault.

    A packet that names no object gets the id ``stem#index``, or none without a `stem`. `schema`: of the file before.
    """
    import fastavro

    index = 0
    try:
        with open(file, "rb") if isinstance(file, Path) else BytesIO(file) as opened:
            found = records(opened, schema, _pruned)
            namespace = _namespace(schema.written)
            _say_schema(name, namespace, faults, notes)
            for record in found:
                source = f"{name}#{index}"
                packet = packet_of(record, f"{stem}#{index}" if stem else "", namespace)
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
        zlib.error,
        fastavro.schema.SchemaParseException,
    ) as err:
        what = f"damaged after {counted(index, 'alert')} ({_line(err)})"
        faults.append(Fault(name, what, "a whole Avro file", "copy it again"))


def raw_alert(source: str) -> dict[str, Any]:
    """The whole packet, images and all, that a curve's `source` (``file#3``) names."""
    import fastavro

    path, _, index = source.rpartition("#")
    with open(path, "rb") as file:
        return cast(dict[str, Any], next(islice(iter(fastavro.reader(file)), int(index), None)))


def _line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0][:200]


def _namespace(schema: Any) -> str:
    if not isinstance(schema, dict):
        return ""
    name = str(schema.get("name", ""))
    return str(schema.get("namespace") or name.rpartition(".")[0])


def _say_schema(name: str, namespace: str, faults: list[Fault], notes: list[str]) -> None:
    note = f"format: alerts, schema {namespace or 'without a namespace'}"
    if note not in notes:
        notes.append(note)
    digits = namespace.partition("lsst.v")[2].partition("_")[0]
    if digits.isdigit() and int(digits) not in KNOWN_MAJORS:
        found = f"schema major {digits}"
        mend = "fields were taken by name; look at the notes of the curves"
        faults.append(Fault(name, found, f"one up to {KNOWN_MAJORS[-1]}", mend, severity="warning"))


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
