"""Label tables: acceptance fact 7, and that decoding undoes encoding for every convention."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from medical.brats_seg.labels import CONVENTIONS, convention, convert, decode, encode
from shared.errors import UsageError

VALUES = np.arange(5, dtype=np.uint8).reshape(5, 1, 1)


@pytest.mark.parametrize(
    ("name", "tc", "wt", "et"),
    [
        ("brats2021", "01001", "01101", "00001"),
        ("brats2023", "01010", "01110", "00010"),
        ("brats2024", "01010", "01110", "00010"),
        ("msd", "00110", "01110", "00010"),
    ],
)
def test_region_tables(name: str, tc: str, wt: str, et: str) -> None:
    regions = encode(VALUES, name).reshape(3, 5)
    assert ["".join(str(int(v)) for v in row) for row in regions] == [tc, wt, et]


def test_an_enhancing_voxel_outside_the_others_still_decodes_to_enhancing() -> None:
    regions = np.zeros((3, 1, 1, 4), bool)
    regions[2, ..., 0] = True  # ET alone
    regions[0, ..., 1] = True  # TC alone
    regions[1, ..., 2] = True  # WT alone
    assert decode(regions, "brats2021").ravel().tolist() == [4, 1, 2, 0]
    assert decode(regions, "brats2023").ravel().tolist() == [3, 1, 2, 0]
    assert decode(regions, "msd").ravel().tolist() == [3, 2, 1, 0]


@st.composite
def labelled(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    name = draw(st.sampled_from(sorted(CONVENTIONS)))
    table = CONVENTIONS[name]
    values = [0, table.core, table.oedema, table.enhancing]
    shape = draw(array_shapes(min_dims=3, max_dims=3, max_side=5))
    return name, draw(arrays(np.uint8, shape, elements=st.sampled_from(values)))


@given(labelled())
def test_decode_undoes_encode(given_: tuple[str, np.ndarray]) -> None:
    name, labels = given_
    regions = encode(labels, name)
    tc, wt, et = regions
    assert not (et & ~tc).any() and not (tc & ~wt).any()
    decoded = decode(regions, name)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, labels)


@given(labelled(), st.sampled_from(sorted(CONVENTIONS)))
def test_conversion_keeps_every_region(given_: tuple[str, np.ndarray], target: str) -> None:
    name, labels = given_
    there = convert(labels, name, target)
    np.testing.assert_array_equal(encode(there, target), encode(labels, name))
    np.testing.assert_array_equal(convert(there, target, name), labels)


def test_a_cavity_is_outside_every_region_and_lost_where_unknown() -> None:
    cavity = np.full((1, 1, 2), 4, np.uint8)
    assert not encode(cavity, "brats2024").any()
    assert convert(cavity, "brats2024", "brats2021").tolist() == [[[0, 0]]]
    assert convert(cavity, "brats2021", "brats2024").tolist() == [[[3, 3]]]


def test_float_labels_of_real_files_encode_alike() -> None:
    np.testing.assert_array_equal(encode(VALUES.astype(np.float32), "msd"), encode(VALUES, "msd"))


def test_unknown_convention_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"labels: found brats2019; one of brats2021, .*; set data\.labels"):
        convention("brats2019")
