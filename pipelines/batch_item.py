"""The worker's half of a batch: one loaded predictor, one item after the other, every outcome a plain mapping."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines import registry
from shared.bundle import Bundle
from shared.errors import Fault, ItemError, SuiteError
from shared.io.atomic import sync_folder
from shared.io.hashes import sha256_file, sha256_tree
from shared.io.strict_json import plain
from shared.pipeline import Item, Pipeline, Predictor, Tick

TICK_SECONDS = 0.5
"""Least time between two progress notes of one item."""


def load(name: str) -> Pipeline:
    """The registered pipeline `name`, or the one at ``module:attribute``."""
    return registry.load_object(name) if ":" in name else registry.load(name)


def open_predictor(name: str, model: str, options: Mapping[str, Any]) -> Predictor:
    return load(name).predictor(Bundle.open(Path(model)), options)


def make_servant(
    name: str, model: str, options: Mapping[str, Any]
) -> Callable[[Any, Callable[[Any], None]], Any]:
    """For `shared.distributed.pool`. Tasks: ``("discover", paths)`` and ``("item", Item, folder)``."""
    predictor = open_predictor(name, model, options)

    def serve(task: Any, emit: Callable[[Any], None]) -> Any:
        if task[0] == "discover":
            return predictor.layout, predictor.discover(task[1])
        return perform(predictor, task[1], Path(task[2]), throttled(emit))

    return serve


def throttled(emit: Callable[[Any], None]) -> Tick:
    """A tick that passes on (done, total) now and then."""
    last = 0.0

    def tick(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= TICK_SECONDS:
            last = now
            emit((done, total))

    return tick


def perform(predictor: Predictor, item: Item, folder: Path, tick: Tick | None = None) -> dict[str, Any]:
    """Predict `item` into the new `folder`. Never raises.

    Returns ``inputs`` and ``outputs`` (path and sha256 of each; outputs relative to `folder`), ``summary``,
    ``seconds``, ``error`` (a fault as mapping, or None) and ``full`` (the disk is: no use going on).
    """
    began = time.monotonic()
    outcome: dict[str, Any] = {"inputs": [], "outputs": [], "summary": {}, "error": None, "full": False}
    try:
        folder.mkdir()
        outcome["inputs"] = hash_sources(item.sources)
        result = predictor.predict(item, tick)
        outcome["summary"] = plain(predictor.write(result, folder))
        outcome["outputs"] = seal(folder)
    except (Exception, SystemExit) as err:  # noqa: BLE001 - isolation of items is the point
        outcome["error"], outcome["full"] = describe(err, item)
        shutil.rmtree(folder, ignore_errors=True)
    outcome["seconds"] = round(time.monotonic() - began, 3)
    return outcome


def describe(err: BaseException, item: Item) -> tuple[dict[str, Any], bool]:
    """The manifest's form of `err`, and whether the disk is full."""
    where = str(item.sources[0]) if item.sources else item.id
    full = isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT)
    cause = err.__cause__
    full = full or (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))
    if isinstance(err, ItemError):
        return fault_mapping(err.fault), full
    if isinstance(err, SuiteError):
        return {**fault_mapping(Fault(where, str(err))), "message": str(err)}, full
    if isinstance(err, MemoryError) or type(err).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return fault_mapping(
            Fault(where, "out of memory", "more memory, or a smaller item", "fewer workers may help")
        ), full
    if isinstance(err, OSError):
        return fault_mapping(Fault(err.filename or where, err.strerror or str(err))), full
    last = traceback.extract_tb(err.__traceback__)[-1:]
    place = f" (at {Path(last[0].filename).name}:{last[0].lineno})" if last else ""
    fault = Fault(where, f"bug: {type(err).__name__}: {err}{place}", mend="please report it with this file")
    return {**fault_mapping(fault), "trace": "".join(traceback.format_exception(err))[-4000:]}, full


def fault_mapping(fault: Fault) -> dict[str, Any]:
    return {"message": str(fault), **fault.as_dict()}


def hash_sources(paths: Sequence[Path]) -> list[dict[str, str]]:
    """Path and sha256 of each file or folder. Raises `ItemError` for what is neither: opening a FIFO would block."""
    out = []
    for path in paths:
        try:
            mode = path.stat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ItemError(
                    path, "a special file (pipe, socket or device)", "a regular file", "leave it out"
                )
            digest = sha256_file(path) if stat.S_ISREG(mode) else sha256_tree(path)
        except OSError as err:
            raise ItemError(
                path, f"cannot be read ({err.strerror})", "a readable file", "check the path and its rights"
            ) from None
        out.append({"path": str(path), "sha256": digest})
    return out


def seal(folder: Path) -> list[dict[str, str]]:
    """Make every file below `folder` durable; relative path and sha256 of each, sorted."""
    out = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        out.append({"path": path.relative_to(folder).as_posix(), "sha256": sha256_file(path)})
    sync_folder(folder)
    return out
