"""The short loop of the linear family against the general training, and its way back after a stop."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.errors import Diverged, Interrupted, UsageError
from shared.training.fit import fit as general_fit
from shared.training.seed import seed_everything, state_sha
from tests.timeseries.made import context, made_config, made_data, made_series
from timeseries.forecast import sgd
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.fit import fit, held_out_errors
from timeseries.forecast.sgd import fit_by_epochs, suits
from timeseries.forecast.task import ForecastTask

SETS = ("model.name=dlinear", "model.solver=sgd", "intervals.method=none")


def task_of(config: ForecastConfig) -> ForecastTask:
    seed_everything(config.seed, config.threads)
    return ForecastTask(config)


@pytest.mark.parametrize(
    "more", [(), ("train.patience=1", "train.lr=0.5"), ("train.loss=mae",), ("train.validate_every=2",)]
)
def test_weights_are_those_of_the_general_training(more: tuple[str, ...], tmp_path: Path) -> None:
    series = made_series()
    config = made_config(series, *SETS, *more)
    short = fit_by_epochs(config, task_of(config), made_data(config, series), context(tmp_path / "a"))
    long = general_fit(config, task_of(config), made_data(config, series), context(tmp_path / "b"))
    for name, value in long.state_dict.items():  # the fused optimiser rounds otherwise
        torch.testing.assert_close(short.state_dict[name], value, rtol=1e-4, atol=1e-5)
    assert short.best == pytest.approx(long.best, rel=1e-4) and (short.steps, short.epochs) == (
        long.steps,
        long.epochs,
    )
    assert [v for _, v in short.history["val/mse"]] == pytest.approx(
        [v for _, v in long.history["val/mse"]], rel=1e-4
    )


def test_a_stopped_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = made_series()
    config = made_config(series, *SETS)
    whole = fit_by_epochs(config, task_of(config), made_data(config, series), context(tmp_path / "a"))
    steps = whole.steps // 3

    def stop(name: str, step: int) -> None:
        if step == steps + 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sgd, "crash_point", stop)
    with pytest.raises(Interrupted, match=f"saved after step {steps}"):
        fit_by_epochs(config, task_of(config), made_data(config, series), context(tmp_path / "b"))
    monkeypatch.undo()
    said: list[str] = []
    after = fit_by_epochs(
        config, task_of(config), made_data(config, series), context(tmp_path / "b", True, said)
    )
    assert "resuming after epoch 1" in said
    assert state_sha(after.state_dict) == state_sha(whole.state_dict) and after.history == whole.history
    again = fit_by_epochs(config, task_of(config), made_data(config, series), context(tmp_path / "b", True))
    assert state_sha(again.state_dict) == state_sha(whole.state_dict)


def test_another_configuration_is_not_gone_on_with(tmp_path: Path) -> None:
    series = made_series()
    config = made_config(series, *SETS)
    fit_by_epochs(config, task_of(config), made_data(config, series), context(tmp_path))
    other = replace(context(tmp_path, True), config_hash="other")
    with pytest.raises(UsageError, match="made with configuration same; other wanted"):
        fit_by_epochs(config, task_of(config), made_data(config, series), other)


def test_divergence_names_the_window(tmp_path: Path) -> None:
    series = made_series()
    config = made_config(series, *SETS, "train.lr=1e30")
    with pytest.raises(
        Diverged, match=r"loss is not finite by step \d+ \(epoch 1; a window of made from 2024-01"
    ):
        fit_by_epochs(config, task_of(config), made_data(config, series), context(tmp_path))


def test_what_the_short_loop_lacks_goes_the_general_way() -> None:
    series = made_series()
    assert suits(made_config(series, *SETS))
    for other in (
        "train.clip_norm=1",
        "train.ema_decay=0.9",
        "train.accumulate=2",
        "train.precision=bf16-mixed",
    ):
        assert not suits(made_config(series, *SETS, other))


def test_conformal_offsets_cover_the_validation_windows(tmp_path: Path) -> None:
    series = made_series(2000)
    config = made_config(series, "model.name=nlinear", "intervals.blocks=0")
    data, task = made_data(config, series), task_of(config)
    result = fit(config, task, data, context(tmp_path))
    low, high = result.state_dict["offsets"][0]
    assert low.shape == (12, 2) and (low < high).all()
    batch = data.windows("val").batch(slice(None))
    _, bounds = task.network.interval(batch.inputs)
    inside = (batch.y >= bounds[:, 0, 0]) & (batch.y <= bounds[:, 0, 1])
    assert inside.float().mean() == pytest.approx(0.8, abs=0.02)
    assert (bounds[:, 1, 0] <= bounds[:, 0, 0]).all() and (bounds[:, 0, 1] <= bounds[:, 1, 1]).all()


def test_blocks_of_training_rows_are_forecast_by_fits_without_them(tmp_path: Path) -> None:
    """A stretch of loud rows in the training part, none in the validation part: only blocks know of them."""
    series = made_series(2000)
    series.values[300:560] += np.random.default_rng(1).normal(0, 3, (260, 2))
    widths = []
    for blocks in (0, 5):
        config = made_config(series, "model.name=linear", f"intervals.blocks={blocks}")
        data, task = made_data(config, series), task_of(config)
        fit(config, task, data, context(tmp_path))
        errors = held_out_errors(task.network, data)
        # The first block's windows have no rows before it to look back on.
        assert len(errors) == 189 + (5 * (1400 // 5 - 11) - 48 if blocks else 0)
        widths.append(task.network.offsets[1, 1] - task.network.offsets[1, 0])
    assert (widths[1] > 1.5 * widths[0]).all()
