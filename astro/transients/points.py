"""Observations of many objects, as delivered, to one clean light curve an object (spec section 8).

Works on whole columns: rows are sorted once, whatever is wrong with one is counted in its object's notes, and every
object comes out, in order, with a status. No row order and no second delivery changes a curve.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from astro.transients import photometry
from astro.transients.config_read import ReadConfig
from astro.transients.lightcurve import WAVELENGTHS, Floats, LightCurve, status_of

DETECTED_SNR = 5.0
LARGEST = 1e16
"""A flux beyond it is no measurement (the full Moon's is 1e16); single precision has room for sums of its square."""
SNR_RULE = f"detected = |flux| > {DETECTED_SNR:g} errors, where no detection flag says so"
Ints = NDArray[np.int64]


@dataclass
class Rows:
    """N observations in the order of delivery."""

    code: Ints
    """(N,) index of the object"""
    time: Floats
    """(N,) MJD"""
    band: Ints
    """(N,) index into the survey's bands; −1 − k for `unknown[k]`"""
    flux: Floats
    """(N,) at `ZERO_POINT`; NaN = absent"""
    error: Floats
    detected: Floats | None = None
    """(N,) 0, 1, NaN = not said; None = said nowhere"""
    rank: Ints | None = None
    """(N,) of two rows at one time in one band the higher rank wins, as a detection over forced photometry"""
    unknown: tuple[str, ...] = ()
    """Band names that the survey does not have."""


@dataclass
class Objects:
    """What is known of each of M objects besides its observations; floats are (M,), NaN = unknown."""

    ids: list[str]
    redshift: Floats
    redshift_error: Floats
    ebv: Floats
    label: list[str | None]
    source: list[str]
    notes: list[list[str]] = field(default_factory=list)
    status: dict[int, str] = field(default_factory=dict)
    """Of objects that have one already; it stands where no curve can be used."""

    def __post_init__(self) -> None:
        self.notes = self.notes or [[] for _ in self.ids]

    @classmethod
    def named(cls, ids: list[str], source: str) -> Objects:
        """Objects of which nothing but the name is known."""
        blank = np.full(len(ids), np.nan)
        return cls(ids, blank, blank.copy(), blank.copy(), [None] * len(ids), [source] * len(ids))


def curves_of(
    rows: Rows, objects: Objects, survey: str, config: ReadConfig, common: tuple[str, ...] = ()
) -> list[LightCurve]:
    """One light curve an object, in order. `common` notes are every curve's; `rows` is not changed."""
    rows = _dusted(rows, objects, survey) if config.dust else rows
    fine = usable(rows, objects, survey)
    rows = rows if fine.all() else _taken(rows, fine)
    _note_unsorted(rows, objects)
    order = np.lexsort((rows.band, rows.time, rows.code))
    rows = _deduplicated(_taken(rows, order), objects, config.duplicates)
    return _split(rows, objects, survey, common)


def _taken(rows: Rows, index: NDArray[np.int64] | NDArray[np.bool_]) -> Rows:
    detected = None if rows.detected is None else rows.detected[index]
    rank = None if rows.rank is None else rows.rank[index]
    code, time, band = rows.code[index], rows.time[index], rows.band[index]
    return Rows(code, time, band, rows.flux[index], rows.error[index], detected, rank, rows.unknown)


def note(objects: Objects, code: Ints, text: str) -> None:
    """Add `text` with the number of rows to each object in `code`."""
    counts = np.bincount(code, minlength=len(objects.ids))
    for index in np.flatnonzero(counts):
        objects.notes[index].append(f"{counted(int(counts[index]), 'point')} {text}")


def counted(n: int, what: str) -> str:
    """1 point, 2 points."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


# ---------------------------------------------------------------- row by row


def _dusted(rows: Rows, objects: Objects, survey: str) -> Rows:
    table = photometry.dust_factor(survey, tuple(WAVELENGTHS[survey]), objects.ebv)
    known = rows.band >= 0
    scale = np.ones(len(rows.flux))
    scale[known] = table[rows.code[known], rows.band[known]]
    for index in np.flatnonzero(~np.isfinite(objects.ebv)):
        objects.notes[index].append("no E(B−V): not corrected for dust")
    for index in np.flatnonzero(np.isfinite(objects.ebv)):
        objects.notes[index].append(f"corrected for dust, E(B−V) = {objects.ebv[index]:.4g}")
    return replace(rows, flux=rows.flux * scale, error=rows.error * scale)


def usable(rows: Rows, objects: Objects, survey: str) -> NDArray[np.bool_]:
    """(N,) rows with a band, a time, a flux and a positive error; the others are noted, each once."""
    accepted = f"(accepted: {', '.join(WAVELENGTHS[survey])})"
    keep = rows.band >= 0
    for index, name in enumerate(rows.unknown):
        note(objects, rows.code[rows.band == -1 - index], f"in unknown band {name} dropped {accepted}")
    with np.errstate(invalid="ignore"):
        checks = (
            ("without a date dropped", np.isfinite(rows.time)),
            ("with flux NaN, null or beyond 1e16 dropped", np.abs(rows.flux) < LARGEST),
            ("with error ≤ 0, NaN or beyond 1e16 dropped", (rows.error > 0) & (rows.error < LARGEST)),
        )
    for text, fine in checks:
        if not fine.all():
            note(objects, rows.code[keep & ~fine], text)
        keep &= fine
    return keep


def _note_unsorted(rows: Rows, objects: Objects) -> None:
    order = np.argsort(rows.code, kind="stable")
    code, time = rows.code[order], rows.time[order]
    back = (code[1:] == code[:-1]) & (time[1:] < time[:-1])
    for index in np.unique(code[1:][back]):
        objects.notes[index].append("times were not in order: sorted")


# ---------------------------------------------------------------- one row a band and time


def _deduplicated(rows: Rows, objects: Objects, how: str) -> Rows:
    """`rows`, sorted, with one row for each object, time and band."""
    same = (np.diff(rows.code) == 0) & (np.diff(rows.time) == 0) & (np.diff(rows.band) == 0)
    if not same.any():
        return rows
    group = np.concatenate([[0], np.cumsum(~same)])
    keep = np.ones(len(group), bool)
    if rows.rank is not None:
        best = np.maximum.reduceat(rows.rank, _starts(group))
        keep = rows.rank == best[group]
        note(objects, rows.code[~keep], "of forced photometry at a detection's own time left out")
    rows, group = _taken(rows, keep), group[keep]
    if how == "merge":
        order = np.lexsort((rows.error, rows.flux, group))
        rows, group = _taken(rows, order), group[order]
    copy = np.concatenate(
        [[False], (np.diff(group) == 0) & (np.diff(rows.flux) == 0) & (np.diff(rows.error) == 0)]
    )
    if how == "last":  # of equal rows the later one is kept
        copy = np.concatenate([copy[1:], [False]])
    note(objects, rows.code[copy], "delivered twice left out")
    rows, group = _taken(rows, ~copy), group[~copy]
    return _merged(rows, group, objects) if how == "merge" else _last(rows, group, objects)


def _starts(group: Ints) -> Ints:
    return np.flatnonzero(np.concatenate([[True], np.diff(group) != 0]))


def _last(rows: Rows, group: Ints, objects: Objects) -> Rows:
    final = np.concatenate([np.diff(group) != 0, [True]])
    note(objects, rows.code[~final], "replaced by a later row of the same band and time")
    return _taken(rows, final)


def _merged(rows: Rows, group: Ints, objects: Objects) -> Rows:
    """The inverse-variance mean; its error is that of one row, since one image measured twice is one image."""
    start = _starts(group)
    size = np.diff(np.append(start, len(group)))
    if (size == 1).all():
        return rows
    note(objects, rows.code[np.setdiff1d(np.arange(len(group)), start)], "merged with the same band and time")
    least = np.minimum.reduceat(rows.error, start)
    dense = np.repeat(np.arange(len(start)), size)
    weight = (least[dense] / rows.error) ** 2
    total = np.add.reduceat(weight, start)
    mean = np.add.reduceat(rows.flux * (weight / total[dense]), start)
    out = _taken(rows, start)
    out.flux = np.where(size == 1, out.flux, mean)
    out.error = np.where(size == 1, out.error, least * np.sqrt(size / total))
    if rows.detected is not None:
        out.detected = np.fmax.reduceat(rows.detected, start)
    return out


# ---------------------------------------------------------------- out


def _split(rows: Rows, objects: Objects, survey: str, common: tuple[str, ...]) -> list[LightCurve]:
    detected = np.abs(rows.flux) > DETECTED_SNR * rows.error
    if rows.detected is not None:
        detected = np.where(np.isnan(rows.detected), detected, rows.detected > 0)
    band = np.array(tuple(WAVELENGTHS[survey]))[rows.band]
    edges = np.searchsorted(rows.code, np.arange(len(objects.ids) + 1))
    out = []
    for index, name in enumerate(objects.ids):
        part = slice(edges[index], edges[index + 1])
        curve = LightCurve(
            *(name, rows.time[part], band[part], rows.flux[part], rows.error[part], detected[part], survey),
            redshift=float(objects.redshift[index]),
            redshift_error=float(objects.redshift_error[index]),
            label=objects.label[index],
            source=objects.source[index],
            status=objects.status.get(index) or status_of(rows.time[part], detected[part]),
            notes=(*common, *objects.notes[index]),
            flags=tuple(objects.notes[index]),
        )
        out.append(curve)
    return out
