"""Writing a store so that a kill at any moment loses at most the piece being written.

HDF5 cannot be trusted after a kill in mid-write, so no file is ever changed in place: each finished block of histories
becomes a small file of its own in ``<file>.parts/`` (temporary name, fsync, rename), and closing merges the store and
its parts into a new file that replaces the old one. Chunks are copied as they are compressed, tasks and histories in
ascending order: the same histories give the same bytes, whatever pieces they came in and however often it was resumed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import h5py
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from robotics.icrl.store import (
    OPTIONAL_FIELDS,
    SOURCE_LENGTH,
    STEP_FIELDS,
    Histories,
    Meta,
    Store,
    StoredRow,
    Task,
    opened,
    parts_folder,
    store_files,
)
from shared.errors import DataInvalid, Fault, ResourcesExhausted, UsageError
from shared.io.atomic import atomic_path, sync_folder

_GZIP = 1
"""Compression level: the higher ones take four times as long for a tenth less."""
Resume = Literal["no", "auto", "must"]


class StoreWriter:
    """Adds histories to a store; a context manager. One writer at a time.

    `resume`: ``auto`` goes on with a store of the same `meta` or begins one; ``no`` refuses where there is one;
    ``must`` refuses where there is none. Raises `UsageError`, also when the store there has another `meta`.
    """

    def __init__(self, path: Path, meta: Meta, resume: Resume = "auto") -> None:
        self.path, self.meta = Path(path), meta
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as err:
            raise UsageError(
                f"{self.path}: another process is writing it; one at a time; wait for it or choose another file"
            ) from err
        try:
            self._done = self._begin(resume)
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, resume: Resume) -> dict[int, NDArray[np.int64]]:
        there = store_files(self.path)
        if not there:
            if resume == "must":
                raise UsageError(f"{self.path}: nothing to resume; a store begun before; use --resume auto")
            return {}
        if resume == "no":
            raise UsageError(
                f"{self.path}: exists already; a new file wanted; remove it or use --resume auto"
            )
        store = Store(self.path)
        if differing := self.meta.differences(store.meta):
            raise UsageError(
                f"{self.path}: collected with other settings ({'; '.join(differing)}); "
                "the same wanted; choose another file or remove this one"
            )
        return {index: store.numbers(index) for index in store.tasks}

    def missing(self, task: int, histories: int) -> NDArray[np.int64]:
        """Numbers below `histories` that a task does not have yet."""
        return np.setdiff1d(np.arange(histories), self._done.get(task, np.zeros(0, np.int64)))

    def add(self, blocks: Sequence[tuple[Task, Histories]]) -> None:
        """Write the histories of one or several tasks: all of them are in the store afterwards, or none.

        Raises `ResourcesExhausted` on a full disk, `ValueError` for arrays of the wrong shape.
        """
        folder = parts_folder(self.path)
        folder.mkdir(exist_ok=True)
        number = (
            max((int(part.stem.removeprefix("part-")) for part in folder.glob("part-*.h5")), default=-1) + 1
        )
        with atomic_path(folder / f"part-{number:06d}.h5") as temp, _created(temp, self.meta) as file:
            for task, block in blocks:
                _write(_group(file, task), block)
        for task, block in blocks:
            known = self._done.get(task.index, np.zeros(0, np.int64))
            self._done[task.index] = np.union1d(known, block.history)

    def close(self) -> None:
        """Merge the parts into the file and remove them."""
        try:
            if parts_folder(self.path).is_dir():
                if store_files(self.path) not in ([], [self.path]):
                    merge(self.path)
                shutil.rmtree(parts_folder(self.path))
        finally:
            self._lock.release()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ResourcesExhausted | OSError):
            self._lock.release()  # the parts stay, and are read; merging wants the room that lacks
        else:
            self.close()


def merge(path: Path) -> None:
    """One file of a store and its parts, in place of the store's; the parts stay. Raises `DataInvalid`."""
    store = Store(path)
    merged = parts_folder(path) / "merged.h5"  # what a kill leaves of it goes away with the folder
    with atomic_path(merged) as temp, _created(temp, store.meta) as file:
        for index in store.tasks:
            _merge_task(_group(file, store.task(index)), store.rows(index))
    os.replace(merged, path)
    sync_folder(path.parent)


def _created(path: Path, meta: Meta) -> h5py.File:
    file = h5py.File(path, "w", libver="latest")
    for key, value in meta.attributes().items():
        file.attrs[key] = value
    return file


def _group(file: h5py.File, task: Task) -> h5py.Group:
    group = file.create_group(str(task.index))
    group.attrs["params"] = json.dumps(dict(task.params), sort_keys=True)
    for key in ("r_min", "r_max", "random_return"):
        value = getattr(task, key)
        group.attrs[key] = np.nan if value is None else float(value)
    return group


def dataset(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """An empty dataset with one chunk per history."""
    return group.create_dataset(
        name, shape, dtype, chunks=(1, *shape[1:]), compression="gzip", compression_opts=_GZIP
    )


def _write(group: h5py.Group, block: Histories) -> None:
    arrays = {name: getattr(block, name) for name in STEP_FIELDS + OPTIONAL_FIELDS}
    for name, array in arrays.items():
        if array is None:
            continue
        if array.shape[:2] != block.rewards.shape:
            raise ValueError(f"{name} is {array.shape}, rewards {block.rewards.shape}")
        dataset(group, name, array.shape, array.dtype)[...] = array
    _write_rows(group, block.history, block.source)


def _write_rows(group: h5py.Group, history: NDArray[np.int64], source: NDArray[np.str_]) -> None:
    group.create_dataset("history", data=history.astype(np.int32))
    group.create_dataset("source", data=np.char.encode(source, "ascii").astype(f"S{SOURCE_LENGTH}"))


def _merge_task(target: h5py.Group, rows: Sequence[StoredRow]) -> None:
    """Copy the chunks of `rows` into `target`, in this order, without unpacking them. Raises `DataInvalid`."""
    files = {path: opened(path) for path in dict.fromkeys(row.file for row in rows)}
    try:
        groups = {(row.file, row.group): files[row.file][row.group] for row in rows}
        names = [
            name for name in STEP_FIELDS + OPTIONAL_FIELDS if all(name in each for each in groups.values())
        ]
        for name in names:
            _copy(target, name, rows, {key: group[name] for key, group in groups.items()})
        made = {key: group["source"][()].astype(str) for key, group in groups.items()}
        sources = np.array([made[row.file, row.group][row.row] for row in rows])
        _write_rows(target, np.array([row.history for row in rows]), sources)
    finally:
        for file in files.values():
            file.close()


def _copy(
    target: h5py.Group,
    name: str,
    rows: Sequence[StoredRow],
    sources: Mapping[tuple[Path, str], h5py.Dataset],
) -> None:
    model = next(iter(sources.values()))
    for (path, group), source in sources.items():
        if (source.shape[1:], source.dtype) != (model.shape[1:], model.dtype):
            found = f"{name} of {source.shape[1:]} {source.dtype} and {model.shape[1:]} {model.dtype}"
            raise DataInvalid([Fault(path, found, "histories of one shape", "collect the task again", group)])
    copy, rest = dataset(target, name, (len(rows), *model.shape[1:]), model.dtype), (0,) * (model.ndim - 1)
    for place, row in enumerate(rows):
        mask, chunk = sources[row.file, row.group].id.read_direct_chunk((row.row, *rest))
        copy.id.write_direct_chunk((place, *rest), chunk, mask)
