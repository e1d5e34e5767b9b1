"""ListOps (Nangia and Bowman 2018, arXiv 1804.06028) as in Long Range Arena (Tay et al. 2020, arXiv 2011.04006), short.

``[MAX 2 9 [MIN 4 7 ] 0 ]`` → 9. Operators MIN, MAX, MED (median, truncated) and SM (sum modulo 10). A node is a digit
when it lies at the greatest depth or when u > 0.25, else an operator with 2 to `args` arguments. Expressions outside
the wanted lengths are drawn again, as in the published generator; classes are balanced, which the published ones are
not (the bare MIN and MAX make 0 and 9 frequent).
"""

from __future__ import annotations

import random
from collections import deque

import numpy as np

from shared.bench.sample import Split, shuffled_blocks

PAD, CLOSE = 0, 15
DIGIT = 1
"""Token of the digit 0; 1 … 10 are digits."""
OPERATORS = ("MIN", "MAX", "MED", "SM")
FIRST_OPERATOR = 11
VOCABULARY = 16
DIGIT_ABOVE = 0.25


def make(
    count: int, seed: int, *, shortest: int = 32, longest: int = 128, depth: int = 5, args: int = 5
) -> Split:
    """`count` expressions, padded to `longest` tokens; every ten in a row have the ten answers."""
    rng = random.Random(seed)
    waiting: list[deque[list[int]]] = [deque() for _ in range(10)]
    x, y = np.zeros((count, longest), np.int64), shuffled_blocks(count, 10, seed)
    for row, wanted in enumerate(y):
        while not waiting[wanted]:
            tokens, value = _operator(rng, 1, depth, args)
            if shortest <= len(tokens) <= longest:
                waiting[value].append(tokens)
        tokens = waiting[wanted].popleft()
        x[row, : len(tokens)] = tokens
    return Split(x, y)


def _node(rng: random.Random, level: int, depth: int, args: int) -> tuple[list[int], int]:
    """Tokens and value of one node; the root is level 1."""
    if level < depth and rng.random() <= DIGIT_ABOVE:
        return _operator(rng, level, depth, args)
    digit = int(rng.random() * 10)
    return [DIGIT + digit], digit


def _operator(rng: random.Random, level: int, depth: int, args: int) -> tuple[list[int], int]:
    """An operator node. The root is always one: a lone digit is shorter than any length wanted."""
    count = 2 + int(rng.random() * (args - 1))
    children = [_node(rng, level + 1, depth, args) for _ in range(count)]
    operator = int(rng.random() * len(OPERATORS))
    tokens = [FIRST_OPERATOR + operator, *(token for part, _ in children for token in part), CLOSE]
    return tokens, _apply(OPERATORS[operator], [value for _, value in children])


def _apply(operator: str, values: list[int]) -> int:
    if operator == "MIN":
        return min(values)
    if operator == "MAX":
        return max(values)
    if operator == "SM":
        return sum(values) % 10
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
