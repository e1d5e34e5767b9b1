"""JSON that every parser takes: numpy's numbers are plain, NaN and infinities are null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """`value` as strict JSON knows it: numpy scalars as numbers, NaN and infinities as None, the rest as text."""
    if hasattr(value, "item") and not isinstance(value, str) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def as_line(value: Mapping[str, Any]) -> str:
    """One line of ASCII JSON; any file name survives it."""
    return json.dumps(plain(value), allow_nan=False)
