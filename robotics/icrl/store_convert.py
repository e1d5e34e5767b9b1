"""DICP's published history files (``history_<env>_PPO_alg-seed<N>.hdf5``) as stores.

Their arrays are (step, stream, …), their next state at an episode's end is the reset state (spec 0.11); the true last
observation follows from the grid's rules, by which all is played again and compared. `optimal_actions` are theirs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from robotics.icrl.collect.recording import Recording, described, histories
from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.grid import ACTIONS, GRIDS, GridFamily, GridTask, cells_of
from robotics.icrl.store import Histories, Meta, Task, opened
from shared.errors import DataInvalid, Fault, UsageError

_FAMILIES = {
    "darkroom": "darkroom",
    "darkroompermuted": "darkroom-permuted",
    "darkkeytodoor": "dark-key-to-door",
}
_NAME = re.compile(r"history_(?P<env>[a-z]+)_(?P<alg>\w+)_alg-seed(?P<seed>\d+)")
_ARRAYS = ("states", "actions", "rewards", "next_states", "dones")


def read_dicp(source: Path) -> tuple[Meta, Iterator[tuple[Task, Histories]]]:
    """What `source` holds, task by task; the environment is read off the file's name.

    Raises `DataInvalid` for a file of another layout, or one that breaks the grid's rules; `UsageError` for others.
    """
    match = _NAME.match(Path(source).name)
    if match is None or match["env"] not in _FAMILIES:
        raise UsageError(
            f"{source}: no environment in its name; history_darkroom_PPO_alg-seed0.hdf5 or the like wanted "
            f"({', '.join(_FAMILIES)}); rename the file"
        )
    room, algorithm, seed = GRIDS[_FAMILIES[match["env"]]], match["alg"].lower(), int(match["seed"])
    hyper = {"converted_from": "dicp"}
    spaces = (room.observation_space, room.action_space)
    meta = Meta(room.env_id, algorithm, seed, room.horizon, *spaces, {}, hyper)
    return meta, _tasks(source, room, algorithm)


def _tasks(source: Path, room: GridFamily, algorithm: str) -> Iterator[tuple[Task, Histories]]:
    with opened(source) as file:
        numbered = sorted((name for name in file if name.isdigit()), key=int)
        if not numbered:
            raise _invalid(source, "no group named by a task's number", "0, 1, 2, …")
        for name in numbered:
            if not 0 <= int(name) < len(room):
                raise _invalid(source, f"no such task of {room.name}", f"0 to {len(room) - 1}", name)
            task = room.task(int(name))
            yield described([task])[0], _block(source, file[name], name, room, task, algorithm)


def _block(
    source: Path, group: h5py.Group, name: str, room: GridFamily, task: GridTask, algorithm: str
) -> Histories:
    absent = [key for key in _ARRAYS if key not in group]
    if absent:
        raise _invalid(source, f"no dataset {absent[0]}", ", ".join(_ARRAYS), name)
    states, actions, rewards, after, dones = (group[key][()] for key in _ARRAYS)
    shape = dones.shape
    seen = [states.shape, after.shape]
    if (
        len(shape) != 2
        or not dones.size
        or seen != [(*shape, 2)] * 2
        or {actions.shape, rewards.shape} != {shape}
    ):
        raise _invalid(
            source, f"states {states.shape}, dones {shape}", "(step, stream, 2), (step, stream)", name
        )
    over = (np.arange(len(states)) + 1) % room.horizon == 0
    if not (dones == over[:, None]).all():
        raise _invalid(source, "dones elsewhere", f"one each {room.horizon} steps", name)
    if not (_whole(actions, ACTIONS) and _whole(states, room.size)):
        raise _invalid(source, "states or actions out of range", f"a {room.size} x {room.size} room", name)
    if not (states[1:] == after[:-1]).all() or not (states[0] == room.start).all():
        raise _invalid(
            source, "next states that are not the next step's", "steps in order from the start", name
        )
    recording = _replayed(task, actions.astype(np.uint8))
    if not (recording.cells[:, 0] == cells_of(states, room.size)).all():
        raise _invalid(source, "a step that the rules do not allow", f"moves of {room.name}", name)
    rewarded = recording.rewarded[:, 0]
    if (rewarded != rewards).any():
        step, stream = np.argwhere(rewarded != rewards)[0]
        found = f"reward {rewards[step, stream]} at step {step}, stream {stream}"
        raise _invalid(source, found, f"{rewarded[step, stream]:d} by the rules of {room.name}", name)
    block = histories([task], recording, np.arange(shape[1]), algorithm)[0]
    if "optimal_actions" in group:
        best = group["optimal_actions"][()]
        if best.shape != block.actions.shape or not _whole(best, ACTIONS):
            wanted = f"{block.actions.shape} of whole numbers 0 to {ACTIONS - 1}"
            raise _invalid(source, f"optimal_actions {best.shape} or out of range", wanted, name)
        block.optimal_actions = best.astype(np.uint8)
    return block


def _replayed(task: GridTask, actions: NDArray[np.uint8]) -> Recording:
    """What (step, stream) `actions` lead to by the grid's own rules."""
    batch = GridBatch([task], actions.shape[1])
    recording = Recording.empty(len(actions), batch)
    for step, chosen in enumerate(actions[:, None]):
        recording.act(step, batch, chosen)
    return recording


def _whole(array: NDArray[Any], count: int) -> bool:
    """Whether all are whole numbers from 0 to below `count`."""
    return bool(((array == np.floor(array)) & (array >= 0) & (array < count)).all())


def _invalid(source: Path, found: str, wanted: str, field: str = "") -> DataInvalid:
    return DataInvalid(
        [Fault(source, found, wanted, "take the file that DICP's collect_data.py wrote", field)]
    )
