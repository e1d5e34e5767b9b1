"""Bundles whose weights are random: real code end to end without a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from astro.transients.config import TransientsConfig
from astro.transients.grids import inputs_of
from astro.transients.pipeline import PIPELINE
from astro.transients.sample import CLASSES, simulate
from astro.transients.trees import Trees
from shared.bundle import Bundle


def random_bundle(
    path: Path,
    survey: str = "lsst",
    classes: Sequence[str] = CLASSES,
    grid: int = 24,
    read: Mapping[str, Any] = MappingProxyType({}),
    **model: Any,
) -> Bundle:
    """A network of smoke size with seeded weights, a few trees beside it, classes as frequent as 1 : 2 : 3 : …"""
    torch.manual_seed(0)
    data = {"classes": tuple(classes), "survey": survey, "grid": grid, "read": dict(read)}
    config = TransientsConfig.model_validate({"data": data, "model": model})
    found, some = PIPELINE.task(config).network, simulate(60, 1)
    labels = np.arange(len(some)) % len(classes)
    read = found.numbers(some, inputs_of(some, survey, grid))
    found.grown.put(Trees.fit(read, labels, len(classes), rounds=3, smallest_leaf=5))
    found.fit_distances(np.random.default_rng(0).normal(size=(60, found.class_means.shape[1])), labels)
    found.trees_weight.fill_(0.5)
    counts = {name: 10 * (k + 1) for k, name in enumerate(classes)}
    return Bundle.save(
        path,
        pipeline="transients",
        config=config,
        state_dict=found.state_dict(),
        schema={"data_fingerprint": "", "transients": {"class_counts": counts}},
    )
