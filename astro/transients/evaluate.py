"""Scores of a model on objects it was not trained on, boosted trees beside it, and scores by days since detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from astro.transients.config import TransientsConfig
from astro.transients.data import TransientsData, among, reading_of, where, without_redshift
from astro.transients.explain import activation_maps
from astro.transients.figures import (
    confusion_figure,
    curve_figure,
    days_figure,
    ranking_figure,
    reliability_figure,
)
from astro.transients.grids import inputs_of, until
from astro.transients.lightcurve import OK, Floats, LightCurve
from astro.transients.metrics import (
    KAGGLE_WEIGHTS,
    bootstrap,
    log_loss,
    ranking,
    recalls,
    reliability,
    summary,
)
from astro.transients.predict import TransientsPredictor
from astro.transients.task import grow
from shared.bundle import Bundle
from shared.config import flatten
from shared.errors import DataInvalid, Fault, UsageError
from shared.io.atomic import atomic_write_text
from shared.pipeline import Evaluation
from shared.plots.style import save_png

Labels = Any
PARTLY = ("log_loss", "accuracy", "balanced_accuracy", "auc_macro", "ece")
"""Scores of the network alone, of the trees alone, and of both without any redshift."""
SPLIT = ("seed", "data.validation", "data.test", "data.fold")
"""Of the configuration: what decides which objects a model was not trained on."""
CONVENTIONS = (
    "log_loss is flat over the classes present and global, not a mean over batches, of the probabilities at equal "
    "class rates; log_loss_weighted has PLAsTiCC's class weights. Calibration (ece, brier) is that of the "
    "probabilities at the training set's class rates; everything else that of the answers as given, at predict.rates.",
)


@dataclass(slots=True)
class TransientsEvaluation(Evaluation):
    """With what the report tabulates."""

    classes: list[dict[str, Any]] = field(default_factory=list)
    """One row a class: objects, recall with its interval, AUC, average precision."""
    days: list[dict[str, Any]] = field(default_factory=list)
    """One row a number of days since first detection."""
    rates: list[dict[str, Any]] = field(default_factory=list)
    """One row a choice of ``predict.rates``."""
    unknown: list[dict[str, Any]] = field(default_factory=list)
    """One row a score of how unlike any class an object is."""
    hangs_on: list[dict[str, Any]] = field(default_factory=list)
    """One row a band or epoch of the objects shown: `explain.why`."""


def evaluate(bundle: Bundle, config: TransientsConfig, out: Path) -> TransientsEvaluation:
    """The test part of the model's own data; of foreign data every labelled object of its classes.

    Raises `DataInvalid` where nothing can be scored, `UsageError` for labels the model does not know.
    """
    predictor = TransientsPredictor(bundle, config.predict.model_dump())
    names = predictor.classes
    data, own = _to_score(predictor, bundle, config)
    curves = data.part("test") if own else _unseen(data, bundle)
    left_out = 0 if own else len(data.curves) - len(curves)
    if left_out and not curves:
        found = f"nothing but objects that {bundle.path.name} was trained on"
        raise DataInvalid([Fault(where(config), found, "others", "evaluate on objects it has not seen")])
    if not curves:
        raise DataInvalid([Fault(where(config), "nothing held out", "labelled objects", "check data.test")])
    labels = np.array([names.index(str(curve.label)) for curve in curves])
    table = predictor.table(curves)
    p = table[[f"p_{name}" for name in names]].to_numpy()
    flat, parts = _flat_probabilities(predictor, curves)
    metrics = {"objects": float(len(curves)), **_scores(predictor, labels, p, flat)}
    what = "the test part" if own else "every labelled object; the model was trained on others"
    if not own and "trained_on" not in bundle.schema["transients"]:
        what = "every labelled object; the bundle does not tell whether it was trained on some of them"
    elif left_out:
        what = f"labelled objects that the model was not trained on; {left_out:,} that it was are left out"
    result = TransientsEvaluation(
        metrics, notes=[f"Scored: {what}, {len(curves):,} objects.", *_status_notes(table), *CONVENTIONS]
    )
    out.mkdir(parents=True, exist_ok=True)
    result.rates = _by_rates(predictor, labels, flat)
    if not predictor.config.model.trees and own:
        parts["trees"] = _other_trees(data, predictor, curves)
    if predictor.model.with_redshift:
        hidden = [without_redshift(curve) for curve in curves]
        parts["without_redshift"], _ = _flat_probabilities(predictor, hidden)
    result.metrics |= _alone(predictor, labels, parts)
    result.notes.append(
        f"ECE {result.metrics['network_ece']:.3f} of the network as trained, {metrics['ece']:.3f} after the validation "
        f"part set its temperature to {float(predictor.model.temperature):.2f}"
        + (" and weighed the trees." if predictor.config.model.trees else ".")
    )
    if data.unknown:
        result.unknown = _noticed(table, predictor.table(data.unknown))
        result.metrics |= {f"unknown_auc_{row['score']}": row["auc"] for row in result.unknown}
    result.days = _by_days(predictor, config, curves, labels)
    result.classes = _by_class(labels, p, names)
    result.table = _rows(table, curves, labels, p, names)
    atomic_write_text(
        out / "test.csv", table.assign(label=[str(c.label) for c in curves]).to_csv(index=False)
    )
    result.figures = _figures(predictor, result, curves, labels, p, flat, out)
    return result


def _to_score(
    predictor: TransientsPredictor, bundle: Bundle, config: TransientsConfig
) -> tuple[TransientsData, bool]:
    """The data, and whether they are the model's own, of which the test part alone may be scored."""
    names, place, survey = predictor.classes, where(config), predictor.config.data.survey
    if config.data.read.survey is None and any(c.survey != survey for c in reading_of(config).curves):
        config = _over_read(config, table_survey=survey)
    found = sorted({str(c.label) for c in reading_of(config).checked() if c.label is not None})
    if not set(found) & set(names):
        raise UsageError(
            f"{place}: objects of {', '.join(found) or 'no class'}; one or more of {', '.join(names)} wanted; relabel "
            "them, or choose another model"
        )
    data = TransientsData(
        config.model_copy(update={"data": config.data.model_copy(update={"classes": names})})
    )
    own = data.fingerprint() == bundle.schema["data_fingerprint"]
    for key in SPLIT if own else ():
        asked, kept = (flatten(each)[key] for each in (config, predictor.config))
        if asked != kept:
            raise UsageError(
                f"configuration:{key}: {asked}; {kept} wanted, for {bundle.path} was trained on objects of another "
                "test part; leave the split as it was"
            )
    return data, own


def _over_read(config: TransientsConfig, **keys: Any) -> TransientsConfig:
    """`config` with these of ``data.read``."""
    read = config.data.read.model_copy(update=keys)
    return config.model_copy(update={"data": config.data.model_copy(update={"read": read})})


def _unseen(data: TransientsData, bundle: Bundle) -> list[LightCurve]:
    """Those of foreign data that the model was not trained on, as far as the bundle tells."""
    old = among(data.curves, bundle.schema["transients"].get("trained_on", ""))
    return [data.curves[i] for i in np.flatnonzero(~old)]


def _flat_probabilities(
    predictor: TransientsPredictor, curves: Sequence[LightCurve]
) -> tuple[Floats, dict[str, Floats]]:
    """(N, K) at equal class rates, all equal where nothing can be said; and of the network and the trees alone."""
    rows, _ = predictor.usable(curves)
    alone, classes = ("network", "trees") if predictor.config.model.trees else ("network",), predictor.classes
    out = {name: np.full((len(curves), len(classes)), 1 / len(classes)) for name in ("logits", *alone)}
    if rows:
        found = predictor.answers([curves[i] for i in rows])
        for name, p in out.items():
            p[rows] = softmax(getattr(found, name), axis=1)
    return out.pop("logits"), out


def _scores(predictor: TransientsPredictor, labels: Labels, p: Floats, flat: Floats) -> dict[str, float]:
    """Of the answers `p`; losses are those of equal class rates, calibration that of the training set's."""
    names = predictor.classes
    weights = [KAGGLE_WEIGHTS.get(name, 1.0) for name in names]
    found = summary(labels, p, names)
    at_training = predictor.at_rates(flat, predictor.rates)
    found |= {"log_loss": log_loss(labels, flat), "log_loss_weighted": log_loss(labels, flat, weights)}
    kept = summary(labels, at_training, names)
    return found | {"ece": kept["ece"], "brier": kept["brier"]}


def _alone(predictor: TransientsPredictor, labels: Labels, parts: dict[str, Floats]) -> dict[str, float]:
    """Of each of `parts`, by the same conventions."""
    out: dict[str, float] = {}
    for name, flat in parts.items():
        found = summary(labels, predictor.at_rates(flat, predictor.priors), predictor.classes)
        found["log_loss"] = log_loss(labels, flat)
        found["ece"] = reliability(labels, predictor.at_rates(flat, predictor.rates)).ece
        out |= {f"{name}_{key}": found[key] for key in PARTLY}
    return out


def _by_rates(predictor: TransientsPredictor, labels: Labels, flat: Floats) -> list[dict[str, Any]]:
    """What each choice of ``predict.rates`` gives."""
    rows = []
    for kind in ("flat", "between", "training"):
        found = summary(labels, predictor.at_rates(flat, predictor.class_rates(kind)), predictor.classes)
        rows.append({"rates": kind} | {key: found[key] for key in ("accuracy", "balanced_accuracy", "ece")})
    return rows


def _noticed(known: pd.DataFrame, unknown: pd.DataFrame) -> list[dict[str, Any]]:
    """How well each score tells objects of the classes left out from those of the test part: area under the ROC."""
    truth, rows = np.repeat([0, 1], [len(known), len(unknown)]), []
    for name in ("doubt", "energy", "distance"):
        values = np.concatenate([known[name], unknown[name]]).astype(float)
        said = np.isfinite(values)
        both = len(np.unique(truth[said])) == 2
        auc = float(roc_auc_score(truth[said], values[said])) if both else np.nan
        rows.append({"score": name, "auc": auc, "objects": len(unknown)})
    return rows


def _status_notes(table: pd.DataFrame) -> list[str]:
    odd = table["status"][table["status"] != OK].value_counts()
    return [f"{count} objects with status “{name}”, scored with what they get" for name, count in odd.items()]


def _other_trees(
    data: TransientsData, predictor: TransientsPredictor, curves: Sequence[LightCurve]
) -> Floats:
    """The baseline of a model without trees, grown on the same objects and copies; at equal class rates, all equal
    where nothing can be said."""
    config, (rows, _) = data.config, predictor.usable(curves)
    p = np.full((len(curves), len(config.data.classes)), 1 / len(config.data.classes))
    if rows:
        some, trees = [curves[i] for i in rows], grow(*data.for_trees(), config)
        p[rows] = trees.probabilities(
            predictor.model.numbers(some, inputs_of(some, config.data.survey, config.data.grid))
        )
    return p


def _by_days(
    predictor: TransientsPredictor, config: TransientsConfig, curves: Sequence[LightCurve], labels: Labels
) -> list[dict[str, Any]]:
    """Scores of what was known so many days after the first detection."""
    rows = []
    for days in (*config.evaluate.days, np.inf):
        young = [until(curve, days) for curve in curves]
        flat, _ = _flat_probabilities(predictor, young)
        p = predictor.at_rates(flat, predictor.priors)
        rows.append(
            {
                "days": days,
                "accuracy": float((p.argmax(1) == labels).mean()),
                "balanced_accuracy": float(np.nanmean(recalls(labels, p))),
                "log_loss": log_loss(labels, flat),
                "classified": len(predictor.usable(young)[0]) / len(young),
            }
        )
    return rows


def _by_class(labels: Labels, p: Floats, names: Sequence[str]) -> list[dict[str, Any]]:
    """Recall, area under the ROC curve and average precision of each class present, each with its 90 % interval."""

    def scores(y: Labels, q: Floats) -> Floats:
        return np.stack([recalls(y, q), *ranking(y, q)])

    value, (low, high) = scores(labels, p), bootstrap(scores, labels, p)
    rows: list[dict[str, Any]] = [{"class": name} for name in names]
    for k, row in enumerate(rows):
        for i, key in enumerate(("recall", "auc", "ap")):
            row |= {key: float(value[i, k]), f"{key}_low": float(low[i, k]), f"{key}_high": float(high[i, k])}
    number = np.bincount(labels, minlength=len(names))
    return [{**row, "objects": int(n)} for row, n in zip(rows, number) if n]


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
    flat: Floats,
    out: Path,
) -> dict[str, Path]:
    names = predictor.classes
    drawn = {
        "Confusion matrix of the test objects: rows are the truth and sum to 1.": confusion_figure(
            labels, p, names
        ),
        "ROC and precision-recall curve of each class against the others.": ranking_figure(labels, p, names),
        "Reliability at the training set's class rates: how often the most probable class was right, by its "
        "probability.": reliability_figure(labels, predictor.at_rates(flat, predictor.rates)),
        "Scores against days since first detection.": days_figure(result.days),
    }
    own = p[np.arange(len(labels)), labels]
    usable = [i for i in np.argsort(own) if curves[i].status == OK]
    if usable:
        chosen = [usable[0], usable[len(usable) // 2], usable[-1]]
        some = [curves[i] for i in chosen]
        result.hangs_on = predictor.why(some)
        data = predictor.config.data
        inputs = inputs_of(some, data.survey, data.grid)
        maps = activation_maps(predictor.model.network, inputs.to(predictor.device)).cpu()
        titles = [
            f"{n}: {curves[i].id} is {names[labels[i]]} (p = {own[i]:.2f}), answer {names[p[i].argmax()]}"
            for n, i in zip(("Worst", "Median", "Best"), chosen)
        ]
        # Steps of the redshift come after those of the grid; a backbone that strides has fewer of all.
        steps = round(maps.shape[1] * data.grid / predictor.model.network.tokens)
        shown = maps[torch.arange(3), :steps, torch.as_tensor(p[chosen].argmax(1))]
        drawn[
            "Worst, median and best object: points, the Gaussian process with its deviation, and where the network "
            "looked for its answer (grey)."
        ] = curve_figure(some, inputs, predictor.model.bands, shown.numpy(), titles)
    return {
        caption: save_png(figure, out / f"{number}-{name}.png")
        for number, ((caption, figure), name) in enumerate(
            zip(drawn.items(), ("confusion", "ranking", "reliability", "days", "curves")), 1
        )
    }
