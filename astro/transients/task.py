"""Loss, optimiser and validation around the network; its scaling and class rates come from the training part."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from astro.transients.classifier import Classifier
from astro.transients.config import TransientsConfig
from astro.transients.lightcurve import Floats
from astro.transients.losses import TransientLoss
from astro.transients.metrics import log_loss
from astro.transients.t2 import Inputs, redshift_dropout
from astro.transients.trees import Trees
from shared.training.fit import FitResult
from shared.training.fit import fit as general_fit
from shared.training.optim import optimizer_config

if TYPE_CHECKING:
    from astro.transients.data import Batch, Objects, TransientsData

LARGE = 10_000
"""Objects and copies from which on trees may have more leaves."""


class TransientsTask(pl.LightningModule):
    """Batches (Inputs, labels); ``val/log_loss`` is the flat log-loss of the whole validation part."""

    def __init__(self, config: TransientsConfig) -> None:
        super().__init__()
        self.config = config
        self.network = Classifier(config)
        self.example_input_array = Inputs.example(config.data.grid, len(self.network.bands))
        self.loss = TransientLoss([1] * len(config.data.classes), config.train.imbalance)
        self._seen: list[tuple[Tensor, Tensor]] = []

    def learn_from(self, data: TransientsData) -> None:
        """Scaling and class rates of the training part; the weights are not touched."""
        counts = data.counts()
        self.network.network.fit_scaling(data.train_set.inputs)
        self.loss = TransientLoss(counts, self.config.train.imbalance)
        if self.config.train.imbalance == "none":
            rates = np.maximum(counts, 1) / sum(counts)
            self.network.log_rates.copy_(torch.from_numpy(np.log(rates)))

    def training_step(self, batch: Batch, index: int) -> Tensor:
        inputs, labels = batch
        if self.network.with_redshift:
            inputs = redshift_dropout(inputs, self.config.train.hide_redshift)
        loss: Tensor = self.loss(self.network.network(inputs), labels)
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
    """The general training; then trees beside the network, and the validation part says how much each counts."""
    task.learn_from(data)
    result = general_fit(config, task, data, context)
    model = task.network
    model.load_state_dict(result.state_dict)
    model.eval()
    pooled, labels = _pooled(model, data.train_set, len(data.part("train")))
    model.fit_distances(pooled, labels)
    if model.grown is not None:
        context.say("growing boosted trees on summary numbers")
        model.grown.put(grow(*data.for_trees(), config))
    curves, rates = data.val_curves, np.maximum(data.counts(), 1) / sum(data.counts())
    model.fit_pool(
        _logits(model, data.val_set), model.tree_logs(curves, data.val_set.inputs), data.labels(curves), rates
    )
    context.say(
        f"weighed on {len(curves)} validation objects: network at temperature {float(model.temperature):.2f}"
        + (f", trees counting {float(model.trees_weight):.2f}" if model.grown is not None else "")
    )
    return replace(result, state_dict={k: v.detach().cpu() for k, v in model.state_dict().items()})


def grow(numbers: NDArray[Any], labels: NDArray[Any], config: TransientsConfig) -> Trees:
    """Trees of moderate size, as `tree_copies` of few objects ask for; every class counts alike."""
    return Trees.fit(
        numbers,
        labels,
        len(config.data.classes),
        config.seed,
        rounds=200,
        leaves=15 if len(labels) > LARGE else 8,
        smallest_leaf=40,
        ridge=30.0,
        share=0.2,
    )


@torch.no_grad()
def _logits(model: Classifier, objects: Objects) -> Floats:
    parts = [model(objects.inputs.take(rows)) for rows in _chunks(len(objects))]
    return torch.cat(parts).double().numpy()


@torch.no_grad()
def _pooled(model: Classifier, objects: Objects, first: int) -> tuple[Floats, NDArray[Any]]:
    """Pooled features and labels of the `first` objects, which are the unaltered ones."""
    parts = [model.network.pooled(objects.inputs.take(rows)) for rows in _chunks(first)]
    return torch.cat(parts)[:first].double().numpy(), objects.labels[:first].numpy()


def _chunks(count: int) -> list[slice]:
    return [slice(i, i + 512) for i in range(0, count, 512)]
