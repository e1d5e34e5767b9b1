"""Averaged weights: an exponential moving average of the network's parameters, used wherever it is judged or kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor


class Ema(pl.Callback):
    """``average ← d·average + (1 − d)·weights`` after every optimiser step, d = min(decay, (1 + n)/(10 + n)).

    The ramp of d lets the average forget the random start. Buffers (batch-norm statistics) are running averages
    already and are used as they are. Validation sees the average; training goes on with the raw weights.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        here = dict(network_of(pl_module).named_parameters())
        source = self._average or {name: parameter.detach() for name, parameter in here.items()}
        self._average = {
            name: source[name].to(parameter.device, copy=True).float() for name, parameter in here.items()
        }
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        parameters = dict(network_of(pl_module).named_parameters())
        with torch.no_grad():
            averages = [self._average[name] for name in parameters]
            torch._foreach_lerp_(averages, [p.detach().float() for p in parameters.values()], 1 - decay)

    # ------------------------------------------------------------ in place of the weights

    def put(self, network: torch.nn.Module) -> None:
        """Exchange the network's weights for the average."""
        if self._raw is None:
            self._raw = {name: p.detach().clone() for name, p in network.named_parameters()}
            _copy_into(network, self._average)

    def take(self, network: torch.nn.Module) -> None:
        """Undo `put`."""
        if self._raw is not None:
            _copy_into(network, self._raw)
            self._raw = None

    @contextmanager
    def inside(self, network: torch.nn.Module) -> Iterator[None]:
        """The average in the block."""
        self.put(network)
        try:
            yield
        finally:
            self.take(network)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.put(network_of(pl_module))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.take(network_of(pl_module))

    # ------------------------------------------------------------ checkpoint

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates, self._average = state_dict["updates"], dict(state_dict["average"])


def network_of(task: pl.LightningModule) -> torch.nn.Module:
    """The part of a task whose weights are kept."""
    network = task.network
    assert isinstance(network, torch.nn.Module)
    return network


def _copy_into(network: torch.nn.Module, source: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(source[name])
