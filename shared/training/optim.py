"""AdamW with linear warm-up and cosine decay, stepped once per optimiser step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from shared.config import TrainConfig

if TYPE_CHECKING:
    import pytorch_lightning as pl


def published_factor(epoch: float, warmup: float, total: float) -> float:
    """The learning rate's factor in the published Swin UNETR code (linear warm-up from 0, then cosine to 0).

    Reaches 1 at ``warmup - 1`` and again at `warmup`, and is 0 at 0, so stepping it by epochs wastes the first one.
    """
    if epoch < warmup:
        return epoch / max(1.0, warmup - 1)
    return _cosine((epoch - warmup) / max(1.0, total - warmup))


def step_factor(step: int, warmup: int, total: int) -> float:
    """The same curve by steps, without the dead start: ``(step + 1) / warmup`` while warming up, then cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return _cosine((step - warmup) / max(1, total - warmup))


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def optimizer_config(
    module: pl.LightningModule,
    train: TrainConfig,
    parameters: Iterable[Any] | None = None,
    *,
    published: bool = False,
) -> dict[str, Any]:
    """What `configure_optimizers` returns: AdamW over `parameters` (default: those of the module that are trained).

    `parameters` may be parameter groups. With `published` the factor is `published_factor` of the epoch, as in the
    original code; else `step_factor`.
    """
    chosen = [p for p in module.parameters() if p.requires_grad] if parameters is None else list(parameters)
    optimizer = torch.optim.AdamW(chosen, lr=train.lr, weight_decay=train.weight_decay)
    total = max(1, int(module.trainer.estimated_stepping_batches))
    per_epoch = max(1, round(total / train.epochs))
    warmup = round(train.warmup_epochs * per_epoch)

    def factor(step: int) -> float:
        if published and train.schedule == "cosine":
            return published_factor(step // per_epoch, train.warmup_epochs, train.epochs)
        if train.schedule == "constant":
            return min(1.0, (step + 1) / warmup) if warmup else 1.0
        return step_factor(step, warmup, total)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
