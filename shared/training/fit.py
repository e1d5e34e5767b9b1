"""Training of a task on data: Lightning's Trainer with exact resume, a finite guard and clean stops.

Batch norm under several processes: each normalises with its own part of the global batch, so such a network does not
train exactly as on one process; networks without it do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor

from shared.config import RunConfig, TrainConfig
from shared.errors import Diverged, Interrupted, ResourcesExhausted, UsageError, first_line
from shared.progress import Progress
from shared.tracking.ranks import is_leader
from shared.training import hardware
from shared.training.checkpoint import Saved, VerifiedIO, newest, read_verified
from shared.training.ema import Ema
from shared.training.guard import FiniteGuard
from shared.training.helpers import Helpers, is_broken_exchange, leave_with_parent
from shared.training.injector import crash_point
from shared.training.quiet import quiet
from shared.training.record import History, Recorder, unpack
from shared.training.resume import ExactEpochLoop, Keeper, surroundings
from shared.training.signals import StopSignals


@dataclass(frozen=True, slots=True)
class FitContext:
    """The run a training belongs to."""

    work: Path
    """Folder that survives a resume; checkpoints go to ``work/checkpoints``."""
    logger: Any
    """A Lightning logger, or None."""
    resume: bool
    """Go on from the newest checkpoint in `work`, if there is one."""
    say: Callable[[str], None]
    """Where sentences for the user go."""
    monitor: str
    """The ``val/…`` metric that picks the best weights."""
    mode: Literal["max", "min"]
    config_hash: str


@dataclass(frozen=True, slots=True)
class FitResult:
    """A finished training."""

    state_dict: dict[str, Tensor]
    """Of ``task.network`` on the CPU, from the best validation; the moving average if ``train.ema_decay`` > 0."""
    best: dict[str, float]
    """All ``val/…`` metrics of that validation."""
    history: History
    """Metric → (optimiser step, value) pairs."""
    steps: int
    epochs: int
    seconds: float
    """Training time of all attempts."""


def fit(
    config: RunConfig, task: pl.LightningModule, data: pl.LightningDataModule, context: FitContext
) -> FitResult:
    """Train ``task.network`` as ``config.train`` says.

    `data` gives loaders made by `make_loader`; its ``setup("fit")`` is called again and should do nothing then.
    Raises `EnvironmentUnfit` (no such device), `Diverged`, `Interrupted` (saved first), `ResourcesExhausted`
    (memory, disk) and `UsageError` (nothing to resume from that can be trusted).
    """
    hardware.require(config.train)
    leads = is_leader()
    context = context if leads else replace(context, say=_silence)
    folder = context.work / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    start = _start(folder, context, config.train) if context.resume else None
    if start is None or not start.facts["finished"]:
        if leads:
            _train(config.train, task, data, context, folder, start)
        else:
            _help(config.train, task, data, context, folder, start)
        start = newest(folder, context.say)
    if not leads:  # everything after the training is done once, by the first process
        raise SystemExit(0)
    assert start is not None
    result = _result(start)
    crash_point("after_fit")
    return result


def _help(*args: Any) -> None:
    """`_train` in a process that is not the first: it leaves quietly what the first one reports."""
    leave_with_parent()
    try:
        _train(*args)
    except (Interrupted, Diverged):
        raise SystemExit(0) from None


def _silence(text: str) -> None:
    """Only the first process speaks."""


def _start(folder: Path, context: FitContext, train: TrainConfig) -> Saved | None:
    """The checkpoint to go on from. Raises `UsageError` if there are only unusable ones or another configuration's."""
    say = context.say
    saved = newest(folder, say)
    if saved is None:
        say("no checkpoint was finished before; starting at the beginning")
        return None
    trust(saved, context, train)
    facts = saved.facts
    if facts["finished"]:
        say(f"training was finished before ({facts['step']} steps); taking its weights")
    else:
        say(f"resuming after step {facts['step']}, in epoch {facts['epoch'] + 1}")
    return saved


def trust(saved: Saved, context: FitContext, train: TrainConfig) -> None:
    """Say what may make a training that goes on from `saved` differ from an unbroken one. Raises `UsageError` where it
    was made with another configuration."""
    facts = saved.facts
    if facts["config_hash"] != context.config_hash:
        raise UsageError(
            f"{saved.path}: made with configuration {facts['config_hash']}; {context.config_hash} wanted; "
            "give the same settings as the first time, or start anew with --resume no"
        )
    now = surroundings(hardware.world_size(train))
    drift = [f"{key} {facts.get(key)} → {value}" for key, value in now.items() if facts.get(key) != value]
    if drift:
        context.say(f"not bit-exact from here on: {', '.join(drift)}")


def _train(
    train: TrainConfig,
    task: pl.LightningModule,
    data: pl.LightningDataModule,
    context: FitContext,
    folder: Path,
    start: Saved | None,
) -> None:
    with (
        quiet(),
        StopSignals() as stop,
        Progress(shown=is_leader()) as progress,
        Helpers(train, context.work) as helpers,
    ):
        ema = Ema(train.ema_decay) if train.ema_decay else None
        recorder = Recorder(folder, context.monitor, context.mode, ema, context.say, progress, train.patience)
        keeper = Keeper(
            folder, train.checkpoint_seconds, context.config_hash, recorder, ema, stop, context.say
        )
        # The recorder goes before the average: it keeps weights while the average is still in place.
        callbacks = [FiniteGuard(), recorder, *([ema] if ema else []), keeper]
        trainer = _trainer(train, context, callbacks)
        trainer.fit_loop.epoch_loop = ExactEpochLoop(trainer, keeper)
        try:
            trainer.fit(task, datamodule=data, ckpt_path=None if start is None else start.path)
        except SIGTERMException:
            raise Interrupted("stopped by SIGTERM before the first step", 15) from None
        except (MemoryError, RuntimeError) as err:
            broken = helpers.failure() if is_broken_exchange(err) else None
            raise broken or _memory(err, train) or err from err
        finally:
            _close_loaders(trainer)


def _trainer(train: TrainConfig, context: FitContext, callbacks: list[pl.Callback]) -> pl.Trainer:
    return pl.Trainer(
        **hardware.trainer_arguments(train, context.say),
        max_epochs=train.epochs,
        accumulate_grad_batches=train.accumulate,
        gradient_clip_val=train.clip_norm or None,
        check_val_every_n_epoch=train.validate_every,
        logger=context.logger or False,
        callbacks=callbacks,
        plugins=[VerifiedIO()],
        default_root_dir=context.work,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _memory(err: MemoryError | RuntimeError, train: TrainConfig) -> ResourcesExhausted | None:
    """What to tell a user whose machine ran out of memory; None for other errors."""
    text = str(err)
    wanted = isinstance(err, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text
    if not wanted:
        return None
    return ResourcesExhausted(
        f"out of memory in a training step ({first_line(err, 80)}); "
        f"less per step wanted; lower train.batch_size={train.batch_size} and raise "
        f"train.accumulate={train.accumulate} by as much, choose smaller crops, or train.precision=bf16-mixed"
    )


def _close_loaders(trainer: pl.Trainer) -> None:
    for loaders in (trainer.train_dataloader, trainer.val_dataloaders):
        for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
            close = getattr(loader, "close", None)
            if close is not None:
                close()


def _result(saved: Saved) -> FitResult:
    content = read_verified(saved.path)
    recorded = next(state for state in content["callbacks"].values() if "history" in state)
    record = unpack(recorded)
    assert record.best is not None
    network = read_verified(saved.path.parent / record.best.file)["network"]
    return FitResult(
        state_dict=network,
        best=record.best.metrics,
        history=record.history,
        steps=int(saved.facts["step"]),
        epochs=int(saved.facts["epoch"]),
        seconds=float(content["seconds"]),
    )
