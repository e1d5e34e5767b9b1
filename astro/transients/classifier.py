"""What a bundle holds: the network, boosted trees beside it, and how much each counts.

The two are pooled in logarithms, a network that sees the shape of a curve and trees that see measured numbers of it:
logits = z / T + w ln p_trees. T and w minimise the log-loss of held-out objects; with w = 0 that is temperature scaling
(Guo et al. 2017, arXiv 1706.04599, section 4.2), in general a logarithmic opinion pool (Genest and Zidek 1986).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from torch import Tensor, nn

from astro.transients.config import TransientsConfig
from astro.transients.decide import ClassDistances
from astro.transients.features import number_names, numbers
from astro.transients.lightcurve import WAVELENGTHS, Floats, LightCurve
from astro.transients.t2 import Inputs, TransientNetwork
from astro.transients.trees import Trees

SURE = 1e-6
"""Least probability that trees are taken at their word for."""
LARGEST = 3.0
USUAL, PULL = (0.5, 0.7), 60.0
NAMES = tuple(each.name for each in fields(Trees))
KEY = "tree_"
"""Before each array's name, since ``children`` is a word of torch's."""


class Grown(nn.Module):
    """Boosted trees as buffers, of whatever size the file has; empty until they are grown."""

    def __init__(self) -> None:
        super().__init__()
        for name in NAMES:
            self.register_buffer(KEY + name, torch.empty(0))
        self._trees: Trees | None = None

    def put(self, trees: Trees) -> None:
        self._trees = trees
        for name, tensor in trees.state().items():
            self.register_buffer(KEY + name, tensor)

    @property
    def trees(self) -> Trees:
        if self._trees is None:
            self._trees = Trees.of({name: getattr(self, KEY + name) for name in NAMES})
        return self._trees

    def make_room(self, state: Mapping[str, Tensor], prefix: str) -> None:
        """As large as the arrays in `state` below `prefix`."""
        for name in NAMES:
            if (found := state.get(prefix + KEY + name)) is not None:
                self.register_buffer(KEY + name, torch.empty_like(found))
        self._trees = None


class Classifier(nn.Module):
    """Network and trees of one configuration."""

    log_rates: Tensor
    """Class rates that the network's own answers assume; 0 where its loss makes classes count alike"""
    temperature: Tensor
    trees_weight: Tensor
    class_means: Tensor
    class_precision: Tensor

    def __init__(self, config: TransientsConfig) -> None:
        super().__init__()
        data, model = config.data, config.model
        self.bands = list(WAVELENGTHS[data.survey])
        self.with_redshift = model.redshift != "none"
        self.network = TransientNetwork(
            len(data.classes),
            len(self.bands),
            backbone=model.backbone,
            length=data.grid,
            channels=model.channels,
            flux=model.flux,
            redshift=model.redshift,
            legacy=model.legacy,
            dropout=model.dropout,
        )
        self.grown = Grown() if model.trees else None
        width = self.network.head.in_features
        self.register_buffer("log_rates", torch.zeros(len(data.classes)))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("trees_weight", torch.zeros(()))
        self.register_buffer("class_means", torch.full((len(data.classes), width), torch.nan))
        self.register_buffer("class_precision", torch.zeros(width, width))

    def make_room(self, state: Mapping[str, Tensor]) -> None:
        """For the trees in `state`, before it is loaded. Raises `ValueError` where they read other numbers."""
        if self.grown is None:
            return
        self.grown.make_room(state, "grown.")
        if (shape := state.get(f"grown.{KEY}shape")) is not None:
            found, wanted = int(shape[2]), len(number_names(self.bands, self.with_redshift))
            if found != wanted:
                raise ValueError(
                    f"its trees read {found} numbers; {wanted} wanted by this version; train it again"
                )

    def forward(self, inputs: Inputs) -> Tensor:
        """(B, K) logits of the network alone, at equal class rates."""
        return self.logits(self.network.pooled(inputs))

    def logits(self, pooled: Tensor) -> Tensor:
        """(B, K) the same, of the network's pooled features (B, C)."""
        return self.network.logits(pooled) - self.log_rates

    # ------------------------------------------------------------ after the training

    def numbers(self, curves: Sequence[LightCurve], inputs: Inputs) -> NDArray[np.float32]:
        """(N, F) what the trees read."""
        return numbers(curves, inputs, self.bands, self.with_redshift)

    def tree_logs(self, curves: Sequence[LightCurve], inputs: Inputs) -> Floats:
        """(N, K) ln p of the trees, at equal class rates; 0 without trees. `inputs` are the curves', gridded."""
        if self.grown is None:
            return np.zeros((len(curves), self.network.head.out_features))
        return np.log(np.clip(self.grown.trees.probabilities(self.numbers(curves, inputs)), SURE, 1.0))

    def pooled_logits(self, logits: Floats, tree_logs: Floats) -> Floats:
        return logits / float(self.temperature) + float(self.trees_weight) * tree_logs

    def fit_pool(self, logits: Floats, tree_logs: Floats, labels: NDArray[Any], rates: Floats) -> None:
        """T and w that make held-out objects, as frequent as `rates` says, most likely; w = 0 without trees.

        A pull towards `USUAL` shares keeps a few hundred objects from tipping it to one side; thousands outweigh it.
        """
        with_trees, rows = self.grown is not None, np.arange(len(labels))
        start = np.array(USUAL if with_trees else (1.0, 0.0))

        def loss(shares: Floats) -> float:
            z = shares[0] * logits + (shares[1] * tree_logs if with_trees else 0.0) + np.log(rates)
            pull = PULL / len(labels) * float(np.square(shares - start).sum()) if with_trees else 0.0
            return float(-log_softmax(z, axis=1)[rows, labels].mean()) + pull

        # Convex in both.
        bounds = [(1 / LARGEST**2, LARGEST), (0.0, LARGEST if with_trees else 0.0)]
        share, weight = minimize(loss, start, bounds=bounds).x
        self.temperature.fill_(1 / share)
        self.trees_weight.fill_(weight)

    def fit_distances(self, pooled: Floats, labels: NDArray[Any]) -> None:
        """Where the classes lie among the network's pooled features, of the training part."""
        found = ClassDistances.fit(pooled, labels, len(self.class_means))
        self.class_means.copy_(torch.from_numpy(found.means))
        self.class_precision.copy_(torch.from_numpy(found.precision))

    @property
    def distances(self) -> ClassDistances:
        return ClassDistances(
            self.class_means.double().cpu().numpy(), self.class_precision.double().cpu().numpy()
        )
