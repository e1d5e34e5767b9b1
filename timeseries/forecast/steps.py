"""Gradient steps without a Trainer, whose hooks would take three times as long as the millisecond a linear model's
step takes: the same task, loss, draws, optimiser and choice of weights as the general training.

`Steps` is one pass after another; `train_network` a whole training in memory, for estimators, which are fitted many
times over, in threads and in workers. `sgd.py` adds files, signals and progress.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shared.errors import Diverged
from shared.training.loader import EpochSampler
from shared.training.optim import optimizer_config
from shared.training.seed import isolated_rng
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.models.linear import LinearFamily
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.scores.score import score
from timeseries.forecast.task import ForecastTask
from timeseries.forecast.windows import Batch, Windows

CHECK_EVERY = 64
"""Steps between two looks at the loss; each makes the processor wait."""


class Steps:
    """The optimiser of a task and its order of the training windows."""

    def __init__(self, task: ForecastTask, windows: Windows) -> None:
        train = task.config.train
        self.task, self.windows = task, windows
        self.order = EpochSampler(len(windows), train.batch_size, task.config.seed)
        self.total = train.epochs * len(self.order)
        made = optimizer_config(task, train, task.network.parameters(), steps=self.total, fused=True)
        self.optimizer = made["optimizer"]
        self._factor: Callable[[int], float] = made["lr_scheduler"]["scheduler"].lr_lambdas[0]
        self.rate = 0.0
        """Of the last step."""

    def epoch(self, number: int, after: Callable[[int, Tensor], None] = lambda step, total: None) -> float:
        """One pass; the mean loss. `after` is called with the steps done in it and the sum of their losses. Raises
        `Diverged`."""
        device = next(self.task.network.parameters()).device
        self.task.train()
        total = torch.zeros((), device=device)
        batches = self.order.order(number).reshape(-1, self.order.batch_size)
        for step, chosen in enumerate(batches, 1):
            total += self._backward(self.windows.batch(chosen).to(device)).detach()
            self.rate = self.task.config.train.lr * self._factor(number * len(batches) + step - 1)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
            self.optimizer.step()
            if (step % CHECK_EVERY == 0 or step == len(batches)) and not math.isfinite(float(total)):
                raise self._diverged(number * len(batches) + step, number, chosen[0])
            after(step, total)
        return float(total) / len(batches)

    def _backward(self, batch: Batch) -> Tensor:
        """The loss of a batch; its gradients are stored in the parameters."""
        task, model = self.task, self.task.network.model
        squared = self.windows.complete and task.config.train.loss == "mse"
        if squared and isinstance(model, LinearFamily) and model.plain:
            return model.squared_error_step(batch.inputs.x, batch.y)
        task.zero_grad(set_to_none=True)
        loss = task.training_step(batch, 0)
        loss.backward()
        return loss

    def _diverged(self, step: int, number: int, window: int) -> Diverged:
        which, start = self.windows.index[window]
        series = self.windows.prepared[which].series
        return Diverged(
            f"loss is not finite by step {step} (epoch {number + 1}; a window of {series.id} from "
            f"{series.times[start]}); finite numbers wanted; lower train.lr, or scale the series"
        )


def train_network(
    config: ForecastConfig,
    train: Windows,
    val: Windows | None = None,
    start: ForecastNetwork | None = None,
    device: str = "cpu",
) -> ForecastNetwork:
    """A network trained as ``config.train`` says, on the CPU afterwards; `start` gives the weights to go on from.

    With `val` the weights of the best validation are kept (those of `start` count as one) and ``train.patience`` ends
    the training; without it the last weights are. Raises `Diverged`. Draws nothing from the global generators.
    """
    with isolated_rng(config.seed):
        task = ForecastTask(config)
        if start is not None:
            task.network.load_state_dict(start.state_dict())
        task.to(device)
        _run(task, train, val, math.inf if val is None or start is None else score(task.network, val).mse)
        return task.network.cpu().eval()


def _run(task: ForecastTask, train: Windows, val: Windows | None, best: float) -> None:
    settings, steps = task.config.train, Steps(task, train)
    kept = _copy(task.network) if best < math.inf else None
    waited = 0
    for number in range(settings.epochs):
        steps.epoch(number)
        if val is None:
            continue
        found = score(task.network, val).mse
        if found < best:
            best, kept, waited = found, _copy(task.network), 0
            continue
        waited += 1
        if settings.patience and waited >= settings.patience:
            break
    if kept is not None:
        task.network.load_state_dict(kept)


def _copy(network: ForecastNetwork) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
