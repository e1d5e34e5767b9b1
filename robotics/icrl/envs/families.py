"""All families of tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robotics.icrl.envs.base import Family, Split, Task
from robotics.icrl.envs.control import CONTROL
from robotics.icrl.envs.grid import GRIDS
from robotics.icrl.envs.ml1 import ML1
from robotics.icrl.envs.names import others
from shared.errors import UsageError

FAMILIES: Mapping[str, Family[Any]] = {**GRIDS, **CONTROL, **ML1}


def family(name: str) -> Family[Any]:
    """By name or environment id. Raises `UsageError`."""
    for each in FAMILIES.values():
        if name in (each.name, each.env_id):
            return each
    raise UsageError(f"environment {name}: unknown; {others(name)} wanted")


def tasks(name: str, split: Split = "all") -> list[Task]:
    """Tasks of a family: all in index order, or a part of its fixed split in its shuffled order."""
    return family(name).tasks(split)
