"""Tables in, forecasts out: dates, units, scales, columns by name, and one line for everything that cannot be done.

Most networks here repeat the last value (NLinear with zero weights), so every answer is known.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from shared.bundle import Bundle
from shared.errors import ItemError, UsageError
from tests.timeseries.repeating import (
    HORIZON,
    LENGTH,
    OFFSETS,
    SPREAD,
    frame,
    make_config,
    repeating,
    save,
    scale,
    written,
)
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.pipeline import PIPELINE
from timeseries.forecast.predict import ForecastPredictor, forecast_frame
from timeseries.forecast.series import Series

ROWS = {"ME": 25, "MS": 25, "W-TUE": 25}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    config = make_config()
    return save(tmp_path / "bundle", config, repeating(config))


def forecast(bundle: Bundle, table: pd.DataFrame, **options: Any) -> pd.DataFrame:
    return forecast_frame(bundle, table, **options)


def said(bundle: Bundle, table: pd.DataFrame, **options: Any) -> str:
    """The message that refuses `table`."""
    with pytest.raises(ItemError) as refused:
        forecast(bundle, table, **options)
    text = str(refused.value)
    assert "\n" not in text
    return text


# ---------------------------------------------------------------- what comes out


def test_values_are_in_the_tables_units_with_dates_after_the_last_row(bundle: Bundle) -> None:
    table = frame()
    out = forecast(bundle, table)
    assert list(out.columns) == [
        "date", "a", "a-lo-80", "a-hi-80", "a-lo-95", "a-hi-95", "b", "b-lo-80", "b-hi-80", "b-lo-95", "b-hi-95",
    ]  # fmt: skip
    assert list(out["date"]) == list(pd.date_range("2024-01-02 06:00", periods=HORIZON, freq="h"))
    steps = np.arange(1, HORIZON + 1)
    for name, spread in zip("ab", SPREAD):
        last = table[name].iloc[-1]
        np.testing.assert_allclose(out[name], last, rtol=1e-6)
        for level, (low, high) in OFFSETS.items():
            np.testing.assert_allclose(
                out[f"{name}-lo-{100 * level:g}"], last + spread * low * steps, rtol=1e-5
            )
            np.testing.assert_allclose(
                out[f"{name}-hi-{100 * level:g}"], last + spread * high * steps, rtol=1e-5
            )


def test_only_the_last_rows_count_and_in_whatever_order_columns_stand(bundle: Bundle) -> None:
    table = frame(60)
    whole = forecast(bundle, table)
    turned = table.iloc[-LENGTH:][["b", "date", "a"]].assign(other=1.0, text="x")
    pd.testing.assert_frame_equal(forecast(bundle, turned), whole)


def test_an_index_of_stamps_and_another_name_of_the_stamps_are_taken(bundle: Bundle) -> None:
    table = frame()
    whole = forecast(bundle, table)
    pd.testing.assert_frame_equal(forecast(bundle, table.set_index("date")), whole)
    renamed = forecast(bundle, table.rename(columns={"date": "when"}))
    pd.testing.assert_frame_equal(renamed, whole.rename(columns={"date": "when"}))


@pytest.mark.parametrize(
    ("freq", "start", "expected"),
    [
        ("ME", "2022-01-31", ["2024-02-29", "2024-03-31", "2024-04-30"]),
        ("MS", "2022-01-01", ["2024-02-01", "2024-03-01", "2024-04-01"]),
        ("W-TUE", "2023-07-18", ["2024-01-09", "2024-01-16", "2024-01-23"]),
        ("B", "2024-01-29", ["2024-03-05", "2024-03-06", "2024-03-07"]),
        ("15min", "2024-02-28 17:30", ["2024-02-29 00:00", "2024-02-29 00:15", "2024-02-29 00:30"]),
        ("QE-DEC", "2017-12-31", ["2024-06-30", "2024-09-30", "2024-12-31"]),
    ],
)
def test_dates_go_on_as_the_calendar_does_and_come_back_as_they_are(
    tmp_path: Path, freq: str, start: str, expected: list[str]
) -> None:
    config = make_config(freq=freq)
    bundle = save(tmp_path / "b", config, repeating(config))
    path = written(tmp_path / "in" / "x.csv", frame(ROWS.get(freq, 26), freq, start))
    predictor = ForecastPredictor(bundle, {"picture": False})
    (item,) = predictor.discover([path])
    summary = predictor.write(predictor.predict(item), tmp_path)
    back = pd.read_csv(tmp_path / "x.forecast.csv", parse_dates=["date"])
    assert list(back["date"][:3]) == [pd.Timestamp(each) for each in expected]
    assert summary["first"] == str(back["date"].iloc[0]) and summary["last"] == str(back["date"].iloc[-1])


def test_stamps_with_a_zone_are_answered_in_utc_across_summer_time(bundle: Bundle, tmp_path: Path) -> None:
    table = frame(30, start="2024-03-29 19:00", tz="Europe/Berlin")
    path = written(tmp_path / "zone.csv", table)
    predictor = ForecastPredictor(bundle, {"picture": False})
    (item,) = predictor.discover([path])
    predictor.write(predictor.predict(item), tmp_path)
    text = (tmp_path / "zone.forecast.csv").read_text().splitlines()
    assert text[1].startswith("2024-03-31 00:00:00+00:00,")
    ours = pd.to_datetime(pd.read_csv(tmp_path / "zone.forecast.csv")["date"], utc=True)
    theirs = pd.date_range(table["date"].iloc[-1], periods=HORIZON + 1, freq="h")[1:]
    assert list(ours.dt.tz_convert("Europe/Berlin")) == list(theirs)
    assert theirs[1].hour - theirs[0].hour == 2  # the clock did jump here
    out = predictor.predict_frame(table)["date"]
    assert str(out.dtype) == "datetime64[ns, UTC]" and list(out) == list(theirs)


def test_rows_without_dates_are_numbered_on(tmp_path: Path) -> None:
    config = make_config(freq=None, date_column="")
    out = forecast(save(tmp_path / "b", config, repeating(config)), frame().drop(columns="date"))
    assert list(out["step"]) == list(range(30, 36))


def test_numbers_read_back_as_they_were(bundle: Bundle, tmp_path: Path) -> None:
    predictor = ForecastPredictor(bundle, {"picture": False})
    (item,) = predictor.discover([written(tmp_path / "x.csv", frame())])
    result = predictor.predict(item)
    predictor.write(result, tmp_path)
    back = pd.read_csv(tmp_path / "x.forecast.csv", float_precision="round_trip")
    np.testing.assert_array_equal(back[["a", "b"]], result.forecasts[0].values)
    parquet = ForecastPredictor(bundle, {"picture": False, "format": "parquet"})
    parquet.write(result, tmp_path)
    table = pd.read_parquet(tmp_path / "x.forecast.parquet")
    np.testing.assert_array_equal(table[["a", "b"]], result.forecasts[0].values)
    assert table["date"].dtype.kind == "M"


# ---------------------------------------------------------------- scale


def test_the_scale_is_trainings_or_the_rows_own(tmp_path: Path) -> None:
    config = make_config()
    network = repeating(config)
    with torch.no_grad():
        network.model.direct.bias.fill_(1.0)  # one standard deviation more than the last value
    one = save(tmp_path / "one", config, network)
    many = save(tmp_path / "many", config, network, {"train": scale(), "other": scale()})
    table = frame()
    last, own = table["a"].iloc[-1], table["a"].std(ddof=0)

    def rise(bundle: Bundle, name: str = "x", **options: Any) -> tuple[float, str]:
        predictor = ForecastPredictor(bundle, {"picture": False, **options})
        (item,) = predictor.discover([written(tmp_path / "in" / f"{name}.csv", table)])
        result = predictor.predict(item)
        summary = predictor.write(result, tmp_path)
        return float(result.forecasts[0].values[0, 0]) - last, summary["scale"]

    for got, wanted in (
        (rise(one), (SPREAD[0], "training")),
        (rise(one, scale="own"), (own, "own")),
        (rise(many), (own, "own")),
        (rise(many, "other"), (SPREAD[0], "training")),
        (rise(many, "other", scale="own"), (own, "own")),
    ):
        assert got[0] == pytest.approx(wanted[0], rel=1e-4) and got[1] == wanted[1]
    text = said(many, table, scale="training")
    assert text == (
        "frame:frame: no training series of that name (2 known); one of them; set predict.scale=own"
    )


def test_values_far_from_what_is_known_are_pointed_out(bundle: Bundle) -> None:
    table = frame()
    table["a"] += 1000
    (warning,) = (
        ForecastPredictor(bundle, {})
        .predict_record({"csv": table.to_csv(index=False)})["warnings"]
        .splitlines()
    )
    assert (
        warning.startswith("request: a lies 5") and "standard deviations from what it is scaled by" in warning
    )


# ---------------------------------------------------------------- horizon


def test_a_shorter_horizon_is_a_cut_and_a_longer_one_is_rolled_when_asked(tmp_path: Path) -> None:
    config = make_config()
    torch.manual_seed(0)
    network = ForecastNetwork(config)
    network.offsets.fill_(0.5)
    bundle = save(tmp_path / "b", config, network)
    table = frame()
    whole = forecast(bundle, table)
    pd.testing.assert_frame_equal(forecast(bundle, table, horizon=2), whole.iloc[:2])

    rolled = forecast(bundle, table, horizon=9, roll=True)
    assert len(rolled) == 9
    pd.testing.assert_frame_equal(rolled.iloc[:HORIZON], whole)
    on = pd.concat([table, whole[["date", "a", "b"]]], ignore_index=True)
    expected = forecast(bundle, on).iloc[:3]
    np.testing.assert_allclose(rolled[["a", "b"]].iloc[HORIZON:], expected[["a", "b"]], rtol=1e-4)
    assert list(rolled["date"].iloc[HORIZON:]) == list(expected["date"])
    bounds = [name for name in rolled if "-lo-" in name or "-hi-" in name]
    assert (
        rolled[bounds].iloc[:HORIZON].notna().all().all() and rolled[bounds].iloc[HORIZON:].isna().all().all()
    )
    record = ForecastPredictor(bundle, {"horizon": 9, "roll": True}).predict_record(
        {"csv": table.to_csv(index=False)}
    )
    assert (
        "steps after the first 6 are rolled: their intervals are unknown and left empty" in record["warnings"]
    )
    assert record["csv"].splitlines()[-1].endswith(",,,,")  # empty, not nan
    assert "nan" not in record["csv"].lower()


def test_a_longer_horizon_needs_to_be_asked_for(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(UsageError) as refused:
        ForecastPredictor(bundle, {"horizon": 7})
    assert str(refused.value) == (
        "predict.horizon: found 7; at most 6, as trained; set predict.roll=true to go on with own forecasts as input"
    )
    config = make_config(past_columns=["p"])
    past = save(tmp_path / "past", config, repeating(config))
    with pytest.raises(UsageError, match="at most 6, for p is unknown after the last row"):
        ForecastPredictor(past, {"horizon": 7, "roll": True})


# ---------------------------------------------------------------- exogenous columns


@pytest.fixture
def exogenous(tmp_path: Path) -> Bundle:
    """Forecasts the last value plus the future column (scaled) of the step itself."""
    config = make_config(targets=["a"], future_columns=["f"])
    network = repeating(config)
    with torch.no_grad():
        for step in range(HORIZON):
            network.model.future.weight[0, step, LENGTH + step] = 1.0
    return save(tmp_path / "exogenous", config, network)


def with_future(rows: int, ahead: int) -> pd.DataFrame:
    table = frame(rows + ahead).drop(columns="b")
    table.loc[rows:, "a"] = np.nan
    return table.assign(f=np.arange(rows + ahead) % 7 + 1.0)


def test_known_future_columns_are_read_where_they_lie(exogenous: Bundle) -> None:
    table = with_future(30, HORIZON)
    out = forecast(exogenous, table)
    rise = SPREAD[0] * (table["f"].to_numpy()[30:] - 5.0) / 2.0
    np.testing.assert_allclose(out["a"], table["a"][29] + rise, rtol=1e-5)
    assert list(out["date"]) == list(table["date"][30:])


def test_absent_future_values_are_named_by_date(exogenous: Bundle) -> None:
    table = with_future(30, HORIZON)
    table.loc[[31, 33], "f"] = np.nan
    assert said(exogenous, table) == (
        "frame:f: no value at 2024-01-02 07:00:00, 2024-01-02 09:00:00; "
        "values for the 6 steps after the last row of the targets; add them"
    )
    assert (
        "no value at 2024-01-02 06:00:00, 2024-01-02 07:00:00, 2024-01-02 08:00:00 and 3 more steps"
        in said(exogenous, with_future(30, 0))
    )
    rolled = said(exogenous, with_future(30, HORIZON), horizon=7, roll=True)
    assert (
        "no value at 2024-01-02 12:00:00" in rolled and "and 3 more steps; values for the 12 steps" in rolled
    )


# ---------------------------------------------------------------- missing values


def test_missing_inputs_are_masked_and_counted(bundle: Bundle, tmp_path: Path) -> None:
    table = frame()
    table.loc[27:29, "a"] = np.nan
    table.loc[2, "b"] = np.nan  # before the window
    predictor = ForecastPredictor(bundle, {"picture": False})
    (item,) = predictor.discover([written(tmp_path / "x.csv", table)])
    result = predictor.predict(item)
    summary = predictor.write(result, tmp_path)
    assert result.forecasts[0].values[0, 0] == pytest.approx(table["a"][26], rel=1e-6)
    assert summary["missing_inputs"] == 3
    assert summary["warnings"] == ["missing in the last 24 rows and masked: a 3"]
    assert summary["first"] == "2024-01-02 06:00:00"


# ---------------------------------------------------------------- bad input


def test_bad_tables_are_refused_in_one_line(bundle: Bundle) -> None:
    assert said(bundle, frame(20)) == (
        "frame: 20 rows; at least 24 (data.input_length); give 4 more rows, or a model of a shorter data.input_length"
    )
    assert "no column 'b'; one of date, a, c;" in said(bundle, frame().rename(columns={"b": "c"}))
    empty = frame(40)
    empty.loc[10:, "b"] = np.nan
    assert said(bundle, empty) == (
        "frame:b: no value in the last 24 rows; at least one; "
        "give newer rows, or leave the channel out in training"
    )
    assert "a step of 15min; a step of h as the model was trained on" in said(bundle, frame(freq="15min"))
    endless = frame()
    endless.loc[4, "a"] = np.inf
    assert "infinite in row 6" in said(bundle, endless)
    gap = frame(40).drop(index=[20, 21])
    text = said(bundle, gap)
    assert "stamps absent: 2 after row 21 (2024-01-01 19:00)" in text and "data.gaps=mask" in text
    assert len(forecast(bundle, gap, **{"data.gaps": "mask"})) == HORIZON
    unsorted = frame().iloc[[1, 0, *range(2, 30)]]
    assert "stamps go back at row 3" in said(bundle, unsorted)
    twice = pd.concat([frame(), frame().iloc[-1:]])
    assert "stamps repeat at row 32" in said(bundle, twice)


def test_a_calendar_that_ends_is_an_error(bundle: Bundle) -> None:
    assert "no calendar 6 steps after 2262-04-11" in said(bundle, frame(30, start="2262-04-10 17:00"))


def test_options_that_belong_to_the_model_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"data\.horizon: part of the trained model"):
        ForecastPredictor(bundle, {"data.horizon": 3})
    with pytest.raises(UsageError, match=r"did you mean predict\.horizon"):
        ForecastPredictor(bundle, {"horizons": 3})


def test_bounds_that_clash_with_a_channel_are_refused(tmp_path: Path) -> None:
    config = make_config(targets=["a", "a-lo-80"])
    bundle = save(tmp_path / "b", config, repeating(config))
    text = said(bundle, frame().rename(columns={"b": "a-lo-80"}))
    assert "two columns of the forecast called a-lo-80" in text


def test_a_forecast_that_is_not_finite_is_no_forecast(tmp_path: Path) -> None:
    config = make_config()
    network = repeating(config)
    with torch.no_grad():
        network.model.direct.bias[0, 2] = torch.inf
    assert "the forecast is not finite" in said(save(tmp_path / "b", config, network), frame())


# ---------------------------------------------------------------- serving, Python


def test_the_example_is_answered_and_bad_requests_are_refused(bundle: Bundle) -> None:
    predictor = PIPELINE.predictor(bundle, {})
    answer = predictor.predict_record(predictor.example_record())
    assert set(answer) == set(predictor.record_outputs) and answer["warnings"] == ""
    table = pd.read_csv(io.StringIO(answer["csv"]), parse_dates=["date"])
    assert len(table) == HORIZON and table["date"][0] == pd.Timestamp("2024-01-02")
    for record, words in (
        ({}, "request:csv: nothing; the text of a CSV table; send it"),
        ({"csv": 3}, "request:csv: nothing"),
        ({"csv": "date,a,b\n"}, "request: a header and no rows"),
        ({"csv": "PK\x03\x04"}, "request: an Excel or zip file"),
        ({"csv": frame(5).to_csv(index=False)}, "request: 5 rows; at least 24"),
    ):
        with pytest.raises(ItemError) as refused:
            predictor.predict_record(record)
        assert str(refused.value).startswith(words)


@pytest.mark.parametrize(
    "data",
    [
        {"future_columns": ["f"], "past_columns": ["p"]},
        {"layout": "long", "id_column": "shop", "date_column": "ds"},
        {"freq": None, "date_column": ""},
        {"freq": "W-TUE"},
    ],
    ids=["exogenous", "long", "steps", "weeks"],
)
def test_every_kind_of_model_has_a_valid_example(tmp_path: Path, data: dict[str, Any]) -> None:
    config = make_config(**data)
    predictor = ForecastPredictor(save(tmp_path / "b", config, repeating(config)), {})
    answer = predictor.predict_record(predictor.example_record())
    assert len(answer["csv"].splitlines()) == HORIZON + 1


def test_a_series_made_by_hand_is_forecast(bundle: Bundle) -> None:
    table = frame()
    series = Series("mine", pd.DatetimeIndex(table["date"]), "h", table[["b", "a"]].to_numpy(), ("b", "a"))
    found, scaled_by = ForecastPredictor(bundle, {}).forecast(series)
    assert scaled_by == "training"
    assert found.series.channels == ("a", "b")
    np.testing.assert_allclose(found.values[0], table[["a", "b"]].iloc[-1], rtol=1e-6)


def test_real_tables_go_through(tmp_path: Path, data_dir: Path) -> None:
    config = make_config(targets=["OT"], input_length=336, horizon=96)
    bundle = save(tmp_path / "b", config, repeating(config))
    predictor = ForecastPredictor(bundle, {})
    (item,) = predictor.discover([data_dir / "timeseries" / "ETTh1.csv.gz"])
    summary = predictor.write(predictor.predict(item), tmp_path)
    assert (summary["first"], summary["last"]) == ("2018-06-26 20:00:00", "2018-06-30 19:00:00")
    assert (tmp_path / "ETTh1.png").read_bytes()[:4] == b"\x89PNG"
