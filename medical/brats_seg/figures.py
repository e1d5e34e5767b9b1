"""Pictures a radiologist can check a segmentation with: radiological view, contours, orientation letters, volumes.

Volumes are turned to the nearest RAS axes first, so letters hold for any affine; panels are drawn in millimetres, so
thick slices look as thick as they are. The patient's right is on the viewer's left; the sagittal view faces left.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medical.brats_seg.config import REGIONS
from medical.brats_seg.metrics import Mask, bounding_box
from shared.plots.style import DARK, dress, new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
# plane: (axis cut, axis across, axis up) of RAS voxels, then the letters left, right, top, bottom.
_AXES: Mapping[Plane, tuple[int, int, int]] = {
    "axial": (2, 0, 1),
    "coronal": (1, 0, 2),
    "sagittal": (0, 1, 2),
}
_LETTERS: Mapping[Plane, str] = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
REGION_NAMES = {"wt": "Whole tumour", "tc": "Tumour core", "et": "Enhancing tumour"}
# Okabe-Ito sky blue, yellow and vermilion (lightened for black): apart in hue and in lightness.
REGION_COLOURS = {"wt": "#56B4E9", "tc": "#F0E442", "et": "#FF6A3D"}
_DRAW_ORDER = ("wt", "tc", "et")
MODALITY_NAMES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1 contrast", "t2": "T2"}
_MARGIN_MM = 6.0
_AMBER = "#F2B84B"
_OBLIQUE_DEGREES = 5.0


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
    cut, across, up = _AXES[plane]
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
    _, across, up = _AXES[plane]
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
        for region in _DRAW_ORDER:
            mask = _cut(masks[REGIONS.index(region)], plane, view.centre, box)
            _outline(axes, mask, (mm[0] / width, mm[1] / height), REGION_COLOURS[region], style, linewidth)
    edge = _MARGIN_MM if box is view.brain else 0.0
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
    lines = contour_generator(x, y, z).lines(0.5)
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=linewidth, linestyles=style))


def _orientation_letters(axes: Axes, letters: str) -> None:
    from matplotlib.patheffects import withStroke

    places = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"))
    places += ((0.5, 0.98, "center", "top"), (0.5, 0.02, "center", "bottom"))
    for letter, (x, y, ha, va) in zip(letters, places):
        text = axes.text(x, y, letter, transform=axes.transAxes, ha=ha, va=va)
        text.set(
            color="#d5dae1",
            fontsize=8,
            weight="bold",
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )


# ---------------------------------------------------------------- the QC picture


def qc_picture(
    images: Mapping[str, NDArray[Any]],
    pred: Mask,
    affine: NDArray[np.float64],
    path: Path,
    *,
    title: str = "",
    volumes_ml: Mapping[str, float] | None = None,
    warnings: Sequence[str] = (),
    truth: Mask | None = None,
) -> Path:
    """Write the case's picture: three planes through the tumour × every modality, contours, volumes, warnings.

    `images` maps a modality to its volume, `pred` and `truth` are region masks (3, D, H, W) in order tc, wt, et
    (`medical.brats_seg.labels.encode`), all on the grid of `affine` (voxel → mm, RAS+). About 1,300 pixels wide.
    """
    view = make_view(images, pred, affine, truth)
    return save_png(qc_figure(view, title, volumes_ml, warnings), path, dpi=110)


def qc_figure(
    view: View, title: str = "", volumes_ml: Mapping[str, float] | None = None, warnings: Sequence[str] = ()
) -> Figure:
    notes = list(warnings)
    if view.oblique_degrees > _OBLIQUE_DEGREES:
        notes.append(f"planes follow the voxel axes, oblique to the scanner's by {view.oblique_degrees:.0f}°")
    lines = [line for note in notes for line in textwrap.wrap(f"⚠ {note}", 150, subsequent_indent="   ")][:8]
    modalities = list(view.images)
    heights = [_panel_height(view, plane) for plane in PLANES]
    left, cell, gap = 0.42, 11.4 / max(len(modalities), 1), 0.06
    cell = min(cell, 3.4)
    top, bottom = 0.94, 0.36 + 0.2 * len(lines)
    width = left + len(modalities) * (cell + gap) + 0.06
    height = top + sum(cell * h + gap for h in heights) + bottom
    figure = new_figure(width, height, DARK)
    _heading(figure, view, title, volumes_ml, (width, height))
    y = height - top
    for plane, tall in zip(PLANES, heights):
        y -= cell * tall + gap
        for i, modality in enumerate(modalities):
            x = left + i * (cell + gap)
            axes = figure.add_axes((x / width, y / height, cell / width, cell * tall / height))
            draw_panel(axes, view, modality, plane)
            if plane == "axial":
                name = MODALITY_NAMES.get(modality, modality)
                axes.set_title(name, color=DARK.text, fontsize=10, weight="bold", pad=4)
        label = f"{plane}  {_position(view, plane)}"
        centre_y = (y + cell * tall / 2) / height
        figure.text(
            0.2 / width, centre_y, label, rotation=90, ha="center", va="center", color=DARK.muted, fontsize=9
        )
    for i, line in enumerate(lines):
        figure.text(
            left / width, (bottom - 0.2 - 0.2 * i) / height, line, color=_AMBER, fontsize=9, va="center"
        )
    figure.text(
        1 - 0.1 / width,
        0.13 / height,
        "Radiological view: patient's right on the left. Research use only.",
        ha="right",
        va="center",
        color=DARK.muted,
        fontsize=8,
    )
    return figure


def _panel_height(view: View, plane: Plane) -> float:
    """Height of a panel over its width, bounded so that a stack of three slices still has a visible panel."""
    _, across, up = _AXES[plane]
    size = [(view.brain[a].stop - view.brain[a].start) * view.spacing_mm[a] for a in (across, up)]
    return float(min(max((size[1] + 2 * _MARGIN_MM) / (size[0] + 2 * _MARGIN_MM), 0.35), 1.4))


def _position(view: View, plane: Plane) -> str:
    """Where the plane lies in scanner coordinates, such as ``I 23 mm``."""
    axis = _AXES[plane][0]
    mm = float((view.affine @ np.array([*view.centre, 1.0]))[axis])
    letter = ("R", "A", "S")[axis] if mm >= 0 else ("L", "P", "I")[axis]
    return f"{letter} {abs(mm):.0f} mm"


def _heading(
    figure: Figure,
    view: View,
    title: str,
    volumes_ml: Mapping[str, float] | None,
    size: tuple[float, float],
) -> None:
    width, height = size
    figure.text(
        0.42 / width, 1 - 0.24 / height, title, color=DARK.text, fontsize=13, weight="bold", va="center"
    )
    voxel = " × ".join(f"{mm:.3g}" for mm in view.spacing_mm)
    figure.text(
        1 - 0.1 / width,
        1 - 0.24 / height,
        f"voxel {voxel} mm",
        color=DARK.muted,
        fontsize=9,
        ha="right",
        va="center",
    )
    x = 0.42
    for region in _DRAW_ORDER:
        text = f"{REGION_NAMES[region]} ({region.upper()})"
        if volumes_ml is not None and region in volumes_ml:
            text += f"  {volumes_ml[region]:.1f} mL"
        x = _key(figure, x, text, REGION_COLOURS[region], "solid", size)
    if view.truth is not None:
        _key(figure, x, "reference", "#c8ced6", (0, (2.2, 1.6)), size)


def _key(
    figure: Figure,
    x: float,
    text: str,
    colour: str,
    style: Any,
    size: tuple[float, float],
    down: float = 0.52,
) -> float:
    """A legend entry `x` inches from the left, `down` from the top; returns where the next one starts."""
    from matplotlib.lines import Line2D

    width, height = size
    y = 1 - down / height
    line = Line2D([x / width, (x + 0.3) / width], [y, y], color=colour, linestyle=style, linewidth=2.4)
    figure.add_artist(line)
    figure.text((x + 0.38) / width, y, text, color=DARK.text, fontsize=9.5, va="center")
    return x + 0.38 + 0.083 * len(text) + 0.25


# ---------------------------------------------------------------- pictures of an evaluation


def case_strip(views: Sequence[tuple[str, View]]) -> Figure:
    """One row per case, close up: FLAIR and contrast T1 axial, contrast T1 coronal and sagittal."""
    from matplotlib.patheffects import withStroke

    cell, gap, left, top = 2.75, 0.05, 0.08, 0.42
    row = cell + 0.34
    width, height = left * 2 + 4 * (cell + gap), top + row * len(views)
    figure = new_figure(width, height, DARK)
    _legend_only(figure, (width, height), any(view.truth is not None for _, view in views))
    for r, (label, view) in enumerate(views):
        y = height - top - (r + 1) * row
        figure.text(
            left / width, (y + cell + 0.15) / height, label, color=DARK.text, fontsize=10, va="center"
        )
        names = list(view.images)
        first = "flair" if "flair" in names else names[0]
        second = "t1ce" if "t1ce" in names else names[-1]
        panels: tuple[tuple[str, Plane], ...] = (
            (first, "axial"),
            (second, "axial"),
            (second, "coronal"),
            (second, "sagittal"),
        )
        box = _close_up(view)
        for i, (modality, plane) in enumerate(panels):
            x = left + i * (cell + gap)
            axes = figure.add_axes((x / width, y / height, cell / width, cell / height))
            draw_panel(axes, view, modality, plane, box, linewidth=1.4)
            name = MODALITY_NAMES.get(modality, modality)
            text = axes.text(0.03, 0.97, name, transform=axes.transAxes, va="top", ha="left")
            text.set(
                color="#e8ebef", fontsize=8.5, path_effects=[withStroke(linewidth=2, foreground="black")]
            )
    return figure


def _legend_only(figure: Figure, size: tuple[float, float], truth: bool) -> None:
    x = 0.08
    for region in _DRAW_ORDER:
        x = _key(figure, x, REGION_NAMES[region], REGION_COLOURS[region], "solid", size, 0.22)
    if truth:
        _key(figure, x, "reference", "#c8ced6", (0, (2.2, 1.6)), size, 0.22)


def _close_up(view: View) -> tuple[slice, ...]:
    """A cube of tissue around the tumour (prediction and truth), equally long on each axis in mm."""
    whole = REGIONS.index("wt")
    mask = view.pred[whole] if view.truth is None else view.pred[whole] | view.truth[whole]
    if not mask.any():
        return view.brain
    tumour = bounding_box(mask)
    longest = max((s.stop - s.start) * mm for s, mm in zip(tumour, view.spacing_mm))
    side = max(longest + 2 * 12.0, 60.0)
    box = []
    for s, mm, size in zip(tumour, view.spacing_mm, mask.shape):
        half = side / mm / 2
        centre = (s.start + s.stop) / 2
        box.append(slice(max(int(centre - half), 0), min(int(np.ceil(centre + half)), size)))
    return tuple(box)


def score_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Dice and HD95 of every case by region: box (quartiles) with each case as a point."""
    figure = new_figure(7.6, 3.5)
    for i, (name, title) in enumerate((("dice", "Dice"), ("hd95", "HD95, mm"))):
        axes = figure.add_subplot(1, 2, i + 1)
        columns = [[float(row[f"{name}_{region}"]) for row in rows] for region in _DRAW_ORDER]
        _boxes(axes, columns)
        axes.set_title(title, loc="left")
        dress(axes)
        axes.title.set_fontweight("bold")
        axes.grid(False, axis="x")
        if name == "dice":
            axes.set_ylim(-0.02, 1.02)
        else:
            axes.set_yscale("symlog", linthresh=10)
            axes.set_ylim(-0.4, 500)
            axes.set_yticks([0, 5, 10, 50, 100, 373.13], ["0", "5", "10", "50", "100", "one\nempty"])
    figure.tight_layout(pad=1.0, w_pad=2.0)
    return figure


def _boxes(axes: Axes, columns: Sequence[Sequence[float]]) -> None:
    colours = ("#0072B2", "#B08A00", "#D55E00")  # the regions' hues, dark enough for a white ground
    for i, (values, colour) in enumerate(zip(columns, colours)):
        known = np.array([value for value in values if np.isfinite(value)])
        if not len(known):
            continue
        if len(known) >= 5:  # quartiles of fewer say nothing
            axes.boxplot(
                known,
                positions=[i],
                widths=0.5,
                showfliers=False,
                medianprops={"color": colour, "linewidth": 2},
                boxprops={"color": colour},
                whiskerprops={"color": colour},
                capprops={"color": colour},
            )
        # Even, not random, sideways spread: the same rows give the same picture.
        offsets = ((np.arange(len(known)) * 0.618034) % 1 - 0.5) * 0.34
        axes.scatter(i + offsets, known, s=16, color=colour, alpha=0.55, linewidths=0, zorder=3)
    axes.set_xticks(range(len(columns)), [REGION_NAMES[region] for region in _DRAW_ORDER])
    axes.set_xlim(-0.6, len(columns) - 0.4)
