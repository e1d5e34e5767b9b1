"""From a network's scores to what a broker acts on: calibrated probabilities, the survey's own class rates, and how
little an object looks like any class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp, softmax

from astro.transients.lightcurve import Floats


def with_priors(probability: ArrayLike, old: ArrayLike, new: ArrayLike) -> Floats:
    """(N, K) p · new / old, rows divided by their sum: what a model trained at class rates `old` says at rates `new`
    (Saerens et al. 2002, Neural Computation 14, 21). A class that was never trained (old = 0) stays as it is."""
    p, old, new = (np.asarray(each, np.float64) for each in (probability, old, new))
    p = p * np.divide(new, old, out=np.ones_like(new), where=old > 0)
    total = p.sum(1, keepdims=True)
    # Nothing left: the new rates, for the object says nothing for any class that may occur.
    return np.where(total > 0, p / np.where(total > 0, total, 1), new / new.sum())


def doubt(logits: ArrayLike) -> dict[str, Floats]:
    """(N,) scores that rise with how little an object looks like any class: ``max_probability``, 1 − max p (Hendrycks
    and Gimpel 2017, arXiv 1610.02136); ``energy``, −ln Σ exp(logit) (Liu et al. 2020, arXiv 2010.03759)."""
    z = np.asarray(logits, np.float64)
    return {
        "max_probability": 1 - softmax(z, axis=1).max(1),
        "energy": -logsumexp(z, axis=1),
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
