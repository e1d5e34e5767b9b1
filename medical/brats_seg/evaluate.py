"""Scores of a model on labelled cases and patches, with the pictures and sentences that belong beside them.

Cases go through the same `Predictor` that users run, files in, labels on the case's own grid out; patches (cut
beforehand, so there is nothing to slide over) go through the network directly.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medical.brats_seg.config import REGIONS, BratsConfig
from medical.brats_seg.inference import logit, window_logits
from medical.brats_seg.metrics import (
    HD95_LESION_MISSED_MM,
    HD95_ONE_EMPTY_MM,
    LESION_RULES,
    Mask,
    dice,
    score_regions,
    summarise,
)
from shared.errors import DataInvalid, Fault, ItemError
from shared.pipeline import Evaluation, Item

if TYPE_CHECKING:
    from torch import nn

    from medical.brats_seg.cases import CaseFiles
    from medical.brats_seg.predict import BratsPredictor
    from shared.bundle import Bundle
    from shared.pipeline import Pipeline

RANKED_BY = "dice_mean"
_RANKS = ("worst", "median", "best")


def evaluate(pipeline: Pipeline, bundle: Bundle, config: BratsConfig, out: Path) -> Evaluation:
    """Scores of `bundle` on what it was not trained on: the held-out fold of its own data, all of foreign data.

    Raises `DataInvalid` when there is nothing to score, `UsageError` when every case was seen in training.
    """
    from medical.brats_seg.held_out import held_out, is_own
    from medical.brats_seg.labels import encode

    predictor: Any = pipeline.predictor(bundle, config.predict.model_dump())
    predictor.read_labels(config.data)
    own, warnings = is_own(predictor.bundles, config)
    with tempfile.TemporaryDirectory() as scratch:
        if config.data.path is None:
            cases, patches = _made_cases(config, Path(scratch)), None
        else:
            cases, patches = held_out(config, everything=not own)
        items = [Item(files.id, files.sources, files) for files in cases]
        result = evaluate_cases(predictor, items, out) if items else Evaluation({})
    if patches is not None and len(patches):
        truth = np.stack([encode(y, "brats2021") for y in patches.y])
        images = np.stack([patches.image(i) for i in range(len(patches))])
        rows = score_patches(
            predictor.networks, images, truth, config.predict.threshold, tta=config.predict.tta
        )
        result.metrics |= summarise_patches(rows)
        result.table += [{"case": f"patch of {name}", **row} for name, row in zip(patches.patient, rows)]
        if not items:
            result.metrics["dice_mean"] = result.metrics["patches/dice_mean"]
    if not result.metrics:
        raise DataInvalid(
            [Fault(str(config.data.path), "nothing held out", "labelled cases", "check data.fold")]
        )
    what = (
        f"fold {config.data.fold}, held out in training"
        if own
        else "every labelled case; trained on other data"
    )
    result.notes[:0] = [f"Scored: {what}.", *warnings]
    return result


def _made_cases(config: BratsConfig, folder: Path) -> list[CaseFiles]:
    """The held-out heads of the embedded sample as files, so that they go the way a user's files go."""
    from medical.brats_seg.cases import discover
    from medical.brats_seg.data import made_sample
    from medical.brats_seg.sample import write_case

    data = config.data
    for index in range(data.synthetic_cases):
        if index % data.folds == data.fold:
            write_case(folder, f"Made-{index:04d}", made_sample(config, index))
    return discover([folder])


# ---------------------------------------------------------------- whole cases


def evaluate_cases(
    predictor: BratsPredictor, items: Sequence[Item], out: Path, challenge: str = "gli"
) -> Evaluation:
    """Scores of `predictor` on labelled `items`; pictures of the worst, median and best case in `out`.

    A case that cannot be read or has no reference is left out and named in the notes. Raises `DataInvalid` when none
    is left.
    """
    rows: list[dict[str, Any]] = []
    faults: list[Fault] = []
    drafts = out / ".drafts"  # pictures of every case, until it is known which three are kept
    drafts.mkdir(parents=True, exist_ok=True)
    try:
        for item in items:
            try:
                rows.append(_score_item(predictor, item, drafts, challenge))
            except ItemError as err:
                faults.append(err.fault)
        if items and not rows:
            raise DataInvalid(faults)
        figures = _ranked_pictures(rows, drafts, out)
    finally:
        shutil.rmtree(drafts, ignore_errors=True)
    if rows:
        figures = {"Scores of every held-out case by region.": _score_picture(rows, out), **figures}
    metrics = summarise([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    notes = [*convention_notes(metrics), *(f"not scored: {fault}" for fault in faults)]
    return Evaluation(metrics, rows, figures, notes)


def _score_item(predictor: BratsPredictor, item: Item, drafts: Path, challenge: str) -> dict[str, Any]:
    from medical.brats_seg.labels import encode

    if item.fault is not None:
        raise ItemError.of(item.fault)
    result = predictor.predict(item)
    case = result.case
    if case.label is None or case.convention is None:
        raise ItemError(item.id, "no reference segmentation", "a label map beside the images", "add it")
    truth = encode(case.label, case.convention)
    spacing_mm = np.linalg.norm(case.affine[:3, :3], axis=0).tolist()
    row: dict[str, Any] = {"case": item.id}
    row |= score_regions(result.masks, truth, spacing_mm, challenge)
    row["seconds"] = result.facts["seconds"]
    images = dict(zip(predictor.config.data.modalities, case.images))
    _draft(drafts, row, images, result, truth)
    return row


def _draft(
    folder: Path, row: Mapping[str, Any], images: Mapping[str, NDArray[Any]], result: Any, truth: Mask
) -> None:
    """Both pictures of one case: overview with every modality, and close-up."""
    from medical.brats_seg.figures import case_strip, qc_figure
    from medical.brats_seg.panels import make_view
    from shared.plots.style import save_png

    view = make_view(images, result.masks, result.case.affine, truth)
    scores = "   ".join(f"{region.upper()} {row[f'dice_{region}']:.3f}" for region in ("wt", "tc", "et"))
    title = f"{row['case']}   Dice {scores}"
    volumes = {region: float(row[f"volume_ml_{region}"]) for region in REGIONS}
    overview = qc_figure(view, title, volumes, result.facts["warnings"])
    save_png(overview, folder / f"{_draft_name(row)}-overview.png", dpi=110)
    save_png(case_strip([(title, view)]), folder / f"{_draft_name(row)}-close-up.png", dpi=110)


def _draft_name(row: Mapping[str, Any]) -> str:
    from hashlib import sha256

    return sha256(str(row["case"]).encode()).hexdigest()[:16]  # an id may hold what a file name may not


def _ranked_pictures(rows: Sequence[Mapping[str, Any]], drafts: Path, out: Path) -> dict[str, Path]:
    """Caption → picture for the worst, median and best case; one case is shown once."""
    ranked = sorted(rows, key=lambda row: row[RANKED_BY])
    figures: dict[str, Path] = {}
    seen: set[str] = set()
    for rank, index in zip(_RANKS, (0, (len(ranked) - 1) // 2, len(ranked) - 1)):
        if not ranked or ranked[index]["case"] in seen:
            continue
        row = ranked[index]
        seen.add(row["case"])
        name = rank if len(ranked) > 1 else "case"
        for kind in ("close-up", "overview"):
            path = out / f"{name}-{kind}.png"
            (drafts / f"{_draft_name(row)}-{kind}.png").replace(path)
            figures[f"{name.capitalize()} by mean Dice ({row[RANKED_BY]:.3f}), {kind}: {row['case']}."] = path
    return figures


def _score_picture(rows: Sequence[Mapping[str, Any]], out: Path) -> Path:
    from medical.brats_seg.figures import score_figure
    from shared.plots.style import save_png

    return save_png(score_figure(rows), out / "scores.png")


def convention_notes(metrics: Mapping[str, float], challenge: str = "gli") -> list[str]:
    """What a reader must know to compare the numbers, with this data set's counts."""
    cases = int(metrics.get("cases", 0))
    if not cases:
        return []
    rule = LESION_RULES[challenge]
    empty = ", ".join(
        f"{region.upper()} {metrics.get(f'empty_true_{region}', 0):.0f}" for region in ("wt", "tc", "et")
    )
    return [
        "Dice and HD95 follow BraTS up to 2022: a region absent in reference and prediction counts Dice 1 and 0 mm; "
        f"absent in one of them, Dice 0 and {HD95_ONE_EMPTY_MM:.2f} mm. The columns “empty left out” follow "
        "MONAI, which drops such cases from the mean.",
        f"Cases whose reference lacks the region, of {cases}: {empty}.",
        "HD95 is the larger of the two directed 95th percentiles, in mm of the case's own grid. Pooled (nnU-Net v1) "
        "and surface-weighted (BraTS 2023) HD95 differ by some per cent on the same masks.",
        "Lesion-wise scores follow BraTS 2023 "
        f"({challenge.upper()}): lesions are 26-connected, merged within {rule.dilation} dilations, counted above "
        f"{rule.min_volume_mm3:.0f} mm³; a missed or false lesion counts Dice 0 and {HD95_LESION_MISSED_MM:.0f} mm.",
    ]


# ---------------------------------------------------------------- patches


def score_patches(
    networks: Sequence[nn.Module],
    images: NDArray[np.float32],
    truth: Mask,
    threshold: float = 0.5,
    batch: int = 16,
    tta: str = "none",
) -> list[dict[str, float]]:
    """Dice per region of each patch, in both conventions.

    `images` (N, C, D, H, W) as the networks, whose logits are averaged, were trained on, `truth` (N, 3, D, H, W) in
    order tc, wt, et. The networks must be in evaluation mode.
    """
    import torch

    level = logit(threshold)
    rows: list[dict[str, float]] = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            windows = torch.as_tensor(images[start : start + batch], dtype=torch.float32)
            masks = (window_logits(networks, windows, tta) > level).numpy()
            rows += [_patch_row(p, t) for p, t in zip(masks, truth[start : start + batch])]
    return rows


def _patch_row(pred: Mask, true: Mask) -> dict[str, float]:
    row: dict[str, float] = {}
    for region, p, t in zip(REGIONS, pred, np.asarray(true, bool)):
        row[f"dice_{region}"] = dice(p, t)
        row[f"dice_monai_{region}"] = row[f"dice_{region}"] if t.any() else math.nan
        row[f"empty_true_{region}"] = float(not t.any())
    row["dice_mean"] = math.fsum(row[f"dice_{region}"] for region in REGIONS) / len(REGIONS)
    return row


def summarise_patches(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """`summarise` under ``patches/``; ``patches/count`` is their number."""
    summary = summarise(list(rows))
    count = summary.pop("cases")
    kept = {name: value for name, value in summary.items() if not name.endswith("_median")}
    return (
        {"patches/count": count, **{f"patches/{name}": value for name, value in kept.items()}}
        if count
        else {}
    )
