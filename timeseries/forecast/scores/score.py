"""A network over windows: every window counted, scaled errors, summed in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.windows import Batch, Inputs, Windows

EVAL_VALUES = 4_000_000
"""Numbers a batch of scored windows may hold (input and horizon, all channels)."""


@dataclass(frozen=True)
class Score:
    """Mean errors on scaled values, over `windows` windows."""

    mse: float
    mae: float
    windows: int
    by_step: NDArray[np.float64]
    """(2, H, C): MSE and MAE by step and channel; NaN where nothing was known."""
    by_window: NDArray[np.float64]
    """(N,) MSE of each window."""


def batches(
    windows: Windows, size: int, count: int | None = None
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Numbers of the windows and the windows, in order."""
    total = len(windows) if count is None else count
    for start in range(0, total, size):
        chosen = np.arange(start, min(start + size, total))
        yield chosen, windows.batch(chosen)


@torch.no_grad()
def score(network: ForecastNetwork, windows: Windows, drop_last: int = 0) -> Score:
    """`drop_last`: leave out the last windows that do not fill a batch of that size, as the published code did."""
    network.eval()
    total = len(windows) // drop_last * drop_last if drop_last else len(windows)
    sums: Tensor | None = None
    by_window = []
    for _, batch in batches(windows, eval_batch(network.config), total):
        error = (
            (network.point(on_device(network, batch.inputs)).cpu() - batch.y)
            .masked_fill(~batch.y_mask, 0)
            .double()
        )
        known = batch.y_mask.double()
        part = torch.stack([error.square().sum(0), error.abs().sum(0), known.sum(0)])
        sums = part if sums is None else sums + part
        by_window.append(error.square().sum((1, 2)) / known.sum((1, 2)).clamp(min=1))
    if sums is None:
        shape = (2, network.config.data.horizon, len(network.config.data.targets))
        return Score(np.nan, np.nan, 0, np.full(shape, np.nan), np.empty(0))
    square, absolute, count = sums
    whole = count.sum().clamp(min=1)
    return Score(
        float(square.sum() / whole),
        float(absolute.sum() / whole),
        total,
        (sums[:2] / count.where(count > 0, torch.nan)).numpy(),
        torch.cat(by_window).numpy(),
    )


@torch.no_grad()
def errors_of(network: ForecastNetwork, windows: Windows, limit: int) -> Tensor:
    """(N, H, C) truth minus forecast, scaled, float32; NaN where the truth is missing.

    Of more than `limit` numbers, evenly spaced windows.
    """
    network.eval()
    data = network.config.data
    stride = -(-len(windows) * data.horizon * len(data.targets) // limit)
    chosen, size, parts = np.arange(0, len(windows), max(stride, 1)), eval_batch(network.config), []
    for batch in (windows.batch(chosen[i : i + size]) for i in range(0, len(chosen), size)):
        error = batch.y - network.point(on_device(network, batch.inputs)).cpu()
        parts.append(error.masked_fill(~batch.y_mask, torch.nan))
    return torch.cat(parts)


def on_device(network: ForecastNetwork, inputs: Inputs) -> Inputs:
    """`inputs` where the network's weights are."""
    return inputs.to(next((p.device for p in network.parameters()), torch.device("cpu")))


def eval_batch(config: ForecastConfig) -> int:
    """Windows scored at once."""
    data = config.data
    return max(1, min(512, EVAL_VALUES // ((data.input_length + data.horizon) * max(len(data.targets), 1))))
