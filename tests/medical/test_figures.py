"""Pictures: the right slice, the right way round, the right proportions, whatever the affine."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff, ornt_transform
from PIL import Image

from medical.brats_seg.figures import case_strip, qc_figure, qc_picture, score_figure
from medical.brats_seg.panels import REGION_COLOURS, View, draw_panel, make_view
from shared.plots.style import new_figure, png_bytes

SHAPE = (24, 30, 20)
RAS = np.diag([1.0, 1.0, 1.0, 1.0])
ORIENTATIONS = [
    "".join(code) for axes in itertools.permutations(("RL", "AP", "SI")) for code in itertools.product(*axes)
]


def head() -> np.ndarray:
    """RAS volume: grey head, a bright block that lies right, anterior and superior of everything."""
    image = np.zeros(SHAPE, np.float32)
    image[2:22, 2:28, 2:18] = 100.0
    image[17:21, 22:27, 13:17] = 400.0
    return image


def tumour() -> np.ndarray:
    masks = np.zeros((3, *SHAPE), bool)
    masks[:, 17:21, 22:27, 13:17] = True
    masks[1, 15:21, 20:27, 11:17] = True
    masks[2, 17:19] = False
    return masks


def turned(volume: np.ndarray, code: str) -> tuple[np.ndarray, np.ndarray]:
    """`volume` (RAS, identity affine) stored in orientation `code`, with the affine that says so."""
    turn = ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(code))
    return apply_orientation(volume, turn), RAS @ inv_ornt_aff(turn, volume.shape)


def panel_of(view: View, plane: str) -> np.ndarray:
    axes = new_figure().add_axes((0, 0, 1, 1))
    draw_panel(axes, view, "t1", plane)  # type: ignore[arg-type]
    return np.asarray(axes.images[0].get_array())


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_every_orientation_gives_the_same_radiological_view(code: str) -> None:
    image, affine = turned(head(), code)
    assert "".join(nib.aff2axcodes(affine)) == code
    masks = np.stack([turned(mask, code)[0] for mask in tumour()])
    view = make_view({"t1": image}, masks, affine)
    for plane, letters in (("axial", "RA"), ("coronal", "RS"), ("sagittal", "AS")):
        panel = panel_of(view, plane)
        rows, columns = np.nonzero(panel == 400.0)
        # The block is right, anterior, superior: towards the letters at the left and at the top.
        assert columns.mean() < panel.shape[1] / 2, letters[0]
        assert rows.mean() < panel.shape[0] / 2, letters[1]


def test_letters_stand_where_the_view_says() -> None:
    view = make_view({"t1": head()}, tumour(), RAS)
    for plane, expected in (("axial", "RLAP"), ("coronal", "RLSI"), ("sagittal", "APSI")):
        axes = new_figure().add_axes((0, 0, 1, 1))
        draw_panel(axes, view, "t1", plane)  # type: ignore[arg-type]
        place = {text.get_text(): text.get_position() for text in axes.texts}
        left, right, top, bottom = expected
        assert place[left][0] < 0.5 < place[right][0]
        assert place[bottom][1] < 0.5 < place[top][1]


def test_thick_slices_are_drawn_thick() -> None:
    view = make_view({"t1": head()}, tumour(), np.diag([1.0, 1.0, 5.0, 1.0]))
    axes = new_figure().add_axes((0, 0, 1, 1))
    draw_panel(axes, view, "t1", "coronal")
    left, right, bottom, top = axes.images[0].get_extent()
    assert (right - left, bottom - top) == (20.0, 16 * 5.0)
    assert axes.get_aspect() == 1.0


def test_contours_follow_the_masks_in_millimetres() -> None:
    pred = tumour()
    view = make_view({"t1": head()}, pred, np.diag([2.0, 1.0, 1.0, 1.0]), np.roll(pred, 1, 2))
    axes = new_figure().add_axes((0, 0, 1, 1))
    draw_panel(axes, view, "t1", "axial")
    lines = axes.collections
    assert len(lines) == 6  # three regions, prediction and truth
    whole = lines[0].get_paths()[0].vertices
    # Half a voxel outside the first and last voxel centre: the mask's own edges, x from the patient's right.
    assert (whole[:, 0].min(), whole[:, 0].max()) == ((22 - 21) * 2.0, (22 - 15) * 2.0)
    assert (whole[:, 1].min(), whole[:, 1].max()) == (28 - 27, 28 - 20)
    solid, dashed = lines[0].get_linestyle()[0][1], lines[3].get_linestyle()[0][1]
    assert solid is None and dashed is not None


def test_cut_goes_through_tumour_then_truth_then_head() -> None:
    none = np.zeros((3, *SHAPE), bool)
    whole = tumour()[1]
    view = make_view({"t1": head()}, tumour(), RAS)
    assert whole[view.centre]
    two = none.copy()
    two[1, 3:5, 3:5, 3:5] = two[1, 18:20, 24:26, 14:16] = True  # centre of mass lies in neither
    assert two[1][make_view({"t1": head()}, two, RAS).centre]
    assert whole[make_view({"t1": head()}, none, RAS, tumour()).centre]
    assert make_view({"t1": head()}, none, RAS).centre == (11, 14, 9)


def test_standardised_background_is_black() -> None:
    image = head()
    standardised = np.where(image > 0, (image - 110) / 50, 0).astype(np.float32)
    view = make_view({"t1": standardised}, tumour(), RAS)
    view_low = view.windows["t1"][0]
    panel = panel_of(make_view({"t1": np.pad(standardised, 4)[4:-4, 4:-4, 4:-4]}, tumour(), RAS), "axial")
    assert panel.min() == view_low


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_images_and_empty_masks_still_give_a_picture(tmp_path: Path, value: float) -> None:
    images = {name: np.full(SHAPE, value, np.float32) for name in ("flair", "t1ce")}
    path = qc_picture(images, np.zeros((3, *SHAPE), bool), RAS, tmp_path / "qc.png", title="empty")
    assert Image.open(path).size[0] > 500


def test_picture_says_volumes_warnings_and_obliquity() -> None:
    angle = np.radians(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    view = make_view(dict.fromkeys(("flair", "t1ce", "t1", "t2"), head()), tumour(), affine)
    figure = qc_figure(view, "case <1> $\\frac$", {"wt": 12.34, "tc": 5.0, "et": 0.0}, ["T1 is odd"])
    texts = [text.get_text() for text in figure.texts]
    assert "Whole tumour (WT)  12.3 mL" in texts and "Enhancing tumour (ET)  0.0 mL" in texts
    assert "⚠ T1 is odd" in texts
    assert any("oblique to the scanner's by 20°" in text for text in texts)
    assert len(figure.axes) == 12
    png_bytes(figure, 40)  # odd titles draw


def test_evaluation_pictures() -> None:
    view = make_view({"flair": head(), "t1ce": head()}, tumour(), RAS, tumour())
    assert len(case_strip([("worst: a", view), ("best: b", view)]).axes) == 8
    rows = [
        {f"{m}_{r}": v for m, v in (("dice", d), ("hd95", 373.1)) for r in REGION_COLOURS} for d in (0.1, 0.9)
    ]
    figure = score_figure(
        [*rows, {f"{m}_{r}": float("nan") for m in ("dice", "hd95") for r in REGION_COLOURS}]
    )
    assert len(figure.axes[0].collections[0].get_offsets()) == 2  # NaN left out
    png_bytes(figure, 40)
