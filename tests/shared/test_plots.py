"""Figures of the library: what is drawn, not how it looks."""

from __future__ import annotations

import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.plots.curves import MAX_POINTS, curves
from shared.plots.style import PALETTE, colour, dash, new_figure, png_bytes, save_png


def lines_of(figure: object) -> dict[str, tuple[list[float], list[float]]]:
    found = {}
    for axes in figure.axes:  # type: ignore[attr-defined]
        for line in axes.lines:
            found[f"{axes.get_title(loc='left')}|{line.get_label()}"] = (
                list(line.get_xdata()),
                list(line.get_ydata()),
            )
    return found


def test_one_panel_per_quantity() -> None:
    figure = curves(
        {
            "train/loss": [(0, 1.0), (10, 0.5)],
            "val/loss": [(10, 0.6)],
            "val/dice_wt": [(10, 0.7)],
            "val/dice_et": [(10, 0.4)],
            "empty": [],
        }
    )
    assert lines_of(figure) == {
        "loss|train": ([0, 10], [1.0, 0.5]),
        "loss|val": ([10], [0.6]),
        "dice|val wt": ([10], [0.7]),
        "dice|val et": ([10], [0.4]),
    }


def test_values_that_are_not_finite_are_counted() -> None:
    figure = curves({"loss": [(0, math.nan), (1, 2.0), (2, math.inf)]})
    assert figure.axes[0].get_title(loc="left") == "loss  (2 values not finite, left out)"
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1]


def test_long_series_keep_their_end() -> None:
    figure = curves({"loss": [(i, float(i)) for i in range(5001)]})
    steps = figure.axes[0].lines[0].get_xdata()
    assert len(steps) <= MAX_POINTS + 1
    assert (steps[0], steps[-1]) == (0, 5000)


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (0.001, "log"), (0.0, "linear")])
def test_steep_positive_curves_are_logarithmic(last: float, scale: str) -> None:
    assert curves({"loss": [(0, 1.0), (1, last)]}).axes[0].get_yscale() == scale


def test_no_metric_still_gives_a_picture() -> None:
    assert Image.open(io.BytesIO(png_bytes(curves({})))).size[0] > 100


def test_series_beyond_the_palette_differ() -> None:
    looks = {(colour(i), str(dash(i))) for i in range(3 * len(PALETTE))}
    assert len(looks) == 3 * len(PALETTE)


def test_neighbouring_colours_differ_without_colour() -> None:
    # Luminance (ITU-R BT.709) of the first four, for greyscale print.
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in PALETTE[:4]]) / 255
    luminance = np.sort(rgb @ np.array([0.2126, 0.7152, 0.0722]))
    assert np.diff(luminance).min() > 0.01


def test_same_figure_same_bytes_and_no_pyplot(tmp_path: Path) -> None:
    had_pyplot = "matplotlib.pyplot" in sys.modules
    history = {"loss": [(i, 1 / (i + 1)) for i in range(20)]}
    assert png_bytes(curves(history)) == png_bytes(curves(history))
    path = save_png(new_figure(2, 1), tmp_path / "sub" / "a.png")
    assert [item.name for item in path.parent.iterdir()] == ["a.png"]
    assert ("matplotlib.pyplot" in sys.modules) == had_pyplot
