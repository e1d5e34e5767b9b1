"""Do two strings share a key? After the document matching of Long Range Arena (arXiv 2011.04006), generated.

A string of bytes (lower-case letters) is noise of the letters e–z in which keys lie: words of four bytes, each an order
of the letters a, b, c, d. Two strings match when they have one key in common among the others; else all keys differ.
Every string has the same number of each key letter, so a bag of tokens knows nothing; the order inside a key is all.
"""

from __future__ import annotations

import random
from itertools import permutations

import numpy as np

from shared.bench.sample import Split, shuffled_blocks, some

KEYS = tuple(permutations(range(4)))
"""24 words over the tokens 0 … 3 (a … d)."""
VOCABULARY = 26


def make(count: int, seed: int, *, length: int = 256, keys: int = 3) -> Split:
    """`count` pairs (2, length) of tokens; every two in a row have both classes (1: a key is shared)."""
    rng = random.Random(f"retrieval {seed}")
    y = shuffled_blocks(count, 2, seed)
    x = np.empty((count, 2, length), np.int64)
    for row, shared in enumerate(y):
        drawn = some(2 * keys, len(KEYS), rng)
        left, right = drawn[:keys], drawn[keys:]
        if shared:
            right[0] = left[0]
        x[row, 0], x[row, 1] = _string(left, length, rng), _string(right, length, rng)
    return Split(x, y)


def _string(keys: list[int], length: int, rng: random.Random) -> list[int]:
    """Noise with the keys, in random order, at places that neither overlap nor touch."""
    tokens = [4 + int(rng.random() * (VOCABULARY - 4)) for _ in range(length)]
    slots = length // 5  # four bytes and at least one of noise
    for key, slot in zip(keys, some(len(keys), slots, rng)):
        tokens[5 * slot : 5 * slot + 4] = KEYS[key]
    return tokens
