"""The sktime forecasters: sktime's own conformance checks, the pipeline's numbers, updates, intervals, composition."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("sktime")
from sklearn.utils import check_random_state
from sktime.datasets import load_airline
from sktime.forecasting.compose import ForecastingPipeline, TransformedTargetForecaster
from sktime.forecasting.model_evaluation import evaluate
from sktime.forecasting.model_selection import ForecastingGridSearchCV
from sktime.forecasting.naive import NaiveForecaster
from sktime.performance_metrics.forecasting import mean_absolute_percentage_error
from sktime.split import ExpandingWindowSplitter, temporal_train_test_split
from sktime.transformations.detrend import Detrender
from sktime.transformations.impute import Imputer
from sktime.utils.estimator_checks import check_estimator

from shared.config import resolve
from shared.training.fit import FitContext
from shared.training.seed import seed_everything
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.estimators import AutoformerForecaster, LTSFLinearForecaster
from timeseries.forecast.pipeline import PIPELINE

SMALL = {
    "width": 8,
    "heads": 2,
    "feedforward": 16,
    "label_length": 6,
    "kernel": 5,
    "batch_size": 64,
    "device": "cpu",
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*rows allow only.*", "ignore:.*errors of a step were held back.*"
)


def checked(estimator: Any, **chosen: Any) -> int:
    """How many checks ran; all must pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(estimator, raise_exceptions=False, verbose=False, **chosen)
    assert {name: said for name, said in found.items() if said != "PASSED"} == {}
    return len(found)


def test_linear_family_passes_every_check_of_sktime() -> None:
    assert checked(LTSFLinearForecaster) >= 750


def test_autoformer_passes_the_checks_of_settings_files_and_repetition() -> None:
    chosen = ["test_constructor", "test_set_params", "test_persistence_via_pickle", "test_fit_idempotent"]
    assert checked(AutoformerForecaster, tests_to_run=chosen) >= 25


@pytest.mark.slow
def test_autoformer_passes_every_check_of_sktime() -> None:
    assert checked(AutoformerForecaster) >= 750


# ---------------------------------------------------------------- the pipeline's numbers

ROWS, TRAIN = 1500, 1200


def etth1(data_dir: Path) -> pd.DataFrame:
    table = pd.read_csv(data_dir / "timeseries" / "ETTh1.csv.gz", parse_dates=["date"], index_col="date")
    return table.iloc[: ROWS + 200]


def by_pipeline(
    table: pd.DataFrame, folder: Path, model: dict[str, Any], counts: tuple[int, ...], seed: int
) -> Any:
    """Forecast of the 24 rows after the first `ROWS` by the network that a run of the pipeline trains."""
    table.to_csv(folder / "table.csv")
    data = {
        "path": str(folder / "table.csv"),
        "input_length": 96,
        "horizon": 24,
        "split": "counts",
        "counts": counts,
    }
    train = {
        "epochs": 3,
        "batch_size": 64,
        "lr": 5e-3,
        "schedule": "halving",
        "weight_decay": 0.0,
        "accelerator": "cpu",
    }
    layer = {
        "data": data,
        "model": model,
        "train": train,
        "intervals": {"method": "none"},
        "seed": seed,
        "threads": 1,
    }
    config = PIPELINE.complete(resolve(ForecastConfig, [("test", layer)]))
    seed_everything(seed)
    module: Any = PIPELINE.data(config)
    module.setup("fit")
    task: Any = PIPELINE.task(config)
    context = FitContext(folder, None, False, lambda text: None, "val/mse", "min", "test")
    PIPELINE.fit(config, task, module, context)
    later = next(
        part for part, end in zip(("val", "test"), (counts[0], counts[0] + counts[1])) if end == ROWS
    )
    with torch.no_grad():
        point = task.network.eval().point(module.windows(later).batch([0]).inputs)
    return module.prepared[0].scale.undo(point[0].numpy())


def test_closed_form_forecasts_what_the_pipeline_does(data_dir: Path, tmp_path: Path) -> None:
    table = etth1(data_dir)
    ours = (
        LTSFLinearForecaster(input_length=96, intervals="none").fit(table[:ROWS], fh=range(1, 25)).predict()
    )
    theirs = by_pipeline(table, tmp_path, {"name": "nlinear"}, (ROWS, 100, 100), 0)
    np.testing.assert_allclose(ours.to_numpy(), theirs, rtol=1e-5)
    assert list(ours.columns) == list(table.columns)
    assert ours.index.equals(table.index[ROWS : ROWS + 24])


def test_gradient_steps_forecast_what_the_pipeline_does(data_dir: Path, tmp_path: Path) -> None:
    table = etth1(data_dir)
    model = {"name": "dlinear", "solver": "sgd"}
    seed = int(check_random_state(7).randint(2**31 - 1))
    ours = LTSFLinearForecaster(
        "dlinear",
        96,
        solver="sgd",
        max_epochs=3,
        batch_size=64,
        holdout=1 - TRAIN / ROWS,
        device="cpu",
        random_state=7,
    ).fit(table[:ROWS], fh=range(1, 25))
    theirs = by_pipeline(table, tmp_path, model, (TRAIN, ROWS - TRAIN, 200), seed)
    np.testing.assert_allclose(ours.predict().to_numpy(), theirs, rtol=1e-4, atol=1e-4)


def test_it_beats_the_seasonal_naive_forecast_on_the_airline_series() -> None:
    train, test = temporal_train_test_split(load_airline(), test_size=36)
    fh = range(1, 37)
    naive = NaiveForecaster("last", sp=12).fit(train).predict(fh)
    ours = LTSFLinearForecaster(input_length=24).fit(train, fh=fh).predict()
    assert mean_absolute_percentage_error(test, ours) < 0.06
    assert mean_absolute_percentage_error(test, naive) > 0.12


# ---------------------------------------------------------------- updates


@pytest.mark.parametrize("missing", [False, True])
def test_an_update_of_least_squares_equals_a_fit_of_everything(missing: bool) -> None:
    y, X = made(400)
    if missing:
        y.iloc[[50, 51, 310], 0] = np.nan
    settings = {"kind": "linear", "input_length": 24, "horizon": 6, "scale": False}
    whole = LTSFLinearForecaster(**settings).fit(y[:390], X[:390])
    grown = LTSFLinearForecaster(**settings).fit(y[:300], X[:300])
    grown.update(y[300:301], X[300:301]).update(y[301:390], X[301:390])
    for said in ("predict", "predict_interval"):
        ours, theirs = (getattr(f, said)(fh=[1, 3, 6], X=X[390:396]) for f in (grown, whole))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, check_freq=False)


def test_an_update_without_parameters_only_moves_the_window() -> None:
    y, _ = made(300)
    fitted = LTSFLinearForecaster(input_length=24, horizon=6).fit(y[:250])
    weights = fitted.network_.state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    moved = fitted.update(y[250:300], update_params=False).predict(fh=1)
    assert moved.index[0] == y.index[-1] + y.index.freq
    assert all(torch.equal(before[name], value) for name, value in fitted.network_.state_dict().items())


def test_rows_seen_again_with_other_values_mean_a_new_fit() -> None:
    y, _ = made(300)
    other = y.copy()
    other.iloc[200:] += 5.0
    settings = {"input_length": 24, "horizon": 6, "scale": False}
    grown = LTSFLinearForecaster(**settings).fit(y[:250]).update(other[200:300])
    fresh = LTSFLinearForecaster(**settings).fit(pd.concat([y[:200], other[200:]]))
    np.testing.assert_allclose(grown.predict(fh=range(1, 7)), fresh.predict(fh=range(1, 7)), rtol=1e-5)


def test_an_update_of_gradient_steps_goes_on_from_the_weights() -> None:
    y, _ = made(300)
    fitted = LTSFLinearForecaster(
        input_length=12, horizon=3, solver="sgd", max_epochs=2, device="cpu", random_state=0
    )
    before = fitted.fit(y[:250]).network_.state_dict()
    after = fitted.update(y[250:]).network_.state_dict()
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 0.5


def test_input_shortened_for_want_of_rows_grows_with_them() -> None:
    y, _ = made(300)
    with pytest.warns(UserWarning, match="20 rows allow only inputs of 6 rows instead of 48"):
        fitted = LTSFLinearForecaster(input_length=48).fit(y[:20], fh=[1, 2, 3])
    assert (fitted.input_length_, fitted.horizon_) == (6, 3)
    assert fitted.update(y[20:]).input_length_ == 48


# ---------------------------------------------------------------- inputs


def made(rows: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two channels with a period of 12, which two exogenous columns move in the same step."""
    draw = np.random.default_rng(0)
    steps = np.arange(rows)
    X = pd.DataFrame(draw.normal(size=(rows, 2)), columns=["a", "b"])
    y = pd.DataFrame({"one": np.sin(steps * np.pi / 6), "two": np.cos(steps * np.pi / 6)})
    y = y.add(X["a"] - 0.5 * X["b"], axis=0) + draw.normal(0, 0.1, (rows, 2))
    y.index = X.index = pd.date_range("2024-01-01", periods=rows, freq="D")
    return y, X


def test_exogenous_columns_explain_what_the_past_cannot() -> None:
    y, X = made(600)
    fh = range(1, 13)
    with_x = LTSFLinearForecaster(input_length=24, ridge=1.0).fit(y[:588], X[:588], fh).predict(X=X[588:])
    without = LTSFLinearForecaster(input_length=24, ridge=1.0).fit(y[:588], fh=fh).predict()
    errors = [float(((y[588:] - found) ** 2).to_numpy().mean()) for found in (with_x, without)]
    assert errors[0] < 0.15 * errors[1]


def test_exogenous_columns_are_matched_by_name_and_must_reach_the_horizon() -> None:
    y, X = made(200)
    fitted = LTSFLinearForecaster(input_length=12).fit(y[:190], X[:190], fh=[1, 2, 3])
    turned = X[["b", "a"]].assign(more=1.0)
    pd.testing.assert_frame_equal(fitted.predict(X=turned[190:193]), fitted.predict(X=X[190:193]))
    with pytest.raises(ValueError, match="X: columns b missing; those of fit wanted"):
        fitted.predict(X=X[["a"]][190:193])
    with pytest.raises(ValueError, match=r"X: no values at 2024-07-09 00:00:00, .*give X to predict"):
        fitted.predict()
    with pytest.warns(
        UserWarning, match="X: values are missing at 2024-07-10 00:00:00; the mean of the column"
    ):
        fitted.predict(X=X.iloc[[190, 192]])


@pytest.mark.parametrize("solver", ["closed-form", "sgd"])
def test_missing_values_are_left_out(solver: str) -> None:
    y, X = made(400)
    holes = y.copy()
    holes[np.random.default_rng(1).random(y.shape) < 0.1] = np.nan
    X.iloc[5, 0] = np.nan
    settings = {
        "input_length": 24,
        "horizon": 6,
        "solver": solver,
        "max_epochs": 5,
        "device": "cpu",
        "random_state": 0,
    }
    full, gappy = (LTSFLinearForecaster(**settings).fit(each[:390], X[:390]) for each in (y, holes))
    found, wanted = (f.predict(fh=range(1, 7), X=X[390:396]) for f in (gappy, full))
    assert np.isfinite(found.to_numpy()).all()
    assert float((found - wanted).abs().to_numpy().mean()) < 0.4
    absent = LTSFLinearForecaster(**settings).fit(
        y.drop(y.index[100:110])[:380], X.drop(y.index[100:110])[:380]
    )
    assert np.isfinite(absent.predict(fh=1, X=X[390:391]).to_numpy()).all()


@pytest.mark.parametrize("kind", ["period", "number", "zone"])
def test_any_index_of_sktime_gives_the_same_forecast(kind: str) -> None:
    y, _ = made(200)
    dates = LTSFLinearForecaster(input_length=12).fit(y, fh=[1, 5]).predict()
    index = {
        "period": y.index.to_period(),
        "number": pd.RangeIndex(3, 203),
        "zone": y.index.tz_localize("CET"),
    }[kind]
    found = LTSFLinearForecaster(input_length=12).fit(y.set_axis(index), fh=[1, 5]).predict()
    np.testing.assert_allclose(found, dates, rtol=1e-6)
    assert type(found.index[0]) is type(index[0]) or kind == "number"


def test_calendar_features_reach_the_autoformer() -> None:
    y, _ = made(120)
    settings = {**SMALL, "input_length": 24, "max_epochs": 1, "random_state": 0}
    dated = AutoformerForecaster(**settings).fit(y, fh=[1, 2, 3])
    bare = AutoformerForecaster(**settings).fit(y.reset_index(drop=True), fh=[1, 2, 3])
    assert dated.network_.config.data.freq == "D" and bare.network_.config.data.freq is None
    assert sum(p.numel() for p in dated.network_.parameters()) > sum(
        p.numel() for p in bare.network_.parameters()
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "trend"}, "kind 'trend'; 'linear', 'nlinear' or 'dlinear' wanted"),
        ({"kind": "dlinear", "kernel": 4}, "kernel 4 is even"),
        ({"kind": "dlinear", "input_length": 12}, "model.kernel 25 exceeds data.input_length 12"),
        ({"solver": "lasso"}, "model.solver: found 'lasso'"),
        ({"intervals": "normal"}, "intervals 'normal'; 'conformal' or 'none' wanted"),
        ({"holdout": 1.0}, "holdout 1.0; a share of at least 0 and below 1 wanted"),
        ({"horizon": 0}, "horizon 0; at least 1 wanted"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LTSFLinearForecaster(**{"input_length": 36, **settings}).fit(load_airline(), fh=[1])


def test_series_that_cannot_be_fitted_are_refused_in_a_line() -> None:
    y = load_airline()
    with pytest.raises(ValueError, match="y: 1 row; at least 2 wanted"):
        LTSFLinearForecaster().fit(y[:1], fh=[1])
    with pytest.raises(ValueError, match="y: no window has a value to forecast"):
        LTSFLinearForecaster(input_length=12).fit(y * np.nan, fh=[1])
    odd = pd.Series(
        range(4),
        pd.DatetimeIndex(["2024-01-01T00", "2024-01-02T00", "2024-01-05T00", "2024-01-05T07"]),
        dtype=float,
    )
    with pytest.raises(ValueError, match=r"is not on the calendar of step|without a regular step"):
        LTSFLinearForecaster().fit(odd, fh=[1])


# ---------------------------------------------------------------- horizons and intervals


def test_steps_beyond_the_horizon_go_on_from_forecasts() -> None:
    y, _ = made(400)
    fitted = LTSFLinearForecaster(input_length=24, horizon=6).fit(y)
    far = fitted.predict(fh=[6, 7, 14])
    seen = pd.concat([y, fitted.predict(fh=range(1, 7))])
    fitted.update(seen[-6:], update_params=False)
    np.testing.assert_allclose(far.iloc[1], fitted.predict(fh=1).iloc[0], rtol=1e-5)
    bounds = (
        LTSFLinearForecaster(input_length=24, horizon=6).fit(y).predict_interval(fh=[6, 14], coverage=0.8)
    )
    assert (bounds.xs("upper", axis=1, level=2) > bounds.xs("lower", axis=1, level=2)).all(axis=None)


def test_intervals_cover_as_often_as_they_say() -> None:
    draw = np.random.default_rng(3)
    noise = draw.normal(size=3000)
    y = np.zeros(3000)
    for i in range(1, 3000):
        y[i] = 0.8 * y[i - 1] + noise[i]
    series = pd.Series(y)
    fitted = LTSFLinearForecaster("linear", 12, 3).fit(series[:2000])
    held = {0.5: 0, 0.9: 0}
    origins = range(2000, 2990, 5)
    for origin in origins:
        fitted.update(series[origin - 5 : origin], update_params=False)
        bounds = fitted.predict_interval(fh=[3], coverage=list(held))
        for level in held:
            low, high = bounds.xs(level, axis=1, level=1).iloc[0]
            held[level] += bool(low <= series[origin + 2] <= high)
    assert abs(held[0.5] / len(origins) - 0.5) < 0.08
    assert abs(held[0.9] / len(origins) - 0.9) < 0.05


def test_quantiles_are_in_order_and_the_median_lies_inside() -> None:
    y, _ = made(300)
    found = (
        LTSFLinearForecaster(input_length=24)
        .fit(y, fh=[1, 4])
        .predict_quantiles(alpha=[0.05, 0.25, 0.5, 0.75, 0.95])
    )
    for name in y.columns:
        assert (np.diff(found[name].to_numpy(), axis=1) >= 0).all()


def test_without_intervals_nothing_is_held_back() -> None:
    y, _ = made(100)
    fitted = LTSFLinearForecaster(input_length=12, intervals="none").fit(y, fh=[1])
    assert not fitted.get_tag("capability:pred_int")
    with pytest.raises(NotImplementedError):
        fitted.predict_interval()


# ---------------------------------------------------------------- composition


def test_inside_pipelines_cross_validation_and_grid_search() -> None:
    y = load_airline()
    y.iloc[20] = np.nan
    steps = Imputer() * Detrender() * LTSFLinearForecaster(input_length=24)
    cv = ExpandingWindowSplitter(fh=range(1, 13), initial_window=108, step_length=12)
    for strategy in ("refit", "update"):
        scores = evaluate(steps, cv, load_airline(), strategy=strategy)
        assert scores["test_MeanAbsolutePercentageError"].mean() < 0.08
    grid = {"input_length": [12, 36], "ridge": [1e-3, 1.0]}
    search = ForecastingGridSearchCV(LTSFLinearForecaster(intervals="none"), cv, grid).fit(
        load_airline(), fh=range(1, 13)
    )
    assert set(search.best_params_) == {"input_length", "ridge"}
    assert search.predict().notna().all()
    assert (
        TransformedTargetForecaster([("impute", Imputer()), ("model", LTSFLinearForecaster(input_length=24))])
        .fit(y, fh=[1, 2])
        .predict_interval()
        .notna()
        .all(axis=None)
    )


def test_inside_a_pipeline_of_exogenous_columns() -> None:
    y, X = made(200)
    X.iloc[7, 1] = np.nan
    pipe = ForecastingPipeline([("impute", Imputer()), ("model", LTSFLinearForecaster(input_length=12))])
    assert pipe.fit(y[:190], X[:190], fh=[1, 2]).predict(X=X[190:192]).shape == (2, 2)


@pytest.mark.parametrize("name", ["linear", "autoformer"])
def test_a_fitted_estimator_survives_a_file(name: str, tmp_path: Path) -> None:
    y, _ = made(100)
    fitted: Any = (
        LTSFLinearForecaster(input_length=12)
        if name == "linear"
        else AutoformerForecaster(12, **{**SMALL, "label_length": 6}, max_epochs=1, random_state=0)
    )
    fitted.fit(y, fh=[1, 2, 3])
    joblib.dump(fitted, tmp_path / "model.joblib")
    again = joblib.load(tmp_path / "model.joblib")
    pd.testing.assert_frame_equal(again.predict(), fitted.predict())
    again.update(y[-1:].set_axis(y.index[-1:] + y.index.freq))
    assert again.predict_interval(coverage=0.5).notna().all(axis=None)


def test_autoformer_learns_the_period() -> None:
    steps = np.arange(400)
    y = pd.Series(np.sin(steps * np.pi / 6) + np.random.default_rng(0).normal(0, 0.05, 400))
    settings = {**SMALL, "width": 16, "feedforward": 32, "batch_size": 8}
    fitted = AutoformerForecaster(24, **settings, max_epochs=5, patience=0, lr=1e-2, random_state=0).fit(
        y[:388], fh=range(1, 13)
    )
    assert float(((fitted.predict() - y[388:]) ** 2).mean()) < 0.2  # variance 0.5
    again = AutoformerForecaster(24, **settings, max_epochs=5, patience=0, lr=1e-2, random_state=0).fit(
        y[:388], fh=range(1, 13)
    )
    pd.testing.assert_series_equal(again.predict(), fitted.predict())


def test_fitting_leaves_the_global_generators_alone() -> None:
    y, _ = made(100)
    torch.manual_seed(5)
    LTSFLinearForecaster(input_length=12, random_state=0).fit(y, fh=[1])
    LTSFLinearForecaster(input_length=12, solver="sgd", max_epochs=1, device="cpu", random_state=0).fit(
        y, fh=[1]
    )
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_the_pipeline_does_not_need_sktime() -> None:
    for path in PIPELINE.folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "forecast.estimators" not in text or path.stem == "estimators", path.name
        assert not re.search(r"^(from|import) sktime", text, re.M) or path.stem == "estimators", path.name
