"""What the pictures of an evaluation show, on easy and on odd input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from shared.plots.style import png_bytes
from tests.timeseries.made import made_config, made_series
from timeseries.forecast.data import prepare
from timeseries.forecast.evaluate import tally_of
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.plots import figures, insight, pictures
from timeseries.forecast.scores.metrics import Tally
from timeseries.forecast.scores.summary import steps_of, window_errors
from timeseries.forecast.series import Series
from timeseries.forecast.windows import Windows

LEVELS = (0.8, 0.95)


def evaluated(series: Series, *sets: str, **layers: Any) -> tuple[ForecastNetwork, Tally]:
    torch.manual_seed(0)
    config = made_config(series, *sets, **layers)
    network = ForecastNetwork(config).eval()
    windows = Windows([prepare(series, config)], "test", 48, config.data.horizon)
    return network, tally_of(network, windows, 24)


def drawn(figure: Any) -> None:
    """It is a picture of some content, and all its text is inside."""
    data = png_bytes(figure, dpi=60)
    assert data.startswith(b"\x89PNG") and len(data) > 3000


# ---------------------------------------------------------------- choice


def test_ranked_windows_do_not_overlap() -> None:
    _, tally = evaluated(made_series(), "model.name=nlinear")
    ranked = pictures.ranked_windows(tally)
    errors = window_errors(tally)
    assert list(ranked) == ["worst", "median", "best"]
    assert ranked["worst"] == errors.argmax()
    assert errors[ranked["worst"]] > errors[ranked["median"]] > errors[ranked["best"]]
    starts = sorted(tally.windows.index[list(ranked.values()), 1])
    assert min(np.diff(starts)) >= tally.windows.horizon
    share = (errors < errors[ranked["median"]]).mean()
    assert 0.3 < share < 0.7


def test_one_window_is_shown_once() -> None:
    series = made_series(300)
    _, tally = evaluated(series, "data.split=counts", "data.counts=[250,38,12]")
    assert len(tally.windows) == 1 and pictures.ranked_windows(tally) == {"worst": 0}


def test_channels_are_spread_from_worst_to_best() -> None:
    errors = np.tile([0.1, 0.5, np.nan, 0.3, 0.9], (4, 1))
    assert pictures.spread_channels(errors, 3) == [4, 3, 2]
    assert pictures.spread_channels(errors[:, :2], 3) == [1, 0]


def test_shown_window_is_in_original_units() -> None:
    series = made_series()
    network, tally = evaluated(series)
    shown = pictures.shown_window(network, tally, 3, "worst")
    row = int(tally.windows.index[3, 1]) + 48
    assert shown.times[24] == series.times[row] and len(shown.times) == 24 + 12
    np.testing.assert_array_equal(shown.values, series.values[row - 24 : row + 12])
    error = tally.windows.prepared[0].scale.apply(shown.forecast) - tally.windows.prepared[0].scale.apply(
        shown.values[24:]
    )
    assert (error**2).mean() == pytest.approx(window_errors(tally)[3], rel=1e-4)


# ---------------------------------------------------------------- drawing


def odd(kind: str) -> Series:
    series = made_series(channels={"many": 60, "numbered": 1}.get(kind, 3))
    if kind == "numbered":
        return replace(series, times=pd.RangeIndex(len(series)), freq=None)
    if kind == "names":
        zone: Any = pd.date_range("2024-03-20", periods=len(series), freq="h", tz="Europe/Berlin")
        return replace(series, times=zone, channels=("$x^2", "a" * 90, "b_{c}"))
    if kind == "holed":
        values = series.values.copy()
        values[np.random.default_rng(0).random(values.shape) < 0.3] = np.nan
        values[:, 2] = np.nan
        return replace(series, values=values)
    return series


@pytest.mark.parametrize("kind", ["many", "numbered", "names", "holed"])
def test_every_picture_draws(kind: str, tmp_path: Path) -> None:
    network, tally = evaluated(odd(kind), "model.name=dlinear", "model.individual=true")
    found = pictures.draw_all(network, tally, 24, tmp_path)
    names = {"windows", "errors", "coverage", "backtest", "weights", "decomposition"}
    assert {path.stem for path in found.values()} == names
    assert all(path.stat().st_size > 5000 for path in found.values())


def test_window_figure_shows_context_truth_forecast_and_intervals() -> None:
    network, tally = evaluated(made_series())
    shown = pictures.shown_window(network, tally, 0, "best")
    figure = figures.window_figure([shown], LEVELS, [1])
    (axes,) = figure.axes
    truth, forecast = axes.lines[:2]
    np.testing.assert_allclose(truth.get_ydata(), shown.values[:, 1])
    np.testing.assert_allclose(forecast.get_ydata(), shown.forecast[:, 1])
    assert len(axes.collections) == 2 and axes.get_title("left").endswith("c1")
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["95 % interval", "80 % interval", "truth", "forecast"]
    drawn(figure)


def test_error_figure_puts_the_worst_channel_first() -> None:
    _, tally = evaluated(made_series(channels=3))
    errors = np.tile([0.1, 0.9, 0.3], (12, 1))
    figure = figures.error_figure(steps_of(tally), errors, ("a", "b", "c"))
    heat = figure.axes[1]
    assert [label.get_text() for label in heat.get_yticklabels()] == ["b", "c", "a"]
    assert [line.get_label() for line in figure.axes[0].lines] == ["model", "repeat last", "seasonal naive"]
    drawn(figure)


def test_coverage_figure_shows_measured_beside_wanted() -> None:
    rows = [{"step": h, "coverage_80": 0.3, "width_80": 1.0} for h in (1, 2, 3)]
    figure = figures.coverage_figure(rows, (0.8,))
    top = figure.axes[0]
    assert top.get_ylim()[0] < 0.3 and top.get_ylim()[1] > 0.8
    assert list(top.lines[0].get_ydata()) == [0.3] * 3 and list(top.lines[1].get_ydata()) == [0.8] * 2
    drawn(figure)


def test_weights_along_diagonals_peak_at_the_season() -> None:
    """Each step repeats the value a season before it: one diagonal, at that distance."""
    weight = np.zeros((12, 48))
    for step in range(1, 13):
        weight[step - 1, 48 - (24 - step + 1)] = 1.0  # lag 24 − step + 1
    distance, mean = insight.along_diagonals(weight)
    assert distance[mean.argmax()] == 24 and mean.max() == 1.0
    assert (np.delete(mean, mean.argmax()) == 0).all()
    figure = insight.weight_figure(weight, 24, "linear")
    assert list(figure.axes[1].get_xticks()) == [1, 24, 48]
    drawn(figure)


@pytest.mark.parametrize(
    ("season", "length", "ticks"),
    [
        (24, 96, [1, 24, 48, 72, 96]),
        (1, 5, [1, 2, 3, 4, 5]),
        (500, 96, [1, 10, 20, 30, 40, 50, 60, 70, 80, 90]),
    ],
)
def test_ticks_of_lags(season: int, length: int, ticks: list[int]) -> None:
    assert insight.seasonal_ticks(season, length) == ticks


def test_decomposition_adds_up() -> None:
    series = made_series(200)
    figure = insight.decomposition_figure(series.times, series.values[:, 0], 25, "c0")
    whole, trend, seasonal = (axes.lines[0].get_ydata() for axes in figure.axes)
    np.testing.assert_allclose(np.asarray(trend) + np.asarray(seasonal), whole)
    assert np.asarray(trend)[12:-12].std() < np.asarray(seasonal)[12:-12].std()
    drawn(figure)


def test_periods_of_an_autoformer() -> None:
    model = {"name": "autoformer", "width": 8, "heads": 2, "feedforward": 16, "label_length": 24}
    network, tally = evaluated(made_series(), model=model)
    ((caption, name, figure), *rest) = pictures._of_model(network, tally, 24)
    assert name == "periods" and "109 windows" not in caption and "64 windows" in caption
    assert [axes.get_title("left") for axes in figure.axes] == [
        "Encoder layer 1",
        "Encoder layer 2",
        "Decoder layer 1",
        "Decoder layer 1, of the encoder's output",
    ]
    for axes in figure.axes:
        heights = [segment[1][1] for segment in axes.collections[0].get_segments()]
        assert sum(heights) == pytest.approx(1.0, abs=1e-5)
    assert [each[1] for each in rest] == ["decomposition"]
    drawn(figure)
