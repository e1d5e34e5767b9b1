"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030, section 3.3) and Swin V2 (2022, arXiv 2111.09883, section 3)."""

from __future__ import annotations

from typing import Any

from shared.nets.mixers.window import PAPER, V2
from shared.nets.registry import IMAGENET, register_backbone

_NORM = {"name": "layernorm", "eps": 1e-5}


def _swin(dim: int, depths: list[int], drop_path: float) -> dict[str, Any]:
    return {
        "stem": {"name": "patch", "patch": 4, "norm": _NORM},
        "dims": [dim * 2**i for i in range(4)],
        "depths": depths,
        "mixers": [{"name": "window", "window": 7, "head_dim": 32}],
        "norm": _NORM,
        "down": "merge",
        "drop_path": drop_path,
        "final_norm": _NORM,
    }


def _v2(dim: int, depths: list[int], window: int, drop_path: float) -> dict[str, Any]:
    """The norm after each branch, and after the linear map of the downsampling."""
    return _swin(dim, depths, drop_path) | {
        "mixers": [{"name": "window", "window": window, "head_dim": 32, "cosine": True}],
        "down": {"name": "merge", "norm_after": True},
        "order": "postnorm",
    }


register_backbone(
    "swin_tiny",
    _swin(96, [2, 2, 6, 2], 0.2),
    paper=PAPER,
    published={**IMAGENET, "params": 28_288_354, "macs": 4.491e9},
)
register_backbone(
    "swin_small",
    _swin(96, [2, 2, 18, 2], 0.3),
    paper=PAPER,
    published={**IMAGENET, "params": 49_606_258},
)
register_backbone(
    "swin_base",
    _swin(128, [2, 2, 18, 2], 0.5),
    paper=PAPER,
    published={**IMAGENET, "params": 87_768_224},
)
register_backbone(
    "swinv2_tiny_window8_256",
    _v2(96, [2, 2, 6, 2], 8, 0.2),
    paper=V2,
    published={**IMAGENET, "img_size": (256, 256), "params": 28_347_154},
)
