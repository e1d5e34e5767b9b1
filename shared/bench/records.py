"""Results of a bench in a file of one JSON object a line, so that a run that was cut short goes on where it stopped."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shared.nets.registry import find


class Records:
    """Objects with a "key"; a later one of the same key takes the earlier one's place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found = {record["key"]: record for record in _read(path)}

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._found[key]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._found.values())

    def add(self, key: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Written through to the disk before this returns."""
        record = {"key": key, **values}
        self._found[key] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if torn else "") + json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return record


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; the last one of a killed process may be cut and is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "key" in record:
            yield record


def fingerprint(mixer: str, *conditions: object) -> str:
    """Tells results apart that are not of the same thing: the mixer's source and whatever else they depend on."""
    module = sys.modules[find("mixer", mixer).make.__module__]
    text = inspect.getsource(module) + repr(conditions)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
