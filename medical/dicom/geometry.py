"""From planes to a grid: order along the normal, one spacing, no gap, no tilt; refusals say where and how many mm.

The spacing is that of the positions. SliceThickness and SpacingBetweenSlices are not read: they are often wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medical.dicom.slices import Slice
from shared.errors import ItemError

_DIRECTION = 1e-3
"""Largest difference of direction cosines within a series."""
_SAME_MM = 0.01
"""Positions nearer than this are one."""
_UNEVEN = 0.02
"""Share of the spacing by which gaps may differ: positions are written with few digits."""
_SIDEWAYS_MM = 0.1
_ONE_MEND = "keep one volume a series"


def stack(slices: Sequence[Slice], where: Path, name: str) -> tuple[list[Slice], NDArray[np.float64]]:
    """The slices in ascending order along their normal, and voxel (column, row, slice) → mm in RAS, (4, 4).

    Raises `ItemError`: `where` and `name` say which series it is.
    """
    if len(slices) < 2:
        raise ItemError(where, f"{name}: 1 image", "a volume of at least 2", "add the missing images")
    _one_kind(slices, where, name)
    first = slices[0]
    normal = np.cross(first.right, first.down)
    ordered = sorted(slices, key=lambda plane: float(plane.position @ normal))
    at = np.array([plane.position @ normal for plane in ordered])
    step = _even(at, ordered, where, name)
    _upright(ordered, normal, at, where, name)
    affine = np.eye(4)
    affine[:3, 0] = first.right * first.spacing[0]
    affine[:3, 1] = first.down * first.spacing[1]
    affine[:3, 2] = normal * step
    affine[:3, 3] = ordered[0].position
    return ordered, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _one_kind(slices: Sequence[Slice], where: Path, name: str) -> None:
    # The commonest kind is the series', so that the odd image out is named whatever the order of the files.
    kinds = [(p.shape, *np.round((*p.spacing, *p.right, *p.down), 2).tolist()) for p in slices]
    first = slices[kinds.index(Counter(kinds).most_common(1)[0][0])]
    for plane in slices:
        place = f"{name}: {_named(plane)}"
        if plane.shape != first.shape:
            found = f"{place} has {plane.shape[0]}×{plane.shape[1]} pixels, others {first.shape[0]}×{first.shape[1]}"
            raise ItemError(where, found, "one size", _ONE_MEND, "Rows")
        if not np.allclose(plane.spacing, first.spacing, atol=1e-3):
            found = f"{place} has pixels of {_mm(plane.spacing)} mm, others {_mm(first.spacing)} mm"
            raise ItemError(where, found, "one spacing", _ONE_MEND, "PixelSpacing")
        turned = max(np.abs(plane.right - first.right).max(), np.abs(plane.down - first.down).max())
        if turned > _DIRECTION:
            position = ", ".join(f"{value:.2f}" for value in plane.position)
            found = f"{place} at ({position}) mm is turned against the others"
            raise ItemError(where, found, "one orientation", _ONE_MEND, "ImageOrientationPatient")


def _even(at: NDArray[np.float64], ordered: Sequence[Slice], where: Path, name: str) -> float:
    """The spacing, mm, of sorted positions `at`. Raises `ItemError` for doubles, gaps and mixtures."""
    gaps = np.diff(at)
    double = np.flatnonzero(gaps < _SAME_MM)
    if len(double):
        index = int(double[0])
        pair = f"{_named(ordered[index])} and {_named(ordered[index + 1])}"
        found = f"{name}: two images at {at[index]:.2f} mm ({pair}), {len(double)} such in all"
        mend = "remove copies; split echoes and time points into series"
        raise ItemError(where, found, "one image a position", mend, "ImagePositionPatient")
    # The smallest spacing that occurs often; the median would be misled by a series that is half gaps.
    rounded = Counter(np.round(gaps, 2).tolist())
    usual = float(min(gap for gap, count in rounded.items() if count * 4 >= max(rounded.values())))
    spacing = float(np.median(gaps[np.abs(gaps - usual) <= _UNEVEN * usual + _SAME_MM]))
    odd = np.flatnonzero(np.abs(gaps - spacing) > _UNEVEN * spacing + _SAME_MM)
    if not len(odd):
        return float((at[-1] - at[0]) / len(gaps))
    index = int(odd[0])
    missing = round(gaps[index] / spacing) - 1
    whole = abs(gaps[odd] / spacing - np.round(gaps[odd] / spacing)).max() < 0.05
    if whole and missing >= 1 and len(odd) * 4 <= len(gaps):
        found = f"{name}: gap of {gaps[index]:.2f} mm after {at[index]:.2f} mm ({missing} missing at {spacing:.2f} mm)"
        if len(odd) > 1:
            found += f", {len(odd)} gaps in all"
        raise ItemError(where, found, "every slice", "export the series again", "ImagePositionPatient")
    found = f"{name}: two spacings, {spacing:.2f} mm and {gaps[index]:.2f} mm from {at[index]:.2f} mm on"
    raise ItemError(where, found, "one spacing", _ONE_MEND, "ImagePositionPatient")


def _upright(
    ordered: Sequence[Slice], normal: NDArray[np.float64], at: NDArray[np.float64], where: Path, name: str
) -> None:
    """Refuse slices that wander sideways: a tilted gantry, or one slice out of line."""
    positions = np.stack([plane.position for plane in ordered])
    sideways = positions - positions[0] - np.outer(at - at[0], normal)
    apart = np.linalg.norm(sideways, axis=1)
    worst = int(apart.argmax())
    if apart[worst] <= _SIDEWAYS_MM:
        return
    line = np.outer((at - at[0]) / (at[-1] - at[0]), sideways[-1])
    if apart[-1] > _SIDEWAYS_MM and np.linalg.norm(sideways - line, axis=1).max() <= _SIDEWAYS_MM:
        degrees = np.degrees(np.arctan2(apart[-1], at[-1] - at[0]))
        found = f"{name}: slices shift sideways by {apart[-1]:.2f} mm (tilt {degrees:.1f}°)"
        found += f" from {at[0]:.2f} to {at[-1]:.2f} mm"
        raise ItemError(where, found, "an untilted gantry", "resample with dcm2niix", "ImagePositionPatient")
    found = f"{name}: the slice at {at[worst]:.2f} mm ({_named(ordered[worst])}) lies {apart[worst]:.2f} mm sideways"
    raise ItemError(where, found, "slices in line", _ONE_MEND, "ImagePositionPatient")


def _named(plane: Slice) -> str:
    return plane.path.name if plane.frame is None else f"{plane.path.name} frame {plane.frame + 1}"


def _mm(pair: tuple[float, float]) -> str:
    return f"{pair[0]:g}×{pair[1]:g}"
