"""The streamed sliding window against arithmetic and against MONAI's: exact where it must be, never more windows."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import dense_patch_slices
from monai.inferers import sliding_window_inference
from monai.inferers.utils import _get_scan_interval
from torch import Tensor, nn
from torch.nn import functional as F

from medical.brats_seg.config import BratsModelConfig
from medical.brats_seg.inference import (
    BACKGROUND_LOGIT,
    Sliding,
    available_bytes,
    estimate_bytes,
    foreground_box,
    logit,
    plan_windows,
    predict_logits,
    predict_masks,
    prepare,
    require_memory,
    stream_logits,
    window_logits,
    window_starts,
)
from medical.brats_seg.lean import LeanLayer
from medical.brats_seg.model import build_network
from shared.errors import ResourcesExhausted, UsageError

SHAPE = (50, 40, 37)
ROI = (32, 32, 32)


class Identity(nn.Module):
    """Returns its input, which is what corrupts the caller's image in MONAI's inferer."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3]


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        levels = torch.tensor([0.5, -2.0, 7.25]).view(1, 3, 1, 1, 1)
        return levels.expand(len(x), 3, *x.shape[2:])


class Mean(nn.Module):
    """A 3³ mean filter, zero outside the window: the simplest network that errs at window borders. Equivariant."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool3d(x[:, :3], 3, 1, 1)


class Slope(nn.Module):
    """Adds the position along the first axis, so that flips matter."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3] + torch.arange(x.shape[2], dtype=x.dtype).view(1, 1, -1, 1, 1)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.windows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.windows += len(x)
        return x[:, :3]


def volume(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, *shape)).astype(np.float32)


def head_in_air(shape: tuple[int, int, int], box: tuple[slice, slice, slice]) -> np.ndarray:
    image = np.zeros((4, *shape), np.float32)
    image[(slice(None), *box)] = volume(tuple(part.stop - part.start for part in box)) + 10  # type: ignore[arg-type]
    return image


# ---------------------------------------------------------------- exact predictors


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("blend", ["constant", "gaussian"])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.7])
def test_identity_gives_the_image_back_and_leaves_it_alone(overlap: float, blend: Any, batch: int) -> None:
    image = volume()
    kept = image.copy()
    sliding = Sliding(ROI, overlap, blend, batch=batch)
    out = predict_logits(Identity(), image, sliding)
    assert out.shape == (3, *SHAPE) and out.dtype == np.float32
    assert np.abs(out - kept[:3]).max() < 2e-6
    np.testing.assert_array_equal(image, kept)


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_a_constant_stays_constant(blend: Any) -> None:
    out = predict_logits(Constant(), volume(), Sliding(ROI, 0.6, blend))
    for channel, level in zip(out, (0.5, -2.0, 7.25)):
        assert np.abs(channel - level).max() < 2e-6 * max(1, abs(level))


@pytest.mark.parametrize("shape", [(20, 40, 37), (5, 6, 7), (33, 32, 1)], ids=str)
def test_a_volume_smaller_than_a_window_keeps_its_shape(shape: tuple[int, int, int]) -> None:
    image = volume(shape)
    out = predict_logits(Identity(), image, Sliding(ROI, 0.5))
    assert out.shape == (3, *shape)
    assert np.abs(out - image[:3]).max() < 2e-6


def test_gaussian_blending_errs_less_at_window_borders_than_constant() -> None:
    image = volume()
    whole = Mean()(torch.from_numpy(image)[None])[0].numpy()
    gaussian, constant = (
        np.abs(predict_logits(Mean(), image, Sliding(ROI, 0.5, blend)) - whole)
        for blend in ("gaussian", "constant")
    )
    assert 0 < gaussian.max() < constant.max() + 1e-6
    assert gaussian.mean() < 0.7 * constant.mean()


@pytest.mark.parametrize("blend", ["constant", "gaussian"])
def test_where_windows_fall_alike_ours_is_monais(blend: Any) -> None:
    """At 64 = 2 windows of 32 plus one between, both place windows at 0, 16, 32."""
    image = volume((64, 48, 32))
    ours = predict_logits(Mean(), image, Sliding(ROI, 0.5, blend))
    with torch.inference_mode():
        theirs = sliding_window_inference(torch.from_numpy(image)[None], ROI, 1, Mean(), 0.5, blend)
    assert np.abs(ours - theirs[0].numpy()).max() < 2e-6


def test_sums_are_kept_in_fp32_for_a_bf16_network() -> None:
    """Values near 256 have steps of 2 in bf16; a weighted mean of equal ones must not lose more."""

    class Big(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Parameter(torch.tensor(257.0))

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.bfloat16
            return x[:, :3] * 0 + self.level

    network = prepare(Big(), "bfloat16")
    level = float(next(network.parameters()).item())
    out = predict_logits(network, volume(), Sliding(ROI, 0.7))
    assert out.dtype == np.float32
    assert np.abs(out - level).max() < 2e-4


# ---------------------------------------------------------------- placement


@given(
    length=st.integers(1, 400),
    window=st.integers(1, 160),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.7, 0.75]),
)
@settings(max_examples=300, deadline=None)
def test_windows_cover_everything_with_the_overlap_and_no_more_than_monais(
    length: int, window: int, overlap: float
) -> None:
    starts = window_starts(length, window, overlap)
    padded = max(length, window)
    assert starts[0] == 0 and starts[-1] == padded - window
    gaps = np.diff(starts)
    assert (gaps >= 1).all() and (gaps <= math.ceil(window * (1 - overlap))).all()
    interval = _get_scan_interval([padded], [window], 1, [overlap])
    theirs = dense_patch_slices([padded], [window], interval)
    assert len(starts) <= len(theirs)


@pytest.mark.parametrize(
    ("shape", "overlap", "published"),
    [
        ((240, 240, 155), 0.25, 18),
        ((240, 240, 155), 0.5, 18),
        ((240, 240, 155), 0.6, 32),
        ((240, 240, 155), 0.7, 32),
        ((240, 240, 155), 0.75, 50),
        ((160, 192, 155), 0.25, 8),
        ((160, 192, 155), 0.5, 8),
        ((160, 192, 155), 0.6, 12),
        ((144, 184, 148), 0.5, 8),
        ((144, 184, 148), 0.7, 12),
    ],
    ids=str,
)
def test_counts_of_full_volumes(shape: tuple[int, int, int], overlap: float, published: int) -> None:
    """MONAI's counts at a window of 128³, uncropped; even placement never needs more."""
    placed = math.prod(len(window_starts(n, 128, overlap)) for n in shape)
    assert placed <= published
    if overlap == 0.5:
        assert placed == published


def test_foreground_crop_brings_a_full_case_from_18_windows_to_8() -> None:
    image = np.zeros((1, 240, 240, 155), np.int8)
    image[:, 48:192, 28:212, 4:152] = 1
    plan = plan_windows(image, Sliding((128,) * 3, 0.5))
    assert (plan.placed, plan.count) == (8, 8)
    assert plan_windows(image, Sliding((128,) * 3, 0.5, margin=None, skip_empty=False)).count == 18
    for part, axis in zip(plan.inside, ((48, 192), (28, 212), (4, 152))):
        assert part.start <= axis[0] and part.stop >= axis[1]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_covered_box_holds_all_foreground_and_lies_inside(data: st.DataObject) -> None:
    shape = [data.draw(st.integers(1, 40)) for _ in range(3)]
    image = np.zeros((2, *shape), np.float32)
    for _ in range(data.draw(st.integers(0, 3))):
        image[(data.draw(st.integers(0, 1)), *(data.draw(st.integers(0, n - 1)) for n in shape))] = 1
    sliding = Sliding((8, 12, 16), data.draw(st.sampled_from([0.0, 0.25, 0.5, 0.7])))
    plan = plan_windows(image, sliding)
    seen = np.zeros(shape, bool)
    for row in plan.windows:
        for start in row:
            first = [s + low for s, low in zip(start, plan.low)]
            seen[tuple(slice(max(f, 0), f + w) for f, w in zip(first, plan.window))] = True
    assert seen[image.any(axis=0)].all()
    assert plan.count <= plan.placed
    assert all(size >= window for size, window in zip(plan.size, plan.window))


def test_foreground_box_reads_slabs() -> None:
    image = np.zeros((2, 70, 9, 8), np.float32)
    image[0, 3, 2, 5] = -1
    image[1, 66, 7, 1] = 2
    assert foreground_box(image) == (slice(3, 67), slice(2, 8), slice(1, 6))
    assert foreground_box(np.zeros((2, 5, 5, 5))) is None


# ---------------------------------------------------------------- what is skipped


def test_windows_without_foreground_are_not_run() -> None:
    image = head_in_air((40, 40, 40), (slice(0, 10), slice(0, 10), slice(0, 10)))
    image[:, 30:, 30:, 30:] = 1  # two blobs in opposite corners: most windows between see nothing
    sliding = Sliding((10, 10, 10), 0.0, margin=0)
    network = Counting()
    out = predict_logits(network, image, sliding)
    assert plan_windows(image, sliding).placed == 64 and network.windows == 2
    np.testing.assert_allclose(out[:, :10, :10, :10], image[:3, :10, :10, :10], atol=2e-6)
    assert (out[:, 12:28] == BACKGROUND_LOGIT).all() and (out[:, :10, 30:, 30:] == BACKGROUND_LOGIT).all()


def test_an_empty_volume_needs_no_network() -> None:
    network = Counting()
    image = np.zeros((4, 20, 50, 40), np.float32)
    assert (predict_logits(network, image, Sliding(ROI)) == BACKGROUND_LOGIT).all()
    masks = predict_masks(network, image, Sliding(ROI))
    assert masks.shape == (3, 20, 50, 40) and not masks.any()
    assert network.windows == 0


def test_without_crop_and_skipping_every_window_runs() -> None:
    network = Counting()
    image = np.zeros((4, 48, 32, 32), np.float32)
    predict_logits(network, image, Sliding(ROI, 0.5, margin=None, skip_empty=False))
    assert network.windows == 2


# ---------------------------------------------------------------- streaming


@pytest.mark.parametrize("shape", [(90, 40, 37), (20, 70, 33)], ids=str)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
def test_streamed_slabs_are_the_blended_whole(shape: tuple[int, int, int], overlap: float) -> None:
    """Against sums over the whole volume at once, in fp64."""
    image = head_in_air(shape, (slice(2, shape[0] - 3), slice(5, 36), slice(1, 30)))
    sliding = Sliding((32, 32, 32), overlap)
    plan = plan_windows(image, sliding)
    from monai.data.utils import compute_importance_map

    weight = compute_importance_map(plan.window, mode="gaussian", sigma_scale=0.125).double().numpy()
    padded = np.pad(image, [(0, 0), *[(40, 40)] * 3])
    sums, weights = np.zeros((3, *padded.shape[1:])), np.zeros(padded.shape[1:])
    for start in (start for row in plan.windows for start in row):
        here = tuple(slice(s + low + 40, s + low + 72) for s, low in zip(start, plan.low))
        out = Mean()(torch.from_numpy(padded[(slice(None), *here)].copy())[None])[0].double().numpy()
        sums[(slice(None), *here)] += out * weight
        weights[here] += weight
    wanted = np.where(weights > 0, sums / np.maximum(weights, 1e-30), BACKGROUND_LOGIT)
    wanted = wanted[:, 40:-40, 40:-40, 40:-40]
    found = predict_logits(Mean(), image, sliding)
    assert np.abs(found - wanted).max() < 1e-5
    rows = [(row, slab.shape[1]) for row, slab in stream_logits(Mean(), image, sliding)]
    assert [row for row, _ in rows] == list(np.cumsum([rows[0][0], *(n for _, n in rows[:-1])]))
    assert (rows[0][0], rows[-1][0] + rows[-1][1]) == (plan.inside[0].start, plan.inside[0].stop)
    np.testing.assert_array_equal(predict_masks(Mean(), image, sliding, 0.9), found > logit(0.9))


def test_a_memory_map_is_read_and_written(tmp_path: Path) -> None:
    image = volume()
    np.save(tmp_path / "image.npy", image)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    out = np.lib.format.open_memmap(tmp_path / "out.npy", "w+", np.float32, (3, *SHAPE))
    given = predict_logits(Identity(), mapped, Sliding(ROI), out=out)
    assert given is out
    assert np.abs(np.load(tmp_path / "out.npy") - image[:3]).max() < 2e-6


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_ticks_count_every_window_once(batch: int) -> None:
    ticks: list[tuple[int, int]] = []
    sliding = Sliding(ROI, 0.5, batch=batch)
    predict_masks(
        Identity(), volume((64, 48, 32)), sliding, tick=lambda done, total: ticks.append((done, total))
    )
    assert ticks[-1] == (6, 6) and {total for _, total in ticks} == {6}
    done = [0, *(d for d, _ in ticks)]
    assert all(0 < b - a <= batch for a, b in pairwise(done))


# ---------------------------------------------------------------- several networks, flips


def test_an_ensemble_is_the_mean_of_its_members_logits() -> None:
    image = volume()
    sliding = Sliding(ROI, 0.5)
    both = predict_logits([Identity(), Constant()], image, sliding)
    alone = [predict_logits(network, image, sliding) for network in (Identity(), Constant())]
    np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2, atol=3e-6)


def test_flips_do_not_change_an_equivariant_network() -> None:
    image = volume((40, 33, 32))
    plain, flipped = (predict_logits(Mean(), image, Sliding(ROI, 0.5, tta=tta)) for tta in ("none", "flip8"))
    assert np.abs(plain - flipped).max() < 2e-6


def test_flips_average_what_is_not_equivariant() -> None:
    """A slope along an axis becomes flat: half of the flips see it reversed."""
    out = window_logits([Slope()], torch.zeros(1, 4, 8, 4, 4), "flip8")
    torch.testing.assert_close(out, torch.full((1, 3, 8, 4, 4), 3.5))


# ---------------------------------------------------------------- preparation, memory, refusals


def test_preparation_makes_a_network_lean_fused_and_frozen() -> None:
    torch.manual_seed(0)
    config = BratsModelConfig(feature_size=12, stages=2, window_size=4, norm="batch")
    plain = build_network(config, 4, 3).train()
    x = torch.randn(1, 4, 32, 32, 32)
    with torch.inference_mode():
        wanted = plain.eval()(x)
        ready = prepare(plain.train())
        assert ready is plain and not ready.training
        assert not any(parameter.requires_grad for parameter in ready.parameters())
        assert any(isinstance(module, LeanLayer) for module in ready.modules())
        assert (ready(x) - wanted).abs().max() < 5e-6
        half = prepare(ready, "bfloat16")(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - wanted).abs().max() < 0.1 * wanted.std()


def test_repeats_are_bit_identical() -> None:
    torch.manual_seed(0)
    network = prepare(build_network(BratsModelConfig(feature_size=12, stages=2, window_size=4), 4, 3))
    sliding, image = Sliding((16, 16, 16), 0.5), volume((24, 20, 16))
    first, second = (predict_logits(network, image, sliding) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    batched = predict_logits(network, image, Sliding((16, 16, 16), 0.5, batch=2))
    assert np.abs(first - batched).max() < 1e-5


def test_the_estimate_grows_with_the_slice_and_the_window_not_with_the_number_of_windows() -> None:
    network = prepare(build_network(BratsModelConfig(feature_size=12, stages=2, window_size=4), 4, 3))
    need = {n: estimate_bytes(network, Sliding((64, 64, 64)), (n, 128, 128)) for n in (128, 256, 384)}
    per_voxel = (need[256] - need[128]) / (128**3)
    assert need[384] - need[256] == need[256] - need[128]
    assert per_voxel == 4 * 4 + 3 + 1  # image, masks, labels: never logits or sums
    bigger = estimate_bytes(network, Sliding((96, 64, 64)), (128, 128, 128))
    assert bigger > need[128]
    halved = estimate_bytes(prepare(network, "bfloat16"), Sliding((96, 64, 64)), (128, 128, 128))
    assert halved < bigger


def test_too_little_memory_is_said_before_any_work() -> None:
    with pytest.raises(ResourcesExhausted) as error:
        require_memory("case-7", (512, 512, 600), 9 * 2**30, available=3 * 2**30)
    text = str(error.value)
    assert text.startswith("case-7: ") and "512×512×600" in text
    assert "9.0 GiB" in text and "3.0 GiB" in text and "predict.window" in text
    assert error.value.exit_code == 8 and len(text) <= 200
    require_memory("case-7", (8, 8, 8), 2**20, available=2**21)
    assert available_bytes() > 0


@pytest.mark.parametrize(
    "wrong",
    [{"overlap": 1.0}, {"overlap": -0.1}, {"window": (0, 32, 32)}, {"batch": 0}],
    ids=str,
)
def test_senseless_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"predict\.window"):
        Sliding(**wrong)


def test_no_network_is_refused() -> None:
    with pytest.raises(UsageError, match="no network"):
        predict_masks([], volume((32, 32, 32)), Sliding(ROI))


@given(probability=st.floats(1e-6, 1 - 1e-6))
def test_logit_is_the_inverse_of_the_sigmoid(probability: float) -> None:
    assert 1 / (1 + math.exp(-logit(probability))) == pytest.approx(probability, rel=1e-9)
