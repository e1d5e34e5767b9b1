"""Playing tasks with a frozen network, and what came of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from robotics.icrl.config import PlayConfig
from robotics.icrl.envs.base import Array, Broken, Family, Floats, Task
from robotics.icrl.envs.user import GymFamily
from robotics.icrl.models.config import Plan
from robotics.icrl.rollout import Rollout, rollout
from shared.errors import UsageError

GOOD = 0.9
"""Normalised return that counts as having learned a task."""


@dataclass(frozen=True)
class Played:
    """M tasks of one family, C copies, K episodes, which may differ in length."""

    tasks: Sequence[Task]
    copies: int
    rollout: Rollout
    """rows: task by task, copy by copy; steps until every copy has its K episodes"""
    seed: int = 0
    broken: list[tuple[Task, Broken]] = field(default_factory=list)
    """tasks whose environment could not go on; they are not in `tasks`"""

    @property
    def family(self) -> Family[Any]:
        return self.tasks[0].family

    @property
    def returns(self) -> Floats:
        """(M, C, K)"""
        return self.rollout.returns.reshape(len(self.tasks), self.copies, -1)

    @property
    def normalised(self) -> Floats:
        """(M, C, K): 0 is the mean of uniformly random actions, 1 what the family calls best; NaN where not known."""
        return normalised(self.tasks, self.returns)

    @cached_property
    def place(self) -> tuple[Array, Array]:
        """(M · C, T) of each step its episode, from 0, and its number in it; episodes from K on do not count."""
        ends = self.rollout.ends
        number: Array = np.cumsum(ends, 1) - ends
        step = np.arange(ends.shape[1])
        begins = np.concatenate([np.ones((len(ends), 1), bool), ends[:, :-1]], 1)
        return number, step - np.maximum.accumulate(np.where(begins, step, 0), 1)

    def episode(self, name: str, task: int, copy: int, number: int) -> Array:
        """(H, …) of ``obs``, ``actions`` or ``rewards`` in one episode."""
        row = task * self.copies + copy
        values: Array = getattr(self.rollout, name)[row]
        return values[self.place[0][row] == number]


def play(
    network: Any, tasks: Sequence[Task], episodes: int, copies: int, seed: int, how: PlayConfig
) -> Played:
    """`episodes` of each task in one context each. Tasks are of one family. Raises `UsageError`."""
    room = tasks[0].family
    best = np.repeat(room.best(tasks), copies)
    if network.config.method == "dt" and np.isnan(best).any():
        raise UsageError(f"method dt in {room.name}: the return to aim at is not known; `optimum:` wanted")
    environments: Any = room.batch(tasks, copies, seed)
    try:
        found = rollout(
            network,
            environments,
            episodes,
            seed=seed,
            greedy=how.greedy,
            target=best if network.config.method == "dt" else None,
            plan=plan_of(network.config, how),
            horizon=room.horizon,
        )
    finally:
        environments.close()
    broken: dict[int, Broken] = environments.broken
    if not broken:
        return Played(tasks, copies, found, seed)
    kept = [row for row in range(len(tasks)) if row not in broken]
    rows = (np.array(kept, int)[:, None] * copies + np.arange(copies)).ravel()
    lost = [(tasks[row], broken[row]) for row in sorted(broken)]
    return Played([tasks[row] for row in kept], copies, found.keep(rows), seed, lost)


def plan_of(model: Any, how: PlayConfig) -> Plan | None:
    """The beam to plan with, if any."""
    wanted = how.plan == "always" or (how.plan == "auto" and model.method == "dicp")
    return how.beam if wanted else None


def normalised(tasks: Sequence[Task], returns: Floats) -> Floats:
    """(M, …) returns by each task's random and best return."""
    shape = (len(tasks), *[1] * (returns.ndim - 1))
    room = tasks[0].family
    chance, best = room.chance(tasks).reshape(shape), room.best(tasks).reshape(shape)
    return np.asarray((returns - chance) / (best - chance))


def told(task: Task, others: Collection[str] = ()) -> dict[str, Any]:
    """A task in a table: its number and its parameters, numbers of a list apart by blanks. A parameter that is called
    like a column, one of `others` or before it, has ``_`` behind its name."""
    found: dict[str, Any] = {"task": task.index}
    for key, value in task.params.items():
        if key != "index" or isinstance(task.family, GymFamily):  # elsewhere it is the number once more
            name = key
            while name in found or name in others:
                name += "_"
            found[name] = " ".join(map(str, value)) if isinstance(value, list) else value
    return found


def first_good(curve: Floats) -> int | None:
    """The first episode, counted from 1, whose value reaches `GOOD`; None if none does."""
    at = np.flatnonzero(curve >= GOOD)
    return int(at[0]) + 1 if len(at) else None
