"""Sums of errors over windows: sktime's definitions, the naive forecasts, missing values, the papers' own numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sktime.performance_metrics import forecasting as sktime_metrics
from sktime.performance_metrics.forecasting.probabilistic import (
    EmpiricalCoverage,
    IntervalWidth,
    PinballLoss,
)

from tests.timeseries.made import made_config, made_series
from timeseries.forecast.data import prepare
from timeseries.forecast.scores.metrics import Naive, Tally, carried, naive_error, season_of
from timeseries.forecast.scores.summary import (
    Reference,
    metrics_of,
    notes_of,
    shown_steps,
    steps_of,
    table_of,
    window_errors,
)
from timeseries.forecast.series import Series
from timeseries.forecast.tables.read import read_file
from timeseries.forecast.windows import Windows

LEVELS = (0.8, 0.95)
LENGTH, HORIZON = 48, 12


def holed(series: Series, share: float = 0.2, seed: int = 3) -> Series:
    values = series.values.copy()
    values[np.random.default_rng(seed).random(values.shape) < share] = np.nan
    return replace(series, values=values)


class Scored:
    """Made forecasts of all test windows, and their sums."""

    def __init__(self, *series: Series, batch: int = 16, season: int = 24) -> None:
        config = made_config(series[0])
        self.prepared = [prepare(one, config) for one in series]
        self.windows = Windows(self.prepared, "test", LENGTH, HORIZON)
        whole = self.windows.batch(slice(None))
        self.y, self.known = whole.y, whole.y_mask.expand(whole.y.shape)
        draw = torch.Generator().manual_seed(1)
        self.point = self.y + 0.3 * torch.randn(self.y.shape, generator=draw)
        half = torch.tensor([0.3, 0.6]).view(1, 2, 1, 1, 1) * torch.tensor([-1.0, 1.0]).view(1, 1, 2, 1, 1)
        self.bounds = self.point[:, None, None] + half
        self.tally = Tally(self.windows, self.y.shape[2], LEVELS)
        naive = {"naive": Naive(self.prepared, 1, HORIZON), "seasonal": Naive(self.prepared, season, HORIZON)}
        for start in range(0, len(self.windows), batch):
            chosen = np.arange(start, min(start + batch, len(self.windows)))
            part = self.windows.batch(chosen)
            self.tally.add(chosen, part, self.point[chosen], self.bounds[chosen], naive)
        rows = [slice(0, one.borders.train) for one in self.prepared]
        self.against = Reference.of(self.tally, rows, season)
        self.metrics = metrics_of(self.tally, self.against)

    def flat(self, channel: int) -> tuple[np.ndarray, np.ndarray]:
        """Truths and forecasts of one channel that are known, original units."""
        scale, known = self.prepared[0].scale, self.known[..., channel]
        sides = [scale.undo(each.numpy())[..., channel][known.numpy()] for each in (self.y, self.point)]
        return sides[0], sides[1]


@pytest.mark.parametrize("series", [made_series(), holed(made_series())], ids=["whole", "holed"])
def test_errors_are_sktimes(series: Series) -> None:
    scored = Scored(series)
    rows = table_of(scored.tally, scored.against)
    train = series.values[: scored.prepared[0].borders.train]
    for channel, row in enumerate(rows):
        true, said = scored.flat(channel)
        assert row["mae_orig"] == pytest.approx(sktime_metrics.mean_absolute_error(true, said), rel=1e-5)
        wanted = sktime_metrics.mean_squared_error(true, said, square_root=True)
        assert row["rmse_orig"] == pytest.approx(wanted, rel=1e-5)
        wanted = sktime_metrics.mean_absolute_percentage_error(true, said, symmetric=True)
        assert row["smape"] == pytest.approx(wanted, rel=1e-4)
        if np.isfinite(train).all():
            wanted = sktime_metrics.mean_absolute_scaled_error(
                true, said, y_train=train[:, channel], sp=scored.against.season
            )
            assert row["mase"] == pytest.approx(wanted, rel=1e-5)
    known = scored.known
    error = (scored.point - scored.y)[known]
    assert scored.metrics["mse"] == pytest.approx(float(error.square().mean()), rel=1e-6)
    assert scored.metrics["mae"] == pytest.approx(float(error.abs().mean()), rel=1e-6)


def test_mase_of_all_is_the_mean_of_the_channels() -> None:
    scored = Scored(made_series(channels=3))
    rows = table_of(scored.tally, scored.against)
    assert scored.metrics["mase"] == pytest.approx(np.mean([row["mase"] for row in rows]), rel=1e-6)


def test_interval_scores_are_sktimes() -> None:
    scored = Scored(made_series(channels=1))
    true = pd.DataFrame({0: scored.y.reshape(-1).numpy()})
    flat = scored.bounds[..., 0].permute(0, 3, 1, 2).reshape(-1, 4).numpy()
    keys = [(0, level, side) for level in LEVELS for side in ("lower", "upper")]
    intervals = pd.DataFrame(flat, columns=pd.MultiIndex.from_tuples(keys))
    quantiles = [0.1, 0.9, 0.025, 0.975, 0.5]
    columns = pd.MultiIndex.from_tuples([(0, q) for q in quantiles])
    said = np.column_stack([flat, scored.point.reshape(-1).numpy()])
    loss = PinballLoss()(true, pd.DataFrame(said, columns=columns).sort_index(axis=1))
    assert scored.metrics["pinball"] == pytest.approx(float(loss), rel=1e-5)
    for metric, ours in ((EmpiricalCoverage, "coverage"), (IntervalWidth, "width")):
        found = metric(score_average=False)(true, intervals)
        for level, value in zip(LEVELS, np.ravel(found)):
            assert scored.metrics[f"{ours}_{100 * level:g}"] == pytest.approx(float(value), rel=1e-5)


def test_missing_values_weigh_nothing() -> None:
    series = made_series()
    values = series.values.copy()
    values[-20:, 0] = np.nan
    scored = Scored(replace(series, values=values))
    assert scored.tally.by_series["count"][0, 0] < scored.tally.by_series["count"][0, 1]
    assert np.isfinite(list(scored.metrics.values())).all()
    outlier = Scored(replace(series, values=values))
    outlier.point[~outlier.known] = 1e6
    again = Tally(outlier.windows, 2, LEVELS)
    naive = {"naive": Naive(outlier.prepared, 1, HORIZON)}
    chosen = np.arange(len(outlier.windows))
    again.add(chosen, outlier.windows.batch(chosen), outlier.point, outlier.bounds, naive)
    assert metrics_of(again, outlier.against)["mse"] == pytest.approx(scored.metrics["mse"])


def test_batches_and_several_series_sum_alike() -> None:
    pair = made_series(), replace(made_series(500, seed=5), id="other")
    large, small = Scored(*pair, batch=1000), Scored(*pair, batch=7)
    for name, value in large.metrics.items():
        assert small.metrics[name] == pytest.approx(value, rel=1e-5), name
    rows = table_of(large.tally, large.against)
    assert [(row["series"], row["channel"]) for row in rows] == [
        (series, channel) for series in ("made", "other") for channel in ("c0", "c1")
    ]
    alone = table_of(Scored(pair[0]).tally, Scored(pair[0]).against)
    assert rows[0]["naive_mse"] == pytest.approx(alone[0]["naive_mse"], rel=1e-5)
    errors = window_errors(large.tally)
    assert errors.shape == (len(large.windows),)
    assert float(errors.mean()) == pytest.approx(large.metrics["mse"], rel=1e-5)


@pytest.mark.parametrize("season", [1, 24])
def test_naive_forecasts_repeat_the_last_known_season(season: int) -> None:
    prepared = prepare(holed(made_series(200)), made_config(made_series()))
    model = Naive([prepared], season, 30)
    origins = np.array([48, 77, 130])
    found = model(np.zeros(3, np.int64), origins)
    for origin, window in zip(origins, found.numpy()):
        for step in range(30):
            row = origin + step % season - season
            for channel in range(2):
                back = row
                while back >= 0 and not prepared.mask[back, channel]:
                    back -= season
                wanted = prepared.x[back, channel] if back >= 0 else 0.0
                assert window[step, channel] == wanted


def test_carried_leaves_whole_series_alone() -> None:
    values = np.ones((5, 2), np.float32)
    assert carried(values, np.ones((5, 2), bool), 2) is values


@pytest.mark.parametrize(
    ("freq", "rows", "season"),
    [
        ("h", 8640, 24),
        ("15min", 34560, 96),
        ("10min", 30000, 144),
        ("2h", 500, 12),
        ("7h", 5000, 1),
        ("D", 5000, 7),
        ("7D", 5000, 1),
        ("B", 5000, 5),
        ("W-TUE", 676, 52),
        ("ME", 200, 12),
        ("MS", 20, 1),
        ("QS", 40, 4),
        ("s", 200_000, 86_400),
        ("s", 8000, 3600),
        ("min", 500, 60),
        ("h", 30, 1),
        (None, 1000, 1),
    ],
)
def test_season_is_the_calendars(freq: str | None, rows: int, season: int) -> None:
    assert season_of(freq, rows) == season


def test_naive_error_of_a_constant_or_short_channel_is_unknown() -> None:
    values = np.column_stack([np.ones(10), np.arange(10.0), np.full(10, np.nan)])
    found = naive_error(values, 2)
    assert np.isnan(found[[0, 2]]).all() and found[1] == 2.0
    assert np.isnan(naive_error(values, 10)).all()


def test_channels_without_mase_are_left_out_and_said() -> None:
    series = made_series()
    values = series.values.copy()
    values[:420, 1] = 5.0
    scored = Scored(replace(series, values=values))
    rows = table_of(scored.tally, scored.against)
    assert np.isnan(rows[1]["mase"]) and scored.metrics["mase"] == pytest.approx(rows[0]["mase"])
    notes = notes_of(scored.tally, scored.against, scored.metrics, 0)
    assert any("1 channels that never change" in note for note in notes)


def test_near_zero_channels_are_named() -> None:
    series = made_series()
    values = series.values.copy()
    values[::10, 0] = 0.0
    scored = Scored(replace(series, values=values))
    (said,) = (note for note in notes_of(scored.tally, scored.against, scored.metrics, 0) if "MAPE" in note)
    assert "values near zero in c0," in said and "c1" not in said


def test_steps_are_means_over_windows_and_channels() -> None:
    scored = Scored(made_series())
    rows = steps_of(scored.tally)
    error = (scored.point - scored.y)[:, 4].square().mean()
    assert rows[4]["step"] == 5 and rows[4]["mse"] == pytest.approx(float(error), rel=1e-5)
    assert np.mean([row["mse"] for row in rows]) == pytest.approx(scored.metrics["mse"], rel=1e-6)
    assert shown_steps(96) == [1, 2, 4, 8, 16, 32, 64, 96]
    assert shown_steps(64) == [1, 2, 4, 8, 16, 32, 64]
    assert shown_steps(1) == [1]


@pytest.mark.parametrize(
    ("name", "length", "horizon", "whole", "dropped"),
    [
        ("ETTh1", 336, 96, (1.2944, 0.7132), (1.2946, 0.7133)),
        ("ETTh2", 336, 336, (0.5973, 0.5109), (0.5912, 0.5085)),
        ("exchange_rate", 336, 96, (0.0811, 0.1964), (0.0807, 0.1959)),
        ("national_illness", 104, 24, (6.2133, 1.6222), (6.5871, 1.7007)),
    ],
)
def test_repeat_of_the_benchmarks(
    data_dir: Path,
    name: str,
    length: int,
    horizon: int,
    whole: tuple[float, float],
    dropped: tuple[float, float],
) -> None:
    """Every window, and whole batches of 32, whose drop changes ILI by 6 %."""
    config = made_config(made_series())
    (series,) = read_file(
        data_dir / "timeseries" / f"{name}.csv.gz",
        config.data.model_copy(update={"targets": (), "freq": None}),
    )
    prepared = prepare(series, config)
    windows = Windows([prepared], "test", length, horizon)
    model = Naive([prepared], 1, horizon)
    tally = Tally(windows, len(series.channels), ())
    for start in range(0, len(windows), 256):
        chosen = np.arange(start, min(start + 256, len(windows)))
        batch = windows.batch(chosen)
        picked = windows.index[chosen]
        point = model(picked[:, 0], picked[:, 1] + length)
        tally.add(
            chosen, batch, point, point.new_empty(len(chosen), 0, 2, *point.shape[1:]), {"naive": model}
        )
    against = Reference.of(tally, [slice(0, prepared.borders.train)], 1)
    metrics = metrics_of(tally, against, legacy=32)
    assert metrics["windows"] == len(windows) and metrics["windows_legacy"] == len(windows) // 32 * 32
    assert (metrics["mse"], metrics["mae"]) == pytest.approx(whole, abs=5e-4)
    assert (metrics["mse_legacy"], metrics["mae_legacy"]) == pytest.approx(dropped, abs=5e-4)
    assert metrics["naive_mse_legacy"] == metrics["mse_legacy"]
