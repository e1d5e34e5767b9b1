"""The network's grid and the way back: exact where axes only flip, linear elsewhere, whole or slab by slab alike."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medical.brats_seg.grid import (
    Grid,
    axis_maps,
    network_grid,
    normalise,
    resample,
    stream_back,
    to_target_axes,
)
from medical.nifti import axcodes
from tests.samples import LPS

OUTSIDE = -20.0


def forward(volume: np.ndarray, case: Grid, network: Grid) -> np.ndarray:
    maps = axis_maps(case, network)
    return np.asarray(to_target_axes(resample(volume, maps), maps))


def back(volume: np.ndarray, network: Grid, case: Grid, rows: int) -> np.ndarray:
    """(C, D, H, W) on the network's grid → the case's, streamed in slabs of `rows`."""
    maps = axis_maps(network, case)
    out = np.full((volume.shape[0], *(len(line.low) for line in maps)), OUTSIDE, np.float32)
    written = np.zeros(out.shape[1], int)
    slabs = ((at, volume[:, at : at + rows]) for at in range(0, volume.shape[1], rows))
    for target_rows, block in stream_back(slabs, maps, OUTSIDE):
        out[:, target_rows] = block
        written[target_rows] += 1
    assert (written == 1).all()
    return np.asarray(to_target_axes(out, maps))


def test_normalisation_over_non_zero_voxels() -> None:
    """Acceptance fact 8."""
    values = np.array([[[0, 2, 4, 0, 6]]], np.float32)
    out = normalise(values)
    assert out is values
    np.testing.assert_allclose(out.ravel(), [0, -1.2247, 0, 0, 1.2247], atol=1e-4)
    assert not normalise(np.full((2, 2, 2), 7, np.float32)).any()
    assert not normalise(np.zeros((2, 2, 2), np.float32)).any()
    huge = normalise(np.array([[[1e30, 3e30, 0]]], np.float32))
    np.testing.assert_allclose(huge.ravel(), [-1, 1, 0], atol=1e-6)


def test_same_axes_and_spacing_are_the_identity() -> None:
    rng = np.random.default_rng(0)
    case = Grid((6, 7, 5), np.eye(4))
    network = network_grid(case, "RAS", (1, 1, 1))
    assert network.shape == case.shape
    np.testing.assert_array_equal(network.affine, case.affine)
    assert all(line.exact for line in axis_maps(case, network))
    volume = rng.normal(size=case.shape).astype(np.float32)
    np.testing.assert_array_equal(forward(volume, case, network), volume)


def test_a_brats_case_is_only_flipped() -> None:
    rng = np.random.default_rng(1)
    case = Grid((8, 9, 5), LPS)
    network = network_grid(case, "RAS", (1, 1, 1))
    volume = rng.normal(size=case.shape).astype(np.float32)
    turned = forward(volume, case, network)
    np.testing.assert_array_equal(turned, volume[::-1, ::-1])
    np.testing.assert_array_equal(back(turned[None], network, case, 3)[0], volume)


def test_headers_rounded_to_single_precision_do_not_interpolate() -> None:
    noisy = np.diag([0.99999994, 1.0000001, 1.0002, 1.0])
    assert all(
        line.exact
        for line in axis_maps(
            Grid((240, 240, 155), noisy), network_grid(Grid((240, 240, 155), noisy), "RAS", (1, 1, 1))
        )
    )


def test_spacing_keeps_the_borders_of_the_image() -> None:
    case = Grid((10, 12, 4), np.diag([1, 1, 3.0, 1]))
    network = network_grid(case, "RAS", (1, 1, 1))
    assert network.shape == (10, 12, 12)
    # Outer border of the first voxel: half a voxel before its centre, on both grids.
    for grid, spacing in ((case, 3.0), (network, 1.0)):
        assert grid.affine[2, 3] - spacing / 2 == pytest.approx(-1.5)
    ramp = np.broadcast_to(np.arange(4, dtype=np.float32) * 3, case.shape).copy()
    seen = forward(ramp, case, network)
    np.testing.assert_allclose(seen[0, 0], np.clip(np.arange(12) - 1, 0, 9), atol=1e-5)


def test_rotated_grids_are_refused() -> None:
    turned = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0, 0), [0, 0, 0])
    with pytest.raises(ValueError, match="rotated"):
        axis_maps(Grid((9, 9, 9), np.eye(4)), Grid((9, 9, 9), turned))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Grid, str, tuple[float, float, float] | None]:
    """Any shape, any axes with any direction, any spacing, perhaps oblique, anywhere."""
    order = draw(st.permutations([0, 1, 2]))
    signs = draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    spacing = draw(st.tuples(*[st.sampled_from((0.5, 0.8, 1.0, 1.7, 3.0))] * 3))
    angles = draw(st.tuples(*[st.floats(-0.4, 0.4)] * 3))
    matrix = np.zeros((3, 3))
    for column, (row, sign, size) in enumerate(zip(order, signs, spacing)):
        matrix[row, column] = sign * size
    rotation = nib.eulerangles.euler2mat(*angles)
    shift = draw(st.tuples(*[st.floats(-200, 200)] * 3))
    shape = draw(st.tuples(*[st.integers(1, 9)] * 3))
    grid = Grid(shape, nib.affines.from_matvec(rotation @ matrix, shift))
    wanted = draw(st.one_of(st.none(), st.just((1.0, 1.0, 1.0)), st.just((2.0, 0.7, 1.3))))
    return grid, draw(st.sampled_from(("RAS", "LPS", "LIP"))), wanted


@settings(max_examples=150, deadline=None)
@given(cases(), st.integers(1, 4), st.integers(0, 2**16))
def test_forward_and_back_on_any_case(
    given_: tuple[Grid, str, tuple[float, float, float] | None], rows: int, seed: int
) -> None:
    case, orientation, spacing = given_
    network = network_grid(case, orientation, spacing)
    assert axcodes(network.affine) == orientation
    volume = np.random.default_rng(seed).normal(size=case.shape).astype(np.float32)
    turned = forward(volume, case, network)
    assert turned.shape == network.shape
    assert volume.min() - 1e-5 <= turned.min() and turned.max() <= volume.max() + 1e-5
    again = back(turned[None], network, case, rows)[0]
    assert again.shape == case.shape
    if spacing is None:
        np.testing.assert_array_equal(again, volume)
    # Streaming changes nothing: slabs of any height give what the whole stack gives.
    np.testing.assert_array_equal(again, back(turned[None], network, case, network.shape[0])[0])
    flat = back(np.full((2, *network.shape), 3, np.float32), network, case, rows)
    np.testing.assert_allclose(flat, 3, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_linear_ramp_in_space_comes_back_where_it_was(
    given_: tuple[Grid, str, tuple[float, float, float] | None],
) -> None:
    """Interpolation is in the right place, mm for mm: a plane in world coordinates stays that plane inside."""
    case, orientation, _ = given_
    shape = tuple(n + 4 for n in case.shape)
    case = Grid((shape[0], shape[1], shape[2]), case.affine)
    network = network_grid(case, orientation, (1.0, 1.0, 1.0))

    def plane(grid: Grid) -> np.ndarray:
        index = np.stack([*np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), np.ones(grid.shape)])
        world = np.tensordot(grid.affine, index, 1) - np.append(case.affine[:3, 3], 0)[:, None, None, None]
        return (0.3 * world[0] - 0.2 * world[1] + 0.5 * world[2]).astype(np.float32)

    maps = axis_maps(case, network)
    seen, wanted = forward(plane(case), case, network), plane(network)
    # Linear interpolation is exact on a plane except beyond the outermost voxel centres.
    inner: list[slice] = [slice(None)] * 3
    for axis, line in enumerate(maps):
        at = line.low + line.weight
        good = np.flatnonzero((at > 0) & (at < case.shape[axis] - 1))
        inner[line.axis] = slice(good[0], good[-1] + 1) if good.size else slice(0, 0)
    np.testing.assert_allclose(seen[tuple(inner)], wanted[tuple(inner)], atol=2e-3)


def test_rows_that_no_slab_covers_are_not_emitted() -> None:
    """The stream skips background: rows that see only `outside` never come, their border is interpolated to it."""
    network = Grid((12, 3, 3), np.eye(4))
    case = Grid((24, 3, 3), np.array([[0.5, 0, 0, -0.25], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float))
    maps = axis_maps(network, case)
    volume = np.full((1, 12, 3, 3), OUTSIDE, np.float32)
    volume[:, 3:7] = 5
    volume[:, 9:11] = 1
    out = np.full((1, 24, 3, 3), OUTSIDE, np.float32)
    slabs = [(3, volume[:, 3:5]), (5, volume[:, 5:7]), (9, volume[:, 9:11])]
    emitted: list[int] = []
    for rows, block in stream_back(slabs, maps, OUTSIDE):
        out[:, rows] = block
        emitted += rows.tolist()
    assert emitted == sorted(set(emitted))
    assert not set(range(4)) & set(emitted)
    np.testing.assert_allclose(out[0], resample(volume[0], maps), atol=1e-5)
