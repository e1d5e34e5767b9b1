"""t2, the time-series transformer (Allam and McEwen 2024, RASTI 3, 209, arXiv 2105.06178), section 3: one block of the
original encoder over a linear map of every time step; 16 heads of 2 channels."""

from __future__ import annotations

from typing import Any

from shared.nets.registry import register_backbone

PAPER = "Paying Attention to Astronomical Transients, Allam and McEwen 2024, arXiv 2105.06178"


def t2(
    dim: int = 32, heads: int = 16, ratio: int = 4, layers: int = 1, dropout: float = 0.1
) -> dict[str, Any]:
    """The configuration; the defaults are the published network's."""
    return {
        "stem": {"name": "conv", "kernels": [1], "strides": [1], "last_activation": "relu"},
        "position": {"name": "sine", "interleaved": True},
        "dims": [dim],
        "depths": [layers],
        "mixers": [{"name": "attention", "heads": heads}],
        "ffn": {"name": "mlp", "ratio": ratio, "activation": "relu"},
        "norm": {"name": "layernorm", "eps": 1e-6},
        "order": "addnorm",
        "branch_dropout": dropout,
        "final_norm": "none",
        "head": "mean",
    }


register_backbone(
    "t2",
    t2(),
    paper=PAPER,
    published={"ndim": 1, "in_chans": 6, "num_classes": 14, "img_size": (100,), "params": 13_390},
)
