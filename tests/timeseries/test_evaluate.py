"""Which windows are scored, what an evaluation writes, the back-test, report and card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from shared.bundle import Bundle
from shared.errors import DataInvalid, UsageError
from shared.pipeline import DataFacts
from shared.report.html import Report
from tests.timeseries.made import context, made_data, made_series
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.evaluate import evaluate
from timeseries.forecast.fit import fit
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.pipeline import PIPELINE
from timeseries.forecast.report import add_sections, card_text
from timeseries.forecast.scores.backtest import backtest, origins_of
from timeseries.forecast.scores.held_out import held_out
from timeseries.forecast.scores.score import score
from timeseries.forecast.series import Series
from timeseries.forecast.tables.read import read_file, to_frame
from timeseries.forecast.task import ForecastTask
from timeseries.forecast.windows import Scale, Windows

SETS = ("data.input_length=48", "data.horizon=12", "threads=1")
ROWS = 600


def written(path: Path, series: Series) -> Path:
    to_frame(series).to_csv(path, index=False)
    return path


def config_of(path: Path, *sets: str) -> ForecastConfig:
    config = PIPELINE.resolve("default", sets=(*SETS, *sets), over={"data": {"path": str(path)}})
    return PIPELINE.complete(config)


def trained(folder: Path, path: Path, *sets: str) -> tuple[Bundle, ForecastConfig]:
    """A bundle as `pipelines run` makes it."""
    config = config_of(path, *sets)
    (series,) = read_file(path, config.data)
    data = made_data(config, series)
    task = ForecastTask(config)
    fitted = fit(config, task, data, context(folder))
    bundle = Bundle.save(
        folder / "bundle",
        pipeline="forecast",
        config=config,
        state_dict=fitted.state_dict,
        schema={"data_fingerprint": data.facts().fingerprint, "forecast": data.schema()},
    )
    return bundle, config


@pytest.fixture
def made(tmp_path: Path) -> tuple[Bundle, ForecastConfig]:
    return trained(tmp_path, written(tmp_path / "made.csv", made_series(ROWS)))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take most of the time."""
    monkeypatch.setattr("timeseries.forecast.evaluate.draw_all", lambda *_: {})


# ---------------------------------------------------------------- what is scored


def test_own_data_is_scored_on_its_test_part_alone(made: tuple[Bundle, ForecastConfig]) -> None:
    bundle, config = made
    found = held_out(bundle, config)
    assert len(found.windows) == 120 - 12 + 1
    assert found.windows.index[0, 1] + 48 == 480 and found.windows.index[-1, 1] + 60 == ROWS
    assert found.known_rows == [slice(0, 420)] and "test part" in found.notes[0]


def test_same_rows_from_another_file_are_own_data(
    made: tuple[Bundle, ForecastConfig], tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    path = written(tmp_path / "copy" / "made.csv", made_series(ROWS))
    assert "test part" in held_out(made[0], config_of(path)).notes[0]


@pytest.mark.parametrize("split", ["data.fractions=[0.5,0.1,0.4]", "data.counts=[300,100,200]"])
def test_training_rows_are_refused(made: tuple[Bundle, ForecastConfig], split: str) -> None:
    bundle, config = made
    sets = [split, "data.split=counts"] if "counts" in split else [split]
    asked = config_of(Path(str(config.data.path)), *sets)
    with pytest.raises(UsageError, match=r"data\.split: test part from row \d+ of made; 481 or later wanted"):
        held_out(bundle, asked)


@pytest.mark.parametrize("name", ["made.csv", "renamed.csv"])
def test_of_a_grown_table_only_unseen_rows(
    made: tuple[Bundle, ForecastConfig], tmp_path: Path, name: str
) -> None:
    """Its training and validation rows are known by their dates and their mean, whatever the file is called."""
    (tmp_path / "grown").mkdir()
    path = written(tmp_path / "grown" / name, longer(made_series(ROWS), 700))
    found = held_out(made[0], config_of(path))
    first = found.windows.index[:, 1] + 48
    assert first.min() == 480 and first.max() + 12 == 700 and len(first) == 220 - 12 + 1
    assert "no horizon touches them" in " ".join(found.notes)
    stored = Scale.of(made[0].schema["forecast"]["made"]["scale"])
    np.testing.assert_array_equal(found.windows.prepared[0].scale.values, stored.values)


def longer(series: Series, rows: int) -> Series:
    more = made_series(rows - len(series), seed=9).values
    times = pd.date_range(series.times[0], periods=rows, freq="h")
    return replace(series, times=times, values=np.concatenate([series.values, more]))


def test_rows_before_and_after_are_scored_not_those_between(
    made: tuple[Bundle, ForecastConfig], tmp_path: Path
) -> None:
    series = longer(made_series(ROWS), 650)
    early = made_series(100, seed=4).values
    times = pd.date_range(series.times[0] - pd.Timedelta(hours=100), periods=750, freq="h")
    path = written(
        tmp_path / "wider.csv",
        replace(series, times=times, values=np.concatenate([early, series.values])),
    )
    found = held_out(made[0], config_of(path))
    first = found.windows.index[:, 1] + 48
    assert (first + 12 <= 100).sum() == 100 - 48 - 12 + 1
    assert (first >= 580).sum() == 170 - 12 + 1
    assert len(first) == (first + 12 <= 100).sum() + (first >= 580).sum()


def test_the_next_rows_alone_are_scored_whole_and_scaled_as_in_training(
    made: tuple[Bundle, ForecastConfig], tmp_path: Path
) -> None:
    (tmp_path / "next").mkdir()
    series = made_series(200, seed=8)
    path = written(
        tmp_path / "next" / "made.csv",
        replace(series, times=pd.date_range("2024-02-01", periods=200, freq="h")),
    )
    found = held_out(made[0], config_of(path))
    assert len(found.windows) == 200 - 60 + 1
    stored = Scale.of(made[0].schema["forecast"]["made"]["scale"])
    np.testing.assert_array_equal(found.windows.prepared[0].scale.values, stored.values)


def test_a_new_series_is_scaled_by_its_own_training_rows_which_are_not_scored(
    made: tuple[Bundle, ForecastConfig], tmp_path: Path
) -> None:
    series = replace(made_series(400, seed=7), values=100 + 5 * made_series(400, seed=7).values)
    found = held_out(made[0], config_of(written(tmp_path / "other.csv", series)))
    assert (found.windows.index[:, 1] + 48).min() == 280 and len(found.windows) == 120 - 12 + 1
    assert found.windows.prepared[0].scale.values[0] == pytest.approx(series.values[:280].mean(0))
    said = " ".join(found.notes)
    assert "1 of 1 series are new to the model" in said and "too good" in said


def test_same_name_and_dates_but_other_values_are_a_new_series(
    made: tuple[Bundle, ForecastConfig], tmp_path: Path
) -> None:
    (tmp_path / "else").mkdir()
    series = replace(made_series(ROWS), values=3 * made_series(ROWS).values)
    found = held_out(made[0], config_of(written(tmp_path / "else" / "made.csv", series)))
    assert (found.windows.index[:, 1] + 48).min() == 420


def test_nothing_unseen_is_a_fault(made: tuple[Bundle, ForecastConfig], tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    series = made_series(ROWS)
    path = written(
        tmp_path / "part" / "made.csv", replace(series, times=series.times[:300], values=series.values[:300])
    )
    with pytest.raises(DataInvalid, match="300 rows, of which none can be scored; 60 rows"):
        held_out(made[0], config_of(path))


# ---------------------------------------------------------------- what comes out


def test_evaluation(made: tuple[Bundle, ForecastConfig], tmp_path: Path) -> None:
    bundle, config = made
    out = tmp_path / "figures"
    result = evaluate(bundle, config, out)
    network: ForecastNetwork = bundle.load_into(ForecastNetwork(config))
    whole = score(network, held_out(bundle, config).windows)
    assert result.metrics["mse"] == pytest.approx(whole.mse, rel=1e-6)
    assert result.metrics["mae"] == pytest.approx(whole.mae, rel=1e-6)
    assert result.metrics["windows"] == 109
    assert result.metrics["mse"] < result.metrics["seasonal_mse"] < result.metrics["naive_mse"]
    assert (
        result.metrics["mase"] < 1
        and 0.5 < result.metrics["coverage_80"] < result.metrics["coverage_95"] <= 1
    )
    assert [(row["series"], row["channel"]) for row in result.table] == [("made", "c0"), ("made", "c1")]
    assert {path.name for path in result.figures.values()} == {
        "windows.png",
        "errors.png",
        "coverage.png",
        "backtest.png",
        "weights.png",
    }
    assert all(path.parent == out and path.stat().st_size > 5000 for path in result.figures.values())
    steps = pd.read_csv(out / "by_step.csv")
    assert list(steps["step"]) == list(range(1, 13))
    assert steps["mse"].mean() == pytest.approx(whole.mse, rel=1e-4)
    channels = pd.read_csv(out / "by_step_and_channel.csv")
    assert len(channels) == 2 * 5 and set(channels["step"]) == {1, 2, 4, 8, 12}
    assert any(note.startswith("Coverage of the 80 % interval by step: 1:") for note in result.notes)


@pytest.mark.usefixtures("undrawn")
def test_legacy_counts_whole_batches_beside_the_truth(
    made: tuple[Bundle, ForecastConfig], tmp_path: Path
) -> None:
    bundle, config = made
    over: Any = {"evaluate": config.evaluate.model_copy(update={"legacy_drop_last": 32})}
    result = evaluate(bundle, config.model_copy(update=over), tmp_path / "out")
    network: ForecastNetwork = bundle.load_into(ForecastNetwork(config))
    windows = held_out(bundle, config).windows
    assert result.metrics["windows"] == 109 and result.metrics["windows_legacy"] == 96
    assert result.metrics["mse_legacy"] == pytest.approx(score(network, windows, 32).mse, rel=1e-6)
    assert result.metrics["mse"] == pytest.approx(score(network, windows).mse, rel=1e-6)
    assert any("drop the last 13 windows" in note for note in result.notes)


@pytest.mark.usefixtures("undrawn")
def test_season_can_be_given(made: tuple[Bundle, ForecastConfig], tmp_path: Path) -> None:
    bundle, config = made
    plain = evaluate(bundle, config, tmp_path / "a")
    over: Any = {"evaluate": config.evaluate.model_copy(update={"season": 7})}
    other = evaluate(bundle, config.model_copy(update=over), tmp_path / "b")
    assert other.metrics["mase"] < plain.metrics["mase"]  # a worse naive forecast to be held against
    assert any("repeating the value 7 steps back" in note for note in other.notes)


@pytest.mark.parametrize(
    "sets",
    [("model.name=dlinear", "intervals.method=none"), ("model.name=naive", "model.season=24")],
    ids=["dlinear", "naive"],
)
def test_other_models(tmp_path: Path, sets: tuple[str, ...]) -> None:
    bundle, config = trained(tmp_path, written(tmp_path / "made.csv", made_series(ROWS)), *sets)
    result = evaluate(bundle, config, tmp_path / "figures")
    names = {path.stem for path in result.figures.values()}
    if "model.name=dlinear" in sets:
        assert {"weights", "decomposition"} <= names and "coverage" not in names
        assert not any(name.startswith("coverage") for name in result.metrics)
    else:
        assert result.metrics["mse"] == pytest.approx(result.metrics["seasonal_mse"], rel=1e-6)
        assert "weights" not in names


# ---------------------------------------------------------------- back-test


def test_backtest_is_dated_and_in_original_units(made: tuple[Bundle, ForecastConfig]) -> None:
    bundle, config = made
    series = made_series(ROWS)
    frame = backtest(bundle, series)
    assert list(frame) == [
        "series",
        "origin",
        "ds",
        "channel",
        "y",
        "yhat",
        "lo-80",
        "hi-80",
        "lo-95",
        "hi-95",
    ]
    assert len(frame) == 10 * 2 * 12 and frame["origin"].nunique() == 10
    assert frame["origin"].iloc[0] == series.times[479] and frame["ds"].iloc[0] == series.times[480]
    assert frame["ds"].iloc[-1] == series.times[-1]
    truth = pd.DataFrame(series.values, series.times, series.channels)
    for channel in series.channels:
        rows = frame[frame["channel"] == channel]
        np.testing.assert_allclose(rows["y"], truth.loc[rows["ds"], channel])
        assert abs(rows["yhat"] - rows["y"]).mean() < 1.0
    assert (frame["lo-95"] <= frame["lo-80"]).all() and (frame["lo-80"] <= frame["hi-80"]).all()
    assert (frame["hi-80"] <= frame["hi-95"]).all()
    network: ForecastNetwork = bundle.load_into(ForecastNetwork(config))
    pd.testing.assert_frame_equal(backtest(network, [series]), frame)


@pytest.mark.usefixtures("undrawn")
def test_evaluation_writes_the_backtest(made: tuple[Bundle, ForecastConfig], tmp_path: Path) -> None:
    bundle, config = made
    evaluate(bundle, config, tmp_path / "out")
    stored = pd.read_csv(tmp_path / "out" / "backtest.csv", parse_dates=["origin", "ds"])
    wanted = backtest(bundle, made_series(ROWS))
    np.testing.assert_allclose(stored["yhat"], wanted["yhat"], rtol=1e-5)
    assert (stored["ds"] == wanted["ds"]).all()


def test_origins_are_spread_when_limited(made: tuple[Bundle, ForecastConfig]) -> None:
    bundle, config = made
    windows: Windows = held_out(bundle, config).windows
    assert origins_of(windows).tolist() == list(range(0, 109, 12))
    assert origins_of(windows, 3).tolist() in ([0, 48, 108], [0, 60, 108])
    limited = config.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"backtest_origins": 3})}
    )
    assert backtest(bundle, made_series(ROWS), limited)["origin"].nunique() == 3


def test_backtest_of_missing_values_and_numbered_rows(made: tuple[Bundle, ForecastConfig]) -> None:
    bundle, config = made
    network: ForecastNetwork = bundle.load_into(ForecastNetwork(config))
    series = made_series(ROWS)
    values = series.values.copy()
    values[500:505, 1] = np.nan
    frame = backtest(network, replace(series, values=values, times=pd.RangeIndex(ROWS), freq=None))
    assert frame["y"].isna().sum() == 5 and frame["yhat"].notna().all()
    assert frame["ds"].tolist()[:3] == [480, 481, 482] and frame["origin"].iloc[0] == 479


# ---------------------------------------------------------------- report and card


def test_report_and_card(made: tuple[Bundle, ForecastConfig], tmp_path: Path) -> None:
    bundle, config = made
    over: Any = {"evaluate": config.evaluate.model_copy(update={"legacy_drop_last": 32})}
    config = config.model_copy(update=over)
    result = evaluate(bundle, config, tmp_path / "figures")
    report = Report("forecast")
    add_sections(report, config, result)
    page = report.html()
    for wanted in (
        "Scores beside naive forecasts",
        "repeat the last season",
        "By step ahead",
        "Coverage of 80 %",
        "MSE as the tables counted",
        "Series and channels",
        "not exchangeable",
    ):
        assert wanted in page, wanted
    assert page.count("<img") == len(result.figures)
    card = card_text(config, result, DataFacts("made.csv", "0" * 64, 361))
    for wanted in (
        "next 12 steps",
        "nlinear (arXiv 2205.13504)",
        "made.csv; its terms bind",
        "2 channels: c0, c1",
        "80 % interval",
    ):
        assert wanted in card, wanted
    assert "below that of “repeat the last value”" in card


@pytest.mark.usefixtures("undrawn")
def test_card_of_the_embedded_series_names_its_licence(
    made: tuple[Bundle, ForecastConfig], tmp_path: Path
) -> None:
    bundle, config = made
    result = evaluate(bundle, config, tmp_path / "figures")
    embedded = config.model_copy(update={"data": config.data.model_copy(update={"path": None})})
    assert "CC0" in card_text(embedded, result, DataFacts("embedded sample", "0" * 64, 1))


@pytest.mark.usefixtures("undrawn")
def test_a_model_worse_than_repeating_says_so(made: tuple[Bundle, ForecastConfig], tmp_path: Path) -> None:
    bundle, config = made
    result = evaluate(bundle, config, tmp_path / "figures")
    result.metrics["mse"] = 10 * result.metrics["naive_mse"]
    assert "ABOVE that of “repeat the last value”" in card_text(config, result, DataFacts("x", "0" * 64, 1))
