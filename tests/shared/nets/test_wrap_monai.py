"""MONAI's networks behind `create_backbone`: counts, pyramids, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.backbones.wrap_monai import parse_call
from shared.nets.measure import count_params

SMALL = [
    ("monai:SwinUNETR(feature_size=12, depths=(1, 1, 1, 1), window_size=4)", (32, 64, 32)),
    ("monai:UNETR(feature_size=4, hidden_size=12, mlp_dim=16, num_heads=2)", (16, 32, 16)),
    ("monai:MedNeXt(init_filters=4, kernel_size=3, blocks_down=(1, 1, 1, 1))", (16, 32, 16)),
    ("monai:SegResNet(init_filters=8)", (16, 32, 16)),
]


@pytest.fixture(autouse=True)
def _monai() -> None:
    pytest.importorskip("monai")


@pytest.mark.parametrize(
    ("name", "classes", "params"),
    [
        ("monai:SwinUNETR(feature_size=24)", 3, 15_705_621),
        ("monai:SwinUNETR(feature_size=48)", 0, 8_063_154),  # its Swin transformer alone
    ],
)
def test_counts(name: str, classes: int, params: int) -> None:
    assert count_params(create_backbone(name, ndim=3, in_chans=4, num_classes=classes)) == params


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("name", "size"), SMALL)
def test_pyramids(name: str, size: tuple[int, ...], ndim: int) -> None:
    torch.manual_seed(0)
    place: dict[str, Any] = {"ndim": ndim, "in_chans": 2, "img_size": size[:ndim]}
    encoder = create_backbone(name, features_only=True, **place)
    whole = create_backbone(name, num_classes=5, **place).eval()
    x = torch.randn(1, 2, *size[:ndim], generator=torch.Generator().manual_seed(1))
    maps = encoder(x)
    info: Any = encoder.feature_info
    assert [m.shape[1] for m in maps] == info.channels()
    for level, reduction in zip(maps, info.reduction()):
        assert tuple(level.shape[2:]) == tuple(n // reduction for n in size[:ndim])
    sum(m.square().sum() for m in maps).backward()
    idle = [name for name, p in encoder.named_parameters() if p.grad is None]
    assert all("norm_cross_attn" in name for name in idle)  # MONAI's UNETR has them without using them
    missing = whole.load_state_dict(encoder.state_dict(), strict=False)
    assert not missing.unexpected_keys and missing.missing_keys  # names are those of the whole network
    with torch.no_grad():
        assert whole(x).shape == (1, 5, *size[:ndim])
        expected = encoder.eval()(x)
        for ours, theirs in zip(whole.features(x), expected):  # type: ignore[operator]
            torch.testing.assert_close(ours, theirs)
        last = create_backbone(name, **place).eval()
        last.load_state_dict(encoder.state_dict())
        torch.testing.assert_close(last(x), expected[-1])


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("UNETR", "UNETR", {}),
        ("UNETR()", "UNETR", {}),
        (
            "SwinUNETR(depths=(1, 2), norm_name='batch', use_v2=True)",
            "SwinUNETR",
            {"depths": (1, 2), "norm_name": "batch", "use_v2": True},
        ),
    ],
)
def test_calls_are_read(text: str, name: str, options: dict[str, Any]) -> None:
    assert parse_call(text) == (name, options)


@pytest.mark.parametrize(
    ("source", "ndim", "message"),
    [
        ("monai:SwinUNTR", 3, "nearest is 'SwinUNETR'"),
        ("monai:SwinUNETR(feature_sise=24)", 3, "nearest is 'feature_size'"),
        ("monai:SwinUNETR(feature_size=20)", 3, "feature_size should be divisible by 12"),
        ("monai:SwinUNETR(out_channels=2)", 3, "is set by the pipeline"),
        ("monai:SwinUNETR(24)", 3, "key=value"),
        ("monai:SwinUNETR(**{'feature_size': 24})", 3, "key=value"),
        ("monai:SwinUNETR(feature_size=__import__('os').getpid())", 3, "key=value"),
        ("monai:SwinUNETR(feature_size=", 3, "key=value"),
        ("monai:MedNeXtS(variant='B')", 3, "is set by the pipeline"),
        ("monai:UNETR", 3, "give img_size"),
        ("monai:SegResNet", 1, "2 or 3 wanted"),
    ],
)
def test_refusals_are_one_line(source: str, ndim: int, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        create_backbone(source, ndim=ndim, in_chans=4, num_classes=3)
    assert "\n" not in str(caught.value)


def test_sizes_that_no_patch_divides_are_refused() -> None:
    with pytest.raises(UsageError, match="multiples of 16 wanted"):
        create_backbone("monai:UNETR", ndim=3, in_chans=4, img_size=(32, 32, 30))
