"""The dark grids one at a time, as gymnasium environments; importing this module registers their ids."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.grid import ACTIONS, GRIDS, GridTask, positions
from shared.errors import UsageError

_PIXELS = 24
"""Of a cell's side in a picture."""
_COLOURS = {
    "floor": (236, 236, 232),
    "line": (205, 205, 200),
    "agent": (0, 90, 181),
    "goal": (220, 120, 0),
    "key": (200, 170, 0),
    "door": (120, 60, 20),
}


class GridEnv(gym.Env[NDArray[np.int32], np.int64]):
    """One task of a family.

    `task`: its index; or its parameters (``goal=(4, 2)``, ``permutation=…``, ``key=…, door=…``).
    ``reset(options={"task": index})`` changes it. The task shows in ``info["task"]`` only, never in the observation.
    Episodes end truncated, at the horizon; stepping on raises `ResetNeeded`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 8}

    def __init__(self, name: str, task: int = 0, render_mode: str | None = None, **params: Any) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UsageError(f"render_mode {render_mode}: unknown; rgb_array or none")
        self.family, self.render_mode = GRIDS[name], render_mode
        self.task: GridTask = self.family.find(params) if params else self.family.task(task)
        high = self.family.size - 1
        self.observation_space = gym.spaces.Box(0, high, (2,), np.int32)
        self.action_space = gym.spaces.Discrete(ACTIONS)
        self._room: GridBatch | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int32], dict[str, Any]]:
        super().reset(seed=seed)
        if options and "task" in options:
            self.task = self.family.task(int(options["task"]))
        self._room = GridBatch([self.task], auto_reset="disabled")
        self._room.reset()
        return self._obs(self._room), {"task": self.task.index}

    def step(self, action: np.int64 | int) -> tuple[NDArray[np.int32], float, bool, bool, dict[str, Any]]:
        if self._room is None or self._room.elapsed >= self.family.horizon:
            raise gym.error.ResetNeeded("the episode is over, or none has begun: call reset")
        if not self.action_space.contains(action):
            raise gym.error.InvalidAction(f"action {action!r}: 0 to {ACTIONS - 1} wanted")
        reward = float(self._room.advance(np.array([[action]])).item())
        over = self._room.elapsed >= self.family.horizon
        return self._obs(self._room), reward, False, over, {"task": self.task.index}

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """(height, width, 3) picture, x to the right and y upwards; None without a render mode."""
        if self.render_mode is None:
            return None
        cell = None if self._room is None else int(self._room.cells.item())
        return draw(self.task, cell, 0 if self._room is None else int(self._room.stages.item()))

    @staticmethod
    def _obs(room: GridBatch) -> NDArray[np.int32]:
        return room.obs[0, 0].astype(np.int32)


def draw(task: GridTask, cell: int | None, stage: int = 0) -> NDArray[np.uint8]:
    """Picture of a room: places still to be reached as squares, the agent as a disc."""
    size = task.family.size
    image = np.empty((size * _PIXELS, size * _PIXELS, 3), np.uint8)
    image[:] = _COLOURS["floor"]
    image[::_PIXELS], image[:, ::_PIXELS] = _COLOURS["line"], _COLOURS["line"]
    names = ("goal",) if len(task.places) == 1 else ("key", "door")
    stage = min(stage, len(names)) if len(names) > 1 else 0
    inner = np.abs(np.arange(_PIXELS) - (_PIXELS - 1) / 2)
    for (x, y), name in list(zip(task.places, names))[stage:]:
        _tile(image, x, y, size)[1:, 1:] = _COLOURS[name]
    if cell is not None:
        x, y = (int(value) for value in positions(size)[cell])
        disc = inner[:, None] ** 2 + inner[None] ** 2 < (_PIXELS * 0.32) ** 2
        _tile(image, x, y, size)[disc] = _COLOURS["agent"]
    return image


def _tile(image: NDArray[np.uint8], x: int, y: int, size: int) -> NDArray[np.uint8]:
    top = (size - 1 - y) * _PIXELS
    return image[top : top + _PIXELS, x * _PIXELS : (x + 1) * _PIXELS]


for _each in GRIDS.values():
    if _each.env_id not in gym.registry:
        gym.register(_each.env_id, f"{__name__}:GridEnv", kwargs={"name": _each.name})
