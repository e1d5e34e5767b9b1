"""The network's voxel grid of a case, and the way back to the case's own, slab by slab.

Forward: normalise over non-zero voxels at native resolution, turn to the wanted axes, resample if a spacing is asked.
Back: logits are interpolated (linear, axis by axis) as they come from the stream, so that no stack of probability
maps of the whole case ever exists unless it is asked for. Both grids share their axes up to order, sign and scale.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Triple = tuple[int, int, int]
Affine = NDArray[np.float64]
_SNAP = 1e-3
"""Fraction of a voxel below which a position is taken as exact: no reason to interpolate."""


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: voxel index → mm by `affine` (4, 4)."""

    shape: Triple
    affine: Affine


def normalise(channel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero mean and unit (population) deviation over voxels ≠ 0, zeros stay; a constant channel becomes 0.

    Done in place: `channel` (D, H, W) is returned.
    """
    inside = channel != 0
    values = channel[inside].astype(np.float64)
    deviation = values.std() if values.size else 0.0
    channel[inside] = (values - values.mean()) / deviation if deviation > 0 else 0.0
    return channel


def network_grid(case: Grid, orientation: str, spacing_mm: Sequence[float] | None) -> Grid:
    """The grid the network sees: axes nearest to `orientation` (such as RAS), voxels of `spacing_mm`.

    The first and last voxel centres of every axis move by less than half a voxel; oblique axes stay oblique.
    """
    turn = _turn(case.affine, orientation)
    shape: Triple = tuple(case.shape[axis] for axis, _ in turn)  # type: ignore[assignment]
    to_case = np.zeros((4, 4))
    to_case[3, 3] = 1
    for out, (axis, sign) in enumerate(turn):
        to_case[axis, out] = sign
        to_case[axis, 3] = 0 if sign > 0 else case.shape[axis] - 1
    affine = case.affine @ to_case
    if spacing_mm is None:
        return Grid(shape, affine)
    found = np.linalg.norm(affine[:3, :3], axis=0)
    scale = np.asarray(spacing_mm, float) / found
    scale[np.abs(scale - 1) < 1e-3] = 1.0  # a header's rounding is no reason to interpolate
    counts = tuple(max(int(np.ceil(n / s - 1e-6)), 1) if s != 1 else n for n, s in zip(shape, scale))
    # Outer borders are shared: centre of the first new voxel = border + half a new voxel.
    centred = [(n - m * s) / 2 + s / 2 - 0.5 for n, m, s in zip(shape, counts, scale)]
    step = np.diag([*scale, 1.0])
    step[:3, 3] = np.where(scale == 1, 0.0, centred)
    return Grid((counts[0], counts[1], counts[2]), affine @ step)


def _turn(affine: Affine, orientation: str) -> list[tuple[int, int]]:
    """For each wanted axis: which voxel axis, and in which direction."""
    from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

    wanted = axcodes2ornt(tuple(orientation))
    change = ornt_transform(io_orientation(affine), wanted)  # row: case axis → (wanted axis, flip)
    turn = [(0, 1)] * 3
    for axis, (out, sign) in enumerate(change):
        turn[int(out)] = (axis, int(sign))
    return turn


@dataclass(frozen=True)
class AxisMap:
    """Positions along one axis of the source for every index of the target: ``low`` and the weight of ``low + 1``."""

    axis: int
    """The target's axis."""
    low: NDArray[np.intp]
    weight: NDArray[np.float32]

    @property
    def exact(self) -> bool:
        return not self.weight.any()

    @property
    def high(self) -> NDArray[np.intp]:
        return self.low + (self.weight > 0)


def axis_maps(source: Grid, target: Grid) -> tuple[AxisMap, AxisMap, AxisMap]:
    """For each axis of `source`, where the indices of the matching axis of `target` fall. Raises ValueError."""
    move = np.linalg.inv(source.affine) @ target.affine
    linear = move[:3, :3]
    axes = np.abs(linear).argmax(axis=1)
    rest = linear.copy()
    rest[range(3), axes] = 0
    if len(set(axes.tolist())) != 3 or np.abs(rest).max() * max(target.shape) > 0.01:
        raise ValueError("the two grids are rotated against each other")
    maps = []
    for axis, out in enumerate(axes):
        size = source.shape[axis]
        at = linear[axis, out] * np.arange(target.shape[out]) + move[axis, 3]
        near = np.round(at)
        at = np.where(np.abs(at - near) < _SNAP, near, at)
        at = np.clip(at, 0, size - 1)
        low = np.minimum(np.floor(at), max(size - 1, 0)).astype(np.intp)
        maps.append(AxisMap(int(out), low, (at - low).astype(np.float32)))
    return maps[0], maps[1], maps[2]


def resample(volume: NDArray[np.float32], maps: Sequence[AxisMap]) -> NDArray[np.float32]:
    """`volume` (D, H, W) at the target's positions, in the source's axis order; linear, nearest outside."""
    for axis, line in enumerate(maps):
        volume = _along(volume, axis, line)
    return volume


def _along(volume: NDArray[np.float32], axis: int, line: AxisMap) -> NDArray[np.float32]:
    if line.exact:
        return volume.take(line.low, axis)
    shape = [1] * volume.ndim
    shape[axis] = -1
    out = volume.take(line.low, axis)
    out += (volume.take(line.high, axis) - out) * line.weight.reshape(shape)
    return out


def to_target_axes(array: NDArray[np.generic], maps: Sequence[AxisMap]) -> NDArray[np.generic]:
    """`array` (..., source order) with its last three axes in the target's order; a view."""
    lead = array.ndim - 3
    order = [0, 0, 0]
    for axis, line in enumerate(maps):
        order[line.axis] = lead + axis
    return array.transpose(*range(lead), *order)


def stream_back(
    slabs: Iterable[tuple[int, NDArray[np.float32]]], maps: Sequence[AxisMap], outside: float
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Slabs (first source row, (C, n, H, W)) in ascending order → (target rows, (C, m, H', W') at those rows).

    Axes stay in the source's order; `outside` fills what lies beyond the slabs. Target rows come in groups, each
    once; rows that only see `outside` do not come at all.
    """
    rows, carry, carried = maps[0], None, -2
    previous_stop = None
    for first, slab in slabs:
        if carry is None or carried != first - 1:
            yield from _end(carry, carried, maps, outside)
            carry = np.full_like(slab[:, :1], outside)
            start = first - 1
        else:
            start = carried
        block = np.concatenate([carry, slab], axis=1)
        stop = first + slab.shape[1]
        # A row is due once both its neighbours are here; one that straddles the stream's start sees `outside` below.
        due = np.flatnonzero((rows.high < stop) & (rows.low >= start) & (rows.high >= first))
        if previous_stop is not None:
            due = due[rows.high[due] >= previous_stop]
        yield from _emit(block, start, due, maps)
        carry, carried, previous_stop = slab[:, -1:].copy(), stop - 1, stop
    yield from _end(carry, carried, maps, outside)


def _end(
    carry: NDArray[np.float32] | None, carried: int, maps: Sequence[AxisMap], outside: float
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Target rows between the last source row before a gap (or the end) and what lies outside."""
    if carry is None:
        return
    block = np.concatenate([carry, np.full_like(carry, outside)], axis=1)
    due = np.flatnonzero((maps[0].low == carried) & (maps[0].high > carried))
    yield from _emit(block, carried, due, maps)


def _emit(
    block: NDArray[np.float32], start: int, due: NDArray[np.intp], maps: Sequence[AxisMap]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
    if not len(due):
        return
    rows = maps[0]
    part = AxisMap(rows.axis, rows.low[due] - start, rows.weight[due])
    out = _along(_along(_along(block, 1, part), 2, maps[1]), 3, maps[2])
    yield due, out
