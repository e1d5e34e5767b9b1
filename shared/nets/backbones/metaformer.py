"""PoolFormer (Yu et al. 2022, arXiv 2111.11418), table 1: the skeleton itself with the mixer that does least."""

from __future__ import annotations

from typing import Any

from shared.nets.mixers.pool import PAPER
from shared.nets.registry import IMAGENET, register_backbone


def _poolformer(depths: list[int], dims: list[int], layer_scale: float) -> dict[str, Any]:
    return {
        "stem": {"name": "conv", "kernels": [7], "strides": [4], "padding": [2]},
        "dims": dims,
        "depths": depths,
        "mixers": ["pool"],
        "norm": "groupnorm1",
        "down": {"name": "conv", "kernel": 3},
        "layer_scale": layer_scale,
        "final_norm": "groupnorm1",
    }


_SMALL, _MEDIUM = [64, 128, 320, 512], [96, 192, 384, 768]
register_backbone(
    "poolformer_s12",
    _poolformer([2, 2, 6, 2], _SMALL, 1e-5),
    paper=PAPER,
    published={**IMAGENET, "params": 11_915_176, "macs": 1.812e9},
)
register_backbone("poolformer_s24", _poolformer([4, 4, 12, 4], _SMALL, 1e-5), paper=PAPER, published=IMAGENET)
register_backbone("poolformer_s36", _poolformer([6, 6, 18, 6], _SMALL, 1e-6), paper=PAPER, published=IMAGENET)
register_backbone(
    "poolformer_m36", _poolformer([6, 6, 18, 6], _MEDIUM, 1e-6), paper=PAPER, published=IMAGENET
)
