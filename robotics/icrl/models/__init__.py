"""The in-context models: `build` makes the one that a `ModelConfig` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robotics.icrl.models.config import ModelConfig
    from robotics.icrl.models.incontext import InContext
    from robotics.icrl.models.legacy import Legacy
    from robotics.icrl.models.spaces import Spaces


def build(config: ModelConfig, spaces: Spaces) -> InContext | Legacy:
    """A fresh network. Raises `UsageError` where `config` and `spaces` do not fit together."""
    from robotics.icrl.models.incontext import InContext
    from robotics.icrl.models.legacy import Legacy

    return Legacy(config, spaces) if config.legacy else InContext(config, spaces)
