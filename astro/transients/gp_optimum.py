"""The Gaussian process of `gp` on a batch of padded objects: covariance, likelihood with derivatives, its optimum."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astro.transients.lightcurve import WAVELENGTHS, Floats, LightCurve

ROOT3 = 3**0.5
WAVELENGTH_SCALE = 6000.0
"""Å, frozen"""
START_TIMESCALE, LONGEST = 20.0, 1000.0
"""Days; the shortest is 1."""
AMPLITUDE_ROOM = 10.0
"""ln A stays this near its start."""
FAR = 40.0
"""√3 r between padding points and everything else, and the largest counted: e^−40 is nothing beside the noise, and far
from where exponentials and products underflow, which is slow."""
BYTES = 1 << 20
"""Of one matrix for every object of a batch, so that a handful of them stays in the cache."""


# ---------------------------------------------------------------- objects of similar length, padded


@dataclass(frozen=True, slots=True)
class Batch:
    """B objects padded to n points."""

    time: Tensor
    """(B, n) days since the object's first"""
    wave: Tensor
    """(B, n) √3 λ / 6000 Å"""
    flux: Tensor
    noise: Tensor
    """(B, n) err²; 1 where padded"""
    real: Tensor
    """(B, n) 1; 0 where padded"""

    def part(self, rows: Tensor, stride: int = 1, dtype: torch.dtype = torch.float64) -> Batch:
        """Some objects' every `stride`-th point. The length stays a multiple of 4: then every object's matrices are
        aligned alike in memory, and LAPACK's last digits are the same wherever in a batch an object stands."""
        size = self.length(stride)
        return Batch(*(getattr(self, name)[rows, ::stride][:, :size].to(dtype) for name in self.__slots__))

    def length(self, stride: int = 1) -> int:
        return -(-self.time.shape[1] // stride) // 4 * 4


def buckets(curves: Sequence[LightCurve]) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Numbers of the objects of each padded length, and that length: steps of 4, of 1/8 of it above 64."""
    counts = np.array([max(len(curve), 1) for curve in curves], int)
    step = np.maximum(4, 2 ** np.ceil(np.log2(counts)).astype(int) // 16)
    padded = -(-counts // step) * step
    for length in np.unique(padded):
        yield np.flatnonzero(padded == length), int(length)


def pad(curves: Sequence[LightCurve], length: int) -> Batch:
    counts = np.array([len(curve) for curve in curves])
    row = np.repeat(np.arange(len(curves)), counts)
    column = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    when, value, sigma = (
        np.concatenate([getattr(curve, name) for curve in curves]) for name in ("time", "flux", "error")
    )
    lengths = _wavelengths(curves)
    order = np.lexsort(
        (sigma, value, lengths, when, row)
    )  # so that the order of an object's rows changes nothing
    shape = (len(curves), length)
    time, wave, flux, noise, real = np.full(shape, np.inf), *(np.zeros(shape) for _ in range(4))
    time[row, column], flux[row, column], noise[row, column] = when[order], value[order], sigma[order] ** 2
    wave[row, column], real[row, column] = lengths[order] * (ROOT3 / WAVELENGTH_SCALE), 1.0
    time = np.where(real > 0, time - np.where(counts > 0, time[:, 0], 0.0)[:, None], 0.0)
    wave = np.where(real > 0, wave, 10 + FAR * (1 + np.arange(length)))  # λ scale is fixed, so far at every τ
    noise[real == 0] = 1.0
    return Batch(*(torch.from_numpy(each) for each in (time, wave, flux, noise, real)))


def _wavelengths(curves: Sequence[LightCurve]) -> Floats:
    """Of all points, one object after another, Å."""
    names = np.concatenate([curve.band for curve in curves])
    survey = np.repeat([curve.survey for curve in curves], [len(curve) for curve in curves])
    found = np.full(len(names), np.nan)
    for one in {curve.survey for curve in curves}:
        for name, wavelength in WAVELENGTHS[one].items():
            found[(names == name) & (survey == one)] = wavelength
    if np.isnan(found).any():
        raise KeyError(f"bands without a wavelength: {sorted(set(names[np.isnan(found)]))}")
    return found


def start_values(batch: Batch) -> Tensor:
    """(B, 2) the paper's start values of (ln A, ln τ)."""
    real = batch.real > 0
    peak = batch.flux.masked_fill(~real, -torch.inf).amax(1, keepdim=True)
    ratio = batch.flux.abs() / (batch.noise + (0.01 * peak) ** 2).sqrt()
    best = ratio.masked_fill(~real, -1.0).argmax(1, keepdim=True)
    scale = batch.flux.abs().gather(1, best)[:, 0]
    scale = torch.where(scale > 0, scale, batch.noise.gather(1, best)[:, 0].sqrt())  # all fluxes are 0
    return torch.stack(
        [2 * torch.log(0.5 * scale), torch.full_like(scale, float(np.log(START_TIMESCALE)))], 1
    )


# ---------------------------------------------------------------- likelihood


class Scratch:
    """Memory by name, for one batch after the other: to touch fresh memory costs more than to compute in it."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Uninitialised, and the same each time."""
        size = math.prod(shape) * dtype.itemsize
        if name not in self.kept or len(self.kept[name]) < size:
            self.kept[name] = torch.empty(size, dtype=torch.uint8)
        return self.kept[name][:size].view(dtype).view(shape)


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Of each object's matrices. At these sizes numpy's takes half as long as torch's, and an eighth with vectors."""
    into = None if out is None else out.numpy()
    return torch.from_numpy(np.matmul(left.numpy(), right.numpy(), out=into))


def decay(x: Tensor, out: Tensor) -> Tensor:
    """e^(−x); numpy's exponential takes half as long as torch's."""
    torch.neg(x, out=out)
    np.exp(out.numpy(), out=out.numpy())
    return out


def per_batch(length: int, width: int = 0, dtype: torch.dtype = torch.float64) -> int:
    """Objects with matrices of `length` by `length`, or `width` if that is more, to take together."""
    return max(1, BYTES // (length * max(length, width) * dtype.itemsize))


class Likelihood(NamedTuple):
    """At one (ln A, ln τ) per object, double precision."""

    value: Tensor
    """(B,); −∞ where the matrix was not positive definite"""
    gradient: Tensor
    """(B, 2)"""
    curvature: Tensor
    """(B, 2, 2) minus the Hessian"""
    information: Tensor
    """(B, 2, 2) Fisher's: never indefinite, used where the curvature is"""


def covariance(at: Tensor, batch: Batch, scratch: Scratch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """K with noise, A e^(−x), x = √3 r and u = 3 (Δt/τ)², each (B, n, n), at (ln A, ln τ)."""
    shape, dtype = (*batch.time.shape, batch.time.shape[1]), batch.time.dtype
    matrix, fall, x, u = (scratch(name, shape, dtype) for name in ("matrix", "fall", "x", "u"))
    amplitude = at[:, 0].exp().to(dtype)[:, None, None]
    time = batch.time * (ROOT3 / at[:, 1].exp()).to(dtype)[:, None]
    torch.sub(time[:, :, None], time[:, None], out=u).square_()
    torch.sub(batch.wave[:, :, None], batch.wave[:, None], out=x)
    torch.addcmul(u, x, x, out=x).sqrt_().clamp_max_(FAR)
    decay(x, fall).mul_(amplitude)
    torch.addcmul(fall, fall, x, out=matrix)
    matrix.diagonal(dim1=1, dim2=2).copy_(amplitude[:, 0] * batch.real + batch.noise)
    return matrix, fall, x, u


def factorise(matrix: Tensor, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """Cholesky factors, and whether each is sound; others are replaced by so large ones that only the prior is left.

    In single precision a matrix may fail that does not in double.
    """
    columns = scratch("factor", matrix.shape, matrix.dtype).mT  # LAPACK's order, else it copies
    factor, failed = torch.linalg.cholesky_ex(matrix, out=(columns, torch.empty(0, dtype=torch.int32)))
    if failed.any():
        factor[failed > 0] = 1e15 * torch.eye(factor.shape[1], dtype=factor.dtype)
    return factor, failed == 0


def likelihood(
    at: Tensor, batch: Batch, curvature: Tensor | None = None, scratch: Scratch | None = None
) -> Likelihood:
    """ln L = −½ yᵀK⁻¹y − ½ ln|K| − n/2 ln 2π and its derivatives; a given `curvature` is not computed anew.

    With P = K⁻¹, a = Py, S = ∂K/∂ln τ = A u e^(−x) and ∂S/∂ln τ = S (u/x − 2). ∂K/∂ln A is K less the noise N, so its
    traces need only the diagonal of P, and one product of matrices is left: M = PS.
    """
    scratch = scratch or Scratch()
    count, noise = batch.real.sum(1).double(), batch.noise * batch.real
    matrix, fall, x, u = covariance(at, batch, scratch)
    factor, sound = factorise(matrix, scratch)
    half_log_det = factor.diagonal(dim1=1, dim2=2).double().log().sum(1)  # 0 of padding points
    p = torch.cholesky_inverse(factor, out=scratch("p", matrix.shape, matrix.dtype).mT).mT
    a = product(p, batch.flux[:, :, None])
    s = fall.mul_(u)
    sides = torch.cat([batch.flux[:, :, None] - noise[:, :, None] * a, product(s, a)], 2)  # ∂K a
    fits = product(a.mT, sides)[:, 0].double()
    noisy, ps = _dot(noise, p.diagonal(dim1=1, dim2=2)), torch.mul(p, s, out=scratch("ps", p.shape, p.dtype))
    traces = torch.stack([count - noisy, ps.sum((1, 2)).double()], 1)  # tr P∂K
    gradient = 0.5 * (fits - traces)
    value = -0.5 * _dot(batch.flux, a[:, :, 0]) - half_log_det - 0.5 * float(np.log(2 * np.pi)) * count
    sound &= value.isfinite() & gradient.isfinite().all(1)
    if curvature is not None:
        return Likelihood(value.where(sound, -torch.inf), gradient, curvature, curvature)
    m = product(p, s, scratch("m", p.shape, p.dtype))
    cross = traces[:, 1] - _dot(noise, torch.mul(m, p, out=matrix).sum(2))  # tr P∂K P∂K
    curved = product(sides.mT, product(p, sides)).double()
    ratio = u.div_(x.clamp_min_(1e-12)).sub_(2)
    bends = product(a.mT, product(s.mul_(ratio), a))[:, 0, 0].double() - ps.mul_(ratio).sum((1, 2))
    squared = product(p.square_(), noise[:, :, None])[:, :, 0]
    last = torch.mul(m, m.mT, out=x).sum((1, 2)).double()
    information = 0.5 * _symmetric(count - 2 * noisy + _dot(squared, noise), cross, last)
    curvature = curved - information - _symmetric(gradient[:, 0], gradient[:, 1], 0.5 * bends)
    sound &= curvature.isfinite().all(2).all(1)
    return Likelihood(value.where(sound, -torch.inf), gradient, curvature, information)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left.double() * right.double()).sum(1)


def _symmetric(first: Tensor, cross: Tensor, last: Tensor) -> Tensor:
    return torch.stack([first, cross, cross, last], 1).view(-1, 2, 2)


# ---------------------------------------------------------------- optimum


class Stage(NamedTuple):
    stride: int
    """Every how many points"""
    dtype: torch.dtype
    enough: float
    """Longest step that ends it"""
    most: int
    """Steps"""
    chord: bool = False
    """With the curvature of the stage before"""


STAGES = (
    Stage(3, torch.float32, 0.2, 8),
    Stage(1, torch.float32, 0.03, 12),
    Stage(1, torch.float64, 0.001, 2, chord=True),
    Stage(1, torch.float64, 0.001, 40),
)
FEWEST_COARSE = 45
"""Points from which the first stage pays."""
SUSPECT, SECOND_START = float(np.log(6.0)), float(np.log(200.0))
"""ln τ below which an optimum is doubted, and from where another is looked for."""


@dataclass(slots=True)
class Search:
    """Where each object's search stands."""

    low: Tensor
    high: Tensor
    """(B, 2) bounds"""
    best: Tensor
    """(B, 2) best place so far"""
    next: Tensor
    """(B, 2) place to try"""
    value: Tensor
    """(B,) likelihood at the best place"""
    done: Tensor
    curvature: Tensor
    """(B, 2, 2) where last evaluated"""
    scratch: Scratch

    def run(self, batch: Batch, stage: Stage, rows: Tensor) -> None:
        """Damped steps of `rows`, until one is short enough, which is still taken."""
        self.value[rows], self.done[rows] = -torch.inf, False
        for _ in range(stage.most):
            if len(rows):
                self._step(rows, self._evaluate(rows, batch, stage), stage)
                rows = rows[~self.done[rows]]

    def _evaluate(self, rows: Tensor, batch: Batch, stage: Stage) -> Likelihood:
        parts = []
        for some in rows.split(per_batch(batch.length(stage.stride), dtype=stage.dtype)):
            curvature = self.curvature[some] if stage.chord else None
            chosen = batch.part(some, stage.stride, stage.dtype)
            parts.append(likelihood(self.next[some], chosen, curvature, self.scratch))
        return Likelihood(*(torch.cat(each) for each in zip(*parts)))

    def _step(self, rows: Tensor, found: Likelihood, stage: Stage) -> None:
        at, best = self.next[rows], self.best[rows]
        slack = (1e-11 if stage.dtype == torch.float64 else 1e-5) * found.value.abs().clamp_min(
            100
        )  # rounding
        better = found.value.isfinite() & (found.value >= self.value[rows] - slack)
        curvature = _convex(found)
        newton = _newton(at, found.gradient, curvature, self.low[rows], self.high[rows])
        after = torch.where(better[:, None], newton, best + 0.25 * (at - best))
        best = torch.where(better[:, None], at, best)
        value = torch.where(better, found.value, self.value[rows])
        done = better & ((after - best).abs().amax(1) < stage.enough)
        self.value[rows] = torch.where(done, value + 0.5 * (found.gradient * (newton - at)).sum(1), value)
        self.best[rows] = torch.where(done[:, None], after, best)
        self.next[rows], self.done[rows] = after, done
        self.curvature[rows] = torch.where(better[:, None, None], curvature, self.curvature[rows])


def _convex(found: Likelihood) -> Tensor:
    """(B, 2, 2) the curvature where a maximum may be near, Fisher's information elsewhere."""
    bend = found.curvature
    product = bend[:, 0, 0] * bend[:, 1, 1]
    convex = (bend[:, 0, 0] > 0) & (product - bend[:, 0, 1] ** 2 > 1e-3 * product)
    return torch.where(convex[:, None, None], bend, found.information)


def _newton(
    at: Tensor, gradient: Tensor, bend: Tensor, low: Tensor, high: Tensor, longest: float = 2.0
) -> Tensor:
    """(B, 2) where the step leads, within the bounds; parameters that press against one stay.

    Where one parameter's step would leave the bounds it goes to the bound, and the other to its best place for that.
    """
    held = ((at <= low) & (gradient <= 0)) | ((at >= high) & (gradient >= 0))
    own, cross = bend.diagonal(dim1=1, dim2=2).clamp_min(1e-9), bend[:, 0, 1:]
    free = cross.masked_fill(held.any(1, keepdim=True), 0.0)
    gradient = gradient.masked_fill(held, 0.0)
    determinant = (own.prod(1, keepdim=True) - free**2).clamp_min(1e-12)
    step = (own.flip(1) * gradient - free * gradient.flip(1)) / determinant
    step = step * (longest / step.abs().amax(1, keepdim=True).clamp_min(longest))
    inside = torch.minimum(torch.maximum(at + step, low), high) - at
    other = (gradient - cross * inside.flip(1)) / own
    step = torch.where((inside != step).flip(1) & ~held, other.clamp(-longest, longest), inside)
    return torch.minimum(torch.maximum(at + step, low), high)


def optimum(batch: Batch) -> tuple[Tensor, Search]:
    """Start values (B, 2) and the search where it ended.

    A short timescale may be a lesser optimum: then, and where there was none, the better of that and of a search from
    a long one.
    """
    start = start_values(batch)
    search = _search(batch, start, start, STAGES)
    again = (~search.done | (search.best[:, 1] < SUSPECT)).nonzero()[:, 0]
    if len(again):
        begin = start[again].clone()
        begin[:, 1] = SECOND_START
        second = _search(batch.part(again), start[again], begin, STAGES[1:])
        better = second.done & (~search.done[again] | (second.value > search.value[again]))
        for name in ("best", "value", "done"):
            getattr(search, name)[again[better]] = getattr(second, name)[better]
    return start, search


def _search(batch: Batch, start: Tensor, begin: Tensor, stages: Sequence[Stage]) -> Search:
    """From `begin`, within the bounds about `start`."""
    low, high = start - AMPLITUDE_ROOM, start + AMPLITUDE_ROOM
    low[:, 1], high[:, 1] = 0.0, float(np.log(LONGEST))
    every, curvature = torch.arange(len(start)), torch.eye(2).double().repeat(len(start), 1, 1)
    search = Search(
        low, high, begin.clone(), begin.clone(), begin[:, 0].clone(), every < 0, curvature, Scratch()
    )
    for stage in stages:
        if stage.stride > 1 and batch.length() < FEWEST_COARSE:
            continue
        rows = every
        if stage.dtype == torch.float64:
            rows = (search.done if stage.chord else ~search.done).nonzero()[:, 0]
        # Each stage tries where the one before ended, and falls back towards the beginning from there.
        search.best[rows] = begin[rows]
        search.run(batch, stage, rows)
    return search
