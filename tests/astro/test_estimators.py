"""The sktime classifier: sktime's own conformance checks, real data beside peers, light curves, files, bad inputs."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sktime")
from sklearn.model_selection import KFold
from sktime.base import load
from sktime.classification.compose import ClassifierPipeline
from sktime.classification.distance_based import KNeighborsTimeSeriesClassifier
from sktime.classification.model_evaluation import evaluate
from sktime.classification.model_selection import TSCGridSearchCV
from sktime.datasets import load_basic_motions, load_unit_test
from sktime.transformations.impute import Imputer
from sktime.utils.estimator_checks import check_estimator

from astro.transients.estimators import T2Classifier, panel
from astro.transients.grids import inputs_of
from astro.transients.lightcurve import TOO_FEW
from astro.transients.pipeline import PIPELINE
from astro.transients.sample import simulate

FAST: dict[str, Any] = {"max_epochs": 2, "device": "cpu", "random_state": 0}


def numbers(name: Any, split: str) -> tuple[Any, Any]:
    return name(split=split, return_type="numpy3d")


def made(n: int = 24, variables: int = 3, times: int = 20) -> tuple[Any, Any]:
    """Noise, and in every third series a bump that the first variable has."""
    draw = np.random.default_rng(0)
    X, y = draw.normal(size=(n, variables, times)), np.array(["flat", "bump", "flat"] * (n // 3))
    X[y == "bump", 0] += 4 * np.exp(-0.1 * (np.arange(times) - times / 2) ** 2)
    return X, y


def test_it_passes_every_check_of_sktime() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = check_estimator(T2Classifier, raise_exceptions=False, verbose=False)
    assert {name: said for name, said in found.items() if said != "PASSED"} == {}
    assert len(found) >= 204


# ---------------------------------------------------------------- accuracy


@pytest.mark.parametrize(
    ("data", "least", "peer_most"), [(load_basic_motions, 0.95, 0.65), (load_unit_test, 0.9, 0.87)]
)
def test_it_beats_the_nearest_neighbour_on_real_series(data: Any, least: float, peer_most: float) -> None:
    (X, y), (unseen, truth) = (numbers(data, split) for split in ("train", "test"))
    peer = KNeighborsTimeSeriesClassifier(distance="euclidean").fit(X, y).score(unseen, truth)
    assert T2Classifier(device="cpu", random_state=0).fit(X, y).score(unseen, truth) >= least
    assert peer < peer_most


def test_light_curves_are_classified() -> None:
    curves = [curve for curve in simulate(260, 1) if curve.status == "ok" and len(curve) >= 3]
    y = np.array([curve.label for curve in curves])
    X, train = panel(curves, times=32, redshift=True), np.arange(len(curves)) < 180
    fitted = T2Classifier(flux="arcsinh", redshift="tokens", max_epochs=40, device="cpu", random_state=0).fit(
        X[train], y[train]
    )
    peer = KNeighborsTimeSeriesClassifier(distance="euclidean").fit(X[train], y[train])
    assert fitted.score(X[~train], y[~train]) > 0.7  # of six classes
    assert peer.score(X[~train], y[~train]) < 0.6


# ---------------------------------------------------------------- input


def test_panels_hold_what_the_network_is_given() -> None:
    curves = [replace(curve, redshift=np.nan) if i == 1 else curve for i, curve in enumerate(simulate(6, 2))]
    curves = [curve for curve in curves if curve.status == "ok"]
    wanted = inputs_of(curves, "lsst", 16)
    X = panel(curves, times=16, sd=True, redshift=True)
    assert X.shape == (len(curves), 14, 16)
    found = T2Classifier(channels=("mean", "sd"), redshift="tokens")._inputs(X)
    for name in ("mean", "sd", "redshift"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), equal_nan=True)
    assert found.redshift.isnan().any() and not found.redshift.isnan().all()
    np.testing.assert_array_equal(panel(curves, times=16), X[:, :6])
    bare = replace(curves[0], status=TOO_FEW)
    with pytest.raises(ValueError, match=r"object .*: too few points, .* at least 3 wanted; leave it out"):
        panel([curves[1], bare])


@pytest.mark.parametrize("redshift", ["tokens", "channels"])
def test_redshifts_decide_where_fluxes_do_not(redshift: str) -> None:
    X, y = np.random.default_rng(0).normal(size=(180, 4, 12)), np.arange(180) % 2
    X[:, 2], X[:, 3] = (0.1 + 0.8 * y)[:, None], 0.01
    fitted = T2Classifier(redshift=redshift, max_epochs=40, device="cpu", random_state=0).fit(X[:90], y[:90])
    unknown = X[90:].copy()
    unknown[:, 2:] = -1
    assert fitted.score(X[90:], y[90:]) > 0.95
    assert 0.3 < fitted.score(unknown, y[90:]) < 0.7
    # All hidden in training, they decide nothing.
    settings = {**FAST, "redshift": redshift, "hide_redshift": 1.0}
    one, two = (T2Classifier(**settings).fit(each, y[90:]) for each in (X[90:], unknown))
    np.testing.assert_allclose(one.predict_proba(unknown), two.predict_proba(unknown), atol=1e-5)


@pytest.mark.parametrize("flux", ["robust", "arcsinh", "object"])
def test_constant_and_tiny_sets_are_fitted(flux: str) -> None:
    X = np.full((2, 1, 5), 7.0)
    probability = T2Classifier(flux=flux, **FAST).fit(X, np.array([0, 1])).predict_proba(X)
    assert np.isfinite(probability).all()
    np.testing.assert_allclose(probability.sum(1), 1, atol=1e-12)


def test_one_class_is_answered_without_a_network() -> None:
    X, y = made()
    with pytest.warns(UserWarning, match="single label"):
        fitted = T2Classifier(**FAST).fit(X, np.full(len(y), "only"))
    assert set(fitted.predict(X)) == {"only"}


def test_classes_of_equal_rates_are_an_option() -> None:
    X, y = made(60)
    X[:, 0] = np.random.default_rng(1).normal(size=(60, 20))  # nothing tells the classes apart
    settings = {"max_epochs": 15, "lr": 1e-3, "device": "cpu", "random_state": 0}
    mean = {
        kind: T2Classifier(imbalance=kind, **settings).fit(X, y).predict_proba(X)[:, 0].mean()
        for kind in ("none", "weights", "adjust")
    }
    assert mean["none"] == pytest.approx(1 / 3, abs=0.07)  # bump is the rarer one
    assert mean["weights"] == pytest.approx(0.5, abs=0.07)
    assert mean["adjust"] == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "t3"}, r"backbone.*t3"),
        ({"channels": ("mean", "duration")}, "channels 'duration'; mean, and any of sd, peak wanted"),
        ({"channels": ("peak",)}, "model.channels: found peak; mean and any of"),
        ({"channels": ("mean", "sd")}, "X: 3 variables; means, as many deviations wanted"),
        ({"redshift": "tokens", "channels": ("mean", "sd")}, "deviations, redshift and error wanted"),
        ({"flux": "log"}, "model.flux: found 'log'"),
        ({"imbalance": "smote"}, "train.imbalance: found 'smote'"),
        ({"max_epochs": 0}, "train.epochs: found 0"),
        ({"lr": 1e30}, "gradients are not finite in epoch .; finite ones wanted; lower lr, or scale X"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        T2Classifier(**{**FAST, "max_epochs": 3, **settings}).fit(*made())


def test_series_that_cannot_be_read_are_refused_in_a_line() -> None:
    X, y = made()
    fitted = T2Classifier(**FAST).fit(X, y)
    with pytest.raises(
        ValueError, match="X: 3 variables of 19 times; 3 variables of 20 times wanted, as in fit"
    ):
        fitted.predict(X[:, :, 1:])
    with pytest.raises(ValueError, match="not finite in single precision"):
        fitted.predict(X * 1e300)
    X[3, 1, 4] = np.nan
    with pytest.raises(ValueError, match="missing"):
        T2Classifier(**FAST).fit(X, y)


# ---------------------------------------------------------------- state


def test_probabilities_do_not_depend_on_the_batch() -> None:
    X, y = made(60)
    fitted = T2Classifier(**FAST).fit(X, y)
    many = np.tile(X, (20, 1, 1))
    np.testing.assert_allclose(fitted.predict_proba(many)[:60], fitted.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(fitted.predict_proba(X[7:8]), fitted.predict_proba(X)[7:8], atol=1e-6)


def test_the_same_seed_gives_the_same_network_and_leaves_the_generators_alone() -> None:
    X, y = made()
    torch.manual_seed(5)
    np.random.seed(5)
    first = T2Classifier(**FAST).fit(X, y)
    drawn = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    assert (torch.rand(1), np.random.rand()) == drawn
    again = T2Classifier(**FAST).fit(X, y)
    np.testing.assert_array_equal(first.predict_proba(X), again.predict_proba(X))
    other = T2Classifier(**{**FAST, "random_state": 1}).fit(X, y)
    assert np.abs(first.predict_proba(X) - other.predict_proba(X)).max() > 1e-3


def test_a_fitted_classifier_survives_a_file(tmp_path: Path) -> None:
    X, y = made()
    fitted = T2Classifier("hyena_xs", **FAST).fit(X, y)
    fitted.save(tmp_path / "model")
    np.testing.assert_array_equal(load(tmp_path / "model.zip").predict_proba(X), fitted.predict_proba(X))


def test_inside_pipelines_cross_validation_and_grid_search() -> None:
    X, y = made()
    holes = X.copy()
    holes[0, 0, 3] = np.nan
    steps = ClassifierPipeline(T2Classifier(**FAST), [Imputer()])
    assert steps.fit(holes, y).predict(X).shape == y.shape
    folds = KFold(2, shuffle=True, random_state=0)
    assert evaluate(T2Classifier(**FAST), folds, X, y)["test_accuracy_score"].notna().all()
    search = TSCGridSearchCV(T2Classifier(**FAST), {"lr": [1e-4, 1e-2]}, cv=folds).fit(X, y)
    assert search.best_params_["lr"] in (1e-4, 1e-2) and np.isfinite(search.best_score_)


def test_the_pipeline_does_not_need_sktime() -> None:
    for path in PIPELINE.folder.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.stem == "estimators" or not re.search(r"sktime|transients\.estimators", text), path.name
