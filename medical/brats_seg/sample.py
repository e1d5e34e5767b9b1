"""Whole multi-modal heads with tumours, made on real anatomy from nothing but a seed.

Anatomy comes from the ICBM 152 template (`simulator.anatomy`), tumours from real label maps or by rule
(`simulator.lesions`), intensities from a model calibrated on real patients' statistics (`simulator.contrast`). The
same seed gives the same bytes, and the same head at every voxel size up to noise. It is training material; it is no
substitute for patients.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medical.brats_seg.simulator.anatomy import F32, FIELD_MM, Axes, Head, Smooth, pick
from medical.brats_seg.simulator.contrast import Tissue, paint
from medical.brats_seg.simulator.lesions import CORE, ENHANCING, OEDEMA, Label, made, moved, push
from shared.io.atomic import atomic_path

MODALITIES = ("flair", "t1ce", "t1", "t2")
_SMALL_MM = (2.8, 2.8, 2.8)
"""Voxels of the example cases on disk."""


@dataclass(frozen=True)
class SampleCase:
    """One examination. `images` (4, D, H, W) in the order flair, t1ce, t1, t2: raw scanner units, 0 outside the
    brain; `label` (D, H, W) in the brats2021 convention; `affine` voxel → mm, axes L-P-S as in BraTS."""

    images: NDArray[np.float32]
    label: NDArray[np.uint8]
    affine: NDArray[np.float64]


def make_case(
    seed: int,
    *,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    label_map: NDArray[np.uint8] | None = None,
    lesions: bool = True,
) -> SampleCase:
    """One head over BraTS' field of view of 240 × 240 × 155 mm.

    `label_map`: a whole-head label map (0, 1, 2, 4; any shape over the same field) to move and paint; without one,
    tumours are made by rule. ``lesions=False`` gives a healthy head. Raises ValueError for a bad spacing or map.
    """
    if not all(0.5 <= s <= 10 for s in spacing_mm):
        raise ValueError(f"spacing {spacing_mm}; 0.5 to 10 mm wanted")
    shape = tuple(int(np.floor(n / s + 0.5)) for n, s in zip(FIELD_MM, spacing_mm, strict=True))
    whole: Axes = tuple((np.arange(n) + 0.5) * s - 0.5 for n, s in zip(shape, spacing_mm, strict=True))  # type: ignore[assignment]
    for_head, for_lesion, for_tissue, for_image = np.random.default_rng(seed).spawn(4)
    head = Head.draw(for_head)
    box = head.box(whole)
    axes: Axes = tuple(a[b] for a, b in zip(whole, box, strict=True))  # type: ignore[assignment]
    places = head.places(axes)
    soft = pick("brain", places)
    label = np.zeros(soft.shape, np.uint8)
    if lesions:
        label = (
            made(for_lesion, head, axes, pick("wm", places), soft)
            if label_map is None
            else moved(label_map, for_lesion, axes)
        )
        moving = push(label, for_lesion, axes)
        if moving is not None:
            places = head.places(axes, moving)
    tissue = _tissue(for_tissue, soft, places, axes)
    _settle(for_tissue, label, tissue, axes)
    images = np.zeros((4, *shape), np.float32)
    images[:, box[0], box[1], box[2]] = paint(for_image, tissue, label, axes)
    full = np.zeros(shape, np.uint8)
    full[box] = label
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    affine[1, 3] = 239.0
    return SampleCase(images, full, affine)


def _settle(rng: np.random.Generator, label: Label, tissue: Tissue, axes: Axes) -> None:
    """Keep the label within the brain and oedema out of open fluid; swell what lies near. Works in place."""
    label[~tissue.brain] = 0
    label[(label == OEDEMA) & ((tissue.maps["ventricle"] > 0.45) | (tissue.fluid > 0.8))] = 0
    if not label.any():
        return
    step = [float(a[1] - a[0]) for a in axes]
    core = (label == CORE) | (label == ENHANCING)
    # Swelling closes the sulci around a tumour, and nothing of the old anatomy is left inside its core.
    near = np.clip(
        3 * ndimage.gaussian_filter((label > 0).astype(np.float32), [8.0 / d for d in step], truncate=2),
        0,
        1,
    )
    near *= np.float32(rng.uniform(0.4, 0.95)) * (
        1 - np.float32(rng.uniform(0.1, 0.9)) * tissue.maps["ventricle"]
    )
    closed = tissue.fluid * np.where(core, np.float32(0.9), near)
    tissue.fluid[:] -= closed
    tissue.grey[:] += closed
    for name in ("vessel", "choroid", "dura"):
        tissue.maps[name][core] *= 0.2


def _tissue(rng: np.random.Generator, soft: F32, places: F32, axes: Axes) -> Tissue:
    """Fractions from the template's probabilities, sharpened to one person's and varied.

    The template's maps are averages over 152 people: raising them to a power undoes part of the averaging, and noise
    of a few mm in the exponent gives sulci and the cortical border a course of their own.
    """
    maps = {name: pick(name, places) for name in ("ventricle", "vessel", "choroid", "dura", "rim", "detail")}
    step = [float(a[1] - a[0]) for a in axes]
    edge = (
        np.float32(0.5)
        + np.float32(0.12) * Smooth.draw(rng, 12.0).at(axes)
        + np.float32(rng.uniform(-0.2, 0.2))
    )
    brain = soft > np.clip(edge, 0.15, 0.85)
    depth = ndimage.distance_transform_edt(brain, sampling=step).astype(np.float32)
    grey, white = pick("gm", places), pick("wm", places)
    fluid = np.clip(1 - grey - white, 0, 1)
    fine = max(3.0, *step)
    wave = [Smooth.draw(rng, fine).at(axes) * np.float32(0.45) for _ in range(2)]
    fluid *= np.exp(wave[0]) * np.float32(np.exp(rng.normal(0.0, 0.4)))
    # Stripping follows the cortex: of the fluid outside it, patches are left.
    patches = np.clip(0.5 + 0.5 * Smooth.draw(rng, 10.0).at(axes) + np.float32(rng.uniform(-0.6, 0.3)), 0, 1)
    fluid *= np.maximum(np.clip(depth / 4 - 0.1, 0, 1), patches)
    # Ventricles grow with age.
    fluid = np.maximum(fluid, np.clip((maps["rim"] - np.float32(rng.uniform(0.4, 0.9))) * 6, 0, 1))
    white *= np.exp(wave[1])
    power = np.float32(rng.uniform(1.6, 2.4))
    fluid, grey, white = fluid**power, grey**power, white**power
    total = fluid + grey + white + np.float32(1e-4)
    return Tissue(fluid / total, grey / total, white / total, brain, depth, maps)


# ---------------------------------------------------------------- example cases on disk


def write_case(folder: Path, name: str, case: SampleCase) -> Path:
    """`case` as the BraTS folder ``folder/name``: int16 images and the label map."""
    path = Path(folder) / name
    path.mkdir(parents=True, exist_ok=True)
    for image, part in zip(case.images, MODALITIES, strict=True):
        _save(path / f"{name}_{part}.nii.gz", image.astype(np.int16), case.affine)
    _save(path / f"{name}_seg.nii.gz", case.label, case.affine)
    return path


def write_cases(folder: Path, n: int, seed: int) -> list[Path]:
    """`n` labelled case folders in BraTS 2021 naming under `folder`, voxels of 2.8 mm. Equal seeds, equal bytes."""
    return [
        write_case(
            folder,
            f"BraTS2021_9{(seed * 101 + number) % 10_000:04d}",
            make_case(seed * 100_003 + number, spacing_mm=_SMALL_MM),
        )
        for number in range(n)
    ]


def _save(path: Path, data: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    import nibabel as nib

    image = nib.Nifti1Image(data, affine)  # type: ignore[attr-defined,no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    with atomic_path(path) as temp:
        temp.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))
