"""One real smoke run per pipeline and session, shared by every contract test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines import registry

SMOKE_SECONDS = 600
OFFLINE = Path(__file__).parent / "offline"
"""Holds a `sitecustomize` that ends any process that asks another machine."""


def surroundings(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without test and tracking settings, one thread, no network; `env` on top."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTEST_", "PIPELINES_"))}
    path = os.pathsep.join(filter(None, (str(OFFLINE), os.environ.get("PYTHONPATH"))))
    return clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, **(env or {})}


def call(cwd: Path, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`pipelines ARGS` in folder `cwd`, with its own MLflow store, one thread."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *args],
        cwd=cwd,
        env=surroundings(env),
        capture_output=True,
        text=True,
        timeout=SMOKE_SECONDS,
        check=False,
    )


def interrupt(cwd: Path, *args: str, when: Callable[[], bool]) -> tuple[int, str]:
    """`pipelines ARGS` in `cwd`, stopped by Ctrl-C as soon as `when`; exit code and what it said."""
    with open(cwd / "said.txt", "w+", encoding="utf-8") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", *args],
            cwd=cwd,
            env=surroundings(),
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        try:
            end = time.monotonic() + SMOKE_SECONDS
            while process.poll() is None and not when():
                assert time.monotonic() < end, "the moment to interrupt did not come"
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            code = process.wait(SMOKE_SECONDS)
        finally:
            process.kill()
        said.seek(0)
        return code, said.read()


@dataclass(frozen=True)
class Smoke:
    """A finished smoke run and the folder it happened in."""

    name: str
    cwd: Path
    result: dict[str, Any]


@pytest.fixture(scope="session", params=registry.names())
def smoke(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    name = str(request.param)
    cwd = tmp_path_factory.mktemp(name)
    done = call(cwd, "run", name, "--preset", "smoke", "-s", "threads=1", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    return Smoke(name, cwd, json.loads(done.stdout))
