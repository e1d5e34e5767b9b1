"""Which model, and how large."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from shared.config import Config

Method = Literal["ad", "dpt", "dicp", "dt"]
METHODS: dict[str, str] = {
    "ad": "Algorithm Distillation, Laskin et al. 2022, arXiv 2210.14215",
    "dpt": "Decision-Pretrained Transformer, Lee et al. 2023, arXiv 2306.14892",
    "dicp": "Distillation for In-Context Planning, Son et al. 2025, arXiv 2502.19009",
    "dt": "Decision Transformer, Chen et al. 2021, arXiv 2106.01345",
}


class ModelConfig(Config):
    """The switch between the methods, and the network they share."""

    method: Method = Field("ad", description="; ".join(f"{name}: {paper}" for name, paper in METHODS.items()))
    legacy: bool = Field(
        False, description="the published tokens of AD, DPT and DICP on grids, one loss a window"
    )
    dynamics: bool = Field(False, description="also predict reward and next observation; always so for dicp")
    dynamics_strength: float = Field(1.0, ge=0, description="weight of those losses")
    dim: int = Field(32, ge=1)
    depth: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    inner: int = Field(128, ge=1, description="hidden width of the channel mixer")
    mixer: str | dict[str, Any] = Field("rotary", description="any causal mixer of `pipelines zoo`")
    context: int = Field(200, ge=2, description="steps the model sees at most; 80 in the published Darkroom")
    keep: int = Field(0, ge=0, description="steps kept when the context is full; 0 = half of them")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="of what each branch adds; legacy: of each norm's input, published 0.1"
    )
    embed_dropout: float = Field(0.05, ge=0, lt=1, description="of the tokens")
    attention_dropout: float = Field(
        0.0, ge=0, lt=1, description="where the mixer has one; published 0.1; slow on a CPU"
    )

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.keep >= self.context:
            raise ValueError(f"keep {self.keep} of a context of {self.context}; less wanted")
        if self.legacy and self.method == "dt":
            raise ValueError("legacy has ad, dpt and dicp; method dt has none; set legacy: false")
        return self

    @property
    def kept(self) -> int:
        return self.keep or self.context // 2

    @property
    def world(self) -> bool:
        """Whether the network has a world model."""
        return self.dynamics or self.method == "dicp"


class Plan(Config):
    """How far and how wide `planning` looks.

    Published: width 10; depth grid − 1 in Darkroom, twice that elsewhere; only once the context is full (`legacy`
    models wait for that). Deeper than a few steps a beam finds rewards that a small world model makes up. Reals:
    `samples` actions, the one of highest predicted reward.
    """

    width: int = Field(5, ge=1, description="beams kept")
    depth: int = Field(4, ge=1, description="steps looked ahead at most")
    samples: int = Field(10, ge=1, description="real actions tried, the policy's mean first")
