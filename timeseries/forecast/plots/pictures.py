"""Which pictures an evaluation gets, and their captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.plots.style import save_png
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.plots import figures, insight
from timeseries.forecast.scores.backtest import forecasts, origins_of
from timeseries.forecast.scores.metrics import Tally
from timeseries.forecast.scores.score import on_device
from timeseries.forecast.scores.summary import step_errors, steps_of, window_errors
from timeseries.forecast.windows import Windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
"""Channels of the picture of windows."""
STRIPS = 4
"""Channels of the back-test's picture."""
STRIP_ROWS = 1200
"""Rows of it, at least four origins."""
PERIOD_WINDOWS = 64
"""Windows that Autoformer's delays are taken from."""
DECOMPOSED_SEASONS = 14
"""Seasons of the decomposed stretch."""


def draw_all(
    network: ForecastNetwork, tally: Tally, season: int, out: Path, origins: int = 0
) -> dict[str, Path]:
    """Caption → picture in `out`; `origins` as ``evaluate.backtest_origins``."""
    drawn: dict[str, Path] = {}

    def keep(caption: str, name: str, figure: Figure) -> None:
        drawn[caption] = save_png(figure, out / f"{name}.png", dpi=120)

    by_step, levels = steps_of(tally), tally.levels
    channels = tally.windows.prepared[0].series.channels
    errors = step_errors(tally)
    chosen = spread_channels(errors, COLUMNS)
    ranked = ranked_windows(tally)
    shown = [shown_window(network, tally, number, rank) for rank, number in ranked.items()]
    few = (
        f"; channels with the largest, median and smallest error of {len(channels)}"
        if len(channels) > COLUMNS
        else ""
    )
    keep(
        f"Forecast against truth: {', '.join(ranked)} window by MSE over all channels, in the units of the table{few}.",
        "windows",
        figures.window_figure(shown, levels, chosen),
    )
    keep("Error by step ahead and channel.", "errors", figures.error_figure(by_step, errors, channels))
    if levels:
        caption = (
            "Measured coverage of the intervals by step ahead, beside the level wanted, and their width."
        )
        keep(caption, "coverage", figures.coverage_figure(by_step, levels))
    rolled = forecasts(network, tally.windows, strip_origins(tally.windows, origins))
    names = [channels[number] for number in spread_channels(errors, STRIPS)]
    caption = f"Rolling back-test of {rolled['series'].iloc[0]}: forecasts from successive origins of the rows scored."
    keep(caption, "backtest", figures.backtest_figure(rolled, names))
    for caption, name, figure in _of_model(network, tally, season):
        keep(caption, name, figure)
    return drawn


def spread_channels(errors: NDArray[np.float64], count: int) -> list[int]:
    """At most `count` channels from the largest to the smallest mean error (H, C)."""
    order = np.argsort(-np.where(np.isfinite(errors), errors, 0).mean(0), kind="stable")
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [int(order[place]) for place in places]


def strip_origins(windows: Windows, limit: int = 0) -> NDArray[np.int64]:
    """Numbers of the windows in the back-test's picture: the last ones of the first series that has any, unless as many
    as `limit` over all of it were asked for."""
    chosen = origins_of(windows, limit)
    chosen = chosen[windows.index[chosen, 0] == windows.index[chosen[0], 0]]
    return chosen if limit else chosen[-max(STRIP_ROWS // windows.horizon, 4) :]


def ranked_windows(tally: Tally) -> dict[str, int]:
    """Rank → number of the worst, median and best window, none overlapping another's horizon where that can be."""
    errors, index, horizon = window_errors(tally), tally.windows.index, tally.windows.horizon
    order = np.argsort(errors, kind="stable")[: int(np.isfinite(errors).sum())]
    middle = np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) // 2), kind="stable")
    found: dict[str, int] = {}
    for rank, candidates in (("worst", order[::-1]), ("best", order), ("median", order[middle])):
        for number in candidates:
            taken = [index[other] for other in found.values()]
            if all(index[number, 0] != n or abs(index[number, 1] - row) >= horizon for n, row in taken):
                found[rank] = int(number)
                break
    return {rank: found[rank] for rank in ("worst", "median", "best") if rank in found}


@torch.no_grad()
def shown_window(network: ForecastNetwork, tally: Tally, number: int, rank: str) -> figures.Shown:
    """The window with at most twice the horizon of context."""
    windows = tally.windows
    series, start = windows.index[number]
    one, origin = windows.prepared[series], start + windows.length
    point, bounds = network.interval(on_device(network, windows.batch(np.array([number])).inputs))
    rows = slice(origin - min(windows.length, 2 * windows.horizon), origin + windows.horizon)
    name = f"{one.series.id}, " if len(windows.prepared) > 1 else ""
    return figures.Shown(
        f"{rank.capitalize()}: {name}MSE {window_errors(tally)[number]:.3g}",
        one.series.times[rows],
        one.series.values[rows],
        one.scale.undo(point[0].cpu().numpy()),
        one.scale.undo(bounds[0].cpu().numpy()),
        one.series.channels,
    )


# ---------------------------------------------------------------- of the model itself


def _of_model(network: ForecastNetwork, tally: Tally, season: int) -> list[tuple[str, str, Figure]]:
    """(caption, name, figure) of what can be seen inside this kind of model."""
    name = network.config.model.name
    draw: dict[str, Callable[..., list[tuple[str, str, Figure]]]] = {
        "linear": _weights,
        "nlinear": _weights,
        "dlinear": _weights,
        "autoformer": _periods,
    }
    found = draw[name](network, tally, season) if name in draw else []
    if name in ("dlinear", "autoformer"):
        found.append(_decomposition(network, tally.windows, season))
    return found


def _weights(network: ForecastNetwork, tally: Tally, season: int) -> list[tuple[str, str, Figure]]:
    model: Any = network.model
    weight = model.effective_weight().cpu().numpy()
    if weight.shape[2] < 2:  # a single lag is no picture
        return []
    channels, name = tally.windows.prepared[0].series.channels, network.config.model.name
    if len(weight) == 1:
        title = f"{name}: weights, the same for every channel"
        return [
            (
                f"Learned weights of {name}, from each lag to each step.",
                "weights",
                insight.weight_figure(weight[0], season, title),
            )
        ]
    best = spread_channels(step_errors(tally), 1)[0]
    title = f"{name}: weights of {channels[best]}"
    caption = f"Learned weights of {name} for {channels[best]}, the channel with the largest error of {len(channels)}."
    return [(caption, "weights", insight.weight_figure(weight[best], season, title))]


def _periods(network: ForecastNetwork, tally: Tally, season: int) -> list[tuple[str, str, Figure]]:
    from timeseries.forecast.models.autoformer import top_delays

    windows = tally.windows
    some = np.unique(np.linspace(0, len(windows) - 1, PERIOD_WINDOWS).round().astype(int))
    spectra: dict[str, Any] = {}
    for name, (delays, weights) in top_delays(
        network.model, on_device(network, windows.batch(some).inputs)
    ).items():
        share = np.bincount(delays.cpu().flatten().numpy(), weights.cpu().flatten().numpy()) / len(delays)
        spectra[_part(name)] = np.flatnonzero(share), share[share > 0]
    caption = f"Autoformer's delays over {len(some)} windows: the share of its weight that each period gets, by layer."
    return [(caption, "periods", insight.period_figure(spectra, season))]


def _part(name: str) -> str:
    """``decoder.0.cross`` → ``Decoder layer 1, of the encoder's output``."""
    side, number, kind = name.split(".")[:3]
    whose = ", of the encoder's output" if kind == "cross" else ""
    return f"{side.capitalize()} layer {int(number) + 1}{whose}"


def _decomposition(network: ForecastNetwork, windows: Windows, season: int) -> tuple[str, str, Figure]:
    """Of the first scored rows of the last channel, the target by the benchmarks' convention."""
    one, kernel = windows.prepared[0], network.config.model.kernel
    first = int(windows.index[0, 1])
    rows = slice(first, first + max(DECOMPOSED_SEASONS * season, windows.length, 8 * kernel))
    channel = one.series.channels[-1]
    times: Any = one.series.times[rows]
    figure = insight.decomposition_figure(times, one.series.values[rows, -1], kernel, channel)
    return f"Trend and seasonal part of {channel}, as the model parts them.", "decomposition", figure
