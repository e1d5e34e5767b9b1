"""MetaFormer's claims: one skeleton in every dimension, and a pool mixer that only sees differences."""

from __future__ import annotations

import pytest
import torch

from shared.nets import create_backbone
from shared.nets.backbones.factory import backbone_config
from shared.nets.backbones.pyramid import Backbone
from shared.nets.measure import count_params
from shared.nets.registry import make
from tests.shared.nets.peers import copy_weights, randomise

TIMM = [
    (r"^stem\.conv", "stem.convs.0.conv"),
    (r"downsample\.conv", "down.conv.conv"),
    (r"\.mlp\.", ".ffn."),
    (r"layer_scale(\d)\.scale", r"scale\1.gamma"),
]


def test_equal_to_timm() -> None:
    """timm's head differs from the official one, which ours follows: it pools, then normalises each vector (the
    official code normalises the map over channels and positions, then pools). So with timm's head."""
    pytest.importorskip("timm")
    from shared.nets.compat import import_timm

    theirs = randomise(import_timm().create_model("poolformer_s12", num_classes=10))
    config = backbone_config("poolformer_s12").model_dump()
    config |= {"final_norm": "layernorm", "head": {"name": "mean", "after": True}}
    ours = create_backbone(config, ndim=2, in_chans=3, num_classes=10)
    copy_weights(theirs, ours, TIMM)
    x = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_constant_input_gives_exactly_nothing(ndim: int) -> None:
    x = torch.full((1, *(7, 6, 5)[:ndim], 4), 3.0)
    assert make("mixer", "pool", 4, ndim)(x).abs().max() == 0


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_one_config_builds_in_every_dimension_with_strides_4_to_32(ndim: int) -> None:
    config = backbone_config("poolformer_s12").model_dump() | {"dims": [8, 12, 16, 24]}
    network = create_backbone(config, ndim=ndim, in_chans=4, features_only=True).eval()
    assert isinstance(network, Backbone)
    with torch.no_grad():
        maps = network(torch.randn(1, 4, *[64] * ndim))
    assert network.feature_info.reduction() == [4, 8, 16, 32]
    assert [tuple(m.shape[1:]) for m in maps] == [
        (dim, *[64 // r] * ndim) for dim, r in zip([8, 12, 16, 24], [4, 8, 16, 32])
    ]


def test_the_mixer_is_the_only_difference() -> None:
    """Pooling, attention and nothing at all in one skeleton; the first and the last without a parameter."""
    config = backbone_config("poolformer_s12").model_dump() | {"dims": [8, 16, 16, 32]}
    sizes = {}
    for mixer in ("pool", "identity", "attention"):
        network = create_backbone(config | {"mixers": [mixer]}, ndim=2, in_chans=3, num_classes=2).eval()
        with torch.no_grad():
            assert torch.isfinite(network(torch.randn(1, 3, 64, 64))).all()
        sizes[mixer] = count_params(network)
    assert sizes["pool"] == sizes["identity"] < sizes["attention"]
