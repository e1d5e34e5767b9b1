"""Sections of the run's report and of the model card, from saved results only: nothing is computed anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medical.brats_seg.config import BratsConfig

if TYPE_CHECKING:
    from shared.pipeline import DataFacts, Evaluation
    from shared.report.html import Report

_REGIONS = {"wt": "Whole tumour (WT)", "tc": "Tumour core (TC)", "et": "Enhancing tumour (ET)"}
_REGION_COLUMNS = {
    "region": "Region",
    "dice": "Dice",
    "dice_median": "median",
    "dice_monai": "Dice, empty left out",
    "hd95": "HD95, mm",
    "hd95_median": "median",
    "hd95_monai": "HD95, empty left out",
    "lesion_dice": "Lesion-wise Dice",
    "lesion_hd95": "Lesion-wise HD95, mm",
}
_RATE_COLUMNS = {
    "region": "Region",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "volume_error_ml": "Volume error, mL",
    "lesions_true": "Lesions",
    "lesions_found": "found",
    "lesions_false": "false",
    "empty_true": "Cases without it",
    "empty_pred": "predicted without it",
}
_PATCH_COLUMNS = {
    "region": "Region",
    "dice": "Dice",
    "dice_monai": "Dice, empty left out",
    "empty_true": "Patches without it",
}
_CASE_COLUMNS = {
    "case": "Case",
    **{f"dice_{region}": f"Dice {region.upper()}" for region in _REGIONS},
    **{f"hd95_{region}": f"HD95 {region.upper()}, mm" for region in _REGIONS},
    "lesion_dice_wt": "Lesion Dice WT",
    "volume_ml_wt": "WT, mL",
    "volume_true_ml_wt": "reference, mL",
}
# Swin UNETR, five-fold mean on BraTS 2021 (arXiv 2201.01266, table 2).
_PUBLISHED = {"wt": 0.933, "tc": 0.917, "et": 0.891}

LIMITS = (
    "For research only: no medical device, not for diagnosis, treatment or triage.",
    "Made for pre-operative adult glioma: four co-registered, skull-stripped modalities (T1, contrast T1, T2, FLAIR). "
    "Post-operative cavities, paediatric tumours, metastases and other scanners' contrasts were not tested.",
    "A few cases give uncertain means: look at the pictures and at the spread, not at the third digit.",
)


def add_sections(report: Report, config: BratsConfig, evaluation: Evaluation) -> None:
    """Region tables in every convention, pictures, case table, notes and limits."""
    metrics = evaluation.metrics
    if metrics.get("cases"):
        report.heading("Regions")
        report.table(
            _by_region(metrics, _REGION_COLUMNS),
            _REGION_COLUMNS,
            caption=f"{_means(metrics['cases'], 'held-out case')}. Dice and HD95 as in BraTS up to 2022, beside "
            "them MONAI's convention; lesion-wise as in BraTS 2023.",
        )
        report.table(_by_region(metrics, _RATE_COLUMNS), _RATE_COLUMNS, caption="Rates, volumes and lesions.")
        if config.data.path is not None:
            published = ", ".join(f"{region.upper()} {value:.3f}" for region, value in _PUBLISHED.items())
            report.text(
                f"For orientation: the Swin UNETR paper reports mean Dice {published} over five folds of BraTS 2021 "
                "(1,251 cases); only scores on the same folds can be compared."
            )
    if metrics.get("patches/count"):
        report.heading("Held-out patches")
        patch_metrics = {
            k.removeprefix("patches/"): v for k, v in metrics.items() if k.startswith("patches/")
        }
        report.table(
            _by_region(patch_metrics, _PATCH_COLUMNS),
            _PATCH_COLUMNS,
            caption=f"{_means(metrics['patches/count'], 'real patch', 'es')} of held-out patients; a patch is centred "
            "on tumour, so false tumours elsewhere do not show here.",
        )
    if evaluation.figures:
        report.heading("Pictures")
        for caption, path in evaluation.figures.items():
            report.figure(path, caption)
    cases = [row for row in evaluation.table if "dice_wt" in row]
    if cases:
        report.heading("Cases")
        worst_first = sorted(cases, key=lambda row: row.get("dice_mean", 0.0))
        report.table(worst_first, _CASE_COLUMNS, caption="Worst mean Dice first.")
    report.heading("How to read the numbers")
    report.items(evaluation.notes)
    report.heading("Limits")
    report.items(LIMITS)


def _means(count: float, thing: str, plural: str = "s") -> str:
    return f"Values of one {thing}" if count == 1 else f"Means over {count:.0f} {thing}{plural}"


def _by_region(metrics: Mapping[str, float], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row per region from flat names such as ``dice_wt`` and ``dice_wt_median``."""
    rows: list[dict[str, Any]] = []
    for region, name in _REGIONS.items():
        row: dict[str, Any] = {"region": name}
        for column in columns:
            stem, is_median = column.removesuffix("_median"), column.endswith("_median")
            value = metrics.get(f"{stem}_{region}" + ("_median" if is_median else ""))
            if value is not None:
                row[column] = value
        rows.append(row)
    return rows


def card_text(config: BratsConfig, evaluation: Evaluation, facts: DataFacts) -> str:
    """Purpose, limits and licences for ``card.md``."""
    model, data = config.model, config.data
    made_up = data.path is None
    origin = (
        "synthetic cases painted into the MNI152 template; no patient's image was used"
        if made_up
        else f"{facts.source}; its terms bind the weights as well (BraTS data: research use, cite the BraTS papers)"
    )
    limits = "".join(f"- {limit}\n" for limit in LIMITS)
    if made_up:
        limits += "- Trained on synthetic images alone: score it on labelled cases of your own before you rely on it.\n"
    return (
        "## What it is for\n\n"
        "Segmenting whole tumour, tumour core and enhancing tumour of adult glioma in research, and trying out the "
        "pipeline.\n\n"
        f"- Network: {model.name}, feature size {model.feature_size}, input channels in the order "
        f"{', '.join(data.modalities)}; output channels tc, wt, et (sigmoid)\n"
        f"- Input: {_grid(config)}, axes {data.orientation}, each channel standardised over its non-zero voxels\n"
        f"- Training images: {origin}\n\n"
        f"## What it is not for\n\n{limits}"
    )


def _grid(config: BratsConfig) -> str:
    spacing = config.data.spacing_mm
    return (
        "voxels as they come"
        if spacing is None
        else f"voxels of {' × '.join(f'{mm:g}' for mm in spacing)} mm"
    )
