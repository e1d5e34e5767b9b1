"""Stops a training whose loss or gradient is not finite, before the optimiser can spoil the weights."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from shared.errors import Diverged
from shared.training.loader import Draw, describe

SKIPS = 3
"""Steps in a row that 16-bit training may skip: its loss scale starts too high on purpose and comes down."""


class FiniteGuard(pl.Callback):
    """Raises `Diverged`, naming step and items, in all processes at once."""

    def __init__(self) -> None:
        self.skipped = 0
        self._loss: Tensor | None = None
        self._draws: list[Draw] = []
        self._step = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step:  # the batches gathered for one step stay together
            self._step, self._draws, self._loss = trainer.global_step, [], None
        self._draws += getattr(trainer.train_dataloader, "current", [])

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0
        loss = 0.0 if self._loss is None else float(self._loss)
        bad_loss, bad_norm = _any_process(trainer, not math.isfinite(loss), not math.isfinite(norm))
        if not (bad_loss or bad_norm):
            self.skipped = 0
            return
        # With a loss scaler a bad gradient means: skip this step and lower the scale. The scaler does both itself.
        if (
            getattr(trainer.precision_plugin, "scaler", None) is not None
            and bad_norm
            and self.skipped < SKIPS
        ):
            self.skipped += 1
            return
        found = f"loss {loss}" if bad_loss else f"gradient norm {norm}"
        items = _items(trainer, self._draws, bad_loss and math.isfinite(loss))
        raise Diverged(
            f"train step {trainer.global_step + 1}: {found}; finite values wanted; items of the batch: {items}; "
            "look at these items, lower train.lr or set train.clip_norm; the last good checkpoint is kept"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = int(state_dict["skipped"])


def _any_process(trainer: pl.Trainer, *facts: bool) -> list[bool]:
    """Each fact, true if it is true in any process."""
    if trainer.world_size == 1:
        return list(facts)
    flags = torch.tensor([float(fact) for fact in facts], device=trainer.strategy.root_device)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def _items(trainer: pl.Trainer, draws: list[Draw], innocent: bool) -> str:
    """Names of the items behind a bad step; with several processes those of the ones it happened in."""
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    mine = "" if innocent else describe(dataset, draws)
    if trainer.world_size == 1:
        return mine or "unknown"
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, mine)
    return ", ".join(text for text in everyone if text) or "unknown"
