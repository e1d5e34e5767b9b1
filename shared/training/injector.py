"""A test hook: end the process at a named point, as `kill -9` would, when the environment asks for it.

``PIPELINES_CRASH_AT=after_step:7`` ends it after the seventh optimiser step. Points: ``after_step`` (counted by the
step's number), ``mid_save`` (half of a checkpoint written), ``after_save`` (file complete, manifest not),
``after_manifest``, ``mid_validation`` and ``after_fit`` (each counted from 1). Without the variable nothing happens.
"""

from __future__ import annotations

import os

VARIABLE = "PIPELINES_CRASH_AT"
EXIT_CODE = 9
_seen: dict[str, int] = {}


def crash_point(name: str, number: int | None = None) -> None:
    """End the process here if this is the wanted point; `number` replaces the count of calls."""
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    _seen[name] = _seen.get(name, 0) + 1
    if wanted == f"{name}:{_seen[name] if number is None else number}":
        os._exit(EXIT_CODE)
