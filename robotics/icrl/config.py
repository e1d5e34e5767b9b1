"""Configuration of `icrl`; published values: AD, DPT, DICP and LHF as in DICP's code (arXiv 2502.19009, 2505.15143)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from robotics.icrl.collect.known import refusal
from robotics.icrl.envs import names
from robotics.icrl.models.config import ModelConfig, Plan
from robotics.icrl.models.spaces import Spaces
from shared.config import Config, DataConfig, RunConfig, TrainConfig, nested, parse_set
from shared.errors import UsageError


def _known(name: str) -> str:
    if name not in names.ROOMS:
        raise PydanticCustomError("room", "{others} wanted", {"others": names.others(name)})
    return name


Room = Annotated[str, AfterValidator(_known)]
COLLECTING = ("collector", "options", "streams", "episodes", "random_share")
"""Keys of `data` that mean nothing beside a `path`; `env` is compared with the store's."""


class IcrlDataConfig(DataConfig):
    """Where learning histories come from. With `path` (a store, HDF5) nothing is collected, and what only a collector
    needs is refused if given by -s, said if it comes from a preset or a file."""

    env: Room = Field("darkroom", description="family of tasks; of a store: its own")
    collector: Literal["explorer", "population", "q-learning", "noise-distillation", "random", "sb3"] = Field(
        "explorer",
        description="what makes the histories; explorer is ours; sb3: PPO, SAC and others of Stable-Baselines3, "
        "DICP's way; population: the same in seconds, with tables",
    )
    options: dict[str, Any] = Field({}, description="the collector's own settings")
    streams: int = Field(40, ge=1, description="histories of each task")
    episodes: int = Field(20, ge=2, description="episodes of each history")
    random_share: float = Field(
        0.0, ge=0, lt=1, description="share of histories that play at random; LHF's noisy setting: 0.3"
    )
    first: float = Field(
        1.0, gt=0, le=1, description="share of each history's steps that is used; LHF's partial setting: 0.5"
    )
    workers: Literal[0] = Field(0, description="histories lie in memory; nothing is read")
    tasks: int = Field(0, ge=0, description="training tasks at most; 0 = all of the family's training part")
    validation: float = Field(0.06, gt=0, lt=1, description="share of training tasks that pick the weights")
    spaces: Spaces | None = Field(None, description="what agents see and do; none = the family's")

    @property
    def unused(self) -> list[str]:
        """Settings of collecting beside a store that are not the default ones."""
        if self.path is None:
            return []
        return [key for key in COLLECTING if getattr(self, key) != type(self).model_fields[key].default]


class FilterConfig(Config):
    """Learning-history filtering, LHF."""

    mode: Literal["none", "stochastic", "reweight"] = Field(
        "none", description="stochastic: as published; reweight: each history's loss by the same probability"
    )
    stability_weight: float = Field(1.0, ge=0, description="λ in U = Improvement + λ Stability")
    temperature: float | None = Field(None, gt=0, description="α of a softmax over U; none = no softmax")


class IcrlTrainConfig(TrainConfig):
    epochs: int = Field(10, ge=1, description="stretches of `steps` steps, a validation after each")
    steps: int = Field(150, ge=1, description="optimiser steps of an epoch")
    batch_size: int = Field(64, ge=1, description="windows per optimiser step, summed over all devices")
    lr: float = Field(2e-3, gt=0, description="peak learning rate; published: 1e-2")
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, ge=0, description="gradient norm limit; 0 = off")
    from_start: float = Field(
        0.5, ge=0, le=1, description="share of windows that begin with the history, as every rollout does"
    )
    play_episodes: int = Field(12, ge=1, description="episodes played on validation tasks after each epoch")
    play_copies: int = Field(4, ge=1, description="how often each validation task is played")


class PlayConfig(Config):
    """How a trained model plays."""

    episodes: int = Field(20, ge=1, description="episodes in one context, where the task file says nothing")
    copies: int = Field(1, ge=1, description="how often each task is played, where the file says nothing")
    greedy: bool = Field(False, description="the likeliest action instead of a drawn one")
    plan: Literal["auto", "always", "never"] = Field(
        "auto", description="beam search with the model's own world model; auto: where method is dicp"
    )
    beam: Plan = Plan()
    picture: bool = Field(True, description="paths of some episodes as PNG")
    gif: bool = Field(False, description="first and last episode of the first task as GIF")
    mp4: bool = Field(False, description="the same as MP4; wants imageio-ffmpeg")
    convert: Literal["", "store", "minari"] = Field(
        "",
        description="write histories (a store, DICP's file, a Minari dataset) in this form; nothing is played",
    )


class EvaluateConfig(Config):
    episodes: int = Field(40, ge=2, description="episodes in one context")
    copies: int = Field(10, ge=1, description="how often each task is played with each seed")
    seeds: int = Field(5, ge=1, description="seeds of the drawn actions; the band is over them")
    tasks: int = Field(64, ge=1, description="held-out tasks at most, evenly spaced")


class IcrlConfig(RunConfig):
    data: IcrlDataConfig = IcrlDataConfig()
    model: ModelConfig = ModelConfig()
    filter: FilterConfig = FilterConfig()
    train: IcrlTrainConfig = IcrlTrainConfig()
    predict: PlayConfig = PlayConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _together(self) -> IcrlConfig:
        if self.predict.plan == "always" and not self.model.world:
            raise ValueError(
                "predict.plan: always; a world model wanted: model.method dicp or model.dynamics true"
            )
        data = self.data
        if data.path is None and (why := refusal(data.collector, data.env)):
            raise ValueError(f"data.collector: {why}")
        return self


def refuse_unused(config: IcrlConfig, sets: Sequence[str]) -> None:
    """Raises `UsageError` where a setting of collecting is given beside a store. A preset's may be left over, so that
    only what ``--set`` says counts."""
    given = {key for text in sets for key in nested(*parse_set(text)).get("data") or {}}
    if odd := [key for key in config.data.unused if key in given]:
        raise UsageError(
            f"--set data.{odd[0]}: {config.data.path} is given, and nothing is collected; a store's histories are "
            "taken as they are; leave it out"
        )
