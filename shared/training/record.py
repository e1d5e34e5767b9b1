"""What a training tells: its history, its best validation, a bar while it runs and a line per epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
from torch import Tensor

from shared.errors import ModelUnusable
from shared.progress import Progress, Task, clock_text
from shared.training.checkpoint import BEST, verify, write_verified
from shared.training.ema import Ema, network_of

POINTS = 400  # of a training curve; more cannot be seen, and all of them travel in every checkpoint
History = dict[str, list[tuple[int, float]]]


@dataclass(slots=True)
class Best:
    """The best validation so far and the file with its weights."""

    value: float
    step: int
    epoch: int
    file: str
    metrics: dict[str, float]


@dataclass(slots=True)
class Mean:
    """A running mean that can be stored."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total += value
        self.count += 1

    def take(self) -> float:
        """The mean, or NaN of nothing; starts anew."""
        mean = self.total / self.count if self.count else math.nan
        self.total, self.count = 0.0, 0
        return mean


@dataclass(slots=True)
class Record:
    """Everything the recorder knows, as plain data."""

    history: History = field(default_factory=dict)
    best: Best | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    batches: int = 0
    window: Mean = field(default_factory=Mean)
    epoch: Mean = field(default_factory=Mean)


class Recorder(pl.Callback):
    """Collects ``train/loss`` (mean over windows of batches), ``train/lr`` and all ``val/…`` by optimiser step."""

    def __init__(
        self,
        folder: Path,
        monitor: str,
        mode: Literal["max", "min"],
        ema: Ema | None,
        say: Callable[[str], None],
        progress: Progress,
        patience: int = 0,
    ) -> None:
        self.record = Record()
        self._patience = patience
        self._folder, self._monitor, self._mode = folder, monitor, mode
        self._ema, self._say, self._progress = ema, say, progress
        self._bar: Task | None = None
        self._lr = 0.0
        self._window = 1

    # ------------------------------------------------------------ training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        total = int(trainer.num_training_batches) * int(trainer.max_epochs or 1)
        self._window = max(1, math.ceil(total / POINTS))
        self._bar = self._progress.task("train", total, self.record.batches)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        record = self.record
        record.batches += 1
        loss = _loss(trainer, pl_module, outputs)
        if loss is not None:
            record.window.add(loss)
            record.epoch.add(loss)
        if record.batches % self._window == 0:
            self._flush(trainer)
        self._show("" if loss is None else f"loss {loss:.4g}")

    def _show(self, loss: str) -> None:
        """Batches done, and the best validation so far, on the bar."""
        best = self.record.best
        parts = [loss, "" if best is None else f"best {self._monitor} {best.value:.4g}"]
        if self._bar is not None:
            self._bar.update(self.record.batches, ", ".join(part for part in parts if part))

    def _flush(self, trainer: pl.Trainer) -> None:
        if not self.record.window.count:
            return
        points = {"train/loss": self.record.window.take(), "train/lr": self._lr}
        for name, value in points.items():
            self._add(name, trainer.global_step, value)
        for logger in trainer.loggers:
            logger.log_metrics(points, trainer.global_step)

    def _add(self, name: str, step: int, value: float) -> None:
        self.record.history.setdefault(name, []).append((step, value))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parts = [f"loss {self.record.epoch.take():.4g}"]
        self._show(parts[0])
        best = self.record.best
        last = self.record.history.get(self._monitor, [])
        if last and last[-1][0] == trainer.global_step:
            parts.append(f"{self._monitor} {last[-1][1]:.4g}")
        if best is not None:
            parts.append(f"best {best.value:.4g} in epoch {best.epoch + 1}")
        if self._bar is not None and self._bar.remaining is not None:
            parts.append(f"{clock_text(self._bar.remaining)} left")
        if trainer.is_global_zero:
            self._say(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: {', '.join(parts)}")

    # ------------------------------------------------------------ validation

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
        }
        if self._monitor not in metrics:
            raise KeyError(
                f"{type(pl_module).__name__} logs no {self._monitor}, which picks the best weights; "
                f"it logs {', '.join(sorted(metrics)) or 'nothing below val/'}"
            )
        for name, value in metrics.items():
            self._add(name, trainer.global_step, value)
        self.record.metrics = metrics
        if self._improves(metrics[self._monitor]):
            self._keep(trainer, metrics)
        elif self._patience and self._waited() >= self._patience:
            self._say(f"no better {self._monitor} in {self._waited()} validations; stopping here")
            trainer.should_stop = True

    def _waited(self) -> int:
        """Validations since the best one."""
        best = self.record.best
        return sum(best is None or step > best.step for step, _ in self.record.history[self._monitor])

    def _improves(self, value: float) -> bool:
        best = self.record.best
        if not math.isfinite(value):
            return False
        if best is None or not math.isfinite(best.value):
            return True
        return value > best.value if self._mode == "max" else value < best.value

    def _keep(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        """Write the weights as they are judged now (the average, if there is one)."""
        file = f"{BEST}{trainer.global_step:08d}.ckpt"
        state = trainer.strategy.lightning_module_state_dict()
        if trainer.is_global_zero:
            network = {
                key.removeprefix("network."): value
                for key, value in state.items()
                if key.startswith("network.")
            }
            write_verified(self._folder / file, {"network": network}, {"step": trainer.global_step})
        value = metrics.get(self._monitor, math.nan)
        self.record.best = Best(value, trainer.global_step, trainer.current_epoch, file, metrics)

    def finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the last checkpoint: the curve's rest, and final weights where no validation picked any."""
        self._flush(trainer)
        if self.record.best is not None:
            return
        if self._ema is None:
            self._keep(trainer, self.record.metrics)
            return
        with self._ema.inside(network_of(pl_module)):
            self._keep(trainer, self.record.metrics)

    # ------------------------------------------------------------ checkpoint

    def state_dict(self) -> dict[str, Any]:
        return pack(self.record)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.record = unpack(state_dict)
        best = self.record.best
        if best is None:
            return
        try:
            verify(self._folder / best.file)
        except ModelUnusable as err:
            self._say(f"best weights so far are lost ({err}); the best from here on counts")
            self.record.best = None


def pack(record: Record) -> dict[str, Any]:
    best = record.best
    return {
        "history": {name: [list(point) for point in points] for name, points in record.history.items()},
        "best": None if best is None else [best.value, best.step, best.epoch, best.file, dict(best.metrics)],
        "metrics": dict(record.metrics),
        "batches": record.batches,
        "window": [record.window.total, record.window.count],
        "epoch": [record.epoch.total, record.epoch.count],
    }


def unpack(state: dict[str, Any]) -> Record:
    """The inverse of `pack`."""
    return Record(
        {
            name: [(int(step), float(value)) for step, value in points]
            for name, points in state["history"].items()
        },
        None if state["best"] is None else Best(*state["best"]),
        dict(state["metrics"]),
        int(state["batches"]),
        Mean(*state["window"]),
        Mean(*state["epoch"]),
    )


def _loss(trainer: pl.Trainer, module: pl.LightningModule, outputs: Any) -> float | None:
    """The batch's loss, the mean over all processes; None if the task returns none."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if not isinstance(loss, Tensor):
        return None
    loss = loss.detach()
    if trainer.world_size > 1:
        loss = trainer.strategy.reduce(loss, reduce_op="mean")
    # Lightning hands the loss out divided by the number of batches it gathers.
    return float(loss) * (trainer.accumulate_grad_batches if module.automatic_optimization else 1)
