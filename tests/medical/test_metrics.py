"""Scores against values worked out by hand, against the published conventions, and on real predictions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from medical.brats_seg.config import REGIONS
from medical.brats_seg.labels import convert
from medical.brats_seg.metrics import (
    HD95_ONE_EMPTY_MM,
    LESION_RULES,
    Variant,
    bounding_box,
    dice,
    hd95,
    lesion_scores,
    score_case,
    score_regions,
    summarise,
)

GLI, MET = LESION_RULES["gli"], LESION_RULES["met"]
MM1 = (1.0, 1.0, 1.0)


def cube(corner: tuple[int, int, int], side: int = 8, size: int = 64) -> np.ndarray:
    mask = np.zeros((size,) * 3, bool)
    mask[tuple(slice(c, c + side) for c in corner)] = True
    return mask


EMPTY = np.zeros((64,) * 3, bool)


# ---------------------------------------------------------------- overlap and distance


def test_shifted_cubes() -> None:
    a, b = cube((10, 10, 10), 10), cube((12, 10, 10), 10)
    assert dice(a, b) == pytest.approx(0.8)
    for variant in ("directed", "pooled", "surfel"):
        assert hd95(a, b, MM1, variant) == pytest.approx(2.0)
    assert hd95(a, b, (3.0, 1.0, 1.0)) == pytest.approx(6.0)


def test_spacing_follows_its_axis() -> None:
    a, b = cube((10, 10, 10), 10), cube((10, 12, 10), 10)
    assert hd95(a, b, (3.0, 1.0, 1.0)) == pytest.approx(2.0)
    assert hd95(a, b, (1.0, 3.0, 1.0)) == pytest.approx(6.0)


def test_single_voxels_three_and_four_apart() -> None:
    assert hd95(cube((10, 10, 10), 1), cube((13, 14, 10), 1), MM1) == pytest.approx(5.0)


@pytest.mark.parametrize("side", [12, 20])
@pytest.mark.parametrize("variant", ["directed", "pooled", "surfel"])
def test_rolled_cube_is_three_in_all_variants(variant: Variant, side: int) -> None:
    # Smaller cubes have so few face voxels that their corners, √10 or √14 away, reach the 95th percentile.
    a = cube((20, 20, 20), side)
    assert hd95(a, np.roll(a, (1, 2, 3), (0, 1, 2)), MM1, variant) == pytest.approx(3.0)


def test_touching_the_volume_border_changes_nothing() -> None:
    inside = hd95(cube((20, 20, 20)), cube((24, 20, 20)), MM1)
    assert hd95(cube((0, 0, 0)), cube((4, 0, 0)), MM1) == pytest.approx(inside)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_equals_monai_on_whole_volumes() -> None:
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance

    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.add.outer(*(np.sin(np.linspace(0, 7, 40)),) * 2), np.sin(np.linspace(0, 5, 40)))
    a, b = smooth > 1.2, smooth + rng.normal(0, 0.1, smooth.shape) > 1.3
    one_hot = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (a, b)]
    spacing = (1.0, 2.0, 0.5)
    expected = compute_hausdorff_distance(*one_hot, include_background=True, percentile=95, spacing=spacing)
    assert hd95(a, b, spacing) == pytest.approx(float(expected), rel=1e-6)
    assert dice(a, b) == pytest.approx(float(compute_dice(*one_hot)), rel=1e-6)


def test_bounding_box_grows_and_stays_inside() -> None:
    assert bounding_box(cube((0, 30, 56)), 3) == (slice(0, 11), slice(27, 41), slice(53, 64))
    assert bounding_box(EMPTY) == (slice(0, 64),) * 3


# ---------------------------------------------------------------- empty masks


def regions(tc: np.ndarray, wt: np.ndarray, et: np.ndarray) -> np.ndarray:
    return np.stack([tc, wt, et])


def test_empty_masks_in_both_conventions() -> None:
    a = cube((10, 10, 10))
    # tc: both empty; wt: empty prediction; et: empty truth.
    scores = score_regions(regions(EMPTY, EMPTY, a), regions(EMPTY, a, EMPTY), MM1)
    assert (scores["dice_tc"], scores["hd95_tc"]) == (1.0, 0.0)
    assert (scores["dice_wt"], scores["hd95_wt"]) == (0.0, HD95_ONE_EMPTY_MM)
    assert (scores["dice_et"], scores["hd95_et"]) == (0.0, HD95_ONE_EMPTY_MM)
    assert pytest.approx(math.sqrt(240**2 + 240**2 + 155**2), abs=5e-6) == HD95_ONE_EMPTY_MM
    assert math.isnan(scores["dice_monai_tc"]) and math.isnan(scores["dice_monai_et"])
    assert scores["dice_monai_wt"] == 0.0
    assert all(math.isnan(scores[f"hd95_monai_{region}"]) for region in REGIONS)
    assert [scores[f"empty_true_{region}"] for region in REGIONS] == [1.0, 0.0, 1.0]
    assert [scores[f"empty_pred_{region}"] for region in REGIONS] == [1.0, 1.0, 0.0]


def test_rates_and_volumes() -> None:
    true, pred = cube((10, 10, 10), 10), cube((12, 10, 10), 10)
    scores = score_regions(regions(pred, pred, pred), regions(true, true, true), (1.0, 2.0, 0.5))
    assert scores["sensitivity_wt"] == pytest.approx(0.8)
    assert scores["specificity_wt"] == pytest.approx(1 - 200 / (64**3 - 1000))
    assert scores["volume_true_ml_wt"] == pytest.approx(1.0)
    assert scores["volume_error_ml_wt"] == 0.0
    bigger = score_regions(regions(pred | true, pred, pred), regions(true, true, true), MM1)
    assert bigger["volume_error_ml_tc"] == pytest.approx(0.2)
    assert bigger["dice_mean"] == pytest.approx((2 * 1000 / 2200 + 0.8 + 0.8) / 3)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="two masks"):
        score_regions(np.zeros((3, 4, 4, 4), bool), np.zeros((3, 4, 4, 5), bool), MM1)


# ---------------------------------------------------------------- lesion by lesion

FOUND, MISSED, FALSE = cube((5, 5, 5)), cube((40, 40, 40)), cube((5, 5, 30))


def test_one_found_one_missed_one_false() -> None:
    scores = lesion_scores(FOUND | FALSE, FOUND | MISSED, MM1)
    assert scores.dice == pytest.approx(1 / 3)
    assert scores.hd95_mm == pytest.approx(249.333, abs=5e-4)
    assert (scores.true, scores.found, scores.false) == (2, 1, 1)
    assert dice(FOUND | FALSE, FOUND | MISSED) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("variant", "expected"), [("surfel", 48.4252), ("directed", 48.7647), ("pooled", 47.6865)]
)
def test_hd95_variants_differ_on_the_same_masks(variant: Variant, expected: float) -> None:
    assert hd95(FOUND | FALSE, FOUND | MISSED, MM1, variant) == pytest.approx(expected, abs=5e-5)


def test_one_stray_voxel_counts_as_a_lesion() -> None:
    true = FOUND | MISSED
    pred = true | cube((60, 4, 4), 1)
    assert dice(pred, true) == pytest.approx(0.999512, abs=5e-7)
    scores = lesion_scores(pred, true, MM1)
    assert scores.dice == pytest.approx(0.666667, abs=5e-7)
    assert scores.hd95_mm == pytest.approx(124.667, abs=5e-4)


def test_lesions_four_voxels_apart_merge_by_the_challenge() -> None:
    one, two = cube((20, 20, 20), 6), cube((30, 20, 20), 6)
    merged = lesion_scores(one, one | two, MM1, GLI)
    assert (merged.dice, merged.hd95_mm) == (pytest.approx(0.666667, abs=5e-7), pytest.approx(10.0))
    apart = lesion_scores(one, one | two, MM1, MET)
    assert (apart.dice, apart.hd95_mm) == (pytest.approx(0.5), pytest.approx(187.0))


def test_size_limit_is_in_mm3_and_spares_false_lesions() -> None:
    true = FOUND | cube((40, 40, 40), 3)  # 27 voxels
    assert lesion_scores(FOUND, true, MM1).true == 1
    assert lesion_scores(FOUND, true, MM1).dice == 1.0
    assert lesion_scores(FOUND, true, (2.0, 1.0, 1.0)).dice == pytest.approx(0.5)  # 54 mm³ counts
    # A hit on a lesion too small to count is neither rewarded nor false.
    assert lesion_scores(FOUND | cube((41, 41, 41), 1), true, MM1).dice == 1.0


def test_nothing_to_find_and_nothing_found() -> None:
    assert (lesion_scores(EMPTY, EMPTY, MM1).dice, lesion_scores(EMPTY, EMPTY, MM1).hd95_mm) == (1.0, 0.0)
    missed = lesion_scores(EMPTY, FOUND, MM1)
    assert (missed.dice, missed.hd95_mm, missed.found) == (0.0, 374.0, 0)
    false = lesion_scores(FOUND, EMPTY, MM1)
    assert (false.dice, false.hd95_mm, false.false) == (0.0, 374.0, 1)


def test_a_component_that_bridges_two_lesions_matches_both() -> None:
    bridge = np.zeros_like(EMPTY)
    bridge[5:48, 5:13, 5:13] = True
    scores = lesion_scores(bridge, FOUND | cube((40, 5, 5)), MM1)
    assert (scores.true, scores.found, scores.false) == (2, 2, 0)
    assert scores.dice == pytest.approx(2 * 512 / (512 + 43 * 64))


# ---------------------------------------------------------------- over cases


def test_summary_takes_means_medians_and_counts() -> None:
    rows = [
        {"case": "a", "dice_wt": 0.2, "hd95_monai_wt": math.nan, "empty_true_wt": 1.0, "volume_ml_wt": 1.0},
        {"case": "b", "dice_wt": 0.8, "hd95_monai_wt": 4.0, "empty_true_wt": 0.0, "volume_ml_wt": 2.0},
        {"case": "c", "dice_wt": 0.8, "hd95_monai_wt": 6.0, "empty_true_wt": 1.0, "volume_ml_wt": 6.0},
    ]
    out = summarise(rows)
    assert out["cases"] == 3
    assert out["dice_wt"] == pytest.approx(0.6) and out["dice_wt_median"] == 0.8
    assert out["hd95_monai_wt"] == 5.0
    assert out["empty_true_wt"] == 2.0
    assert "volume_ml_wt_median" not in out and "case" not in out
    assert summarise([{"hd95_monai_wt": math.nan}]) == {"cases": 1.0}
    assert summarise([]) == {"cases": 0.0}


def test_a_case_may_be_predicted_in_another_convention() -> None:
    true = np.zeros((16, 16, 16), np.uint8)
    true[2:12, 2:12, 2:12], true[4:10, 4:10, 4:10], true[4:8, 4:8, 4:8] = 2, 1, 4
    pred = convert(true, "brats2021", "msd")
    assert score_case(pred, true, "msd", MM1, "brats2021")["dice_mean"] == 1.0
    assert score_case(pred, true, "brats2021", MM1)["dice_mean"] < 1.0


def test_real_predictions(data_dir: Path) -> None:
    """52 label maps of a published 3-D U-Net against the truth, 128³ voxels of 1.875 × 1.875 × 1.21 mm.

    The maps' source reports mean whole-tumour Dice 0.807 and median 0.844 over 73 patients, these among them.
    """
    folder = data_dir / "brats" / "label_maps"
    with (
        np.load(folder / "brats20_unet_predictions_128.npz", allow_pickle=False) as predicted,
        np.load(folder / "brats20_labels_128.npz", allow_pickle=False) as labelled,
    ):
        keys = sorted(set(predicted.files) & set(labelled.files))
        scores = [dice(predicted[key] > 0, labelled[key] > 0) for key in keys]
        pred, true = predicted[keys[0]], labelled[keys[0]]
    assert len(keys) == 52
    assert np.mean(scores) == pytest.approx(0.81175, abs=5e-5)
    assert np.median(scores) == pytest.approx(0.84933, abs=5e-5)
    mm = (240 / 128, 240 / 128, 155 / 128)
    row = score_case(pred, true, "brats2021", mm)
    assert row["dice_wt"] == pytest.approx(scores[0])
    assert all(
        math.isfinite(row[f"{name}_{r}"]) for name in ("hd95", "lesion_dice", "volume_ml") for r in REGIONS
    )
