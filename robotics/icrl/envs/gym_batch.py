"""Copies of gymnasium environments as arrays, each going on by itself: episodes may end at different times.

A copy whose environment raises, or gives something that is no finite number, breaks its whole task: the task's copies
are not stepped any more, count as ended in every step, and `broken` says what happened. So does a copy that has had
its `episodes`, which breaks nothing: what no one asked for cannot fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from robotics.icrl.envs.base import RAISED, Array, Broken, Step, Task
from shared.errors import SuiteError, named_line

if TYPE_CHECKING:
    import gymnasium as gym


LARGEST = 1e18
"""A reward's absolute value; networks compute in single precision, where squares have room up to here."""


class GymBatch:
    """(tasks × copies) environments of one family, made by `Family.make`; `first` is the first copy's number.

    Observations are (…, O): float32, or int64 where the space has whole numbers. Real actions are clipped to the space.
    """

    def __init__(
        self,
        chosen: Sequence[Task],
        copies: int = 1,
        seed: int = 0,
        first: int = 0,
        render_mode: str | None = None,
    ) -> None:
        self.tasks, self.seed, self.first, self.render_mode = tuple(chosen), seed, first, render_mode
        self.shape = (len(chosen), copies)
        self.broken: dict[int, Broken] = {}
        self.episodes: int | None = None
        """Of each copy; None: without end"""
        self._envs: dict[tuple[int, int], gym.Env[Any, Any]] = {}
        self._episode, self._step = np.zeros(self.shape, int), np.zeros(self.shape, int)
        family = chosen[0].family
        whole = "int" in str(family.observation_space.get("dtype", "int"))
        space = family.observation_space
        self._width = int(np.prod(space.get("shape", [1])))
        high = space["n"] - 1 if space["kind"] == "discrete" else space["high"]
        self._high: Array = np.broadcast_to(np.ravel(high) if whole else 0, self._width)
        self._type = np.int64 if whole else np.float32
        self._seeded: NDArray[np.bool_] = np.zeros(self.shape, bool)

    # ------------------------------------------------------------ one copy

    def _guard(self, at: tuple[int, int], act: Callable[[], Any]) -> Any:
        """What `act` gives; None, and the task broken, where it raises."""
        try:
            return act()
        except SuiteError as err:
            said = str(err)
        except RAISED as err:
            said = named_line(err)
        self.broken[at[0]] = Broken(at[0], said[:300], int(self._episode[at]), int(self._step[at]))
        return None

    def _done(self, at: tuple[int, int]) -> bool:
        return self.episodes is not None and bool(self._episode[at] > self.episodes)

    def _begin(self, at: tuple[int, int]) -> Array:
        def begin() -> Array:
            if at not in self._envs:
                self._envs[at] = self.tasks[at[0]].family.make(self.tasks[at[0]], self.render_mode)
            seed = None
            if not self._seeded[at]:
                own = [self.seed, self.tasks[at[0]].index, self.first + at[1]]
                seed = int(np.random.SeedSequence(own).generate_state(1)[0])
                self._seeded[at] = True
            return self._seen(self._envs[at].reset(seed=seed)[0])

        self._episode[at] += 1
        self._step[at] = 0
        found = None if self._done(at) else self._guard(at, begin)
        return np.zeros(self._width, self._type) if found is None else found

    def _seen(self, obs: Any) -> Array:
        given: Array = np.asarray(obs).reshape(-1)
        with np.errstate(all="ignore"):  # what is no such number is named below
            flat: Array = given.astype(self._type)
        if len(flat) != self._width:
            raise ValueError(f"observation of {len(flat)} numbers; {self._width} wanted")
        if self._type is np.int64 and (flat != given).any():
            raise ValueError(f"observation {given[:4].tolist()}; whole numbers wanted, as its space says")
        if self._type is np.float32 and not np.isfinite(flat).all():
            at = int(np.flatnonzero(~np.isfinite(flat))[0])
            raise ValueError(f"observation[{at}] is {flat[at]}; finite numbers wanted")
        top = self._high
        if self._type is np.int64 and ((flat < 0) | (flat > top)).any():
            raise ValueError(f"observation {flat[:4].tolist()}; 0 to {top[:4].tolist()} wanted")
        return flat

    def _act(self, at: tuple[int, int], action: Array) -> tuple[Array, float, bool, bool]:
        env = self._envs[at]
        space: Any = env.action_space
        sent: Any
        if action.ndim == 0:
            sent = int(action) + int(getattr(space, "start", 0))
        else:
            sent = np.clip(action.reshape(space.shape), space.low, space.high).astype(space.dtype)
        obs, reward, ended, cut, _ = env.step(sent)
        if not abs(gained := float(reward)) <= LARGEST:
            raise ValueError(f"reward is {gained:g}; a number of at most {LARGEST:g} wanted")
        return self._seen(obs), gained, bool(ended), bool(cut)

    # ------------------------------------------------------------ all of them

    def reset(self) -> Array:
        self._episode[:] = 0
        obs = np.zeros((*self.shape, self._width), self._type)
        for at in np.ndindex(*self.shape):
            if at[0] not in self.broken:
                obs[at] = self._begin((at[0], at[1]))
        return obs

    def step(self, actions: Array) -> Step:
        """(tasks, copies[, A])"""
        obs = np.zeros((*self.shape, self._width), self._type)
        final, rewards = np.zeros_like(obs), np.zeros(self.shape, np.float32)
        ended, cut = np.zeros(self.shape, bool), np.zeros(self.shape, bool)
        for at in np.ndindex(*self.shape):
            place = (at[0], at[1])
            if self._done(place):
                ended[at] = True
            elif at[0] not in self.broken:
                self._step[at] += 1
                action = np.asarray(actions[at])
                found = self._guard(place, partial(self._act, place, action))
                if found is not None:
                    obs[at], rewards[at], ended[at], cut[at] = found
                    if ended[at] or cut[at]:
                        final[at] = obs[at]
                        obs[at] = self._begin(place)
            if at[0] in self.broken:
                ended[at], rewards[at] = True, 0.0
        return Step(obs, rewards, ended, cut, final if (ended | cut).any() else None)

    @property
    def first_copy(self) -> Any:
        """The first task's, without wrappers; None where it could not be made."""
        return self._envs[0, 0].unwrapped if (0, 0) in self._envs else None

    def render(self) -> Any:
        """The first copy's picture."""
        return self._envs[0, 0].render()

    def close(self) -> None:
        for env in self._envs.values():
            # All has been played; what a user's environment raises now takes nothing back.
            with suppress(*RAISED):
                env.close()
