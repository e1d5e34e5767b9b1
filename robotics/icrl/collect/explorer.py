"""A learner whose every move follows from what it has seen: look where one has not been, then go where reward was.

For rooms with one hidden goal. It knows how moves work and not where the goal is: it goes to the nearest cell never
visited (nearest from where it stands, ties by chance), and as soon as a step was rewarded, to that cell, along x, then
y, then stays. This is R-max (Brafman and Tennenholtz 2002) for known moves and an unknown reward of each cell.

Unlike a stream of PPO, whose improvement comes from rewards of other streams, and unlike noised experts, who know the
goal, such histories show why each action was taken (spec 0.9): a model that imitates them has to read its own context,
and what it does there is what it saw in training. `aimless` is the share of uniformly random actions before the goal
is known; it makes the search slower. `careless` is their share afterwards: a learner that never errs does not show what
a wrong move brings, which a world model has to know to plan.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from robotics.icrl.collect.recording import Recording, histories
from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.grid import ACTIONS, GridTask, positions
from robotics.icrl.store import Histories
from shared.config import Config
from shared.errors import UsageError

SOURCE = "explorer"


class ExplorerOptions(Config):
    """The explorer."""

    aimless: float = Field(0.2, ge=0, le=1, description="share of random actions before the goal is known")
    careless: float = Field(
        0.0, ge=0, le=1, description="share of them afterwards: what a world model learns wrong moves from"
    )


def explore(
    tasks: Sequence[GridTask],
    agents: int,
    episodes: int,
    seed: int = 0,
    options: ExplorerOptions | None = None,
) -> Histories:
    """(tasks · agents) histories, the agents of a task in a row, each independent of the others.

    Raises `UsageError` for rooms without a single goal and plain moves.
    """
    numbers = np.arange(agents)
    steps = episodes * tasks[0].family.horizon
    recording = play(tasks, numbers, steps, seed, options or ExplorerOptions())
    return Histories.join(histories(tasks, recording, numbers, SOURCE))


def play(
    chosen: Sequence[GridTask], numbers: NDArray[np.int64], steps: int, seed: int, options: ExplorerOptions
) -> Recording:
    """What the agents do. A task's draws depend on `seed`, its index and how many agents it has alone. Raises
    `UsageError` as `explore`."""
    room = chosen[0].family
    if room.kind != "goal":
        raise UsageError(
            f"collector explorer in {room.name}: a room with one goal wanted; choose another collector"
        )
    batch = GridBatch(chosen, len(numbers))
    recording, searcher = Recording.empty(steps, batch), _Searcher(batch, seed, options)
    for at in range(steps):
        if batch.elapsed == batch.family.horizon:
            batch.reset()
        rewarded = recording.act(at, batch, searcher.act(batch.cells))
        searcher.saw(batch.cells, rewarded)
    return recording


class _Searcher:
    def __init__(self, batch: GridBatch, seed: int, options: ExplorerOptions) -> None:
        self.generators = [np.random.default_rng([seed, task.index, 5]) for task in batch.tasks]
        self.options, self.cells = options, batch.family.cells
        place = positions(batch.family.size).astype(np.int16)
        self.place = place
        self.apart = np.abs(place[:, None] - place).sum(-1).astype(np.float32)  # (cells, cells)
        self.visited = np.zeros((*batch.shape, batch.family.cells), bool)
        self.goal = np.full(batch.shape, -1)

    def act(self, at: NDArray[np.intp]) -> NDArray[np.uint8]:
        """(tasks, agents) cells → actions."""
        target, lost = self.goal.copy(), self.goal < 0
        share = np.zeros((lost.sum(), 2), np.float32)
        if len(share):
            target[lost], share = self._nearest(at, lost)
        dx, dy = np.moveaxis(self.place[target] - self.place[at], -1, 0)
        along_x = (dx != 0) & ((dy == 0) | ~lost)
        along_x[lost] |= (dx[lost] != 0) & (share[:, 0] < 0.5)
        move = np.where(along_x, np.where(dx > 0, 0, 1), np.where(dy > 0, 2, np.where(dy < 0, 3, 4)))
        move[lost] = _some_at_random(move[lost], share[:, 1], self.options.aimless)
        if self.options.careless:
            wanted = zip(self.generators, (~lost).sum(1))
            draws = np.concatenate([each.random(n, np.float32) for each, n in wanted])
            move[~lost] = _some_at_random(move[~lost], draws, self.options.careless)
        return move.astype(np.uint8)

    def _nearest(
        self, at: NDArray[np.intp], lost: NDArray[np.bool_]
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Of the n agents that know no goal: the nearest cell not visited, ties by chance, and two draws each."""
        wanted = zip(self.generators, lost.sum(1))
        draws = np.concatenate([each.random((n, self.cells + 2), np.float32) for each, n in wanted if n])
        far = self.apart[at[lost]] + draws[:, 2:] * np.float32(0.9)
        far[self.visited[lost]] += 1e3
        return far.argmin(-1), draws[:, :2]

    def saw(self, cell: NDArray[np.intp], rewarded: NDArray[np.bool_]) -> None:
        np.put_along_axis(self.visited, cell[..., None], True, -1)
        self.goal = np.where(rewarded, cell, self.goal)


def _some_at_random(move: NDArray[np.intp], draw: NDArray[np.float32], share: float) -> NDArray[np.intp]:
    """(n,) moves, a `share` of them uniform: what is left of a draw below the share is uniform again."""
    chance = draw / share if share else np.ones(len(draw))
    return np.where(chance < 1, (chance * ACTIONS).astype(int), move)
