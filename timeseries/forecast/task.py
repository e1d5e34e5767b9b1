"""Loss, optimiser and validation of a network trained by gradient steps."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.training.optim import optimizer_config
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.network import ForecastNetwork, quantile_levels, takes_bare_windows
from timeseries.forecast.windows import Batch


class ForecastTask(pl.LightningModule):
    """Batches as `windows.Batch`; ``val/mse`` and ``val/mae``: every value of every validation window, scaled."""

    def __init__(self, config: ForecastConfig) -> None:
        super().__init__()
        self.config = config
        self.network = ForecastNetwork(config)
        self.register_buffer("_quantiles", torch.tensor(quantile_levels(config)), persistent=False)
        self._sums = torch.zeros(3, dtype=torch.float64)
        if takes_bare_windows(config):
            self.example_input_array = torch.zeros(1, config.data.input_length, len(config.data.targets))

    def forward(self, batch: Batch) -> Tensor:
        return self.network(batch.inputs)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        out = self.network(batch.inputs)
        y = batch.y[:, None]
        return _mean(self._errors(out, y), batch.y_mask[:, None])

    def _errors(self, out: Tensor, y: Tensor) -> Tensor:
        """(B, Q, H, C) loss of every value."""
        if self.config.intervals.method == "pinball":
            over = y - out
            q = self.get_buffer("_quantiles").view(1, -1, 1, 1)
            return torch.maximum(q * over, (q - 1) * over)
        if self.config.train.loss == "mae":
            return (out - y).abs()
        if self.config.train.loss == "huber":
            return F.huber_loss(out, y.expand_as(out), reduction="none")
        return (out - y).square()

    # ------------------------------------------------------------ validation

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)

    def validation_step(self, batch: Batch, index: int) -> None:
        error = (self.network.point(batch.inputs) - batch.y).masked_fill(~batch.y_mask, 0).double()
        self._sums += torch.stack(
            [error.square().sum(), error.abs().sum(), batch.y_mask.sum().double()]
        ).cpu()

    def on_validation_epoch_end(self) -> None:
        square, absolute, count = self._sums.tolist()
        self.log_dict(
            {"val/mse": square / max(count, 1), "val/mae": absolute / max(count, 1)}, prog_bar=False
        )

    def configure_optimizers(self) -> Any:
        return optimizer_config(self, self.config.train, self.network.parameters())


def _mean(errors: Tensor, mask: Tensor) -> Tensor:
    """Over the values that are there."""
    if mask.all():
        return errors.mean()
    weight = mask.expand_as(errors)
    return (errors * weight).sum() / weight.sum().clamp(min=1)
