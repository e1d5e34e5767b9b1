"""A forecast as a picture: the last known rows, what comes after, and how sure that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.plots.style import LIGHT, colour, dress, new_figure
from timeseries.forecast.ahead import Forecast
from timeseries.forecast.plots.lines import bands, dated, line, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 6
"""Channels shown; more would be too small to read."""


def forecast_picture(forecast: Forecast, context: int = 0) -> Figure:
    """One panel a channel, at most `PANELS`, under one legend; `context` rows before it, 0 = twice the forecast's."""
    series, steps = forecast.series, len(forecast.times)
    shown = min(len(series.channels), PANELS)
    context = min(context or 2 * steps, len(series))
    columns = 1 if shown == 1 else 2
    rows = -(-shown // columns)
    figure = new_figure(4.6 * columns + (3.0 if columns == 1 else 0), 2.35 * rows + 0.75)
    for number in range(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        _panel(axes, forecast, number, context)
        dress(axes, plain_text(series.channels[number]))
        dated(axes, forecast.times, "step")
    head = 0.75 / figure.get_figheight()
    figure.tight_layout(pad=1.0, h_pad=1.4, w_pad=1.8, rect=(0, 0, 1, 1 - head))
    _head(figure, forecast, shown, head)
    return figure


def _panel(axes: Axes, forecast: Forecast, channel: int, context: int) -> None:
    series = forecast.series
    before: Any = series.times[len(series) - context :]
    after: Any = forecast.times
    known = series.values[len(series) - context :, channel]
    line(axes, before, known, LIGHT.muted, 1.1, "known")
    bands(axes, after, forecast.bounds[..., channel], forecast.levels, "{} %")
    marker = "o" if len(after) <= 12 else None
    axes.plot(
        after,
        forecast.values[:, channel],
        color=colour(0),
        linewidth=1.6,
        marker=marker,
        markersize=3,
        label="forecast",
    )
    axes.axvline(before[-1], color=LIGHT.muted, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    axes.margins(x=0.01)


def _head(figure: Figure, forecast: Forecast, shown: int, height: float) -> None:
    """Title at the left, what it says below, the legend at the right."""
    series = forecast.series
    all_of = len(series.channels)
    figure.text(
        0.012,
        1 - 0.22 * height,
        plain_text(series.id),
        va="top",
        color=LIGHT.text,
        fontsize=11.5,
        fontweight="bold",
    )
    said = f"{len(forecast.times):,} steps" + (f" ({series.freq})" if series.freq else "")
    said += f" after {series.times[-1]}" + (f"; {shown} of {all_of} channels" if shown < all_of else "")
    figure.text(0.012, 1 - 0.66 * height, said, va="top", color=LIGHT.muted, fontsize=8.5)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper right",
        bbox_to_anchor=(0.995, 1 - 0.1 * height),
        ncols=len(labels),
        frameon=False,
        fontsize=8.5,
        handlelength=1.6,
        columnspacing=1.2,
        labelcolor=LIGHT.text,
    )
