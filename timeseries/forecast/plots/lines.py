"""What every picture of a forecast is made of: a line with gaps, intervals, dates, names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shared.plots.style import LIGHT, colour
from timeseries.forecast.scores.summary import percent
from timeseries.forecast.series import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_NAME = 48


def plain_text(text: str) -> str:
    """`text` short enough for a title, its dollar signs not taken for mathematics."""
    text = text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"
    return text.replace("$", r"\$")


def line(axes: Axes, times: Any, values: Any, ink: str, width: float, label: str | None) -> None:
    """Broken where values are missing; those with none beside them as points."""
    values = np.asarray(values, float)
    axes.plot(times, values, color=ink, linewidth=width, label=label)
    known = np.concatenate([[False], np.isfinite(values), [False]])
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    if alone.any():
        axes.plot(times[alone], values[alone], ".", color=ink, markersize=2.5)


def bands(axes: Axes, times: Any, bounds: Floats, levels: Sequence[float], said: str) -> None:
    """Intervals (levels, 2, H), the widest first and palest; `said` has a place for the level in per cent."""
    for place, k in enumerate(sorted(range(len(levels)), key=lambda k: -levels[k])):
        low, high = bounds[k]
        shade, label = 0.13 + 0.13 * place, said.format(percent(levels[k]))
        axes.fill_between(times, low, high, color=colour(0), alpha=shade, linewidth=0, label=label)


def dated(axes: Axes, times: pd.DatetimeIndex | pd.RangeIndex, rows: str = "row") -> None:
    """Short dates on the horizontal axis, or what numbered `rows` are called."""
    if not isinstance(times, pd.DatetimeIndex):
        axes.set_xlabel(rows, color=LIGHT.text, fontsize=9)
        return
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(tz=times.tz, minticks=3, maxticks=6)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=times.tz))
    axes.xaxis.get_offset_text().set(color=LIGHT.muted, fontsize=8)
