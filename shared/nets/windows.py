"""How a map is cut into (shifted) windows: which token stands where, and which windows need which mask.

All of it depends on sizes alone and is kept as NumPy arrays, which tracing (`torch.export`, meta tensors) cannot spoil.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.nets.layout import Size

_FILLING = 2
"""Label of positions behind the end of the map; 0 and 1 are before and behind the seam."""


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive windows [start, stop) that seam and filling cross in the same way."""

    start: int
    stop: int
    allowed: Any
    """(N, N) bool, which token (row) may see which; None = all see all."""


@dataclass(frozen=True, slots=True)
class Windows:
    """The cut of one map of `tokens` tokens into windows of `length` = N tokens."""

    window: Size
    tokens: int
    length: int
    groups: tuple[Group, ...]
    places: Any
    """(windows, N) int64: the token at each place; `tokens` where the filling stands."""
    back: Any
    """(tokens,) int64: the place of each token."""

    def rows(self, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Row indices for a batch: of (batch · tokens) rows into (windows · batch · N), window by window, and back.
        The filling repeats the last token; it is masked."""
        places = torch.from_numpy(np.minimum(self.places, self.tokens - 1)).to(device)
        back = torch.from_numpy(self.back).to(device)
        image = torch.arange(batch, device=device)[:, None]
        window = back // self.length
        there = places[:, None] + image * self.tokens
        return there.flatten(), (back + window * (batch - 1) * self.length + image * self.length).flatten()


@lru_cache(maxsize=64)
def windows_of(size: Size, window: Size, shift: Size) -> Windows:
    """The cut of a map after a cyclic move by −shift; it is filled at the end of each axis to whole windows."""
    axes = [_axis(*three) for three in zip(size, window, shift)]
    strides = [math.prod(size[a + 1 :]) for a in range(len(size))]
    places, groups, done, total = [], [], 0, math.prod(size)
    for runs in product(*(_runs(labels) for _, labels in axes)):
        parts = [at[start:stop] for (at, _), (start, stop) in zip(axes, runs)]
        marks = [labels[start] for (_, labels), (start, _) in zip(axes, runs)]
        place = _outer([part * stride for part, stride in zip(parts, strides)])
        filling = _outer(
            [np.broadcast_to(m == _FILLING, p.shape).astype(np.int64) for m, p in zip(marks, parts)]
        )
        code = _outer([mark[None] * 3**a for a, mark in enumerate(marks)])[0]
        places.append(np.where(filling > 0, total, place))
        allowed = None if (code == code[0]).all() else code[:, None] == code[None]
        groups.append(Group(done, done + len(place), allowed))
        done += len(place)
    joined = np.concatenate(places)
    back = np.empty(total + 1, np.int64)
    back[joined.reshape(-1)] = np.arange(joined.size)
    return Windows(window, total, math.prod(window), tuple(groups), joined, back[:-1].copy())


def _axis(size: int, window: int, shift: int) -> tuple[Any, Any]:
    """Positions and labels along one axis, both (windows, window)."""
    filled = -(-size // window) * window
    at = (np.arange(filled) + shift) % filled
    labels = np.where(at >= size, _FILLING, (np.arange(filled) >= filled - shift).astype(np.int64))
    return at.reshape(-1, window), labels.reshape(-1, window)


def _runs(labels: Any) -> list[tuple[int, int]]:
    """Spans of consecutive windows with the same labels."""
    new = (labels[1:] != labels[:-1]).any(1)
    bounds = [0, *(np.flatnonzero(new) + 1).tolist(), len(labels)]
    return list(pairwise(bounds))


def _outer(parts: Sequence[Any]) -> Any:
    """The sum over axes of (windows_a, window_a), for every combination: (∏ windows, ∏ window)."""
    n, total = len(parts), 0
    for a, part in enumerate(parts):
        shape = [1] * (2 * n)
        shape[a], shape[n + a] = part.shape
        total = total + part.reshape(shape)
    counts = math.prod(part.shape[0] for part in parts)
    return np.ascontiguousarray(total).reshape(counts, -1)  # type: ignore[call-overload]


@lru_cache(maxsize=64)
def relative_index(window: Size, table: Size) -> Any:
    """(N²,) int64: for every query and key of a window the entry of a table made for windows of `table`."""
    strides = [math.prod(2 * w - 1 for w in table[a + 1 :]) for a in range(len(table))]
    at = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), -1).reshape(-1, len(window))
    offset = at[:, None] - at[None] + np.array(table) - 1
    return np.ascontiguousarray((offset * np.array(strides)).sum(-1).reshape(-1))
