"""What a scanner and the preparation of a data set do to an ideal image (equations in `contrast`).

Point spread and slice thickness, fractions of a voxel of misregistration, contrast curve, receive field (smooth, and
that of surface coils), noise that resampling has correlated (magnitude of a complex signal: Gudbjartsson and Patz,
MRM 1995), partial volume at the edge of the brain mask, whole numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medical.brats_seg.simulator.anatomy import F32, Axes, Smooth


def acquire(
    rng: np.random.Generator, image: F32, modality: int, brain: NDArray[np.bool_], edge_mm: F32, axes: Axes
) -> F32:
    """z-like signal → raw units: point spread, shift, contrast curve, bias field, noise, integer values."""
    step = [float(a[1] - a[0]) for a in axes]
    blur = np.full(3, rng.uniform(0.25, 0.75))
    thick = rng.random() < (0.45, 0.15, 0.3, 0.4)[modality]
    slab = int(rng.choice([2, 2, 2, 2, 1, 0]))
    if thick:
        blur[slab] = rng.uniform(1.2, 2.4)
    image = ndimage.gaussian_filter(image, blur / step, truncate=3)
    for axis in range(3):
        image = _shifted(image, float(np.clip(rng.normal(0, 0.3), -0.8, 0.8)) / step[axis], axis)
    # A saturating or steepening curve; 0 and the slope there stay.
    bend = np.float32(rng.uniform(-0.05, 0.05))
    image = image + bend * np.clip(image, -4, 4) ** 2
    contrast = rng.uniform(*((0.26, 0.38), (0.24, 0.36), (0.19, 0.27), (0.36, 0.5))[modality])
    signal = np.maximum(1 + np.float32(contrast) * image, np.float32(0.03))
    bias = sum(
        w * Smooth.draw(rng, s).at(axes)
        for w, s in ((rng.uniform(0, 0.09), 90.0), (rng.uniform(0, 0.02), 45.0))
    )
    # Surface coils: brightest under the skull, unevenly so; some series are corrected for it, some hardly.
    coil = rng.uniform(0.0, (0.4, 0.15, 0.2, 0.25)[modality]) if rng.random() < 0.6 else 0.0
    uneven = np.clip(1 + 0.5 * Smooth.draw(rng, 50.0).at(axes), 0, 2)
    bias = bias + coil * uneven * np.exp(-edge_mm / np.float32(rng.uniform(8, 25)))
    signal *= np.exp(np.asarray(bias, np.float32))
    noise = _noise(rng, image.shape, blur, step, thick, slab) * np.float32(contrast * rng.uniform(0.04, 0.16))
    # Magnitude of a complex signal; the second channel is the first read backwards (independent of its neighbour).
    signal = np.hypot(signal + noise, noise[::-1, ::-1, ::-1])
    edge = rng.uniform(0.55, 1.0) if rng.random() < 0.6 else 1.0
    signal *= np.clip(edge_mm / 2.0, 0, 1) * np.float32(1 - edge) + np.float32(edge)
    raw = np.rint(signal * np.float32(rng.uniform(250, 900)))
    return np.where(brain, np.maximum(raw, 1), 0).astype(np.float32)


def _noise(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    blur: NDArray[np.float64],
    step: list[float],
    thick: bool,
    slab: int,
) -> F32:
    """Unit-variance noise, correlated over about the resolution of the scan."""
    white = rng.standard_normal(shape, np.float32)
    width = [float(rng.uniform(0.35, 0.8)) / d for d in step]
    if thick:
        width[slab] = blur[slab] * 0.7 / step[slab]
    smooth = ndimage.gaussian_filter(white, width, truncate=3)
    return smooth / max(float(smooth.std()), 1e-6)


def _shifted(image: F32, by: float, axis: int) -> F32:
    whole = int(np.floor(by))
    part = np.float32(by - whole)
    low = np.roll(image, whole, axis)
    return low + part * (np.roll(low, 1, axis) - low)
