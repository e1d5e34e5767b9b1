"""Which tokens see which in neighbourhood attention, as tables of places, and how tiles of them are attended to.

Along one axis of s tokens with dilation δ the tokens fall into δ residue classes; a token at place p of its class of m
tokens sees the k places from clamp(p − ⌊k/2⌋, 0, m − k): always k of them, at a border those nearest to it. The causal
rule is p − k + 1 … p instead, cut at the first token. On n axes a token sees the product of what it sees along each.
(Hassani et al. 2023, arXiv 2204.07143, section 3; Hassani and Shi 2022, arXiv 2209.15001, section 3.)

Neighbouring queries share most of their keys. A tile of t queries along an axis therefore takes one run of t + k − 1
keys (of its class), dense attention with a mask does the rest, and no token's keys are copied k^n times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from shared.nets.layout import Size

Ints = NDArray[np.int64]
NONE = -(2**31)
"""In place of an offset: this query does not see this key."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its rule, and T tiles of t queries and w keys. Places beyond the end of a class repeat its last one."""

    queries: Ints
    """(T, t) places."""
    keys: Ints
    """(T, w) places."""
    offsets: Ints
    """(T, t, w): key − query in steps of δ, or NONE."""
    home: Ints
    """(s,): where each place is among the T · t queries."""


def axis_tables(size: int, kernel: int, dilation: int, tile: int, causal: bool) -> Axis:
    """Of tiles of at most `tile` queries; δ classes one after the other."""
    longest = -(-size // dilation)
    tiles = -(-longest // tile)
    tile = -(-longest // tiles)  # of like sizes
    width = min(tile + kernel - 1, longest)
    rows: list[tuple[Ints, Ints, Ints]] = []
    home = np.zeros(size, np.int64)
    for residue in range(dilation):
        places = np.arange(residue, size, dilation)
        m = len(places)
        for start in range(0, m, tile):
            query = np.arange(start, start + tile)
            first = start - (kernel - 1 if causal else kernel // 2)
            key = np.arange(width) + max(min(first, m - width), 0)
            seen = _first(np.minimum(query, m - 1), m, kernel, causal)[:, None]
            inside = (key >= seen) & (key < seen + kernel) & (key < m)
            offset = key - np.minimum(query, m - 1)[:, None]
            if causal:
                inside &= offset <= 0
            there = query < m
            home[places[query[there]]] = len(rows) * tile + np.flatnonzero(there)
            rows.append(
                (
                    places[np.minimum(query, m - 1)],
                    places[np.minimum(key, m - 1)],
                    np.where(inside, offset, NONE),
                )
            )
    queries, keys, offsets = (np.stack(part) for part in zip(*rows))
    return Axis(queries, keys, offsets, home)


def _first(place: Ints, length: int, kernel: int, causal: bool) -> Ints:
    """The first place seen from each place of a class (below 0 where the causal rule is cut)."""
    if causal:
        return place - kernel + 1
    return np.clip(place - kernel // 2, 0, max(length - kernel, 0))


@dataclass(frozen=True, slots=True)
class Plan:
    """Tables of a whole map of L tokens: N tiles of t queries and w keys (of all axes together). Tiles that look alike,
    as all inside the map do, are of one kind out of K. Integers of 32 bits: a volume has 8 keys a token."""

    queries: Any
    """(N, t) flat places."""
    keys: Any
    """(N, w)."""
    kind: Any
    """(N,)."""
    offsets: Any
    """(K, t, w): index into the table of relative biases, or −1 where the query does not see the key."""
    own: Any
    """(K, t, w) bool: the key is the query itself."""
    home: Any
    """(L,): where each token is among the N · t queries."""

    def on(self, device: torch.device) -> Plan:
        """As tensors."""
        tables = (self.queries, self.keys, self.kind, self.offsets, self.own, self.home)
        return Plan(*(torch.from_numpy(table).to(device) for table in tables))


@lru_cache(maxsize=32)
def plan_of(
    size: Size,
    kernel: Size,
    dilation: Size,
    tile: Size,
    table: Size,
    causal: bool,
) -> Plan:
    """`table`: the kernel for whose offsets the bias was made (a small map uses the middle of it). Kept for the next
    map of this size, as arrays: a tensor made while tracing or predicting would not serve the next caller."""
    axes = [axis_tables(*one, causal) for one in zip(size, kernel, dilation, tile)]
    kinds = [np.unique(axis.offsets, axis=0, return_inverse=True) for axis in axes]
    bias: NDArray[Any] = np.zeros((1, 1, 1), np.int64)
    own: NDArray[Any] = np.ones((1, 1, 1), bool)
    for (patterns, _), k in zip(kinds, table):
        seen = patterns != NONE
        index = np.where(seen, patterns + k - 1, 0)
        combined = _outer(bias, np.ones_like(index)) * (k if causal else 2 * k - 1) + _outer(
            np.ones_like(bias), index
        )
        bias = np.where(_outer(bias >= 0, seen), combined, -1)
        own = _outer(own, patterns == 0)
    tables = (
        _flat([axis.queries for axis in axes], size),
        _flat([axis.keys for axis in axes], size),
        _flat([inverse.reshape(-1, 1) for _, inverse in kinds], [len(p) for p, _ in kinds])[:, 0],
        bias,
        own,
        _home(axes),
    )
    return Plan(*(_small(table) for table in tables))


def _small(table: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(table if table.dtype == bool else table.astype(np.int32))


def _outer(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """(N, t, w) and (M, u, x) → (N·M, t·u, w·x), the product of every pair."""
    out: NDArray[Any] = a[:, None, :, None, :, None] * b[None, :, None, :, None, :]
    return out.reshape(len(a) * len(b), a.shape[1] * b.shape[1], a.shape[2] * b.shape[2])


def _flat(places: Sequence[Ints], size: Sequence[int]) -> Ints:
    """(Tₐ, tₐ) places along each axis → (ΠTₐ, Πtₐ) flat places of a map of `size`."""
    flat = np.zeros((1, 1), np.int64)
    for axis, n in zip(places, size):
        flat = (flat[:, None, :, None] * n + axis[None, :, None, :]).reshape(
            len(flat) * len(axis), flat.shape[1] * axis.shape[1]
        )
    return flat


def _home(axes: Sequence[Axis]) -> Ints:
    """(L,): tile · t + slot of every token, row order."""
    tile, slot = np.zeros(1, np.int64), np.zeros(1, np.int64)
    for axis in axes:
        tiles, width = axis.queries.shape
        tile = (tile[:, None] * tiles + axis.home // width).ravel()
        slot = (slot[:, None] * width + axis.home % width).ravel()
    return tile * math.prod(axis.queries.shape[1] for axis in axes) + slot


@dataclass(frozen=True, slots=True)
class Limits:
    """Scores at a time."""

    cached: int
    """Of a forward pass on a CPU: what its cache holds."""
    scores: int
    """Otherwise. Under autograd every part costs a gradient of the whole map: fewer and larger ones are faster."""
    kept: int
    """Of a whole map: more than these are made again in the backward pass."""

    def step(self, tiles: int, each: int, q: Tensor) -> tuple[int, bool]:
        """Tiles of `each` scores in one part, and whether the parts are made again."""
        trained = torch.is_grad_enabled()
        step = max(1, (self.cached if q.device.type == "cpu" and not trained else self.scores) // each)
        return step, trained and tiles > step and tiles * each > self.kept


def attend_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Plan,
    table: Tensor | None,
    valid: Tensor | None,
    *,
    limits: Limits,
    dropout: float = 0.0,
) -> Tensor:
    """q, k, v (B, L, H, d), plan as tensors, table (H, offsets), valid (B, L) → (B, L, H, d).

    Tiles are the batch of the attention kernel, images and heads its heads, so that what every image shares is not
    repeated. Beyond `limits` tiles go in parts.
    """
    images, length, heads, width = q.shape
    tiles, t = plan.queries.shape
    step, again = limits.step(tiles, images * heads * t * plan.keys.shape[1], q)
    q, k, v = (x.transpose(0, 1).reshape(length, images * heads, width) for x in (q, k, v))
    looks = _looks(plan, table, q)
    parts: list[Tensor] = []
    for at in range(0, tiles, step):
        given = (slice(at, at + step), plan, q, k, v, looks, valid, dropout)
        parts.append(checkpoint(_part, *given, use_reentrant=False) if again else _part(*given))
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    return mixed.index_select(0, plan.home).view(length, images, heads, width).transpose(0, 1)


def _part(
    part: slice,
    plan: Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    looks: Tensor,
    valid: Tensor | None,
    dropout: float,
) -> Tensor:
    """Some of the tiles; q, k, v (L, B · H, d) → (tiles · t, B · H, d)."""
    rows, cols = plan.queries[part], plan.keys[part]
    tq, tk, tv = (
        x.index_select(0, i.flatten()).unflatten(0, i.shape).transpose(1, 2)
        for x, i in zip((q, k, v), (rows, cols, cols))
    )
    bias = looks.index_select(0, plan.kind[part])  # (tiles, H or 1, t, w)
    if valid is not None:
        bias = _without(bias, valid, plan, part, q.shape[1] // len(valid))
    elif bias.shape[1] > 1:
        bias = bias.repeat(1, q.shape[1] // bias.shape[1], 1, 1)
    seen = F.scaled_dot_product_attention(tq, tk, tv, attn_mask=bias, dropout_p=dropout)
    return seen.transpose(1, 2).flatten(0, 1)


def _looks(plan: Plan, table: Tensor | None, like: Tensor) -> Tensor:
    """What each kind of tile adds to its scores: the bias, −∞ where nothing is seen; (K, H or 1, t, w)."""
    unseen = (plan.offsets < 0)[:, None]
    if table is None:
        return torch.zeros(unseen.shape, dtype=like.dtype, device=like.device).masked_fill(
            unseen, float("-inf")
        )
    at = plan.offsets.clamp(min=0)
    bias = table.index_select(1, at.flatten()).view(-1, *at.shape).transpose(0, 1).contiguous()
    return bias.to(like.dtype).masked_fill(unseen, float("-inf"))


def _without(bias: Tensor, valid: Tensor, plan: Plan, part: slice, heads: int) -> Tensor:
    """−∞ for invalid keys as well, but for a token itself, so that no row is empty; (tiles, B · H, t, w)."""
    there = valid[:, plan.keys[part]].transpose(0, 1)[:, :, None, None]  # (tiles, B, 1, 1, w)
    own = plan.own.index_select(0, plan.kind[part])[:, None, None]  # (tiles, 1, 1, t, w)
    dropped = bias[:, None].masked_fill(~(there | own), float("-inf"))  # (tiles, B, H or 1, t, w)
    return dropped.expand(-1, -1, heads, -1, -1).flatten(1, 2)
