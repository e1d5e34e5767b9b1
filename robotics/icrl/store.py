"""Learning histories on disk: the format, and reading it. `store_writer` writes it, `store_check` judges it.

A history is what one agent (or one parallel stream of one) saw and did from its first step on: T steps, cut into
episodes by the environment. A store is one HDF5 file per environment [R, spec 6.2]::

    attributes   format, version, env_id, env_kwargs (JSON), algorithm, hyper (JSON), seed, horizon (longest episode),
                 observation_space, action_space (JSON: {"kind": "discrete", "n": 5} or
                 {"kind": "box", "shape": [2], "dtype": "int32", "low": …, "high": …})
    /<task>      attributes params (JSON), r_min, r_max, random_return (NaN: not known); task = index in the family
      obs              (history, step, *O)   observation the action was chosen on
      actions          (history, step[, A])
      rewards          (history, step)       float32
      terminations     (history, step)       bool (0 and 1 are read as such), the environment ended the episode
      truncations      (history, step)       bool, the time limit did
      episode          (history, step)       int32, counts from 0 within a history
      final_obs        (history, step, *O)   observation AFTER the step where an episode ends and at a history's last
                                             step; zero elsewhere. `obs` at the next step is then the reset state
      optimal_actions  (history, step[, A])  only where a collector knew them (labels for DPT)
      history, source  (history,)            its number within the task, from 0, each once (some may be left out); what
                                             made it (``population``, ``random``, …)

with one gzip chunk per history. While a collection runs (or after it was killed) finished pieces lie in the same
format in ``<file>.parts/`` beside it; reading joins both, and of a (task, history) found twice the first counts.

    store = Store(path)                    # raises `DataInvalid`: absent, empty, not HDF5, other format, other version
    store.meta, store.tasks                # Meta, sorted task indices
    store.task(task).params                # {"goal": [4, 2]}
    one = store.read(task)                 # Histories: (N, T, …) arrays of all its histories
    one.next_obs("terminal" | "reset")     # spec 0.11: what a model should see, what DICP's files hold
    one.returns()                          # (N, K) of complete episodes, NaN where a history has fewer
    one.keep([3, 3, 0]), one.first(0.5)    # rows with repetition (a filter's outcome), "partial" setting
    store.load(tasks)                      # several tasks as one `Histories`, its `.task` per row
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import h5py
import numpy as np
from numpy.typing import NDArray

from shared.errors import DataInvalid, Fault

FORMAT, VERSION = "icrl-histories", 1
STEP_FIELDS = ("obs", "actions", "rewards", "terminations", "truncations", "episode", "final_obs")
OPTIONAL_FIELDS = ("optimal_actions",)
ROW_FIELDS = ("history", "source")
SPACE_FIELDS = ("obs", "actions", "final_obs", "optimal_actions")
"""With the axes of their space behind (history, step)."""
_KINDS = {
    "history": ("iu", "whole numbers"),
    "episode": ("iu", "whole numbers"),
    "source": ("SO", "text"),
}
"""Of datasets that are not just numbers: letters of NumPy's types, and what to say."""
SOURCE_LENGTH = 24
"""Bytes of a source's name."""
Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Meta:
    """What all histories of a store share. `horizon`: steps of the longest possible episode."""

    env_id: str
    algorithm: str
    seed: int
    horizon: int
    observation_space: Mapping[str, Any]
    action_space: Mapping[str, Any]
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    hyper: Mapping[str, Any] = field(default_factory=dict)

    def attributes(self) -> dict[str, Any]:
        """As they stand in the file: plain numbers, text, and JSON with sorted keys."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        plain = {
            key: json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value
            for key, value in values.items()
        }
        return {"format": FORMAT, "version": VERSION, **plain}

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Meta:
        """Raises `KeyError`, `TypeError`, `ValueError` when one is absent or unreadable."""
        mappings = ("observation_space", "action_space", "env_kwargs", "hyper")
        values: dict[str, Any] = {key: json.loads(attributes[key]) for key in mappings}
        if odd := [key for key in mappings if not isinstance(values[key], dict)]:
            raise ValueError(f"{odd[0]} is no mapping")
        values |= {key: str(attributes[key]) for key in ("env_id", "algorithm")}
        values |= {key: int(attributes[key]) for key in ("seed", "horizon")}
        for key in mappings[:2]:
            _require_described(key, values[key])
        return cls(**values)

    def differences(self, other: Meta) -> list[str]:
        """``seed 0 and 1`` for each attribute in which two stores disagree."""
        mine, theirs = self.attributes(), other.attributes()
        return [f"{key} {mine[key]} and {theirs[key]}" for key in mine if mine[key] != theirs[key]]


def _require_described(name: str, space: Mapping[str, Any]) -> None:
    """Raises `KeyError`, `TypeError`, `ValueError` for a space that is not as the format has it."""
    if space["kind"] not in ("discrete", "box"):
        raise ValueError(f"{name} of kind {space['kind']}")
    if space["kind"] == "discrete":
        int(space["n"])
        return
    for side in ("low", "high"):
        np.broadcast_to(np.asarray(space.get(side) or 0, float), tuple(space["shape"]))


@dataclass(frozen=True)
class Task:
    """One task of a family: parameters, and the returns that scale its scores (None: not known)."""

    index: int
    params: Mapping[str, Any]
    r_min: float | None = None
    """Least possible return of an episode."""
    r_max: float | None = None
    """Best possible return of an episode."""
    random_return: float | None = None
    """Expected return of uniformly random actions."""


@dataclass
class Histories:
    """N histories of T steps. Fields as in the store; rows may come from several tasks."""

    obs: Array
    actions: Array
    rewards: NDArray[np.float32]
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    episode: NDArray[np.int32]
    final_obs: Array
    task: NDArray[np.int64]
    """(N,) index of each row's task"""
    history: NDArray[np.int64]
    """(N,) number within its task"""
    source: NDArray[np.str_]
    """(N,) what made it"""
    optimal_actions: Array | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def steps(self) -> int:
        return int(self.rewards.shape[1])

    @property
    def ends(self) -> NDArray[np.bool_]:
        """(N, T) True at the last step of an episode."""
        return self.terminations | self.truncations

    def starts(self) -> NDArray[np.bool_]:
        """(N, T) True at the first step of an episode."""
        first = np.ones((len(self), 1), bool)
        return np.concatenate([first, self.ends[:, :-1]], axis=1)

    def next_obs(self, convention: Literal["terminal", "reset"] = "terminal") -> Array:
        """(N, T, *O) observation after each step; at an episode's end the true last one, or the next episode's first.

        Both say the true one at a history's last step, after which there was no further reset.
        """
        after = np.concatenate([self.obs[:, 1:], self.final_obs[:, -1:]], axis=1)
        if convention == "terminal":
            after[self.ends] = self.final_obs[self.ends]
        return after

    def returns(self) -> NDArray[np.float64]:
        """(N, K) sum of rewards of each complete episode, in order; NaN behind a history's last one."""
        rows = np.arange(len(self))[:, None]
        episodes = int(self.episode.max(initial=-1)) + 1
        sums = np.zeros((len(self), episodes))
        np.add.at(sums, (rows, self.episode), self.rewards)
        complete = np.zeros(sums.shape, bool)
        at = np.nonzero(self.ends)
        complete[at[0], self.episode[at]] = True
        sums[~complete] = np.nan
        return sums[:, : int(complete.any(axis=0).sum())]

    def first(self, share: float) -> Histories:
        """The first `share` (0 to 1] of every history's steps, with its end cut where it falls."""
        steps = max(1, round(self.steps * share))
        cut = {name: getattr(self, name)[:, :steps] for name in STEP_FIELDS}
        cut["final_obs"] = cut["final_obs"].copy()
        cut["final_obs"][:, -1] = self.next_obs()[:, steps - 1]
        if self.optimal_actions is not None:
            cut["optimal_actions"] = self.optimal_actions[:, :steps]
        return replace(self, **cut)

    def keep(self, rows: Sequence[int] | Array) -> Histories:
        """These rows in this order, repeated where a row is named again."""
        index = np.asarray(rows, np.int64)
        chosen: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            chosen[each.name] = None if value is None else value[index]
        return Histories(**chosen)

    @staticmethod
    def join(blocks: Sequence[Histories]) -> Histories:
        """Rows of all `blocks` (at least one, equal T). Raises `ValueError` for differing shapes."""
        if len(blocks) == 1:
            return blocks[0]
        named: dict[str, Any] = {}
        for each in fields(Histories):
            values = [getattr(block, each.name) for block in blocks]
            named[each.name] = None if any(value is None for value in values) else np.concatenate(values)
        return Histories(**named)


# ---------------------------------------------------------------- reading


def parts_folder(path: Path) -> Path:
    """Where finished pieces of an unfinished collection lie."""
    return path.with_name(path.name + ".parts")


@dataclass(frozen=True)
class _Piece:
    """Rows of a task in one file that count."""

    file: Path
    group: str
    rows: NDArray[np.int64]
    history: NDArray[np.int64]


class StoredRow(NamedTuple):
    """Where one history lies."""

    file: Path
    group: str
    row: int
    history: int


class Store:
    """A store for reading: the file, its parts, or both. Opens files for the time of each call only.

    Raises `DataInvalid` with one fault for what cannot be read at all, else with one for each task that is malformed;
    unless `strict`, such tasks are left out and their `faults` kept.
    """

    def __init__(self, path: Path, strict: bool = True) -> None:
        self.path = Path(path)
        files = store_files(self.path)
        if not files and self.path.is_dir():
            raise _invalid(self.path, "a folder", "an HDF5 file of histories", _converted(self.path))
        if not files:
            raise _invalid(self.path, "no such store", "an HDF5 file of histories", "collect one")
        self._pieces: dict[int, list[_Piece]] = {}
        self._tasks: dict[int, Task] = {}
        self.faults: list[Fault] = []
        metas: list[Meta] = []
        for file in files:
            metas.append(self._index(file))
            if differing := metas[0].differences(metas[-1]):
                raise _invalid(file, "; ".join(differing), f"attributes as in {files[0].name}", "remove it")
        self.meta = metas[0]
        if self.faults and (strict or not self._pieces):
            raise DataInvalid(self.faults)
        if not self._pieces:
            raise _invalid(self.path, "holds no history", "at least one task", "collect again")

    def _index(self, path: Path) -> Meta:
        with opened(path) as file:
            meta = read_meta(path, file)
            for name in sorted((name for name in file if name.isdecimal()), key=int):
                try:
                    self._add(path, name, file.get(name))
                except DataInvalid as err:
                    self.faults += err.faults
        return meta

    def _add(self, path: Path, name: str, group: Any) -> None:
        index, numbers = int(name), _numbers(path, name, group)
        known = [piece.history for piece in self._pieces.get(index, [])]
        new = ~np.isin(numbers, np.concatenate(known)) if known else np.ones(len(numbers), bool)
        if new.any():
            task = _task(path, index, group.attrs)
            self._tasks.setdefault(index, task)
            piece = _Piece(path, name, np.flatnonzero(new), numbers[new])
            self._pieces.setdefault(index, []).append(piece)

    @property
    def tasks(self) -> list[int]:
        """Indices of the tasks in the store, ascending."""
        return sorted(self._pieces)

    def task(self, index: int) -> Task:
        """Raises `DataInvalid` when it is not there."""
        if index not in self._tasks:
            raise _invalid(self.path, f"no task {index}", f"one of {some(self.tasks)}", "", str(index))
        return self._tasks[index]

    def numbers(self, index: int) -> NDArray[np.int64]:
        """Numbers of the histories that a task has, ascending; empty for a task that is not there."""
        pieces = self._pieces.get(index, [])
        return (
            np.sort(np.concatenate([piece.history for piece in pieces])) if pieces else np.zeros(0, np.int64)
        )

    def rows(self, index: int) -> list[StoredRow]:
        """Where the histories of a task lie, ascending by number."""
        found = [
            StoredRow(piece.file, piece.group, int(row), int(number))
            for piece in self._pieces[index]
            for row, number in zip(piece.rows, piece.history)
        ]
        return sorted(found, key=lambda row: row.history)

    def __len__(self) -> int:
        """Histories of all tasks."""
        return sum(len(piece.history) for pieces in self._pieces.values() for piece in pieces)

    def read(self, index: int) -> Histories:
        """Histories of one task, ordered by number. Raises `DataInvalid`."""
        self.task(index)
        blocks = [_read(piece, index) for piece in self._pieces[index]]
        try:
            block = Histories.join(blocks)
        except ValueError as err:
            raise _invalid(self.path, str(err), "pieces of one shape", "collect again", str(index)) from err
        order = np.argsort(block.history, kind="stable")
        return block if np.array_equal(order, np.arange(len(block))) else block.keep(order)

    def __iter__(self) -> Iterator[tuple[Task, Histories]]:
        for index in self.tasks:
            yield self.task(index), self.read(index)

    def load(self, tasks: Sequence[int]) -> Histories:
        """All histories of several tasks, one at least, as one, in the order named. Raises `DataInvalid`."""
        blocks = [self.read(index) for index in tasks]
        lengths = sorted({block.steps for block in blocks})
        if len(lengths) > 1:
            found = f"histories of {lengths[0]} to {lengths[-1]} steps"
            raise _invalid(self.path, found, "one length", "collect the short ones again, or load a share")
        return Histories.join(blocks)


def store_files(path: Path) -> list[Path]:
    """The store's own file, if it is there, and its parts in order."""
    own = [path] if path.is_file() else []
    return own + sorted(parts_folder(path).glob("part-*.h5"))


def opened(path: Path) -> h5py.File:
    """An HDF5 file for reading. Raises `DataInvalid`. No lock is asked for: finished files never change in place."""
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as err:
        raise _invalid(
            path, f"cannot be read as HDF5 ({err})", "a store", "collect or copy it again"
        ) from err


def dicp(file: h5py.File) -> bool:
    """Whether it has the layout of DICP's history files."""
    groups = (name for name in file if name.isdigit())
    return file.attrs.get("format") != FORMAT and any(f"{name}/states" in file for name in groups)


def read_meta(path: Path, file: h5py.File) -> Meta:
    """Raises `DataInvalid` for another format or version, and for attributes that are absent or unreadable."""
    found = file.attrs.get("format")
    if found != FORMAT:
        mend = _converted(path) if dicp(file) else ""
        if "episode_0" in file:  # of a Minari dataset, ``<id>/data/main_data.hdf5``
            mend = _converted(path.parent.parent)
        raise _invalid(path, f"format {found!r}", f"'{FORMAT}'", mend, "format")
    if file.attrs.get("version") != VERSION:
        raise _invalid(path, f"version {file.attrs.get('version')}", str(VERSION), "collect again", "version")
    try:
        return Meta.of(file.attrs)
    except (KeyError, TypeError, ValueError) as err:
        raise _invalid(
            path, f"attribute absent or unreadable ({err})", "all of them", "collect again"
        ) from err


def _converted(path: Path) -> str:
    return f"convert it: pipelines predict icrl {path} -o FOLDER -s convert=store"


def _task(path: Path, index: int, attributes: Mapping[str, Any]) -> Task:
    def number(key: str) -> float | None:
        value = float(attributes.get(key, np.nan))
        return None if np.isnan(value) else value

    try:
        params = dict(json.loads(attributes["params"]))
        return Task(index, params, number("r_min"), number("r_max"), number("random_return"))
    except (KeyError, TypeError, ValueError) as err:
        found = f"params or returns unreadable ({err})"
        raise _invalid(path, found, "a JSON mapping, numbers", "collect again", str(index)) from err


def _numbers(path: Path, name: str, group: Any) -> NDArray[np.int64]:
    """(history,) numbers of a task's histories; two of one number could not be told apart. Raises `DataInvalid`."""
    if not isinstance(group, h5py.Group):
        found = "a link to nothing" if group is None else "a dataset"
        raise _invalid(path, found, "a group of datasets", "collect again", name)
    _require_arrays(path, name, group, ["history"])
    try:
        numbers: NDArray[np.int64] = group["history"][()].astype(np.int64)
    except OSError as err:
        raise _invalid(path, f"damaged ({err})", "", "collect again", name) from err
    if not len(numbers):
        raise _invalid(path, "no history", "one or more", "collect it again, or remove the group", name)
    value, count = np.unique(numbers, return_counts=True)
    if value[0] < 0 or count.max() > 1:
        said = str(value[0]) if value[0] < 0 else f"{value[count.argmax()]} is there {count.max()} times"
        raise _invalid(path, f"history number {said}", "each once, from 0", "number them 0, 1, 2, …", name)
    return numbers


def _require_arrays(path: Path, name: str, group: h5py.Group, wanted: Sequence[str]) -> None:
    """Raises `DataInvalid` unless all `wanted` are there, of their kind, and have the first one's axes."""
    for each in wanted:
        data, (kinds, what) = group.get(each), _KINDS.get(each, ("biuf", "numbers"))
        if not isinstance(data, h5py.Dataset):
            found = f"no dataset {each}" if data is None else f"{each} is a group"
            raise _invalid(path, found, "it" if data is None else "a dataset", "collect again", name)
        if data.dtype.kind not in kinds:
            raise _invalid(path, f"{each} of type {data.dtype.name}", what, "collect again", name)
        shape: tuple[int, ...] = data.shape or ()
        first: tuple[int, ...] = group[wanted[0]].shape or ()
        if each not in ROW_FIELDS:
            shape, what = shape[:2] if each in SPACE_FIELDS else shape, "(history, step)"
            fits = len(shape) == 2 and shape[1] > 0 and shape == first[:2]
        else:
            what, fits = "one for each history", len(shape) == 1 and shape == first[:1]
        if not fits:
            beside = "" if each == wanted[0] else f", {wanted[0]} {first[:2]}"
            raise _invalid(path, f"{each} is {shape}{beside}", what, "collect again", name)


def _read(piece: _Piece, index: int) -> Histories:
    with opened(piece.file) as file:
        group = file[piece.group]
        names = [*STEP_FIELDS, *(name for name in OPTIONAL_FIELDS if name in group)]
        _require_arrays(piece.file, piece.group, group, [*names, *ROW_FIELDS])
        whole = len(piece.rows) == len(group["history"])
        try:
            arrays = {name: group[name][()] if whole else group[name][piece.rows] for name in names}
            source = group["source"].asstr("ascii")[piece.rows].astype(str)
        except (TypeError, ValueError) as err:
            raise _invalid(piece.file, "source unreadable", "ASCII text", "rename it", piece.group) from err
        except OSError as err:
            raise _invalid(piece.file, f"damaged ({err})", "", "collect again", piece.group) from err
    arrays["episode"] = arrays["episode"].astype(np.int32)
    for name in ("terminations", "truncations"):
        said = arrays[name]
        if (odd := np.argwhere((said != 0) & (said != 1))).size:
            found = f"{name} {said[tuple(odd[0])]} in history {piece.history[odd[0][0]]}, step {odd[0][1]}"
            raise _invalid(piece.file, found, "false or true, 0 or 1", "collect again", piece.group)
        arrays[name] = said.astype(bool)
    task = np.full(len(piece.rows), index, np.int64)
    return Histories(**arrays, task=task, history=piece.history, source=source)


def some(values: Sequence[int], most: int = 8) -> str:
    """``1, 2, 3``; of many the first ones and their count."""
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown}, … ({len(values)})"


def _invalid(path: Path, found: str, wanted: str = "", mend: str = "", field: str = "") -> DataInvalid:
    return DataInvalid([Fault(path, found, wanted, mend, field)])
