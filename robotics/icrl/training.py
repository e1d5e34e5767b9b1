"""Training a model on learning histories: random windows, AdamW, a cosine after a short rise.

On an NVIDIA GPU a step is recorded once and replayed (CUDA graph): networks of this size otherwise wait for the host.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from robotics.icrl.models import build
from robotics.icrl.models.batch import Arrays, Window
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.incontext import InContext
from robotics.icrl.models.legacy import Legacy
from robotics.icrl.models.spaces import Spaces
from shared.config import Config
from shared.errors import DataInvalid, Diverged, Fault

REPORT_EVERY = 100
"""Steps between two looks at the loss, which on a GPU wait for it."""


class FitConfig(Config):
    """Optimisation. The published recipe: lr 1e-2, batch 512, 50,000 steps, no rise, full windows."""

    steps: int = Field(1500, ge=1)
    batch: int = Field(64, ge=1, description="windows a step")
    lr: float = Field(1e-3, gt=0, description="highest rate")
    rise: float = Field(0.02, ge=0, lt=1, description="share of the steps in which the rate rises from 0")
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    from_start: float = Field(
        0.25, ge=0, le=1, description="share of windows that begin with the history, as every rollout does"
    )
    seconds: float = Field(
        0.0, ge=0, description="stop after so long, the rate falling with time; 0 = no limit"
    )
    graph: bool = Field(True, description="record a step once on a GPU and replay it")
    seed: int = 0


@dataclass
class Trained:
    """Weights on the CPU; per look at the losses their names and values, means since the last look."""

    state_dict: dict[str, Tensor]
    curve: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0


def train(
    arrays: Arrays,
    spaces: Spaces,
    model: ModelConfig,
    fit: FitConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] | None = None,
) -> Trained:
    """Train a fresh network. The same seed gives the same weights on the CPU, unless `seconds` stops it.

    Windows are as long as the model's context, or as the histories if those are shorter (said by `say`; refused for
    `legacy`, whose windows have one length). Raises `DataInvalid`, `UsageError`, and `Diverged` for a loss that is not
    finite.
    """
    fit, say = fit or FitConfig(), say or (lambda _: None)
    length = _length(arrays, model, say)
    place = torch.device(device)
    with torch.random.fork_rng([torch.cuda.current_device()] if place.type == "cuda" else []):
        torch.manual_seed(fit.seed)
        network = build(model, spaces)
        network.fit_scaling(arrays)
        network.to(place).train()
        loop = _Loop(network, arrays.to(place), fit, length)
        return loop.run(say)


def _length(arrays: Arrays, model: ModelConfig, say: Callable[[str], None]) -> int:
    if arrays.steps >= model.context:
        return model.context
    if model.legacy:
        fault = Fault(
            "histories", f"{arrays.steps} steps", f"model.context {model.context} or more", "lower it"
        )
        raise DataInvalid([fault])
    say(f"context {model.context} is longer than the histories: windows of {arrays.steps} steps")
    return arrays.steps


class _Loop:
    def __init__(self, network: InContext | Legacy, arrays: Arrays, fit: FitConfig, length: int) -> None:
        self.network, self.arrays, self.fit, self.length = network, arrays, fit, length
        self.on_gpu = arrays.reward.device.type == "cuda"
        self.rate = torch.zeros((), device=arrays.reward.device) if self.on_gpu else 0.0
        kept = [p for p in network.parameters() if p.ndim < 2]
        rest = [p for p in network.parameters() if p.ndim >= 2]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": kept, "weight_decay": 0.0}]
        if network.config.legacy:
            groups = [{"params": list(network.parameters())}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=fit.lr, betas=(0.9, 0.99), weight_decay=fit.weight_decay, capturable=self.on_gpu
        )
        if self.on_gpu:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
        self.sums: dict[str, Tensor] = {}

    # ------------------------------------------------------------ one step

    def windows(self) -> Window:
        count, device = self.fit.batch, self.arrays.reward.device
        rows = torch.randint(len(self.arrays.reward), (count,), device=device)
        places = self.arrays.steps - self.length + 1
        first = torch.randint(places, (count,), device=device)
        first = first * (torch.rand(count, device=device) >= self.fit.from_start)
        return self.arrays.window(rows, first, self.length, self.network.spaces)

    def step(self) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=self.on_gpu, cache_enabled=False):
            found = self.network.losses(self.windows())
        self.optimizer.zero_grad(set_to_none=True)
        found["loss"].backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.fit.clip_norm)
        self.optimizer.step()
        for name, value in found.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros_like(value.detach())
            self.sums[name] += value.detach()

    def set_rate(self, done: float) -> None:
        """`done` in [0, 1): the share of the training that is over."""
        rise = self.fit.rise
        share = done / rise if done < rise else 0.5 + 0.5 * math.cos(math.pi * (done - rise) / (1 - rise))
        if isinstance(self.rate, Tensor):
            self.rate.fill_(self.fit.lr * share)
            return
        for group in self.optimizer.param_groups:
            group["lr"] = self.fit.lr * share

    def recorded(self) -> Callable[[], None]:
        """A step as a CUDA graph, after a few ordinary ones on a side stream at rate 0."""
        self.set_rate(0.0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        for value in self.sums.values():
            value.zero_()
        return graph.replay

    # ------------------------------------------------------------ all steps

    def run(self, say: Callable[[str], None]) -> Trained:
        began, curve, done, seen, spent = time.monotonic(), [], 0, 0, 0.0
        step = self.recorded() if self.on_gpu and self.fit.graph else self.step
        while done < self.fit.steps and not (self.fit.seconds and spent >= self.fit.seconds):
            share = done / self.fit.steps
            if self.fit.seconds:
                share = max(share, spent / self.fit.seconds)
            self.set_rate(min(share + 1e-9 if self.fit.rise else share, 1.0))
            step()
            done += 1
            if done % REPORT_EVERY == 0 or done == self.fit.steps:
                curve.append(self._look(done, done - seen))
                seen = done
                say(f"step {done}: " + ", ".join(f"{k} {v:.4g}" for k, v in curve[-1].items() if k != "step"))
            spent = time.monotonic() - began
        weights = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        return Trained(weights, curve, done, time.monotonic() - began)

    def _look(self, done: int, since: int) -> dict[str, float]:
        """Means since the last look. Raises `Diverged`."""
        means = {name: float(value) / since for name, value in self.sums.items()}
        for value in self.sums.values():
            value.zero_()
        if not math.isfinite(means["loss"]):
            raise Diverged(
                f"train: loss {means['loss']} in steps to {done}; finite ones wanted; lower the rate"
            )
        return {"step": float(done), **means}
