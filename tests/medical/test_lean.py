"""The lean blocks compute what MONAI's do: every size of piece, norm, mask and batch, and only when predicting."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    SwinTransformerBlock,
    SwinUNETR,
    WindowAttention,
    compute_mask,
)
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from medical.brats_seg import lean
from medical.brats_seg.config import BratsModelConfig
from medical.brats_seg.model import build_network

GROUP = ("group", {"num_groups": 6, "affine": True})


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Set how small pieces are (bytes of convolution input, of attention bias); every map counts as large."""

    def small(convolution: int, attention: int) -> None:
        monkeypatch.setattr(lean, "LARGE", 1)
        monkeypatch.setattr(lean, "PIECE_BYTES", convolution)
        monkeypatch.setattr(lean, "ATTENTION_BYTES", attention)

    small(200_000, 3_000_000)
    return small


def pair(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """(MONAI's, ours) with equal weights that are not at their special initial values."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    network.eval()
    return network, lean.make_lean(copy.deepcopy(network))


def difference(network: nn.Module, *inputs: Tensor | None) -> float:
    """Largest deviation of ours from MONAI's, in units of the output's deviation."""
    plain, ours = pair(network)
    with torch.inference_mode():
        wanted, found = plain(*inputs), ours(*inputs)
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.std())


@pytest.mark.parametrize("norm", ["instance", "batch", GROUP], ids=["instance", "batch", "group"])
def test_a_whole_network_is_equal(pieces: object, norm: object) -> None:
    torch.manual_seed(0)
    network = SwinUNETR(in_channels=4, out_channels=3, feature_size=12, use_v2=False, norm_name=norm)
    assert difference(network, torch.randn(1, 4, 64, 32, 32)) < 1e-5


@pytest.mark.parametrize("merging", ["merging", "legacy"])
def test_a_shallow_network_with_another_window_is_equal(pieces: object, merging: str) -> None:
    torch.manual_seed(0)
    config = BratsModelConfig(feature_size=12, stages=2, window_size=4, merging=merging, norm="batch")
    assert difference(build_network(config, 4, 3), torch.randn(2, 4, 32, 40, 24)) < 1e-5


@pytest.mark.parametrize("size", [(14, 14, 14), (9, 16, 7), (5, 8, 20)], ids=str)
@pytest.mark.parametrize("attention", [1, 300_000, 2**30])
def test_a_stage_is_equal_with_padding_shifts_and_any_group(
    pieces: Callable[[int, int], None], size: tuple[int, int, int], attention: int
) -> None:
    """Sizes below the window switch the shift off along that axis; others get padded."""
    pieces(60_000, attention)
    torch.manual_seed(0)
    stage = BasicLayer(
        dim=12, depth=2, num_heads=3, window_size=(7, 7, 7), drop_path=[0.0, 0.0], qkv_bias=True
    )
    assert difference(stage, torch.randn(2, 12, *size)) < 1e-5


def test_regions_say_what_the_mask_says() -> None:
    size, window, shift = [14, 21, 7], (7, 7, 7), (3, 3, 0)
    regions = lean._regions(size, window, shift)
    mask = compute_mask(size, window, shift, torch.device("cpu"))
    assert mask.any()
    torch.testing.assert_close((regions[:, :, None] != regions[:, None]) * -100.0, mask)


def test_attention_takes_the_parents_mask_too() -> None:
    torch.manual_seed(0)
    mask = compute_mask([14, 14, 14], (7, 7, 7), (3, 3, 3), torch.device("cpu"))
    attention = WindowAttention(12, num_heads=3, window_size=(7, 7, 7), qkv_bias=True)
    assert difference(attention, torch.randn(8, 343, 12), mask) < 1e-5


@pytest.mark.parametrize("piece", [1, 20_000, 2**30], ids=["one row", "some rows", "one piece"])
@pytest.mark.parametrize(
    ("channels_in", "channels_out"), [(4, 12), (12, 12)], ids=["shortcut convolved", "shortcut as it is"]
)
def test_residual_blocks_are_equal(
    pieces: Callable[[int, int], None], channels_in: int, channels_out: int, piece: int
) -> None:
    pieces(piece, 1)
    torch.manual_seed(0)
    block = UnetrBasicBlock(
        3, channels_in, channels_out, kernel_size=3, stride=1, norm_name="instance", res_block=True
    )
    x = torch.randn(2, channels_in, 7, 10, 6)
    before = x.clone()
    assert difference(block, x) < 1e-5
    torch.testing.assert_close(x, before, rtol=0, atol=0)  # the caller's map is not written over


@pytest.mark.parametrize("piece", [1, 20_000, 2**30], ids=["one row", "some rows", "one piece"])
@pytest.mark.parametrize("norm", ["instance", GROUP], ids=["instance", "group"])
def test_up_blocks_are_equal_and_keep_the_deeper_map(
    pieces: Callable[[int, int], None], norm: object, piece: int
) -> None:
    """Of their inputs only the skip connection's map, read here for the last time, may be written over."""
    pieces(piece, 1)
    torch.manual_seed(0)
    block = UnetrUpBlock(3, 24, 12, kernel_size=3, upsample_kernel_size=2, norm_name=norm, res_block=True)
    x, skip = torch.randn(2, 24, 5, 4, 3), torch.randn(2, 12, 10, 8, 6)
    before = x.clone()
    assert difference(block, x, skip) < 1e-5
    torch.testing.assert_close(x, before, rtol=0, atol=0)


def test_an_up_block_needs_one_map_beside_its_inputs(pieces: Callable[[int, int], None]) -> None:
    pieces(200_000, 1)
    block = lean.make_lean(UnetrUpBlock(3, 24, 12, 3, 2, "instance", res_block=True).eval())
    x, skip = torch.randn(1, 24, 24, 24, 24), torch.randn(1, 12, 48, 48, 48)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        block(x, skip)
    held = total = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            total += event.nbytes()
            held = max(held, total)
    assert held < 1.5 * skip.numel() * skip.element_size()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        {"kernel_size": 1},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 1, "groups": 2},
        {"kernel_size": 2, "stride": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_convolutions_are_equal_whatever_their_settings(
    options: dict[str, Any], dtype: torch.dtype, batch: int
) -> None:
    torch.manual_seed(0)
    plain, ours = pair(nn.Conv3d(4, 6, **options).to(dtype))
    assert type(ours) is lean.LeanConvolution
    x = torch.randn(batch, 8, 9, 10, 7, dtype=dtype)[:, ::2, :, :8]  # torch lays it out anew, and so do we
    with torch.inference_mode():
        wanted, found = plain(x), ours(x)
    # A product and then its bias are rounded one by one in bfloat16.
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)


def test_small_maps_need_no_column_for_every_voxel() -> None:
    """torch's own way would copy each of 27 neighbours: the allocations of a forward pass tell."""
    conv = lean.make_lean(nn.Conv3d(16, 16, 3, padding=1))
    x = torch.randn(1, 16, 8, 64, 64)
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        conv(x)
    held = max(event.cpu_memory_usage for event in seen.key_averages())
    assert held < 4 * x.numel() * x.element_size()


@pytest.mark.parametrize("piece", [1, 5_000, 2**30], ids=["a voxel", "some voxels", "all"])
def test_a_perceptron_in_pieces_is_equal(pieces: Callable[[int, int], None], piece: int) -> None:
    pieces(piece, 3_000_000)
    torch.manual_seed(0)
    block = SwinTransformerBlock(12, 3, (4, 4, 4), (0, 0, 0))
    assert difference(block, torch.randn(2, 4, 8, 4, 12), None) < 1e-5


def test_training_takes_the_parents_way(pieces: object) -> None:
    torch.manual_seed(0)
    config = BratsModelConfig(feature_size=12, stages=2, window_size=4)
    plain, ours = pair(build_network(config, 4, 3))
    x = torch.randn(1, 4, 16, 16, 16)
    for network in (plain, ours):
        network(x).square().mean().backward()
    for (name, wanted), found in zip(plain.named_parameters(), ours.parameters()):
        assert wanted.grad is not None and found.grad is not None
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_names_and_weights_stay() -> None:
    config = BratsModelConfig(feature_size=12, stages=2, window_size=4)
    network = build_network(config, 4, 3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    after = lean.make_lean(network).state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    kinds = {type(module) for module in network.modules()}
    assert {lean.LeanLayer, lean.LeanAttention, lean.LeanResBlock, lean.LeanUpBlock} <= kinds


def test_blocks_with_dropout_are_left_to_the_parent(pieces: object) -> None:
    torch.manual_seed(0)
    from monai.networks.blocks.dynunet_block import UnetResBlock

    block = UnetResBlock(3, 4, 12, kernel_size=3, stride=2, norm_name="instance", dropout=0.1)
    assert difference(block, torch.randn(1, 4, 8, 8, 8)) < 1e-5
