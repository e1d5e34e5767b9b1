"""Where series, calendars and settings meet: anchors, exogenous gaps, borders, levels, overrides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shared.bundle import Bundle
from shared.config import resolve
from shared.errors import UsageError
from tests.timeseries.made import context, made_config, made_data, made_series
from timeseries.forecast.ahead import forecast_ahead
from timeseries.forecast.config import ForecastConfig, ForecastDataConfig
from timeseries.forecast.evaluate import evaluate
from timeseries.forecast.fit import fit
from timeseries.forecast.series import Series
from timeseries.forecast.tables.check import check
from timeseries.forecast.tables.read import read_all, read_frame
from timeseries.forecast.task import ForecastTask
from timeseries.forecast.windows import Prepared, Scale, borders, bridged, carried, division


def test_a_series_with_holes_keeps_its_own_weekday() -> None:
    """Store b has too few of its weeks for a step of its own; the common step's Sunday must not move its Tuesdays."""
    sundays = pd.date_range("2020-01-05", periods=150, freq="W-SUN")
    tuesdays = pd.date_range("2020-01-07", periods=150, freq="W-TUE")
    kept = np.sort(np.random.default_rng(0).choice(150, 41, replace=False))
    parts = [("a", sundays), ("b", tuesdays[kept])]
    frame = pd.concat([pd.DataFrame({"unique_id": k, "ds": t, "y": np.arange(len(t))}) for k, t in parts])
    a, b = read_frame(frame, ForecastDataConfig(gaps="mask"), "frame")
    assert a.freq == "W-SUN" and b.freq == "W-TUE"
    known = np.isfinite(b.values[:, 0])
    assert b.times[known].equals(tuesdays[kept]) and b.stamps(1)[-1].dayofweek == 1


def test_half_years_of_a_given_quarter_stay_where_they_are() -> None:
    stamps = pd.date_range("2000-02-01", periods=12, freq="6MS")
    frame = pd.DataFrame({"date": stamps, "y": np.arange(12.0)})
    (one,) = read_frame(frame, ForecastDataConfig(freq="QS", gaps="mask"), "frame")
    assert one.times[np.isfinite(one.values[:, 0])].equals(stamps)


def test_exogenous_gaps_are_bridged_ahead_carried_back_and_told() -> None:
    nan = np.nan
    assert bridged(np.array([[nan], [1.0], [nan], [3.0], [nan]]))[:, 0].tolist() == [1, 1, 2, 3, 3]
    assert carried(np.array([[1.0], [nan], [nan], [4.0]]))[:, 0].tolist() == [1, 1, 1, 4]
    assert np.isnan(carried(np.array([[nan], [2.0]]))[0, 0])
    series = made_series(400)
    ramp = np.arange(412.0)[:, None]
    holed = replace(
        series, future=np.where(np.arange(412)[:, None] % 5 == 2, nan, ramp), future_columns=("f",)
    )
    whole = replace(series, future=ramp, future_columns=("f",))
    ends = borders(series, ForecastDataConfig())
    with_holes, without = (Prepared(one, Scale.fit(whole, ends.train), ends).future for one in (holed, whole))
    assert np.allclose(with_holes, without, atol=1e-5)


def test_a_forecast_says_which_exogenous_values_were_missing(tmp_path: Path) -> None:
    base = made_series(400)
    past = np.arange(400.0)[:, None]
    series = replace(base, past=past, past_columns=("p",))
    config = made_config(series, "model.name=nlinear", "data.past_columns=[p]")
    task, data = ForecastTask(config), made_data(config, series)
    fit(config, task, data, context(tmp_path))
    past[-3:] = np.nan
    said = forecast_ahead(task.network, series, data.prepared[0].scale).warnings
    assert "missing in the last 48 rows and the last value before taken: p 3" in said


@pytest.mark.parametrize("levels", ["[80, 95]", "[1.0]", "[0.8, 0.8]", "[]"])
def test_levels_that_are_none(levels: str) -> None:
    with pytest.raises(UsageError, match="levels"):
        resolve(ForecastConfig, [], [f"intervals.levels={levels}"])


def test_one_column_of_ett_has_the_papers_borders() -> None:
    times = pd.date_range("2016-07-01", periods=17_420, freq="h")
    one = Series("a", times, "h", np.zeros((17_420, 1)), ("OT",))
    assert borders(one, ForecastDataConfig()).train == 8640
    assert division(one, ForecastDataConfig()) == "the papers' borders of ETT"
    assert division(replace(one, channels=("x",)), ForecastDataConfig()) == "fractions"


def test_a_channel_flat_in_training_alone_is_warned_of(tmp_path: Path) -> None:
    values = np.where(np.arange(600) < 450, 5.0, 5000.0 + np.arange(600))
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=600, freq="h"), "a": values})
    frame["b"] = np.sin(np.arange(600))
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = {"path": str(tmp_path / "t.csv"), "input_length": 48, "horizon": 12}
    (fault,) = check(resolve(ForecastConfig, [("t", {"data": data})]))
    assert str(fault).endswith(
        "t.csv:a: constant in the training rows 1–420, but not after; its scale is kept at 1, so its errors outweigh "
        "all others"
    )


def test_files_of_a_folder_name_their_stamps_alike(tmp_path: Path) -> None:
    times = pd.date_range("2024-01-01", periods=100, freq="h")
    for name in ("date", "timestamp"):
        pd.DataFrame({name: times, "y": np.arange(100.0)}).to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "date.forecast.csv").write_text("date,y,y-lo-80\n2024-01-01,1,0\n")
    (fault,) = read_all(tmp_path, ForecastDataConfig()).faults
    assert str(fault).endswith(
        "timestamp.csv: stamps in timestamp; date as in date.csv; name it alike in all files"
    )


def test_an_evaluation_takes_no_other_model(tmp_path: Path) -> None:
    series = made_series()
    config = made_config(series, "model.name=nlinear")
    data, task = made_data(config, series), ForecastTask(config)
    said: list[str] = []
    result = fit(config, task, data, context(tmp_path, said=said))
    assert said[0].startswith("closed form: about ") and said[0].endswith("wanted beside the table")
    schema = {"data_fingerprint": "", "forecast": data.schema()}
    bundle = Bundle.save(
        tmp_path / "b", pipeline="forecast", config=config, state_dict=result.state_dict, schema=schema
    )
    other = config.model_copy(update={"data": config.data.model_copy(update={"horizon": 6})})
    with pytest.raises(UsageError, match=r"data\.horizon: part of the trained model"):
        evaluate(bundle, other, tmp_path / "out")


def test_few_errors_for_a_level_are_told(tmp_path: Path) -> None:
    series = made_series(200)
    config = made_config(series, "model.name=nlinear", "intervals.blocks=0", "intervals.levels=[0.5,0.95]")
    said: list[str] = []
    fit(config, ForecastTask(config), made_data(config, series), context(tmp_path, said=said))
    assert [line for line in said if line.startswith("intervals")] == [
        "intervals: 0.95 wants 39 errors a step and channel; 9 are there, whose largest stands in"
    ]
