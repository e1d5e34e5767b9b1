"""Checkpoints between batches, and the way back to exactly there.

Lightning's own resume is left out: it stores its loop counters in the middle of hooks and guesses on restart where it
was, which loses validations at epoch ends and fetches batches too many. Here a checkpoint is only taken where nothing
is half done — between two batches, before a validation that is due, between two epochs — and says which of these it is.
A resumed epoch calls the hooks of an epoch's start again; the random states are put back after them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.fetchers import _DataFetcher
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop

from shared.training.checkpoint import next_path, prune
from shared.training.ema import Ema, network_of
from shared.training.injector import crash_point
from shared.training.loader import ExactLoader
from shared.training.record import Recorder
from shared.training.seed import rng_state, set_rng_state
from shared.training.signals import StopSignals, stopped


@dataclass(frozen=True, slots=True)
class Position:
    """A place between batches: `batches` of `epoch` are done; with `due` the end of that epoch is still to come."""

    epoch: int
    batches: int
    due: bool = False


class ExactEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of one epoch, able to start at a `Position`."""

    def __init__(self, trainer: pl.Trainer, keeper: Keeper) -> None:
        super().__init__(trainer)
        self._keeper = keeper

    def reset(self) -> None:
        super().reset()
        start = self._keeper.start
        if start is not None and start.batches:
            _set_all(self.batch_progress.current, start.batches)
            self.batch_progress.is_last_batch = start.due

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        super().on_run_start(data_fetcher)
        start = self._keeper.start
        if start is not None and start.batches:
            self._keeper.arrive()
            if start.due:
                super().on_advance_end(data_fetcher)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        crash_point("after_step", self.global_step)
        last = self._num_ready_batches_reached()
        if last:
            self._keeper.before_epoch_end(validates=self._should_check_val_fx(data_fetcher))
        super().on_advance_end(data_fetcher)
        # Gradients gathered so far are not in a checkpoint, so none is taken in the middle of an accumulation.
        if not last and not self._should_accumulate():
            self._keeper.between_batches()

    def _should_check_val_epoch(self) -> bool:
        final = self.trainer.current_epoch + 1 == self.trainer.max_epochs
        return super()._should_check_val_epoch() or (self.trainer.enable_validation and final)


class Keeper(pl.Callback):
    """Decides when to save, saves, and restores."""

    def __init__(
        self,
        folder: Path,
        every: float,
        config_hash: str,
        recorder: Recorder,
        ema: Ema | None,
        stop: StopSignals,
        say: Callable[[str], None],
    ) -> None:
        self.start: Position | None = None
        """Where to begin after a resume; None once training is under way."""
        self.seconds = 0.0
        """Training time of all attempts."""
        self._folder, self._every, self._config_hash = folder, every, config_hash
        self._recorder, self._ema, self._stop, self._say = recorder, ema, stop, say
        self._loaders: Any = None
        self._rng: list[Any] = []
        self._position = Position(0, 0)
        self._rng_due: dict[str, Any] | None = None
        self._saved_at = self._begun = time.monotonic()
        self._validation_seconds = 0.0
        self._validation_begun = 0.0
        self._finished = False

    # ------------------------------------------------------------ moments

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trainer = trainer
        self._stop.install()
        self._saved_at = self._begun = time.monotonic()
        _loader(trainer)
        if self.start is None and trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)  # own dropout for own items

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.start is not None:
            if not self.start.batches:
                self.arrive()
        elif trainer.current_epoch > 0:
            validated = self._validation_begun > self._saved_at
            if validated or self._agreed(self._overdue())[0]:
                self._save(Position(trainer.current_epoch, 0))

    def arrive(self) -> None:
        """The place to begin at is reached: from here on everything is as it was."""
        self.start = None
        _loader(self._trainer).load_state_dict(self._loaders)
        rank = self._trainer.global_rank
        if rank < len(self._rng):
            set_rng_state(self._rng[rank])

    def between_batches(self) -> None:
        trainer = self._trainer
        due, signum = self._agreed(self._overdue(), self._stop.signum)
        if due or signum:
            self._save(
                Position(trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready)
            )
        if signum:
            raise stopped(signum, trainer.global_step)

    def before_epoch_end(self, validates: bool) -> None:
        """After an epoch's last batch. A validation may take long, so its time counts as good as passed."""
        trainer = self._trainer
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self._position = Position(trainer.current_epoch, batches, due=True)
        self._rng_due = rng_state() if validates else None
        ahead = self._validation_seconds if validates else 0.0
        due, signum = self._agreed(self._overdue(ahead), self._stop.signum)
        if due or signum:
            self._save(self._position)
        if signum:
            raise stopped(signum, trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation_begun = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        crash_point("mid_validation")
        signum = self._agreed(self._stop.signum)[0]
        if signum:
            if self._ema is not None:
                self._ema.take(network_of(pl_module))
            self._save(self._position)  # as before the validation, which will be done anew
            raise stopped(signum, trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation_seconds = time.monotonic() - self._validation_begun

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._recorder.finish(trainer, pl_module)
        self._finished = True
        self._save(Position(trainer.current_epoch, 0))

    def _overdue(self, ahead: float = 0.0) -> bool:
        return time.monotonic() - self._saved_at + ahead >= self._every

    def _agreed(self, *facts: int) -> list[int]:
        """Each number's maximum over all processes: clocks and signals differ, decisions must not."""
        if self._trainer.world_size == 1:
            return list(facts)
        numbers = torch.tensor(facts, dtype=torch.int64, device=self._trainer.strategy.root_device)
        torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
        return [int(number) for number in numbers.tolist()]

    # ------------------------------------------------------------ saving

    def _save(self, position: Position) -> None:
        trainer = self._trainer
        self._position = position
        # A validation cut short has used random numbers; the state from before it goes with its position.
        mine = self._rng_due if position.due and self._rng_due is not None else rng_state()
        self._rng = [mine]
        if trainer.world_size > 1:
            self._rng = [None] * trainer.world_size
            torch.distributed.all_gather_object(self._rng, mine)
        trainer.save_checkpoint(next_path(self._folder), storage_options=self._facts())
        if trainer.is_global_zero:
            prune(self._folder)
        self._saved_at = time.monotonic()

    def _facts(self) -> dict[str, Any]:
        best = self._recorder.record.best
        return {
            "step": self._trainer.global_step,
            "epoch": self._position.epoch,
            "finished": self._finished,
            "best": None if best is None else best.file,
            "config_hash": self._config_hash,
            **surroundings(self._trainer.world_size),
        }

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        position = self._position
        checkpoint["progress"] = checkpoint.pop("loops")["fit_loop"]
        checkpoint["position"] = [position.epoch, position.batches, position.due]
        checkpoint["loader"] = _loader(trainer).state_dict()
        checkpoint["rng"] = self._rng
        checkpoint["seconds"] = self.total_seconds()

    def total_seconds(self) -> float:
        """Training time of this attempt and those before it."""
        return self.seconds + time.monotonic() - self._begun

    # ------------------------------------------------------------ restoring

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        epoch, batches, due = checkpoint["position"]
        self.start = Position(int(epoch), int(batches), bool(due))
        self._loaders, self._rng = checkpoint["loader"], checkpoint["rng"]
        self.seconds = float(checkpoint["seconds"])
        loop = trainer.fit_loop
        loop.load_state_dict(checkpoint["progress"])
        # The loops shall run as from the start; `ExactEpochLoop` puts the first epoch's counters in place.
        for each in (loop, loop.epoch_loop, loop.epoch_loop.val_loop):
            each.restarting = False
            each._loaded_from_state_dict = each._resuming_from_checkpoint = False
        for counts in (loop.epoch_progress.total, loop.epoch_progress.current):
            _set_all(counts, self.start.epoch)


def _loader(trainer: pl.Trainer) -> ExactLoader:
    loader = trainer.train_dataloader
    if not isinstance(loader, ExactLoader):
        raise TypeError(f"train_dataloader() gave a {type(loader).__name__}; one made by make_loader wanted")
    return loader


def _set_all(counts: Any, number: int) -> None:
    counts.ready = counts.started = counts.processed = counts.completed = number


def surroundings(world_size: int) -> dict[str, Any]:
    """What bit-exactness depends on beside the configuration."""
    return {
        "torch": torch.__version__,
        "lightning": pl.__version__,
        "threads": torch.get_num_threads(),
        "processes": world_size,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
