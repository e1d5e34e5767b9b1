"""Benchmarks live in the repository's ``benchmarks/`` folder, one file a pipeline; they are not installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.errors import UsageError

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def bench(name: str, only: str | None, quick: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows of the `CASES` in ``benchmarks/<name>.py``: one of them, its `QUICK` ones, or all.

    Raises `UsageError` when there is no such file or case.
    """
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
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    cases: dict[str, Callable[[Callable[[str], None]], list[dict[str, Any]]]] = module.CASES
    if only is not None and only not in cases:
        raise UsageError(f"--only {only}: unknown; one of {', '.join(cases)} wanted; correct it")
    chosen = [only] if only is not None else [case for case in cases if not quick or case in module.QUICK]
    return [row for case in chosen for row in cases[case](say)]
