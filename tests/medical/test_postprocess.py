"""Clean-up rules: what each changes, by how many voxels, and that regions stay nested."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medical.brats_seg.config import BratsPredictConfig
from medical.brats_seg.postprocess import (
    ET,
    TC,
    WT,
    clean,
    count_components,
    drop_coreless_components,
    drop_small_components,
    drop_small_et,
    nest,
)


@pytest.fixture
def masks() -> np.ndarray:
    """A tumour of 6³ with a core of 4³ and 2³ enhancing, and a stray whole-tumour pair far off."""
    out = np.zeros((3, 16, 16, 16), bool)
    out[WT, 2:8, 2:8, 2:8] = True
    out[TC, 3:7, 3:7, 3:7] = True
    out[ET, 4:6, 4:6, 4:6] = True
    out[WT, 13, 13, 13:15] = True
    return out


def test_nest_counts_what_it_adds(masks: np.ndarray) -> None:
    masks[ET, 10, 10, 10] = True  # outside both: one voxel more in each
    masks[TC, 0, 0, 0] = True  # outside WT
    assert nest(masks) == 3
    assert masks[WT, 10, 10, 10] and masks[TC, 10, 10, 10] and masks[WT, 0, 0, 0]
    assert nest(masks) == 0


@pytest.mark.parametrize(("minimum", "changed"), [(0, 0), (8, 0), (9, 8)])
def test_small_enhancing_total_becomes_necrosis(masks: np.ndarray, minimum: int, changed: int) -> None:
    core = masks[TC].copy()
    assert drop_small_et(masks, minimum) == changed
    assert int(masks[ET].sum()) == 8 - changed
    np.testing.assert_array_equal(masks[TC], core)


def test_the_enhancing_rule_is_on_the_total_not_per_component(masks: np.ndarray) -> None:
    masks[ET, 6, 6, 6] = True  # a second component of one voxel
    assert drop_small_et(masks, 9) == 0
    assert count_components(masks[ET]) == 1 + int(not masks[ET, 5, 5, 5])
    assert drop_small_et(masks, 10) == 9


def test_components_without_core_leave_where_another_has_one(masks: np.ndarray) -> None:
    before = masks.copy()
    assert drop_coreless_components(masks) == 2
    assert int(masks[WT].sum()) == 6**3
    np.testing.assert_array_equal(masks[[TC, ET]], before[[TC, ET]])
    assert drop_coreless_components(masks) == 0


def test_a_voxel_of_doubt_is_no_core() -> None:
    masks = np.zeros((3, 16, 16, 16), bool)
    masks[WT, :6], masks[WT, 8:] = True, True
    masks[TC, 1:3], masks[TC, 8, 0, :8] = True, True  # one third of the first component, 0.4 % of the second
    assert drop_coreless_components(masks) == 8 * 16 * 16
    assert not masks[:, 8:].any() and int(masks[TC].sum()) == 2 * 16 * 16
    masks[TC] = False
    masks[TC, 0, 0, 0] = True  # no component has more than doubt
    assert drop_coreless_components(masks) == 0


def test_without_any_core_nothing_leaves(masks: np.ndarray) -> None:
    masks[[TC, ET]] = False
    assert drop_coreless_components(masks) == 0
    assert int(masks[WT].sum()) == 6**3 + 2


def test_small_components_leave_every_region(masks: np.ndarray) -> None:
    masks[:, 13, 13, 13] = True
    assert drop_small_components(masks, 3) == 2
    assert not masks[:, 13].any()
    assert int(masks[WT].sum()) == 216 and int(masks[ET].sum()) == 8
    assert drop_small_components(masks, 217) == 216
    assert not masks.any()


def test_diagonal_neighbours_are_one_component() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert count_components(mask) == 1
    mask[3, 3, 3] = True
    assert count_components(mask) == 2
    assert count_components(np.zeros((2, 2, 2), bool)) == 0


def test_clean_applies_all_and_says_so(masks: np.ndarray) -> None:
    config = BratsPredictConfig(min_component_voxels=5, et_min_voxels=20)
    assert clean(masks, config) == {
        "nested_regions": 0,
        "components_without_core": 0,
        "small_components": 2,
        "small_enhancing_tumour": 8,
    }
    assert not masks[ET].any()


def test_nothing_is_changed_by_default(masks: np.ndarray) -> None:
    before = masks.copy()
    assert set(clean(masks, BratsPredictConfig()).values()) == {0}
    np.testing.assert_array_equal(masks, before)


@given(arrays(bool, (3, 5, 5, 5)), st.integers(0, 30), st.integers(0, 30))
def test_regions_are_nested_whatever_comes_in(masks: np.ndarray, small: int, enhancing: int) -> None:
    clean(masks, BratsPredictConfig(min_component_voxels=small, et_min_voxels=enhancing))
    assert not (masks[ET] & ~masks[TC]).any() and not (masks[TC] & ~masks[WT]).any()
    assert masks[ET].sum() == 0 or masks[ET].sum() >= enhancing
