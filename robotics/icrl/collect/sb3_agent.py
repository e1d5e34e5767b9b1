"""One agent of Stable-Baselines3 on copies of one task, and the steps it made. Imported where the library is there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from numpy.typing import NDArray
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

from shared.errors import UsageError, first_line
from shared.training.seed import isolated_rng

Array = NDArray[Any]


class Log(NamedTuple):
    """(steps, streams, …); `final_obs`: the true last observation where an episode ended and at the last step, or 0."""

    obs: Array
    actions: Array
    rewards: NDArray[np.float32]
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    final_obs: Array

    @classmethod
    def empty(cls, steps: int, streams: int, see: gym.Space[Any], do: gym.Space[Any]) -> Log:
        shape = (steps, streams)
        obs = np.zeros((*shape, *(see.shape or ())), stored_type(see))
        actions = np.zeros((*shape, *(do.shape or ())), stored_type(do))
        return cls(
            obs,
            actions,
            np.zeros(shape, np.float32),
            np.zeros(shape, bool),
            np.zeros(shape, bool),
            obs.copy(),
        )

    @staticmethod
    def join(logs: Sequence[Log]) -> Log:
        """Streams of all `logs` side by side."""
        return logs[0] if len(logs) == 1 else Log(*(np.concatenate(each, 1) for each in zip(*logs)))


def stored_type(space: gym.Space[Any]) -> np.dtype[Any]:
    """The smallest type that holds whole numbers of a space; float32 for reals."""
    if isinstance(space, gym.spaces.Discrete):
        return np.min_scalar_type(int(space.start + space.n - 1))
    if isinstance(space, gym.spaces.Box) and space.dtype.kind in "iu" and space.low.min() >= 0:
        return np.min_scalar_type(int(space.high.max()))
    return np.dtype(np.float32 if space.dtype is None or space.dtype.kind == "f" else space.dtype)


class Recorder(VecEnvWrapper):
    """Copies of an environment that note the first `steps` steps made in them.

    Rewards, ends and the true last observation (`terminal_observation`) are those of the environment; without
    `bootstrap` the agent is told that a time limit is an end like any other.
    """

    def __init__(self, copies: DummyVecEnv, steps: int, bootstrap: bool) -> None:
        super().__init__(copies)
        self.steps, self.bootstrap, self.done = steps, bootstrap, 0
        self.log = Log.empty(steps, copies.num_envs, copies.observation_space, copies.action_space)
        self._obs: Array = np.zeros(0)
        self._sent: Array = np.zeros(0)

    def reset(self) -> Array:  # type: ignore[override]
        self._obs = np.asarray(self.venv.reset())
        return self._obs

    def step_async(self, actions: Array) -> None:
        self._sent = actions
        self.venv.step_async(actions)

    def step_wait(self) -> tuple[Any, Array, Array, list[dict[str, Any]]]:
        obs, rewards, ends, infos = self.venv.step_wait()
        if self.done < self.steps:
            self._note(np.asarray(obs), rewards, ends, infos)
        self._obs = np.asarray(obs)
        if not self.bootstrap:
            for info in infos:
                info["TimeLimit.truncated"] = False
        return obs, rewards, ends, infos

    def _note(self, obs: Array, rewards: Array, ends: Array, infos: Sequence[Mapping[str, Any]]) -> None:
        at, log = self.done, self.log
        cut = np.array([bool(info["TimeLimit.truncated"]) for info in infos])
        log.obs[at], log.actions[at], log.rewards[at] = self._obs, self._sent, rewards
        log.terminations[at], log.truncations[at] = ends & ~cut, ends & cut
        self.done += 1
        if self.done == self.steps:
            log.final_obs[at] = obs
        for stream in np.flatnonzero(ends).tolist():
            log.final_obs[at, stream] = infos[stream]["terminal_observation"]


def learn(
    make: Callable[[], gym.Env[Any, Any]],
    streams: int,
    steps: int,
    seed: int,
    algorithm: str,
    settings: Mapping[str, Any],
    bootstrap: bool,
) -> Log:
    """What an agent does in the first `steps` steps of each of `streams` copies, learning from all of them.

    On one thread of the CPU, so that a seed gives the same steps; the caller's random numbers are left alone. Raises
    `UsageError` for settings that the algorithm refuses.
    """
    copies = DummyVecEnv([make] * streams)
    recorder = Recorder(copies, steps, bootstrap)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with isolated_rng(seed), warnings.catch_warnings():
            # A last minibatch that is not full is trained on like the others.
            warnings.filterwarnings("ignore", message="You have specified a mini-batch size of")
            agent = getattr(stable_baselines3, algorithm.upper())(
                env=recorder, seed=seed, device="cpu", **settings
            )
            agent.set_logger(Logger(folder=None, output_formats=[]))  # its own makes a folder of each run
            # Ends where the history does: what would be learned after its last step shows nowhere.
            agent.learn(steps * streams, callback=lambda *_: recorder.done < steps)
    except (TypeError, ValueError, AssertionError) as err:
        raise UsageError(
            f"collector sb3, {algorithm}: {first_line(err)}; correct data.options.settings"
        ) from err
    finally:
        torch.set_num_threads(threads)
        recorder.close()
    return recorder.log
