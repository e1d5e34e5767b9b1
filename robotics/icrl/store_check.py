"""Every fault of a store, one line each, before anything is learned from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robotics.icrl.envs.grid import GridTask, cell_of, cells_of, place_cells, positions, transitions
from robotics.icrl.lhf import beyond, crossed
from robotics.icrl.store import Histories, Meta, Store, Task, parts_folder
from shared.errors import DataInvalid, Fault


def check(path: Path) -> list[Fault]:
    """Faults and warnings of the store at `path`, task by task; [] when there is none. Reads all of it."""
    try:
        store = Store(path, strict=False)
    except DataInvalid as err:
        return err.faults
    faults = list(store.faults)
    if any(parts_folder(store.path).glob("part-*.h5")):
        found = f"a collection was not finished: {len(store):,} histories of {len(store.tasks)} tasks so far"
        faults.append(_fault(path, found, "a finished one", "repeat the command to resume", warn=True))
    lengths: dict[int, int] = {}
    for index in store.tasks:
        try:
            block = store.read(index)
        except DataInvalid as err:
            faults += err.faults
            continue
        lengths[index] = block.steps
        faults += check_task(path, store.meta, store.task(index), block)
    return faults + _unequal(path, lengths)


def check_task(path: Path, meta: Meta, task: Task, block: Histories) -> list[Fault]:
    """Faults of one task's histories."""
    where = str(task.index)
    faults = [
        _fault(path, found, wanted, mend, where)
        for found, wanted, mend in (*_numbers(meta, block), *_episodes(meta, block))
    ]
    if faults:
        return faults  # returns of broken episodes mean nothing
    returns = block.returns()
    complete = (~np.isnan(returns)).sum(axis=1) if returns.size else np.zeros(len(block), int)
    few = np.flatnonzero(complete < 2)
    if len(few):
        found = f"{_which(block, few)} with {complete[few[0]]} complete episodes"
        return [_fault(path, found, "2 at least, to see it learn", "collect more steps", where)]
    if said := _limits(task, block, returns):
        return [_fault(path, *each, where) for each in said]
    return [_fault(path, *each, where, warn=True) for each in _scores(task, returns)]


def check_rules(path: Path, task: GridTask, block: Histories) -> list[Fault]:
    """The first step of a grid's histories that its rules do not allow."""
    room, starts, shown = task.family, block.starts(), positions(task.family.size)
    cells, after = (cells_of(obs, room.size) for obs in (block.obs, block.next_obs()))
    start = np.full_like(cells, cell_of(room.start, room.size))
    moved = transitions(room.size)[cells, np.asarray(task.moves)[block.actions.astype(np.intp)]]
    before = np.cumsum(block.rewards, axis=1, dtype=np.float64) - block.rewards
    gained = before - np.maximum.accumulate(np.where(starts, before, 0), axis=1)
    stage = np.clip(gained, 0, room.stages if room.kind == "key-door" else 0).astype(np.intp)
    due = moved == np.append(place_cells([task])[0], -1)[stage]  # once both are reached, no place is left
    for name, said, wanted, wrong in (
        ("obs", block.obs, shown[start], starts & (cells != start)),
        ("next observation", block.next_obs(), shown[moved], after != moved),
        ("rewards", block.rewards, due.astype(int), block.rewards != due),
    ):
        if wrong.any():
            row, step = np.argwhere(wrong)[0]
            found = f"{name} {said[row, step]} in history {block.history[row]}, step {step}"
            wanted = f"{wanted[row, step]} by the rules of {room.name}"
            return [_fault(path, found, wanted, "collect again", str(task.index))]
    return []


def _numbers(meta: Meta, block: Histories) -> Iterable[tuple[str, str, str]]:
    last = block.ends.copy()
    last[:, -1] = True  # where `final_obs` means something
    for name, space in (
        ("rewards", {}),
        ("obs", meta.observation_space),
        ("final_obs", meta.observation_space),
        ("actions", meta.action_space),
        ("optimal_actions", meta.action_space),
    ):
        array = getattr(block, name)
        if array is None:
            continue
        shape = list(space.get("shape", ()))
        if list(array.shape[2:]) != shape:
            yield f"{name} of shape {list(array.shape[2:])}", f"the space's {shape}", "collect again"
            continue
        for wrong, wanted in _wrong(array, space):
            if name == "final_obs":
                wrong = wrong & last.reshape(*last.shape, *[1] * len(shape))
            if wrong.any():
                at = np.argwhere(wrong)[0]
                found = f"{name} {array[tuple(at)]} in history {block.history[at[0]]}, step {at[1]}"
                yield found, wanted, "collect again"
                break


def _wrong(array: Any, space: Mapping[str, Any]) -> Iterable[tuple[NDArray[np.bool_], str]]:
    """Where numbers are not finite, not whole, or out of their space, and what is wanted."""
    if array.dtype.kind == "f":
        yield ~np.isfinite(array), "finite"
        if space.get("kind") == "discrete" or "int" in str(space.get("dtype", "")):
            yield array != np.floor(array), "whole numbers"
    if (bounds := _bounds(space)) is not None:
        low, high = bounds
        yield (array < low) | (array > high), f"the space's {_plain(low)} to {_plain(high)}"


def _bounds(space: Mapping[str, Any]) -> tuple[NDArray[Any], NDArray[Any]] | None:
    if space.get("kind") == "discrete":
        return np.asarray(0), np.asarray(int(space["n"]) - 1)
    if space.get("kind") == "box" and "low" in space and "high" in space:
        low, high = (
            np.asarray(space["low"] if space["low"] is not None else -np.inf, float),
            np.asarray(space["high"] if space["high"] is not None else np.inf, float),
        )
        return low, high
    return None


def _episodes(meta: Meta, block: Histories) -> Iterable[tuple[str, str, str]]:
    ends = block.ends
    expected: NDArray[np.intp] = np.cumsum(ends, axis=1) - ends
    wrong = np.flatnonzero((block.episode != expected).any(axis=1))
    if len(wrong):
        yield f"{_which(block, wrong)}: episode numbers do not count its ends", "0, 1, 2, …", "collect again"
        return
    step = np.arange(block.steps)
    start = np.maximum.accumulate(np.where(block.starts(), step, 0), axis=1)
    length = step - start + 1
    if (length > meta.horizon).any():
        rows = np.flatnonzero((length > meta.horizon).any(axis=1))
        yield (
            f"{_which(block, rows)}: an episode of {length[rows].max()} steps",
            f"at most {meta.horizon}",
            "",
        )
    early = block.truncations & (length < meta.horizon)
    if early.any():
        rows = np.flatnonzero(early.any(axis=1))
        found = f"{_which(block, rows)}: an episode cut after {length[early][0]} steps"
        yield found, f"the horizon of {meta.horizon}", "mend `horizon` or collect again"


def _limits(task: Task, block: Histories, returns: NDArray[np.float64]) -> list[tuple[str, str, str]]:
    """What a filter would refuse: the first history that passes each bound, and bounds with nothing between."""
    first: dict[str, tuple[str, str, str]] = {}
    for number, row in zip(block.history, returns):
        for found, wanted, mend in beyond(row[~np.isnan(row)], task.r_min, task.r_max):
            first.setdefault(mend, (f"history {number}: {found}", wanted, mend))
    said = crossed(task.r_min, task.r_max)
    return [*first.values(), *([said] if said else [])]


def _scores(task: Task, returns: NDArray[np.float64]) -> Iterable[tuple[str, str, str]]:
    best, worst = float(np.nanmax(returns)), float(np.nanmin(returns))
    if task.r_max is None:
        yield f"r_max not known; best return seen is {best:g}", "the task's best return", "it is used instead"
    if task.r_min is None and worst < 0:
        found = f"return {worst:g}, r_min not known"
        yield found, "r_min no return falls below", "returns are scaled from the least seen"
    if len(returns) > 1 and np.array_equal(
        returns, np.broadcast_to(returns[0], returns.shape), equal_nan=True
    ):
        found = f"all {len(returns)} histories have the same returns, so the same score"
        yield found, "some better than others", "a filter keeps all of them"


def _unequal(path: Path, lengths: Mapping[int, int]) -> list[Fault]:
    if len(set(lengths.values())) < 2:
        return []
    usual = Counter(lengths.values()).most_common(1)[0][0]
    return [
        _fault(
            path,
            f"histories of {steps} steps",
            f"{usual} as in the other tasks",
            "collect it again",
            str(index),
        )
        for index, steps in lengths.items()
        if steps != usual
    ]


def _which(block: Histories, rows: NDArray[np.intp]) -> str:
    more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
    return f"history {block.history[rows[0]]}{more}"


def _plain(value: NDArray[Any]) -> str:
    return f"{value:g}" if value.ndim == 0 else f"[{', '.join(f'{each:g}' for each in value.ravel()[:4])} …]"


def _fault(
    path: Path, found: str, wanted: str = "", mend: str = "", field: str = "", warn: bool = False
) -> Fault:
    return Fault(path, found, wanted, mend, field, "warning" if warn else "error")
