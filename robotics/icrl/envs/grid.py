"""The dark grids' rules: four families of tasks, their splits, exact returns and optimal actions.

Actions 0…4 are x+1, x−1, y+1, y−1, stay, clipped at the walls; the observation is (x, y); nothing else is seen, so the
task has to be found out. Episodes end by the time limit alone: truncated, never terminated (DICP's code sets both).

====================  ======================================  ========  =======  ====================================
family                tasks (index order)                     start     horizon  reward
====================  ======================================  ========  =======  ====================================
darkroom              81 goals, row by row                    (4, 4)    20       1 for each step that ends on the goal
darkroom-permuted     120 permutations of the five actions    (0, 0)    50       same, goal (8, 8)
darkroom-large        225 goals of a 15 × 15 room             (7, 7)    50       same
dark-key-to-door      6,561 (key, door) pairs                 (4, 4)    50       1 for the key once, then for the door
====================  ======================================  ========  =======  ====================================

Rules and splits as in DICP's code (arXiv 2502.19009); Darkroom-Large as in LHF's appendix (arXiv 2505.15143). AD's and
DPT's own versions differ (spec 6.1): random starts there, a 10 × 10 room here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robotics.icrl.envs.base import Array, Family, Floats, Plane, Split, shuffled, whole_numbers
from shared.errors import UsageError

if TYPE_CHECKING:
    import gymnasium as gym

    from robotics.icrl.envs.batch import GridBatch

MOVES = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]])
ACTIONS = len(MOVES)
Cell = tuple[int, int]
Cells: TypeAlias = NDArray[np.intp]
"""x · size + y"""


@dataclass(frozen=True)
class GridFamily(Family["GridTask"]):
    """Tasks that share a room, a start and a horizon."""

    name: str
    env_id: str
    size: int
    start: Cell
    horizon: int
    split_seed: int
    train_share: float
    kind: Literal["goal", "permutation", "key-door"]

    @property
    def cells(self) -> int:
        return self.size**2

    @property
    def stages(self) -> int:
        """Places to be reached one after another."""
        return 2 if self.kind == "key-door" else 1

    @property
    def observation_space(self) -> dict[str, Any]:
        return {"kind": "box", "shape": [2], "dtype": "int32", "low": 0, "high": self.size - 1}

    @property
    def action_space(self) -> dict[str, Any]:
        return {"kind": "discrete", "n": ACTIONS}

    def __len__(self) -> int:
        return {"goal": self.cells, "permutation": 120, "key-door": self.cells**2}[self.kind]

    def task(self, index: int) -> GridTask:
        """Raises `UsageError` for an index that does not exist."""
        if not 0 <= index < len(self):
            raise UsageError(f"task {index} of {self.name}: unknown; 0 to {len(self) - 1}")
        if self.kind == "permutation":
            far = (self.size - 1, self.size - 1)
            return GridTask(self, index, (far,), _permutations()[index])
        places = [index] if self.kind == "goal" else [*divmod(index, self.cells)]
        return GridTask(self, index, tuple(divmod(place, self.size) for place in places))

    def find(self, params: Mapping[str, Any]) -> GridTask:
        """The task of given parameters: ``goal``, ``permutation``, or ``key`` and ``door``. Raises `UsageError`."""
        wanted = {"goal": ("goal",), "permutation": ("permutation",), "key-door": ("key", "door")}[self.kind]
        if set(params) != set(wanted):
            raise UsageError(
                f"task of {self.name}: {', '.join(params) or 'nothing'}; {' and '.join(wanted)} wanted"
            )
        if self.kind == "permutation":
            order = tuple(whole_numbers("permutation", params["permutation"]))
            if order not in _permutations():
                raise UsageError(f"permutation {list(order)}: an order of 0 to {ACTIONS - 1} wanted")
            return self.task(_permutations().index(order))
        index = 0
        for key in wanted:
            place = whole_numbers(key, params[key])
            if len(place) != 2 or not all(0 <= value < self.size for value in place):
                raise UsageError(
                    f"{key} {place}: not in the room; two numbers from 0 to {self.size - 1} wanted"
                )
            index = index * self.cells + place[0] * self.size + place[1]
        return self.task(index)

    def tasks(self, split: Split = "all") -> list[GridTask]:
        """The split is DICP's."""
        return [self.task(index) for index in shuffled(len(self), self.split_seed, self.train_share, split)]

    def batch(self, chosen: Sequence[GridTask], copies: int, seed: int = 0) -> GridBatch:
        """Nothing is drawn: `seed` changes nothing."""
        from robotics.icrl.envs.batch import GridBatch

        return GridBatch(chosen, copies)

    def make(self, task: GridTask, render_mode: str | None = None) -> gym.Env[Any, Any]:
        from robotics.icrl.envs.gym_grid import GridEnv

        return GridEnv(self.name, task.index, render_mode)

    def chance(self, chosen: Sequence[GridTask]) -> Floats:
        """Exact."""
        return random_returns(chosen)

    def best(self, chosen: Sequence[GridTask]) -> Floats:
        return np.array([task.optimum for task in chosen])

    def labels(self, task: GridTask, obs: Array, rewards: Array, starts: NDArray[np.bool_]) -> Array:
        return labels(task, obs, rewards, starts).astype(np.uint8)

    def plane(self, task: GridTask) -> Plane:
        marks = [(float(x), float(y)) for x, y in task.places]
        return Plane(-0.7, self.size - 0.3, marks, np.asarray, apart=0.15)

    def frames(self, task: GridTask, obs: Array, rewards: Array) -> list[NDArray[np.uint8]]:
        from robotics.icrl.envs.gym_grid import draw

        stages = np.cumsum(rewards) - rewards
        return [draw(task, int(x) * self.size + int(y), int(stage)) for (x, y), stage in zip(obs, stages)]


@dataclass(frozen=True)
class GridTask:
    """One task: where to go, in order, and which move each action makes."""

    family: GridFamily
    index: int
    places: tuple[Cell, ...]
    """The goal, or key and door"""
    moves: tuple[int, ...] = tuple(range(ACTIONS))
    """moves[a]: the move (row of `MOVES`) that action a makes"""

    @property
    def params(self) -> dict[str, Any]:
        """Plain numbers: ``goal``, ``permutation``, or ``key`` and ``door``."""
        if self.family.kind == "permutation":
            return {"permutation": list(self.moves)}
        names = ("goal",) if self.family.kind == "goal" else ("key", "door")
        return {name: list(place) for name, place in zip(names, self.places)}

    @property
    def optimum(self) -> float:
        """Return of the best policy that knows the task."""
        if self.family.kind == "key-door":
            route = (self.family.start, *self.places)
            # Key and door in one cell: the door counts one step after the key.
            legs = [max(1, _distance(a, b)) for a, b in itertools.pairwise(route)]
            return float(sum(reached <= self.family.horizon for reached in itertools.accumulate(legs)))
        horizon = self.family.horizon
        return float(min(horizon, max(0, horizon + 1 - _distance(self.family.start, self.places[0]))))


GRIDS = {
    each.name: each
    for each in (
        GridFamily("darkroom", "icrl/Darkroom-v0", 9, (4, 4), 20, 0, 0.9, "goal"),
        GridFamily("darkroom-permuted", "icrl/DarkroomPermuted-v0", 9, (0, 0), 50, 4, 0.9, "permutation"),
        GridFamily("darkroom-large", "icrl/DarkroomLarge-v0", 15, (7, 7), 50, 4, 0.9, "goal"),
        GridFamily("dark-key-to-door", "icrl/DarkKeyToDoor-v0", 9, (4, 4), 50, 4, 0.95, "key-door"),
    )
}


# ---------------------------------------------------------------- exact values


def random_returns(chosen: Sequence[GridTask]) -> NDArray[np.float64]:
    """(M,) expected return of one episode of uniformly random actions, exact. The tasks share a family."""
    room, rows = chosen[0].family, np.arange(len(chosen))
    walk = np.zeros((room.cells, room.cells))
    np.add.at(walk, (np.arange(room.cells)[:, None], transitions(room.size)), 1 / ACTIONS)
    places = place_cells(chosen)
    at = np.zeros((len(chosen), room.stages, room.cells))
    at[:, 0, cell_of(room.start, room.size)] = 1
    total = np.zeros(len(chosen))
    for _ in range(room.horizon):
        at = at @ walk
        arrived = np.stack([at[rows, stage, places[:, stage]] for stage in range(room.stages)])
        total += arrived.sum(axis=0)
        if room.kind == "key-door":
            for stage in range(room.stages):
                at[rows, stage, places[:, stage]] -= arrived[stage]
            at[rows, 1, places[:, 0]] += arrived[0]
    return total


def optimal_table(task: GridTask) -> NDArray[np.int8]:
    """(stages, cells) best action in each cell while `stage` places are reached: along x, then y, then stay (DICP).

    When the last place is reached the last row goes on holding.
    """
    size = task.family.size
    x, y = np.divmod(np.arange(task.family.cells), size)
    action_of = np.argsort(task.moves)
    table = np.empty((task.family.stages, task.family.cells), np.int8)
    for stage, (goal_x, goal_y) in enumerate(task.places):
        move = np.select([x < goal_x, x > goal_x, y < goal_y, y > goal_y], [0, 1, 2, 3], 4)
        table[stage] = action_of[move]
    return table


def labels(task: GridTask, obs: ArrayLike, rewards: ArrayLike, starts: NDArray[np.bool_]) -> NDArray[np.int8]:
    """(N, T) optimal action at each step of (N, T) histories: obs (N, T, 2), rewards, first steps of episodes."""
    cell = cells_of(obs, task.family.size)
    if task.family.stages == 1:
        return optimal_table(task)[0][cell]
    gained = np.asarray(rewards, np.int64)
    before = np.cumsum(gained, axis=1) - gained
    offset = np.maximum.accumulate(np.where(starts, before, 0), axis=1)
    return optimal_table(task)[np.minimum(before - offset, task.family.stages - 1), cell]


# ---------------------------------------------------------------- arrays


@cache
def transitions(size: int) -> Cells:
    """(cells, 5) cell after each move."""
    x, y = np.divmod(np.arange(size**2), size)
    to_x = np.clip(x[:, None] + MOVES[:, 0], 0, size - 1)
    return to_x * size + np.clip(y[:, None] + MOVES[:, 1], 0, size - 1)


def cells_of(obs: ArrayLike, size: int) -> Cells:
    """(…, 2) positions → (…) cells."""
    place = np.asarray(obs).astype(np.intp)
    return place[..., 0] * size + place[..., 1]


@cache
def positions(size: int) -> NDArray[np.uint8]:
    """(cells, 2) position of each cell."""
    return np.stack(np.divmod(np.arange(size**2), size), axis=-1).astype(np.uint8)


def place_cells(chosen: Sequence[GridTask]) -> Cells:
    """(M, stages) cells of goals, or of keys and doors."""
    return np.array([[cell_of(place, task.family.size) for place in task.places] for task in chosen])


@cache
def _permutations() -> tuple[tuple[int, ...], ...]:
    return tuple(itertools.permutations(range(ACTIONS)))


def cell_of(place: Cell, size: int) -> int:
    """One position's cell."""
    return place[0] * size + place[1]


def _distance(a: Cell, b: Cell) -> int:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])
