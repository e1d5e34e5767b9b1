"""Many copies of a dark grid in step with each other, as arrays; the rules are `grid`'s, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robotics.icrl.envs.base import Broken, Step
from robotics.icrl.envs.grid import ACTIONS, Cells, GridTask, cell_of, place_cells, positions, transitions
from shared.errors import UsageError


class GridBatch:
    """(tasks × streams) copies of a family's environment in step with each other.

    `auto_reset` (gymnasium's words): ``same-step``: the step that ends the episodes returns the reset state, and the
    terminal one as `final_obs`; ``disabled``: it returns the terminal one as both, and `reset` must follow.
    """

    def __init__(
        self,
        chosen: Sequence[GridTask],
        streams: int = 1,
        auto_reset: Literal["same-step", "disabled"] = "same-step",
    ) -> None:
        if not chosen or streams < 1:
            raise UsageError(
                f"{len(chosen)} tasks of {streams} streams: nothing to play; at least one of each wanted"
            )
        if len({task.family for task in chosen}) > 1:
            raise UsageError("tasks of several environments: tasks of one wanted")
        if auto_reset not in ("same-step", "disabled"):
            raise UsageError(f"auto_reset {auto_reset}: unknown; same-step or disabled")
        self.broken: dict[int, Broken] = {}
        """Nothing in a grid breaks"""
        self.episodes: int | None = None
        """All end together: none of them waits for others"""
        self.family, self.tasks, self.streams, self.auto_reset = (
            chosen[0].family,
            tuple(chosen),
            streams,
            auto_reset,
        )
        self.shape = (len(chosen), streams)
        self._start = cell_of(self.family.start, self.family.size)
        places = place_cells(chosen)
        if self.family.kind == "key-door":  # a place that no one is in, once both are reached
            places = np.concatenate([places, np.full((len(chosen), 1), -1)], axis=1)
        self._places = np.ascontiguousarray(places)
        self._row = np.arange(len(chosen), dtype=np.intp)[:, None]
        self._stages = np.zeros(self.shape, np.intp)
        self.cells = np.full(self.shape, self._start, np.intp)
        self.elapsed = 0

    @cached_property
    def _next(self) -> Cells:
        """Flat table of the cell after (cell, action), or after (task, cell, action) where actions are permuted."""
        table = transitions(self.family.size)
        if self.family.kind != "permutation":
            return np.ascontiguousarray(table).ravel()
        return np.stack([table[:, list(task.moves)] for task in self.tasks]).ravel()

    @property
    def stages(self) -> Cells:
        """(tasks, streams) places reached in this episode; 0 everywhere but in the key-to-door room."""
        return self._stages

    @property
    def obs(self) -> NDArray[np.uint8]:
        """(tasks, streams, 2)"""
        return positions(self.family.size)[self.cells]

    def reset(self) -> NDArray[np.uint8]:
        """Begin new episodes everywhere."""
        self.cells = np.full(self.shape, self._start, np.intp)
        self._stages = np.zeros(self.shape, np.intp)
        self.elapsed = 0
        return self.obs

    def advance(self, actions: NDArray[Any]) -> NDArray[np.bool_]:
        """Move, without observations and without reset: True where a reward was had. `actions` are not checked."""
        if self.elapsed >= self.family.horizon:
            raise RuntimeError("the episodes are over: call reset")
        at = self.cells * ACTIONS + actions
        if self.family.kind == "permutation":
            at += self._row * (self.family.cells * ACTIONS)
        self.cells = self._next.take(at)
        self.elapsed += 1
        if self.family.kind != "key-door":
            return self.cells == self._places
        rewarded = self.cells == self._places.ravel().take(self._row * 3 + self._stages)
        self._stages = self._stages + rewarded
        return rewarded

    def step(self, actions: ArrayLike) -> Step:
        """One step everywhere: (tasks, streams) whole numbers 0 to 4. Raises `ValueError` for others."""
        chosen = np.asarray(actions)
        if chosen.shape != self.shape or chosen.dtype.kind not in "iu":
            raise ValueError(f"actions {chosen.dtype} {chosen.shape}: whole numbers {self.shape} wanted")
        if chosen.min() < 0 or chosen.max() >= ACTIONS:
            raise ValueError(f"actions {chosen.min()} to {chosen.max()}: 0 to {ACTIONS - 1} wanted")
        rewards = self.advance(chosen).astype(np.float32)
        over = self.elapsed >= self.family.horizon
        obs = self.obs
        final = obs if over else None
        if over and self.auto_reset == "same-step":
            obs = self.reset()
        return Step(obs, rewards, np.zeros(self.shape, bool), np.full(self.shape, over), final)

    def close(self) -> None:
        """Nothing is held."""
