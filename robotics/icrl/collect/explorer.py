"""A learner whose every move follows from what it has seen: look where one has not been, then go where reward was.

For rooms with one hidden goal. It knows how moves work and not where the goal is: it goes to the nearest cell never
visited (nearest from where it stands, ties by chance), and as soon as a step was rewarded, to that cell, along x, then
y, then stays. This is R-max (Brafman and Tennenholtz 2002) for known moves and an unknown reward of each cell.

Unlike a stream of PPO, whose improvement comes from rewards of other streams, and unlike noised experts, who know the
goal, such histories show why each action was taken (spec 0.9): a model that imitates them has to read its own context,
and what it does there is what it saw in training. `aimless` is the share of uniformly random actions before the goal
is known; it makes the search slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.grid import ACTIONS, GridTask, cells_of, labels, positions
from robotics.icrl.store import Histories
from shared.errors import UsageError

SOURCE = "explorer"


def explore(
    tasks: Sequence[GridTask], agents: int, episodes: int, seed: int = 0, *, aimless: float = 0.0
) -> Histories:
    """(tasks · agents) histories, the agents of a task in a row, each independent of the others.

    Raises `UsageError` for rooms without a single goal and plain moves.
    """
    room = tasks[0].family
    if room.kind != "goal":
        raise UsageError(
            f"collector explorer in {room.name}: a room with one goal wanted; choose another collector"
        )
    batch, random = GridBatch(tasks, agents), np.random.default_rng(seed)
    searcher = _Searcher(batch, random, aimless)
    steps, shape = episodes * room.horizon, batch.shape
    obs = np.zeros((steps, *shape, 2), np.uint8)
    final, actions = np.zeros_like(obs), np.zeros((steps, *shape), np.uint8)
    rewards, truncated = np.zeros((steps, *shape), np.float32), np.zeros((steps, *shape), bool)
    seen = batch.reset()
    for at in range(steps):
        obs[at] = seen
        actions[at] = searcher.act(seen)
        step = batch.step(actions[at])
        rewards[at], truncated[at] = step.rewards, step.truncations
        after = step.obs if step.final_obs is None else step.final_obs
        searcher.saw(after, step.rewards)
        if step.final_obs is not None:
            final[at] = step.final_obs
        seen = step.obs
    return _histories(tasks, agents, obs, actions, rewards, truncated, final)


class _Searcher:
    def __init__(self, batch: GridBatch, random: np.random.Generator, aimless: float) -> None:
        self.size, self.random, self.aimless = batch.family.size, random, aimless
        cells = batch.family.cells
        place = positions(self.size).astype(np.int16)
        self.place = place
        self.apart = np.abs(place[:, None] - place).sum(-1).astype(np.float32)  # (cells, cells)
        self.visited = np.zeros((*batch.shape, cells), bool)
        self.goal = np.full(batch.shape, -1)

    def act(self, obs: np.ndarray) -> np.ndarray:
        at = cells_of(obs, self.size)
        np.put_along_axis(self.visited, at[..., None], True, -1)
        far = self.apart[at] + self.random.random(self.visited.shape, np.float32) * 0.9
        target = np.where(self.goal >= 0, self.goal, (far + 1e3 * self.visited).argmin(-1))
        dx, dy = np.moveaxis(self.place[target] - self.place[at], -1, 0)
        along_x = (dx != 0) & ((dy == 0) | (self.goal >= 0) | (self.random.random(at.shape) < 0.5))
        move = np.where(along_x, np.where(dx > 0, 0, 1), np.where(dy > 0, 2, np.where(dy < 0, 3, 4)))
        lost = (self.goal < 0) & (self.random.random(at.shape) < self.aimless)
        return np.where(lost, self.random.integers(ACTIONS, size=at.shape), move)

    def saw(self, after: np.ndarray, rewards: np.ndarray) -> None:
        cell = cells_of(after, self.size)
        np.put_along_axis(self.visited, cell[..., None], True, -1)
        self.goal = np.where(rewards > 0, cell, self.goal)


def _histories(
    tasks: Sequence[GridTask],
    agents: int,
    obs: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    truncated: np.ndarray,
    final: np.ndarray,
) -> Histories:
    """From (step, task, agent, …) to rows."""

    def rows(values: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(values, 0, 2).reshape(-1, len(values), *values.shape[3:]))

    flat_obs, ends = rows(obs), rows(truncated)
    starts = np.concatenate([np.ones((len(ends), 1), bool), ends[:, :-1]], 1)
    gained = rows(rewards)
    best = np.concatenate(
        [
            labels(task, flat_obs[i * agents :][:agents], gained[i * agents :][:agents], starts)
            for i, task in enumerate(tasks)
        ]
    )
    return Histories(
        obs=flat_obs,
        actions=rows(actions),
        rewards=gained,
        terminations=np.zeros_like(ends),
        truncations=ends,
        episode=(np.cumsum(starts, 1) - 1).astype(np.int32),
        final_obs=rows(final),
        task=np.repeat([task.index for task in tasks], agents),
        history=np.tile(np.arange(agents), len(tasks)),
        source=np.full(len(ends), SOURCE),
        optimal_actions=best,
    )
