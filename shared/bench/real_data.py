"""Where the real data of tests and benchmarks lie: beside the project, or where PIPELINES_DATA says."""

from __future__ import annotations

import os
from pathlib import Path

from shared.errors import UsageError

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "data"


def data_root() -> Path:
    """Where they should lie; they may not."""
    return Path(os.environ.get("PIPELINES_DATA", DEFAULT))


def data_folder(name: str) -> Path:
    """The folder `name` of the real data. Raises `UsageError` where it is absent."""
    path = data_root() / name
    if not path.is_dir():
        raise UsageError(f"{path}: not found; the real data wanted; set PIPELINES_DATA to their folder")
    return path
