"""The same items through Ray Data: on a private Ray of this machine, or on the cluster that `RAY_ADDRESS` names.

Ray answers the death of an actor by trying its task again, for ever, or by dropping the block without a word. Neither
will do: the item's draft folder marks that an attempt was made, and a second attempt only reports the first one's end.

The private Ray listens on loopback only, with a secret of its own, no dashboard and no usage statistics. On a cluster
the output folder must lie on a file system that all nodes share, and the suite must be installed there.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from pipelines.batch_item import describe, open_predictor, perform
from shared.distributed.pool import Event, cores, limit_threads
from shared.errors import EnvironmentUnfit, first_line
from shared.io.strict_json import as_line

OBJECT_STORE_BYTES = 160 * 2**20
"""Only short texts pass through it; Ray wants 75 MB at least."""
_MAX_TEMP = 40
"""Characters; Ray puts sockets up to 65 below its folder, and the system takes 107."""
_DIED = "the worker process died (often for want of memory)"
_TOKEN = secrets.token_hex(32)
"""One for the process: Ray reads it once, however often it is started."""
_prepared: set[bool] = set()
"""Filled once we imported Ray: it reads most of `_PRIVATE` then. Where a caller did so before, the caller's hold."""
_PRIVATE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what makes Ray bind to 127.0.0.1, on Linux too
    "RAY_AUTH_MODE": "token",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DATA_LOG_LEVEL": "ERROR",
}

Order = tuple[str, str, dict[str, Any]]
"""Pipeline, bundle folder, options: the arguments of `open_predictor`."""


class ItemActor:
    """Holds one predictor; a row names one of the tasks all actors know."""

    def __init__(self, order: Order, tasks: Any, threads: int, here: str) -> None:
        import ray

        if os.path.isdir(here):
            os.chdir(here)  # paths are as the user gave them
        limit_threads(threads)
        self._tasks = dict(ray.get(tasks[0]))
        self._predictor, self._unusable = None, None
        try:
            self._predictor = open_predictor(*order)
        except Exception as err:  # noqa: BLE001 - told by every item; raised here, Ray would only start it again
            self._unusable = err
        limit_threads(threads)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        index = int(row["id"])
        _, item, draft = self._tasks[index]
        if os.path.lexists(draft):
            return {"id": index, "kind": "died", "value": json.dumps(_DIED)}
        if self._predictor is None:
            error, _ = describe(self._unusable or RuntimeError("no predictor"), item)
            outcome = {
                "inputs": [],
                "outputs": [],
                "summary": {},
                "error": error,
                "full": False,
                "seconds": 0.0,
            }
        else:
            outcome = perform(self._predictor, item, Path(draft))
        return {"id": index, "kind": "done", "value": as_line(outcome)}


def run_ray(order: Order, tasks: Iterable[tuple[int, Any]], workers: int) -> Generator[Event, None, None]:
    """Events of every task, as `Pool.run` gives them but without notes. Raises `EnvironmentUnfit` if Ray fails."""
    todo = list(tasks)
    if not todo:
        return
    threads = max(1, cores() // workers)
    with _ray(max(cores(), workers)) as ray:
        data: Any = ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        gpus = float(ray.cluster_resources().get("GPU", 0))
        rows = data.from_items([{"id": index} for index, _ in todo], override_num_blocks=len(todo))
        results = rows.map(
            ItemActor,
            fn_constructor_args=(order, [ray.put(todo)], threads, os.getcwd()),
            compute=data.ActorPoolStrategy(size=min(workers, len(todo))),
            num_cpus=threads,
            num_gpus=min(1.0, gpus / workers) or None,
        )
        silent = dict.fromkeys(index for index, _ in todo)
        for row in results.iter_rows():
            index = int(row["id"])
            silent.pop(index)
            yield Event(row["kind"], index, json.loads(row["value"]))
        for index in silent:  # a cluster told to tolerate errored blocks
            yield Event("died", index, _DIED)


# ---------------------------------------------------------------- the cluster


@contextmanager
def _ray(cpus: int) -> Iterator[Any]:
    """Ray, started here and stopped after, unless somebody did already."""
    cluster = bool(os.environ.get("RAY_ADDRESS"))
    over = {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": _python_path()}
    if not cluster and ("ray" not in sys.modules or _prepared):
        over |= _PRIVATE | {"RAY_AUTH_TOKEN": _TOKEN}
        _prepared.add(True)
    # Ray's driver prints deaths of workers to stdout; we tell them ourselves, and stdout is for the result.
    with _environment(over), _temporary() as temp, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        import ray
        import ray.data  # as an attribute of `ray`

        if ray.is_initialized():
            yield ray
            return
        private: dict[str, Any] = {
            "address": "local",
            "num_cpus": cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            **({"_temp_dir": temp} if temp else {}),
        }
        try:
            with _own_handlers():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, **({} if cluster else private))
        except Exception as err:
            raise EnvironmentUnfit(
                f"ray: does not start ({first_line(err)}); "
                "a running cluster or free memory wanted; use --engine local"
            ) from err
        try:
            yield ray
        finally:
            ray.shutdown()


def _python_path() -> str:
    """Where this process finds modules, for the actors; they start with Ray's own path."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


@contextmanager
def _environment(over: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in over}
    os.environ.update(over)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _temporary() -> Iterator[str | None]:
    """A folder for Ray's sockets and logs, gone afterwards; None where its path would be too long."""
    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        yield folder if len(folder) <= _MAX_TEMP else None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep our answer to SIGTERM; Ray puts its own in place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Callable[..., Any] | int | None] = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
