"""The embedded data: simulated light curves of six classes as the wide survey of LSST would measure them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from astro.transients.lightcurve import WAVELENGTHS, ZERO_POINT, Floats, LightCurve
from astro.transients.points import DETECTED_SNR
from astro.transients.simulator import MODELS, Draws, Sky, flux_of
from shared.io.atomic import atomic_write_bytes

BANDS = tuple(WAVELENGTHS["lsst"])
CLASSES = tuple(MODELS)
DEPTHS = np.array([23.9, 25.0, 24.7, 24.0, 23.3, 22.1])
"""5 σ of one visit, u to y (Ivezić et al. 2019, table 1, design)."""
VISITS = np.array([56, 80, 184, 184, 160, 160])
"""Of a field in ten years, u to y (same table): 7 % in u, 22 % in r and in i."""
GAMMA = np.array([0.038, 0.039, 0.039, 0.039, 0.039, 0.039])
"""Share of the sky's noise (same paper, eq. 5 and table 2)."""
CALIBRATION = 0.005
"""Relative error of the brightest (same paper, section 3.2.2)."""
FIRST_DAY, YEARS, YEAR, SEASON, GAP = 61_000.0, 3, 365.25, 180.0, 3.5
"""MJD; a field is seen half of each year, every 3.5 nights on average."""
_SLOTS = 96
"""Visits of a season, at most."""
_NUMBERS = 3_000
"""Random numbers an object may use."""
ABOUT = (
    "Simulated light curves; none is real. Six classes by published equations (astro/transients/simulator.py names "
    "them): supernova (Bazin's shape, cooling black body), plateau (II-P like), periodic (pulsating stars, four "
    "harmonics), flare (M dwarfs), microlensing (point lens), agn (damped random walk). Three years of the LSST wide "
    "survey: one visit every 3.5 nights in one of six bands, seasons of six months, single-visit depths and errors of "
    "Ivezić et al. 2019, no Milky Way dust; every object has two detections (S/N > 5) or more. Made for trying the "
    "pipeline and its tests. Classes are equally frequent and cleaner than the sky's: no host galaxy light, no image "
    "subtraction faults, no moonlight, no type Ia against Ib/c, no unforeseen kind. Scores on them say that the "
    "machinery works, not how well real objects are classified; train on a survey's data for that. Free of any "
    "licence but the software's own."
)
"""For the card: what it is, what it was made for and what it cannot show."""


class Seen(NamedTuple):
    """n objects at T visits; `made` is False where there was none."""

    time: Floats
    band: NDArray[np.int64]
    made: NDArray[np.bool_]
    flux: Floats
    error: Floats
    redshift: Floats
    """(n, 2) photometric, with its error"""

    @property
    def detected(self) -> NDArray[np.bool_]:
        return self.made & (np.abs(self.flux) > DETECTED_SNR * self.error)


# ---------------------------------------------------------------- objects


def simulate(n: int, seed: int, shares: Mapping[str, float] | None = None) -> list[LightCurve]:
    """`n` labelled objects, of every class as many or by `shares`. Object i depends on (`seed`, i, its class) alone, so
    a longer list begins with the shorter. One with fewer than two detections is drawn again."""
    kinds = classes_of(n, shares)
    out: dict[int, LightCurve] = {}
    for name in dict.fromkeys(kinds):
        left = [i for i, kind in enumerate(kinds) if kind == name]
        for attempt in count():
            if not left:
                break
            numbers = [np.random.default_rng((seed, i, attempt)).random(_NUMBERS) for i in left]
            seen = observed(name, np.array(numbers))
            good = seen.detected.sum(1) >= 2
            for row, i in enumerate(left):
                if good[row]:
                    out[i] = _curve(seen, row, f"sim{seed}-{i:05d}", name)
            left = [i for i in left if i not in out]
    return [out[i] for i in range(n)]


def classes_of(n: int, shares: Mapping[str, float] | None = None) -> list[str]:
    """Each object's class: always the one furthest behind its share, so that every beginning has the shares too.

    Raises ValueError for shares that cannot be.
    """
    shares = dict.fromkeys(CLASSES, 1.0) if shares is None else shares
    good = all(0 <= share < np.inf for share in shares.values()) and sum(shares.values()) > 0
    if not good or not set(shares) <= set(CLASSES):
        raise ValueError(f"shares {shares}; numbers of {', '.join(CLASSES)}, none negative, one above 0")
    names = [name for name in CLASSES if shares.get(name, 0) > 0]
    wanted = np.array([shares[name] for name in names]) / sum(shares.values())
    given, out = np.zeros(len(names)), []
    for i in range(n):
        behind = int(np.argmax(np.round(wanted * (i + 1) - given, 9)))
        given[behind] += 1
        out.append(names[behind])
    return out


def observed(name: str, numbers: Floats) -> Seen:
    """Objects of class `name`, one for each row of uniform random numbers (n, `_NUMBERS`)."""
    draws = Draws(numbers)
    time, band, made = cadence(draws)
    wavelength = np.array([WAVELENGTHS["lsst"][b] for b in BANDS])[band]
    noise, scatter = (draws.normal(count=time.shape[1]) for _ in range(2))
    redshift = draws.normal(count=4)
    sky = MODELS[name](draws, time, wavelength)
    error = errors(sky, band, DEPTHS[band] + 0.2 * scatter)
    flux = np.round(sky.change + error * noise, 3)
    return Seen(time, band, made, flux, error, photometric(sky.redshift, redshift))


def _curve(seen: Seen, row: int, name: str, kind: str) -> LightCurve:
    made = seen.made[row]
    z, z_error = map(float, seen.redshift[row])
    return LightCurve(
        *(name, seen.time[row, made], np.array(BANDS)[seen.band[row, made]]),
        *(seen.flux[row, made], seen.error[row, made], seen.detected[row, made]),
        redshift=z,
        redshift_error=z_error,
        label=kind,
        source="simulated",
    )


# ---------------------------------------------------------------- the survey


def cadence(draws: Draws) -> tuple[Floats, NDArray[np.int64], NDArray[np.bool_]]:
    """(n, T) MJD, ascending; (n, T) band numbers; (n, T) whether the visit was made.

    At most one visit a night (gaps of 1 night and an exponential rest), seasons of `SEASON` days a year.
    """
    size = YEARS * _SLOTS
    gaps = 1 - (GAP - 1) * np.log1p(-draws.uniform(count=size).reshape(-1, YEARS, _SLOTS))
    night = np.floor(gaps.cumsum(2))
    made = (night < SEASON).reshape(-1, size)
    start = np.floor(YEAR * (np.arange(YEARS) + draws.uniform()))[:, :, None]
    hour = 0.05 + draws.uniform(0, 0.35, size).reshape(night.shape)
    time = FIRST_DAY + start + np.minimum(night, SEASON) + hour
    time = np.maximum.accumulate(np.round(time.reshape(-1, size), 4), axis=1)
    band = np.searchsorted(np.cumsum(VISITS) / VISITS.sum(), draws.uniform(count=size), side="right")
    return time, np.minimum(band, len(BANDS) - 1), made


def errors(sky: Sky, band: NDArray[np.int64], depth: Floats) -> Floats:
    """1 σ: photons of the object and the sky, σ² = (0.04 − γ) F F₅ + γ F₅² (Ivezić et al. 2019, eq. 5, in flux; at
    F = F₅, the 5 σ depth, σ = F/5), and the calibration's. The template's own noise is left out: it is deeper."""
    total, limit, gamma = np.maximum(sky.change + sky.steady, 0), flux_of(depth), GAMMA[band]
    variance = (0.04 - gamma) * total * limit + gamma * limit**2 + (CALIBRATION * total) ** 2
    return np.maximum(np.round(np.sqrt(variance), 3), 0.001)


def photometric(z: Floats, normal: Floats) -> Floats:
    """(n, 2) host redshift from colours and its error, NaN for Galactic objects: scatter 0.03 (1 + z), and one in ten
    far off with an error that shows it, as in PLAsTiCC. `normal` is (n, 4)."""
    width = 0.03 * (1 + z) * np.exp(0.4 * normal[:, 0])
    width = np.where(normal[:, 1] > 1.28, 8 * width, width)
    found = np.maximum(z + width * normal[:, 2], 0.01)
    return np.round(np.stack([found, width * np.exp(0.2 * normal[:, 3])], 1), 4)


# ---------------------------------------------------------------- files


def to_frame(curves: Sequence[LightCurve]) -> pd.DataFrame:
    """One row an observation, in columns that `read_path` knows without options."""
    parts = [
        pd.DataFrame(
            {
                "object_id": curve.id,
                "mjd": curve.time,
                "band": curve.band,
                "flux": curve.flux,
                "flux_err": curve.error,
                "detected": curve.detected.astype(int),
                "zero_point": ZERO_POINT,
                "redshift": curve.redshift,
                "redshift_err": curve.redshift_error,
                "label": curve.label,
            }
        )
        for curve in curves
    ]
    return pd.concat(parts, ignore_index=True)


def write_sample(folder: Path, n: int, seed: int) -> list[Path]:
    """`n` packed CSV files of three to six objects each, as a user brings them; with labels, so that they can be
    trained on and answers compared. Equal seeds, equal bytes."""
    sizes = [int(np.random.default_rng((seed, k)).integers(3, 7)) for k in range(n)]
    curves, paths = simulate(sum(sizes), seed), []
    for number, end in enumerate(np.cumsum(sizes)):
        text = to_frame(curves[end - sizes[number] : end]).to_csv(index=False, lineterminator="\n")
        packed = gzip.compress(text.encode(), mtime=0)
        paths.append(atomic_write_bytes(Path(folder) / f"objects-{number:03d}.csv.gz", packed))
    return paths
