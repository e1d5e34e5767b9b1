"""From a network's scores to what a broker acts on: calibrated probabilities, the survey's own class rates, and how
little an object looks like any class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp, softmax

from astro.transients.lightcurve import Floats


def fit_temperature(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """T > 0 that gives softmax(logits / T) the least mean (or `weights`-ed, (N,)) log-loss on held-out objects (Guo et
    al. 2017, arXiv 1706.04599, section 4.2). 1 where nothing is better, so that the loss never rises."""
    z, y = np.asarray(logits, np.float64), np.asarray(labels)
    if not len(y):
        return 1.0
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)

    def loss(log_t: float) -> float:
        return float(-(w @ log_softmax(z * np.exp(-log_t), axis=1)[np.arange(len(y)), y]) / w.sum())

    # Convex in 1 / T, so the one minimum inside the bounds is found.
    found = minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def with_priors(probability: ArrayLike, old: ArrayLike, new: ArrayLike) -> Floats:
    """(N, K) p · new / old, rows divided by their sum: what a model trained at class rates `old` says at rates `new`
    (Saerens et al. 2002, Neural Computation 14, 21). A class that was never trained (old = 0) stays as it is."""
    p, old, new = (np.asarray(each, np.float64) for each in (probability, old, new))
    p = p * np.divide(new, old, out=np.ones_like(new), where=old > 0)
    total = p.sum(1, keepdims=True)
    # Nothing left: the new rates, for the object says nothing for any class that may occur.
    return np.where(total > 0, p / np.where(total > 0, total, 1), new / new.sum())


def doubt(logits: ArrayLike, temperature: float = 1.0) -> dict[str, Floats]:
    """(N,) scores that rise with how little an object looks like any class: ``max_probability``, 1 − max p (Hendrycks
    and Gimpel 2017, arXiv 1610.02136); ``energy``, −T ln Σ exp(logit / T) (Liu et al. 2020, arXiv 2010.03759)."""
    z = np.asarray(logits, np.float64) / temperature
    return {
        "max_probability": 1 - softmax(z, axis=1).max(1),
        "energy": -temperature * logsumexp(z, axis=1),
    }


@dataclass(frozen=True)
class ClassDistances:
    """Squared Mahalanobis distance to the nearest class, one covariance for all (Lee et al. 2018, arXiv 1807.03888,
    equations 1 and 2), shrunk as Ledoit and Wolf do, since pooled features are nearly dependent."""

    means: Floats
    """(K, C); NaN where a class was absent"""
    precision: Floats
    """(C, C)"""

    @classmethod
    def fit(cls, features: ArrayLike, labels: ArrayLike, classes: int) -> ClassDistances:
        """Of the training part."""
        from sklearn.covariance import LedoitWolf

        x, y = np.asarray(features, np.float64), np.asarray(labels)
        means = np.full((classes, x.shape[1]), np.nan)
        for c in np.unique(y):
            means[c] = x[y == c].mean(0)
        shrunk = LedoitWolf(assume_centered=True, store_precision=True).fit(x - means[y])
        return cls(means, shrunk.precision_)

    def __call__(self, features: ArrayLike) -> Floats:
        """(N, C) → (N,); high = unlike every class."""
        away = np.asarray(features, np.float64)[:, None] - self.means
        return np.nanmin(np.einsum("nkc,cd,nkd->nk", away, self.precision, away), 1)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        return {"means": self.means, "precision": self.precision}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]]) -> ClassDistances:
        return cls(arrays["means"], arrays["precision"])
