"""scikit-learn's handwritten digits (8 × 8, Alpaydin and Kaynak 1998), read pixel by pixel."""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from shared.bench.sample import Split

TEST = 540


def make(count: int, part: int, *, side: int = 8) -> Split:
    """The first `count` of the 1,257 images of part 0 (to learn from) or the 540 of part 1, values 0 … 1, rows after
    each other. `side` (a multiple of 8) repeats pixels: 16 gives 256 tokens, 32 gives 1,024."""
    images, classes = _parts()[part]
    repeats = side // 8
    larger = images[:count].repeat(repeats, 1).repeat(repeats, 2)
    return Split(larger.reshape(len(larger), -1), classes[:count])


@cache
def _parts() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Split once, stratified, seed 0."""
    found = load_digits()
    images = (found.images / 16).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, found.target.astype(np.int64), test_size=TEST, stratify=found.target, random_state=0
    )
    return (train_x, train_y), (test_x, test_y)
