"""ConvNeXt (Liu et al. 2022, arXiv 2201.03545) and its second version (Woo et al. 2023, arXiv 2301.00808).

One residual a block: x += γ · W₂ act(W₁ LN(DWConv(x))), γ = 1e-6 at the start; version 2 has GRN in place of γ. The
final norm sees the pooled vector.
"""

from __future__ import annotations

from typing import Any

from shared.nets.feedforward.grn import PAPER as PAPER2
from shared.nets.mixers.dwconv import PAPER
from shared.nets.registry import IMAGENET, register_backbone


def _convnext(depths: list[int], width: int, drop_path: float = 0.0, version: int = 1) -> dict[str, Any]:
    return {
        "stem": {"name": "patch", "patch": 4, "norm": "layernorm"},
        "dims": [width * 2**stage for stage in range(4)],
        "depths": depths,
        "mixers": ["dwconv"],
        "ffn": "mlp" if version == 1 else "grn_mlp",
        "order": "convnext",
        "down": {"name": "conv", "kernel": 2, "norm_before": "layernorm"},
        "layer_scale": 1e-6 if version == 1 else None,
        "head": {"name": "mean", "after": True},
        "drop_path": drop_path,
    }


register_backbone(
    "convnext_atto",  # a size of version 2's table 9, with the blocks of version 1
    _convnext([2, 2, 6, 2], 40),
    paper=PAPER,
    published={**IMAGENET, "params": 3_695_520, "macs": 0.547e9},
)
register_backbone(
    "convnext_tiny",
    _convnext([3, 3, 9, 3], 96, 0.1),
    paper=PAPER,
    published={**IMAGENET, "params": 28_589_128, "macs": 4.456e9},
)
register_backbone(
    "convnextv2_atto",
    _convnext([2, 2, 6, 2], 40, version=2),
    paper=PAPER2,
    published={**IMAGENET, "params": 3_708_400},
)
