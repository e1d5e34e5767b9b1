"""Every fault of a store, one line each, before anything is learned from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robotics.icrl.store import Histories, Meta, Store, Task, parts_folder
from shared.errors import DataInvalid, Fault


def check(path: Path) -> list[Fault]:
    """Faults and warnings of the store at `path`, task by task; [] when there is none. Reads all of it."""
    try:
        store = Store(path)
    except DataInvalid as err:
        return err.faults
    faults: list[Fault] = []
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
    return [
        _fault(path, found, wanted, mend, where, warn=True) for found, wanted, mend in _scores(task, returns)
    ]


def _numbers(meta: Meta, block: Histories) -> Iterable[tuple[str, str, str]]:
    named: list[tuple[str, Any, Mapping[str, Any]]] = [
        ("rewards", block.rewards, {}),
        ("obs", block.obs, meta.observation_space),
        ("actions", block.actions, meta.action_space),
    ]
    if block.optimal_actions is not None:
        named.append(("optimal_actions", block.optimal_actions, meta.action_space))
    for name, array, space in named:
        wanted = tuple(space.get("shape", ()))
        if space and array.shape[2:] != wanted:
            yield f"{name} of shape {list(array.shape[2:])}", f"the space's {list(wanted)}", "collect again"
            continue
        whole = space.get("kind") == "discrete" or "int" in str(space.get("dtype", ""))
        if whole and array.dtype.kind == "f" and (array != np.floor(array)).any():
            at = np.argwhere(array != np.floor(array))[0]
            found = f"{name} {array[tuple(at)]} in history {block.history[at[0]]}, step {at[1]}"
            yield found, "whole numbers", "collect again"
            continue
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            at = np.argwhere(~np.isfinite(array))[0]
            yield (
                f"{name} {array[tuple(at)]} in history {block.history[at[0]]}, step {at[1]}",
                "finite",
                "collect again",
            )
        elif (bounds := _bounds(space)) is not None:
            low, high = bounds
            outside = (array < low) | (array > high)
            if outside.any():
                at = np.argwhere(outside)[0]
                found = f"{name} {array[tuple(at)]} in history {block.history[at[0]]}, step {at[1]}"
                yield found, f"the space's {_plain(low)} to {_plain(high)}", "collect again"


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


def _scores(task: Task, returns: NDArray[np.float64]) -> Iterable[tuple[str, str, str]]:
    best, worst = float(np.nanmax(returns)), float(np.nanmin(returns))
    if task.r_max is None:
        yield f"r_max not known; best return seen is {best:g}", "the task's best return", "it is used instead"
    elif best > task.r_max + 1e-6 * abs(task.r_max):
        yield f"return {best:g} above r_max {task.r_max:g}", "r_max no return exceeds", "mend r_max"
    if worst < (task.r_min or 0.0) - 1e-6:
        missing = "r_min not known" if task.r_min is None else f"r_min {task.r_min:g}"
        yield (
            f"return {worst:g}, {missing}",
            "r_min no return falls below",
            "returns are scaled from the least seen",
        )
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
