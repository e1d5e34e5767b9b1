"""Several runs that start at the same moment on an empty store: all are tracked, none disturbs another."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.tracking.store import connect

METRICS = 200
CHILD = f"""
import sys, time
from pathlib import Path
from shared.tracking.run import TrackedRun
from shared.tracking.store import connect
import mlflow, sqlalchemy  # so that all reach the empty database together
while time.time() < float(sys.argv[1]):
    time.sleep(0.001)
params = {{f"k{{i}}": i for i in range(120)}}
tags = {{"config_hash": sys.argv[2]}}
with TrackedRun.start(connect(), "toy", params=params, tags=tags, work_root=Path("runs")) as run:
    for step in range({METRICS}):
        run.log_metrics({{"loss": float(step)}}, step)
        time.sleep(0.001)
print(run.run_id)
"""


@pytest.mark.parametrize("writers", [4])
def test_simultaneous_first_use(workdir: Path, writers: int) -> None:
    began = time.monotonic()
    at = str(time.time() + 3 + writers)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, at, f"hash{i}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(writers)
    ]
    try:
        said = [child.communicate(timeout=60) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0] * writers, said
    assert [error for _, error in said] == [""] * writers
    assert time.monotonic() - began < 60
    store = connect()
    runs = {run.info.run_id: run for run in store.client.search_runs([store.experiment("toy")])}
    assert set(runs) == {out.strip() for out, _ in said}
    for run_id, run in runs.items():
        assert run.info.status == "FINISHED"
        assert len(run.data.params) == 120
        history = store.client.get_metric_history(run_id, "loss")
        assert [point.value for point in history] == [float(step) for step in range(METRICS)]
