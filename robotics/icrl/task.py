"""Loss, optimiser and validation: the losses of windows, and what the network earns when it plays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
from torch import Tensor

from robotics.icrl.config import IcrlConfig
from robotics.icrl.data import spaces_of
from robotics.icrl.envs.base import Task
from robotics.icrl.envs.families import family
from robotics.icrl.models import build
from robotics.icrl.models.batch import Window
from robotics.icrl.models.incontext import Context, InContext
from robotics.icrl.play import play
from shared.training.fit import FitResult
from shared.training.fit import fit as general_fit
from shared.training.optim import no_decay, optimizer_config

if TYPE_CHECKING:
    from robotics.icrl.data import IcrlData


class IcrlTask(pl.LightningModule):
    """Batches are `Window`s. ``val/normalised_return`` is the mean over episodes played on the validation tasks: a
    low loss on histories says little about learning in context."""

    def __init__(self, config: IcrlConfig) -> None:
        super().__init__()
        self.config = config
        spaces = config.data.spaces or spaces_of(config.data.env)
        self.network = build(config.model, spaces)
        if isinstance(self.network, InContext):
            self.example_input_array = Context.example(config.model, spaces)
        self.play_on: Sequence[Task] = ()
        self._losses: list[dict[str, float]] = []

    def learn_from(self, data: IcrlData) -> None:
        """Scaling of the training histories, and which tasks validate; the weights are not touched."""
        self.network.fit_scaling(data.train_arrays)
        room = family(self.config.data.env)
        self.play_on = [room.task(index) for index in data.parts["val"]]

    def training_step(self, batch: Window, index: int) -> Tensor:
        return self.network.losses(batch)["loss"]

    def validation_step(self, batch: Window, index: int) -> None:
        self._losses.append({name: float(value) for name, value in self.network.losses(batch).items()})

    def on_validation_epoch_end(self) -> None:
        means = {f"val/{k}": float(np.mean([each[k] for each in self._losses])) for k in self._losses[0]}
        self._losses = []
        train = self.config.train
        played = play(
            self.network,
            self.play_on,
            train.play_episodes,
            train.play_copies,
            self.config.seed,
            self.config.predict,
        )
        means["val/normalised_return"] = float(played.normalised.mean())
        self.log_dict(means, prog_bar=False)

    def configure_optimizers(self) -> Any:
        """No weight decay on norms, biases and what mixers spare, but in `legacy`; betas as published."""
        spared = no_decay(self.network)
        small = [p for p in self.network.parameters() if p.ndim < 2 or id(p) in spared]
        large = [p for p in self.network.parameters() if p.ndim >= 2 and id(p) not in spared]
        groups: list[dict[str, Any]] = [{"params": large}, {"params": small, "weight_decay": 0.0}]
        if self.config.model.legacy:
            groups = [{"params": list(self.network.parameters())}]
        for group in groups:
            group["betas"] = (0.9, 0.99)
        return optimizer_config(self, self.config.train, groups)


def fit(config: IcrlConfig, task: IcrlTask, data: IcrlData, context: Any) -> FitResult:
    """The general training, on what was collected."""
    task.learn_from(data)
    return general_fit(config, task, data, context)
