"""Pictures of a case and of an evaluation, for a radiologist's eye: QC picture, close-ups, score plots."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medical.brats_seg.config import REGIONS
from medical.brats_seg.metrics import Mask, bounding_box
from medical.brats_seg.panels import (
    AXES,
    DRAW_ORDER,
    MARGIN_MM,
    MODALITY_NAMES,
    PLANES,
    REGION_COLOURS,
    REGION_NAMES,
    Plane,
    View,
    draw_panel,
    make_view,
)
from shared.plots.style import DARK, dress, new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AMBER = "#F2B84B"
_TRUTH_KEY = "#c8ced6"
_DASHED = (0, (2.2, 1.6))
_OBLIQUE_DEGREES = 5.0


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
        _write(figure, 0.2, y + cell * tall / 2, label, 9, DARK.muted, rotation=90, ha="center")
    for i, line in enumerate(lines):
        _write(figure, left, bottom - 0.2 - 0.2 * i, line, 9, _AMBER)
    note = "Radiological view: patient's right on the left. Research use only."
    _write(figure, width - 0.1, 0.13, note, 8, DARK.muted, ha="right")
    return figure


def _write(
    figure: Figure, x: float, y: float, text: str, points: float, colour: str = DARK.text, **style: Any
) -> None:
    """Text at `x`, `y` inches from the figure's lower left corner."""
    width, height = figure.get_size_inches()
    # Names of cases are data: a "$" in one must not start a formula.
    written = figure.text(x / width, y / height, text, va="center", parse_math=False, **style)
    written.set(color=colour, fontsize=points)


def _panel_height(view: View, plane: Plane) -> float:
    """Height of a panel over its width, bounded so that a stack of three slices still has a visible panel."""
    _, across, up = AXES[plane]
    size = [(view.brain[a].stop - view.brain[a].start) * view.spacing_mm[a] for a in (across, up)]
    return float(min(max((size[1] + 2 * MARGIN_MM) / (size[0] + 2 * MARGIN_MM), 0.35), 1.4))


def _position(view: View, plane: Plane) -> str:
    """Where the plane lies in scanner coordinates, such as ``I 23 mm``."""
    axis = AXES[plane][0]
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
    _write(figure, 0.42, height - 0.24, _shortened(title, 90), 13, weight="bold")
    voxel = " × ".join(f"{mm:.3g}" for mm in view.spacing_mm)
    _write(figure, width - 0.1, height - 0.24, f"voxel {voxel} mm", 9, DARK.muted, ha="right")
    x = 0.42
    for region in DRAW_ORDER:
        text = f"{REGION_NAMES[region]} ({region.upper()})"
        if volumes_ml is not None and region in volumes_ml:
            text += f"  {volumes_ml[region]:.1f} mL"
        x = _key(figure, x, text, REGION_COLOURS[region], "solid", size)
    if view.truth is not None:
        _key(figure, x, "reference", _TRUTH_KEY, _DASHED, size)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


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
    _write(figure, x + 0.38, height - down, text, 9.5)
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
        _write(figure, left, y + cell + 0.15, _shortened(label, 130), 10)
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
    for region in DRAW_ORDER:
        x = _key(figure, x, REGION_NAMES[region], REGION_COLOURS[region], "solid", size, 0.22)
    if truth:
        _key(figure, x, "reference", _TRUTH_KEY, _DASHED, size, 0.22)


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
    figure = new_figure(7.6, 3.3)
    for i, (name, title) in enumerate((("dice", "Dice"), ("hd95", "HD95, mm"))):
        axes = figure.add_subplot(1, 2, i + 1)
        columns = [[float(row[f"{name}_{region}"]) for row in rows] for region in DRAW_ORDER]
        _boxes(axes, columns)
        dress(axes, title)
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
        offsets = ((np.arange(len(known)) * 0.618034 + 0.5) % 1 - 0.5) * 0.34
        axes.scatter(i + offsets, known, s=16, color=colour, alpha=0.55, linewidths=0, zorder=3)
    axes.set_xticks(range(len(columns)), [REGION_NAMES[region].replace(" ", "\n") for region in DRAW_ORDER])
    axes.set_xlim(-0.6, len(columns) - 0.4)
