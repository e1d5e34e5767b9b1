"""Network and trees as one model: what a bundle keeps of them, and how much each counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, softmax

from astro.transients.classifier import LARGEST, PULL, USUAL, Classifier
from astro.transients.config import TransientsConfig
from astro.transients.data import TransientsData
from astro.transients.features import number_names
from astro.transients.grids import inputs_of
from astro.transients.losses import TransientLoss
from astro.transients.pipeline import PIPELINE
from astro.transients.predict import TransientsPredictor
from astro.transients.sample import CLASSES, simulate, to_frame
from astro.transients.task import TransientsTask, fit, grow
from astro.transients.trees import Trees
from pipelines.export import export
from shared.bundle import Bundle
from shared.errors import ModelUnusable
from shared.training.fit import FitResult

K = 4
RATES = np.array([0.6, 0.2, 0.15, 0.05])


def config_of(**model: Any) -> TransientsConfig:
    data = {"classes": CLASSES, "survey": "lsst", "grid": 16}
    return TransientsConfig.model_validate({"data": data, "model": model})


def saved(folder: Path, model: Classifier, config: TransientsConfig) -> Bundle:
    return Bundle.save(folder / "bundle", pipeline="transients", config=config, state_dict=model.state_dict())


@pytest.fixture(scope="module")
def grown() -> tuple[Classifier, TransientsConfig]:
    """Random weights, trees as training grows them, and everything else that training fits."""
    torch.manual_seed(0)
    config, some = config_of(), simulate(60, 1)
    model = Classifier(config).eval()
    labels = np.array([CLASSES.index(str(curve.label)) for curve in some])
    inputs = inputs_of(some, "lsst", 16)
    model.network.fit_scaling(inputs)
    assert model.grown is not None
    model.grown.put(Trees.fit(model.numbers(some, inputs), labels, len(CLASSES), rounds=25, smallest_leaf=5))
    with torch.no_grad():
        pooled, logits = model.network.pooled(inputs).double().numpy(), model(inputs).double().numpy()
    model.fit_distances(pooled, labels)
    model.fit_pool(logits, model.tree_logs(some, inputs), labels, np.full(len(CLASSES), 1 / len(CLASSES)))
    return model, config


# ---------------------------------------------------------------- through a bundle


def test_a_bundle_answers_as_the_model_it_was_made_of(
    tmp_path: Path, grown: tuple[Classifier, TransientsConfig]
) -> None:
    model, config = grown
    again: Classifier = saved(tmp_path, model, config).load_into(Classifier(config))
    others = simulate(40, 2)
    inputs = inputs_of(others, "lsst", 16)
    assert model.grown is not None and again.grown is not None
    numbers = model.numbers(others, inputs)
    kept, made = again.grown.trees.probabilities(numbers), model.grown.trees.probabilities(numbers)
    np.testing.assert_array_equal(kept, made)
    assert made.max() > 0.5
    np.testing.assert_array_equal(again.tree_logs(others, inputs), model.tree_logs(others, inputs))
    with torch.no_grad():
        ours, theirs = model(inputs), again(inputs)
        pooled = model.network.pooled(inputs).double().numpy()
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    z, trees = ours.double().numpy(), model.tree_logs(others, inputs)
    np.testing.assert_array_equal(again.pooled_logits(z, trees), model.pooled_logits(z, trees))
    np.testing.assert_array_equal(again.distances(pooled), model.distances(pooled))
    assert (model.distances(pooled) >= 0).all()


def test_answers_at_equal_rates_are_the_networks_less_its_own(tmp_path: Path) -> None:
    """With imbalance none the network speaks at the training set's rates; predict takes them out as the model does."""
    config = config_of(trees=False)
    model = Classifier(config).eval()
    model.log_rates.copy_(torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05]).log())
    model.class_means.zero_()
    counts = {"transients": {"class_counts": dict.fromkeys(CLASSES, 10)}}
    bundle = Bundle.save(
        tmp_path / "b", pipeline="transients", config=config, state_dict=model.state_dict(), schema=counts
    )
    some = simulate(12, 3)
    with torch.no_grad():
        wanted = model(inputs_of(some, "lsst", 16)).double().numpy()
        plain = model.network(inputs_of(some, "lsst", 16)).double().numpy()
    found = TransientsPredictor(bundle, {}).answers(some).network
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(wanted, plain - model.log_rates.double().numpy(), rtol=1e-5, atol=1e-6)


def test_a_second_save_is_the_first(tmp_path: Path, grown: tuple[Classifier, TransientsConfig]) -> None:
    model, config = grown
    one = saved(tmp_path / "one", model, config)
    two = saved(tmp_path / "two", one.load_into(Classifier(config)), config)
    others = simulate(10, 3)
    inputs = inputs_of(others, "lsst", 16)
    again = two.load_into(Classifier(config))
    np.testing.assert_array_equal(again.tree_logs(others, inputs), model.tree_logs(others, inputs))
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name].double(), tensor.double(), rtol=0, atol=0)


def test_trees_of_any_size_fit_into_an_empty_model(grown: tuple[Classifier, TransientsConfig]) -> None:
    model, config = grown
    state, empty = model.state_dict(), Classifier(config)
    with pytest.raises(RuntimeError, match="size mismatch for grown"):
        empty.load_state_dict(state)
    empty.make_room(state)
    empty.load_state_dict(state)
    others = simulate(5, 4)
    inputs = inputs_of(others, "lsst", 16)
    np.testing.assert_array_equal(empty.tree_logs(others, inputs), model.tree_logs(others, inputs))


def test_trees_of_other_numbers_are_refused(
    tmp_path: Path, grown: tuple[Classifier, TransientsConfig]
) -> None:
    """Such as a bundle of a version whose trees read less."""
    model, config = grown
    state = model.state_dict()
    state["grown.tree_shape"] = state["grown.tree_shape"] - torch.tensor([0, 0, 7])
    bundle = Bundle.save(tmp_path / "bundle", pipeline="transients", config=config, state_dict=state)
    wanted = len(number_names(list("ugrizy")))
    with pytest.raises(
        ModelUnusable, match=f"bundle: its trees read {wanted - 7} numbers; {wanted} wanted .* train it again"
    ):
        bundle.load_into(Classifier(config))


def test_weights_without_trees_are_not_those_of_a_model_with_them(
    tmp_path: Path, grown: tuple[Classifier, TransientsConfig]
) -> None:
    _, config = grown
    without = Classifier(config_of(trees=False))
    some = simulate(2, 0)
    assert without.grown is None and (without.tree_logs(some, inputs_of(some, "lsst", 16)) == 0).all()
    bundle = saved(tmp_path, without, config)
    with pytest.raises(
        ModelUnusable, match=r"weights do not fit config\.yaml; first differing keys grown\.tree_"
    ):
        bundle.load_into(Classifier(config))


def test_distances_round_trip_with_an_absent_class() -> None:
    model, random = Classifier(config_of()), np.random.default_rng(0)
    width = model.class_means.shape[1]
    labels = np.arange(100) % 5
    pooled = random.normal(size=(100, width)) + 3 * np.eye(width)[labels]
    model.fit_distances(pooled, labels)
    assert torch.isnan(model.class_means[5]).all() and torch.isfinite(model.class_means[:5]).all()
    np.testing.assert_allclose(model.class_means[2].numpy(), pooled[labels == 2].mean(0), rtol=1e-5)
    other = Classifier(config_of())
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(other.distances(pooled), model.distances(pooled))
    assert (model.distances(pooled + 50) > model.distances(pooled)).all()


# ---------------------------------------------------------------- how much each counts


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels as frequent as `RATES`, and logits at equal rates from which they follow: true probabilities."""
    random = np.random.default_rng(seed)
    z = 2.5 * random.normal(size=(n, K))
    p = softmax(z + np.log(RATES), axis=1)
    return (p.cumsum(1) > random.uniform(size=(n, 1))).argmax(1), z


def pool_of(trees: bool = True) -> Classifier:
    """A model of which only the pool is looked at."""
    return Classifier(config_of(trees=trees))


def shares(model: Classifier) -> tuple[float, float]:
    return 1 / float(model.temperature), float(model.trees_weight)


def loss(z: np.ndarray, labels: np.ndarray, rates: np.ndarray = RATES) -> float:
    return float(-log_softmax(z + np.log(rates), axis=1)[np.arange(len(labels)), labels].mean())


def logs(z: np.ndarray) -> np.ndarray:
    return log_softmax(z, axis=1)


@pytest.mark.parametrize("n", [6, 30, 400])
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_the_pool_is_no_worse_than_the_network_up_to_its_pull(n: int, scale: float) -> None:
    """The pull is worth at most PULL / N · (0.5² + 0.7²) where one of them alone would be best."""
    labels, z = drawn(n, seed=n)
    noise = np.random.default_rng(9).normal(size=z.shape)
    model = pool_of()
    for network, trees in ((scale * z, logs(noise)), (scale * z + noise, logs(z + noise[::-1]))):
        model.fit_pool(network, trees, labels, RATES)
        pull = PULL / n * max((1 - USUAL[0]) ** 2 + USUAL[1] ** 2, USUAL[0] ** 2 + (1 - USUAL[1]) ** 2)
        assert loss(model.pooled_logits(network, trees), labels) <= loss(network, labels) + pull
        for alone in (network, trees):
            assert loss(model.pooled_logits(network, trees), labels) <= loss(alone, labels) + pull
        if n == 400 and scale == 8:
            assert loss(model.pooled_logits(network, trees), labels) < loss(network, labels)


def test_a_useless_network_leaves_the_word_to_the_trees() -> None:
    labels, z = drawn(40_000)
    noise = np.random.default_rng(1).normal(size=z.shape)
    model = pool_of()
    model.fit_pool(noise, logs(z), labels, RATES)
    network, trees = shares(model)
    assert network == pytest.approx(1 / LARGEST**2, abs=0.02) and trees == pytest.approx(1, abs=0.15)


def test_useless_trees_leave_the_word_to_the_network() -> None:
    labels, z = drawn(40_000)
    noise = np.random.default_rng(1).normal(size=z.shape)
    model = pool_of()
    model.fit_pool(z, logs(noise), labels, RATES)
    network, trees = shares(model)
    assert network == pytest.approx(1, abs=0.15) and trees < 0.1


def test_two_that_know_different_things_are_multiplied() -> None:
    """Evidence that is independent adds up in logarithms: both shares are 1."""
    random, (labels, z) = np.random.default_rng(2), drawn(40_000)
    first = random.uniform(size=z.shape)
    one, two = first * z, (1 - first) * z
    model = pool_of()
    model.fit_pool(one, logs(two), labels, RATES)
    assert shares(model) == pytest.approx((1, 1), abs=0.1)


def test_a_handful_of_objects_tips_it_to_no_side() -> None:
    """Six objects, all as the trees say and none as the network: nearly even all the same."""
    labels = np.array([0, 0, 0, 1, 1, 2])
    right, wrong = 3 * np.eye(K)[labels], 3 * np.eye(K)[(labels + 1) % K]
    model = pool_of()
    model.fit_pool(wrong, logs(right), labels, RATES)
    network, trees = shares(model)
    assert 0.4 < network < USUAL[0] and USUAL[1] < trees < 0.8
    many = 4000
    model.fit_pool(np.tile(wrong, (many, 1)), np.tile(logs(right), (many, 1)), np.tile(labels, many), RATES)
    assert shares(model)[0] < 0.2 and shares(model)[1] > 2


# ---------------------------------------------------------------- without trees: temperature


@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0, 3.0, 40.0])
@pytest.mark.parametrize("n", [1, 5, 60, 3000])
def test_temperature_lowers_or_keeps_the_validation_loss(n: int, scale: float) -> None:
    """Specification 7.11, for however few objects."""
    labels, z = drawn(n, seed=3)
    model = pool_of(trees=False)
    model.fit_pool(scale * z, np.zeros_like(z), labels, RATES)
    assert float(model.trees_weight) == 0
    pooled = model.pooled_logits(scale * z, np.zeros_like(z))
    assert loss(pooled, labels) <= loss(scale * z, labels) + 1e-9


def test_without_trees_it_is_temperature_scaling() -> None:
    labels, z = drawn(20_000)
    equal, model = np.full(K, 1 / K), pool_of(trees=False)
    for scale in (0.5, 1.0, 2.0):
        model.fit_pool(scale * z, np.zeros_like(z), labels, equal)
        found = float(model.temperature)
        best, *others = (loss(scale * z / t, labels, equal) for t in (found, 0.99 * found, 1.01 * found))
        assert best < min(others)
    # At the rates that the objects have, the true temperature is found; it is the logarithm's mean score that falls.
    model.fit_pool(2 * z, np.zeros_like(z), labels, RATES)
    assert float(model.temperature) == pytest.approx(2, rel=0.03)
    p = softmax(model.pooled_logits(2 * z, np.zeros_like(z)) + np.log(RATES), axis=1)
    assert loss(z, labels) == pytest.approx(sklearn.metrics.log_loss(labels, p), rel=1e-3)


# ---------------------------------------------------------------- class rates


def test_imbalance_none_shifts_by_the_training_rates() -> None:
    """Plain cross-entropy learns the training set's rates; what leaves the model has them taken out."""
    config = PIPELINE.complete(
        PIPELINE.resolve("smoke", sets=("data.simulated=60", "train.imbalance=none", "data.grid=8"))
    )
    data = TransientsData(config)
    task = TransientsTask(config)
    task.learn_from(data)
    counts = np.array(data.counts())
    np.testing.assert_allclose(task.network.log_rates.exp().numpy(), counts / counts.sum(), rtol=1e-6)
    inputs, labels = data.train_set.inputs, data.train_set.labels
    task.eval()
    with torch.no_grad():
        raw, flat = task.network.network(inputs), task.network(inputs)
        torch.testing.assert_close(flat, raw - task.network.log_rates)
        plain, adjusted = task.loss(raw, labels), TransientLoss(counts.tolist(), "adjust")(flat, labels)
    torch.testing.assert_close(plain, F.cross_entropy(raw, labels))
    torch.testing.assert_close(plain, adjusted)


@pytest.mark.parametrize("imbalance", ["adjust", "weights", "legacy"])
def test_other_losses_answer_at_equal_rates_as_they_are(imbalance: str) -> None:
    config = PIPELINE.complete(
        PIPELINE.resolve("smoke", sets=("data.simulated=60", f"train.imbalance={imbalance}", "data.grid=8"))
    )
    task = TransientsTask(config)
    task.learn_from(TransientsData(config))
    assert (task.network.log_rates == 0).all()


def test_training_hides_redshifts() -> None:
    sets = ("data.simulated=60", "data.grid=8", "model.redshift=channels", "train.hide_redshift=1")
    config = PIPELINE.complete(PIPELINE.resolve("smoke", sets=sets))
    data, task = TransientsData(config), TransientsTask(config)
    task.learn_from(data)
    task.eval()
    inputs, labels = data.train_set.inputs, data.train_set.labels
    assert inputs.redshift.isfinite().any()
    none = inputs._replace(redshift=torch.full_like(inputs.redshift, torch.nan))
    torch.testing.assert_close(
        task.training_step((inputs, labels), 0), task.loss(task.network.network(none), labels)
    )


def test_answers_are_weighed_at_the_training_sets_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = [
        c for i, c in enumerate(simulate(90, 1)) if c.label == "agn" or (c.label == "flare" and i % 12 < 6)
    ]
    to_frame(curves).to_csv(tmp_path / "some.csv", index=False)
    sets = ("data.grid=8", "train.copies=0", "data.smallest_class=2")
    config = PIPELINE.complete(PIPELINE.resolve("smoke", sets=(f"data.path={tmp_path}/some.csv", *sets)))
    data, task, asked = TransientsData(config), TransientsTask(config), []
    trained = FitResult(task.network.state_dict(), {}, {}, 1, 1, 0.0)
    monkeypatch.setattr("astro.transients.task.general_fit", lambda *_: trained)
    monkeypatch.setattr(Classifier, "fit_pool", lambda *args: asked.append(args[1:]))
    fit(config, task, data, SimpleNamespace(say=lambda _: None))
    ((_, trees, labels, rates),) = asked
    counts = np.bincount(data.labels(data.part("train")))
    assert counts[0] > counts[1] > 0
    np.testing.assert_allclose(rates, counts / counts.sum())
    assert len(labels) == len(trees) == len(data.part("val"))


def test_trees_count_every_class_alike() -> None:
    """A class of one tenth is not drowned: its rate is taken out, as the network's is."""
    random = np.random.default_rng(0)
    labels = (random.uniform(size=2000) < 0.1).astype(int)
    x = random.normal(size=(2000, 3)) + 0.8 * labels[:, None]
    config = TransientsConfig.model_validate({"data": {"classes": ("a", "b"), "survey": "lsst"}})
    p = grow(x, labels, config).probabilities(x)[:, 1]
    assert p[labels == 1].mean() + p[labels == 0].mean() == pytest.approx(1, abs=0.1)
    assert p.mean() > 0.25


def test_an_onnx_file_answers_as_the_network_with_and_without_redshift(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    config = config_of(redshift="tokens", trees=False)
    model = PIPELINE.task(config).network.eval()
    some = simulate(9, 2)
    inputs = inputs_of(some, "lsst", 16)
    model.network.fit_scaling(inputs)
    result = export(PIPELINE, saved(tmp_path, model, config).path, "onnx", tmp_path / "model.onnx")
    assert result["inputs"]["mean"] == ["batch", 16, 6]
    session = onnxruntime.InferenceSession(result["output"], providers=["CPUExecutionProvider"])
    for given in (inputs, inputs._replace(redshift=torch.full_like(inputs.redshift, torch.nan))):
        (got,) = session.run(None, {name: each.numpy() for name, each in given._asdict().items()})
        with torch.no_grad():
            np.testing.assert_allclose(got, model(given).numpy(), rtol=1e-4, atol=1e-4)
