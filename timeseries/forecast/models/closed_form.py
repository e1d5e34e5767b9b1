"""Least squares of the linear family without gradient steps, from the windows' moments: the W, b that minimise
Σ (y − W z − b)² + ridge·‖W‖² over all training windows of all series (and channels, where weights are shared); the
intercept b is free. float64 throughout.

nlinear's inputs z = x − x_last and targets y − x_last are linear in the window, so their moments follow from those of
x. dlinear can express exactly what linear can; it gets linear's solution, `LinearFamily.assign` divides it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from shared.errors import ResourcesExhausted
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.models.linear import LinearFamily
from timeseries.forecast.models.moments import CHUNK_BYTES, Moments
from timeseries.forecast.windows import Prepared


class Solution(NamedTuple):
    """float64; G groups of channels."""

    weight: Tensor
    """(G, H, L)"""
    bias: Tensor
    """(G, H)"""
    past: Tensor
    """(G, H, P·L)"""
    future: Tensor
    """(G, H, F·(L + H))"""
    mse: Tensor
    """(G, H) mean squared error over the windows."""


class Shape(NamedTuple):
    """What the cost of a fit depends on."""

    rows: int
    """Training rows of all series together."""
    channels: int
    length: int
    horizon: int
    past: int = 0
    future: int = 0
    individual: bool = False
    missing: bool = False


def fit_closed_form(
    network_model: LinearFamily,
    prepared: Sequence[Prepared],
    config: ForecastConfig,
    say: Callable[[str], None],
) -> Moments:
    """Fill the model's weights in place. Returns the moments, which take further rows (`Moments.update`), then `refit`.

    Raises `ResourcesExhausted` when the moments do not fit in memory.
    """
    model, started = network_model, time.monotonic()
    need, _ = estimate(shape_of(model, prepared))
    if need > (have := psutil.virtual_memory().available):
        raise ResourcesExhausted(
            f"closed form: about {need / 2**30:.1f} GiB wanted, {have / 2**30:.1f} GiB of memory available; "
            "set model.individual=false, shorten data.input_length, or set model.solver=sgd"
        )
    moments = Moments.of(prepared, model.length, model.horizon, model.individual)
    solution = refit(model, moments, config.model.ridge)
    say(
        f"closed form: {moments.windows:,} windows of {moments.channels} channels, training MSE "
        f"{float(solution.mse.mean()):.4f}, {time.monotonic() - started:.2f} s"
    )
    return moments


def refit(model: LinearFamily, moments: Moments, ridge: float) -> Solution:
    """Solve for what the moments hold now and fill the model's weights. Raises `ValueError` for a model of quantiles,
    which squared errors do not give."""
    if model.quantiles != 1:
        raise ValueError(f"closed form gives one forecast; the model has {model.quantiles} quantiles")
    solution = solve(moments, ridge, differenced=model.kind == "nlinear")
    model.assign(solution.weight, solution.bias, solution.past, solution.future)
    return solution


def solve(moments: Moments, ridge: float, differenced: bool = False) -> Solution:
    """The least squares solution; `differenced`: of windows less their last input value (nlinear). Raises `ValueError`
    when no window was counted."""
    if moments.windows < 1:
        raise ValueError("closed form: no training window; shorten the input length or the horizon")
    groups, inputs = len(moments.sums), moments.length + sum(moments.spans)
    size = max(1, CHUNK_BYTES // (32 * inputs * (inputs + moments.horizon)))
    parts = [_solve(moments, slice(at, at + size), ridge, differenced) for at in range(0, groups, size)]
    return Solution(*(torch.cat(each) for each in zip(*parts)))


def _solve(moments: Moments, groups: slice, ridge: float, differenced: bool) -> Solution:
    length, extra = moments.length, sum(moments.spans)
    lags, cross, squares, mean = _covariances(moments, groups, differenced)
    size = length + extra
    inside = np.empty((len(lags), size, size))
    inside[:, :length, :length] = lags[:, :, :length]
    inside[:, length:, :length] = cross[:, :, :length]
    inside[:, :length, length:] = cross[:, :, :length].transpose(0, 2, 1)
    extra_mean = moments.extra_sums / moments.windows
    inside[:, length:, length:] = moments.extra_products / moments.windows - np.outer(extra_mean, extra_mean)
    toward = torch.from_numpy(np.concatenate([lags[:, :, length:], cross[:, :, length:]], 1))
    matrix = torch.from_numpy(inside)
    count = moments.windows * moments.each
    found = _ridge_solve(matrix, toward, ridge / count, moments.pairs is not None)
    input_mean = torch.from_numpy(np.concatenate([mean[:, :length], np.tile(extra_mean, (len(mean), 1))], 1))
    bias = torch.from_numpy(mean[:, length:]) - (input_mean[:, None] @ found)[:, 0]
    error = torch.from_numpy(squares) - 2 * (found * toward).sum(1) + (found * (matrix @ found)).sum(1)
    weight, past, future = found.mT.split([length, moments.past * length, moments.future * moments.depth], 2)
    return Solution(weight, bias, past, future, error)


def _covariances(moments: Moments, groups: slice, differenced: bool) -> tuple[np.ndarray, ...]:
    """Of inputs with all steps (G, L, D), of exogenous features with all steps (G, E, D), of each target step with
    itself (G, H); means of the steps (G, D)."""
    count = moments.windows * moments.each
    pairs = count if moments.pairs is None else np.maximum(moments.pairs[groups], 1)
    seen = count if moments.seen is None else np.maximum(moments.seen[groups], 1)
    mean = moments.sums[groups] / seen
    length = moments.length
    lags = moments.products[groups] / pairs
    lags -= mean[:, :length, None] * mean[:, None]
    extra_mean = moments.extra_sums / moments.windows
    over = seen if moments.seen is None else seen[:, None]  # type: ignore[index]
    cross = moments.cross[groups] / over - extra_mean[:, None] * mean[:, None]
    squares = (moments.squares[groups] / seen - mean**2)[:, length:]
    if differenced:
        last = length - 1
        squares = squares - 2 * lags[:, last, length:] + lags[:, last, last, None]
        lags = lags - lags[:, last : last + 1]
        lags = lags - lags[:, :, last : last + 1]
        cross = cross - cross[:, :, last : last + 1]
        mean = mean - mean[:, last : last + 1]
    return lags, cross, squares, mean


def _ridge_solve(matrix: Tensor, toward: Tensor, ridge: float, noisy: bool) -> Tensor:
    """(A + ridge·I)⁻¹ B for (G, F, F) and (G, F, H). Where A has no inverse, or is `noisy` because of missing values
    (so that it may have negative eigenvalues), directions whose eigenvalue is no larger than the most negative one's
    size, or than rounding, get nothing."""
    if not noisy:
        shifted = matrix.clone()
        shifted.diagonal(dim1=1, dim2=2).add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if not failed.any():
            return torch.cholesky_solve(toward, factor)
    values, vectors = torch.linalg.eigh(matrix)
    floor = torch.maximum(-values[:, :1], values[:, -1:] * len(matrix[0]) * torch.finfo(matrix.dtype).eps)
    inverse = torch.where(values > floor, 1 / (values + ridge), 0.0)
    return vectors @ (inverse[:, :, None] * (vectors.mT @ toward))


# ---------------------------------------------------------------- cost


def shape_of(model: LinearFamily, prepared: Sequence[Prepared]) -> Shape:
    """What `estimate` asks about a fit."""
    rows = sum(one.borders.train for one in prepared)
    past, future = prepared[0].past.shape[1], prepared[0].future.shape[1]
    missing = not all(one.mask[: one.borders.train].all() for one in prepared)
    return Shape(rows, model.channels, model.length, model.horizon, past, future, model.individual, missing)


def estimate(shape: Shape) -> tuple[int, int]:
    """(bytes, operations) a fit takes beyond the data themselves: the moments, which stay, the largest working set and
    the solution, a quarter more for what freed memory leaves in pieces; transforms, recurrences and solving."""
    length, depth = shape.length, shape.length + shape.horizon
    extra = shape.past * length + shape.future * depth
    groups = shape.channels if shape.individual else 1
    inputs = length + extra
    lags = length * depth
    stays = groups * (lags * (2 if shape.missing else 1) + extra * depth) + extra**2
    solution = groups * inputs * shape.horizon * 3
    held = shape.rows * shape.channels if shape.missing else 0
    counting = shape.channels * (64 * shape.rows + (16 * lags if shape.individual else 0))
    system = 32 * inputs * (inputs + shape.horizon)
    work = min(counting, CHUNK_BYTES + 64 * shape.rows + 16 * lags) + min(
        groups * system, CHUNK_BYTES + system
    )
    transforms = (
        shape.channels * (2 if shape.missing else 1) * 3 * 5 * shape.rows * int(np.log2(shape.rows + 2) + 1)
    )
    recurrences = 4 * (shape.channels * lags * (2 if shape.missing else 1) + groups * extra * depth)
    solving = groups * (inputs**3 // 3 + 2 * inputs**2 * shape.horizon)
    return 10 * (stays + solution) + 4 * held + work, transforms + recurrences + solving + 4 * extra**2
