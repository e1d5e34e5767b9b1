"""Compact Convolutional Transformers (Hassani et al. 2021, arXiv 2104.05704), CCT-layers/kernel x convolutions.

As in the official code the blocks normalise the residual stream itself between attention and perceptron (order
`renorm`). Any size of input with `position: sine` or `none`; the published networks have learned positions.
"""

from __future__ import annotations

from typing import Any

from shared.nets.registry import IMAGENET, register_backbone
from shared.nets.stems.cct import PAPER

_NORM = {"name": "layernorm", "eps": 1e-5}


def _cct(layers: int, dim: int, ratio: float, kernel: int, convs: int) -> dict[str, Any]:
    return {
        "stem": {"name": "cct", "kernel": kernel, "convs": convs},
        "position": "learned",
        "dims": [dim],
        "depths": [layers],
        "mixers": [{"name": "attention", "head_dim": 64, "qkv_bias": False, "dropout": 0.1}],
        "ffn": {"name": "mlp", "ratio": ratio},
        "norm": _NORM,
        "order": "renorm",
        "drop_path": 0.1,
        "final_norm": _NORM,
        "head": "seqpool",
    }


_CIFAR = {"ndim": 2, "in_chans": 3, "num_classes": 10, "img_size": (32, 32)}
register_backbone("cct_2_3x2", _cct(2, 128, 1, 3, 2), paper=PAPER, published={**_CIFAR, "params": 283_723})
register_backbone(
    "cct_7_3x1",
    _cct(7, 256, 2, 3, 1),
    paper=PAPER,
    published={**_CIFAR, "params": 3_760_139, "macs": 1.182e9},
)
register_backbone(
    "cct_14_7x2",
    _cct(14, 384, 3, 7, 2),
    paper=PAPER,
    published={**IMAGENET, "params": 22_367_273, "macs": 5.522e9},
)
