"""A user's own environment as a family: its tasks are keyword arguments that ``gymnasium.make`` hands on.

``env: my_package:MyEnv-v0`` imports `my_package`, as gymnasium does; nothing else is imported. What a task's
environment is like is found out by making it and taking one step, before anything is played.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np

from robotics.icrl.envs.base import RAISED, Family, Floats, Split
from robotics.icrl.envs.gym_batch import GymBatch
from shared.errors import SuiteError, UsageError, named_line, need

if TYPE_CHECKING:
    import gymnasium as gym

_ID = re.compile(r".+:.+|.+-v\d+")
_OLD = "the interface before gymnasium 0.26"


def is_own(name: str) -> bool:
    """Whether `name` looks like an id of gymnasium's: ``module:Name-v0`` or ``Name-v0``."""
    return bool(_ID.fullmatch(name))


@dataclass(frozen=True)
class GymTask:
    """Keyword arguments of the environment; `index` is the place in the file."""

    family: GymFamily
    index: int
    params: Mapping[str, Any]


class GymFamily(Family[GymTask]):
    """`rows` of keyword arguments; `faults` says which of them cannot be played.

    `horizon`: steps of an episode at most, where the environment has no limit of its own, or another. `random` and
    `optimum`: the returns that count as 0 and 1. Raises `UsageError` where there is no such environment or no limit,
    and with the first fault where no task can be played.
    """

    best_is = "the optimum that the file gives"

    def __init__(
        self,
        env_id: str,
        rows: Sequence[Mapping[str, Any]],
        horizon: int | None = None,
        random: float | None = None,
        optimum: float | None = None,
    ) -> None:
        self.name = self.env_id = env_id
        self._limit, self._random, self._optimum = horizon, random, optimum
        self.horizon = horizon or _limit_of(env_id)
        self.rows = [dict(row) for row in rows]
        self.faults: dict[int, str] = {}
        self._spaces: tuple[dict[str, Any], dict[str, Any]] | None = None
        makes_own = _makes_own()
        for number, row in enumerate(self.rows):
            try:
                if odd := sorted(makes_own & set(row)):
                    raise UsageError(
                        f"{odd[0]} is gymnasium.make's own; arguments of {env_id} wanted (`horizon:` of the file "
                        "limits episodes)"
                    )
                found = _probed(self._made(row), env_id)
                self._spaces = self._spaces or found
                if found != self._spaces:
                    raise UsageError(
                        f"{env_id}: {_said(*found)}; {_said(*self._spaces)} as in the other tasks wanted"
                    )
            except SuiteError as err:
                self.faults[number] = str(err)
        if self._spaces is None:
            raise UsageError(next(iter(self.faults.values()), f"{env_id}: no task; one or more wanted"))

    @property
    def observation_space(self) -> dict[str, Any]:
        assert self._spaces is not None
        return self._spaces[0]

    @property
    def action_space(self) -> dict[str, Any]:
        assert self._spaces is not None
        return self._spaces[1]

    def __len__(self) -> int:
        return len(self.rows)

    def task(self, index: int) -> GymTask:
        if index in self.faults:
            raise UsageError(self.faults[index])
        return GymTask(self, index, self.rows[index])

    def find(self, params: Mapping[str, Any]) -> GymTask:
        return self.task(self.rows.index(dict(params)))

    def tasks(self, split: Split = "all") -> list[GymTask]:
        """All that can be played: none was ever trained on."""
        return [self.task(index) for index in range(len(self)) if index not in self.faults]

    def batch(self, chosen: Sequence[GymTask], copies: int, seed: int = 0) -> GymBatch:
        return GymBatch(chosen, copies, seed)

    def make(self, task: GymTask, render_mode: str | None = None) -> gym.Env[Any, Any]:
        keys = {} if render_mode is None else {"render_mode": render_mode}
        return self._made({**task.params, **keys})

    def chance(self, chosen: Sequence[GymTask]) -> Floats:
        return np.full(len(chosen), np.nan if self._random is None else self._random)

    def best(self, chosen: Sequence[GymTask]) -> Floats:
        return np.full(len(chosen), np.nan if self._optimum is None else self._optimum)

    def _made(self, keys: Mapping[str, Any]) -> gym.Env[Any, Any]:
        import gymnasium

        limit = {} if self._limit is None else {"max_episode_steps": self._limit}
        try:
            return gymnasium.make(self.env_id, disable_env_checker=True, **limit, **keys)
        except RAISED as err:
            raise UsageError(
                f"{self.env_id} with {_short(keys)}: {named_line(err)}; keyword arguments it takes wanted"
            ) from err


def _makes_own() -> set[str]:
    """Keyword arguments that an environment would not get, or that are ours to give."""
    import gymnasium

    named = signature(gymnasium.make).parameters.values()
    return {"render_mode", *(each.name for each in named if each.kind is not each.VAR_KEYWORD)}


def _limit_of(env_id: str) -> int:
    need("robotics", "gymnasium")
    import gymnasium

    from robotics.icrl import envs

    envs.register()
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            import_module(module)
        found = gymnasium.spec(name).max_episode_steps
    except RAISED as err:
        raise UsageError(
            f"environment {env_id}: {named_line(err)}; an id that gymnasium knows, or module:id of an installed "
            "module, wanted"
        ) from err
    if found is None:
        raise UsageError(f"{env_id}: no time limit; `horizon:`, the steps of an episode at most, wanted")
    return int(found)


def _probed(env: Any, env_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Spaces of an environment that takes one step as it should. Raises `UsageError`."""
    bare = env
    while isinstance(bare, _added()):
        bare = bare.env
    try:
        spaces = (_space(bare.observation_space, "observation"), _space(bare.action_space, "action"))
        begun: Any = bare.reset(seed=0)
        if not (isinstance(begun, tuple) and len(begun) == 2 and isinstance(begun[1], Mapping)):
            raise UsageError(f"{env_id}: reset gives no (observation, info), {_OLD}; return both")
        _numbers(begun[0], f"{env_id}: its first observation")
        bare.action_space.seed(0)
        step: Any = bare.step(bare.action_space.sample())
        if not (isinstance(step, tuple) and len(step) == 5):
            given = f"{len(step)} values" if isinstance(step, tuple) else f"a {type(step).__name__}"
            raise UsageError(
                f"{env_id}: step gives {given}, {_OLD}; observation, reward, terminated, truncated, info wanted"
            )
        _numbers(step[0], f"{env_id}: its observation after a step")
        _numbers(step[1], f"{env_id}: its reward")
    except SuiteError:
        raise
    except RAISED as err:
        raise UsageError(f"{env_id}: {named_line(err)} in a first step; one that works wanted") from err
    finally:
        with suppress(*RAISED):
            env.close()
    return spaces


def _added() -> tuple[Any, ...]:
    """What `gymnasium.make` puts around an environment: they take the interface for granted that is asked for here."""
    from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

    return OrderEnforcing, PassiveEnvChecker, TimeLimit


def _numbers(values: Any, what: str) -> None:
    if not np.isfinite(np.asarray(values, float)).all():
        raise UsageError(f"{what} is {np.asarray(values, float).ravel()[:4].tolist()}; finite numbers wanted")


def _space(space: Any, which: str) -> dict[str, Any]:
    """As a store describes it, with the `start` of actions that do not begin at 0. Raises `UsageError`."""
    from gymnasium.spaces import Box, Discrete, MultiDiscrete

    if isinstance(space, Discrete) and (which == "action" or space.start == 0):
        start = {"start": int(space.start)} if space.start else {}
        return {"kind": "discrete", "n": int(space.n), **start}
    if which == "observation" and isinstance(space, MultiDiscrete):
        high = (space.nvec.ravel() - 1).tolist()
        return {"kind": "box", "shape": [len(high)], "dtype": "int64", "low": 0, "high": high}
    if isinstance(space, Box):
        found: dict[str, Any] = {"kind": "box", "shape": list(space.shape), "dtype": str(space.dtype)}
        if which == "observation" and space.dtype.kind == "f":
            return found | {"low": None, "high": None}
        if np.isfinite(space.low).all() and np.isfinite(space.high).all():
            return found | {"low": space.low.tolist(), "high": space.high.tolist()}
    wanted = "a Box or Discrete" if which == "observation" else "a bounded Box or Discrete"
    raise UsageError(f"{which} space {str(space)[:80]}; {wanted} wanted; wrap the environment")


def _said(see: Mapping[str, Any], do: Mapping[str, Any]) -> str:
    return f"observations {_plain(see)}, actions {_plain(do)}"


def _plain(space: Mapping[str, Any]) -> str:
    if space["kind"] == "discrete":
        first = space.get("start", 0)
        return f"of {space['n']} kinds" + (f" from {first}" if first else "")
    limits = "" if space["low"] is None else f" from {_few(space['low'])} to {_few(space['high'])}"
    return f"{space['shape']} {space['dtype']}{limits}"


def _few(values: Any) -> str:
    flat = np.ravel(values)
    return f"{flat[0]:g}" if (flat == flat[0]).all() else str(flat[:4].tolist())


def _short(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in keys.items())[:80] or "no arguments"
