"""Tumours in label form: real label maps moved to a new head, or made by rule.

A made focus is an ellipsoid whose surface is displaced by smooth noise. Inside: a necrotic core, an enhancing rim of
varying thickness and non-enhancing parts, in proportions drawn per focus (one case in six enhances nowhere, as low
grades do). Outside: oedema that reaches as far as a noisy cost of distance allows; grey matter costs more than white,
so that it runs in fingers along the white matter (as in glioma growth models, Clatz et al., IEEE TMI 2005).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medical.brats_seg.simulator.anatomy import F32, FIELD_MM, Axes, Head, Smooth, template

Label = NDArray[np.uint8]
CORE, OEDEMA, ENHANCING = 1, 2, 4


def moved(label_map: Label, rng: np.random.Generator, axes: Axes) -> Label:
    """A whole-head `label_map` (any shape over the same field of view) on the grid `axes` (mm).

    Mirrored at random, shifted by a few mm, sized within ± 10 % and bent by up to a few mm; nearest neighbour.
    """
    if label_map.ndim != 3:
        raise ValueError(f"label map of shape {label_map.shape}; three axes wanted")
    middle = np.array(FIELD_MM) / 2 - 0.5
    size = rng.uniform(0.9, 1.1) * rng.uniform(0.96, 1.04, 3)
    shift = rng.normal(0, (3.0, 4.0, 3.0))
    sign = np.array([rng.choice([-1.0, 1.0]), 1.0, 1.0])
    bend = [Smooth.draw(rng, 22.0) for _ in range(3)]
    hit = np.argwhere(label_map)
    if not len(hit):
        return np.zeros([len(a) for a in axes], np.uint8)
    step = np.array(FIELD_MM) / label_map.shape
    centre = (hit.mean(0) + 0.5) * step - 0.5
    target = middle + sign * (centre - middle) + shift
    places = []
    for axis, field in enumerate(bend):
        shape = [1, 1, 1]
        shape[axis] = -1
        line = (axes[axis] - target[axis]).reshape(shape)
        offset = line.astype(np.float32) + 1.5 * field.at(axes)
        mm = centre[axis] + sign[axis] / size[axis] * offset
        places.append((mm + 0.5) / step[axis] - 0.5)
    return ndimage.map_coordinates(label_map, np.stack(places), order=0, output=np.uint8)


def made(rng: np.random.Generator, head: Head, axes: Axes, white: F32, brain: F32) -> Label:
    """One to three foci on the grid `axes` (mm); `white` and `brain` are the fractions there."""
    label = np.zeros(white.shape, np.uint8)
    count = int(rng.choice([1, 2, 3], p=[0.75, 0.17, 0.08]))
    low_grade = rng.random() < 1 / 6
    first = None
    for number in range(count):
        centre = _site(rng, head, first)
        first = centre if first is None else first
        part = _focus(rng, axes, centre, white, low_grade, smaller=number > 0)
        # The more severe class of two foci wins where they meet.
        order = np.array([0, 2, 1, 0, 3])
        label = np.where(order[part] > order[label], part, label)
    label[brain < 0.5] = 0
    return label


def _site(rng: np.random.Generator, head: Head, near: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """A white-matter point of the cerebrum (one in 14 anywhere), mm; within 60 mm of `near`."""
    white = template()["wm"] > (0.5 if rng.random() < 0.93 else 0.2)
    candidates = np.argwhere(white)
    above = candidates[:, 2] > 0.38 * white.shape[2]  # the cerebellum and the stem lie below
    candidates = candidates[above] if rng.random() < 0.93 else candidates
    middle = (np.array(white.shape) - 1) / 2
    for _ in range(50):
        voxel = candidates[rng.integers(len(candidates))] - middle
        centre = np.linalg.solve(head.turn / 1.5, voxel) + head.centre_mm
        if near is None or np.linalg.norm(centre - near) < 60:
            return centre
    return centre


def _focus(
    rng: np.random.Generator,
    axes: Axes,
    centre: NDArray[np.float64],
    white: F32,
    low_grade: bool,
    smaller: bool,
) -> Label:
    radius = float(np.clip(rng.lognormal(np.log(18 if not smaller else 8), 0.45), 4, 42))
    squeeze = rng.uniform(0.75, 1.3, 3)
    reach = radius + float(rng.uniform(2, 18))
    box = tuple(
        slice(*np.searchsorted(a, (c - reach * 1.5, c + reach * 1.5)))
        for a, c in zip(axes, centre, strict=True)
    )
    local: Axes = tuple(a[b] for a, b in zip(axes, box, strict=True))  # type: ignore[assignment]
    label = np.zeros(white.shape, np.uint8)
    if min(len(a) for a in local) < 2:
        return label
    lines = np.meshgrid(
        *((a - c) / s for a, c, s in zip(local, centre, squeeze, strict=True)), indexing="ij", sparse=True
    )
    away = np.sqrt(sum(line**2 for line in lines)).astype(np.float32)  # type: ignore[arg-type]
    lumps = 0.20 * Smooth.draw(rng, max(radius * 0.8, 6)).at(local) + 0.10 * Smooth.draw(rng, 5.0).at(local)
    depth = 1 - away / radius + lumps  # 0 on the core's surface, about 1 in the middle
    inside = depth > 0
    label[box] = _core(rng, depth, inside, local, radius, low_grade)
    step = [float(a[1] - a[0]) for a in local]
    outside = ndimage.distance_transform_edt(~inside, sampling=step) if inside.any() else away
    fingers = 0.45 * Smooth.draw(rng, 11.0).at(local) + 0.2 * Smooth.draw(rng, 5.0).at(local)
    cost = outside / (reach - radius) * (1.7 - 0.9 * white[box]) * np.exp(fingers)
    spread = (cost < 1) & ~inside & (white[box] > 0.08)
    label[box][spread] = OEDEMA
    return label


def _core(
    rng: np.random.Generator,
    depth: F32,
    inside: NDArray[np.bool_],
    local: Axes,
    radius: float,
    low_grade: bool,
) -> Label:
    core = np.where(inside, CORE, 0).astype(np.uint8)
    if low_grade:
        # Little or no enhancement; much of the mass is rated as oedema by some readers.
        spots = Smooth.draw(rng, 7.0).at(local) > 2.2
        core[inside & spots] = ENHANCING
        return core
    patchy = Smooth.draw(rng, 9.0).at(local)
    fine = Smooth.draw(rng, 4.0).at(local)
    thick = float(rng.uniform(3.0, 9.0)) / radius * np.exp(0.45 * patchy + 0.25 * fine)
    if rng.random() < 0.25:
        thick = thick + 1.0  # solid enhancement
    core[inside & (depth < thick)] = ENHANCING
    # Parts of the mass that do not take up contrast: gaps of the rim, in one of four most of the mass.
    least = rng.uniform(0.8, 2.2) if rng.random() < 0.75 else rng.uniform(-0.6, 0.8)
    gaps = Smooth.draw(rng, 10.0).at(local) + 0.4 * fine > least
    core[inside & gaps] = CORE
    return core


def push(label: Label, rng: np.random.Generator, axes: Axes) -> F32 | None:
    """Mass effect: where each point's tissue came from, minus the point, mm (3, D, H, W); None without a core.

    Tissue near the core's middle c was pushed outwards: source = c + (x − c)(1 − k exp(−|x − c|² / 2 s²)).
    """
    core = (label == CORE) | (label == ENHANCING)
    strength = float(rng.uniform(0.0, 0.45))
    size = int(core.sum())
    if size < 20:
        return None
    voxel = float(np.prod([a[1] - a[0] for a in axes]))
    spread = 1.5 * (size * voxel * 3 / (4 * np.pi)) ** (1 / 3)
    centre = [float(a[i].mean()) for a, i in zip(axes, np.nonzero(core), strict=True)]
    lines = np.meshgrid(
        *((a - c).astype(np.float32) for a, c in zip(axes, centre, strict=True)), indexing="ij", sparse=True
    )
    square = sum(line**2 for line in lines)
    pull = -strength * np.exp(-square / np.float32(2 * spread**2))  # type: ignore[operator]
    return np.stack([pull * line for line in lines])
