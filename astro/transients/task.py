"""Loss, optimiser and validation around the network; its scaling and class rates come from the training part."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from astro.transients.config import TransientsConfig
from astro.transients.decide import fit_temperature
from astro.transients.lightcurve import WAVELENGTHS
from astro.transients.losses import TransientLoss
from astro.transients.metrics import log_loss
from astro.transients.t2 import TransientNetwork, redshift_dropout
from shared.training.fit import FitResult
from shared.training.fit import fit as general_fit
from shared.training.optim import optimizer_config

if TYPE_CHECKING:
    from astro.transients.data import Batch, TransientsData


def build_network(config: TransientsConfig) -> TransientNetwork:
    data, model = config.data, config.model
    return TransientNetwork(
        len(data.classes),
        len(WAVELENGTHS[data.survey]),
        backbone=model.backbone,
        length=data.grid,
        channels=model.channels,
        flux=model.flux,
        redshift=model.redshift,
        legacy=model.legacy,
        dropout=model.dropout,
    )


class TransientsTask(pl.LightningModule):
    """Batches (Inputs, labels); ``val/log_loss`` is the flat log-loss of the whole validation part."""

    def __init__(self, config: TransientsConfig) -> None:
        super().__init__()
        self.config = config
        self.network = build_network(config)
        self.loss = TransientLoss([1] * len(config.data.classes), config.train.imbalance)
        self._seen: list[tuple[Tensor, Tensor]] = []

    def learn_from(self, data: TransientsData) -> None:
        """Scaling and class rates of the training part; the weights are not touched."""
        self.network.fit_scaling(data.train_set.inputs)
        self.loss = TransientLoss(data.counts(), self.config.train.imbalance)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        inputs, labels = batch
        if self.network.redshift != "none":
            inputs = redshift_dropout(inputs, self.config.train.hide_redshift)
        loss: Tensor = self.loss(self.network(inputs), labels)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        self._seen.append((self.network(batch[0]).float().cpu(), batch[1].cpu()))

    def on_validation_epoch_end(self) -> None:
        logits, labels = (torch.cat(each) for each in zip(*self._seen))
        self._seen = []
        probability = logits.softmax(1).numpy()
        right = float((logits.argmax(1) == labels).float().mean())
        self.log_dict({"val/log_loss": log_loss(labels, probability), "val/accuracy": right}, prog_bar=False)

    def configure_optimizers(self) -> Any:
        return optimizer_config(self, self.config.train, self.network.parameters())


def fit(config: TransientsConfig, task: TransientsTask, data: TransientsData, context: Any) -> FitResult:
    """The general training, then the temperature that calibrates it on the validation part (each class alike)."""
    task.learn_from(data)
    result = general_fit(config, task, data, context)
    task.network.load_state_dict(result.state_dict)
    task.network.eval()
    with torch.no_grad():
        logits = torch.cat(
            [task.network(data.val_set.inputs.take(rows)) for rows in _chunks(len(data.val_set))]
        )
    found = fit_temperature(logits.numpy(), data.val_set.labels.numpy())
    task.network.temperature.fill_(found)
    context.say(f"calibrated on {len(data.val_set)} validation objects: temperature {found:.3f}")
    return replace(result, state_dict={k: v.detach().cpu() for k, v in task.network.state_dict().items()})


def _chunks(count: int) -> list[slice]:
    return [slice(i, i + 512) for i in range(0, count, 512)]
