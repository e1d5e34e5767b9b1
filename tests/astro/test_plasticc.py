"""The genuine PLAsTiCC objects at hand: read, classified and scored in 14 classes. Only the weights are random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss as sklearn_log_loss

from astro.transients.config import TransientsConfig
from astro.transients.evaluate import evaluate
from astro.transients.metrics import KAGGLE_WEIGHTS, log_loss
from astro.transients.predict import TransientsPredictor
from astro.transients.read import read_path
from shared.bundle import Bundle
from tests.astro.bundles import random_bundle

CLASSES = ("6", "15", "16", "42", "52", "53", "62", "64", "65", "67", "88", "90", "92", "95")
FILES = {"plasticc_reduced": 553, "plasticc_full": 64}


def test_617_objects_are_read_classified_and_scored(data_dir: Path, tmp_path: Path) -> None:
    curves = []
    for name, objects in FILES.items():
        found = read_path(data_dir / "astro" / f"{name}_lightcurves.parquet")
        assert len(found) == objects and all(curve.label in CLASSES for curve in found)
        curves += found
    assert len(curves) == 617 and len({curve.label for curve in curves}) == 14
    table = TransientsPredictor(random_bundle(tmp_path / "bundle", classes=CLASSES), {"rates": "flat"}).table(
        curves
    )
    assert list(table["id"]) == [curve.id for curve in curves]
    assert (table["class"] != "").sum() > 500, "objects of few points get the class rates"
    p = table[[f"p_{name}" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-9)

    labels = np.array([CLASSES.index(str(curve.label)) for curve in curves])
    weights = [KAGGLE_WEIGHTS.get(name, 1.0) for name in CLASSES]
    assert weights[1] == weights[7] == 2 and sum(weights) == 16
    number = np.bincount(labels)
    for w in (None, weights):
        each = (np.ones(14) if w is None else np.array(w))[labels] / number[labels]
        assert log_loss(labels, p, w) == pytest.approx(
            sklearn_log_loss(labels, p, sample_weight=each), rel=1e-9
        )
        assert log_loss(labels, np.full((617, 14), 1 / 14), w) == pytest.approx(2.639057, abs=1e-6)


def test_evaluation_scores_them_so(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 64 with whole curves are of six classes: the absent ones count neither above nor below the line."""
    monkeypatch.setattr("astro.transients.evaluate._figures", lambda *_: {})
    made = random_bundle(tmp_path / "bundle", classes=CLASSES)
    bundle = Bundle(made.path, {**made.schema, "data_fingerprint": ""})
    path = data_dir / "astro" / "plasticc_full_lightcurves.parquet"
    config = bundle.config(TransientsConfig, {"data": {"path": str(path)}, "evaluate": {"days": []}})
    found = evaluate(bundle, config, tmp_path / "out")

    curves = read_path(path)
    table = TransientsPredictor(bundle, {"rates": "flat"}).table(curves)
    p = table[[f"p_{name}" for name in CLASSES]].to_numpy()
    labels = np.array([CLASSES.index(str(curve.label)) for curve in curves])
    number = np.bincount(labels, minlength=14)
    assert found.metrics["objects"] == 64 and (number > 0).sum() == len(found.classes) == 6
    weights = np.array([KAGGLE_WEIGHTS.get(name, 1.0) for name in CLASSES])
    for name, w in (("log_loss", np.ones(14)), ("log_loss_weighted", weights)):
        each = w[labels] / number[labels]
        wanted = sklearn_log_loss(labels, p, sample_weight=each, labels=range(14))
        assert found.metrics[name] == pytest.approx(wanted, rel=1e-9)
