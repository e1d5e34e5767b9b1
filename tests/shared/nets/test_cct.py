"""Compact Transformers: published sizes (contract tests), equal to vit-pytorch's, and free of one input size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from shared.nets import create_backbone
from shared.nets.backbones.factory import backbone_config
from shared.nets.registry import make
from tests.shared.nets.peers import copy_weights, randomise

VIT_PYTORCH = [
    (r"^tokenizer\.conv_layers\.(\d)\.0", r"stem.convs.\1.conv"),
    (r"^classifier\.positional_emb", "position.code"),
    (r"^classifier\.blocks", "stages.0.blocks"),
    (r"pre_norm", "norm1"),
    (r"(blocks\.\d+)\.self_attn", r"\1.mixer"),
    (r"(blocks\.\d+)\.linear", r"\1.ffn.fc"),
    (r"^classifier\.norm", "head.norm"),
    (r"^classifier\.attention_pool", "head.attention"),
    (r"^classifier\.fc", "head.fc"),
]
# Their second norm of a block is called norm1, which is our first.
RENAMED = [(r"(blocks\.\d+)\.norm1", r"\1.norm2"), *VIT_PYTORCH]


@pytest.mark.parametrize(
    ("ours", "theirs", "convs", "kernel", "side"),
    [("cct_7_3x1", "cct_7", 1, 3, 32), ("cct_2_3x2", "cct_2", 2, 3, 32), ("cct_14_7x2", "cct_14", 2, 7, 64)],
)
def test_equal_to_vit_pytorch(ours: str, theirs: str, convs: int, kernel: int, side: int) -> None:
    pytest.importorskip("vit_pytorch")
    from vit_pytorch import cct

    build: Any = getattr(cct, theirs)
    peer = randomise(
        build(
            img_size=side, n_conv_layers=convs, kernel_size=kernel, num_classes=10,
            positional_embedding="learnable",
        )
    )  # fmt: skip
    network = create_backbone(ours, ndim=2, in_chans=3, num_classes=10, img_size=side)
    copy_weights(peer, network, RENAMED)
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = peer(x)
        assert (network(x) - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())


def test_a_pool_that_has_learned_nothing_is_the_mean() -> None:
    pool, mean = (make("head", name, 8, 3, norm="layernorm").double() for name in ("seqpool", "mean"))
    nn.init.zeros_(pool.attention.weight)
    mean.load_state_dict({k: v for k, v in pool.state_dict().items() if "attention" not in k})
    x = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    mask = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(0)) > 0.4
    with torch.no_grad():
        torch.testing.assert_close(pool(x), mean(x))
        torch.testing.assert_close(pool(x, mask), mean(x, mask))
        nn.init.normal_(pool.attention.weight)
        assert (pool(x) - mean(x)).abs().max() > 0.01


@pytest.mark.parametrize("position", ["none", "sine"])
def test_any_length_without_learned_positions(position: str) -> None:
    """One series network, built for no size, on light curves of two lengths; what a mask hides changes nothing."""
    config = backbone_config("cct_2_3x2").model_dump() | {"position": position, "dims": [32]}
    network = randomise(create_backbone(config, ndim=1, in_chans=6, num_classes=4))
    x = torch.randn(2, 6, 100)
    with torch.no_grad():
        assert network(x[:, :, :52]).shape == network(x).shape == (2, 4)
        mask = torch.zeros(2, 100, dtype=torch.bool)
        mask[:, :52] = True
        other = x.clone()
        other[:, :, 52:] = 9.0
        torch.testing.assert_close(network(x, mask), network(other, mask))


def test_tokens_of_the_published_inputs() -> None:
    small = make("stem", {"name": "cct", "kernel": 3, "convs": 1}, 3, 256, 2)
    large = make("stem", {"name": "cct", "kernel": 7, "convs": 2}, 3, 384, 2)
    assert small.out_size((32, 32)) == (16, 16) and small.stride == (2, 2)
    assert large.out_size((224, 224)) == (14, 14) and large.stride == (16, 16)
