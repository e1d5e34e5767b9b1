"""The published network's size, shapes and work; what it refuses; the merging of old weights; fewer stages; presets."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medical.brats_seg.config import BratsConfig, BratsModelConfig
from medical.brats_seg.lean import make_lean
from medical.brats_seg.model import LegacyPatchMerging, build_network, stride
from medical.brats_seg.pipeline import PIPELINE
from shared.errors import UsageError


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks and inputs without memory or arithmetic: shapes, counts and FLOPs only."""
    # MONAI reads numbers from one linspace while building; that one has to be real.
    monkeypatch.setattr(torch, "linspace", functools.partial(torch.linspace, device="cpu"))
    with torch.device("meta"):
        yield


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def small(**options: object) -> BratsModelConfig:
    return BratsModelConfig(feature_size=12, **options)  # type: ignore[arg-type]


def output(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(x)


# ---------------------------------------------------------------- size and work


def test_published_size(on_meta: None) -> None:
    network = build_network(BratsModelConfig(), 4, 3)
    assert isinstance(network, SwinUNETR)
    assert parameters(network) == 62_191_941
    assert sum(b.numel() for b in network.buffers()) == 941_192
    parts = {name: parameters(part) for name, part in network.named_children()}
    assert parts["swinViT"] == 8_063_154
    assert parts["encoder10"] == 31_850_496
    assert parts["decoder5"] == 14_598_144
    assert sum(parts[f"encoder{n}"] for n in (1, 2, 3, 4)) == 2_680_320
    assert sum(parts[f"decoder{n}"] for n in (1, 2, 3, 4)) == 4_999_680
    assert parts["out"] == 147


@pytest.mark.parametrize(
    ("feature_size", "count"),
    [(12, 4_079_373), (24, 15_705_621), (36, 35_076_477), (60, 97_052_013), (96, 248_099_877)],
)
def test_size_by_feature_size(on_meta: None, feature_size: int, count: int) -> None:
    assert parameters(build_network(BratsModelConfig(feature_size=feature_size), 4, 3)) == count


def test_size_of_v2(on_meta: None) -> None:
    assert parameters(build_network(BratsModelConfig(use_v2=True), 4, 3)) == 72_767_301


@pytest.mark.parametrize("merging", ["merging", "legacy", "mergingv2"])
def test_merging_changes_neither_names_nor_shapes(on_meta: None, merging: str) -> None:
    network = build_network(BratsModelConfig(merging=merging), 4, 3)  # type: ignore[arg-type]
    reference = build_network(BratsModelConfig(), 4, 3)
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }


def test_shapes_and_flops_at_128(on_meta: None) -> None:
    network = build_network(BratsModelConfig(), 4, 3).eval()
    x = torch.zeros(1, 4, 128, 128, 128)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        assert network(x).shape == (1, 3, 128, 128, 128)
    counts = {name.split(".")[-1]: sum(ops.values()) / 1e9 for name, ops in counter.get_flop_counts().items()}
    assert counter.get_total_flops() / 1e9 == pytest.approx(1543.29, rel=1e-3)  # 2 per multiply-add
    assert counts["decoder1"] == pytest.approx(811.8, rel=1e-3)
    assert counts["encoder1"] == pytest.approx(283.5, rel=1e-3)
    assert counts["swinViT"] == pytest.approx(136.7, rel=1e-3)
    with torch.no_grad():
        hidden = [tuple(h.shape[1:]) for h in network.swinViT(x)]
    assert hidden == [(48, 64, 64, 64), (96, 32, 32, 32), (192, 16, 16, 16), (384, 8, 8, 8), (768, 4, 4, 4)]


# ---------------------------------------------------------------- what it takes and refuses


def test_sizes(on_meta: None) -> None:
    network = build_network(small(), 4, 3).eval()
    assert network(torch.zeros(1, 4, 64, 32, 96)).shape == (1, 3, 64, 32, 96)
    with pytest.raises(ValueError, match=r"2\*\*5"):
        network(torch.zeros(1, 4, 60, 64, 64))


def test_three_channels_are_refused() -> None:
    with pytest.raises(RuntimeError, match="4 channels"):
        output(build_network(small(), 4, 3), torch.zeros(1, 3, 32, 32, 32))


def test_img_size_is_gone() -> None:
    with pytest.raises(TypeError, match="img_size"):
        SwinUNETR(img_size=(32, 32, 32), in_channels=4, out_channels=3)


@pytest.mark.parametrize(("stages", "step"), [(2, 8), (3, 16), (4, 32)])
def test_fewer_stages(on_meta: None, stages: int, step: int) -> None:
    model = small(stages=stages)
    network = build_network(model, 4, 3).eval()
    assert stride(model) == step
    assert network(torch.zeros(1, 4, 2 * step, step, 3 * step)).shape == (1, 3, 2 * step, step, 3 * step)
    with pytest.raises(ValueError, match=rf"2\*\*{stages + 1}"):
        network(torch.zeros(1, 4, step + 4, step, step))


def test_every_parameter_of_a_shallow_network_learns() -> None:
    torch.manual_seed(0)
    network = build_network(small(stages=2), 4, 3)
    network(torch.randn(1, 4, 32, 32, 32)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_options_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match=r"model\.depths: found 2 depths"):
        build_network(small(depths=(2, 2)), 4, 3)
    with pytest.raises(UsageError, match=r"model\.use_v2: needs all 4 stages"):
        build_network(small(stages=3, use_v2=True), 4, 3)


@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_norms(norm: str) -> None:
    network = build_network(small(norm=norm, stages=2), 4, 3)
    assert output(network, torch.randn(1, 4, 16, 16, 16)).isfinite().all()


def test_segresnet(on_meta: None) -> None:
    model = BratsModelConfig(name="segresnet", feature_size=12, norm="group")
    network = build_network(model, 4, 3).eval()
    assert stride(model) == 8
    assert network(torch.zeros(1, 4, 32, 40, 48)).shape == (1, 3, 32, 40, 48)


# ---------------------------------------------------------------- numbers


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, Tensor, Tensor]:
    """A network of feature size 12, an input, and its output."""
    torch.manual_seed(0)
    network = build_network(small(), 4, 3)
    x = torch.randn(1, 4, 64, 64, 64)
    return network, x, output(network, x)


def test_flash_attention_gives_the_same(made: tuple[nn.Module, Tensor, Tensor]) -> None:
    network, x, expected = made
    flash = SwinUNETR(in_channels=4, out_channels=3, feature_size=12, use_flash_attention=True)
    flash.load_state_dict(network.state_dict())
    assert (output(flash, x) - expected).abs().max() < 5e-6


def test_lean_blocks_give_the_same(made: tuple[nn.Module, Tensor, Tensor]) -> None:
    network, x, expected = made
    lean = build_network(small(), 4, 3)
    lean.load_state_dict(network.state_dict())
    assert (output(make_lean(lean), x) - expected).abs().max() < 5e-6


def test_a_second_run_is_bit_identical(made: tuple[nn.Module, Tensor, Tensor]) -> None:
    network, x, expected = made
    assert torch.equal(output(network, x), expected)


def test_legacy_octants() -> None:
    """The merging of MONAI 0.9 to 1.4, written out: 010 and 001 twice, 110 and 011 never."""
    merging = LegacyPatchMerging(1)
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    octant = torch.tensor([100 * i + 10 * j + k for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    x = octant.reshape(2, 2, 2).repeat(2, 3, 1)[None, ..., None]
    merged = merging(x)
    assert merged.shape == (1, 2, 3, 1, 8)
    assert (merged == torch.tensor([0, 100, 10, 1, 101, 10, 1, 111])).all()


def test_legacy_merging_pads_odd_maps() -> None:
    assert LegacyPatchMerging(12)(torch.zeros(1, 3, 4, 5, 12)).shape == (1, 2, 2, 3, 24)


# Made once with MONAI 1.3.2: feature size 24, torch.manual_seed(0) before building and again before torch.randn of 64³;
# logits tc, wt, et at three voxels. There LegacyPatchMerging differed by 0.0 in every voxel.
BEFORE_1_5 = {
    (10, 20, 30): (-0.09552490, -0.70390189, 0.12766445),
    (40, 5, 60): (-0.00678794, 0.08609280, -0.30148414),
    (63, 63, 0): (-0.18382573, 0.12538490, -0.05411473),
}


def test_legacy_merging_is_that_of_monai_1_3_2() -> None:
    outputs = {}
    for merging in ("legacy", "merging"):
        torch.manual_seed(0)
        network = build_network(BratsModelConfig(feature_size=24, merging=merging), 4, 3)  # type: ignore[arg-type]
        torch.manual_seed(0)
        outputs[merging] = output(network, torch.randn(1, 4, 64, 64, 64))[0]
    for place, values in BEFORE_1_5.items():
        torch.testing.assert_close(outputs["legacy"][:, *place], torch.tensor(values), atol=2e-5, rtol=0)
    old, new = outputs["legacy"], outputs["merging"]
    assert ((new - old).norm() / old.norm()).item() == pytest.approx(0.067, abs=0.002)
    assert ((new > 0) != (old > 0)).float().mean().item() == pytest.approx(0.0205, abs=0.001)


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize("preset", sorted(PIPELINE.presets))
def test_presets_resolve_and_build(on_meta: None, preset: str) -> None:
    config = PIPELINE.resolve(preset)
    assert isinstance(config, BratsConfig)
    network = build_network(config.model, len(config.data.modalities), 3).eval()
    for size in (config.train.crop, config.predict.window):
        assert not any(side % stride(config.model) for side in size)
        assert network(torch.zeros(1, 4, *size)).shape == (1, 3, *size)


def test_paper_preset_is_the_published_network(on_meta: None) -> None:
    config = PIPELINE.resolve("paper")
    assert isinstance(config, BratsConfig)
    assert parameters(build_network(config.model, 4, 3)) == 62_191_941
    assert config.train.lr == 8e-4 and config.train.epochs == 800 and config.predict.overlap == 0.7
