"""Which process of a distributed run writes to the store, and how the others learn its run.

Lightning starts its helpers from the first process, so they inherit two environment variables; under torchrun or
SLURM all processes start together, and the first one leaves a note beside the work folders.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from shared.errors import EnvironmentUnfit

ANNOUNCED = "PIPELINES_RUN"
WAIT_SECONDS = 120


def is_leader() -> bool:
    """True in the one process that tracks; also true when nothing is distributed."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") in ("", "0") for name in names)


def announce(run_id: str, work: Path, resumed: bool) -> None:
    """Tell the other processes of this run, those to be started and those already waiting."""
    text = json.dumps({"run_id": run_id, "work": str(work), "resumed": resumed})
    os.environ[ANNOUNCED] = text
    note = _note(work.parent)
    if note is not None:
        from shared.io.atomic import atomic_write_text

        atomic_write_text(note, text)


def withdraw(folder: Path) -> None:
    """Undo `announce`."""
    os.environ.pop(ANNOUNCED, None)
    note = _note(folder)
    if note is not None:
        note.unlink(missing_ok=True)


def follow(folder: Path) -> tuple[str, Path, bool]:
    """(run id, work folder, resumed) of the leader. Raises `EnvironmentUnfit` after two minutes of silence."""
    text = os.environ.get(ANNOUNCED, "")
    note = _note(folder)
    deadline = time.monotonic() + WAIT_SECONDS
    born = _started()
    while not text:
        # A note older than this process is a killed job's: at equal ports the names are equal.
        if note is not None and note.is_file() and note.stat().st_mtime > born - 30:
            text = note.read_text(encoding="utf-8")
        elif time.monotonic() > deadline:
            raise EnvironmentUnfit(
                f"{folder}: no run announced by process 0 in {WAIT_SECONDS} s; a folder shared by all nodes "
                "wanted; start every process in the same directory"
            )
        else:
            time.sleep(0.2)
    told = json.loads(text)
    return told["run_id"], Path(told["work"]), bool(told["resumed"])


def _note(folder: Path) -> Path | None:
    """The note's place under torchrun or SLURM, None elsewhere."""
    for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        if os.environ.get(name):
            port = os.environ.get("MASTER_PORT", "0")
            return folder / f".leader-{Path(os.environ[name]).name}-{port}.json"
    return None


def _started() -> float:
    import psutil

    return float(psutil.Process().create_time())
