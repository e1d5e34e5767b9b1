"""Boosted trees on summary numbers over the labelled surveys, a fifth of each class held out by object, no redshift.

Options come from up to three tries on folds of the other four fifths alone. The peer is the data's own reference:
boosted trees on seven summary numbers a band, scored on objects outside these files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from astro.transients.features import features
from astro.transients.lightcurve import WAVELENGTHS, Floats
from astro.transients.metrics import bootstrap, summary
from astro.transients.read import read_path
from astro.transients.trees import Trees
from shared.bench.real_data import data_folder

Say = Callable[[str], None]
SEED, TEST = 0, 0.2
SMALL: Mapping[str, Any] = {"rounds": 80, "leaves": 8, "smallest_leaf": 5}
"""Where the rarest classes have some ten objects."""
PEER = "seven numbers a band (data/astro/MANIFEST.md)"


@dataclass(frozen=True)
class Survey:
    bands: tuple[str, ...]
    wanted: tuple[float, float]
    """Accuracy, balanced accuracy"""
    peer: tuple[float, float]
    options: Mapping[str, Any] = field(default_factory=dict)


SURVEYS = {
    "ztf_bts": Survey(("g", "r"), (0.87, 0.55), (0.85, 0.46), SMALL),
    "mallorn": Survey(tuple(WAVELENGTHS["lsst"]), (0.90, 0.55), (0.87, 0.43), SMALL),
    "snpcc": Survey(tuple(WAVELENGTHS["des"]), (0.92, 0.85), (0.88, 0.78)),
}


def survey_rows(name: str, say: Say) -> list[dict[str, Any]]:
    """Scores of the balanced trees; accuracies again with the training part's class shares as priors."""
    survey, clock = SURVEYS[name], time.process_time
    start = clock()
    curves = [c for c in read_path(data_folder("astro") / f"{name}_lightcurves.parquet") if c.label]
    classes = sorted({str(c.label) for c in curves})
    y = np.array([classes.index(str(c.label)) for c in curves])
    train, test = train_test_split(np.arange(len(y)), test_size=TEST, stratify=y, random_state=SEED)
    read = clock()
    x = features(curves, survey.bands)
    counted = clock()
    trees = Trees.fit(x[train], y[train], len(classes), SEED, **survey.options)
    grown = clock()
    p = trees.probabilities(x[test])
    found = summary(y[test], p, classes)
    low, high = bootstrap(_accuracies, y[test], p)
    say(
        f"{name}: {len(train):,} + {len(test):,} objects, {x.shape[1]} numbers; seconds of CPU: reading "
        f"{read - start:.1f}, numbers {counted - read:.1f}, trees {grown - counted:.1f}"
    )
    rows = []
    for k, quantity in enumerate(("accuracy", "balanced_accuracy")):
        row = {"case": name, "model": "trees", "quantity": quantity, "ours": round(found[quantity], 4)}
        row |= {"low": round(low[k], 4), "high": round(high[k], 4), "wanted": survey.wanted[k]}
        rows.append(row | {"peer": survey.peer[k], "peer_name": PEER})
        say(f"{name}: {quantity} {row['ours']:.3f} ({low[k]:.3f} to {high[k]:.3f}), wanted {row['wanted']}")
    for c, label in enumerate(classes):
        row = {"case": name, "model": "trees", "quantity": f"recall {label}"}
        rows.append(row | {"ours": round(found[f"recall_{label}"], 4), "objects": int((y[test] == c).sum())})
        say(f"{name}: {rows[-1]['quantity']} {rows[-1]['ours']:.3f} of {rows[-1]['objects']}")
    shifted = _accuracies(y[test], p * np.bincount(y[train], minlength=len(classes)))
    for quantity, value in zip(("accuracy", "balanced_accuracy"), shifted):
        row = {"case": name, "model": "trees, priors of the training part", "quantity": quantity}
        rows.append(row | {"ours": round(float(value), 4)})
        say(f"{name}: {row['model']}: {quantity} {value:.3f}")
    return rows


def _accuracies(labels: Any, probability: Floats) -> Floats:
    right = probability.argmax(1) == labels
    return np.array([right.mean(), np.mean([right[labels == c].mean() for c in np.unique(labels)])])


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    name: partial(survey_rows, name) for name in SURVEYS
}
QUICK = ("ztf_bts",)
