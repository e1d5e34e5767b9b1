"""Gradient steps in memory: the pipeline's loss, draws, optimiser and choice of weights, without its files, signals and
progress. For estimators, which are fitted many times over, in threads and in workers."""

from __future__ import annotations

import math
from typing import Any

from shared.errors import Diverged
from shared.training.loader import EpochSampler
from shared.training.optim import optimizer_config
from shared.training.seed import isolated_rng
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.score import score
from timeseries.forecast.task import ForecastTask
from timeseries.forecast.windows import Windows


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
    settings = task.config.train
    order = EpochSampler(len(train), settings.batch_size, task.config.seed)
    parameters = task.network.parameters()
    made = optimizer_config(task, settings, parameters, steps=len(order) * settings.epochs)
    kept = _copy(task.network) if best < math.inf else None
    waited = 0
    for epoch in range(settings.epochs):
        _epoch(task, train, order, epoch, made["optimizer"], made["lr_scheduler"]["scheduler"])
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


def _epoch(
    task: ForecastTask, train: Windows, order: EpochSampler, epoch: int, optimizer: Any, schedule: Any
) -> None:
    task.train()
    device = next(task.parameters()).device
    for chosen in order.order(epoch).reshape(-1, order.batch_size):
        loss = task.training_step(train.batch(chosen).to(device), 0)
        if not loss.isfinite():
            raise Diverged(
                f"loss is {loss.item()} in epoch {epoch + 1} at lr {schedule.get_last_lr()[0]:.2g}; finite wanted; "
                "lower lr, or scale the series"
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _copy(network: ForecastNetwork) -> dict[str, Any]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
