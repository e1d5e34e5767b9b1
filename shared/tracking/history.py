"""Runs of the past: found by the first digits of their id, marked KILLED when their process is gone, taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import UsageError
from shared.tracking.provenance import is_alive
from shared.tracking.store import Store, without_password

if TYPE_CHECKING:
    from mlflow.entities import Run

DEAD = "its process ended without a word (kill -9, out of memory, or power loss)"
LOCK_NAME = ".lock"


def find_run(store: Store, text: str, pipeline: str | None = None) -> Run:
    """The run whose id is or begins with `text`. Raises `UsageError` when there is none or more than one."""
    wanted = text.strip().lower()
    found: list[Run] = []
    if wanted.isalnum():
        names = [pipeline] if pipeline else [e.name for e in store.client.search_experiments()]
        ids = [found_id for name in names if (found_id := store.find_experiment(name)) is not None]
        if ids:
            page = store.client.search_runs(
                ids, filter_string=f"attributes.run_id LIKE '{wanted}%'", max_results=2
            )
            found = list(page)
    where = f"pipeline {pipeline}" if pipeline else without_password(store.uri)
    if not found:
        raise UsageError(f"{text}: no such run in {where}; a run id wanted; see `pipelines compare`")
    if len(found) > 1:
        raise UsageError(f"{text}: more than one run begins so; a longer id wanted; see `pipelines compare`")
    return found[0]


def sweep_stale(store: Store, pipeline: str) -> list[str]:
    """Ids of runs marked RUNNING whose process on this machine is dead; they are KILLED now."""
    experiment = store.find_experiment(pipeline)
    if experiment is None:
        return []
    swept: list[str] = []
    for run in _search(store, experiment, "attributes.status = 'RUNNING'"):
        if is_alive(run.data.tags) is False and not is_claimed(run.data.tags.get("work")):
            store.client.set_tag(run.info.run_id, "end_reason", DEAD)
            store.client.set_tag(run.info.run_id, "resumable", "yes")
            store.client.set_terminated(run.info.run_id, status="KILLED")
            swept.append(str(run.info.run_id))
    return swept


def last_interrupted(store: Store, pipeline: str, config_hash: str) -> str | None:
    """Id of the newest resumable run of this configuration, None if there is none.

    Resumable: ended by a signal, a kill, or lack of memory or disk; its work folder is still there and nobody works
    in it; and no run of the same configuration finished after it, which would have made it pointless.
    """
    experiment = store.find_experiment(pipeline)
    if experiment is None:
        return None
    runs = _search(store, experiment, f"tags.config_hash = '{config_hash}'")
    runs.sort(key=lambda run: run.info.end_time or run.info.start_time, reverse=True)
    for run in runs:
        tags = run.data.tags
        if run.info.status == "FINISHED":
            return None
        dead = run.info.status == "RUNNING" and is_alive(tags) is False
        if (dead or tags.get("resumable") == "yes") and _work_left(tags.get("work")):
            return str(run.info.run_id)
    return None


def is_claimed(work: str | None) -> bool:
    """Whether a living process holds the work folder's lock; the kernel drops it with the process."""
    from filelock import FileLock, Timeout

    path = Path(work or "", LOCK_NAME)
    if not work or not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:
        return False


def _work_left(work: str | None) -> bool:
    return bool(work) and Path(str(work)).is_dir() and not is_claimed(work)


def _search(store: Store, experiment: str, text: str) -> list[Run]:
    """Up to a thousand runs, newest first."""
    return list(
        store.client.search_runs(
            [experiment], filter_string=text, max_results=1000, order_by=["attributes.start_time DESC"]
        )
    )
