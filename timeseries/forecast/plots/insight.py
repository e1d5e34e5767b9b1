"""Pictures of what a model does: weights of the linear family, Autoformer's periods, trend and seasonal parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from shared.plots.style import LIGHT, PALETTE, dress, new_figure
from timeseries.forecast.plots.lines import dated, plain_text
from timeseries.forecast.series import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SEASONS = 14
"""Seasonal lags marked; of more every second, third …"""


def weight_figure(weight: Floats, season: int, title: str) -> Figure:
    """A linear model's map (H, L) as an image: how much the value `lag` steps before the forecast's first step counts
    for each step ahead; above it the mean along the diagonals, where a season shows as peaks. Ticks are multiples of
    `season`."""
    horizon, length = weight.shape
    figure = new_figure(8.4, 5.8)
    top, below = figure.subplots(2, 1, height_ratios=(1, 2.4))
    distance, mean = along_diagonals(weight)
    top.axhline(0, color=LIGHT.muted, linewidth=0.8)
    top.fill_between(distance, mean, color=PALETTE[0], alpha=0.25, linewidth=0)
    top.plot(distance, mean, color=PALETTE[0], linewidth=1.1)
    top.set_xlim(distance[-1] + 1, distance[0] - 1)
    top.set_xticks(seasonal_ticks(season, int(distance[-1])))
    top.set_xlabel("steps from a value to the step it helps to forecast (the newest value left out)")
    top.set_ylabel("mean weight")
    dress(top, title)
    # The newest value often outweighs all others: the scale ends where one in two hundred weights lies beyond.
    limit = float(np.quantile(np.abs(weight), 0.995)) or 1.0
    extent = (length + 0.5, 0.5, horizon + 0.5, 0.5)
    picture = below.imshow(
        weight, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, extent=extent, interpolation="nearest"
    )
    below.set_xticks(seasonal_ticks(season, length))
    below.set_ylabel("step ahead")
    known = f"; ticks at multiples of the season, {season} steps" if 1 < season <= length else ""
    below.set_xlabel(f"lag: steps before the forecast's first one{known}")
    dress(below, grid=False)
    figure.tight_layout(pad=0.9, h_pad=1.2, rect=(0, 0, 0.9, 1))
    figure.align_ylabels([top, below])
    box = below.get_position()
    bar = figure.colorbar(
        picture, cax=figure.add_axes((0.905, box.y0, 0.014, box.height)), extend="both", extendfrac=0.03
    )
    bar.ax.tick_params(labelsize=8, colors=LIGHT.muted)
    bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


def along_diagonals(weight: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Distances lag + step − 1, ascending, and the mean weight at each; of (H, L), lag 1 left out."""
    horizon, length = weight.shape
    lags, steps = np.arange(length, 1, -1), np.arange(1, horizon + 1)
    distance = lags[None] + steps[:, None] - 1
    sums = np.bincount(distance.ravel(), weight[:, : length - 1].ravel())
    count = np.bincount(distance.ravel())
    found = np.flatnonzero(count)
    return found, sums[found] / count[found]


def seasonal_ticks(season: int, length: int) -> list[int]:
    """Lag 1 and multiples of the season; round steps where there is none or it does not fit."""
    if season <= 1 or season > length:
        step = max(10 ** int(np.log10(max(length // 4, 1))), 1)
        step *= next((k for k in (1, 2, 5, 10) if length // (step * k) <= 10), 10)
        return [1, *range(step, length + 1, step)] if step > 1 else list(range(1, length + 1))
    every = -(-(length // season) // MAX_SEASONS) * season
    return [1, *range(every, length + 1, every)]


def decomposition_figure(
    times: pd.DatetimeIndex | pd.RangeIndex, values: Floats, kernel: int, name: str
) -> Figure:
    """One channel (T,), original units: the series, its moving average over `kernel` steps, and what is left
    (the series decomposition of Autoformer and DLinear)."""
    from timeseries.forecast.models.linear import moving_average

    filled = pd.Series(values).interpolate(limit_direction="both").to_numpy()
    trend = moving_average(torch.from_numpy(filled)[:, None], kernel)[:, 0].numpy()
    panels: list[tuple[str, Floats, str]] = [
        (plain_text(name), values, LIGHT.text),
        (f"trend: moving average over {kernel} steps", trend, PALETTE[1]),
        ("seasonal: what is left", values - trend, PALETTE[0]),
    ]
    figure = new_figure(9.0, 4.8)
    for axes, (title, line, ink) in zip(figure.subplots(3, 1, sharex=True), panels):
        axes.plot(times, line, color=ink, linewidth=1.1)
        axes.margins(x=0.005)
        dress(axes, title)
        dated(axes, times)
    figure.axes[2].axhline(0, color=LIGHT.muted, linewidth=0.8)
    figure.tight_layout(pad=0.9, h_pad=0.9)
    return figure


def period_figure(spectra: dict[str, tuple[Floats, Floats]], season: int) -> Figure:
    """Autoformer's delays: for each layer named, the share of its weight that every delay got, over real windows."""
    figure = new_figure(8.4, 1.6 * len(spectra) + 0.6)
    longest = max(int(delays.max()) for delays, _ in spectra.values())
    panels = figure.subplots(len(spectra), 1, squeeze=False, sharex=True)[:, 0]
    for number, (axes, (name, (delays, shares))) in enumerate(zip(panels, spectra.items())):
        _stems(axes, delays, shares, PALETTE[number % len(PALETTE)])
        axes.set_xticks([0, *seasonal_ticks(season, longest)[1:]])
        axes.set_xlim(-0.5, longest + 1)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share")
        dress(axes, plain_text(name))
    panels[-1].set_xlabel(
        "delay, steps" + (f" (ticks at multiples of the season, {season})" if 1 < season <= longest else "")
    )
    panels[-1].xaxis.label.set_fontsize(9.5)
    figure.tight_layout(pad=0.9, h_pad=0.9)
    return figure


def _stems(axes: Axes, delays: Any, shares: Any, ink: str) -> None:
    axes.vlines(delays, 0, shares, color=ink, linewidth=1.6)
