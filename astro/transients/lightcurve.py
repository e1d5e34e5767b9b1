"""A light curve as every part of the pipeline sees it, and the bands it may be observed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ZERO_POINT = 27.5
"""Of every flux inside: magnitude 27.5 is flux 1, as in PLAsTiCC."""
WAVELENGTHS: Mapping[str, Mapping[str, float]] = {
    "lsst": {"u": 3685.0, "g": 4802.0, "r": 6231.0, "i": 7542.0, "z": 8690.0, "y": 9736.0},
    "des": {"g": 4827.0, "r": 6432.0, "i": 7827.0, "z": 9179.0},
    "ztf": {"g": 4804.79, "r": 6436.92, "i": 7968.22},
}
"""Effective wavelengths, Å. lsst and ztf: astronet's (t2); des: pivot wavelengths of DECam (NOIRLab)."""

OK = "ok"
TOO_FEW = "too few points"
NEVER_DETECTED = "never detected"
UNREADABLE = "unreadable"
SOLAR_SYSTEM = "solar system object"
STATUSES = (OK, TOO_FEW, NEVER_DETECTED, UNREADABLE, SOLAR_SYSTEM)
"""What a light curve's `status` may say after reading; all but ok get the class rates and no class."""
MIN_POINTS = 3
MARGIN = 50.0
"""Days before the first and after the last detection; what lies beyond is not classified."""


def around(time: Floats, detected: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Points within `MARGIN` of the detections; all of them where there is none."""
    seen = time[detected]
    if not len(seen):
        return np.ones(len(time), bool)
    return (time > seen.min() - MARGIN) & (time < seen.max() + MARGIN)


def status_of(time: Floats, detected: NDArray[np.bool_]) -> str:
    """Of points in order of time."""
    kept = time[around(time, detected)]
    if len(kept) < MIN_POINTS or kept[0] == kept[-1]:
        return TOO_FEW
    return OK if detected.any() else NEVER_DETECTED


@dataclass(frozen=True, eq=False)
class LightCurve:
    """N points of one object, times ascending, only finite values, every error positive."""

    id: str
    time: Floats
    """(N,) MJD, days"""
    band: NDArray[np.str_]
    """(N,) names, keys of `WAVELENGTHS[survey]`"""
    flux: Floats
    """(N,) difference flux at `ZERO_POINT`; may be negative"""
    error: Floats
    """(N,) 1 σ"""
    detected: NDArray[np.bool_]
    """(N,) as the survey says; S/N > 5 where it says nothing"""
    survey: str = "lsst"
    redshift: float = np.nan
    """Of the host, photometric or spectroscopic; NaN = unknown"""
    redshift_error: float = np.nan
    label: str | None = None
    source: str = ""
    """File it came from, for messages."""
    status: str = OK
    """One of `STATUSES`"""
    notes: tuple[str, ...] = field(default=())
    """What was dropped, merged or converted while reading, with counts."""
    flags: tuple[str, ...] = field(default=())
    """Those of `notes` that are of this object alone, not of every one that was read with it."""

    def __len__(self) -> int:
        return len(self.time)

    def taken(self, keep: NDArray[np.bool_]) -> LightCurve:
        """With these of its points alone, and the status of what is left."""
        parts = {name: getattr(self, name)[keep] for name in ("time", "band", "flux", "error", "detected")}
        status = (
            status_of(parts["time"], parts["detected"])
            if self.status in (OK, NEVER_DETECTED)
            else self.status
        )
        return replace(self, **parts, status=status)

    @property
    def wavelength(self) -> Floats:
        """(N,) Å"""
        table = WAVELENGTHS[self.survey]
        return np.array([table[str(name)] for name in self.band])
