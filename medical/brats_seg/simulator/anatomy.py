"""A reduced copy of the ICBM 152 (2009a, symmetric) template, and heads of many shapes made from it.

The asset holds eight maps (0–1) at 1.5 mm, axes L-P-S like BraTS: grey and white matter probability and T1 average as
published, and five derived here once: the brain mask, ventricles, and from rough MNI coordinates of the usual atlases
the structures that enhance in every healthy brain (venous sinuses and basal arteries, choroid plexus, dural folds).
Rebuild it as ``assets/README.md`` says; terms in ``assets/LICENSE-icbm152.txt``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

F32 = NDArray[np.float32]
Axes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
ASSET = Path(__file__).parent / "assets" / "icbm152_2009a_1p5mm.npz"
STEP_MM = 1.5
FIELD_MM = (240.0, 240.0, 155.0)
"""Field of view of every BraTS case."""
MAPS = ("gm", "wm", "t1", "brain", "ventricle", "vessel", "choroid", "dura")
_LEVELS = {"gm": 24, "wm": 24, "t1": 24, "brain": 6, "ventricle": 8, "vessel": 5, "choroid": 5, "dura": 5}
_T1_GREY = {"csf": 70.0, "gm": 167.0, "wm": 222.0}
"""Median of the template's T1 average in pure voxels."""
_CONTROL_MM = ((45.0, 3.0), (16.0, 1.0))
"""Elastic deformation: (distance of control points, standard deviation of each component), mm."""

# Polylines in MNI mm and radius in mm; x is mirrored.
_VESSELS = (
    (
        [(0, -30, -52), (0, -22, -35), (0, -14, -20), (8, -20, -18), (16, -30, -12)],
        1.5,
    ),  # basilar, posterior cerebral
    (
        [(13, 0, -24), (14, 0, -18), (26, 2, -20), (38, 2, -16), (42, 2, -4), (41, -14, 6)],
        1.6,
    ),  # carotid, middle c.
    ([(14, 0, -18), (3, 10, -16), (1.5, 28, -6), (1.5, 36, 8), (1.5, 22, 30)], 1.2),  # anterior cerebral
    ([(0, -36, 4), (0, -46, 6), (0, -62, 2), (0, -80, -6), (0, -98, -14)], 2.2),  # Galen, straight sinus
    ([(3, -4, 14), (3, -22, 14), (1, -36, 5)], 1.1),  # internal cerebral
    ([(2, -98, -14), (24, -94, -18), (44, -76, -26), (56, -54, -34)], 3.0),  # transverse sinus
    ([(22, -14, -18), (26, -26, -10), (14, -38, -2), (1, -40, 4)], 1.1),  # basal vein
)
_CHOROID = (
    ([(5, -8, 20), (14, -26, 20), (22, -40, 14)], 1.6),
    ([(22, -40, 14), (26, -42, 6)], 3.6),
    ([(26, -42, 6), (31, -30, -10)], 1.8),
    ([(0, -44, -32), (4, -46, -38)], 1.6),
)


# ---------------------------------------------------------------- smooth random fields


@dataclass(frozen=True)
class Smooth:
    """A random field with unit variance over the field of view: cubic B-splines on a grid of normal numbers."""

    knots: F32
    step_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator, step_mm: float) -> Smooth:
        shape = [int(np.ceil(n / step_mm)) + 4 for n in FIELD_MM]
        knots = rng.standard_normal(shape, np.float32)
        return cls(knots / np.float32((151 / 315) ** 1.5), step_mm)

    def at(self, axes: Axes) -> F32:
        """Values on the grid of the three axes, mm."""
        out = self.knots
        for axis, places in enumerate(axes):
            basis = _spline(places / self.step_mm + 1, self.knots.shape[axis])
            out = np.moveaxis(np.tensordot(basis, out, ([1], [axis])), 0, axis)
        return np.ascontiguousarray(out)


def _spline(at: NDArray[np.float64], knots: int) -> F32:
    away = np.abs(at[:, None] - np.arange(knots)[None])
    near = (4 - 6 * away**2 + 3 * away**3) / 6
    return np.where(away < 1, near, np.where(away < 2, (2 - away) ** 3 / 6, 0)).astype(np.float32)


# ---------------------------------------------------------------- the head


@cache
def template() -> dict[str, F32]:
    """The asset's maps, with ``rim``: nearness to the lateral ventricles."""
    with np.load(ASSET, allow_pickle=False) as stored:
        packed = stored["maps"]
    maps = {name: packed[i].astype(np.float32) / _LEVELS[name] for i, name in enumerate(MAPS)}
    maps["rim"] = ndimage.gaussian_filter(maps["ventricle"], 2.5 / STEP_MM)
    pure = maps["gm"] * _T1_GREY["gm"] + maps["wm"] * _T1_GREY["wm"]
    pure += np.maximum(1 - maps["gm"] - maps["wm"], 0) * _T1_GREY["csf"]
    # What tissue fractions alone do not explain: nuclei, brain stem, cortical layers. In units of the GM–WM gap.
    maps["detail"] = (
        (maps["t1"] * 255 - pure)
        / (_T1_GREY["wm"] - _T1_GREY["gm"])
        * ((maps["brain"] > 0.9) & (maps["t1"] > 0.2))
    )
    return maps


@dataclass(frozen=True)
class Head:
    """One random head: where each point of the field of view (mm) lies in the template (voxels)."""

    turn: NDArray[np.float64]
    centre_mm: NDArray[np.float64]
    elastic: tuple[tuple[Smooth, ...], ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Head:
        """Rotation ± 8°, size 0.93 ± 8 % per axis, position as of brains in the SRI24 frame of BraTS."""
        angles = np.radians(rng.uniform(-8, 8, 3)) * (0.6, 1.0, 1.0)
        turn = np.eye(3)
        for axis, angle in enumerate(angles):
            a, b = [i for i in range(3) if i != axis]
            step = np.eye(3)
            step[a, a] = step[b, b] = np.cos(angle)
            step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
            turn = turn @ step
        size = 0.93 * rng.uniform(0.96, 1.04) * rng.uniform(0.96, 1.04, 3)
        centre = np.array([119.7, 127.0, 76.0]) + rng.normal(0, (1.5, 3.0, 2.5))
        elastic = tuple(tuple(Smooth.draw(rng, step) for _ in range(3)) for step, _ in _CONTROL_MM)
        return cls(turn / size, centre, elastic)

    def places(self, axes: Axes, push: F32 | None = None) -> F32:
        """Template voxels (3, D, H, W) of the grid's points; `push` (3, D, H, W) is added to the points, mm."""
        brain = template()["brain"]
        middle = (np.array(brain.shape) - 1) / 2
        points = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
        if push is not None:
            points += push
        points -= self.centre_mm.reshape(3, 1, 1, 1).astype(np.float32)
        out = np.tensordot((self.turn / STEP_MM).astype(np.float32), points, 1)
        for fields, (_, deviation) in zip(self.elastic, _CONTROL_MM, strict=True):
            for axis, smooth in enumerate(fields):
                out[axis] += smooth.at(axes) * np.float32(deviation / STEP_MM)
        return out + middle.reshape(3, 1, 1, 1).astype(np.float32)

    def box(self, axes: Axes) -> tuple[slice, slice, slice]:
        """The part of the grid that holds the brain."""
        coarse: Axes = tuple(np.arange(0.0, n, 4.0) for n in FIELD_MM)  # type: ignore[assignment]
        inside = pick("brain", self.places(coarse)) > 0.05
        out = []
        for axis, places in enumerate(axes):
            hit = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis))) * 4.0
            keep = np.flatnonzero((places >= hit[0] - 5) & (places <= hit[-1] + 5))
            out.append(slice(int(keep[0]), int(keep[-1]) + 1))
        return out[0], out[1], out[2]


def pick(name: str, places: F32) -> F32:
    """The template's map `name` at `places` (3, …), linear; 0 outside."""
    return ndimage.map_coordinates(template()[name], places, order=1, output=np.float32)


# ---------------------------------------------------------------- building the asset


def build(source: Path, out: Path) -> None:
    """Write the reduced asset from the ``mni_icbm152_{t1,gm,wm}_tal_nlin_sym_09a_converted.nii.gz`` in `source`."""
    import nibabel as nib

    full: dict[str, F32] = {}
    for name in ("gm", "wm", "t1"):
        image: Any = nib.load(source / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
        full[name] = np.asarray(image.dataobj, np.float32) / np.float32(255)
        affine = image.affine
    mask = ndimage.binary_opening(full["t1"] > 0, iterations=3)
    parts, _ = ndimage.label(mask)
    mask = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    # The published brain leaves the basal cisterns out; skull-stripped scans keep them.
    wide = np.pad(mask, 12)
    mask |= ndimage.binary_closing(wide, ndimage.generate_binary_structure(3, 1), iterations=9)[
        12:-12, 12:-12, 12:-12
    ]
    mask = np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(mask, 2, 0)], axis=2)
    full["brain"] = mask.astype(np.float32)
    csf = np.clip(1 - full["gm"] - full["wm"], 0, 1) * full["brain"]
    points = np.stack(np.meshgrid(*(np.arange(n) for n in mask.shape), indexing="ij"), -1) + affine[:3, 3]
    full |= _structures(csf, mask, points)
    box = ndimage.find_objects(ndimage.binary_dilation(mask, iterations=3).astype(np.uint8))[0]
    packed = []
    for name in MAPS:
        # RAS → LPS, then reduced with the blur that the coarser grid needs.
        part = ndimage.gaussian_filter(
            full[name][box][::-1, ::-1], 0.4 if name in ("gm", "wm", "t1") else 0.6
        )
        part = ndimage.zoom(part, 1 / STEP_MM, order=1, grid_mode=True, mode="nearest")
        packed.append(np.rint(np.clip(part, 0, 1) * _LEVELS[name]).astype(np.uint8))
    np.savez_compressed(out, maps=np.stack(packed))


def _structures(csf: F32, mask: NDArray[np.bool_], points: NDArray[np.float64]) -> dict[str, F32]:
    x, y, z = (np.abs(points[..., 0]), points[..., 1], points[..., 2])
    depth = ndimage.distance_transform_edt(mask)
    inner = (csf > 0.35) & (depth > 12) & (x < 40) & (y > -72) & (y < 40) & (z > -22) & (z < 32)
    inner &= ~((z < 2) & (x < 14) & (y > -60))
    parts, _ = ndimage.label(inner)
    inner = np.isin(parts, np.flatnonzero(np.bincount(parts.ravel())[1:] > 400) + 1)
    ventricle = (ndimage.gaussian_filter(inner.astype(np.float32), 1.0) > 0.15) * csf
    vessel = _tubes(_VESSELS, points)
    # Superior sagittal sinus: under the mask's upper edge in the midline, wider behind.
    outer = (depth > 0) & (x < 4) & ((z > 0) | (y < -70)) & (y < 60)
    width = np.interp(y, [-95, -40, 50], [4.5, 3.2, 1.5])
    vessel = np.maximum(vessel, outer * (depth < width + 1) * (x < width))
    falx = (x < 1.2) & (csf > 0.12) & (z > 12)
    tent = (csf > 0.25) & (y < -36) & (z < 8) & (z > -36) & (z > -40 - 0.45 * (y + 36)) & (depth > 3)
    choroid = _tubes(_CHOROID, points) * np.clip(csf * 2, 0, 1)
    dura = np.maximum(falx, tent).astype(np.float32)
    return {"ventricle": ventricle, "vessel": vessel, "choroid": choroid, "dura": dura}


def _tubes(lines: Sequence[tuple[Sequence[tuple[float, ...]], float]], points: NDArray[np.float64]) -> F32:
    out = np.zeros(points.shape[:3], np.float32)
    at = points.copy()
    at[..., 0] = np.abs(at[..., 0])
    for line, radius in lines:
        for start, stop in itertools.pairwise(line):
            a, b = np.asarray(start, float), np.asarray(stop, float)
            along = np.clip(((at - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
            away = np.linalg.norm(at - a - along[..., None] * (b - a), axis=-1)
            out = np.maximum(out, np.clip(radius + 0.5 - away, 0, 1)).astype(np.float32)
    return out


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
