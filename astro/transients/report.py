"""Sections of the run's report and of the model card, from saved results only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from astro.transients.config import TransientsConfig

if TYPE_CHECKING:
    from shared.pipeline import DataFacts, Evaluation
    from shared.report.html import Report

LIMITS = (
    "It knows the classes it was trained on; anything else gets one of them. `doubt`, `energy` and `distance` rise "
    "with how little an object looks like any, but no threshold is right for every survey: measure it on yours.",
    "Probabilities are stated for class rates: by default a quarter of the way, geometrically, from equal ones "
    "to the training set's (predict.rates). For a survey's own rates set predict.priors.",
    "Scores are those of objects like the training set's. Spectroscopic samples are bright and near; fainter objects "
    "are classified worse than they say.",
)


HIDDEN = {"without_redshift_": "the first, redshifts hidden"}
PARTS: dict[bool, dict[str, str]] = {
    True: {"": "both", "network_": "network alone", "trees_": "boosted trees alone", **HIDDEN},
    False: {"": "network", "trees_": "boosted trees on summary numbers", **HIDDEN},
}


def add_sections(report: Report, config: TransientsConfig, evaluation: Evaluation) -> None:
    """Scores by class and by day, pictures, notes and limits."""
    metrics, classes = evaluation.metrics, getattr(evaluation, "classes", [])
    report.heading("Network, trees, and both")
    names = ("accuracy", "balanced_accuracy", "log_loss", "auc_macro", "ece")
    rows = [
        {"model": title, **{name: f"{metrics[prefix + name]:.3f}" for name in names}}
        for prefix, title in PARTS[config.model.trees].items()
        if prefix + "accuracy" in metrics
    ]
    report.table(rows, {"model": "Model", **{name: name.replace("_", " ") for name in names}})
    report.heading("Class rates to assume (predict.rates)")
    rates = [{key: _text(value) for key, value in row.items()} for row in getattr(evaluation, "rates", [])]
    report.table(
        rows=rates,
        columns={"rates": "Rates", "accuracy": "Accuracy", "balanced_accuracy": "Balanced", "ece": "ECE"},
    )
    if unknown := getattr(evaluation, "unknown", []):
        report.heading("Kinds left out of training: are they noticed?")
        table = [{key: _text(value) for key, value in row.items()} for row in unknown]
        report.table(table, {"score": "Score", "auc": "ROC AUC", "objects": "Objects"})
    report.heading("Classes, with 90 % intervals")
    columns = {
        "class": "Class",
        "objects": "Objects",
        "recall": "Recall",
        "auc": "ROC AUC",
        "ap": "Average precision",
    }
    report.table([_readable(row) for row in classes], columns)
    report.heading("Since first detection")
    days = {"days": "Days", "accuracy": "Accuracy", "balanced_accuracy": "Balanced", "log_loss": "Log-loss"}
    report.table([_day(row) for row in getattr(evaluation, "days", [])], {**days, "classified": "Classified"})
    report.heading("Pictures")
    for caption, path in evaluation.figures.items():
        report.figure(path, caption)
    if hangs_on := getattr(evaluation, "hangs_on", []):
        report.heading("What the answers shown hang on")
        report.table(
            [_part(row) for row in hangs_on],
            {"id": "Object", "class": "Answer", "part": "Without", "change": "Probability lost"},
        )
    report.heading("How to read the numbers")
    report.items([*evaluation.notes, *LIMITS])


def _text(value: Any) -> Any:
    return f"{value:.3f}" if isinstance(value, float) else value


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    text = {"class": row["class"], "objects": row["objects"]}
    for key in ("recall", "auc", "ap"):
        if np.isfinite(row[key]):
            text[key] = f"{row[key]:.3f} ({row[f'{key}_low']:.2f}–{row[f'{key}_high']:.2f})"
    return text


def _day(row: dict[str, Any]) -> dict[str, Any]:
    text = {key: f"{row[key]:.3f}" for key in ("accuracy", "balanced_accuracy", "log_loss")}
    days = "all" if np.isinf(row["days"]) else f"{row['days']:g}"
    return {"days": days, **text, "classified": f"{100 * row['classified']:.0f} %"}


def _part(row: dict[str, Any]) -> dict[str, Any]:
    first, last = (f"{row[key]:.1f}" for key in ("first_mjd", "last_mjd"))
    part = f"MJD {first} to {last}" if row["part"] == "epoch" else f"band {row['part']}"
    change = f"{row['change']:+.3f}" if np.isfinite(row["change"]) else "too little left to classify"
    answer = f"{row['class']}, {row['probability']:.3f}"
    return {"id": row["id"], "class": answer, "part": part, "change": change}


def card_text(config: TransientsConfig, evaluation: Evaluation, facts: DataFacts) -> str:
    """Purpose, input, origin of the data, limits."""
    from astro.transients.sample import ABOUT

    data, model = config.data, config.model
    origin = ABOUT if data.path is None else f"{facts.source}; its terms hold for these weights as well"
    return (
        "## What it is for\n\nProbabilities of a class for light curves of transient and variable sources.\n\n"
        f"- Classes: {', '.join(data.classes)}\n"
        f"- Bands: {data.survey}; flux at zero point 27.5; grid of {data.grid} times by a Gaussian process\n"
        f"- Network: {model.backbone if isinstance(model.backbone, str) else 'own keys'}; channels "
        f"{', '.join(model.channels)}; redshift: {model.redshift}\n"
        f"- Boosted trees beside it: {'yes' if model.trees else 'no'}\n"
        f"- Training data: {origin}\n\n"
        "## What it is not for\n\n" + "".join(f"- {limit}\n" for limit in LIMITS)
    )
