"""Losses, scores and what is done with probabilities: the toy values of the specification, and the libraries' own."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F

from astro.transients.decide import ClassDistances, doubt, with_priors
from astro.transients.losses import TransientLoss, batch_log_loss
from astro.transients.metrics import (
    bootstrap,
    confusion,
    log_loss,
    ranking,
    recalls,
    reliability,
    summary,
)

LABELS = np.array([0, 0, 0, 1])
TOY = np.array([[0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.2, 0.6, 0.2]])


def random(n: int = 400, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    y = g.choice(classes, n, p=[0.6, 0.25, 0.1, 0.04, 0.01])
    z = g.normal(size=(n, classes)) + 1.5 * np.eye(classes)[y]
    return y, z


def softmax(z: np.ndarray) -> np.ndarray:
    return torch.from_numpy(z).softmax(1).numpy()


def test_toy_values() -> None:
    assert log_loss(LABELS, TOY) == pytest.approx(0.425688, abs=1e-6)
    assert log_loss(LABELS, TOY, [1, 2, 1]) == pytest.approx(0.454067, abs=1e-6)
    legacy = batch_log_loss(torch.from_numpy(TOY), torch.from_numpy(LABELS))
    assert float(legacy) == pytest.approx(0.283792, abs=1e-6)
    assert log_loss(np.arange(14), np.full((14, 14), 1 / 14)) == pytest.approx(2.639057, abs=1e-6)


def test_flat_loss_is_sklearns_with_sample_weights() -> None:
    y, z = random()
    p, number = softmax(z), np.bincount(y)
    wanted = sklearn.metrics.log_loss(y, p, sample_weight=1 / number[y])
    assert log_loss(y, p) == pytest.approx(wanted, rel=1e-12)
    # Not a mean over batches; not changed by the rows' order or their sum.
    order = np.random.default_rng(1).permutation(len(y))
    assert log_loss(y[order], 0.1 * p[order]) == pytest.approx(wanted, rel=1e-9)
    assert np.mean([log_loss(y[i : i + 8], p[i : i + 8]) for i in range(0, 400, 8)]) != pytest.approx(
        wanted, rel=0.01
    )


def test_certain_errors_cost_what_the_clip_says() -> None:
    assert log_loss([0], [[0.0, 1.0]]) == pytest.approx(-np.log(1e-15), rel=1e-9)


def test_weighted_training_loss_is_the_global_one() -> None:
    y, z = random()
    loss = TransientLoss(np.bincount(y).tolist(), "weights")
    logits, labels = torch.from_numpy(z).float(), torch.from_numpy(y)
    assert float(loss(logits, labels)) == pytest.approx(log_loss(y, softmax(z)), rel=1e-5)
    halves = [float(loss(logits[i : i + 200], labels[i : i + 200])) for i in (0, 200)]
    assert np.mean(halves) == pytest.approx(float(loss(logits, labels)), rel=1e-5)


def test_logit_adjustment() -> None:
    y, z = random()
    number = np.bincount(y)
    logits, labels = torch.from_numpy(z).float(), torch.from_numpy(y)
    adjusted = logits + torch.from_numpy(np.log(number / len(y))).float()
    loss = TransientLoss(number.tolist(), "adjust")
    assert float(loss(logits, labels)) == pytest.approx(float(F.cross_entropy(adjusted, labels)), rel=1e-5)
    assert torch.isfinite(TransientLoss([3, 0, 1], "adjust")(torch.zeros(2, 3), torch.tensor([0, 2])))
    assert torch.isfinite(TransientLoss([3, 0, 1], "weights")(torch.zeros(2, 3), torch.tensor([0, 2])))


def test_legacy_training_loss() -> None:
    loss = TransientLoss([3, 1, 0], "legacy")
    assert float(loss(torch.from_numpy(TOY).log(), torch.from_numpy(LABELS))) == pytest.approx(
        0.283792, abs=1e-6
    )


def test_scores_are_sklearns() -> None:
    y, z = random()
    p = softmax(z)
    chosen = p.argmax(1)
    found = summary(y, p, "abcde", [1, 1, 1, 1, 2])
    assert found["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(y, chosen))
    assert found["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(y, chosen))
    assert found["auc_macro"] == pytest.approx(sklearn.metrics.roc_auc_score(y, p, multi_class="ovr"))
    np.testing.assert_array_equal(confusion(y, p), sklearn.metrics.confusion_matrix(y, chosen))
    np.testing.assert_allclose(recalls(y, p), np.diag(confusion(y, p)) / np.bincount(y))


def test_absent_classes_are_left_out() -> None:
    found = summary(LABELS, TOY, "abc")
    assert found["balanced_accuracy"] == 1 and "recall_c" not in found
    auc, ap = ranking(LABELS, TOY)
    assert np.isnan([auc[2], ap[2]]).all() and auc[0] == 1


def test_reliability_of_a_forecaster_that_is_right() -> None:
    g = np.random.default_rng(0)
    p = g.uniform(0.5, 1, 20_000)
    y = (g.uniform(size=len(p)) > p).astype(int)
    found = reliability(y, np.stack([p, 1 - p], 1))
    assert found.ece < 0.02 and found.number.sum() == len(p)
    assert reliability([0, 1], [[1.0, 0.0], [1.0, 0.0]]).ece == pytest.approx(0.5)
    # In one bin of fifteen each, .53 to .60 and on to .67: (1 − .61 + .54) / 2; in one bin it were .075.
    assert reliability([0, 1], [[0.61, 0.39], [0.54, 0.46]]).ece == pytest.approx(0.465)


def test_priors() -> None:
    g = np.random.default_rng(0)
    likelihood, balanced, survey = g.dirichlet(np.ones(3), 10), np.full(3, 1 / 3), np.array([0.7, 0.3, 0.0])
    wanted = likelihood * survey
    np.testing.assert_allclose(
        with_priors(likelihood, balanced, survey), wanted / wanted.sum(1, keepdims=True)
    )
    np.testing.assert_allclose(with_priors(likelihood, survey + 0.1, survey + 0.1), likelihood)
    np.testing.assert_allclose(with_priors([[0.0, 0, 1]], balanced, survey), [survey])
    untrained = with_priors([[0.5, 0.5]], [0.0, 1.0], [0.3, 0.7])
    np.testing.assert_allclose(untrained, [[0.5 / 0.85, 0.35 / 0.85]])


def test_doubt_is_higher_for_what_no_class_resembles() -> None:
    known, unknown = np.array([[8.0, 0, 0]]), np.array([[0.1, 0, 0]])
    for name, values in doubt(known).items():
        assert values[0] < doubt(unknown)[name][0]
    assert doubt(known)["max_probability"][0] == pytest.approx(1 - np.exp(8) / (np.exp(8) + 2))
    assert doubt(known)["energy"][0] == pytest.approx(-np.log(np.exp(8) + 2))


def test_class_distances() -> None:
    g = np.random.default_rng(0)
    y = np.repeat([0, 1], 500)
    x = g.normal(size=(1000, 4)) * [1, 2, 1, 1] + 6 * np.eye(4)[y]
    fitted = ClassDistances.fit(x, y, 3)
    assert fitted(x).mean() == pytest.approx(4, abs=0.4)  # chi² of four channels
    assert fitted([[20.0, 20, 20, 20]])[0] > fitted(x).max()


def test_bootstrap_brackets_the_score() -> None:
    y, z = random()
    low, high = bootstrap(recalls, y, softmax(z), draws=50)
    middle = recalls(y, softmax(z))
    assert ((low <= middle) & (middle <= high)).all() and (high > low).any()
