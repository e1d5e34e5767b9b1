"""Light curves to a grid: the paper's Gaussian process over time and wavelength, for many objects at once.

Allam & McEwen 2024, section 2 (astronet/preprocess.py; avocado's process): zero mean, covariance
A · (1 + √3 r) e^(−√3 r) with r² = (Δt/τ)² + (Δλ/6000 Å)², err² on the diagonal; A and τ maximise the likelihood, from
τ = 20 d and A = (s/2)², s the |flux| of highest signal to noise. Here: Newton's method with exact derivatives in
(ln A, ln τ), first on every third point, then on all in single precision, and to the end in double. Objects are padded
to a few lengths with points so far away in time that they touch nothing, so a result does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astro.transients.gp_optimum import (
    FAR,
    ROOT3,
    WAVELENGTH_SCALE,
    Batch,
    Scratch,
    buckets,
    covariance,
    decay,
    factorise,
    likelihood,
    optimum,
    pad,
    per_batch,
    product,
)
from astro.transients.lightcurve import MIN_POINTS, WAVELENGTHS, Floats, LightCurve, around

OK, TOO_FEW, FAILED = "ok", "too few points", "no optimum found: start values kept"
AT_BOUND = ("amplitude at its bound", "timescale at its bound")
NOISE_RATIO = 1e3
"""Up to this A / err² single precision gives the mean within 4e-5 √A and the standard deviation within 0.3 %."""


class Fit(NamedTuple):
    """Hyper-parameters of one object."""

    ln_amplitude: float
    """Of A, flux²"""
    ln_timescale: float
    """Of τ, days"""
    log_likelihood: float
    status: str = OK
    """ok, at a bound, or why the start values stand."""


class Grid(NamedTuple):
    """B objects at T times in C bands."""

    mean: Floats
    """(B, T, C) flux"""
    std: Floats
    """(B, T, C) of the noiseless flux"""
    times: Floats
    """(B, T) days, equally spaced from the first to the last point"""
    present: NDArray[np.bool_]
    """(B, C) bands that the object was observed in; the others follow from the covariance alone."""


def trim(curve: LightCurve) -> LightCurve:
    """The points `around` the detections of any band, the first at time 0."""
    if not len(curve.time):
        return curve
    kept = curve.taken(around(curve.time, curve.detected))
    return replace(kept, time=kept.time - kept.time.min())


def fit(curves: Sequence[LightCurve]) -> list[Fit]:
    """The likelihood's optimum of every object (after `trim`), in their order; what could not be fitted says so."""
    fits: list[Fit] = [Fit(np.nan, np.nan, np.nan, TOO_FEW)] * len(curves)
    for numbers, length in buckets(curves):
        batch = pad([curves[i] for i in numbers], length)
        for i, found in zip(numbers, _fit(batch)):
            fits[i] = found
    return fits


def _fit(batch: Batch) -> list[Fit]:
    start, search = optimum(batch)
    few = batch.real.sum(1) < MIN_POINTS
    keep = few | ~search.done
    at = torch.where(keep[:, None], start, search.best)
    value = search.value
    for rows in keep.nonzero()[:, 0].split(per_batch(batch.length())) if keep.any() else ():
        value[rows] = likelihood(start[rows], batch.part(rows)).value
    status = np.full(len(at), OK, dtype=object)
    for i, name in enumerate(AT_BOUND):
        status[((at[:, i] <= search.low[:, i]) | (at[:, i] >= search.high[:, i])).numpy()] = name
    status[~search.done.numpy()] = FAILED
    status[few.numpy()] = TOO_FEW
    return [Fit(a, t, v, s) for (a, t), v, s in zip(at.tolist(), value.tolist(), status)]


# ---------------------------------------------------------------- grid


def grid(
    curves: Sequence[LightCurve],
    fits: Sequence[Fit],
    times: int = 100,
    bands: Mapping[str, float] | None = None,
    noise_ratio: float = NOISE_RATIO,
) -> Grid:
    """Mean and standard deviation at `times` equally spaced times in every one of `bands` (name → Å).

    `bands` are the survey's own unless given, and then all `curves` must be of one survey (`ValueError`).
    Objects whose A / err² is above `noise_ratio` are computed in double precision, the others in single, all but the
    matrices. An object without points is 0, with standard deviation 0.
    """
    if bands is None:
        surveys = {curve.survey for curve in curves}
        if len(surveys) != 1:
            raise ValueError(
                f"curves of {len(surveys)} surveys ({', '.join(sorted(surveys))}): name the bands"
            )
        bands = WAVELENGTHS[surveys.pop()]
    shape = (len(curves), times, len(bands))
    result = Grid(np.zeros(shape), np.zeros(shape), np.zeros(shape[:2]), np.zeros(shape[::2], bool))
    wave = torch.tensor(list(bands.values()), dtype=torch.float64) * (ROOT3 / WAVELENGTH_SCALE)
    scratch = Scratch()
    for numbers, length in buckets(curves):
        batch = pad([curves[i] for i in numbers], length)
        at = torch.tensor([fits[i][:2] for i in numbers], dtype=torch.float64)
        known = at.isfinite().all(1) & (batch.real.sum(1) > 0)
        noisy = at[:, 0].exp() <= noise_ratio * batch.noise.masked_fill(batch.real == 0, torch.inf).amin(1)
        for chosen, dtype in ((known & noisy, torch.float32), (known & ~noisy, torch.float64)):
            rows, size = chosen.nonzero()[:, 0], per_batch(length, times * len(bands) // 4, dtype)
            for some in rows.split(size) if len(rows) else ():
                found = _predict(at[some], batch.part(some), times, wave.to(dtype), scratch)
                for whole, part in zip(result, found):
                    whole[numbers[some.numpy()]] = part
    first = [curve.time.min() if len(curve) else 0.0 for curve in curves]
    result.times[:] += np.array(first)[:, None]
    for i, curve in enumerate(curves):
        seen = set(curve.band.tolist())
        result.present[i] = [name in seen for name in bands]
    return result


def _predict(
    at: Tensor, batch: Batch, times: int, wave: Tensor, scratch: Scratch
) -> tuple[Floats, Floats, Floats]:
    """Mean kᵀK⁻¹y, standard deviation √(A − ‖L⁻¹k‖²) and the times; k in the precision of `wave`."""
    matrix = covariance(at, batch, scratch)[0]
    factor, _ = factorise(matrix, scratch)
    eye = torch.eye(matrix.shape[1], dtype=torch.float64).expand_as(matrix)
    columns = scratch("inverse", matrix.shape, torch.float64).mT
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False, out=columns)
    a = product(inverse.mT, product(inverse, batch.flux[:, :, None]))
    amplitude, scale = at[:, 0].exp()[:, None, None], (ROOT3 / at[:, 1].exp())[:, None]
    last = (batch.time * batch.real).amax(1)
    when = torch.linspace(0, 1, times, dtype=torch.float64) * last[:, None]
    u = ((when * scale)[:, :, None] - (batch.time * scale)[:, None]).square_().to(wave.dtype)
    v = (wave[:, None] - batch.wave[:, None].to(wave.dtype)).square_()  # (B, C, n)
    shape = (len(at), times, len(wave), matrix.shape[1])
    x, fall = (scratch(name, shape, wave.dtype) for name in ("far", "decay"))
    decay(torch.add(u[:, :, None], v[:, None], out=x).sqrt_().clamp_max_(FAR), fall)
    k = torch.addcmul(fall, fall, x, out=x).flatten(1, 2)
    mean = product(k, (a * amplitude).to(wave.dtype)).double()
    wide, half = inverse.mul_(amplitude.sqrt()).to(wave.dtype).mT, matrix.shape[1] // 2
    spread = fall.view(k.shape)
    product(k[:, :, :half], wide[:, :half, :half], spread[:, :, :half])  # the rest of these rows is 0
    product(k, wide[:, :, half:], spread[:, :, half:])
    share = 1 - spread.square_().sum(2, keepdim=True).double()
    std = (share.clamp_min_(0) * amplitude).sqrt_()
    return mean.view(shape[:3]).numpy(), std.view(shape[:3]).numpy(), when.numpy()
