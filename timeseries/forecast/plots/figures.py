"""Pictures of an evaluation: forecasts against truth, errors by step and channel, coverage, the back-test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shared.plots.style import LIGHT, PALETTE, colour, dress, new_figure
from timeseries.forecast.plots.lines import bands, dated, line, plain_text
from timeseries.forecast.scores.summary import percent
from timeseries.forecast.series import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_NAMES = 30
"""Channels that a heat map names; of more only some."""
LINES = {
    "model": ("mse", PALETTE[0]),
    "repeat last": ("naive_mse", "#666666"),
    "seasonal naive": ("seasonal_mse", PALETTE[1]),
}


@dataclass(frozen=True)
class Shown:
    """One window of one series, in original units: what came before, what came, what was said."""

    title: str
    times: pd.DatetimeIndex | pd.RangeIndex
    """(K + H,) stamps, K rows of context."""
    values: Floats
    """(K + H, C) truth; NaN where missing."""
    forecast: Floats
    """(H, C)"""
    bounds: Floats
    """(levels, 2, H, C)"""
    channels: tuple[str, ...]


def window_figure(windows: Sequence[Shown], levels: Sequence[float], channels: Sequence[int]) -> Figure:
    """A row a window, a column a channel: context, truth, forecast and its intervals."""
    across = len(channels)
    figure = new_figure(3.9 * across + (3.4 if across == 1 else 0.2), 2.15 * len(windows) + 0.55)
    grid = figure.subplots(len(windows), across, squeeze=False)
    for shown, panels in zip(windows, grid):
        for column, (channel, axes) in enumerate(zip(channels, panels)):
            _forecast_panel(axes, shown, levels, channel)
            name = _short(shown.channels[channel], 24)
            dress(axes, f"{shown.title}  ·  {name}" if column == 0 else name)
            dated(axes, shown.times)
    head = 0.42 / figure.get_figheight()
    figure.tight_layout(pad=0.9, h_pad=1.3, w_pad=1.5, rect=(0, 0, 1, 1 - head))
    _legend(figure, grid[0, 0])
    return figure


def _forecast_panel(axes: Axes, shown: Shown, levels: Sequence[float], channel: int) -> None:
    known = len(shown.times) - len(shown.forecast)
    ahead: Any = shown.times[known:]
    bands(axes, ahead, shown.bounds[..., channel], levels, "{} % interval")
    line(axes, shown.times, shown.values[:, channel], LIGHT.text, 1.0, "truth")
    axes.plot(ahead, shown.forecast[:, channel], color=PALETTE[1], linewidth=1.5, label="forecast")
    axes.axvline(ahead[0], color=LIGHT.muted, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.margins(x=0.01)


def _short(name: str, longest: int) -> str:
    return plain_text(name if len(name) <= longest else f"{name[: longest - 1]}…")


def _legend(figure: Figure, axes: Axes, top_inches: float = 0.05) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0.01, 1 - top_inches / figure.get_figheight()),
        ncols=len(labels),
        frameon=False,
        fontsize=8.5,
        handlelength=1.8,
        columnspacing=1.4,
        labelcolor=LIGHT.text,
    )


# ---------------------------------------------------------------- errors


def error_figure(by_step: Sequence[Mapping[str, Any]], errors: Floats, channels: Sequence[str]) -> Figure:
    """Scaled MSE by step over all channels beside the naive forecasts, and by step and channel: `errors` (H, C)."""
    tall = min(max(0.24 * len(channels), 1.5), 5.5)
    figure = new_figure(8.4, 2.9 + tall)
    top, below = figure.subplots(2, 1, height_ratios=(2.2, tall + 0.2), sharex=True)
    steps = [row["step"] for row in by_step]
    for name, (key, ink) in LINES.items():
        if key in by_step[0]:
            marker = "o" if len(steps) <= 12 else None
            style = "-" if key == "mse" else (0, (5, 2))
            top.plot(
                steps,
                [row[key] for row in by_step],
                color=ink,
                linewidth=1.7,
                label=name,
                linestyle=style,
                marker=marker,
                markersize=3,
            )
    top.set_ylim(bottom=0)
    top.set_ylabel("MSE, scaled")
    dress(top, "Error by step ahead, all channels")
    _legend_above(top)
    _heat_map(figure, below, errors, channels)
    return figure


def _legend_above(axes: Axes) -> None:
    """At the right, on the line of the title."""
    axes.legend(
        frameon=False,
        fontsize=8.5,
        handlelength=2.2,
        ncols=3,
        loc="lower right",
        bbox_to_anchor=(1.0, 0.99),
        borderaxespad=0.2,
        labelcolor=LIGHT.text,
    )


def _heat_map(figure: Figure, axes: Axes, errors: Floats, channels: Sequence[str]) -> None:
    from matplotlib.colors import LogNorm, Normalize

    order = np.argsort(-np.nan_to_num(np.nanmean(np.where(np.isfinite(errors), errors, 0), 0)))
    known = errors[np.isfinite(errors) & (errors > 0)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    # Channels that differ by more than this would leave all but the worst one black.
    norm = LogNorm(max(low, high / 1e4), high) if high > 20 * low > 0 else Normalize(0, high)
    extent = (0.5, len(errors) + 0.5, len(channels) - 0.5, -0.5)
    picture = axes.imshow(
        errors[:, order].T, aspect="auto", cmap="cividis", norm=norm, extent=extent, interpolation="nearest"
    )
    every = -(-len(channels) // MAX_NAMES)
    places = range(0, len(channels), every)
    axes.set_yticks(list(places), [_short(channels[order[i]], 18) for i in places])
    axes.set_xlabel("step ahead")
    dress(axes, "MSE, scaled, by step and channel (worst channel first)", grid=False)
    figure.tight_layout(pad=0.9, h_pad=1.4, rect=(0, 0, 0.91, 1))
    box = axes.get_position()
    bar = figure.colorbar(picture, cax=figure.add_axes((0.925, box.y0, 0.014, box.height)))
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.tick_params(labelsize=8, colors=LIGHT.muted)
    bar.outline.set_visible(False)  # type: ignore[operator]


def coverage_figure(by_step: Sequence[Mapping[str, Any]], levels: Sequence[float]) -> Figure:
    """Measured coverage of every interval by step ahead, beside the level that was wanted; their widths below."""
    figure = new_figure(7.6, 4.6)
    top, below = figure.subplots(2, 1, height_ratios=(2, 1.2), sharex=True)
    steps = [row["step"] for row in by_step]
    marker = "o" if len(steps) <= 12 else None
    for number, level in enumerate(levels):
        name, ink = percent(level), colour(number)
        measured = [row[f"coverage_{name}"] for row in by_step]
        top.plot(
            steps,
            measured,
            color=ink,
            linewidth=1.7,
            marker=marker,
            markersize=3,
            label=f"{name} % interval",
        )
        top.axhline(level, color=ink, linewidth=1.0, linestyle=(0, (4, 3)))
        top.annotate(
            f"{name} % wanted",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=ink,
            annotation_clip=False,
        )
        below.plot(
            steps,
            [row[f"width_{name}"] for row in by_step],
            color=ink,
            linewidth=1.7,
            marker=marker,
            markersize=3,
        )
    lowest = min([*levels, *(row[f"coverage_{percent(level)}"] for row in by_step for level in levels)])
    top.set_ylim(max(min(lowest - 0.05, 0.75), 0), 1.005)
    top.set_ylabel("share of truths inside")
    below.set_ylim(bottom=0)
    below.margins(x=0.01)
    below.set_ylabel("mean width, scaled")
    below.set_xlabel("step ahead")
    dress(top, "Measured coverage by step ahead")
    dress(below)
    _legend_above(top)
    figure.tight_layout(pad=0.9, h_pad=1.2)
    figure.align_ylabels([top, below])
    return figure


# ---------------------------------------------------------------- back-test


def backtest_figure(frame: pd.DataFrame, channels: Sequence[str]) -> Figure:
    """Strip a channel of one series' back-test (`backtest.backtest`): truth and the forecasts from successive origins,
    which dotted lines mark, the widest interval shaded."""
    figure = new_figure(10.0, 1.75 * len(channels) + 0.6)
    strips = figure.subplots(len(channels), 1, squeeze=False, sharex=True)[:, 0]
    bounds = [name.removeprefix("lo-") for name in frame.columns if name.startswith("lo-")]
    widest = max(bounds, key=float, default=None)
    numbered = pd.api.types.is_integer_dtype(frame["ds"])
    for axes, channel in zip(strips, channels):
        rows = frame[frame["channel"] == channel]
        for number, (_, part) in enumerate(rows.groupby("origin", sort=False)):
            _strip(axes, part, widest, label=number == 0)
        dress(axes, plain_text(channel))
        dated(axes, pd.RangeIndex(len(rows)) if numbered else pd.DatetimeIndex(rows["ds"]))
        axes.margins(x=0.005)
    head = 0.36 / figure.get_figheight()
    figure.tight_layout(pad=0.9, h_pad=1.0, rect=(0, 0, 1, 1 - head))
    _legend(figure, strips[0])
    return figure


def _strip(axes: Axes, part: pd.DataFrame, widest: str | None, label: bool) -> None:
    """One origin's forecast."""
    if widest is not None:
        low, high = part[f"lo-{widest}"], part[f"hi-{widest}"]
        shade = f"{widest} % interval" if label else None
        axes.fill_between(part["ds"], low, high, color=colour(0), alpha=0.18, linewidth=0, label=shade)
    line(axes, part["ds"].array, part["y"], LIGHT.text, 0.9, "truth" if label else None)
    axes.plot(part["ds"], part["yhat"], color=PALETTE[1], linewidth=1.2, label="forecast" if label else None)
    axes.axvline(part["ds"].iloc[0], color=LIGHT.muted, linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)
