"""Configuration of `transients`; published values: Allam and McEwen 2024 (arXiv 2105.06178) and its code astronet."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, field_validator, model_validator

from astro.transients.config_read import ReadConfig
from shared.config import Config, DataConfig, RunConfig, TrainConfig
from shared.nets.config import BackboneSource


class TransientsDataConfig(DataConfig):
    workers: Literal[0] = Field(0, description="gridded curves lie in memory; nothing is read")
    read: ReadConfig = ReadConfig()
    classes: tuple[str, ...] = Field(
        (), description="labels, in the order of the outputs; empty = those of the data"
    )
    survey: Literal["", "lsst", "des", "ztf"] = Field(
        "", description="whose bands the grid has; '' = the data's own"
    )
    left_out: tuple[str, ...] = Field(
        (), description="labels kept out of training, to measure how well unknown kinds are noticed"
    )
    smallest_class: int = Field(10, ge=1, description="classes with fewer objects are left out")
    validation: float = Field(0.1, gt=0, lt=1, description="share of each class's objects")
    test: float = Field(0.2, gt=0, lt=1, description="share of each class's objects")
    fold: int = Field(
        0,
        ge=0,
        description="which part is the test part; 0 to 1/test − 1 together hold every object out once",
    )
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
    trees: bool = Field(
        True, description="pool the network with boosted trees on summary numbers; validation weighs them"
    )


class TransientsTrainConfig(TrainConfig):
    batch_size: int = Field(64, ge=1, description="light curves per optimiser step, summed over all devices")
    lr: float = Field(3e-3, gt=0, description="peak learning rate")
    clip_norm: float = Field(1.0, ge=0, description="gradient norm limit; 0 = off")
    imbalance: Literal["adjust", "weights", "none", "legacy"] = Field(
        "adjust",
        description="adjust: logits shifted by class rates; weights: flat log-loss over the training set",
    )
    copies: int = Field(
        4,
        ge=0,
        description="altered copies of each training curve: fainter, noisier, thinned, half of them cut",
    )
    tree_copies: int = Field(4, ge=0, description="how many of them the trees are grown on as well")
    hide_redshift: float = Field(
        0.3, ge=0, le=1, description="share of training objects whose redshift is hidden"
    )


class TransientsPredictConfig(Config):
    rates: Literal["flat", "between", "training"] = Field(
        "between",
        description="class rates the probabilities assume: equal, the training set's, or a quarter of the way",
    )
    priors: dict[str, NonNegativeFloat] = Field(
        {}, description="class rates of your own, in place of `rates`; a class not named has none"
    )
    explain: bool = Field(
        False,
        description="also tell, of each object, how the answer changes without each band and each tenth of its points",
    )
    batch: int = Field(512, ge=1, description="light curves at once")

    @field_validator("priors")
    @classmethod
    def _some(cls, priors: dict[str, float]) -> dict[str, float]:
        if priors and not sum(priors.values()) > 0:
            raise ValueError("all are 0; a rate above 0 wanted")
        return priors


class EvaluateConfig(Config):
    days: tuple[float, ...] = Field((2, 5, 10, 20, 50), description="days since first detection to score at")


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
        both = sorted(set(self.data.left_out) & set(self.data.classes))
        if both:
            raise ValueError(f"data.left_out: {both[0]!r} is among data.classes; it cannot be both")
        if odd:
            raise ValueError(f"predict.priors: {odd[0]!r} is no class; one of {', '.join(self.data.classes)}")
        return self
