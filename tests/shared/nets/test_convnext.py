"""ConvNeXt: equal to timm's, local as its kernel, and at home in one dimension too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.backbones.factory import backbone_config
from shared.nets.feedforward.grn import GlobalResponseNorm
from shared.nets.registry import make
from tests.shared.nets.peers import copy_weights, randomise

TIMM = [
    (r"^stem\.0", "stem.proj.conv"),
    (r"^stem\.1", "stem.norm"),
    (r"downsample\.0", "down.before"),
    (r"downsample\.1", "down.conv.conv"),
    (r"(blocks\.\d+)\.norm", r"\1.norm1"),
    (r"conv_dw", "mixer.conv.conv"),
    (r"\.mlp\.", ".ffn."),
    (r"\.gamma", ".scale1.gamma"),
]


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "convnext_tiny"])
def test_equal_to_timm(name: str) -> None:
    """Relative to the scores' size: the weights are random, γ is 0.05 and not 1e-6."""
    pytest.importorskip("timm")
    from shared.nets.compat import import_timm

    theirs = randomise(import_timm().create_model(name, num_classes=10))
    ours = create_backbone(name, ndim=2, in_chans=3, num_classes=10)
    copy_weights(theirs, ours, TIMM)
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(x)
        assert (ours(x) - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())


@pytest.mark.parametrize(("ndim", "kernel"), [(1, 7), (2, 7), (3, 5), (1, 31), (2, 3)])
def test_an_impulse_reaches_the_kernel_and_no_further(ndim: int, kernel: int) -> None:
    usual = 5 if ndim == 3 else 7
    part = "dwconv" if kernel == usual else {"name": "dwconv", "kernel": kernel}
    mixer = randomise(make("mixer", part, 2, ndim))
    side = kernel + 4
    x = torch.zeros(1, *[side] * ndim, 2)
    x[(0, *[side // 2] * ndim)] = 1
    with torch.no_grad():
        moved = (mixer(x) - mixer(torch.zeros_like(x)))[0, ..., 0] != 0
    assert int(moved.sum()) == kernel**ndim
    inner = moved[tuple(slice(2, -2) for _ in range(ndim))]
    assert inner.all()


def test_a_series_of_512_causal_and_not() -> None:
    config = backbone_config("convnext_atto").model_dump() | {"dims": [8, 8, 16, 16]}
    network = create_backbone(config, ndim=1, in_chans=3, features_only=True).eval()
    with torch.no_grad():
        assert [m.shape[2] for m in network(torch.randn(1, 3, 512))] == [128, 64, 32, 16]
    causal = randomise(make("mixer", {"name": "dwconv", "kernel": 4}, 8, 1, causal=True))
    x = torch.randn(2, 512, 8)
    other = x.clone()
    other[:, 300:] = 0
    with torch.no_grad():
        torch.testing.assert_close(causal(x)[:, :300], causal(other)[:, :300], rtol=0, atol=0)
    with pytest.raises(UsageError, match="kernel 4; an odd one wanted"):
        make("mixer", {"name": "dwconv", "kernel": 4}, 8, 1)


def test_streaming_network_equals_the_whole_pass() -> None:
    config: dict[str, Any] = {
        "stem": {"name": "patch", "patch": 1}, "dims": [8], "depths": [2], "mixers": [{"name": "dwconv", "kernel": 5}],
        "order": "convnext", "layer_scale": 1e-6, "causal": True,
    }  # fmt: skip
    network = randomise(create_backbone(config, ndim=1, in_chans=3))
    x, outs = torch.randn(2, 3, 20), []
    with torch.no_grad():
        state: Any = network.init_state(2)  # type: ignore[operator]
        for at in range(20):
            out, state = network.step(x[:, :, at], state)  # type: ignore[operator]
            outs.append(out)
        torch.testing.assert_close(torch.stack(outs, 2), network(x), rtol=1e-5, atol=1e-6)


def test_grn_starts_as_nothing_and_follows_its_equations() -> None:
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    norm = GlobalResponseNorm(6).double()
    with torch.no_grad():
        torch.testing.assert_close(norm(x), x, rtol=0, atol=0)
        nn.init.constant_(norm.weight, 0.7)
        nn.init.constant_(norm.bias, 0.1)

        def plain(x: Tensor) -> Tensor:
            g = x.square().sum((1, 2)).sqrt()
            share = g / g.mean(1, keepdim=True)
            return x + 0.7 * x * share[:, None, None] + 0.1

        torch.testing.assert_close(norm(x), plain(x), rtol=1e-5, atol=1e-8)
        mask = torch.zeros(2, 5, 4, dtype=torch.bool)
        mask[:, :3, :2] = True
        torch.testing.assert_close(norm(x, mask)[:, :3, :2], plain(x[:, :3, :2]), rtol=1e-5, atol=1e-8)
