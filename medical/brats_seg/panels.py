"""One slice of one modality as a radiologist expects it: radiological view, contours, orientation letters.

Volumes are turned to the nearest RAS axes first, so letters hold for any affine; panels are drawn in millimetres, so
thick slices look as thick as they are. The patient's right is on the viewer's left; the sagittal view faces left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medical.brats_seg.config import REGIONS
from medical.brats_seg.metrics import Mask, bounding_box

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
# plane: (axis cut, axis across, axis up) of RAS voxels, then the letters left, right, top, bottom.
AXES: Mapping[Plane, tuple[int, int, int]] = {
    "axial": (2, 0, 1),
    "coronal": (1, 0, 2),
    "sagittal": (0, 1, 2),
}
_LETTERS: Mapping[Plane, str] = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
REGION_NAMES = {"wt": "Whole tumour", "tc": "Tumour core", "et": "Enhancing tumour"}
# Okabe-Ito sky blue, yellow and vermilion (lightened for black): apart in hue and in lightness.
REGION_COLOURS = {"wt": "#56B4E9", "tc": "#F0E442", "et": "#FF6A3D"}
DRAW_ORDER = ("wt", "tc", "et")
MODALITY_NAMES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1 contrast", "t2": "T2"}
MARGIN_MM = 6.0


@dataclass(frozen=True)
class View:
    """One case turned to RAS: what every panel is cut from. Arrays are views of the caller's."""

    images: Mapping[str, NDArray[Any]]
    pred: Mask
    """(3, D, H, W): tc, wt, et."""
    truth: Mask | None
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]
    """RAS voxel → scanner mm."""
    oblique_degrees: float
    windows: Mapping[str, tuple[float, float]]
    """Grey window (black, white) of each modality."""
    brain: tuple[slice, ...]
    centre: tuple[int, int, int]


def make_view(
    images: Mapping[str, NDArray[Any]],
    pred: Mask,
    affine: NDArray[np.float64],
    truth: Mask | None = None,
) -> View:
    """The case in RAS order, with grey windows, the box of the head and the voxel to cut through.

    The cuts go through the whole tumour's centre of mass, moved to the nearest tumour voxel (a ring or two separate
    lesions have their centre outside); through the truth's if nothing was predicted, else the head's centre.
    """
    import nibabel as nib
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    affine = np.asarray(affine, np.float64)
    turn = io_orientation(affine)
    shape = next(iter(images.values())).shape
    ras_affine = affine @ inv_ornt_aff(turn, shape)
    turned = {name: apply_orientation(image, turn) for name, image in images.items()}
    pred_ras = np.stack([apply_orientation(mask, turn) for mask in pred])
    truth_ras = None if truth is None else np.stack([apply_orientation(mask, turn) for mask in truth])
    spacing = nib.affines.voxel_sizes(ras_affine)
    head = np.zeros(next(iter(turned.values())).shape, bool)
    for image in turned.values():
        head |= image != 0
    brain = bounding_box(head)
    whole = REGIONS.index("wt")
    centre = _centre(pred_ras[whole])
    if centre is None and truth_ras is not None:
        centre = _centre(truth_ras[whole])
    middle = tuple((s.start + s.stop - 1) // 2 for s in brain)
    return View(
        turned,
        pred_ras,
        truth_ras,
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        ras_affine,
        float(np.degrees(nib.affines.obliquity(ras_affine).max())),
        {name: _window(image) for name, image in turned.items()},
        brain,
        centre or (middle[0], middle[1], middle[2]),
    )


def _centre(mask: Mask) -> tuple[int, int, int] | None:
    box = bounding_box(mask)
    voxels = np.argwhere(mask[box])
    if not len(voxels):
        return None
    nearest = voxels[np.square(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()]
    return tuple(int(v + s.start) for v, s in zip(nearest, box))  # type: ignore[return-value]


def _window(image: NDArray[Any]) -> tuple[float, float]:
    sample = image[::3, ::3, ::3]
    known = sample[(sample != 0) & np.isfinite(sample)]
    if known.size < 10:
        return 0.0, 1.0
    low, high = (float(q) for q in np.percentile(known, (0.5, 99.7)))
    return low, high if high > low else low + 1.0


# ---------------------------------------------------------------- one panel


def _cut(volume: NDArray[Any], plane: Plane, at: Sequence[int], box: Sequence[slice]) -> NDArray[Any]:
    """The slice through `at` as an image (rows from the top, columns from the left) in radiological view."""
    cut, across, up = AXES[plane]
    index: list[Any] = [slice(None)] * 3
    index[cut], index[across], index[up] = at[cut], box[across], box[up]
    image = volume[tuple(index)]  # the remaining axes come in ascending order: (across, up)
    return image.T[::-1, ::-1]


def draw_panel(
    axes: Axes,
    view: View,
    modality: str,
    plane: Plane,
    box: Sequence[slice] | None = None,
    letters: bool = True,
    linewidth: float = 1.1,
) -> None:
    """One modality in one plane with contours: prediction solid, truth dashed."""
    box = view.brain if box is None else box
    _, across, up = AXES[plane]
    image = _cut(view.images[modality], plane, view.centre, box)
    low, high = view.windows[modality]
    height, width = image.shape
    mm = (width * view.spacing_mm[across], height * view.spacing_mm[up])
    shown = np.where(image == 0, low, image)  # background is exactly zero, also in standardised images
    axes.imshow(
        shown, cmap="gray", vmin=low, vmax=high, extent=(0, mm[0], mm[1], 0), interpolation="bilinear"
    )
    layers: list[tuple[Mask, Any]] = [(view.pred, "solid")]
    if view.truth is not None:
        layers.append((view.truth, (0, (2.2, 1.6))))
    for masks, style in layers:
        for region in DRAW_ORDER:
            mask = _cut(masks[REGIONS.index(region)], plane, view.centre, box)
            _outline(axes, mask, (mm[0] / width, mm[1] / height), REGION_COLOURS[region], style, linewidth)
    edge = MARGIN_MM if box is view.brain else 0.0
    axes.set(xlim=(-edge, mm[0] + edge), ylim=(mm[1] + edge, -edge), xticks=[], yticks=[], facecolor="black")
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if letters:
        _orientation_letters(axes, _LETTERS[plane])


def _outline(
    axes: Axes, mask: Mask, pixel_mm: tuple[float, float], colour: str, style: Any, linewidth: float
) -> None:
    if not mask.any():
        return
    from contourpy import contour_generator
    from matplotlib.collections import LineCollection

    rows, columns = bounding_box(mask)
    # One ring of zeros closes contours that touch the picture's edge.
    z = np.pad(mask[rows, columns], 1).astype(np.float32)
    x = (np.arange(columns.start - 1, columns.stop + 1) + 0.5) * pixel_mm[0]
    y = (np.arange(rows.start - 1, rows.stop + 1) + 0.5) * pixel_mm[1]
    lines: Any = contour_generator(x, y, z).lines(0.5)
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=linewidth, linestyles=style))


def _orientation_letters(axes: Axes, letters: str) -> None:
    from matplotlib.patheffects import withStroke

    places = (
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
        (0.5, 0.98, "center", "top"),
        (0.5, 0.02, "center", "bottom"),
    )
    for letter, (x, y, ha, va) in zip(letters, places):
        text = axes.text(x, y, letter, transform=axes.transAxes, ha=ha, va=va)
        text.set(
            color="#d5dae1",
            fontsize=8,
            weight="bold",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )
