"""Benchmarks live in the repository's ``benchmarks/`` folder, one file a pipeline; they are not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.errors import UsageError

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def bench(name: str, only: str | None, quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of ``benchmarks/<name>.py:run``. Raises `UsageError` when there is none."""
    path = FOLDER / f"{name.replace('-', '_')}.py"
    if not path.is_file():
        there = ", ".join(sorted(p.stem.replace("_", "-") for p in FOLDER.glob("*.py"))) or "none"
        raise UsageError(
            f"{name}: no benchmark at {path}; one of {there}; run from a clone of the repository"
        )
    spec = importlib.util.spec_from_file_location(f"benchmarks.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: cannot be imported; a Python file wanted; restore it")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    rows: list[dict[str, Any]] = module.run(quick=quick, say=say)
    return [row for row in rows if only is None or row["case"] == only]
