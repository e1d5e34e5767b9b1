"""Configuration of `transients`; published values: Allam and McEwen 2024 (arXiv 2105.06178) and its code astronet."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from astro.transients.config_read import ReadConfig
from shared.config import Config, DataConfig, RunConfig, TrainConfig
from shared.nets.config import BackboneSource


class TransientsDataConfig(DataConfig):
    read: ReadConfig = ReadConfig()
    classes: tuple[str, ...] = Field(
        (), description="labels, in the order of the outputs; empty = those of the data"
    )
    survey: Literal["", "lsst", "des", "ztf"] = Field(
        "", description="whose bands the grid has; '' = the data's own"
    )
    smallest_class: int = Field(10, ge=1, description="classes with fewer objects are left out")
    validation: float = Field(0.1, gt=0, lt=1, description="share of each class's objects")
    test: float = Field(0.2, gt=0, lt=1, description="share of each class's objects")
    simulated: int = Field(1200, ge=60, description="objects of the simulator, where no data set is given")
    grid: int = Field(100, ge=8, description="equally spaced times of the Gaussian process's prediction")


class TransientsModelConfig(Config):
    backbone: BackboneSource = Field(
        "t2", description="t2, another name of `pipelines zoo --for transients`, a YAML file or its keys"
    )
    channels: tuple[Literal["mean", "sd", "bands", "duration", "peak"], ...] = Field(
        ("mean", "sd", "bands", "duration", "peak"),
        description="what the network sees; the paper: mean alone",
    )
    flux: Literal["robust", "arcsinh", "object"] = Field("arcsinh", description="scaling; the paper: robust")
    redshift: Literal["none", "tokens", "channels"] = Field(
        "none", description="host redshift and its error as steps of their own, or beside every step"
    )
    legacy: bool = Field(False, description="redshift steps as published, which mix value and error")
    dropout: float = Field(0.1, ge=0, lt=1)


class TransientsTrainConfig(TrainConfig):
    batch_size: int = Field(64, ge=1, description="light curves per optimiser step, summed over all devices")
    lr: float = Field(3e-3, gt=0, description="peak learning rate")
    clip_norm: float = Field(1.0, ge=0, description="gradient norm limit; 0 = off")
    imbalance: Literal["weights", "adjust", "none", "legacy"] = Field(
        "weights",
        description="weights: flat log-loss over the training set; adjust: logits shifted by class rates",
    )
    truncations: int = Field(
        1, ge=0, description="copies of each training curve cut at a random day, beside the whole"
    )
    hide_redshift: float = Field(
        0.3, ge=0, le=1, description="share of training objects whose redshift is hidden"
    )


class TransientsPredictConfig(Config):
    priors: dict[str, float] = Field({}, description="class rates to assume instead of the training set's")
    batch: int = Field(512, ge=1, description="light curves at once")


class EvaluateConfig(Config):
    days: tuple[float, ...] = Field((2, 5, 10, 20, 50), description="days since first detection to score at")
    trees: bool = Field(True, description="boosted trees on summary numbers beside the network")


class TransientsConfig(RunConfig):
    data: TransientsDataConfig = TransientsDataConfig()
    model: TransientsModelConfig = TransientsModelConfig()
    train: TransientsTrainConfig = TransientsTrainConfig()
    predict: TransientsPredictConfig = TransientsPredictConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _together(self) -> TransientsConfig:
        if self.data.validation + self.data.test >= 1:
            raise ValueError("data.validation and data.test leave nothing to train on")
        odd = sorted(set(self.predict.priors) - set(self.data.classes)) if self.data.classes else []
        if odd:
            raise ValueError(f"predict.priors: {odd[0]!r} is no class; one of {', '.join(self.data.classes)}")
        return self
