"""Scores of class probabilities. All are over the whole set; none is a mean over batches.

Everywhere `labels` (N,) are class numbers, `probability` (N, K); classes without an object are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from astro.transients.lightcurve import Floats

Labels = NDArray[np.int64]
KAGGLE_WEIGHTS: Mapping[str, float] = {"15": 2.0, "64": 2.0, "99": 2.0}
"""PLAsTiCC's class weights that are not 1, by class code."""


def log_loss(labels: ArrayLike, probability: ArrayLike, weights: Sequence[float] | None = None) -> float:
    """− Σ_c w_c (1/N_c) Σ_{j in c} ln p_jc / Σ_c w_c over the classes present (spec section 1; Boone 2019, arXiv
    1907.04690, equation 2); probabilities clipped at 1e-15, then rows divided by their sum. `weights` none = flat."""
    y, p = np.asarray(labels), np.clip(np.asarray(probability, np.float64), 1e-15, 1.0)
    if not len(y):
        return float("nan")
    own = -np.log(p[np.arange(len(y)), y] / p.sum(1))
    number = np.bincount(y, minlength=p.shape[1])
    mean = np.bincount(y, own, p.shape[1])[number > 0] / number[number > 0]
    w = np.ones(p.shape[1]) if weights is None else np.asarray(weights, np.float64)
    return float(mean @ w[number > 0] / w[number > 0].sum())


def recalls(labels: ArrayLike, probability: ArrayLike) -> Floats:
    """(K,) share of each class found; NaN where it is absent."""
    y, p = np.asarray(labels), np.asarray(probability)
    number = np.bincount(y, minlength=p.shape[1])
    found = np.bincount(y[p.argmax(1) == y], minlength=p.shape[1])
    return np.divide(found, number, out=np.full(p.shape[1], np.nan), where=number > 0)


def confusion(labels: ArrayLike, probability: ArrayLike) -> Labels:
    """(K, K) counts; rows are the truth."""
    p = np.asarray(probability)
    return confusion_matrix(np.asarray(labels), p.argmax(1), labels=np.arange(p.shape[1]))


def ranking(labels: ArrayLike, probability: ArrayLike) -> tuple[Floats, Floats]:
    """(K,) area under the ROC curve and average precision of each class against the others; NaN where undefined."""
    y, p = np.asarray(labels), np.asarray(probability)
    auc, precision = np.full(p.shape[1], np.nan), np.full(p.shape[1], np.nan)
    for c in range(p.shape[1]):
        truth = y == c
        if truth.any() and not truth.all():
            auc[c], precision[c] = roc_auc_score(truth, p[:, c]), average_precision_score(truth, p[:, c])
    return auc, precision


@dataclass(frozen=True)
class Reliability:
    """Bins of the highest probability: how sure, how often right, how many; `ece` = Σ (n/N) |right − sure|."""

    sure: Floats
    right: Floats
    number: Labels
    ece: float


def reliability(labels: ArrayLike, probability: ArrayLike, bins: int = 15) -> Reliability:
    """Bins of equal width (Guo et al. 2017, arXiv 1706.04599, equation 3); empty ones are NaN."""
    y, p = np.asarray(labels), np.asarray(probability, np.float64)
    top, hit = p.max(1), p.argmax(1) == y
    at = np.minimum((top * bins).astype(np.int64), bins - 1)
    number = np.bincount(at, minlength=bins)
    share = np.where(number > 0, number, 1)
    sure, right = np.bincount(at, top, bins) / share, np.bincount(at, hit, bins) / share
    ece = float(number @ np.abs(right - sure) / max(len(y), 1))
    empty = number == 0
    return Reliability(np.where(empty, np.nan, sure), np.where(empty, np.nan, right), number, ece)


def summary(
    labels: ArrayLike,
    probability: ArrayLike,
    classes: Sequence[str],
    weights: Sequence[float] | None = None,
) -> dict[str, float]:
    """Flat names → scores: the whole set's, then ``recall_``, ``auc_`` and ``ap_`` of each class present."""
    y, p = np.asarray(labels), np.asarray(probability, np.float64)
    recall, (auc, ap) = recalls(y, p), ranking(y, p)
    truth = np.eye(p.shape[1])[y]
    found = {
        "log_loss": log_loss(y, p),
        "log_loss_weighted": log_loss(y, p, weights),
        "accuracy": float((p.argmax(1) == y).mean()) if len(y) else np.nan,
        "balanced_accuracy": _mean(recall),
        "auc_macro": _mean(auc),
        "ap_macro": _mean(ap),
        "ece": reliability(y, p).ece,
        "brier": float(np.square(p - truth).sum(1).mean()) if len(y) else np.nan,
    }
    for kind, values in (("recall", recall), ("auc", auc), ("ap", ap)):
        found |= {f"{kind}_{name}": float(v) for name, v in zip(classes, values) if np.isfinite(v)}
    return found


def bootstrap(
    score: Callable[[Labels, Floats], Floats | float],
    labels: ArrayLike,
    probability: ArrayLike,
    *,
    draws: int = 200,
    level: float = 0.9,
    seed: int = 0,
) -> Floats:
    """(2, …) bounds of `score` over resampled objects, each class to its own number, so that none is lost."""
    y, p = np.asarray(labels), np.asarray(probability, np.float64)
    members, random = [np.flatnonzero(y == c) for c in np.unique(y)], np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        rows = np.concatenate([random.choice(each, len(each)) for each in members])
        values.append(score(y[rows], p[rows]))
    return np.quantile(np.stack(values), [(1 - level) / 2, (1 + level) / 2], axis=0)


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
