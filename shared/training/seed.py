"""One seed for everything, random states that can be stored as plain data, and the hash that proves equality."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int, threads: int = 0) -> None:
    """Seed python, numpy and torch (all devices); with `threads` > 0 fix the CPU threads as well.

    The thread count is part of bit-exactness: sums are split differently by 1 and 2 threads. 0 keeps torch's choice.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if threads > 0:
        torch.set_num_threads(threads)
        # Processes that this one starts (helpers of a distributed run) take the count from here.
        os.environ["OMP_NUM_THREADS"] = str(threads)


def rng_state() -> dict[str, Any]:
    """The random states of python, numpy and torch as tensors, numbers and lists."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Continue every generator where `rng_state` saw it."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed python, numpy and torch (CPU) inside the block; outside they go on as if nothing had happened."""
    outside = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(outside[0])
        np.random.set_state(outside[1])
        torch.set_rng_state(outside[2])


def state_sha(state: Mapping[str, Any]) -> str:
    """sha256 (hex) over all tensors of a state dict in sorted key order: names, types, shapes and bytes.

    Nested mappings and sequences are walked; numbers count too. Two runs are equal when this is equal.
    """
    digest = hashlib.sha256()
    _digest(state, "", digest)
    return digest.hexdigest()


def _digest(value: Any, name: str, digest: Any) -> None:
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous()
        digest.update(f"{name}|{raw.dtype}|{tuple(raw.shape)}|".encode())
        digest.update(raw.reshape(-1).view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            _digest(value[key], f"{name}/{key}", digest)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _digest(item, f"{name}/{i}", digest)
    else:
        digest.update(f"{name}|{value!r}|".encode())
