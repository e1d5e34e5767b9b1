"""A training small enough for tests: noisy two-class points, batch norm, dropout, warm-up, random inputs.

As a script it trains in a folder and prints facts as JSON: ``python -m tests.shared.toy_training FOLDER key=value…``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from shared.config import RunConfig, resolve
from shared.training.fit import FitContext, FitResult, fit
from shared.training.loader import ExactLoader, make_loader
from shared.training.optim import optimizer_config
from shared.training.seed import seed_everything, state_sha
from tests.shared.toy_points import Points


class ToyConfig(RunConfig):
    """`RunConfig` and what a toy can be made to do wrong."""

    items: int = 22
    norm: bool = True
    dropout: float = 0.2
    nan_at_step: int = -1
    """The optimiser step whose loss is NaN."""
    signal_at_step: int = -1
    signal_in_validation: bool = False
    signals: int = 1
    signum: int = int(signal.SIGTERM)
    die_at_step: int = -1
    """The step at which process 1 of a distributed run ends itself."""
    no_memory_at_step: int = -1
    ignore: int = 0


class ToyData(pl.LightningDataModule):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config

    def train_dataloader(self) -> ExactLoader:
        config = self.config
        return make_loader(
            Points(config.items, 1.5), config.train.batch_size, config.seed, workers=config.data.workers
        )

    def val_dataloader(self) -> ExactLoader:
        return make_loader(Points(12, 1.5), 4, 1, shuffle=False)


class ToyTask(pl.LightningModule):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        norm = nn.BatchNorm1d(8) if config.norm else nn.Identity()
        self.network = nn.Sequential(
            nn.Linear(4, 8), norm, nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(8, 1)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        config, step = self.config, self.trainer.global_step
        if step == config.signal_at_step:
            for _ in range(config.signals):
                os.kill(os.getpid(), config.signum)
        if step == config.die_at_step and self.trainer.global_rank == 1:
            os._exit(11)
        if step == config.no_memory_at_step:
            torch.empty(2**60, dtype=torch.uint8)
        loss = nn.functional.binary_cross_entropy_with_logits(self.network(batch[0])[:, 0], batch[1])
        return loss * float("nan") if step == config.nan_at_step else loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if self.config.signal_in_validation and self.trainer.current_epoch == 1 and batch_idx == 1:
            os.kill(os.getpid(), self.config.signum)
        torch.rand(3)  # a validation that draws must not change a resumed run
        logits = self.network(batch[0])[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, batch[1])
        self.log("val/loss", loss, batch_size=len(logits))
        self.log("val/accuracy", ((logits > 0) == (batch[1] > 0)).float().mean(), batch_size=len(logits))

    def configure_optimizers(self) -> Any:
        return optimizer_config(self, self.config.train)


BASE = {
    "threads": 1,
    "seed": 3,
    "train": {
        "epochs": 3, "batch_size": 4, "lr": 0.05, "warmup_epochs": 1, "ema_decay": 0.9, "clip_norm": 5.0,
        "checkpoint_seconds": 0, "accelerator": "cpu",
    },
}  # fmt: skip


def toy_config(*sets: str) -> ToyConfig:
    return resolve(ToyConfig, [("toy", BASE)], sets)


def toy_fit(work: Path, *sets: str, resume: bool = False, said: list[str] | None = None) -> FitResult:
    """5 steps an epoch, 3 epochs, a validation after each."""
    config = toy_config(*sets)
    seed_everything(config.seed, config.threads)
    say = (said if said is not None else []).append
    context = FitContext(
        work, None, resume, say, "val/loss", "min", "same" if not config.ignore else str(config.ignore)
    )
    return fit(config, ToyTask(config), ToyData(config), context)


def final_state(work: Path) -> dict[str, str]:
    """sha256 of everything in the last checkpoint that training depends on."""
    from shared.training.checkpoint import newest, read_verified

    saved = newest(work / "checkpoints", print)
    assert saved is not None
    content = read_verified(saved.path)
    keys = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "rng", "loader", "position")
    return {key: state_sha({key: content[key]}) for key in keys}


def main(folder: str, *args: str) -> int:
    from shared.errors import SuiteError

    said: list[str] = []
    resume = "resume" in args
    started = time.monotonic()
    try:
        result = toy_fit(Path(folder), *(arg for arg in args if "=" in arg), resume=resume, said=said)
    except SuiteError as err:
        print(json.dumps({"error": type(err).__name__, "text": str(err), "said": said}))
        return err.exit_code
    print(
        json.dumps(
            {
                "sha": state_sha(result.state_dict),
                "history": result.history,
                "best": result.best,
                "steps": result.steps,
                "said": said,
                "seconds": time.monotonic() - started,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
