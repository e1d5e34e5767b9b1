"""What all alerts of an object have said, merged: a folder of them at once, or one after another as they are made.

An alert repeats its object's past, surveys measure forced photometry anew, and withdraw sources. Of one measurement
(object, detection or forced photometry, time, band) the alert whose own observation is the latest counts, also where it
withdraws it; several that are equally late are all kept, and count as a table's duplicates do. That makes merging
associative, commutative and idempotent: no order, no chunks and no repeated delivery of a set of alerts changes what is
known after it (spec sections 7.8 and 8). A value that cannot be used (null, error ≤ 0, unknown band) replaces none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from astro.transients import photometry, surveys
from astro.transients.columns import banded
from astro.transients.config_read import ReadConfig
from astro.transients.lightcurve import UNREADABLE, Floats, LightCurve
from astro.transients.points import Ints, Objects, Rows, curves_of, note, usable

DETECTION, FORCED = 1, 0
"""Ranks of a measurement."""
NEVER = -math.inf
Key = tuple[str, str]
"""(survey, id) of an object."""
POINT = np.dtype(
    [
        *((name, "f8") for name in ("time", "flux", "error", "version")),
        *(("band", "i1"), ("rank", "i1"), ("gone", "?")),
    ]
)
"""A usable measurement: MJD, flux at `ZERO_POINT`, 1 σ, MJD of the alert that said so, index of the survey's band,
`DETECTION` or `FORCED`, whether it is withdrawn."""


class Points(NamedTuple):
    """One list of a packet: (N,) each, NaN where there is no value."""

    time: Floats
    """MJD"""
    band: list[Any]
    """As delivered"""
    flux: Floats
    """At `ZERO_POINT`"""
    error: Floats
    rank: int
    """`DETECTION` or `FORCED`"""
    gone: bool = False
    """Withdrawn by the survey; flux and error do not matter."""


@dataclass(slots=True)
class Packet:
    """One alert: its object, and what it says of it."""

    id: str
    survey: str
    points: list[Points] = field(default_factory=list)
    """None of them empty"""
    about: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    status: str | None = None
    common: tuple[str, ...] = ()
    at: float = NEVER
    """MJD of the observation that made it"""


@dataclass(slots=True)
class History:
    """One object."""

    id: str
    survey: str
    source: str = ""
    """Of its first packet"""
    points: NDArray[Any] = field(default_factory=lambda: np.empty(0, POINT))
    """(N,) of `POINT`, by time"""
    about: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Role → (MJD of the alert that said so, value)"""
    status: str | None = UNREADABLE
    """Unreadable until one packet can be read"""
    last: float = NEVER
    """MJD of its latest alert"""
    common: tuple[str, ...] = ()
    """What is taken for granted of its packets"""
    notes: list[str] = field(default_factory=list)
    """On the packets learned"""

    def hear(self, packet: Packet) -> None:
        """All but its points."""
        self.last = max(self.last, packet.at)
        if self.status == UNREADABLE:
            self.status = packet.status
        for role, value in packet.about.items():
            if not math.isnan(value):
                self.about[role] = max(self.about.get(role, (NEVER, NEVER)), (packet.at, value))
        self.common = packet.common or self.common
        self.notes += [text for text in packet.notes if text not in self.notes]


# ---------------------------------------------------------------- merging


def learn(packets: Iterable[tuple[Packet, str]], known: dict[Key, History] | None) -> list[History]:
    """The histories of the (packet, source) pairs' objects, in order of first mention.

    Those in `known` are continued, new ones added to it; with None every packet is an object of its own.
    """
    touched: dict[Any, History] = {}
    said: dict[str, list[tuple[History, Packet]]] = {}
    for number, (packet, source) in enumerate(packets):
        key = (packet.survey, packet.id)
        history = None if known is None else known.get(key)
        if history is None:
            history = History(packet.id, packet.survey, source)
            if known is not None:
                known[key] = history
        touched[number if known is None else key] = history
        history.hear(packet)
        said.setdefault(packet.survey, []).append((history, packet))
    for survey, some in said.items():
        _merge([each for each in touched.values() if each.survey == survey], some, survey)
    return list(touched.values())


def _merge(histories: list[History], said: list[tuple[History, Packet]], survey: str) -> None:
    place = {id(history): index for index, history in enumerate(histories)}
    objects = Objects.named([history.id for history in histories], "")
    objects.notes = [history.notes for history in histories]
    rows, version, gone = _rows([(place[id(history)], packet) for history, packet in said], survey)
    fine = usable(rows, objects, survey)
    new = np.empty(len(fine), POINT)
    values = (rows.time, rows.flux, rows.error, version, rows.band, rows.rank, gone)
    for name, value in zip(POINT.names or (), values):
        new[name] = value
    sizes = [len(history.points) for history in histories]
    code = np.concatenate([np.repeat(np.arange(len(histories)), sizes), rows.code[fine]])
    points = np.concatenate([*(history.points for history in histories), new[fine]])
    code, points = _latest(code, points, objects)
    edges = np.searchsorted(code, np.arange(len(histories) + 1))
    for index, history in enumerate(histories):
        history.points = points[edges[index] : edges[index + 1]].copy()


def _latest(code: Ints, points: NDArray[Any], objects: Objects) -> tuple[Ints, NDArray[Any]]:
    """Of each measurement what the latest alert said, by object, time and band; what is left out is noted."""
    p = points
    order = np.lexsort(
        (p["error"], p["flux"], p["gone"], p["version"], p["rank"], p["band"], p["time"], code)
    )
    code, p = code[order], p[order]
    if not len(p):
        return code, p
    keys = (code, p["time"], p["band"], p["rank"])
    same = np.logical_and.reduce([key[1:] == key[:-1] for key in keys])
    end = np.append(np.flatnonzero(~same), len(p) - 1)
    last = np.repeat(end, np.diff(end, prepend=-1))  # of each one's measurement
    equal = (p["flux"] == p["flux"][last]) & (p["error"] == p["error"][last])
    newest = p["version"] == p["version"][last]
    copies = [p[name][1:] == p[name][:-1] for name in ("flux", "error", "version")]
    again = np.append(np.logical_and.reduce([same, *copies]), False)
    keep = np.where(p["gone"][last], np.arange(len(p)) == last, newest & ~again)
    there = ~p["gone"][last]
    note(objects, code[p["gone"] & keep], "withdrawn by the survey left out")
    note(objects, code[there & ~keep & (equal | again)], "delivered twice left out")
    note(objects, code[there & ~keep & ~equal & ~again], "replaced by those of a later alert")
    return code[keep], p[keep]


def _rows(said: Sequence[tuple[int, Packet]], survey: str) -> tuple[Rows, Floats, NDArray[np.bool_]]:
    """All points of (object, packet) pairs, the version of each, and whether it is withdrawn."""
    parts = [(index, packet.at, part) for index, packet in said for part in packet.points]
    sizes = [len(part.band) for _, _, part in parts]
    time, flux, error = (
        np.concatenate([np.empty(0), *(getattr(part, name) for _, _, part in parts)])
        for name in ("time", "flux", "error")
    )
    band = [value for _, _, part in parts for value in part.band]
    values = [value for value in dict.fromkeys(band) if value is not None]
    place = {value: index for index, value in enumerate(values)}
    index = np.array([place.get(value, -1) for value in band], dtype=np.int64)
    bands, unknown = banded(index, values, survey, surveys.FILTER_IDS if survey == "ztf" else {})
    code = np.repeat(np.array([index for index, _, _ in parts], np.int64), sizes)
    version = np.repeat(np.array([at for _, at, _ in parts], np.float64), sizes)
    rank = np.repeat(np.array([part.rank for _, _, part in parts], np.int64), sizes)
    gone = np.repeat(np.array([part.gone for _, _, part in parts], np.bool_), sizes)
    flux, error = np.where(gone, 0.0, flux), np.where(gone, 1.0, error)
    return Rows(code, time, bands, flux, error, None, rank, unknown), version, gone


# ---------------------------------------------------------------- out


def curves(histories: Sequence[History], config: ReadConfig) -> list[LightCurve]:
    """One light curve an object, in order."""
    out: dict[int, LightCurve] = {}
    for survey in dict.fromkeys(history.survey for history in histories):
        places = [index for index, history in enumerate(histories) if history.survey == survey]
        out |= zip(places, _survey_curves([histories[index] for index in places], survey, config))
    return [out[index] for index in range(len(histories))]


def _survey_curves(histories: Sequence[History], survey: str, config: ReadConfig) -> list[LightCurve]:
    objects = Objects.named([history.id for history in histories], "")
    for index, history in enumerate(histories):
        objects.source[index] = history.source
        objects.notes[index] += history.notes
        for role, (_, value) in history.about.items():
            getattr(objects, role)[index] = value
        if history.status is not None:
            objects.status[index] = history.status
    z, error, bad = photometry.clean_redshift(objects.redshift, objects.redshift_error, False)
    for place in np.flatnonzero(bad):
        objects.notes[place].append(f"redshift {objects.redshift[place]:g} taken as absent")
    objects.redshift, objects.redshift_error = z, error
    code = np.repeat(np.arange(len(histories)), [len(history.points) for history in histories])
    points = np.concatenate([np.empty(0, POINT), *(history.points for history in histories)])
    code, points = code[~points["gone"]], points[~points["gone"]]
    rank = points["rank"].astype(np.int64)
    # What is no detection by the survey may be one by its signal to noise.
    detected = np.where(rank == DETECTION, 1.0, np.nan)
    time, flux, error = (np.ascontiguousarray(points[name]) for name in ("time", "flux", "error"))
    rows = Rows(code, time, points["band"].astype(np.int64), flux, error, detected, rank)
    found = curves_of(rows, objects, survey, config)
    return [replace(one, notes=(*each.common, *one.notes)) for one, each in zip(found, histories)]
