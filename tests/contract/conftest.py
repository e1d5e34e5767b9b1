"""One real smoke run per pipeline and session, shared by every contract test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines import registry

SMOKE_SECONDS = 600


def call(cwd: Path, *args: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`pipelines ARGS` in folder `cwd`, with its own MLflow store, one thread."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTEST_"))}
    clean |= {"OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        [sys.executable, "-m", "pipelines", *args],
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
        timeout=SMOKE_SECONDS,
        check=False,
    )


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
