"""Playing grid tasks with a frozen network, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robotics.icrl.config import PlayConfig
from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.grid import GridTask, random_returns
from robotics.icrl.models.config import Plan
from robotics.icrl.rollout import Rollout, rollout

Floats = NDArray[np.float64]
GOOD = 0.9
"""Normalised return that counts as having learned a task."""


@dataclass(frozen=True)
class Played:
    """M tasks, C copies, K episodes of H steps."""

    tasks: Sequence[GridTask]
    copies: int
    rollout: Rollout

    @property
    def returns(self) -> Floats:
        """(M, C, K)"""
        return self.rollout.returns.reshape(len(self.tasks), self.copies, -1)

    @property
    def normalised(self) -> Floats:
        """(M, C, K): 0 is the mean of uniformly random actions, 1 the optimum."""
        return normalised(self.tasks, self.returns)

    def steps(self, name: str) -> NDArray[Any]:
        """``obs``, ``actions`` or ``rewards`` as (M, C, K, H, …)."""
        values: NDArray[Any] = getattr(self.rollout, name)
        horizon = self.tasks[0].family.horizon
        return values.reshape(len(self.tasks), self.copies, -1, horizon, *values.shape[2:])


def play(
    network: Any, tasks: Sequence[GridTask], episodes: int, copies: int, seed: int, how: PlayConfig
) -> Played:
    """`episodes` of each task in one context each. Tasks are of one family. Raises `UsageError`."""
    room = tasks[0].family
    best = np.repeat([task.optimum for task in tasks], copies)
    found = rollout(
        network,
        GridBatch(tasks, copies),
        episodes,
        seed=seed,
        greedy=how.greedy,
        target=best if network.config.method == "dt" else None,
        plan=plan_of(network.config, how),
        horizon=room.horizon,
    )
    return Played(tasks, copies, found)


def plan_of(model: Any, how: PlayConfig) -> Plan | None:
    """The beam to plan with, if any."""
    wanted = how.plan == "always" or (how.plan == "auto" and model.method == "dicp")
    return how.beam if wanted else None


def normalised(tasks: Sequence[GridTask], returns: Floats) -> Floats:
    """(M, …) returns by each task's random and best return."""
    shape = (len(tasks), *[1] * (returns.ndim - 1))
    chance = random_returns(tasks).reshape(shape)
    best = np.array([task.optimum for task in tasks]).reshape(shape)
    return np.asarray((returns - chance) / (best - chance))


def first_good(curve: Floats) -> int | None:
    """The first episode, counted from 1, whose value reaches `GOOD`; None if none does."""
    at = np.flatnonzero(curve >= GOOD)
    return int(at[0]) + 1 if len(at) else None
