"""Pathfinder (Linsley et al. 2018, arXiv 1805.08315; in Long Range Arena, arXiv 2011.04006) at 16 × 16 pixels, read
pixel by pixel: are the two dots the ends of the same dashed curve?

Every image has two main curves of the same length and up to two shorter ones; curves are random walks that keep
`GAP` pixels from each other, so that dots are joined exactly when steps of at most two pixels lead from one to the
other. Only the choice of the dots tells the classes apart: both ends of one main curve, or one end of each. A bag of
pixels knows nothing.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray

from shared.bench.sample import Split, shuffled_blocks

CURVE, DOT = 0.5, 1.0
DASH = (True, True, False)
"""Two pixels drawn, one left out; ends are always drawn."""
GAP = 3
"""Chebyshev distance of pixels of different curves."""
STRAIGHT = 0.6
"""Share of steps that keep the direction; the others turn left or right."""
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))
Curve = list[tuple[int, int]]


def make(count: int, seed: int, *, side: int = 16, main: tuple[int, int] = (8, 13), short: int = 6) -> Split:
    """`count` images as rows of side² values in {0, `CURVE`, `DOT`}; every two in a row have both classes (1: joined).

    Main curves have `main[0]` … `main[1]` pixels, the others `short`.
    """
    rng = random.Random(f"pathfinder {seed}")
    y = shuffled_blocks(count, 2, seed)
    x = np.zeros((count, side, side), np.float32)
    for row, joined in enumerate(y):
        length = main[0] + int(rng.random() * (main[1] - main[0] + 1))
        curves = _curves(rng, side, [length, length], short)
        for curve in curves:
            for at, pixel in enumerate(curve):
                if DASH[at % len(DASH)] or at + 1 == len(curve):
                    x[row][pixel] = CURVE
        first = curves[0]
        x[row][first[0]] = x[row][first[-1] if joined else curves[1][0]] = DOT
    return Split(x.reshape(count, side * side), y)


def _curves(rng: random.Random, side: int, lengths: list[int], short: int) -> list[Curve]:
    """The main curves, then none to two of `short` pixels where there is room."""
    while True:
        taken = np.zeros((side, side), bool)
        curves: list[Curve] = []
        for length in lengths:
            curve = _place(rng, taken, length, tries=20)
            if curve is None:
                break
            curves.append(curve)
        if len(curves) < len(lengths):
            continue
        for _ in range(int(rng.random() * 3)):
            curve = _place(rng, taken, short, tries=4)
            if curve is not None:
                curves.append(curve)
        return curves


def _place(rng: random.Random, taken: NDArray[np.bool_], length: int, tries: int) -> Curve | None:
    """A walk through free pixels; what lies too near it is `taken` afterwards. None after `tries` failures."""
    for _ in range(tries):
        curve = _walk(rng, taken, length)
        if curve is None:
            continue
        reach = GAP - 1
        for row, column in curve:
            taken[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = True
        return curve
    return None


def _walk(rng: random.Random, taken: NDArray[np.bool_], length: int) -> Curve | None:
    """`length` pixels, each beside the one before, none twice and none touching an earlier part of the walk."""
    side = len(taken)
    pixel = (int(rng.random() * side), int(rng.random() * side))
    heading = int(rng.random() * 4)
    curve: Curve = []
    while not taken[pixel]:
        curve.append(pixel)
        if len(curve) == length:
            return curve
        draw = rng.random()
        heading = (heading + (0 if draw < STRAIGHT else 1 if draw < (1 + STRAIGHT) / 2 else 3)) % 4
        pixel = (pixel[0] + STEPS[heading][0], pixel[1] + STEPS[heading][1])
        if not (0 <= pixel[0] < side and 0 <= pixel[1] < side):
            return None
        if any(abs(pixel[0] - r) + abs(pixel[1] - c) <= 1 for r, c in curve[:-1]):
            return None
    return None
