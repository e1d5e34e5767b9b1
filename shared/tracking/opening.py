"""A run's first moments in the store: created or taken up again, its work folder claimed for this process."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import UsageError
from shared.tracking.history import LOCK_NAME, find_run
from shared.tracking.provenance import is_alive
from shared.tracking.store import Store

if TYPE_CHECKING:
    from filelock import BaseFileLock
    from mlflow.entities import Run

PARAM_BATCH = 100
PARAM_CHARS = 6000
TAG_CHARS = 5000
CLAIM_SECONDS = 6
"""Loader processes of a killed run outlive it by up to five seconds and hold its lock so long."""


def create(
    store: Store, experiment: str, folder: Path, params: Mapping[str, Any], tags: dict[str, str]
) -> tuple[Run, Path, BaseFileLock]:
    """A new run with its parameters, tags and claimed folder; FAILED at once if any of these cannot be."""
    tags["attempt"] = "1"
    tags["mlflow.source.name"] = tags.get("command", "")
    tags["mlflow.source.type"] = "LOCAL"
    tags["mlflow.user"] = _user()
    name = f"{tags.get('preset', 'run')}-{time.strftime('%m%d-%H%M%S')}"
    # The identity goes in with the creation itself: a run that dies in the next line can still be swept.
    cut = {key: value[:TAG_CHARS] for key, value in tags.items()}
    run = store.client.create_run(experiment, tags=cut, run_name=name)
    try:
        work = folder / run.info.run_id[:12]
        work.mkdir(parents=True, exist_ok=True)
        lock = _claim(work)
        store.client.set_tag(run.info.run_id, "work", str(work))
        _log_params(store, run.info.run_id, params)
    except BaseException:
        store.client.set_terminated(run.info.run_id, status="FAILED")
        raise
    return run, work, lock


def reopen(
    store: Store, pipeline: str, text: str, params: Mapping[str, Any], tags: dict[str, str]
) -> tuple[Run, Path, BaseFileLock]:
    """The run `text` RUNNING again, its folder claimed, its attempts counted."""
    from mlflow.entities import RunTag

    run = find_run(store, text, pipeline)
    run_id, before = run.info.run_id, run.data.tags
    _refuse_unfit(run, params, tags)
    work = Path(before["work"])
    lock = _claim(work)
    tags["attempt"] = str(int(before.get("attempt", "1")) + 1)
    tags["end_reason"] = ""
    tags["resumable"] = "no"
    pairs = [RunTag(key, value[:TAG_CHARS]) for key, value in tags.items()]
    store.client.log_batch(run_id, tags=pairs)
    store.client.update_run(run_id, status="RUNNING")
    return run, work, lock


def _refuse_unfit(run: Run, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    before, short = run.data.tags, run.info.run_id[:12]
    if run.info.status == "FINISHED" and before.get("kind") != "sweep":
        raise UsageError(f"--resume {short}: finished; an interrupted run wanted; use --resume no")
    if run.info.status == "RUNNING" and is_alive(before):
        raise UsageError(
            f"--resume {short}: in use by pid {before['pid']}; an interrupted run wanted; wait or stop it"
        )
    if not Path(before.get("work", "")).is_dir() or "work" not in before:
        raise UsageError(f"--resume {short}: its work folder is gone; checkpoints wanted; use --resume no")
    if before.get("config_hash") != tags.get("config_hash"):
        told = {key: value for key, value in _pieces(params)}
        odd = [key for key, value in run.data.params.items() if told.get(key) != value]
        raise UsageError(
            f"--resume {short}: another configuration ({', '.join(odd[:3]) or 'keys differ'}); the same one wanted; "
            "give the first command's preset, data and -s, or --resume no"
        )


def _claim(work: Path) -> BaseFileLock:
    """The folder's lock, held until the process ends. Raises `UsageError` if another process has it."""
    from filelock import FileLock, Timeout

    owner = work / LOCK_NAME
    lock = FileLock(owner, timeout=CLAIM_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"{work}: in use by another process; a free folder wanted; wait or use --resume no"
        ) from None
    return lock


def _log_params(store: Store, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    for part in batches(list(_pieces(params))):
        store.client.log_batch(run_id, params=[Param(key, value) for key, value in part])


def _pieces(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and text pairs, long texts cut into ``key``, ``key.part2`` … of 6000 characters each."""
    for key, value in params.items():
        text = str(value)
        yield key, text[:PARAM_CHARS]
        for part, start in enumerate(range(PARAM_CHARS, len(text), PARAM_CHARS), 2):
            yield f"{key}.part{part}", text[start : start + PARAM_CHARS]


def batches(pairs: list[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    for start in range(0, len(pairs), PARAM_BATCH):
        yield pairs[start : start + PARAM_BATCH]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # no name for this uid, as in many containers
        return ""
