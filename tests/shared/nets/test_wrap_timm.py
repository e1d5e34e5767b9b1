"""timm's models behind the library's door: crossvit, tnt, tinyvit and the kin of our own networks."""

from __future__ import annotations

import pytest
import torch

from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.backbones.wrap_timm import FAMILIES, TimmBackbone
from shared.nets.measure import count_params

pytest.importorskip("timm")

LEVELS = {
    "crossvit_9_240": [12, 17],
    "tnt_s_patch16_224": [16, 16, 16],
    "tiny_vit_5m_224": [4, 8, 16, 32],
    "poolformer_s12": [4, 8, 16, 32],
    "convnext_atto": [4, 8, 16, 32],
    "swin_tiny_patch4_window7_224": [4, 8, 16, 32],
}
"""Strides of one model a wrapped family."""


@pytest.mark.parametrize("name", LEVELS)
def test_one_and_four_channels(name: str) -> None:
    """Counts with three channels are asserted by the contract tests: here what other channels change."""
    side, params = next((row[2], row[3]) for row in FAMILIES if row[0] == name)
    sizes = []
    with torch.device("meta"):
        for in_chans in (1, 4):
            network = create_backbone(f"timm:{name}", ndim=2, in_chans=in_chans, num_classes=1000)
            assert network.eval()(torch.zeros(1, in_chans, side, side)).shape == (1, 1000)
            sizes.append(count_params(network))
    one_channel = (sizes[1] - sizes[0]) // 3
    assert one_channel > 0 and sizes[0] + 2 * one_channel == params


@pytest.mark.parametrize("name", LEVELS)
def test_a_pyramid_as_ours(name: str) -> None:
    side = 240 if "crossvit" in name else 224
    with torch.device("meta"):
        x = torch.zeros(2, 4, side, side)
        pyramid = create_backbone(f"timm:{name}", ndim=2, in_chans=4, features_only=True)
        bare = create_backbone(f"timm:{name}", ndim=2, in_chans=4)
        scored = create_backbone(f"timm:{name}", ndim=2, in_chans=4, num_classes=3)
    assert isinstance(pyramid, TimmBackbone) and isinstance(scored, TimmBackbone)
    info, maps = pyramid.feature_info, pyramid.eval()(x)
    assert info.reduction() == LEVELS[name]
    assert [m.shape[1] for m in maps] == info.channels()
    if LEVELS[name] == [4, 8, 16, 32]:
        assert [m.shape[2:] for m in maps] == [(side // r, side // r) for r in info.reduction()]
    assert [m.shape for m in scored.eval().features(x)] == [m.shape for m in maps]
    assert bare.eval()(x).shape == maps[-1].shape and scored(x).shape == (2, 3)


def test_img_size_reaches_models_of_one_size_and_only_those() -> None:
    with torch.device("meta"):
        fixed = create_backbone("timm:tnt_s_patch16_224", ndim=2, in_chans=3, img_size=(96, 128))
        free = create_backbone("timm:convnext_atto", ndim=2, in_chans=3, img_size=(96, 128))
        x = torch.zeros(1, 3, 96, 128)
        assert fixed(x).shape[2:] == (6, 8) and free(x).shape[2:] == (3, 4)
        other = create_backbone("timm:tnt_s_patch16_224", ndim=2, in_chans=3)
        with pytest.raises(UsageError, match=r"timm:tnt_s_patch16_224: .*match.*; give it as img_size"):
            other(x)


def test_refusals_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"found 'timm:tiny_vit_5m'; nearest is 'timm:tiny_vit_\w+'"):
        create_backbone("timm:tiny_vit_5m", ndim=2, in_chans=3)
    with pytest.raises(UsageError, match="works in 2 dimensions, 3 found"):
        create_backbone("timm:convnext_atto", ndim=3, in_chans=3)
    with pytest.raises(UsageError, match="nothing is downloaded at run time"):
        create_backbone("timm:convnext_atto", ndim=2, in_chans=3, pretrained=True)
    with torch.device("meta"):
        network = create_backbone("timm:convnext_atto", ndim=2, in_chans=3)
        with pytest.raises(UsageError, match="a mask given, but timm:convnext_atto knows none"):
            network(torch.zeros(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool))


def test_it_computes_what_timm_computes() -> None:
    from shared.nets.compat import import_timm

    torch.manual_seed(0)
    wrapped = create_backbone("timm:convnext_atto", ndim=2, in_chans=1, num_classes=4).eval()
    assert isinstance(wrapped, TimmBackbone)
    plain = import_timm().create_model("convnext_atto", num_classes=4, in_chans=1).eval()
    plain.load_state_dict(wrapped.net.state_dict())
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(x), plain(x), rtol=0, atol=0)
