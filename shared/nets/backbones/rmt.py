"""RMT (Fan et al. 2023, arXiv 2309.11523), table 1: Manhattan attention, split along the axes in the early stages.

The block starts with a depthwise convolution (conditional position); its feed-forward part holds another one.
"""

from __future__ import annotations

from typing import Any

from shared.nets.registry import IMAGENET, register_backbone

PAPER = "RMT: Retentive Networks Meet Vision Transformers, Fan et al. 2023, arXiv 2309.11523"
HEAD_DIMS = (16, 32, 32, 32)
RANGES = (4, 4, 6, 6)


def _rmt(depths: list[int], ratios: list[float], split: int, drop_path: float) -> dict[str, Any]:
    """`split`: how many stages mix along the axes."""
    return {
        "stem": {
            "name": "conv",
            "kernels": [3, 3, 3, 3],
            "strides": [2, 1, 2, 1],
            "widths": [0.5, 0.5, 1, 1],
            "norm": "batchnorm",
            "activation": "gelu",
            "last_norm": "batchnorm",
            "bias": True,
        },
        "dims": [64, 128, 256, 512],
        "depths": depths,
        "mixers": [
            {
                "name": "manhattan",
                "mode": "split" if at < split else "whole",
                "head_dim": head_dim,
                "decay": [2, spread],
            }
            for at, (head_dim, spread) in enumerate(zip(HEAD_DIMS, RANGES))
        ],
        "ffn": [{"name": "conv_mlp", "ratio": ratio} for ratio in ratios],
        "down": {"name": "conv", "kernel": 3, "norm_after": "batchnorm"},
        "block_position": 3,
        "drop_path": drop_path,
        "final_norm": "none",
        "head": "projected",
    }


register_backbone(
    "rmt_t",
    _rmt([2, 2, 8, 2], [3, 3, 3, 3], 2, 0.1),
    paper=PAPER,
    published={**IMAGENET, "params": 14_334_216, "macs": 2.637e9},
)
register_backbone(
    "rmt_s",
    _rmt([3, 4, 18, 4], [4, 4, 3, 3], 3, 0.15),
    paper=PAPER,
    published={**IMAGENET, "params": 26_967_240, "macs": 4.777e9},
)
