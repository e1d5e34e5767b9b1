"""Training through `fit`: what it gives back, what it leaves behind, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from shared.errors import Diverged, EnvironmentUnfit, ResourcesExhausted, UsageError
from shared.plots.curves import curves
from shared.progress import Progress
from shared.training import hardware
from shared.training.checkpoint import newest, read_verified
from shared.training.ema import Ema
from shared.training.fit import FitContext, FitResult, fit
from shared.training.guard import SKIPS, FiniteGuard
from shared.training.record import Best, Record, Recorder, pack, unpack
from shared.training.seed import seed_everything, state_sha
from tests.shared.toy_training import ToyData, ToyTask, toy_config, toy_fit


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[FitResult, Path, list[str]]:
    work, said = tmp_path_factory.mktemp("plain"), list[str]()
    return toy_fit(work, said=said), work, said


def test_result_is_the_best_validation(plain: tuple[FitResult, Path, list[str]]) -> None:
    result = plain[0]
    assert (result.steps, result.epochs) == (15, 3)
    assert set(result.history) == {"train/loss", "train/lr", "val/loss", "val/accuracy"}
    assert [step for step, _ in result.history["val/loss"]] == [5, 10, 15]
    assert result.best["val/loss"] == min(value for _, value in result.history["val/loss"])
    assert result.history["train/lr"][4][1] == pytest.approx(0.05)  # the peak, after one epoch of warm-up
    ToyTask(toy_config()).network.load_state_dict(result.state_dict)
    assert len(curves(result.history).axes) == 3  # loss, lr, accuracy


def test_little_is_left_behind(plain: tuple[FitResult, Path, list[str]]) -> None:
    _, work, _ = plain
    assert [path.name for path in work.iterdir()] == ["checkpoints"]
    names = sorted(path.name for path in (work / "checkpoints").iterdir())
    assert sum(name.startswith("save-") for name in names) == 4  # two, with their manifests
    assert not [name for name in names if not name.startswith(("save-", "best-"))]


def test_a_line_an_epoch_and_no_noise(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    said: list[str] = []
    toy_fit(tmp_path, "train.epochs=2", said=said)
    assert [line.split(":")[0] for line in said] == ["epoch 1/2", "epoch 2/2"]
    assert "val/loss" in said[1]
    assert "best" in said[1]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("train: 10/10 (100 %), done in")
    assert not [str(warning.message) for warning in recwarn if "ightning" in str(warning.filename)]


def test_same_seed_same_weights(plain: tuple[FitResult, Path, list[str]], tmp_path: Path) -> None:
    assert state_sha(toy_fit(tmp_path).state_dict) == state_sha(plain[0].state_dict)


def test_accumulation_steps_on_the_last_batch_too(tmp_path: Path) -> None:
    result = toy_fit(tmp_path, "train.accumulate=2", "train.epochs=2")
    assert result.steps == 6  # 5 batches: 2 + 2 + 1
    assert all(0.1 < loss < 2 for _, loss in result.history["train/loss"])


def test_the_last_epoch_is_always_validated(tmp_path: Path) -> None:
    result = toy_fit(tmp_path, "train.validate_every=2")
    assert [step for step, _ in result.history["val/loss"]] == [10, 15]


def test_patience_stops_and_survives_a_resume(tmp_path: Path) -> None:
    """A rate of almost nothing never improves: the first validation is the best, two more are waited for."""
    said: list[str] = []
    train = ("epochs=9", "patience=2", "lr=1e-30", "warmup_epochs=0", "ema_decay=0.0")
    sets = ("norm=false", *(f"train.{each}" for each in train))
    result = toy_fit(tmp_path, *sets, said=said)
    assert [step for step, _ in result.history["val/loss"]] == [5, 10, 15]
    assert (result.steps, result.epochs) == (15, 3)
    assert any("no better val/loss in 2 validations; stopping here" in line for line in said)
    again = toy_fit(tmp_path, *sets, resume=True)
    assert state_sha(again.state_dict) == state_sha(result.state_dict)


def test_averaged_weights_are_those_judged_and_kept(tmp_path: Path) -> None:
    result = toy_fit(tmp_path, "train.epochs=1", "norm=false", "dropout=0")
    saved = newest(tmp_path / "checkpoints", print)
    assert saved is not None
    content = read_verified(saved.path)
    average = content["callbacks"]["Ema"]["average"]
    assert state_sha(result.state_dict) == state_sha(average)
    raw = {key.removeprefix("network."): value for key, value in content["state_dict"].items()}
    assert not torch.equal(raw["0.weight"], average["0.weight"])


def test_average_follows_its_formula() -> None:
    ema, network = Ema(0.5), nn.Linear(1, 1, bias=False)
    task: Any = SimpleNamespace(network=network)
    nn.init.constant_(network.weight, 1.0)
    ema.on_train_start(SimpleNamespace(global_step=0), task)  # type: ignore[arg-type]
    wanted = 1.0
    for step in range(1, 9):
        nn.init.constant_(network.weight, float(step))
        for _ in range(2):  # the second call is a batch without an optimiser step
            ema.on_train_batch_end(SimpleNamespace(global_step=step), task, None, None, 0)  # type: ignore[arg-type]
        decay = min(0.5, step / (9 + step))
        wanted = decay * wanted + (1 - decay) * step
    with ema.inside(network):
        assert network.weight.item() == pytest.approx(wanted)
    assert network.weight.item() == 8.0


def test_best_is_chosen_by_mode_and_never_a_nan(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "val/x", "max", None, print, Progress(shown=False))
    assert not recorder._improves(math.nan)
    assert recorder._improves(0.0)
    recorder.record.best = Best(0.5, 1, 0, "best-1.ckpt", {})
    assert [recorder._improves(x) for x in (0.4, 0.5, 0.6, math.inf)] == [False, False, True, False]
    record = Record({"train/loss": [(1, 0.5)]}, recorder.record.best, {"val/x": 0.5}, 7)
    record.window.add(0.25)
    assert unpack(pack(record)) == record


# ---------------------------------------------------------------- refusals


def test_a_missing_gpu_is_told_before_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = toy_config("train.accelerator=gpu")
    data = ToyData(config)
    monkeypatch.setattr(data, "train_dataloader", lambda: pytest.fail("data was read"))
    context = FitContext(tmp_path, None, False, print, "val/loss", "min", "h")
    with pytest.raises(EnvironmentUnfit, match=r"train\.accelerator: 'gpu'"):
        fit(config, ToyTask(config), data, context)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(EnvironmentUnfit, match="2 GPUs asked for, 1 found"):
        hardware.require(toy_config("train.accelerator=gpu", "train.devices=2").train)
    with pytest.raises(UsageError, match="ema_decay"):
        hardware.require(toy_config("train.accelerator=gpu", "train.strategy=fsdp").train)
    sharded = ("train.accelerator=gpu", "train.strategy=fsdp", "train.ema_decay=0")
    with pytest.raises(UsageError, match="clip_norm"):
        hardware.require(toy_config(*sharded).train)
    hardware.require(toy_config(*sharded, "train.clip_norm=0").train)


def test_strategy_follows_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    one = hardware.trainer_arguments(toy_config("train.precision=16-mixed").train, said.append)
    assert (one["strategy"], one["accelerator"], one["precision"]) == ("auto", "cpu", "bf16-mixed")
    assert "16-mixed" in said[0]
    two = hardware.trainer_arguments(toy_config("train.devices=2").train, said.append)
    assert (type(two["strategy"]).__name__, two["strategy"].process_group_backend) == ("DDPStrategy", "gloo")
    with pytest.raises(EnvironmentUnfit, match="fsdp"):
        hardware.require(toy_config("train.strategy=fsdp").train)


def test_loaders_and_monitor_must_be_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config()
    data = ToyData(config)
    context = FitContext(tmp_path, None, False, print, "val/dice", "max", "h")
    with pytest.raises(KeyError, match="logs no val/dice"):
        fit(config, ToyTask(config), data, context)
    monkeypatch.setattr(data, "train_dataloader", lambda: torch.utils.data.DataLoader([1.0, 2.0]))
    with pytest.raises(TypeError, match="make_loader"):
        fit(config, ToyTask(config), data, context)


def test_out_of_memory_says_what_to_lower(tmp_path: Path) -> None:
    with pytest.raises(ResourcesExhausted, match=r"lower train\.batch_size=4") as caught:
        toy_fit(tmp_path, "no_memory_at_step=7")
    assert caught.value.exit_code == 8


# ---------------------------------------------------------------- not finite


def test_nan_stops_before_the_weights_are_touched(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"train step 8: loss nan; .*point-\d\d\d, point-\d\d\d") as caught:
        toy_fit(tmp_path, "nan_at_step=7")
    assert caught.value.exit_code == 7
    saved = newest(tmp_path / "checkpoints", print)
    assert saved is not None
    assert saved.facts["step"] == 7
    assert all(bool(value.isfinite().all()) for value in read_verified(saved.path)["state_dict"].values())


def test_loss_scaling_may_skip_three_steps_in_a_row() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, math.inf])
    optimizer = torch.optim.SGD([weight])
    trainer: Any = SimpleNamespace(
        world_size=1, global_step=4, train_dataloader=None, precision_plugin=SimpleNamespace(scaler=object())
    )
    guard, module = FiniteGuard(), SimpleNamespace()
    guard.on_before_backward(trainer, module, torch.tensor(0.5))  # type: ignore[arg-type]
    for _ in range(SKIPS):
        guard.on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]
    with pytest.raises(Diverged, match="gradient norm inf"):
        guard.on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]
    weight.grad = torch.ones(2)
    guard.on_before_optimizer_step(trainer, module, optimizer)  # type: ignore[arg-type]
    assert guard.skipped == 0


# ---------------------------------------------------------------- going on


def test_nothing_to_resume_from_starts_at_the_beginning(
    plain: tuple[FitResult, Path, list[str]], tmp_path: Path
) -> None:
    said: list[str] = []
    result = toy_fit(tmp_path, resume=True, said=said)
    assert said[0] == "no checkpoint was finished before; starting at the beginning"
    assert state_sha(result.state_dict) == state_sha(plain[0].state_dict)


def test_a_finished_training_is_not_repeated(plain: tuple[FitResult, Path, list[str]]) -> None:
    result, work, _ = plain
    said: list[str] = []
    again = toy_fit(work, "no_memory_at_step=0", resume=True, said=said)
    assert said == ["training was finished before (15 steps); taking its weights"]
    assert state_sha(again.state_dict) == state_sha(result.state_dict)
    assert (again.history, again.best, again.seconds) == (result.history, result.best, result.seconds)


def test_another_configuration_or_world_is_noticed(plain: tuple[FitResult, Path, list[str]]) -> None:
    with pytest.raises(UsageError, match="made with configuration same; 5 wanted"):
        toy_fit(plain[1], "ignore=5", resume=True)
    said: list[str] = []
    threads = torch.get_num_threads()
    config = toy_config()
    try:
        seed_everything(1, threads + 1)
        context = FitContext(plain[1], None, True, said.append, "val/loss", "min", "same")
        fit(config, ToyTask(config), ToyData(config), context)
    finally:
        seed_everything(1, threads)
    assert said[0] == f"not bit-exact from here on: threads {threads} → {threads + 1}"
