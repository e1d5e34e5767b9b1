"""The network library: `create_backbone` builds every network, `shared.nets.registry` knows every part."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.nets.backbones.factory import create_backbone as create_backbone


def __getattr__(name: str) -> Any:
    if name == "create_backbone":  # torch is loaded when a network is wanted, not before
        from shared.nets.backbones.factory import create_backbone

        return create_backbone
    raise AttributeError(name)
