"""Units, zero points, magnitudes, Milky Way dust and time scales: arithmetic on columns, nothing read.

A zero point is the AB magnitude of flux 1; every flux inside has `lightcurve.ZERO_POINT` (27.5).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from astro.transients.lightcurve import ZERO_POINT, Floats

UNIT_ZERO_POINTS: Mapping[str, float] = {"nJy": 31.4, "uJy": 23.9, "mJy": 16.4, "Jy": 8.9}
"""AB magnitude of one unit: 3631 Jy is magnitude 0; LSST's own rounding (31.4 for nJy, spec section 1)."""
EXTINCTION: Mapping[str, Mapping[str, float]] = {
    "lsst": {"u": 4.145, "g": 3.237, "r": 2.273, "i": 1.684, "z": 1.323, "y": 1.088},
    "des": {"g": 3.237, "r": 2.176, "i": 1.595, "z": 1.217},
    "ztf": {"g": 3.172, "r": 2.271, "i": 1.682},
}
"""A_b / E(B−V)_SFD for R_V = 3.1, Schlafly & Finkbeiner 2011 (arXiv:1012.4804) table 6.

ztf: their Pan-STARRS 1 rows, the system ZTF's photometry is calibrated to.
"""
RV = 3.1
JD_OFFSET = 2_400_000.5
_UNIX_MJD = 40_587.0
DATED = (1e4, 1e5)
"""MJD of 1886 and 2132"""
_DAY = 86_400.0
_ABSENT_MAGNITUDE = 90.0
"""Magnitudes are 99, 999, −99 or 0 where there is none."""


# ---------------------------------------------------------------- fluxes


def factor(zero_point: float | Floats) -> float | Floats:
    """What a flux of `zero_point` is multiplied with: 0.0275423 for nJy."""
    return 10.0 ** ((ZERO_POINT - zero_point) / 2.5)


def from_magnitudes(magnitude: Floats, error: Floats) -> tuple[Floats, Floats]:
    """(flux, error) at `ZERO_POINT` of AB magnitudes; NaN where a magnitude is absent (99, −99, 0)."""
    known = np.where((np.abs(magnitude) < _ABSENT_MAGNITUDE) & (magnitude != 0), magnitude, np.nan)
    flux = 10.0 ** (0.4 * (ZERO_POINT - known))
    return flux, 0.4 * np.log(10.0) * flux * error


def look_like_magnitudes(value: Floats, error: Floats) -> bool:
    """Whether all of 3 or more values lie in 10 to 30 with errors below 1 (spec section 8)."""
    fine = np.isfinite(value) & np.isfinite(error)
    value, error = value[fine], error[fine]
    return len(value) >= 3 and bool(np.all((value >= 10) & (value <= 30) & (np.abs(error) < 1)))


def dust_factor(survey: str, names: tuple[str, ...], ebv: Floats) -> Floats:
    """(len(ebv), len(names)) by which fluxes are multiplied; 1 where E(B−V) is unknown."""
    slope = np.array([EXTINCTION[survey][name] for name in names])
    return 10.0 ** (0.4 * np.where(np.isfinite(ebv), ebv, 0.0)[:, None] * slope)


def clean_redshift(
    z: Floats, error: Floats, zero_means_galactic: bool
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(z, error, whether a value was set aside): negative ones (−9, −99) are absent, spec section 8.

    z = 0 marks Galactic objects in PLAsTiCC and says nothing elsewhere.
    """
    bad = (z < 0) | ~np.isfinite(z)
    if not zero_means_galactic:
        bad |= z == 0
    bad_error = bad | ~(error >= 0) | ~np.isfinite(error)
    return np.where(bad, np.nan, z), np.where(bad_error, np.nan, error), bad & ~np.isnan(z)


# ---------------------------------------------------------------- times

TIME_NAMES: Mapping[str, str] = {
    "jd": "Julian dates (JD = MJD + 2400000.5)",
    "mjd_seconds": "MJD in seconds",
    "unix": "seconds since 1970 (Unix or TAI)",
    "nanoseconds": "nanoseconds since 1970 (TAI or Unix)",
}
_RANGES = {"jd": (2.4e6, 3e6), "unix": (1e8, 4e9), "mjd_seconds": (4e9, 8e9), "nanoseconds": (1e17, 8e18)}


def guess_time(time: Floats) -> str | None:
    """mjd for what can be days; a key of `TIME_NAMES`; ``mixed`` for MJD among others; None = no guess."""
    finite = time[np.isfinite(time)]
    far = finite >= 2.4e6
    if not far.any():
        return "mjd"
    if not far.all():
        return "mixed"
    low, high = float(finite.min()), float(finite.max())
    return next((kind for kind, (a, b) in _RANGES.items() if a <= low and high < b), None)


def dated(mjd: Floats | float) -> NDArray[np.bool_]:
    """Whether each is a date of our time; a Julian date, seconds and a placeholder are none."""
    return (np.asarray(mjd) > DATED[0]) & (np.asarray(mjd) < DATED[1])


def to_mjd(time: Floats, kind: str) -> Floats:
    """Days, MJD. TAI is not told from UTC: 37 s change nothing that a light curve shows."""
    if kind == "jd":
        return time - JD_OFFSET
    if kind == "mjd_seconds":
        return time / _DAY
    if kind == "unix":
        return time / _DAY + _UNIX_MJD
    if kind == "nanoseconds":
        return time / (_DAY * 1e9) + _UNIX_MJD
    return time
