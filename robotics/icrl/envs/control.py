"""Continuous control with a hidden task, on gymnasium's MuJoCo environments; the environments are in `hidden`.

=============  =====================================  =======  ============================================
family         hidden task                            horizon  reward
=============  =====================================  =======  ============================================
reacher        where the fingertip shall be (m)       50       −distance of fingertip and goal (m)
half-cheetah   forward speed, 0 to 3 m/s              200      −|speed − wanted| − 0.05 |action|²
ant            direction to walk in, 0 to 2π rad      200      speed in that direction − costs
pusher         where the puck shall be (m)            100      −distance of puck and goal and lesser terms
=============  =====================================  =======  ============================================

The lists of tasks and their splits are ours [R] and never change: 200 of each (seed 0), of which 20 are held out; of
``<family>-dynamics`` each also has gravity ±10 % and a viscosity (as Vintix varies them, arXiv 2501.19400) and damping.
A task file may name tasks that are on no list.

What normalises a return is computed by playing episodes from fixed seeds (`reference`): uniformly random actions (0)
and, in reacher, the expert (1). The others have no expert: there 1 is what cannot be passed (a return of 0,
half-cheetah and pusher), or a scale (1 m/s, ant).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from robotics.icrl.envs.base import Array, Family, Floats, Plane, Split, box, shuffled
from robotics.icrl.envs.gym_batch import GymBatch
from robotics.icrl.envs.reacher import LINKS, draw_arm, fingertip, pull
from robotics.icrl.envs.reference import reference
from shared.errors import UsageError

if TYPE_CHECKING:
    import gymnasium as gym

COUNT, TRAIN_SHARE, SPLIT_SEED = 200, 0.9, 0
DYNAMICS: Mapping[str, tuple[float, float]] = {
    "gravity": (0.0, 2.0),
    "viscosity": (0.0, 1.0),
    "damping": (0.1, 10.0),
}
"""Factor of gravity, viscosity of the medium (Pa s), factor of the joints' damping: least and most."""
Kind = Literal["reacher", "half-cheetah", "ant", "pusher"]


@dataclass(frozen=True)
class ControlTask:
    """One hidden goal, and how the world differs from the ordinary one."""

    family: ControlFamily
    index: int
    goal: tuple[float, ...]
    dynamics: tuple[tuple[str, float], ...] = ()

    @property
    def params(self) -> dict[str, Any]:
        """``goal``, ``speed`` or ``direction``; `DYNAMICS` where they are not the ordinary ones."""
        value = list(self.goal) if len(self.goal) > 1 else self.goal[0]
        return {self.family.key: value, **dict(self.dynamics)}


@dataclass(frozen=True)
class ControlFamily(Family[ControlTask]):
    """Tasks of one body."""

    name: str
    env_id: str
    kind: Kind
    horizon: int
    key: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    numbers: int
    """of an observation"""
    actions: int
    """numbers of an action"""
    limit: float
    """of each of them, up and down"""
    best_is: str
    varied: bool = False

    @property
    def observation_space(self) -> dict[str, Any]:
        return box(self.numbers)

    @property
    def action_space(self) -> dict[str, Any]:
        return box(self.actions, self.limit)

    def __len__(self) -> int:
        return COUNT

    def task(self, index: int) -> ControlTask:
        if not 0 <= index < COUNT:
            raise UsageError(f"task {index} of {self.name}: unknown; 0 to {COUNT - 1}")
        goal, dynamics = _listed(self)[index]
        return ControlTask(self, index, goal, dynamics)

    def find(self, params: Mapping[str, Any]) -> ControlTask:
        """The listed task with these parameters, or one of its own, numbered `COUNT`. Raises `UsageError`."""
        if odd := sorted(set(params) - {self.key, *DYNAMICS}):
            wanted = f"{self.key} and, if wanted, {', '.join(DYNAMICS)}"
            raise UsageError(f"task of {self.name}: {odd[0]}; {wanted}")
        if self.key not in params:
            raise UsageError(f"task of {self.name}: no {self.key}; one wanted")
        goal = _numbers(self.key, params[self.key], self.low, self.high)
        if self.kind == "reacher" and math.hypot(*goal) > sum(LINKS):
            raise UsageError(
                f"{self.key} {list(goal)}: out of reach; at most {sum(LINKS):g} m from the middle wanted"
            )
        dynamics = tuple(
            (name, _numbers(name, params[name], (low,), (high,))[0])
            for name, (low, high) in DYNAMICS.items()
            if name in params
        )
        listed = _listed(self)
        at = listed.index((goal, dynamics)) if (goal, dynamics) in listed else COUNT
        return ControlTask(self, at, goal, dynamics)

    def tasks(self, split: Split = "all") -> list[ControlTask]:
        return [self.task(index) for index in shuffled(COUNT, SPLIT_SEED, TRAIN_SHARE, split)]

    def batch(self, chosen: Sequence[ControlTask], copies: int, seed: int = 0) -> GymBatch:
        return GymBatch(chosen, copies, seed)

    def make(self, task: ControlTask, render_mode: str | None = None) -> gym.Env[Any, Any]:
        """Raises `EnvironmentUnfit` where MuJoCo is not installed."""
        from robotics.icrl.envs import register

        register()
        import gymnasium

        keys: dict[str, Any] = {
            "goal": task.goal,
            "dynamics": dict(task.dynamics),
            "render_mode": render_mode,
        }
        return gymnasium.make(self.env_id, disable_env_checker=True, **keys)

    # ------------------------------------------------------------ what is known of the tasks

    def chance(self, chosen: Sequence[ControlTask]) -> Floats:
        return np.array([reference(task) for task in chosen])

    def best(self, chosen: Sequence[ControlTask]) -> Floats:
        if self.kind == "reacher":
            return np.array([reference(task, expert=True) for task in chosen])
        walked = self.horizon * 1.0 if self.kind == "ant" else 0.0
        return np.full(len(chosen), walked)

    def expert(self, task: ControlTask) -> Callable[[Array], Array] | None:
        """(…, O) observations → (…, A) actions of one who knows the goal; None where there is none."""
        return (lambda obs: pull(obs, task.goal)) if self.kind == "reacher" else None

    # ------------------------------------------------------------ pictures

    def plane(self, task: ControlTask) -> Plane | None:
        if self.kind == "reacher":
            return Plane(-0.24, 0.24, [(task.goal[0], task.goal[1])], fingertip)
        if self.kind == "pusher":  # the puck's place; the table's middle is at (0.45, −0.05) m
            goal = (0.45 + task.goal[0], -0.05 + task.goal[1])
            return Plane(-0.4, 0.8, [goal], lambda obs: np.asarray(obs)[..., 17:19])
        return None

    def frames(self, task: ControlTask, obs: Array, rewards: Array) -> list[NDArray[np.uint8]] | None:
        """The arm from above, drawn from what was observed, so that no graphics library is needed."""
        return [draw_arm(one, task.goal) for one in obs] if self.kind == "reacher" else None


def _numbers(name: str, value: Any, low: Sequence[float], high: Sequence[float]) -> tuple[float, ...]:
    given = value if isinstance(value, list | tuple) else [value]
    numbers = [float("nan") if isinstance(each, bool | str) else float(each) for each in given]
    if len(numbers) != len(low) or not all(a <= x <= b for a, x, b in zip(low, numbers, high)):
        span = " and ".join(f"{a:g} to {b:.4g}" for a, b in zip(low, high))
        count = "one number" if len(low) == 1 else f"{len(low)} numbers"
        raise UsageError(f"{name} {value}: {count} from {span} wanted")
    return tuple(numbers)


@cache
def _listed(room: ControlFamily) -> list[tuple[tuple[float, ...], tuple[tuple[str, float], ...]]]:
    """Goals to four digits, so that they can be written down; Python's own generator, the same in all its versions."""
    draw = random.Random(0)
    found: list[tuple[tuple[float, ...], tuple[tuple[str, float], ...]]] = []
    while len(found) < COUNT:
        goal = tuple(round(a + (b - a) * draw.random(), 4) for a, b in zip(room.low, room.high))
        varied = (
            ("gravity", round(0.9 + 0.2 * draw.random(), 4)),
            ("viscosity", (0.0, 0.05, 0.1)[int(3 * draw.random())]),
            ("damping", round(math.exp(math.log(2) * (2 * draw.random() - 1)), 4)),
        )
        if room.kind == "reacher" and not 0.05 <= math.hypot(*goal) <= 0.2:
            continue
        found.append((goal, varied if room.varied else ()))
    return found


def _families() -> list[ControlFamily]:
    plain = [
        ("reacher", "icrl/Reacher-v0", "reacher", 50, "goal", (-0.21,) * 2, (0.21,) * 2, 8, 2, 1.0),
        ("half-cheetah", "icrl/HalfCheetah-v0", "half-cheetah", 200, "speed", (0.0,), (3.0,), 17, 6, 1.0),
        ("ant", "icrl/Ant-v0", "ant", 200, "direction", (0.0,), (2 * math.pi,), 27, 8, 1.0),
        ("pusher", "icrl/Pusher-v0", "pusher", 100, "goal", (-0.2, -0.2), (0.1, 0.2), 20, 7, 2.0),
    ]
    # icrl/Reacher-v0 and icrl/ReacherDynamics-v0, and so on
    is_one = ("the expert's return", "no error at all", "walking at 1 m/s", "no distance at all")
    return [
        ControlFamily(f"{name}{end}", env.replace("-v", f"{more}-v"), *rest, best_is, bool(end))  # type: ignore[arg-type, call-arg]
        for end, more in (("", ""), ("-dynamics", "Dynamics"))
        for (name, env, *rest), best_is in zip(plain, is_one)
    ]


CONTROL = {each.name: each for each in _families()}
