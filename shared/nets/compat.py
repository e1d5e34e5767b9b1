"""The libraries that networks are wrapped from."""

from __future__ import annotations

from typing import Any

from shared.compat import mend_torchvision
from shared.errors import need


def import_timm() -> Any:
    """timm, also where its torchvision does not fit the installed torch. Raises `EnvironmentUnfit` without timm."""
    need("nets", "timm")
    mend_torchvision()
    import timm

    return timm
