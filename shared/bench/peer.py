"""Importing a peer's code from a checkout that is not installed."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def checkout(folder: Path, packages: Collection[str]) -> Iterator[None]:
    """Inside, `packages` of a checkout, whose names are anybody's (`models`, `layers`), can be imported; afterwards the
    next checkout may bring its own."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if name.split(".")[0] in packages:
                del sys.modules[name]
