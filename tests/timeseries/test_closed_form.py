"""Exact least squares: against the normal equations of windows really made, and against the measured table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch

from shared.errors import ResourcesExhausted
from tests.timeseries.made import made_config, made_series
from timeseries.forecast.config import ForecastDataConfig
from timeseries.forecast.data import prepare
from timeseries.forecast.models.closed_form import Shape, estimate, fit_closed_form, refit, shape_of, solve
from timeseries.forecast.models.linear import Kind, LinearFamily
from timeseries.forecast.models.moments import Moments
from timeseries.forecast.series import Series
from timeseries.forecast.windows import Prepared, Scale, Windows, borders

LENGTH, HORIZON = 48, 12
KINDS: tuple[Kind, ...] = ("linear", "nlinear", "dlinear")


def scaled(missing: float = 0.0, past: int = 0, future: int = 0, seed: int = 0) -> Prepared:
    draw = np.random.default_rng(seed)
    series = made_series(seed=seed)
    values = series.values.copy()
    values[draw.random(values.shape) < missing] = np.nan
    extra = draw.normal(size=(len(series), past + future)).cumsum(0) * 0.1
    more = {"past": extra[:, :past], "past_columns": tuple(f"p{i}" for i in range(past))} if past else {}
    if future:
        more |= {"future": extra[:, past:], "future_columns": tuple(f"f{i}" for i in range(future))}
    series = replace(series, values=values, **more)
    return prepare(series, made_config(series))


def family(kind: Kind, one: Prepared, individual: bool = False) -> LinearFamily:
    shape = one.x.shape[1], one.past.shape[1], one.future.shape[1]
    return LinearFamily(kind, LENGTH, HORIZON, *shape, individual=individual).eval()


def direct(prepared: list[Prepared], ridge: float, differenced: bool, channels: slice) -> np.ndarray:
    """(inputs + 1, H) by the normal equations of all windows; the last row is the intercept."""
    inputs, targets = [], []
    for one in prepared:
        windows = Windows([one], "train", LENGTH, HORIZON)
        batch = windows.batch(slice(None))
        extra = torch.cat([batch.inputs.past.mT.flatten(1), batch.inputs.future.mT.flatten(1)], 1)
        for x, y in zip(batch.inputs.x.unbind(2)[channels], batch.y.unbind(2)[channels]):
            last = x[:, -1:] if differenced else 0.0
            inputs.append(torch.cat([x - last, extra, torch.ones(len(x), 1)], 1).double())
            targets.append((y - last).double())
    z, y = torch.cat(inputs).numpy(), torch.cat(targets).numpy()
    penalty = np.eye(z.shape[1]) * ridge
    penalty[-1, -1] = 0
    return np.asarray(np.linalg.solve(z.T @ z + penalty, z.T @ y))


@pytest.mark.parametrize("differenced", [False, True])
@pytest.mark.parametrize("individual", [False, True])
def test_solution_is_that_of_the_normal_equations(differenced: bool, individual: bool) -> None:
    prepared = [scaled(past=1, future=1), scaled(past=1, future=1, seed=1)]
    moments = Moments.of(prepared, LENGTH, HORIZON, individual)
    found = solve(moments, 0.1, differenced)
    for group in range(2 if individual else 1):
        wanted = direct(prepared, 0.1, differenced, slice(group, group + 1) if individual else slice(None))
        maps = torch.cat([found.weight, found.past, found.future], 2)[group].numpy().T
        # float32 differences x − x_last of the windows made, float64 ones here
        tolerance = 1e-4 if differenced else 1e-8
        assert np.abs(maps - wanted[:-1]).max() < tolerance
        assert np.abs(found.bias[group].numpy() - wanted[-1]).max() < tolerance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("individual", [False, True])
def test_filled_model_has_the_error_that_the_solution_states(kind: Kind, individual: bool) -> None:
    one = scaled(past=1, future=1)
    model, said = family(kind, one, individual), list[str]()
    moments = fit_closed_form(model, [one], made_config(one.series), said.append)
    found = solve(moments, 1e-3, kind == "nlinear")
    batch = Windows([one], "train", LENGTH, HORIZON).batch(slice(None))
    with torch.no_grad():
        errors = (model(batch.inputs)[:, 0] - batch.y).double().square().mean(0).T  # (C, H)
    assert torch.allclose(errors if individual else errors.mean(0, keepdim=True), found.mse, rtol=1e-3)
    assert said[0].startswith(f"closed form: {moments.windows:,} windows of 2 channels, training MSE 0.0")


def test_dlinear_gets_linears_solution_in_its_smallest_branches() -> None:
    one = scaled()
    linear, dlinear = family("linear", one), family("dlinear", one)
    for model in (linear, dlinear):
        fit_closed_form(model, [one], made_config(one.series), lambda text: None)
    assert torch.allclose(dlinear.effective_weight(), linear.effective_weight(), atol=1e-5)
    assert dlinear.seasonal is not None and dlinear.trend is not None
    size = dlinear.seasonal.weight.square().sum() + dlinear.trend.weight.square().sum()
    assert size < 2 * linear.effective_weight().square().sum()  # W in both branches would do too


@pytest.mark.parametrize("kind", KINDS)
def test_refit_after_new_rows_is_a_full_fit(kind: Kind) -> None:
    one = scaled(past=1, future=1)
    extra = np.concatenate([one.past, one.future], 1)
    online = Moments(LENGTH, HORIZON, 2, 1, 1)
    online.add(one.x[:380], extra[:380])
    online.update(one.x[380:400], extra[380:400])
    for row in range(400, 420):
        online.update(one.x[row : row + 1], extra[row : row + 1])
    whole = Moments.of([one], LENGTH, HORIZON)
    assert one.borders.train == 420 and online.windows == whole.windows
    for a, b in zip(solve(online, 1e-3, kind == "nlinear"), solve(whole, 1e-3, kind == "nlinear")):
        assert (a - b).abs().max() <= 1e-9 * b.abs().max()
    first, second = family(kind, one), family(kind, one)
    refit(first, online, 1e-3)
    refit(second, whole, 1e-3)
    batch = Windows([one], "test", LENGTH, HORIZON).batch(slice(None))
    assert torch.allclose(first(batch.inputs), second(batch.inputs), atol=1e-6)


@pytest.mark.parametrize("individual", [False, True])
def test_missing_values_cost_little(individual: bool) -> None:
    whole, holed = scaled(), scaled(missing=0.1)
    test = Windows([whole], "test", LENGTH, HORIZON).batch(slice(None))
    errors = []
    for one in (whole, holed):
        model = family("nlinear", one, individual)
        fit_closed_form(model, [one], made_config(one.series), lambda text: None)
        with torch.no_grad():
            errors.append(float((model(test.inputs)[:, 0] - test.y).square().mean()))
    assert errors[0] < 0.2 and errors[1] < 1.5 * errors[0]


def test_columns_that_never_change_and_no_ridge_give_finite_weights() -> None:
    one = scaled()
    still = replace(one.series, values=np.ones_like(one.series.values))
    for series, ridge in ((still, 0.0), (still, 1e-3), (one.series, 0.0)):
        config = made_config(series, f"model.ridge={ridge}")
        prepared = prepare(series, config)
        for kind in KINDS:
            model = family(kind, prepared)
            fit_closed_form(model, [prepared], config, lambda text: None)
            assert all(p.isfinite().all() and p.abs().max() < 100 for p in model.parameters())


def test_what_least_squares_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one = scaled()
    with pytest.raises(ValueError, match="closed form gives one forecast; the model has 3 quantiles"):
        refit(
            LinearFamily("linear", LENGTH, HORIZON, 2, quantiles=3), Moments.of([one], LENGTH, HORIZON), 1.0
        )
    with pytest.raises(ValueError, match="no training window"):
        solve(Moments(LENGTH, HORIZON, 2), 1.0)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    with pytest.raises(
        ResourcesExhausted, match=r"closed form: about 0\.0 GiB wanted, 0\.0 GiB .*; set model\.indiv"
    ):
        fit_closed_form(family("linear", one), [one], made_config(one.series), lambda text: None)


def test_cost_is_known_before() -> None:
    one = scaled(missing=0.1)
    assert shape_of(family("linear", one, True), [one]) == Shape(420, 2, LENGTH, HORIZON, 0, 0, True, True)
    traffic = Shape(12_280, 862, 336, 96)
    for shape in (
        traffic,
        traffic._replace(individual=True),
        traffic._replace(individual=True, missing=True),
    ):
        size, operations = estimate(shape)
        assert size < 4 * 2**30 and operations < 1e11
    assert estimate(traffic._replace(individual=True))[0] > 862 * 336 * 432 * 8


# ---------------------------------------------------------------- measured values (all windows, ridge 1e-3)

TABLE = {
    "ETTh1": (336, (96, 192, 336, 720)),
    "ETTh2": (336, (96, 192, 336, 720)),
    "exchange_rate": (336, (96, 192, 336, 720)),
    "national_illness": (104, (24, 36, 48, 60)),
}
WANTED = {
    ("ETTh1", "nlinear"): ".3702/.3915 .4034/.4112 .4277/.4262 .4344/.4505",
    ("ETTh1", "linear"): ".3702/.3915 .4042/.4127 .4334/.4342 .4714/.4878",
    ("ETTh2", "nlinear"): ".2726/.3352 .3343/.3762 .3588/.4004 .3930/.4346",
    ("ETTh2", "linear"): ".3019/.3655 .3972/.4276 .4858/.4837 .7407/.6116",
    ("exchange_rate", "nlinear"): ".0857/.2020 .1796/.2987 .3389/.4203 .9846/.7454",
    ("exchange_rate", "linear"): ".0826/.2057 .1746/.3081 .3699/.4567 1.0996/.7867",
    ("national_illness", "nlinear"): "1.9585/.9042 1.8819/.9058 1.8603/.9165 1.8967/.9338",
    ("national_illness", "linear"): "2.1952/1.0238 2.2212/1.0469 2.2623/1.0687 2.3852/1.1038",
}


def benchmark(folder: Path, name: str, freq: str) -> Prepared:
    frame = pd.read_csv(folder / "timeseries" / f"{name}.csv.gz")
    columns = frame.iloc[:, 1:]
    times = pd.DatetimeIndex(pd.to_datetime(frame.iloc[:, 0]))
    series = Series(name, times, freq, columns.to_numpy(float), tuple(columns.columns))
    ends = borders(series, ForecastDataConfig())
    return Prepared(series, Scale.fit(series, ends.train), ends)


def errors_on_test(model: LinearFamily, one: Prepared) -> tuple[float, float]:
    windows, sums = Windows([one], "test", model.length, model.horizon), np.zeros(3)
    with torch.inference_mode():
        for at in range(0, len(windows), 256):
            batch = windows.batch(slice(at, at + 256))
            error = (model(batch.inputs)[:, 0] - batch.y).double()
            sums += float(error.square().sum()), float(error.abs().sum()), error.numel()
    return sums[0] / sums[2], sums[1] / sums[2]


@pytest.mark.parametrize(("name", "kind"), list(WANTED))
def test_measured_table(name: str, kind: Kind, data_dir: Path) -> None:
    one = benchmark(data_dir, name, "h" if name.startswith("ETT") else "D")
    length, horizons = TABLE[name]
    for horizon, wanted in zip(horizons, WANTED[name, kind].split()):
        model = LinearFamily(kind, length, horizon, one.x.shape[1]).eval()
        refit(model, Moments.of([one], length, horizon), 1e-3)
        mse, mae = map(float, wanted.split("/"))
        assert errors_on_test(model, one) == (pytest.approx(mse, abs=1e-3), pytest.approx(mae, abs=1e-3))


@pytest.mark.parametrize(
    ("name", "freq", "most"),
    [("ETTm1", "15min", 0.303), ("ETTm2", "15min", 0.167), ("weather", "10min", 0.177)],
)
def test_longer_sets_stay_below_the_published_errors(
    name: str, freq: str, most: float, data_dir: Path
) -> None:
    one = benchmark(data_dir, name, freq)
    model = LinearFamily("nlinear", 336, 96, one.x.shape[1]).eval()
    refit(model, Moments.of([one], 336, 96), 1e-3)
    assert errors_on_test(model, one)[0] <= most
