"""The training of the linear family by gradient steps (`steps.Steps`), with the general training's files: after every
epoch a verified checkpoint with everything that the next one depends on, so a stopped training loses less than an epoch
and ends with the weights of an undisturbed one. One process, CPU or GPU, single precision.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from shared.progress import Progress, clock_text
from shared.training.checkpoint import newest, next_path, prune, read_verified, write_verified
from shared.training.fit import FitContext, FitResult, trust
from shared.training.hardware import on_gpu
from shared.training.injector import crash_point
from shared.training.resume import surroundings
from shared.training.signals import StopSignals, stopped
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.scores.score import score
from timeseries.forecast.steps import CHECK_EVERY, Steps
from timeseries.forecast.task import ForecastTask
from timeseries.forecast.windows import Windows

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

    def __init__(self, steps: Steps) -> None:
        self.task, self.optimizer = steps.task, steps.optimizer
        self.epoch, self.step, self.seconds = 0, 0, 0.0
        self.best: dict[str, Any] = {}
        self.history: dict[str, list[tuple[int, float]]] = {}
        self.finished = False

    def save(self, folder: Path, config_hash: str) -> None:
        content = {
            "network": self.task.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "history": {name: [list(point) for point in points] for name, points in self.history.items()},
            "seconds": self.seconds,
        }
        facts = {
            "epoch": self.epoch,
            "step": self.step,
            "finished": self.finished,
            "config_hash": config_hash,
            "best": None,
            **surroundings(1),
        }
        write_verified(next_path(folder), content, facts)
        prune(folder)

    def load(self, path: Path, facts: dict[str, Any]) -> None:
        content = read_verified(path)
        self.task.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
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

    def waited(self, monitor: str) -> int:
        """Validations since the best one; 0 before the first."""
        return sum(step > self.best["step"] for step, _ in self.history.get(monitor, []))


def fit_by_epochs(
    config: ForecastConfig, task: ForecastTask, data: ForecastData, context: FitContext
) -> FitResult:
    """Raises `Diverged` and `Interrupted` as the general training does."""
    train, say = config.train, context.say
    task.to("cuda" if on_gpu(train) else "cpu")
    held_out, steps = data.windows("val"), Steps(task, data.windows("train"))
    state = _State(steps)
    folder = context.work / "checkpoints"
    saved = newest(folder, say) if context.resume and folder.is_dir() else None
    if saved is not None:
        trust(saved, context, train)
        state.load(saved.path, saved.facts)
        say(f"resuming after epoch {state.epoch}")
    began = time.monotonic() - state.seconds
    with StopSignals() as stop, Progress() as progress:
        bar = progress.task("train", steps.total, state.step)
        while not state.finished:
            loss = _epoch(steps, state, stop, bar)
            _validate(state, held_out, context)
            state.seconds = time.monotonic() - began
            state.finished = state.epoch == train.epochs or 0 < train.patience <= state.waited(
                context.monitor
            )
            said = [f"loss {loss:.4g}"]
            if state.best:
                found = state.history[context.monitor][-1][1]
                best = state.best["metrics"][context.monitor]
                said.append(f"{context.monitor} {found:.4g}, best {best:.4g} in epoch {state.best['epoch']}")
            said.append(f"{clock_text(bar.remaining or 0)} left")
            say(f"epoch {state.epoch}/{train.epochs}: {', '.join(said)}")
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


def _epoch(steps: Steps, state: _State, stop: StopSignals, bar: Any) -> float:
    """One pass over the training windows; the mean loss. Raises `Interrupted`."""
    before = state.step

    def after(step: int, total: Tensor) -> None:
        state.step += 1
        crash_point("after_step", state.step)
        if step % CHECK_EVERY == 0 or step == len(steps.order):
            bar.update(state.step, f"loss {float(total) / step:.4g}")
        if stop.signum:
            raise stopped(stop.signum, before)

    loss = steps.epoch(state.epoch, after)
    state.epoch += 1
    state.add(state.step, train_loss=loss, train_lr=steps.rate)
    return loss


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
        state.best = {"network": network, "metrics": metrics, "epoch": state.epoch, "step": state.step}
