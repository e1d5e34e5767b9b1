"""What a collector saw, and the histories made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robotics.icrl.envs.base import Array, Task
from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.grid import ACTIONS, GridFamily, GridTask, positions, transitions
from robotics.icrl.store import Histories
from robotics.icrl.store import Task as StoredTask


@dataclass
class Recording:
    """(steps, tasks, streams), every stream from its first episode's start on; small types, since it is large."""

    cells: NDArray[np.uint8]
    actions: NDArray[np.uint8]
    rewarded: NDArray[np.bool_]

    @classmethod
    def empty(cls, steps: int, batch: GridBatch) -> Recording:
        shape = (steps, *batch.shape)
        return cls(np.empty(shape, np.uint8), np.empty(shape, np.uint8), np.empty(shape, bool))

    def act(self, step: int, batch: GridBatch, actions: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Play `actions` in `batch` and note them; begins new episodes where the old ones are over."""
        if batch.elapsed == batch.family.horizon:
            batch.reset()
        self.cells[step] = batch.cells
        self.actions[step] = actions
        rewarded = batch.advance(actions)
        self.rewarded[step] = rewarded
        return rewarded


def described(chosen: Sequence[Task]) -> list[StoredTask]:
    """Tasks of one family as a store describes them; only a grid's returns have bounds that are known."""
    room = chosen[0].family
    exact = isinstance(room, GridFamily)
    return [
        StoredTask(
            task.index,
            task.params,
            0.0 if exact else None,
            float(top) if exact else None,
            None if np.isnan(low) else float(low),
        )
        for task, low, top in zip(chosen, room.chance(chosen), room.best(chosen))
    ]


def block(
    task: Task,
    numbers: NDArray[np.int64],
    source: str,
    obs: Array,
    actions: Array,
    rewards: NDArray[np.float32],
    terminations: NDArray[np.bool_],
    truncations: NDArray[np.bool_],
    final_obs: Array,
) -> Histories:
    """Histories of one task out of (streams, steps, …) arrays; `numbers` names the streams."""
    ends = terminations | truncations
    starts = np.concatenate([np.ones((len(numbers), 1), bool), ends[:, :-1]], 1)
    return Histories(
        obs=obs,
        actions=actions,
        rewards=rewards,
        terminations=terminations,
        truncations=truncations,
        episode=(np.cumsum(ends, 1) - ends).astype(np.int32),
        final_obs=final_obs,
        task=np.full(len(numbers), task.index),
        history=numbers,
        source=np.full(len(numbers), source),
        optimal_actions=task.family.labels(task, obs, rewards, starts),
    )


def histories(
    chosen: Sequence[GridTask], recording: Recording, numbers: NDArray[np.int64], source: str
) -> list[Histories]:
    """One block per task; `numbers` names the streams."""
    steps = len(recording.cells)
    room = chosen[0].family
    over = (np.arange(steps) + 1) % room.horizon == 0
    shape = (len(numbers), steps)
    places, table = positions(room.size), transitions(room.size)
    blocks = []
    for row, task in enumerate(chosen):
        cells, actions, rewards = (
            np.ascontiguousarray(array[:, row].T)
            for array in (recording.cells, recording.actions, recording.rewarded)
        )
        obs, final = places[cells], np.zeros((*shape, 2), np.uint8)
        kept = np.union1d(np.flatnonzero(over), [steps - 1])
        moves = np.asarray(task.moves)[actions[:, kept]]
        final[:, kept] = places[table.ravel()[cells[:, kept].astype(np.intp) * ACTIONS + moves]]
        never, over_all = np.zeros(shape, bool), np.broadcast_to(over, shape).copy()
        gained = rewards.astype(np.float32)
        blocks.append(block(task, numbers, source, obs, actions, gained, never, over_all, final))
    return blocks
