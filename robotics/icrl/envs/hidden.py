"""gymnasium's Reacher-v5, HalfCheetah-v5, Ant-v5 and Pusher-v5 with a task that no observation shows.

Importing this module registers ``icrl/Reacher-v0``, ``icrl/HalfCheetah-v0``, ``icrl/Ant-v0``, ``icrl/Pusher-v0`` and
``…Dynamics-v0``; `goal` is what `envs.control` says, `dynamics` what differs in the world.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.pusher_v5 import PusherEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from numpy.typing import NDArray

from robotics.icrl.envs.control import CONTROL

Reals = NDArray[np.float64]


def _change(model: Any, dynamics: Mapping[str, float]) -> None:
    model.opt.gravity[:] *= dynamics.get("gravity", 1.0)
    model.opt.viscosity = dynamics.get("viscosity", model.opt.viscosity)
    model.dof_damping[:] *= dynamics.get("damping", 1.0)


def _unbounded(numbers: int) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, (numbers,), np.float64)


@contextmanager
def _quiet() -> Iterator[None]:
    """gymnasium's half-cheetah has a deprecated attribute; MuJoCo would say so, and write MUJOCO_LOG.TXT, each time."""
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda _: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)


class HiddenReacher(ReacherEnv):  # type: ignore[misc]
    """Neither the target nor the way to it is seen. An action costs nothing: of random ones it would be four fifths of
    the reward, and would hide the distance."""

    def __init__(
        self, goal: Sequence[float] = (0.1, 0.1), dynamics: Mapping[str, float] | None = None, **keys: Any
    ) -> None:
        super().__init__(reward_control_weight=0.0, **keys)
        self.hidden = np.asarray(goal, float)
        self.observation_space = _unbounded(8)
        _change(self.model, dynamics or {})

    def reset_model(self) -> Reals:
        qpos = self.init_qpos + self.np_random.uniform(-0.1, 0.1, self.model.nq)
        qvel = self.init_qvel + self.np_random.uniform(-0.005, 0.005, self.model.nv)
        qpos[-2:], qvel[-2:] = self.hidden, 0
        self.set_state(qpos, qvel)
        return self._get_obs()

    def _get_obs(self) -> Reals:
        angle, speed = self.data.qpos[:2], self.data.qvel[:2]
        return np.concatenate([np.cos(angle), np.sin(angle), speed, self.get_body_com("fingertip")[:2]])


class HiddenHalfCheetah(HalfCheetahEnv):  # type: ignore[misc]
    """Run at a speed that only the reward tells."""

    def __init__(
        self, goal: Sequence[float] = (1.0,), dynamics: Mapping[str, float] | None = None, **keys: Any
    ) -> None:
        with _quiet():
            super().__init__(ctrl_cost_weight=0.05, **keys)
        self.hidden = float(goal[0])
        _change(self.model, dynamics or {})

    def _get_rew(self, x_velocity: float, action: Any) -> tuple[float, dict[str, float]]:
        miss, cost = -abs(x_velocity - self.hidden), self.control_cost(action)
        return miss - cost, {"reward_forward": miss, "reward_ctrl": -cost}


class HiddenAnt(AntEnv):  # type: ignore[misc]
    """Walk in a direction that only the reward tells. Falling over ends nothing, standing earns nothing."""

    def __init__(
        self, goal: Sequence[float] = (0.0,), dynamics: Mapping[str, float] | None = None, **keys: Any
    ) -> None:
        fixed: dict[str, Any] = {
            "terminate_when_unhealthy": False,
            "healthy_reward": 0.0,
            "forward_reward_weight": 0.0,
        }
        super().__init__(include_cfrc_ext_in_observation=False, **fixed, **keys)
        self.hidden = np.array([np.cos(goal[0]), np.sin(goal[0])])
        _change(self.model, dynamics or {})

    def step(self, action: Any) -> Any:
        obs, reward, ended, cut, info = super().step(action)
        speed = np.array([info["x_velocity"], info["y_velocity"]])
        return obs, float(reward + speed @ self.hidden), ended, cut, info


class HiddenPusher(PusherEnv):  # type: ignore[misc]
    """Push a puck to a place that only the reward tells."""

    def __init__(
        self, goal: Sequence[float] = (0.0, 0.0), dynamics: Mapping[str, float] | None = None, **keys: Any
    ) -> None:
        super().__init__(**keys)
        self.hidden = np.asarray(goal, float)
        self.observation_space = _unbounded(20)
        _change(self.model, dynamics or {})

    def reset_model(self) -> Reals:
        super().reset_model()
        qpos, qvel = self.data.qpos.copy(), self.data.qvel.copy()
        qpos[-2:] = self.hidden[::-1]  # its slides are y, then x
        self.set_state(qpos, qvel)
        return self._get_obs()

    def _get_obs(self) -> Reals:
        return np.asarray(super()._get_obs()[:20])


_CLASSES = {
    "reacher": HiddenReacher,
    "half-cheetah": HiddenHalfCheetah,
    "ant": HiddenAnt,
    "pusher": HiddenPusher,
}
for _each in CONTROL.values():
    if _each.env_id not in gym.registry:
        gym.register(_each.env_id, _CLASSES[_each.kind], max_episode_steps=_each.horizon)
