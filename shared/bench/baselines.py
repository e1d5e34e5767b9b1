"""What no network is needed for: the lines that a mixer has to pass before its accuracy says anything."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.bench.sample import IGNORED, Split
from shared.bench.tasks import Budget, Task

LEVELS = 17
"""Real-valued pixels are counted in steps of 1/16."""
MAX_LINEAR = 10_000
MAX_NEIGHBOURS = 2_000
"""Rows to learn from; more change these lines by less than their error and cost minutes."""
NAMES = {"majority": "majority class", "bag": "bag of tokens, linear", "nearest": "nearest neighbour"}


def baselines(task: Task, budget: Budget) -> dict[str, float]:
    """Test accuracy of each of `NAMES`.

    bag: multinomial logistic regression on how often each token (grey level) occurs; for pairs both counts, their
    difference and product; for an answer a position also the token there. nearest: the answer of the training sample
    that agrees at most positions (pixels: Euclidean); for an answer a position that sample's answer there, else the
    majority's.
    """
    train, test = task.split(0, budget.train), task.split(1, budget.test)
    asked = test.y != IGNORED
    majority = np.bincount(train.y[train.y != IGNORED]).argmax()
    return {
        "majority": float((test.y[asked] == majority).mean()),
        "bag": _bag(task, train, test),
        "nearest": _nearest(task, train, test, int(majority)),
    }


def _bag(task: Task, train: Split, test: Split) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = _bag_rows(task, train)
    if len(x) > MAX_LINEAR:
        rows = np.random.default_rng(0).permutation(len(x))[:MAX_LINEAR]
        x, y = x[rows], y[rows]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, tol=1e-3))
    return float(model.fit(x, y).score(*_bag_rows(task, test)))


def _bag_rows(task: Task, split: Split) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """One row an answer: counts, and what else the answer may lean on without knowing any order."""
    tokens, kinds = _tokens(task, split.x), task.vocabulary or LEVELS
    counts = _counts(tokens, kinds)
    if task.form == "pair":
        u, v = counts[:, 0], counts[:, 1]
        return np.concatenate([u, v, np.abs(u - v), u * v], 1), split.y
    if task.form == "class":
        return counts, split.y
    rows, at = np.nonzero(split.y != IGNORED)
    here = np.eye(kinds, dtype=np.float32)[tokens[rows, at]]
    return np.concatenate([counts[rows], here], 1), split.y[rows, at]


def _tokens(task: Task, x: NDArray[Any]) -> NDArray[np.int64]:
    return x if task.vocabulary else np.round(x * (LEVELS - 1)).astype(np.int64)


def _counts(tokens: NDArray[np.int64], kinds: int) -> NDArray[np.float32]:
    """(..., L) → (..., kinds)."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    found = np.zeros((len(flat), kinds), np.float32)
    np.add.at(found, (np.arange(len(flat))[:, None], flat), 1)
    return found.reshape(*tokens.shape[:-1], kinds)


def _nearest(task: Task, train: Split, test: Split, majority: int) -> float:
    from scipy.spatial.distance import cdist

    known, asked = train.x[:MAX_NEIGHBOURS], test.x
    metric = "hamming" if task.vocabulary else "euclidean"
    distances = cdist(asked.reshape(len(asked), -1), known.reshape(len(known), -1), metric)
    found = train.y[distances.argmin(1)]
    found = np.where(found == IGNORED, majority, found)
    return float((found == test.y)[test.y != IGNORED].mean())
