"""Meta-World's ML1 (Yu et al. 2019, arXiv 1910.10897): a robot's arm, one skill a family, places as hidden tasks.

Of each skill 50 tasks to train and 50 to test, as ``metaworld.ML1("reach-v3", seed=0)`` gives them (its test tasks are
of seed 1): numbers 0 to 49 and 50 to 99. A task is where the objects and the goal are; every episode of it begins the
same. The goal is not observed. Where the objects are is, so that in skills whose goal is an object's place, such as
button-press and door-unlock, nothing is hidden.

Observation and horizon as in DICP's code (arXiv 2502.19009): of ML1's 39 numbers the first 11 (place of the hand, m;
how open the gripper is; place, m, and quaternion of the object), or 18 where there are two objects. Of the rest 18 are
those of the step before, which a context holds, and 3 the goal, zeros. Actions are 4 reals up to 1: a step of the hand,
cm, and the gripper's force. Rewards are dense, at most 10 a step. Whether a task was solved (`success`) is not kept.

The experts are Meta-World's scripted policies. They know the goal, and use nothing else that an agent does not see.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from robotics.icrl.envs.base import Array, Family, Floats, Split, box
from robotics.icrl.envs.gym_batch import GymBatch
from robotics.icrl.envs.names import ML1_TASKS
from robotics.icrl.envs.reference import reference
from shared.errors import EnvironmentUnfit, UsageError

if TYPE_CHECKING:
    import gymnasium as gym

PINNED: Mapping[str, str] = {"metaworld": "3.1.1", "mujoco": "3.3.0"}
"""What the extra `metaworld` installs; with a later MuJoCo Meta-World's environments cannot be made."""
COUNT, TRAIN = 100, 50
HORIZON, MOST = 100, 10.0
_TWO_OBJECTS = ("hammer", "stick-pull", "stick-push")
_SEEN, _SEEN_OF_TWO, _BEFORE_GOAL = 11, 18, 36


@dataclass(frozen=True)
class ML1Task:
    """Places of the objects and the goal, as Meta-World's list has them at `index`."""

    family: ML1Family
    index: int

    @property
    def params(self) -> dict[str, Any]:
        """``index``: Meta-World's own description of a task is not for people."""
        return {"index": self.index}


@dataclass(frozen=True)
class ML1Family(Family[ML1Task]):
    """One skill."""

    skill: str
    horizon: int = HORIZON
    best_is: str = "a reward of 10 a step"

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"ml1-{self.skill}"

    @property
    def env_id(self) -> str:  # type: ignore[override]
        """Of stores; gymnasium does not know it."""
        return f"icrl/ML1-{self.skill}-v3"

    @property
    def numbers(self) -> int:
        """Of an observation."""
        return _SEEN_OF_TWO if self.skill in _TWO_OBJECTS else _SEEN

    @property
    def observation_space(self) -> dict[str, Any]:
        return box(self.numbers)

    @property
    def action_space(self) -> dict[str, Any]:
        return box(4, 1.0)

    def ready(self) -> None:
        """Raises `EnvironmentUnfit` without Meta-World, or with another MuJoCo than its own."""
        found = {name: _installed(name) for name in PINNED}
        if found != PINNED:
            there = ", ".join(f"{name} {found[name] or 'not installed'}" for name in PINNED)
            raise EnvironmentUnfit(
                f"{self.name}: {there}; {' with '.join(f'{name} {PINNED[name]}' for name in PINNED)} wanted; run "
                "`make metaworld`, or `pip install -e '.[metaworld]'` in an environment of its own"
            )

    def __len__(self) -> int:
        return COUNT

    def task(self, index: int) -> ML1Task:
        if not 0 <= index < COUNT:
            raise UsageError(f"task {index} of {self.name}: unknown; 0 to {COUNT - 1}")
        return ML1Task(self, index)

    def find(self, params: Mapping[str, Any]) -> ML1Task:
        """Of ``index``: there are no others than those on Meta-World's list. Raises `UsageError`."""
        if set(params) != {"index"}:
            said = ", ".join(sorted(params)) or "nothing"
            raise UsageError(f"task of {self.name}: {said}; index: 0 to {COUNT - 1} wanted")
        return self.task(int(params["index"]))

    def tasks(self, split: Split = "all") -> list[ML1Task]:
        """In Meta-World's order, whose places are drawn at random."""
        begin, end = {"train": (0, TRAIN), "test": (TRAIN, COUNT), "all": (0, COUNT)}[split]
        return [ML1Task(self, index) for index in range(begin, end)]

    def batch(self, chosen: Sequence[ML1Task], copies: int, seed: int = 0) -> GymBatch:
        """Some 20 MB a copy. Raises `EnvironmentUnfit`."""
        self.ready()
        return GymBatch(chosen, copies, seed)

    def make(self, task: ML1Task, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Raises `EnvironmentUnfit`."""
        from gymnasium.spaces import Box
        from gymnasium.wrappers import TimeLimit, TransformObservation

        env, width = _made(task, render_mode), self.numbers
        seen = TransformObservation(env, lambda obs: obs[:width], Box(-np.inf, np.inf, (width,), np.float64))
        return TimeLimit(seen, self.horizon)

    # ------------------------------------------------------------ what is known of the tasks

    def chance(self, chosen: Sequence[ML1Task]) -> Floats:
        return np.array([reference(task) for task in chosen])

    def best(self, chosen: Sequence[ML1Task]) -> Floats:
        return np.full(len(chosen), MOST * self.horizon)

    def expert(self, task: ML1Task) -> Callable[[Array], Array]:
        """Meta-World's policy, on observations filled up with the goal. Raises `EnvironmentUnfit`."""
        goal, width = np.array(_goal(task)), self.numbers
        from metaworld.policies import ENV_POLICY_MAP

        policy, unseen = ENV_POLICY_MAP[f"{self.skill}-v3"](), np.zeros(_BEFORE_GOAL - width)

        def act(obs: Array) -> Array:
            seen = np.asarray(obs, float)
            with warnings.catch_warnings():
                # it asks for more than 1, and says each time that this is too much
                warnings.simplefilter("ignore")
                rows = [
                    policy.get_action(np.concatenate([one, unseen, goal])) for one in seen.reshape(-1, width)
                ]
            return np.clip(np.reshape(rows, (*seen.shape[:-1], 4)), -1, 1).astype(np.float32)

        return act


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _benchmark(room: ML1Family) -> tuple[Any, list[Any]]:
    """The class of a skill's environments, and Meta-World's description of all tasks; numpy's global random numbers are
    as before."""
    room.ready()
    import metaworld

    found = metaworld.ML1(f"{room.skill}-v3", seed=0)
    (kind,) = found.train_classes.values()
    return kind, [*found.train_tasks, *found.test_tasks]


def _made(task: ML1Task, render_mode: str | None = None) -> Any:
    """Meta-World's own environment."""
    kind, described = _benchmark(task.family)
    env = kind(render_mode=render_mode)
    env.set_task(described[task.index])
    return env


@cache
def _goal(task: ML1Task) -> tuple[float, ...]:
    """(x, y, z), m, as an observation would end where the goal is shown."""
    env = _made(task)
    env.reset()
    goal = tuple(env._get_pos_goal().tolist())  # ML1's observations have zeros in its place
    env.close()
    return goal


ML1 = {each.name: each for each in map(ML1Family, ML1_TASKS)}
