"""Gradient-boosted trees: grown by scikit-learn, kept as plain arrays and evaluated here, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from torch import Tensor

from astro.transients.lightcurve import Floats

ELEMENTS = 1 << 19
"""Objects times trees walked at once."""


@dataclass(frozen=True, eq=False)
class Trees:
    """Nodes of all trees in a row; a leaf's children are itself, so a walk of `depth` steps ends in it."""

    feature: NDArray[np.int32]
    threshold: Floats
    """Left where the feature is at most this."""
    children: NDArray[np.int32]
    """(nodes, 2) left, right"""
    missing: NDArray[np.int8]
    """0 or 1: the child of a NaN"""
    value: Floats
    """Added to the score, of leaves"""
    roots: NDArray[np.int32]
    """(rounds, scores)"""
    baseline: Floats
    """(scores,); one score for two classes"""
    classes: NDArray[np.int64]
    """Class number of each score's column, ascending"""
    shape: NDArray[np.int64]
    """(depth, classes K, features)"""

    @classmethod
    def fit(
        cls,
        x: ArrayLike,
        y: ArrayLike,
        classes: int,
        seed: int = 0,
        *,
        rounds: int = 150,
        rate: float = 0.1,
        leaves: int = 15,
        smallest_leaf: int = 20,
        ridge: float = 1.0,
        bins: int = 63,
        share: float = 0.3,
    ) -> Trees:
        """(N, F), NaN = missing, and class numbers (N,) below `classes`.

        Raises `ValueError` for labels of fewer than two classes, or of more than `classes`. `share` of the features is
        tried at each split; every class has the same weight.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier

        values, labels = np.asarray(x, np.float64), np.asarray(y, np.int64)
        number = np.bincount(labels, minlength=classes)
        if (number > 0).sum() < 2 or len(number) > classes:
            raise ValueError(f"objects a class {number.tolist()}; two or more of {classes} classes wanted")
        weight = (len(labels) / np.maximum(number, 1))[labels]
        weight /= weight.mean()
        # Binning needs one value at least of each column; a constant one is never split.
        values = np.where(np.isnan(values).all(0), 0.0, values)
        grown = HistGradientBoostingClassifier(
            max_iter=rounds,
            learning_rate=rate,
            max_leaf_nodes=leaves,
            min_samples_leaf=smallest_leaf,
            l2_regularization=ridge,
            max_bins=bins,
            max_features=share,
            early_stopping=False,
            random_state=seed,
        ).fit(values, labels, weight)
        return cls.from_sklearn(grown, classes)

    @classmethod
    def from_sklearn(cls, grown: Any, classes: int) -> Trees:
        """The arrays of a fitted HistGradientBoostingClassifier whose classes are numbers below `classes`.

        Raises `ValueError` for categorical features.
        """
        trees = [tree for each in grown._predictors for tree in each]
        start = np.cumsum([0, *(len(tree.nodes) for tree in trees)])
        nodes = np.concatenate([tree.nodes for tree in trees])
        if nodes["is_categorical"].any():
            raise ValueError("trees with categorical features; numbers wanted")
        offset = np.repeat(start[:-1], np.diff(start))
        own, leaf = np.arange(len(nodes)), nodes["is_leaf"].astype(bool)
        children = np.stack([np.where(leaf, own, nodes[side] + offset) for side in ("left", "right")], 1)
        return cls(
            nodes["feature_idx"].astype(np.int32),
            _single(nodes["num_threshold"]),
            children.astype(np.int32),
            1 - nodes["missing_go_to_left"].astype(np.int8),
            np.where(leaf, nodes["value"], 0.0).astype(np.float32).astype(np.float64),
            start[:-1].reshape(len(grown._predictors), -1).astype(np.int32),
            np.asarray(grown._baseline_prediction, np.float32).astype(np.float64).reshape(-1),
            np.asarray(grown.classes_, np.int64),
            np.array([int(nodes["depth"].max()), classes, grown.n_features_in_]),
        )

    def scores(self, values: ArrayLike) -> Floats:
        """(N, F) → (N, scores)."""
        x = np.asarray(values, np.float64)
        if x.ndim != 2 or x.shape[1] != self.shape[2]:
            raise ValueError(f"features of shape {x.shape}; (N, {self.shape[2]}) wanted")
        out = np.empty((len(x), len(self.baseline)))
        size = max(ELEMENTS // max(self.roots.size, 1), 1)
        for low in range(0, len(x), size):
            some = x[low : low + size]
            at = np.broadcast_to(self.roots.reshape(-1), (len(some), self.roots.size))
            rows = np.arange(len(some))[:, None]
            for _ in range(int(self.shape[0])):
                seen = some[rows, self.feature[at]]
                side = np.where(np.isnan(seen), self.missing[at], seen > self.threshold[at])
                at = self.children[at, side.astype(np.int8)]
            out[low : low + size] = self.value[at].reshape(len(some), *self.roots.shape).sum(1)
        return out + self.baseline

    def probabilities(self, values: ArrayLike) -> Floats:
        """(N, K); 0 for a class that was not trained."""
        scores = self.scores(values)
        if len(self.classes) == 2:
            scores = np.concatenate([np.zeros_like(scores), scores], 1)
        out = np.zeros((len(scores), int(self.shape[1])))
        out[:, self.classes] = softmax(scores, axis=1)
        return out

    def state(self) -> dict[str, Tensor]:
        """For a safetensors file."""
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in vars(self).items()}

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Trees:
        """The trees whose `state` this is. Raises `ValueError` for one that is not."""
        wanted = {each.name for each in fields(cls)}
        if set(state) != wanted:
            raise ValueError(f"arrays {', '.join(sorted(state))}; {', '.join(sorted(wanted))} wanted")
        arrays = {name: tensor.cpu() for name, tensor in state.items()}
        # Kept in single precision, but added up in double, as when they were grown.
        return cls(**{k: (v.double() if v.is_floating_point() else v).numpy() for k, v in arrays.items()})


def _single(threshold: Floats) -> Floats:
    """Numbers of single precision, as a bundle keeps them, that part single-precision features as `threshold` does."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float64)
