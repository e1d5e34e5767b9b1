"""Scores of a model on objects it was not trained on, boosted trees beside it, and scores by days since detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from astro.transients.config import TransientsConfig
from astro.transients.data import TransientsData, infer
from astro.transients.explain import activation_maps
from astro.transients.features import features
from astro.transients.figures import (
    confusion_figure,
    curve_figure,
    days_figure,
    ranking_figure,
    reliability_figure,
)
from astro.transients.grids import inputs_of, until
from astro.transients.lightcurve import OK, WAVELENGTHS, Floats, LightCurve
from astro.transients.metrics import KAGGLE_WEIGHTS, bootstrap, log_loss, recalls, summary
from astro.transients.predict import TransientsPredictor
from astro.transients.trees import Trees
from shared.bundle import Bundle
from shared.errors import DataInvalid, Fault, UsageError
from shared.io.atomic import atomic_write_text
from shared.pipeline import Evaluation
from shared.plots.style import save_png

Labels = Any


@dataclass(slots=True)
class TransientsEvaluation(Evaluation):
    """With what the report tabulates."""

    classes: list[dict[str, Any]] = field(default_factory=list)
    """One row a class: objects, recall with its interval, AUC, average precision."""
    days: list[dict[str, Any]] = field(default_factory=list)
    """One row a number of days since first detection."""


def evaluate(bundle: Bundle, config: TransientsConfig, out: Path) -> TransientsEvaluation:
    """The test part of the model's own data; of foreign data every labelled object of its classes.

    Raises `DataInvalid` where nothing can be scored, `UsageError` for labels the model does not know.
    """
    predictor = TransientsPredictor(bundle, {})
    names = predictor.classes
    if config.data.path is not None and not set(infer(config)["classes"]) & set(names):
        raise UsageError(
            f"{config.data.path}: none of the classes {', '.join(names)}; the model's wanted; relabel"
        )
    data = TransientsData(
        config.model_copy(update={"data": config.data.model_copy(update={"classes": names})})
    )
    own = data.fingerprint() == bundle.schema["data_fingerprint"]
    curves = data.part("test") if own else data.curves
    if not curves:
        raise DataInvalid(
            [Fault(str(config.data.path), "nothing held out", "labelled objects", "check data.test")]
        )
    labels = np.array([names.index(str(curve.label)) for curve in curves])
    table = predictor.table(curves)
    p = table[[f"p_{name}" for name in names]].to_numpy()
    weights = [KAGGLE_WEIGHTS.get(name, 1.0) for name in names]
    metrics = {"objects": float(len(curves)), **summary(labels, p, names, weights)}
    what = "the test part" if own else "every labelled object; the model was trained on other data"
    result = TransientsEvaluation(
        metrics, notes=[f"Scored: {what}, {len(curves):,} objects.", *_status_notes(table)]
    )
    result.notes.append(
        "log_loss is flat over the classes present and global, not a mean over batches; log_loss_weighted has "
        "PLAsTiCC's class weights."
    )
    out.mkdir(parents=True, exist_ok=True)
    if own and config.evaluate.trees:
        _beside(result, data, curves, labels, config.seed)
    result.days = _by_days(predictor, config, curves, labels)
    result.classes = _by_class(labels, p, names, metrics)
    result.table = _rows(table, curves, labels, p, names)
    atomic_write_text(
        out / "test.csv", table.assign(label=[str(c.label) for c in curves]).to_csv(index=False)
    )
    result.figures = _figures(predictor, result, curves, labels, p, out)
    return result


def _status_notes(table: pd.DataFrame) -> list[str]:
    odd = table["status"][table["status"] != OK].value_counts()
    return [f"{count} objects with status “{name}”, scored with what they get" for name, count in odd.items()]


def _beside(
    result: TransientsEvaluation,
    data: TransientsData,
    curves: Sequence[LightCurve],
    labels: Labels,
    seed: int,
) -> None:
    """The baseline: boosted trees on summary numbers, grown on the same training part."""
    names, bands = data.config.data.classes, list(WAVELENGTHS[data.config.data.survey])
    train = data.part("train")
    truth = np.array([names.index(str(curve.label)) for curve in train])
    with_z = data.config.model.redshift != "none"
    x = features(train, bands, with_z)
    trees = Trees.fit(x, truth, len(names), seed=seed)
    p = trees.probabilities(features(curves, bands, with_z))
    found = summary(labels, p, names)
    kept = ("log_loss", "accuracy", "balanced_accuracy", "auc_macro")
    result.metrics |= {f"trees_{name}": found[name] for name in kept}
    better = found["accuracy"] > result.metrics["accuracy"]
    result.notes.append(
        f"Boosted trees on summary numbers, same objects: accuracy {found['accuracy']:.3f}, balanced "
        f"{found['balanced_accuracy']:.3f}, log-loss {found['log_loss']:.3f}"
        + ("; more often right than the network." if better else ".")
    )


def _by_days(
    predictor: TransientsPredictor, config: TransientsConfig, curves: Sequence[LightCurve], labels: Labels
) -> list[dict[str, Any]]:
    """Scores of what was known so many days after the first detection."""
    rows = []
    for days in (*config.evaluate.days, np.inf):
        table = predictor.table([until(curve, days) for curve in curves])
        p = table[[f"p_{name}" for name in predictor.classes]].to_numpy()
        rows.append(
            {
                "days": days,
                "accuracy": float((p.argmax(1) == labels).mean()),
                "balanced_accuracy": float(np.nanmean(recalls(labels, p))),
                "log_loss": log_loss(labels, p),
                "classified": float((table["class"] != "").mean()),
            }
        )
    return rows


def _by_class(
    labels: Labels, p: Floats, names: Sequence[str], metrics: dict[str, float]
) -> list[dict[str, Any]]:
    low, high = bootstrap(lambda y, q: recalls(y, q), labels, p)
    rows = []
    for k, name in enumerate(names):
        if (labels == k).any():
            row = {"class": name, "objects": int((labels == k).sum()), "recall": metrics[f"recall_{name}"]}
            row |= {"low": float(low[k]), "high": float(high[k])}
            rows.append(row | {key: metrics.get(f"{key}_{name}", np.nan) for key in ("auc", "ap")})
    return rows


def _rows(
    table: pd.DataFrame, curves: Sequence[LightCurve], labels: Labels, p: Floats, names: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "object": curve.id,
            "label": curve.label,
            "class": given,
            "p_label": float(p[i, labels[i]]),
            "status": status,
            "points": len(curve),
        }
        for i, (curve, given, status) in enumerate(zip(curves, table["class"], table["status"]))
    ]


def _figures(
    predictor: TransientsPredictor,
    result: TransientsEvaluation,
    curves: Sequence[LightCurve],
    labels: Labels,
    p: Floats,
    out: Path,
) -> dict[str, Path]:
    names = predictor.classes
    drawn = {
        "Confusion matrix of the test objects: rows are the truth and sum to 1.": confusion_figure(
            labels, p, names
        ),
        "ROC and precision-recall curve of each class against the others.": ranking_figure(labels, p, names),
        "Reliability: how often the most probable class was right, by its probability.": reliability_figure(
            labels, p
        ),
        "Scores against days since first detection.": days_figure(result.days),
    }
    own = p[np.arange(len(labels)), labels]
    usable = [i for i in np.argsort(own) if curves[i].status == OK]
    if usable:
        chosen = [usable[0], usable[len(usable) // 2], usable[-1]]
        some = [curves[i] for i in chosen]
        data = predictor.config.data
        inputs = inputs_of(some, data.survey, data.grid)
        maps = activation_maps(predictor.network, inputs.to(predictor.device)).cpu()
        titles = [
            f"{n}: {names[labels[i]]}, p = {own[i]:.2f}" for n, i in zip(("Worst", "Median", "Best"), chosen)
        ]
        shown = maps[torch.arange(3), : data.grid, torch.as_tensor(p[chosen].argmax(1))]
        drawn[
            "Worst, median and best object: points, the Gaussian process with its deviation, and where the network "
            "looked for its answer (grey)."
        ] = curve_figure(some, inputs, shown.numpy(), titles)
    return {
        caption: save_png(figure, out / f"{number}-{name}.png")
        for number, ((caption, figure), name) in enumerate(
            zip(drawn.items(), ("confusion", "ranking", "reliability", "days", "curves")), 1
        )
    }
