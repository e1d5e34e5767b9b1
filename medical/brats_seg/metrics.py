"""Scores of one case and of a data set, in every convention the field publishes.

Region order tc, wt, et; masks (D, H, W); distances in mm, volumes in mL. Three conventions stand side by side:

- BraTS up to 2022 (``dice_wt``, ``hd95_wt``): region empty in both masks 1 and 0 mm, in one of them 0 and 373.13 mm.
- MONAI (``dice_monai_wt``, ``hd95_monai_wt``): NaN where the truth (for HD95: either mask) is empty; means drop them.
- BraTS 2023 and later, lesion by lesion (``lesion_dice_wt``, ``lesion_hd95_wt``): see `lesion_scores`.

HD95 is the larger of the two directed 95th percentiles (MONAI). nnU-Net v1 pools both directions first and BraTS 2023
weights by surface area; `hd95` has all three, because the same pair of masks gives up to several per cent difference.
Sources: BraTS 2021 (arXiv 2107.02314), BraTS 2023 metric script (rachitsaluja/BraTS-2023-Metrics).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medical.brats_seg.config import REGIONS

Mask = NDArray[np.bool_]
Spacing = Sequence[float]
Variant = Literal["directed", "pooled", "surfel"]

HD95_ONE_EMPTY_MM = 373.12866  # diagonal of 240 × 240 × 155 mm, BraTS up to 2022
HD95_LESION_MISSED_MM = 374.0  # BraTS 2023
MM3_PER_ML = 1000.0


@dataclass(frozen=True, slots=True)
class LesionRule:
    """How a BraTS challenge of 2023 and later splits a mask into lesions."""

    dilation: int
    """Iterations of 18-neighbour dilation of the truth; lesions that meet are one."""
    min_volume_mm3: float
    """True lesions must be larger than this to count; false ones count at any size."""


LESION_RULES: Mapping[str, LesionRule] = {
    "gli": LesionRule(3, 50.0),
    "ssa": LesionRule(3, 50.0),
    "ped": LesionRule(3, 50.0),
    "men": LesionRule(1, 50.0),
    "met": LesionRule(1, 2.0),
}


@dataclass(frozen=True, slots=True)
class LesionScores:
    """Lesion-wise score of one region of one case."""

    dice: float
    hd95_mm: float
    true: int
    """True lesions above the size limit."""
    found: int
    false: int
    """Predicted components that touch no true lesion."""


def score_case(
    pred_labels: NDArray[Any],
    true_labels: NDArray[Any],
    convention: str,
    spacing_mm: Spacing,
    true_convention: str | None = None,
    challenge: str = "gli",
) -> dict[str, float]:
    """Every score of one case, from label maps (D, H, W) in the named conventions."""
    from medical.brats_seg.labels import encode

    pred = np.asarray(encode(pred_labels, convention))
    true = np.asarray(encode(true_labels, true_convention or convention))
    return score_regions(pred, true, spacing_mm, challenge)


def score_regions(pred: Mask, true: Mask, spacing_mm: Spacing, challenge: str = "gli") -> dict[str, float]:
    """Every score of one case, from region masks (3, D, H, W) in the order tc, wt, et.

    Raises `ValueError` when the shapes differ.
    """
    if pred.shape != true.shape or len(pred) != len(REGIONS):
        raise ValueError(f"prediction {pred.shape} and truth {true.shape}: two masks (3, D, H, W) wanted")
    out: dict[str, float] = {}
    for region, p, t in zip(REGIONS, pred.astype(bool), true.astype(bool)):
        scores = _region_scores(p, t, spacing_mm, LESION_RULES[challenge])
        out |= {f"{name}_{region}": value for name, value in scores.items()}
    for name in ("dice", "hd95", "lesion_dice", "lesion_hd95"):
        out[f"{name}_mean"] = math.fsum(out[f"{name}_{region}"] for region in REGIONS) / len(REGIONS)
    return out


def _region_scores(pred: Mask, true: Mask, spacing_mm: Spacing, rule: LesionRule) -> dict[str, float]:
    n_pred, n_true, n_both = (int(np.count_nonzero(mask)) for mask in (pred, true, pred & true))
    n_neither = true.size - n_pred - n_true + n_both
    distance = hd95(pred, true, spacing_mm)
    distance_brats = distance
    if math.isnan(distance):
        distance_brats = 0.0 if n_pred == n_true == 0 else HD95_ONE_EMPTY_MM
    voxel_ml = math.prod(spacing_mm) / MM3_PER_ML
    lesions = lesion_scores(pred, true, spacing_mm, rule)
    overlap = dice(pred, true)
    return {
        "dice": overlap,
        "hd95": distance_brats,
        "dice_monai": overlap if n_true else math.nan,
        "hd95_monai": distance,
        "sensitivity": n_both / n_true if n_true else (1.0 if n_pred == 0 else math.nan),
        "specificity": n_neither / (true.size - n_true) if n_true < true.size else math.nan,
        "volume_ml": n_pred * voxel_ml,
        "volume_true_ml": n_true * voxel_ml,
        "volume_error_ml": (n_pred - n_true) * voxel_ml,
        "empty_true": float(n_true == 0),
        "empty_pred": float(n_pred == 0),
        "lesion_dice": lesions.dice,
        "lesion_hd95": lesions.hd95_mm,
        "lesions_true": float(lesions.true),
        "lesions_found": float(lesions.found),
        "lesions_false": float(lesions.false),
    }


# ---------------------------------------------------------------- overlap and distance


def dice(pred: Mask, true: Mask) -> float:
    """2|P∩T| / (|P| + |T|); 1 when both masks are empty (BraTS)."""
    total = int(np.count_nonzero(pred)) + int(np.count_nonzero(true))
    return 2.0 * int(np.count_nonzero(pred & true)) / total if total else 1.0


def hd95(pred: Mask, true: Mask, spacing_mm: Spacing, variant: Variant = "directed") -> float:
    """95th-percentile Hausdorff distance in mm; NaN when a mask is empty."""
    import torch
    from monai.metrics import compute_hausdorff_distance
    from monai.metrics.utils import get_edge_surface_distance

    if not pred.any() or not true.any():
        return math.nan
    box = bounding_box(pred | true)
    p, t = (torch.from_numpy(np.ascontiguousarray(mask[box])) for mask in (pred, true))
    spacing = [float(mm) for mm in spacing_mm]
    if variant == "directed":
        with warnings.catch_warnings():  # MONAI warns of its own deprecated argument
            warnings.simplefilter("ignore", FutureWarning)
            worst = compute_hausdorff_distance(
                p[None, None], t[None, None], include_background=True, percentile=95, spacing=spacing
            )
        return float(worst)
    surfels = variant == "surfel"
    with warnings.catch_warnings():  # MONAI warns of its own deprecated argument
        warnings.simplefilter("ignore", FutureWarning)
        edges, distances, areas = get_edge_surface_distance(
            p, t, spacing=spacing, use_subvoxels=surfels, symmetric=True, warn_empty=False
        )
    if not surfels:
        return float(np.percentile(np.concatenate([d.numpy() for d in distances]), 95))
    return max(
        _weighted_percentile(d.numpy(), area[edge].numpy(), 0.95)
        for d, area, edge in zip(distances, areas, edges)
    )


def _weighted_percentile(values: NDArray[Any], weights: NDArray[Any], share: float) -> float:
    """Smallest value at which `share` of the weight is reached (lower end, no interpolation)."""
    order = np.lexsort((weights, values))
    reached = np.cumsum(weights[order], dtype=np.float64)
    index = int(np.searchsorted(reached / reached[-1], share))
    return float(values[order][min(index, len(values) - 1)])


def bounding_box(mask: Mask, margin: int = 0) -> tuple[slice, ...]:
    """Slices around the True voxels, grown by `margin` and kept inside; the whole volume when there is none."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        where = np.flatnonzero(mask.any(axis=others))
        if not len(where):
            return tuple(slice(0, size) for size in mask.shape)
        box.append(slice(max(int(where[0]) - margin, 0), min(int(where[-1]) + 1 + margin, mask.shape[axis])))
    return tuple(box)


# ---------------------------------------------------------------- lesion by lesion


def lesion_scores(
    pred: Mask, true: Mask, spacing_mm: Spacing, rule: LesionRule = LESION_RULES["gli"]
) -> LesionScores:
    """Lesion-wise Dice and HD95 of BraTS 2023 and later for one region.

    Lesions are 26-connected components; true ones whose dilations meet are one. The predicted components that touch a
    dilated true lesion are its match. Score = sum over true lesions above the size limit / (their number + false
    components); a missed or false lesion counts Dice 0 and 374 mm. Nothing anywhere: 1 and 0. HD95 is
    surface-area weighted, as in the official script.
    """
    import cc3d
    from scipy import ndimage

    if not pred.any() and not true.any():
        return LesionScores(1.0, 0.0, 0, 0, 0)
    box = bounding_box(pred | true, margin=rule.dilation + 1)
    pred, true = pred[box], true[box]
    neighbours = ndimage.generate_binary_structure(3, 2)  # 18 neighbours
    parts, n_parts = cc3d.connected_components(pred, connectivity=26, return_N=True)
    dilated = ndimage.binary_dilation(true, neighbours, iterations=rule.dilation)
    lesions = cc3d.connected_components(dilated, connectivity=26) * true
    voxel_mm3 = math.prod(spacing_mm)
    matched: set[int] = set()
    dices: list[float] = []
    distances: list[float] = []
    found = 0
    for index, where in enumerate(ndimage.find_objects(lesions.astype(np.int32)), start=1):
        if where is None:
            continue
        near = _grow(where, rule.dilation, true.shape)
        reach = ndimage.binary_dilation(lesions[near] == index, neighbours, iterations=rule.dilation)
        touching = np.unique(parts[near][reach])
        touching = touching[touching != 0]
        matched.update(touching.tolist())
        lesion = lesions == index
        if np.count_nonzero(lesion) * voxel_mm3 <= rule.min_volume_mm3:
            continue  # too small to count, yet its match above is no false lesion
        match = np.isin(parts, touching) if len(touching) else np.zeros_like(true)
        distance = hd95(match, lesion, spacing_mm, "surfel")
        found += int(len(touching) > 0)
        dices.append(dice(match, lesion))
        distances.append(HD95_LESION_MISSED_MM if math.isnan(distance) else distance)
    false = n_parts - len(matched)
    n = len(dices) + false
    if n == 0:  # only true lesions below the limit
        return LesionScores(1.0, 0.0, 0, 0, 0)
    total_mm = math.fsum(distances) + false * HD95_LESION_MISSED_MM
    return LesionScores(math.fsum(dices) / n, total_mm / n, len(dices), found, false)


def _grow(box: Sequence[slice], margin: int, shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in zip(box, shape))


# ---------------------------------------------------------------- over a data set

_SUMMED = ("empty_true", "empty_pred", "lesions_true", "lesions_found", "lesions_false")


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over cases under the score's own name, medians under ``<score>_median``; counts are summed.

    Only numbers are taken (a row may carry its case's name); NaN is left out of mean and median, and a score that is
    NaN in every case is left out altogether. ``cases`` is the number of rows.
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values.setdefault(name, []).append(float(value))
    out: dict[str, float] = {"cases": float(len(rows))}
    for name, column in values.items():
        known = [value for value in column if not math.isnan(value)]
        if not known:
            continue
        if name.rpartition("_")[0] in _SUMMED:
            out[name] = math.fsum(known)
            continue
        out[name] = math.fsum(known) / len(known)
        if name.startswith(("dice", "hd95", "lesion_")) and "monai" not in name:
            out[f"{name}_median"] = float(np.median(known))
    return out
