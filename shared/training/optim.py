"""Adam or AdamW and the learning-rate curve: linear warm-up, then cosine decay, halving or none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from shared.config import TrainConfig

if TYPE_CHECKING:
    import pytorch_lightning as pl


def step_factor(step: int, warmup: int, total: int) -> float:
    """The learning rate's factor by steps: ``(step + 1) / warmup`` while warming up, then cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return _cosine((step - warmup) / max(1, total - warmup))


def epoch_factor(epoch: float, warmup: float, total: float) -> float:
    """The same by epochs, as in the published Swin UNETR code (`optimizers/lr_scheduler.py`).

    Reaches 1 at ``warmup - 1`` and again at `warmup`, and is 0 at 0: the first epoch is wasted.
    """
    if epoch < warmup:
        return epoch / max(1.0, warmup - 1)
    return _cosine((epoch - warmup) / max(1.0, total - warmup))


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def no_decay(module: torch.nn.Module) -> set[int]:
    """`id`s of the parameters that parts of `module` name in `no_decay` (a set), such as the decay rates of a
    state-space model."""
    return {
        id(getattr(part, name))
        for part in module.modules()
        for name in getattr(part, "no_decay", frozenset())
    }


def decay_groups(module: torch.nn.Module, parameters: list[Any]) -> list[Any]:
    """`parameters`, or two groups of them where `no_decay` names some: those get no weight decay."""
    spared = no_decay(module)
    if not any(id(p) in spared for p in parameters):
        return parameters
    groups = {spare: [p for p in parameters if (id(p) in spared) is spare] for spare in (False, True)}
    return [
        group
        for group in ({"params": groups[False]}, {"params": groups[True], "weight_decay": 0.0})
        if group["params"]
    ]


def optimizer_config(
    module: pl.LightningModule,
    train: TrainConfig,
    parameters: Iterable[Any] | None = None,
    steps: int | None = None,
    fused: bool = False,
) -> dict[str, Any]:
    """What `configure_optimizers` returns: the optimiser over `parameters`, by default those of the module that train.

    `parameters` may be parameter groups, which are taken as they are. ``train.schedule`` chooses the curve; it is
    stepped once per optimiser step. `steps` is how many of them there will be; none = the Trainer knows. `fused` takes
    one pass over each parameter instead of ten: other rounding, and no loss scaling.
    """
    chosen = [p for p in module.parameters() if p.requires_grad] if parameters is None else list(parameters)
    chosen = decay_groups(module, chosen)
    make = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    optimizer = make(chosen, lr=train.lr, weight_decay=train.weight_decay, fused=fused or None)
    total = max(1, int(module.trainer.estimated_stepping_batches if steps is None else steps))
    per_epoch = max(1, round(total / train.epochs))
    warmup = round(train.warmup_epochs * per_epoch)

    def factor(step: int) -> float:
        if train.schedule == "cosine-epochs":
            return epoch_factor(step // per_epoch, train.warmup_epochs, train.epochs)
        if train.schedule in ("constant", "halving"):
            rate = min(1.0, (step + 1) / warmup) if warmup else 1.0
            return rate * (0.5 ** max(step // per_epoch - 1, 0) if train.schedule == "halving" else 1.0)
        return step_factor(step, warmup, total)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
