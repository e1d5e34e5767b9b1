"""What all families of tasks have in common: the dark grids, the control families, and a user's own environments.

A family is one environment whose tasks differ in something that is not shown. Its tasks are told apart by their index;
`Environments` are copies of some of them as arrays, `Family.make` is one of them as gymnasium has it.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.errors import UsageError

if TYPE_CHECKING:
    import gymnasium as gym

Array = NDArray[Any]
Floats = NDArray[np.float64]
Split = Literal["train", "test", "all"]
RAISED = (Exception, SystemExit)
"""What a user's environment may raise: some end the program."""


class Step(NamedTuple):
    """What a step gives; arrays are (tasks, copies, …) and the caller's to keep."""

    obs: Array
    """(…, O); where an episode ended, the next one's first"""
    rewards: NDArray[np.float32]
    terminations: NDArray[np.bool_]
    """the environment ended the episode"""
    truncations: NDArray[np.bool_]
    """the time limit did"""
    final_obs: Array | None
    """(…, O) the true last observation where an episode ended in this step; None where none did"""


class Environments(Protocol):
    """Copies of an environment in arrays; an episode begins anew in the step that ends it (gymnasium's SAME_STEP)."""

    episodes: int | None
    """that a copy is asked for; where episodes end apart, one that has had them may wait, ended in every step"""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def reset(self) -> Array:
        """(*shape, O) first observations of new episodes everywhere."""
        ...

    def step(self, actions: Array) -> Any:
        """A `Step` for actions (*shape[, A])."""
        ...


class Task(Protocol):
    """One task of a family."""

    @property
    def family(self) -> Family[Any]: ...

    @property
    def index(self) -> int:
        """Its number; from the family's length on, a task that is not on the family's list."""
        ...

    @property
    def params(self) -> Mapping[str, Any]:
        """What tells it apart, as a task file has it: plain numbers, text and lists."""
        ...


@dataclass(frozen=True)
class Plane:
    """How an episode is drawn from above: both axes from `low` to `high`, `marks` the places to find."""

    low: float
    high: float
    marks: Sequence[tuple[float, float]]
    way: Callable[[Array], Array]
    """(T, O) observations → (T, 2) places"""
    apart: float = 0.0
    """how far steps that lie on each other are moved so that both show"""


T = TypeVar("T", bound=Task)


class Family(ABC, Generic[T]):
    """Tasks of one environment. `horizon`: steps of the longest episode."""

    name: str
    env_id: str
    horizon: int
    best_is: str = "the optimum"
    """what a normalised return of 1 stands for"""

    def ready(self) -> None:
        """Raises `EnvironmentUnfit` where what its tasks are played with is not installed."""

    @property
    @abstractmethod
    def observation_space(self) -> dict[str, Any]:
        """As a store describes it, see `store`."""

    @property
    @abstractmethod
    def action_space(self) -> dict[str, Any]:
        """As a store describes it, see `store`."""

    @abstractmethod
    def __len__(self) -> int:
        """Tasks on its list."""

    @abstractmethod
    def task(self, index: int) -> T:
        """Raises `UsageError` for an index that does not exist."""

    @abstractmethod
    def find(self, params: Mapping[str, Any]) -> T:
        """The task of given parameters. Raises `UsageError`."""

    @abstractmethod
    def tasks(self, split: Split = "all") -> list[T]:
        """All in index order, or a part of the fixed split in its shuffled order."""

    @abstractmethod
    def batch(self, chosen: Sequence[T], copies: int, seed: int = 0) -> Environments:
        """`copies` of each task; what is drawn in one depends on `seed`, the task and its number alone."""

    @abstractmethod
    def make(self, task: T, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """One task as gymnasium has it, with its time limit."""

    @abstractmethod
    def chance(self, chosen: Sequence[T]) -> Floats:
        """(M,) return of an episode of uniformly random actions; NaN where not known."""

    @abstractmethod
    def best(self, chosen: Sequence[T]) -> Floats:
        """(M,) return that counts as 1, see `best_is`; NaN where not known."""

    def expert(self, task: T) -> Callable[[Array], Array] | None:
        """(…, O) observations → (…, A) real actions of one who knows the task; None where there is none."""
        return None

    def labels(self, task: T, obs: Array, rewards: Array, starts: NDArray[np.bool_]) -> Array | None:
        """(N, T[, A]) best action at each step of (N, T) histories: the expert's; None where no one knows it."""
        expert = self.expert(task)
        return None if expert is None else expert(obs)

    def plane(self, task: T) -> Plane | None:
        """None where nothing can be drawn from above."""
        return None

    def frames(self, task: T, obs: Array, rewards: Array) -> list[NDArray[np.uint8]] | None:
        """(height, width, 3) pictures of an episode's T steps; None where the environment has to render them."""
        return None


@dataclass(frozen=True)
class Broken:
    """A copy that could not go on; its task is left out of what was played."""

    task: int
    """row of the task in the batch"""
    said: str
    episode: int = field(default=0)
    """from 1; 0: it never began"""
    step: int = field(default=0)

    def __str__(self) -> str:
        where = f"episode {self.episode}, step {self.step}: " if self.episode else ""
        return f"{where}{self.said}"


def box(numbers: int, limit: float | None = None) -> dict[str, Any]:
    """Reals up to `limit`, up and down, as a store describes them."""
    low = None if limit is None else -limit
    return {"kind": "box", "shape": [numbers], "dtype": "float32", "low": low, "high": limit}


def whole_numbers(name: str, value: Any) -> list[int]:
    """A parameter that is a list of whole numbers. Raises `UsageError` for all else, which `int` would cut or split."""
    given = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(each, bool | str) or not float(each).is_integer() for each in given):
        raise UsageError(f"{name} {str(value)[:40]}: whole numbers wanted, such as [4, 2]")
    return [int(each) for each in given]


def shuffled(count: int, seed: int, share: float, split: Split) -> list[int]:
    """Numbers of a split: ``random.seed(seed); random.shuffle(list)`` as DICP's code has it, then the first `share`."""
    order = list(range(count))
    if split != "all":
        random.Random(seed).shuffle(order)
        border = round(count * share)
        order = order[:border] if split == "train" else order[border:]
    return order
