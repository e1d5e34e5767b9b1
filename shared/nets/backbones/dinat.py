"""DiNAT (Hassani and Shi 2022, arXiv 2209.15001), table 1: near and wide neighbourhoods in turn, overlapping
convolutions as stem and between stages. NAT (arXiv 2204.07143) is the same network without dilation."""

from __future__ import annotations

from typing import Any

from shared.nets.registry import IMAGENET, register_backbone

PAPER = "Dilated Neighborhood Attention Transformer, Hassani and Shi 2022, arXiv 2209.15001"
NAT = "Neighborhood Attention Transformer, Hassani et al. 2023, arXiv 2204.07143"
NORM = {"name": "layernorm", "eps": 1e-5}


def _dinat(depths: list[int], dilation: int | str) -> dict[str, Any]:
    return {
        "stem": {
            "name": "conv",
            "kernels": [3, 3],
            "strides": [2, 2],
            "widths": [0.5, 1],
            "last_norm": NORM,
        },
        "dims": [64, 128, 256, 512],
        "depths": depths,
        "mixers": [{"name": "neighbourhood", "head_dim": 32, "dilation": dilation}],
        "ffn": {"name": "mlp", "ratio": 3},
        "norm": NORM,
        "down": {"name": "conv", "kernel": 3, "bias": False, "norm_after": NORM},
        "drop_path": 0.2,
        "final_norm": NORM,
    }


register_backbone("dinat_mini", _dinat([3, 4, 6, 5], "max"), paper=PAPER, published=IMAGENET)
register_backbone("dinat_tiny", _dinat([3, 4, 18, 5], "max"), paper=PAPER, published=IMAGENET)
register_backbone("nat_mini", _dinat([3, 4, 6, 5], 1), paper=NAT, published=IMAGENET)
