"""Memory tasks with an answer a position: associative recall and selective copying."""

from __future__ import annotations

import random

import numpy as np

from shared.bench.sample import IGNORED, Split, some

MQAR_VOCABULARY = 64
COPY_VOCABULARY = 16


def mqar(count: int, seed: int, *, length: int = 64, pairs: int = 4, power: float = 0.01) -> Split:
    """Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927).

    First `pairs` keys, each followed by its value; later every key once more, at gaps drawn from the paper's power law,
    where its value is to be said. Token 0 fills; keys are 1 … 31, values 32 … 63. The published task fills with random
    tokens of a vocabulary of 8,192; among 64 they would make false pairs.
    """
    rng = random.Random(f"mqar {seed}")
    half, start = MQAR_VOCABULARY // 2, 2 * pairs
    x = np.zeros((count, length), np.int64)
    y = np.full((count, length), IGNORED, np.int64)
    weights = [power * (at + 1) ** (power - 1) for at in range((length - start) // 2)]
    for row in range(count):
        keys = [1 + k for k in some(pairs, half - 1, rng)]
        values = [half + v for v in some(pairs, half, rng)]
        x[row, 0:start:2], x[row, 1:start:2] = keys, values
        for key, value, gap in zip(keys, values, _weighted(weights, pairs, rng)):
            x[row, start + 2 * gap], y[row, start + 2 * gap] = key, value - half
    return Split(x, y)


def selective_copy(count: int, seed: int, *, length: int = 256, items: int = 16) -> Split:
    """Selective copying (Gu and Dao 2023, arXiv 2312.00752, section 4.1.1).

    `items` letters (tokens 2 … 15) lie at random places among blanks (0); at the `items` markers (1) at the end they
    are to be said in order.
    """
    rng = random.Random(f"selective-copy {seed}")
    letters, context = COPY_VOCABULARY - 2, length - items
    x = np.zeros((count, length), np.int64)
    y = np.full((count, length), IGNORED, np.int64)
    x[:, context:] = 1
    for row in range(count):
        drawn = [int(rng.random() * letters) for _ in range(items)]
        x[row, sorted(some(items, context, rng))] = [2 + letter for letter in drawn]
        y[row, context:] = drawn
    return Split(x, y)


def _weighted(weights: list[float], count: int, rng: random.Random) -> list[int]:
    """`count` different places, one after the other by weight among those left."""
    left, chosen = list(weights), []
    for _ in range(count):
        mark = rng.random() * sum(left)
        at = 0
        while at + 1 < len(left) and (mark := mark - left[at]) >= 0:
            at += 1
        while left[at] == 0:  # rounding may stop on one that is gone
            at -= 1
        left[at] = 0
        chosen.append(at)
    return chosen
