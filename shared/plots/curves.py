"""Training curves: what a metric did over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from shared.plots.style import colour, dash, dress, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Sequence[tuple[float, float]]
MAX_POINTS = 400  # per line; more cannot be seen at report width and only makes the page heavy
LOG_RATIO = 100.0  # a loss that falls further than this is unreadable on a linear axis


def curves(history: Mapping[str, Series], columns: int = 2) -> Figure:
    """One panel per quantity: ``train/loss`` and ``val/loss`` share the panel "loss"; regions share theirs.

    `history` maps a metric's name to (step, value) pairs. Values that are not finite are left out and counted in
    the panel's title; empty series are skipped.
    """
    panels: dict[str, dict[str, Series]] = {}
    for name, points in history.items():
        if len(points):
            panels.setdefault(_quantity(name), {})[name] = points
    if not panels:
        return _nothing()
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(4.3 * columns + (2.2 if columns == 1 else 0), 2.75 * rows)
    for i, (title, series) in enumerate(panels.items()):
        _panel(figure.add_subplot(rows, columns, i + 1), title, series)
    figure.tight_layout(pad=1.0, h_pad=1.6, w_pad=1.8)
    return figure


def _quantity(name: str) -> str:
    """``val/dice_wt`` → ``dice``: stage and region do not make a quantity of their own."""
    return name.rpartition("/")[2].partition("_")[0]


def _panel(axes: Axes, title: str, series: Mapping[str, Series]) -> None:
    dropped = 0
    lows: list[float] = []
    highs: list[float] = []
    for i, (name, points) in enumerate(series.items()):
        known = [(step, value) for step, value in points if math.isfinite(value)]
        dropped += len(points) - len(known)
        if not known:
            continue
        steps, values = zip(*_thinned(known))
        marker = "o" if len(known) <= 30 else None
        axes.plot(
            steps,
            values,
            color=colour(i),
            linestyle=dash(i),
            linewidth=1.6,
            marker=marker,
            markersize=3.2,
            label=_label(name, title),
        )
        lows.append(min(values))
        highs.append(max(values))
    # A schedule ends near zero by design; on a log axis its shape would be lost.
    if lows and title != "lr" and min(lows) > 0 and max(highs) / min(lows) > LOG_RATIO:
        axes.set_yscale("log")
    axes.set_xlabel("training step")
    dress(axes, title + (f"  ({dropped} values not finite, left out)" if dropped else ""))
    if len(lows) > 1 or (lows and axes.lines[0].get_label() != title):
        axes.legend(frameon=False, fontsize=8, handlelength=1.8)


def _label(name: str, title: str) -> str:
    stage, _, rest = name.rpartition("/")
    detail = rest.removeprefix(title).lstrip("_")
    return " ".join(part for part in (stage, detail) if part) or name


def _thinned(points: Series) -> Series:
    """At most `MAX_POINTS` of the points, the last one always among them."""
    stride = math.ceil(len(points) / MAX_POINTS)
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _nothing() -> Figure:
    figure = new_figure(6.4, 1.2)
    figure.text(0.5, 0.5, "no metric was logged", ha="center", va="center", color="#5b6575", fontsize=10)
    return figure
