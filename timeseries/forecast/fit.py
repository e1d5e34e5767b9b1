"""Training by the way the model asks for (gradient steps, exact least squares, nothing), then its intervals."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shared.training.fit import FitResult
from shared.training.fit import fit as fit_by_steps
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.models.closed_form import estimate, fit_closed_form, refit, shape_of
from timeseries.forecast.models.moments import Moments, rows_of
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.scores.score import errors_of, score
from timeseries.forecast.sgd import fit_by_epochs, suits
from timeseries.forecast.windows import Borders, Prepared, Windows

if TYPE_CHECKING:
    from timeseries.forecast.data import ForecastData


CALIBRATION_VALUES = 64_000_000
"""Errors kept at once; of more, evenly spaced windows are taken (neighbours say nearly the same)."""


def by_steps(config: ForecastConfig) -> bool:
    """Whether the model is trained by gradient steps."""
    model = config.model
    exact = model.name in ("linear", "nlinear", "dlinear") and model.solver == "closed-form"
    return not exact and model.name != "naive"


def fit(config: ForecastConfig, task: Any, data: ForecastData, context: Any) -> FitResult:
    """Raises what `shared.training.fit` raises, and `ResourcesExhausted` for moments larger than memory."""
    if by_steps(config):
        train = fit_by_epochs if suits(config) else fit_by_steps
        result = train(config, task, data, context)
        task.network.load_state_dict(result.state_dict)
    else:
        result = _without_steps(config, task.network, data, context)
    calibrate(task.network, data, context.say)
    return replace(result, state_dict={k: v.detach().cpu() for k, v in task.network.state_dict().items()})


def _without_steps(
    config: ForecastConfig, network: ForecastNetwork, data: ForecastData, context: Any
) -> FitResult:
    started = time.monotonic()
    if config.model.name != "naive":
        model: Any = network.model
        need, _ = estimate(shape_of(model, data.prepared))
        context.say(f"closed form: about {need / 2**20:,.0f} MiB of memory wanted beside the table")
        fit_closed_form(model, data.prepared, config, context.say)
    found = score(network, data.windows("val"))
    metrics = {"val/mse": found.mse, "val/mae": found.mae}
    if context.logger:
        context.logger.log_metrics(metrics, 1)
    return FitResult(network.state_dict(), metrics, {}, steps=1, epochs=1, seconds=time.monotonic() - started)


@torch.no_grad()
def calibrate(network: ForecastNetwork, data: ForecastData, say: Callable[[str], None]) -> None:
    """Conformal offsets from windows that the weights have not seen; says where these are too few for a level."""
    if network.config.intervals.method != "conformal":
        return
    errors, levels = held_out_errors(network, data), network.config.intervals.levels
    fewest = int(errors.isfinite().sum(0).min())
    for level in levels:
        if (wanted := math.ceil((1 + level) / (1 - level))) > fewest:
            there = f"{fewest} are there, whose largest stands in"
            say(f"intervals: {level:g} wants {wanted} errors a step and channel; {there}")
    network.get_buffer("offsets").copy_(conformal_offsets(errors, levels))


def held_out_errors(network: ForecastNetwork, data: ForecastData) -> Tensor:
    """(N, H, C) of the validation windows; where refitting costs nothing, of blocks of training rows too, each forecast
    by weights fitted without it (cross-conformal, Vovk 2015; blocks, because neighbouring rows are alike)."""
    config = network.config
    blocks = 0 if by_steps(config) or config.model.name == "naive" else config.intervals.blocks
    limit = CALIBRATION_VALUES // (blocks + 1)
    errors = [errors_of(network, data.windows("val"), limit)]
    for number in range(blocks):
        windows, moments = _block(network, data.prepared, number / blocks, (number + 1) / blocks)
        if not len(windows) or moments.windows < 1:
            continue
        other = copy.deepcopy(network)
        model: Any = other.model
        refit(model, moments, config.model.ridge)
        errors.append(errors_of(other, windows, limit))
    return torch.cat(errors)


def _block(
    network: ForecastNetwork, prepared: Sequence[Prepared], begin: float, end: float
) -> tuple[Windows, Moments]:
    """Windows of the training rows between two shares of every series, and the moments of those before and after."""
    data = network.config.data
    moments = Moments(
        data.input_length,
        data.horizon,
        len(data.targets),
        len(data.past_columns),
        len(data.future_columns),
        network.config.model.individual,
    )
    blocks = []
    for one in prepared:
        rows = one.borders.train
        first, last = int(rows * begin), int(rows * end)
        blocks.append(replace(one, borders=Borders(first, last, last)))
        for span in ((0, first), (last, rows)):
            if span[1] - span[0] >= moments.depth:
                moments.add(*rows_of(one, *span))
    return Windows(blocks, "val", data.input_length, data.horizon), moments


def conformal_offsets(errors: Tensor, levels: Sequence[float]) -> Tensor:
    """(K levels, 2, H, C) lower and upper offsets of (N, H, C) errors (NaN where unknown): for every step and channel
    the order statistics ceil((n + 1)(1 ± level)/2) of its n errors, which cover a new exchangeable error with
    probability `level` (Vovk et al. 2005; Lei et al. 2018, section 2.2). Neighbouring windows are not exchangeable: see
    the measured coverage. 0 where no error is known."""
    count = errors.isfinite().sum(0)
    ordered = errors.nan_to_num(nan=float("inf")).sort(0).values
    pairs = []
    for level in levels:
        tail = (1 - level) / 2
        low = (((count + 1) * tail).floor() - 1).clamp(min=0).long()
        high = (((count + 1) * (1 - tail)).ceil() - 1).clamp(min=0).long().minimum((count - 1).clamp(min=0))
        pairs.append(torch.cat([ordered.gather(0, low[None]), ordered.gather(0, high[None])]))
    return torch.stack(pairs).nan_to_num(posinf=0.0, neginf=0.0)
