"""Gradient steps for the linear family, whose step takes a millisecond: a Trainer's hooks would take three times that.

The same task, loss, draws and order of windows as the general training, and the same files: after every epoch a
verified checkpoint with everything that the next one depends on, so a stopped training loses less than an epoch and
ends with the weights of an undisturbed one. One process, CPU or GPU, single precision.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shared.errors import Diverged
from shared.progress import Progress, clock_text
from shared.training.checkpoint import newest, next_path, prune, read_verified, write_verified
from shared.training.fit import FitContext, FitResult
from shared.training.hardware import on_gpu
from shared.training.injector import crash_point
from shared.training.loader import EpochSampler
from shared.training.optim import optimizer_config
from shared.training.signals import StopSignals, stopped
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.linear import LinearFamily
from timeseries.forecast.score import score
from timeseries.forecast.task import ForecastTask
from timeseries.forecast.windows import Batch, Windows

if TYPE_CHECKING:
    from timeseries.forecast.data import ForecastData


def suits(config: ForecastConfig) -> bool:
    """Whether this loop does what the configuration asks for; else the general training does."""
    train = config.train
    plain = (
        train.accumulate == 1 and not train.clip_norm and not train.ema_decay and train.precision == "32-true"
    )
    one = train.devices == 1 and train.num_nodes == 1
    return config.model.name in ("linear", "nlinear", "dlinear") and plain and one


class _State:
    """Everything the next epoch depends on."""

    def __init__(self, task: ForecastTask, configured: dict[str, Any]) -> None:
        self.task, self.optimizer = task, configured["optimizer"]
        self.schedule = configured["lr_scheduler"]["scheduler"]
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.best: dict[str, Any] = {}
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.finished = False

    def save(self, folder: Path, config_hash: str) -> None:
        content = {
            "network": self.task.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
            "history": {name: [list(point) for point in points] for name, points in self.history.items()},
            "seconds": self.seconds,
        }
        facts = {
            "epoch": self.epoch,
            "step": self.step,
            "finished": self.finished,
            "config_hash": config_hash,
        }
        write_verified(next_path(folder), content, {**facts, "best": None})
        prune(folder)

    def load(self, path: Path, facts: dict[str, Any]) -> None:
        content = read_verified(path)
        self.task.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        self.best, self.seconds = content["best"], float(content["seconds"])
        self.history = {
            k: [(int(s), float(v)) for s, v in points] for k, points in content["history"].items()
        }
        self.epoch, self.step, self.finished = (
            int(facts["epoch"]),
            int(facts["step"]),
            bool(facts["finished"]),
        )

    def add(self, step: int, **values: float) -> None:
        for name, value in values.items():
            self.history.setdefault(name.replace("_", "/", 1), []).append((step, value))


def fit_by_epochs(
    config: ForecastConfig, task: ForecastTask, data: ForecastData, context: FitContext
) -> FitResult:
    """Raises `Diverged` and `Interrupted` as the general training does."""
    train, say = config.train, context.say
    task.to("cuda" if on_gpu(train) else "cpu")
    windows, held_out = data.windows("train"), data.windows("val")
    order = EpochSampler(len(windows), train.batch_size, config.seed)
    steps = train.epochs * len(order)
    state = _State(task, optimizer_config(task, train, task.network.parameters(), steps))
    folder = context.work / "checkpoints"
    saved = newest(folder, say) if context.resume and folder.is_dir() else None
    if saved is not None and saved.facts["config_hash"] == context.config_hash:
        state.load(saved.path, saved.facts)
        say(f"resuming after epoch {state.epoch}")
    began = time.monotonic() - state.seconds
    with StopSignals() as stop, Progress() as progress:
        bar = progress.task("train", steps, state.step)
        while not state.finished:
            loss = _epoch(config, state, windows, order, stop, bar)
            state.epoch += 1
            _validate(state, held_out, context)
            state.seconds = time.monotonic() - began
            waited = state.epoch - state.best["epoch"]
            state.finished = (
                state.epoch == train.epochs or 0 < train.patience <= waited // train.validate_every
            )
            found = state.history.get(context.monitor, [(0, math.nan)])[-1][1]
            say(
                f"epoch {state.epoch}/{train.epochs}: loss {loss:.4g}, {context.monitor} {found:.4g}, best "
                f"{state.best['metrics'][context.monitor]:.4g} in epoch {state.best['epoch']}, "
                f"{clock_text(bar.remaining or 0)} left"
            )
            state.save(folder, context.config_hash)
    task.network.load_state_dict(state.best["network"])
    if context.logger:
        for name, points in state.history.items():
            for step, value in points:
                context.logger.log_metrics({name: value}, step)
    return FitResult(
        {k: v.detach().cpu() for k, v in state.best["network"].items()},
        state.best["metrics"],
        state.history,
        state.step,
        state.epoch,
        state.seconds,
    )


def _epoch(
    config: ForecastConfig, state: _State, windows: Windows, order: EpochSampler, stop: StopSignals, bar: Any
) -> float:
    """One pass over the training windows; the mean loss."""
    task, optimizer = state.task, state.optimizer
    device = next(task.network.parameters()).device
    task.train()
    total = torch.zeros((), device=device)
    batches = order.order(state.epoch).reshape(-1, order.batch_size)
    for number, chosen in enumerate(batches, 1):
        batch = windows.batch(chosen)
        if device.type != "cpu":
            batch = batch.to(device)
        loss = _backward(task, batch, windows.complete)
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        state.schedule.step()
        total += loss.detach()
        state.step += 1
        crash_point("after_step", state.step)
        if number % 64 == 0 or number == len(batches):
            _finite(total, state, windows, chosen)
            bar.update(state.step, f"loss {float(total) / number:.4g}")
        if stop.signum:
            raise stopped(stop.signum, state.epoch * len(batches))
    state.add(state.step, train_loss=float(total) / len(batches), train_lr=rate)
    return float(total) / len(batches)


def _backward(task: ForecastTask, batch: Batch, complete: bool) -> torch.Tensor:
    """The loss of a batch; its gradients are stored in the parameters."""
    model = task.network.model
    if complete and task.config.train.loss == "mse" and isinstance(model, LinearFamily) and model.plain:
        return model.squared_error_step(batch.inputs.x, batch.y)
    task.zero_grad(set_to_none=True)
    loss = task.training_step(batch, 0)
    loss.backward()
    return loss


def _finite(total: torch.Tensor, state: _State, windows: Windows, chosen: np.ndarray[Any, Any]) -> None:
    if math.isfinite(float(total)):
        return
    number, start = windows.index[chosen[0]]
    series = windows.prepared[number].series
    raise Diverged(
        f"loss is not finite by step {state.step} (epoch {state.epoch + 1}; a window of {series.id} from "
        f"{series.times[start]}); finite numbers wanted; lower train.lr"
    )


def _validate(state: _State, held_out: Windows, context: FitContext) -> None:
    train = state.task.config.train
    if state.epoch % train.validate_every and state.epoch != train.epochs:
        return
    found = score(state.task.network, held_out)
    metrics = {"val/mse": found.mse, "val/mae": found.mae}
    state.add(state.step, val_mse=found.mse, val_mae=found.mae)
    best = state.best["metrics"][context.monitor] if state.best else math.inf
    if not state.best or metrics[context.monitor] < best:
        network = copy.deepcopy(state.task.network.state_dict())
        state.best = {"network": network, "metrics": metrics, "epoch": state.epoch}
