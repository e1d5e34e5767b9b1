"""What a generated task hands out, and the tools its generators share."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""Target of a position that is not asked about; torch's `cross_entropy` leaves it out."""


@dataclass(frozen=True)
class Split:
    """Samples and answers. Order and content of the first n do not depend on how many are drawn."""

    x: NDArray[Any]
    """(N, L) tokens as int64 or values as float32; (N, 2, L) for pairs."""
    y: NDArray[np.int64]
    """(N,) classes, or (N, L) with `IGNORED` where nothing is asked."""

    def __len__(self) -> int:
        return len(self.y)

    def digest(self, count: int = 1000) -> str:
        """SHA-256 of the first `count` samples (values in steps of 1/256): is it the same task?"""
        found = hashlib.sha256()
        x = self.x[:count]
        x = np.round(x * 256) if x.dtype.kind == "f" else x
        for array in (x, self.y[:count]):
            found.update(np.ascontiguousarray(array, "<i2").tobytes())
        return found.hexdigest()


def shuffled_blocks(count: int, classes: int, seed: int) -> NDArray[np.int64]:
    """`count` classes, every `classes` in a row each of them once, in random order (a stream of its own)."""
    rng = random.Random(f"classes {seed}")
    blocks = -(-count // classes)
    return np.array([c for _ in range(blocks) for c in permutation(classes, rng)][:count], np.int64)


def permutation(count: int, rng: random.Random) -> list[int]:
    """Fisher and Yates by `rng.random` alone, the one method that Python promises to keep."""
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        at = int(rng.random() * (last + 1))
        order[last], order[at] = order[at], order[last]
    return order


def some(count: int, among: int, rng: random.Random) -> list[int]:
    """`count` different numbers below `among`, in random order."""
    return permutation(among, rng)[:count]
