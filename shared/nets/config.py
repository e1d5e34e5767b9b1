"""The configuration of a backbone: what a YAML file, a dictionary or a named network says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from shared.config import Config, read_yaml

Part = str | dict[str, Any]
"""A name, or a mapping with `name` and the part's own options."""


class BackboneConfig(Config):
    """Stem, stages of blocks, downsampling between stages, head. Lists have one entry a stage; a single entry serves
    all stages."""

    stem: Part = Field("patch", description="from the input to tokens")
    position: Part = Field("none", description="added once after the stem: none, sine, learned, conv")
    dims: list[int] = Field(description="channels of each stage")
    depths: list[int] = Field(description="blocks of each stage")
    mixers: list[Part | list[Part]] = Field(
        description="token mixer of each stage; a list alternates inside it"
    )
    ffn: Part | list[Part | None] | None = Field("mlp", description="channel mixer; null = none")
    norm: Part | list[Part] = Field("layernorm")
    order: Literal["preln", "parallel", "convnext", "renorm", "postnorm", "addnorm"] = Field(
        "preln", description="form of the block"
    )
    down: Part | list[Part] = Field("conv", description="between stages; one entry fewer than stages")
    block_position: int = Field(
        0, ge=0, description="kernel of a depthwise convolution at each block's start; 0 = none"
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="of the last block; rises linearly from 0")
    branch_dropout: float = Field(0.0, ge=0, lt=1, description="of the values each branch adds to the stream")
    layer_scale: float | list[float | None] | None = Field(
        None, description="start of a factor a channel and branch"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="after the stem and position")
    final_norm: Part = Field("layernorm")
    head: Part = Field("mean", description="pooling before the linear classifier")
    causal: bool = Field(False, description="a token never depends on a later one (one dimension)")
    rewrite: list[Part] = Field([], description="tools applied after building, in order; see shared.rewrite")

    @model_validator(mode="after")
    def _same_lengths(self) -> BackboneConfig:
        stages = len(self.dims)
        if not stages or len(self.depths) != stages:
            raise ValueError(f"dims has {stages} stages, depths {len(self.depths)}; the same number wanted")
        if min(self.dims) < 1 or min(self.depths) < 0:
            raise ValueError("dims ≥ 1 and depths ≥ 0 wanted")
        if any(stage == [] for stage in self.mixers):
            raise ValueError("mixers has an empty list for a stage; one mixer or more wanted")
        if self.block_position and self.block_position % 2 == 0:
            raise ValueError(f"block_position {self.block_position} is even; an odd kernel wanted, or 0")
        for key, wanted in (
            ("mixers", stages),
            ("ffn", stages),
            ("norm", stages),
            ("layer_scale", stages),
            ("down", stages - 1),
        ):
            value = getattr(self, key)
            if isinstance(value, list) and len(value) not in (1, wanted):
                raise ValueError(f"{key} has {len(value)} entries for {wanted}; one, or one each, wanted")
        return self

    def at(self, key: str, stage: int) -> Any:
        """The entry of `key` for one stage."""
        value = getattr(self, key)
        if not isinstance(value, list):
            return value
        return value[stage if len(value) > 1 else 0]


def unwrapped(source: Any) -> Any:
    """A YAML file's content in place of its name; what stands below `backbone`, keys or a name, without it."""
    if isinstance(source, Path) or (isinstance(source, str) and source.endswith((".yaml", ".yml"))):
        source = read_yaml(Path(source))
    inner = source.get("backbone") if isinstance(source, Mapping) and len(source) == 1 else None
    if isinstance(inner, str):
        return inner
    return dict(inner) if isinstance(inner, Mapping) else source


BackboneSource = Annotated[str | dict[str, Any], BeforeValidator(unwrapped)]
"""For a pipeline's configuration: a name, a mapping, or a YAML file, which is read at once so that the run's own
configuration says everything."""
