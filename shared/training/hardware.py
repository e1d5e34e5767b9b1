"""From the configuration to Lightning's accelerator, strategy and precision; says early what this machine lacks."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch

from shared.config import TrainConfig
from shared.errors import EnvironmentUnfit, UsageError

PEER_SECONDS = 120
"""How long a process waits for the others in one exchange before it gives up."""


def on_gpu(train: TrainConfig) -> bool:
    """Whether the configuration means GPUs on this machine."""
    return train.accelerator == "gpu" or (train.accelerator == "auto" and torch.cuda.is_available())


def require(train: TrainConfig) -> None:
    """Raise unless this machine can train as asked; called before any data is read.

    Raises `EnvironmentUnfit` for a missing GPU, `UsageError` for parts that do not go together.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if train.accelerator == "gpu" and not found:
        raise EnvironmentUnfit(
            "configuration:train.accelerator: 'gpu', but torch sees no GPU here; a CUDA build and a driver wanted; "
            "run `pipelines doctor`, or set train.accelerator=cpu"
        )
    if on_gpu(train) and train.devices > found:
        raise EnvironmentUnfit(
            f"configuration:train.devices: {train.devices} GPUs asked for, {found} found; at most that many wanted; "
            f"set train.devices={found} or train.accelerator=cpu"
        )
    if train.strategy == "fsdp" and not on_gpu(train):
        raise EnvironmentUnfit(
            "configuration:train.strategy: 'fsdp' on the CPU; GPUs wanted; set train.strategy=ddp"
        )
    if train.strategy == "fsdp" and train.ema_decay:
        raise UsageError(
            "configuration:train.ema_decay: not with train.strategy=fsdp, whose weights lie in pieces; "
            "0 wanted; set train.ema_decay=0 or train.strategy=ddp"
        )
    if train.strategy == "fsdp" and train.clip_norm:
        raise UsageError(
            "configuration:train.clip_norm: not with train.strategy=fsdp, whose gradients lie in pieces; "
            "0 wanted; set train.clip_norm=0 or train.strategy=ddp"
        )


def world_size(train: TrainConfig) -> int:
    """Processes that train together."""
    return train.devices * train.num_nodes


def trainer_arguments(train: TrainConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """The Trainer's arguments that depend on hardware."""
    gpu = on_gpu(train)
    precision = train.precision
    if precision == "16-mixed" and not gpu:
        say("train.precision=16-mixed needs a GPU; using bf16-mixed on the CPU")
        precision = "bf16-mixed"
    return {
        "accelerator": "gpu" if gpu else "cpu",
        "devices": train.devices,
        "num_nodes": train.num_nodes,
        "precision": precision,
        "strategy": _strategy(train, gpu),
    }


def _strategy(train: TrainConfig, gpu: bool) -> Any:
    from pytorch_lightning.strategies import DDPStrategy

    backend, timeout = ("nccl" if gpu else "gloo"), timedelta(seconds=PEER_SECONDS)
    if train.strategy == "fsdp":
        from shared.training.sharded import VerifiedFsdp

        return VerifiedFsdp(process_group_backend=backend, timeout=timeout)
    if world_size(train) == 1:
        return "auto"
    if gpu:
        # Without it a process whose peer died would wait for ever inside the GPU's queue.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    return DDPStrategy(process_group_backend=backend, timeout=timeout)
