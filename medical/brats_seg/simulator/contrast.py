"""From tissue fractions and labels to the four images of one examination.

With fractions f of cerebrospinal fluid, grey and white matter, and z-score means μ drawn per case and modality m,

    s_m  = Σ_t f_t μ_tm + detail + vessels, meninges, plexus, white-matter lesions
    s'_m = (1 − Σ_l a_l) (s_m − mean) / sd + Σ_l a_l (μ_lm + texture_lm)    l = core, oedema, enhancing; a_l soft maps
    raw  = M · max(1 + cv · G_m * γ(s'_m), 0) · bias, then Rician noise that is correlated like resampled scans' noise

G is the point spread (in-plane blur, thick slices in some series, shifted by a fraction of a voxel per modality).
The units are those of training: z-scores over the brain. Means, deviations and correlations of the tumour's classes
and the spread of grey and white matter were measured per patient on 224 labelled cubes of BraTS 2020 (robust, label
by label; three-class Gaussian mixtures for normal tissue); they are aggregate numbers only. Pure fluid is set by hand,
since few cubes hold any. The covariance is separable: class by class (ACROSS) times modality by modality (ALONG).
Order of modalities everywhere: flair, t1ce, t1, t2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medical.brats_seg.simulator.anatomy import F32, Axes, Smooth
from medical.brats_seg.simulator.lesions import CORE, ENHANCING, OEDEMA, Label
from medical.brats_seg.simulator.scanner import acquire

FLAIR, T1CE, T1, T2 = range(4)
CLASSES = ("gm", "wm", "core", "oedema", "enhancing")
MEAN = np.array(
    [
        [0.30, -0.05, -0.28, 0.12],
        [-0.08, 0.42, 0.78, -0.58],
        [1.62, -0.58, -0.45, 1.70],
        [1.80, -0.10, 0.12, 0.82],
        [1.96, 2.25, 0.00, 1.06],
    ]
)
DEVIATION = np.array(
    [
        [0.36, 0.22, 0.25, 0.25],
        [0.34, 0.22, 0.22, 0.15],
        [1.03, 0.60, 0.60, 0.90],
        [0.64, 0.42, 0.42, 0.54],
        [0.92, 0.72, 0.50, 0.56],
    ]
)
ACROSS = np.array(
    [
        [1.00, 0.00, 0.14, 0.14, 0.22],
        [0.00, 1.00, 0.06, 0.19, 0.21],
        [0.14, 0.06, 1.00, 0.30, 0.63],
        [0.14, 0.19, 0.30, 1.00, 0.40],
        [0.22, 0.21, 0.63, 0.40, 1.00],
    ]
)
ALONG = np.array(
    [
        [1.00, 0.02, -0.13, 0.47],
        [0.02, 1.00, 0.54, -0.12],
        [-0.13, 0.54, 1.00, -0.16],
        [0.47, -0.12, -0.16, 1.00],
    ]
)
FLUID = np.array([[-1.9, -1.7, -2.4, 3.2], [0.4, 0.4, 0.4, 0.8]])
WITHIN = np.array([[0.85, 0.50, 0.45, 0.75], [0.62, 0.36, 0.44, 0.64], [0.86, 0.95, 0.50, 0.64]])
"""Texture's deviation within core, oedema and enhancing tissue."""
WATER = np.array([[0.4, -0.1, -0.1, 0.6], [0.8, -0.6, -0.6, 0.85], [0.8, 0.2, 0.0, 0.8]])
"""Share of that texture that all modalities have in common (more water: brighter FLAIR and T2, darker T1)."""
FAT = np.array([[0.6, 0.9, 0.9, -0.2], [0.0, 0.75, 0.75, 0.0], [0.0, 0.1, 0.3, 0.1]])
"""The same for a second texture, that of the two T1-weighted images."""
DETAIL = np.array([-0.25, 0.45, 0.75, -0.35])
"""How the template's T1 detail shows in each modality, z per GM–WM gap of the template."""


@dataclass(frozen=True)
class Tissue:
    """Fractions and structures of one head on one grid (D, H, W each)."""

    fluid: F32
    grey: F32
    white: F32
    brain: NDArray[np.bool_]
    edge_mm: F32
    """Depth under the brain mask's surface."""
    maps: dict[str, F32]


def draw_means(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means (5, 4) of `CLASSES` and (4,) of fluid, z-scores; orders that never reverse are kept."""
    noise = np.linalg.cholesky(ACROSS) @ rng.standard_normal((5, 4)) @ np.linalg.cholesky(ALONG).T
    means = MEAN + DEVIATION * np.clip(noise, -2.2, 2.2)
    fluid = FLUID[0] + FLUID[1] * np.clip(rng.standard_normal(4), -2, 2)
    grey, white, core, oedema, enhancing = means
    white[T1] = max(white[T1], grey[T1] + 0.45)
    white[T1CE] = max(white[T1CE], grey[T1CE] + 0.15)
    white[T2] = min(white[T2], grey[T2] - 0.3)
    grey[FLAIR] = max(grey[FLAIR], white[FLAIR] - 0.05)
    enhancing[T1CE] = max(enhancing[T1CE], core[T1CE] + 0.7, oedema[T1CE] + 0.7)
    return means, fluid


def paint(rng: np.random.Generator, tissue: Tissue, label: Label, axes: Axes) -> F32:
    """The four images (4, D, H, W) in scanner units, 0 outside the brain."""
    means, fluid = draw_means(rng)
    extras = _extras(rng, tissue, axes)
    shared = Smooth.draw(rng, 14.0).at(axes)
    solid = 1 - tissue.fluid
    lesions = _lesions(rng, label, axes, tissue)
    shares = np.array([float((label[tissue.brain] == v).mean()) for v in (CORE, OEDEMA, ENHANCING)])
    out = np.zeros((4, *label.shape), np.float32)
    for m in range(4):
        image = tissue.fluid * np.float32(fluid[m])
        image += tissue.grey * np.float32(means[0, m]) + tissue.white * np.float32(means[1, m])
        image += tissue.maps["detail"] * np.float32(DETAIL[m] * rng.uniform(0.5, 1.3)) * solid
        image += extras[m]
        image += (0.10 * shared + 0.08 * Smooth.draw(rng, 9.0).at(axes)) * solid
        middle, scale = _z_scale(image[tissue.brain & (label == 0)], shares, means[2:, m], WITHIN[:, m])
        image = (image - np.float32(middle)) / np.float32(scale)
        grey, white = (means[:2, m] - middle) / scale
        targets = _visible(means[2:, m], m, grey, white)
        for lesion in lesions:
            _add_lesion(rng, image, lesion, targets[lesion.row], m)
        _level(image, lesions, targets)
        out[m] = acquire(rng, image, m, tissue.brain, tissue.edge_mm, axes)
    return out


def _z_scale(
    healthy: F32, shares: NDArray[np.float64], means: NDArray[np.float64], within: NDArray[np.float64]
) -> tuple[float, float]:
    """Mean and deviation over the brain once lesions with these z-score `means` are in: the z-scores come out true.

    m = Σ p (m + s z) + (1 − Σ p) m₀ and s² = Σ p s² (z² + w²) + (1 − Σ p) (s₀² + (m₀ − m)²), solved by iteration.
    """
    shares = shares * min(1.0, 0.5 / max(float((shares * (means**2 + within**2)).sum()), 1e-9))
    rest = 1 - shares.sum()
    first, spread = float(healthy.mean()), float(healthy.std())
    middle, scale = first, spread
    for _ in range(20):
        middle = first + scale * float((shares * means).sum()) / rest
        inner = rest * (spread**2 + (first - middle) ** 2)
        scale = float(np.sqrt(inner / (1 - (shares * (means**2 + within**2)).sum())))
    return middle, scale


def _visible(means: NDArray[np.float64], modality: int, grey: float, white: float) -> NDArray[np.float64]:
    """Lesion means that differ from this head's normal tissue where readers would see them differ."""
    core, oedema, enhancing = means
    if modality == FLAIR:
        oedema = max(oedema, grey + 0.5, white + 0.7)
    elif modality == T2:
        oedema, core = max(oedema, grey + 0.1, white + 0.4), max(core, grey + 0.2)
    elif modality == T1CE:
        enhancing = max(enhancing, white + 0.5)
    return np.array([core, oedema, enhancing])


# ---------------------------------------------------------------- what every head has


def _extras(rng: np.random.Generator, tissue: Tissue, axes: Axes) -> list[F32]:
    maps, fluid = tissue.maps, tissue.fluid
    size = fluid.shape
    # Small vessels: beads of fine noise in sulci and just under the surface.
    voxel = max(float(a[1] - a[0]) for a in axes)
    beads = Smooth.draw(rng, max(2.2, voxel)).at(axes)
    surface = np.clip(1 - tissue.edge_mm / 3.5, 0, 1)
    sulcal = np.clip(fluid * 1.6, 0, 1) * (1 - maps["ventricle"])
    small = np.clip(beads - rng.uniform(1.0, 1.8), 0, 1.5) * np.maximum(sulcal, 0.8 * surface)
    patchy = Smooth.draw(rng, 14.0).at(axes)
    rim = surface**2 * np.clip(patchy + rng.uniform(-1.6, 0.3), 0, 1.5)
    folds = maps["dura"] * np.clip(0.7 + 0.6 * patchy + 0.5 * beads, 0, 2)
    bright = rng.uniform(2.0, 6.5)
    gives = [np.zeros(size, np.float32) for _ in range(4)]
    gives[T1CE] += np.float32(bright) * maps["vessel"] + np.float32(bright * 0.7) * maps["choroid"]
    gives[T1CE] += np.float32(bright * rng.uniform(0.4, 1.0)) * small
    gives[T1CE] += np.float32(bright * rng.uniform(0.1, 0.6)) * folds
    gives[T1CE] += np.float32(rng.uniform(0.2, 2.5)) * rim
    inflow = rng.uniform(-0.3, 0.8)
    gives[T1] += (
        np.float32(inflow) * (maps["vessel"] + 0.6 * small) + np.float32(rng.uniform(-0.5, 0.9)) * rim
    )
    void = rng.uniform(0.2, 1.0)
    gives[T2] -= (
        np.float32(3.0 * void) * maps["vessel"] * np.clip(fluid + 0.2, 0, 1) + np.float32(void) * small
    )
    gives[T2] -= np.float32(rng.uniform(0.2, 2.0)) * maps["dura"] * fluid
    gives[FLAIR] += (
        np.float32(rng.uniform(-0.6, 0.8)) * maps["vessel"]
        + np.float32(rng.uniform(0.3, 1.6)) * maps["choroid"]
    )
    gives[FLAIR] += np.float32(rng.uniform(-0.8, 0.9)) * rim
    # Flow in fluid: FLAIR's suppression is incomplete in cisterns and ventricles of some scans.
    gives[FLAIR] += np.clip(patchy, 0, 2) * fluid * np.float32(rng.choice([0.0, 0.6, 1.4], p=[0.5, 0.3, 0.2]))
    _white_matter_lesions(rng, tissue, axes, gives)
    return gives


def _white_matter_lesions(rng: np.random.Generator, tissue: Tissue, axes: Axes, gives: list[F32]) -> None:
    """Periventricular caps and rims in most heads, punctate lesions in some: bright on FLAIR, but no tumour."""
    near = tissue.maps["rim"]
    caps = np.clip(near * 2.2 - 0.15, 0, 1) * tissue.white
    amount = rng.uniform(0.0, 1.3)
    spots = np.zeros_like(near)
    if rng.random() < 0.4:
        blobs = Smooth.draw(rng, float(rng.uniform(4.0, 7.0))).at(axes)
        spots = np.clip((blobs - rng.uniform(2.0, 2.6)) * 3, 0, 1) * np.clip(tissue.white * 1.5 - 0.5, 0, 1)
        spots *= np.clip(tissue.edge_mm / 10 - 1, 0, 1)
    burden = np.float32(amount) * caps + np.float32(rng.uniform(0.6, 1.6)) * spots
    gives[FLAIR] += burden
    gives[T2] += np.float32(0.45) * burden
    gives[T1] -= np.float32(0.3) * burden
    gives[T1CE] -= np.float32(0.25) * burden


# ---------------------------------------------------------------- tumour


@dataclass(frozen=True)
class Lesion:
    """One class of the tumour, within its box: soft weight (0–1), where the label is, and the shared textures."""

    row: int
    box: tuple[slice, ...]
    alpha: F32
    hard: NDArray[np.bool_]
    axes: Axes
    water: F32
    fat: F32


def _lesions(rng: np.random.Generator, label: Label, axes: Axes, tissue: Tissue) -> list[Lesion]:
    """The classes present. Readers' outlines and the image's borders differ by about a voxel: weights are soft."""
    where = ndimage.find_objects((label > 0).astype(np.uint8))
    if not where:
        return []
    step = [float(a[1] - a[0]) for a in axes]
    width = float(rng.uniform(0.4, 1.2))
    box = tuple(
        slice(max(s.start - int(5 / d) - 1, 0), s.stop + int(5 / d) + 1)
        for s, d in zip(where[0], step, strict=True)
    )
    local: Axes = tuple(a[b] for a, b in zip(axes, box, strict=True))  # type: ignore[assignment]
    water, fat = (_texture(rng, local) for _ in range(2))
    out = []
    for row, value in enumerate((CORE, OEDEMA, ENHANCING)):
        hard = label[box] == value
        if not hard.any():
            continue
        soft = width * (1.6 if value == OEDEMA else 0.7)
        alpha = ndimage.gaussian_filter(hard.astype(np.float32), [soft / d for d in step], truncate=3)
        if value == OEDEMA:
            # Anatomy shows through oedema, most where it is grey matter or fluid.
            strength = np.clip(0.92 + 0.12 * Smooth.draw(rng, 12.0).at(local), 0.45, 1)
            alpha *= strength * (1 - 0.25 * tissue.grey[box] - 0.7 * tissue.fluid[box])
        out.append(Lesion(row, box, alpha, hard, local, water, fat))
    return out


def _texture(rng: np.random.Generator, axes: Axes) -> F32:
    """Smooth and fine in equal parts, unit variance."""
    return np.float32(0.71) * (Smooth.draw(rng, 10.0).at(axes) + Smooth.draw(rng, 3.5).at(axes))


def _add_lesion(rng: np.random.Generator, image: F32, lesion: Lesion, mean: float, modality: int) -> None:
    """Blend one class into `image`. Works in place."""
    row, part = lesion.row, image[lesion.box]
    water, fat = WATER[row, modality], FAT[row, modality]
    texture = np.float32(water) * lesion.water + np.float32(fat) * lesion.fat
    texture += np.float32(np.sqrt(max(1 - water**2 - fat**2, 0))) * _texture(rng, lesion.axes)
    if modality == T1CE and row == 2:
        # Uptake is skewed: a bright rim over a moderate mean.
        inside = np.float32(max(mean, 0.3) + 0.4) * np.exp(0.45 * texture - 0.1) - np.float32(0.4)
    else:
        inside = np.float32(mean) + np.float32(WITHIN[row, modality]) * texture
    part += lesion.alpha * (inside - part)


def _level(image: F32, lesions: list[Lesion], targets: NDArray[np.float64]) -> None:
    """Shift the classes until each one's labelled voxels have the wanted mean, however thin. Works in place."""
    for _ in range(3):
        for lesion in lesions:
            part = image[lesion.box]
            miss = targets[lesion.row] - float(part[lesion.hard].mean())
            part += lesion.alpha * np.float32(miss / max(float(lesion.alpha[lesion.hard].mean()), 0.4))
