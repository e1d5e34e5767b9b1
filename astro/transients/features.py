"""Summary numbers of light curves for boosted trees: the baseline beside every network.

Fluxes are divided by the object's brightest detection and times counted from where most detections are, so that numbers
tell shapes and colours; brightness is one number of its own. What a band lacks is NaN, which trees split on.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from astro.transients.lightcurve import Floats, LightCurve
from astro.transients.t2 import Inputs

EDGES = np.array([-100, -50, -25, -12, -4, 4, 12, 20, 30, 45, 70, 110, 200.0])
"""Days from the reference time, between which a band's points are averaged."""
PHASES = np.array([-20, -10, 0, 10, 20, 30, 45, 70.0])
"""Days from the fitted peak, at which the fits of all bands are compared."""
GRID = np.arange(-60.0, 121.0)
"""Days from the reference time, among which the fitted peak is looked for."""
FAINTEST = 1e-3
"""Least flux that others are divided by."""
SOFT = 0.05
"""Of the brightest flux: colours are differences of asinh(f / SOFT), which stay finite where there is no flux."""
WINDOW, SIGNIFICANT, FEWEST = 5.0, 5.0, 6
BAZIN = ("amplitude", "baseline", "time", "rise", "fall", "chi2")
OBJECT = (
    *("log_flux", "points", "detections", "span", "highest_snr", "lowest_snr", "share_negative"),
    *("share_detected", "first_detection", "last_detection", "first_point", "last_point", "mean_snr2"),
    *("longest_gap", "reference_to_peak"),
)
POINTS = ("points", "highest", "lowest", "highest_snr", "time_of_highest", "share_detected", "noise")
FIT = ("peak", "time_of_peak", "rise", "decline")
MARKS = (*(f"day{p:+.0f}" for p in PHASES), *(f"days{a:+.0f}to{b:+.0f}" for a, b in pairwise(EDGES)))
GRIDDED = ("log_top", "before_top", "after_top")
"""Of the Gaussian process over all bands: ln of its highest mean flux, and days from the grid's ends to there."""
GRIDDED_BAND = ("peak", "time_of_peak", "rise", "decline", "mean", "sd")
GRID_PHASES = np.array([-40, -20, -10, -5, 0, 5, 10, 20, 30, 45, 60, 90, 150.0])
"""Days from its highest mean flux, at which the process is read."""
REDSHIFT = ("redshift", "redshift_error", "log_luminosity", "rest_span")
"""With the last two in units of flux times Mpc² and days before the expansion stretched them."""
COLOURS = ("highest", "peak", *MARKS)
"""Of which neighbouring bands are compared."""


class Prepared(NamedTuple):
    """One curve in order of time, band, flux; scaled."""

    time: Floats
    band: NDArray[np.str_]
    flux: Floats
    error: Floats
    scale: float


def feature_names(bands: Sequence[str], redshift: bool = False) -> list[str]:
    """Of the columns of `features`, in order."""
    names = list(OBJECT)
    for band in bands:
        names += [f"{name}_{band}" for name in (*POINTS, *_extractor().names, *FIT, *MARKS)]
    for a, b in pairwise(bands):
        names += [f"{a}{b}_{name}" for name in COLOURS]
    return names + (list(REDSHIFT) if redshift else [])


def features(
    curves: Sequence[LightCurve], bands: Sequence[str], redshift: bool = False
) -> NDArray[np.float32]:
    """(N, F), NaN where undefined; the columns depend on `bands` alone, the values not on the order of points.

    Points in other bands count in the object's own numbers only. `redshift`: `REDSHIFT` are the last columns.
    """
    prepared = [_prepared(curve) for curve in curves]
    whole = np.full((len(curves), len(OBJECT)), np.nan)
    points = np.full((len(curves), len(bands), len(POINTS)), np.nan)
    binned = np.full((len(curves), len(bands), len(EDGES) - 1), np.nan)
    for i, one in enumerate(prepared):
        if len(one.time):
            whole[i, :-1] = _object(one)
        for j, name in enumerate(bands):
            chosen = one.band == name
            if chosen.any():
                points[i, j], binned[i, j] = _band(one.time[chosen], one.flux[chosen], one.error[chosen])
    statistics = _extracted(prepared, bands)
    fit, whole[:, -1], shape = _fitted(statistics[:, :, : len(BAZIN)])
    by_band = np.concatenate([points, statistics, fit, shape, binned], 2)
    highest, peak = points[:, :, [POINTS.index("highest")]], fit[:, :, [FIT.index("peak")]]
    colours = np.diff(np.arcsinh(np.concatenate([highest, peak, shape, binned], 2) / SOFT), axis=1)
    tables = [whole, by_band, colours]
    if redshift:
        tables.append(_distant(curves, whole))
    with np.errstate(over="ignore"):
        values = np.concatenate([_flat(table) for table in tables], 1).astype(np.float32)
    values[~np.isfinite(values)] = np.nan
    return values


def numbers(
    curves: Sequence[LightCurve], inputs: Inputs, bands: Sequence[str], redshift: bool = False
) -> NDArray[np.float32]:
    """(N, F + G) all that trees read of curves and of their grid."""
    return np.concatenate([features(curves, bands, redshift), grid_features(inputs)], 1)


def number_names(bands: Sequence[str], redshift: bool = False) -> list[str]:
    """Of the columns of `numbers`, in order."""
    return feature_names(bands, redshift) + grid_feature_names(bands)


def grid_feature_names(bands: Sequence[str]) -> list[str]:
    """Of the columns of `grid_features`, in order."""
    names = [f"gp_{name}" for name in GRIDDED]
    names += [f"gp_{name}_{band}" for band in bands for name in GRIDDED_BAND]
    for kind in ("mean", "sd"):
        names += [f"gp_{kind}{phase:+.0f}_{band}" for phase in GRID_PHASES for band in bands]
    return names + [f"gp_{a}{b}{phase:+.0f}" for phase in GRID_PHASES for a, b in pairwise(bands)]


def grid_features(inputs: Inputs) -> NDArray[np.float32]:
    """(N, G) of the Gaussian process's grid in all bands, NaN beyond its ends.

    Fluxes are divided by the highest mean over bands and times counted from there. Where a band was seen a few times
    only, no fit of it alone says what this does.
    """
    mean, sd = (each.cpu().double().numpy() for each in (inputs.mean, inputs.sd))
    steps = mean.shape[1]
    day = inputs.duration.cpu().double().numpy()[:, None] / (steps - 1)
    whole = mean.mean(2)
    at = whole.argmax(1)[:, None]
    top = np.maximum(np.take_along_axis(whole, at, 1), FAINTEST)
    peak, when, step = mean.max(1), mean.argmax(1), np.arange(steps)[:, None]
    bright = mean > 0.5 * peak[:, None]
    rise, decline = ((bright & side).sum(1) * day for side in (step < when[:, None], step > when[:, None]))
    bands = np.stack([peak / top, (when - at) * day, rise, decline, mean.mean(1) / top, sd.mean(1) / top], 2)
    place = at + GRID_PHASES / np.maximum(day, 1e-6)
    inside = ((place >= 0) & (place <= steps - 1))[..., None]
    place = np.clip(place, 0, steps - 1)
    low = np.minimum(place.astype(np.int64), steps - 2)

    def read(values: Floats) -> Floats:
        left, right = (np.take_along_axis(values, k[..., None], 1) for k in (low, low + 1))
        return np.where(inside, left + (right - left) * (place - low)[..., None], np.nan) / top[..., None]

    shape, spread = read(mean), read(sd)
    colours = -np.diff(np.arcsinh(shape / SOFT), axis=2)
    ends = np.concatenate([np.log(top), at * day, (steps - 1 - at) * day], 1)
    return np.concatenate([ends, *map(_flat, (bands, shape, spread, colours))], 1).astype(np.float32)


def _distant(curves: Sequence[LightCurve], whole: Floats) -> Floats:
    """(N, 4) `REDSHIFT`; the distance is Planck 2018's."""
    from astropy.cosmology import Planck18

    z, error = np.array([[c.redshift, c.redshift_error] for c in curves], float).reshape(-1, 2).T
    away = np.full(len(z), np.nan)
    if (z > 0).any():
        away[z > 0] = Planck18.luminosity_distance(z[z > 0]).to_value("Mpc")
    brightness, span = (whole[:, OBJECT.index(name)] for name in ("log_flux", "span"))
    return np.stack([z, error, brightness + 2 * np.log(away), span / (1 + z)], 1)


def _flat(table: Floats) -> Floats:
    return table.reshape(len(table), int(np.prod(table.shape[1:])))


def _prepared(curve: LightCurve) -> Prepared:
    order = np.lexsort((curve.error, curve.flux, curve.band, curve.time))
    time, flux, error = (np.asarray(x[order], np.float64) for x in (curve.time, curve.flux, curve.error))
    band = curve.band[order]
    if not len(time):
        return Prepared(time, band, flux, error, 1.0)
    detected = _detected(flux / error)
    scale = float(np.abs(flux[detected]).max()) or 1.0
    # Where the detections within a few days carry the most signal.
    at, power = time[detected], np.square(flux[detected] / error[detected])
    total = np.concatenate([[0.0], np.cumsum(power)])
    low, high = np.searchsorted(at, at - WINDOW, "left"), np.searchsorted(at, at + WINDOW, "right")
    reference = at[int(np.argmax(total[high] - total[low]))]
    return Prepared(time - reference, band, flux / scale, error / scale, scale)


def _detected(snr: Floats) -> NDArray[np.bool_]:
    """Points that count as detections; the best one where none does."""
    seen: NDArray[np.bool_] = snr > SIGNIFICANT
    return seen if seen.any() else snr == snr.max()


def _object(one: Prepared) -> list[float]:
    snr = one.flux / one.error
    seen = _detected(snr)
    when = one.time[seen]
    return [
        *(np.log(one.scale), len(snr), seen.sum(), one.time[-1] - one.time[0], snr.max(), snr.min()),
        *(
            (snr < -3).mean(),
            seen.mean(),
            when[0],
            when[-1],
            one.time[0],
            one.time[-1],
            np.square(snr).mean(),
        ),
        np.diff(when).max() if len(when) > 1 else np.nan,
    ]


def _band(time: Floats, flux: Floats, error: Floats) -> tuple[list[float], Floats]:
    """`POINTS`, and inverse-variance means between `EDGES`."""
    snr, weight = flux / error, error**-2.0
    at = np.digitize(time, EDGES) - 1
    inside = (at >= 0) & (at < len(EDGES) - 1)
    total = np.bincount(at[inside], weight[inside], len(EDGES) - 1)
    mean = np.bincount(at[inside], (weight * flux)[inside], len(EDGES) - 1)
    binned = np.divide(mean, total, out=np.full(len(total), np.nan), where=total > 0)
    highest, seen = int(flux.argmax()), (snr > SIGNIFICANT).mean()
    return [
        len(time),
        flux[highest],
        flux.min(),
        snr.max(),
        time[highest],
        seen,
        float(np.median(error)),
    ], binned


@cache
def _extractor() -> Any:
    import light_curve as lc

    return lc.Extractor(
        lc.BazinFit("lmsder"),
        *(
            lc.Skew(),
            lc.Kurtosis(),
            lc.StetsonK(),
            lc.Eta(),
            lc.EtaE(),
            lc.ExcessVariance(),
            lc.ReducedChi2(),
        ),
        *(lc.LinearFit(), lc.StandardDeviation(), lc.WeightedMean(), lc.Cusum(), lc.AndersonDarlingNormal()),
        *(lc.InterPercentileRange(0.25), lc.BeyondNStd(1), lc.MaximumSlope(), lc.OtsuSplit()),
    )


def _extracted(prepared: Sequence[Prepared], bands: Sequence[str]) -> Floats:
    """(N, B, S) light_curve's numbers of each band, `BAZIN` first; NaN where it has fewer than six points."""
    extractor = _extractor()
    jobs, places = [], []
    for i, one in enumerate(prepared):
        for j, name in enumerate(bands):
            chosen = one.band == name
            if chosen.sum() >= FEWEST:
                jobs.append((one.time[chosen], one.flux[chosen], one.error[chosen]))
                places.append((i, j))
    out = np.full((len(prepared), len(bands), len(extractor.names)), np.nan)
    if jobs:
        found = extractor.many(jobs, sorted=True, check=False, fill_value=np.nan, n_jobs=1)
        out[tuple(np.array(places).T)] = found
    return out


def _fitted(bazin: Floats) -> tuple[Floats, Floats, Floats]:
    """Of the fits (N, B, 6): `FIT` (N, B, 4); the object's peak time from the reference (N,); (N, B, P) fluxes at
    `PHASES` from it, over the brightest band's peak. Rise and decline: days above half the peak before and after it."""
    curve = _bazin(bazin, GRID)
    peak, at = curve.max(2), GRID[curve.argmax(2)]
    known = np.isfinite(peak)
    base = bazin[:, :, 1]
    bright = curve - base[..., None] > 0.5 * (peak - base)[..., None]
    late = at[..., None] - GRID
    rise, decline = (bright & (late > 0)).sum(2), (bright & (late < 0)).sum(2)
    best = np.where(known, peak, -np.inf).argmax(1)[:, None]
    when = np.where(known.any(1), np.take_along_axis(at, best, 1)[:, 0], 0.0)
    top = np.take_along_axis(peak, best, 1)
    shape = _bazin(bazin, when[:, None, None] + PHASES) / top[..., None]
    fit = np.stack([peak, at - when[:, None], rise, decline], 2)
    return np.where(known[..., None], fit, np.nan), np.where(known.any(1), when, np.nan), shape


def _bazin(parameters: Floats, time: Floats) -> Floats:
    """A exp(−(t − t₀) / τ_fall) / (1 + exp(−(t − t₀) / τ_rise)) + B (Bazin et al. 2009, equation 1)."""
    a, b, start, rise, fall = (parameters[:, :, k, None] for k in range(5))
    with np.errstate(all="ignore"):
        falling, rising = (np.exp(-np.clip((time - start) / tau, -50, 50)) for tau in (fall, rise))
        return a * falling / (1 + rising) + b  # type: ignore[no-any-return]
