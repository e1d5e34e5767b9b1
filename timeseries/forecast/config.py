"""Configuration of `forecast`; published values: arXiv 2205.13504 (LTSF-Linear) and 2106.13008 (Autoformer)."""

from __future__ import annotations

import codecs
from typing import Literal

from pydantic import Field, field_validator, model_validator

from shared.config import Config, DataConfig, RunConfig, TrainConfig
from shared.nets.config import BackboneSource


class ForecastDataConfig(DataConfig):
    layout: Literal["auto", "wide", "long"] = Field(
        "auto",
        description="wide: a column a channel; long: columns unique_id, ds, y; auto detects and prints it",
    )
    date_column: str | None = Field(
        None, description="none = found by its content; '' = rows are steps, no dates"
    )
    id_column: str | None = Field(None, description="series name in long frames; none = unique_id")
    freq: str | None = Field(
        None, description="step such as h, 15min, D, B, W, ME; none = inferred and printed"
    )
    targets: tuple[str, ...] = Field(
        (), description="columns to forecast; empty = every numeric column not named below"
    )
    past_columns: tuple[str, ...] = Field((), description="exogenous columns known up to the last row")
    future_columns: tuple[str, ...] = Field(
        (), description="exogenous columns also known for the steps to forecast"
    )
    input_length: int = Field(336, ge=1, description="rows the model looks back on")
    horizon: int = Field(96, ge=1, description="rows it forecasts")
    split: Literal["auto", "fractions", "counts", "dates"] = Field(
        "auto", description="auto = the papers' borders for a benchmark that is recognised, else fractions"
    )
    fractions: tuple[float, float, float] = Field((0.7, 0.1, 0.2), description="train, validation, test")
    counts: tuple[int, int, int] | None = Field(
        None, description="rows for train, validation, test, from the start"
    )
    dates: tuple[str, str] | None = Field(None, description="first stamp of validation and of test")
    missing: Literal["mask", "fail"] = Field(
        "mask", description="mask: missing values weigh nothing in training and scores, and are reported"
    )
    gaps: Literal["fail", "mask"] = Field(
        "fail", description="mask: absent stamps become rows of missing values"
    )
    duplicates: Literal["fail", "first", "last", "mean"] = "fail"
    unsorted: Literal["fail", "sort"] = "fail"
    max_rows: int = Field(5_000_000, ge=1, description="longest table accepted")
    sep: str | None = Field(
        None, min_length=1, max_length=1, description="of CSV; none = a comma, or a tab for .tsv"
    )
    decimal: Literal["point", "comma"] = Field("point", description="of numbers in CSV")
    encoding: str = Field("utf-8", description="of CSV, such as latin-1 or utf-16")
    date_format: str | None = Field(
        None,
        description="of stamps that are not ISO, such as %d/%m/%Y %H:%M; none = year, month, day in that order",
    )

    @field_validator("encoding")
    @classmethod
    def _encoding_known(cls, name: str) -> str:
        try:
            codecs.lookup(name)
        except (LookupError, ValueError):
            raise ValueError(f"encoding {name} is unknown; utf-8, latin-1, cp1252 or utf-16 wanted") from None
        return name

    @model_validator(mode="after")
    def _split_given(self) -> ForecastDataConfig:
        if self.split == "counts" and (self.counts is None or min(self.counts) < 0):
            raise ValueError("split counts needs counts: [train, validation, test], none negative")
        if self.split == "dates" and self.dates is None:
            raise ValueError("split dates needs dates: [first of validation, first of test]")
        if min(self.fractions) < 0 or not 0 < sum(self.fractions) <= 1 + 1e-9:
            raise ValueError("fractions must be at least 0 and sum to at most 1")
        both = set(self.past_columns) & set(self.future_columns) | set(self.targets) & set(
            self.future_columns
        )
        if both:
            raise ValueError(f"{', '.join(sorted(both))}: named twice; a column has one part")
        return self


class ForecastModelConfig(Config):
    name: Literal["linear", "nlinear", "dlinear", "autoformer", "naive", "backbone"] = "nlinear"
    solver: Literal["closed-form", "sgd"] = Field(
        "closed-form",
        description="of the linear family: exact ridge least squares, or gradient steps as published",
    )
    ridge: float = Field(
        1e-3, ge=0, description="closed form: weight of the squared norm, in units of one window"
    )
    individual: bool = Field(False, description="linear family: weights of its own for every channel")
    kernel: int = Field(25, ge=1, description="moving average of dlinear and autoformer, steps; odd")
    season: int = Field(
        0, ge=0, description="naive: repeat the value this many steps back; 0 = repeat the last one"
    )
    # Autoformer, as published (Autoformer/run.py)
    width: int = Field(512, ge=2, description="d_model; also the width of a named backbone's head")
    heads: int = Field(8, ge=1)
    feedforward: int = Field(2048, ge=1, description="d_ff")
    encoder_layers: int = Field(2, ge=1)
    decoder_layers: int = Field(1, ge=1)
    label_length: int = Field(48, ge=1, description="known rows the decoder starts with")
    factor: float = Field(3.0, gt=0, description="number of delays is floor(factor · ln length)")
    dropout: float = Field(0.05, ge=0, lt=1)
    backbone: BackboneSource | None = Field(
        None, description="for backbone: a name of `pipelines zoo --for forecast`, a YAML file or its keys"
    )

    @model_validator(mode="after")
    def _fits(self) -> ForecastModelConfig:
        if self.kernel % 2 == 0:
            raise ValueError(
                f"kernel {self.kernel} is even, which would shorten the series; an odd one wanted"
            )
        if (self.name == "backbone") != (self.backbone is not None):
            raise ValueError("name: backbone and backbone: … go together")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide width {self.width}")
        return self


class ForecastTrainConfig(TrainConfig):
    """Defaults are the published recipe: Adam, at most 10 epochs, the rate halved after the second, patience 3."""

    batch_size: int = Field(32, ge=1, description="windows per optimiser step, summed over all devices")
    lr: float = Field(5e-3, gt=0, description="peak learning rate")
    optimizer: Literal["adamw", "adam"] = "adam"
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "cosine-epochs", "halving", "constant"] = "halving"
    patience: int = Field(
        3, ge=0, description="stop after so many validations without a better one; 0 = never"
    )
    loss: Literal["mse", "mae", "huber"] = "mse"


class IntervalsConfig(Config):
    method: Literal["none", "conformal", "pinball"] = Field(
        "conformal",
        description="conformal: errors on validation windows, per step and channel; pinball: trained",
    )
    levels: tuple[float, ...] = Field((0.8, 0.95), description="coverages wanted")
    blocks: int = Field(
        5,
        ge=0,
        description="conformal, exact least squares: besides validation windows, so many blocks of training "
        "rows, each forecast by a fit without it, which see every season; 0 = validation windows only",
    )

    @model_validator(mode="after")
    def _shares(self) -> IntervalsConfig:
        if not all(0 < level < 1 for level in self.levels) or len(set(self.levels)) < len(self.levels):
            raise ValueError("levels are shares between 0 and 1, each once: 0.8, not 80")
        if self.method != "none" and not self.levels:
            raise ValueError("levels is empty; one level or more wanted, or method: none")
        return self


class ForecastPredictConfig(Config):
    scale: Literal["auto", "training", "own"] = Field(
        "auto",
        description="mean and spread to scale by: of the training series of that name (or the only one), or of the "
        "rows given; auto = the first where there is one",
    )
    roll: bool = Field(False, description="go on with own forecasts as input to reach predict.horizon")
    horizon: int = Field(0, ge=0, description="rows to forecast; 0 = as trained")
    format: Literal["csv", "parquet"] = "csv"
    picture: bool = True
    context_shown: int = Field(
        0, ge=0, description="rows before the forecast in the picture; 0 = twice the horizon"
    )


class EvaluateConfig(Config):
    legacy_drop_last: int = Field(
        0,
        ge=0,
        description="test batch of the published code, whose last partial batch was dropped; 0 = all windows",
    )
    season: int = Field(0, ge=0, description="period of MASE's naive forecast, steps; 0 = from the calendar")
    backtest_origins: int = Field(
        0, ge=0, description="rolling back-test: origins spread over the test part; 0 = all"
    )


class ForecastConfig(RunConfig):
    data: ForecastDataConfig = ForecastDataConfig()
    model: ForecastModelConfig = ForecastModelConfig()
    train: ForecastTrainConfig = ForecastTrainConfig()
    intervals: IntervalsConfig = IntervalsConfig()
    predict: ForecastPredictConfig = ForecastPredictConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _together(self) -> ForecastConfig:
        model, data = self.model, self.data
        if model.name == "autoformer" and model.label_length > data.input_length:
            raise ValueError(
                f"model.label_length {model.label_length} exceeds data.input_length {data.input_length}"
            )
        if model.name in ("dlinear", "autoformer") and model.kernel > data.input_length:
            raise ValueError(f"model.kernel {model.kernel} exceeds data.input_length {data.input_length}")
        closed = model.name in ("linear", "nlinear", "dlinear") and model.solver == "closed-form"
        if self.intervals.method == "pinball" and (closed or model.name == "naive"):
            raise ValueError(
                "intervals.method pinball needs gradient steps; set model.solver=sgd, or conformal"
            )
        return self
