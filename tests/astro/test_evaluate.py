"""One smoke-sized model from training to report: what is scored, by which convention, and what is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch
from PIL import Image

from astro.transients import evaluate as module
from astro.transients.classifier import Classifier
from astro.transients.config import TransientsConfig
from astro.transients.data import TransientsData, reading_of, without_redshift
from astro.transients.evaluate import CONVENTIONS, TransientsEvaluation, evaluate
from astro.transients.grids import inputs_of, until
from astro.transients.lightcurve import TOO_FEW, LightCurve
from astro.transients.metrics import bootstrap, recalls, reliability
from astro.transients.pipeline import PIPELINE
from astro.transients.predict import TransientsPredictor
from astro.transients.report import add_sections, card_text
from astro.transients.sample import CLASSES, simulate, to_frame
from shared.bundle import Bundle
from shared.errors import DataInvalid, UsageError
from shared.pipeline import DataFacts
from shared.report.html import Report
from shared.training.fit import FitContext
from tests.astro.bundles import random_bundle

SETS = ("threads=1", "data.simulated=120", "data.left_out=[flare]", "train.epochs=2", "data.grid=16")
PARTS = ("time", "band", "flux", "error", "detected")
KNOWN = ("agn", "microlensing", "periodic", "plateau", "supernova")


@dataclass(frozen=True)
class Done:
    """A run as `pipelines run` makes it, and what was said meanwhile."""

    config: TransientsConfig
    bundle: Bundle
    data: TransientsData
    found: TransientsEvaluation
    out: Path
    said: list[str]

    @property
    def test(self) -> list[LightCurve]:
        return self.data.part("test")

    @property
    def labels(self) -> Any:
        return self.data.labels(self.test)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder, said = tmp_path_factory.mktemp("smoke"), list[str]()
    config = PIPELINE.complete(PIPELINE.resolve("smoke", sets=SETS))
    data: Any = PIPELINE.data(config)
    data.setup()
    torch.manual_seed(0)
    task = PIPELINE.task(config)
    context = FitContext(folder, None, False, said.append, "val/log_loss", "min", "same")
    fitted = PIPELINE.fit(config, task, data, context)
    schema = {
        "data_fingerprint": data.facts().fingerprint,
        "transients": PIPELINE.schema(config, data),
    }
    bundle = Bundle.save(
        folder / "bundle", pipeline="transients", config=config, state_dict=fitted.state_dict, schema=schema
    )
    found = PIPELINE.evaluate(bundle, config, folder / "out")
    assert isinstance(found, TransientsEvaluation)
    return Done(config, bundle, data, found, folder / "out", said)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without pictures, and intervals of few draws: they take most of the time."""
    monkeypatch.setattr(module, "_figures", lambda *_: {})
    monkeypatch.setattr(module, "bootstrap", lambda *args: bootstrap(*args, draws=3))
    yield


def over(config: TransientsConfig, part: str, **keys: Any) -> TransientsConfig:
    return config.model_copy(update={part: getattr(config, part).model_copy(update=keys)})


def asked(done: Done, **options: Any) -> np.ndarray:
    """(N, K) the model's answers for the test part, as `predict` gives them."""
    predictor = TransientsPredictor(done.bundle, options)
    return predictor.table(done.test)[[f"p_{name}" for name in KNOWN]].to_numpy()


def written(path: Path, curves: list[LightCurve]) -> Path:
    to_frame(curves).to_csv(path, index=False)
    return path


# ---------------------------------------------------------------- the numbers


def test_every_metric_is_there_and_in_range(done: Done) -> None:
    metrics = done.found.metrics
    wanted = {"objects", "log_loss", "log_loss_weighted", "accuracy", "balanced_accuracy"}
    wanted |= {"auc_macro", "ap_macro", "ece", "brier"}
    wanted |= {f"{key}_{name}" for key in ("recall", "auc", "ap") for name in KNOWN}
    wanted |= {f"{part}_{key}" for part in ("network", "trees") for key in module.PARTLY}
    wanted |= {f"unknown_auc_{name}" for name in ("doubt", "energy", "distance")}
    assert set(metrics) == wanted and set(PIPELINE.headline) <= wanted
    assert metrics["objects"] == len(done.test) == 20
    for name, value in metrics.items():
        high = 20 if name == "objects" else 2 if name == "brier" else 35 if "log_loss" in name else 1
        assert 0 <= value <= high, name
    # Better than a guess, by far, with the trees; nothing is shown of real objects.
    assert metrics["accuracy"] >= 0.5 and metrics["log_loss"] < np.log(5)


def test_losses_are_sklearns_of_the_flat_probabilities(done: Done) -> None:
    labels, metrics, flat = done.labels, done.found.metrics, asked(done, rates="flat")
    weight = 1 / np.bincount(labels)[labels]
    assert metrics["log_loss"] == pytest.approx(
        sklearn.metrics.log_loss(labels, flat, sample_weight=weight), rel=1e-9
    )
    # None of the six has a weight of PLAsTiCC's.
    assert metrics["log_loss_weighted"] == pytest.approx(metrics["log_loss"])
    trained = asked(done, rates="training")
    truth = np.eye(5)[labels]
    assert metrics["brier"] == pytest.approx(np.square(trained - truth).sum(1).mean())
    given = asked(done)
    assert metrics["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, given.argmax(1)))
    assert metrics["auc_macro"] == pytest.approx(
        sklearn.metrics.roc_auc_score(labels, given, multi_class="ovr")
    )


def test_class_rates(done: Done) -> None:
    """A quarter of the way between; classes are as frequent here, so other rates are put in."""
    assert [row["rates"] for row in done.found.rates] == ["flat", "between", "training"]
    predictor, labels = TransientsPredictor(done.bundle, {}), done.labels
    predictor.rates = np.array([0.5, 0.2, 0.1, 0.1, 0.1])
    flat = asked(done, rates="flat")
    rows = module._by_rates(predictor, labels, flat)
    for row, power in zip(rows, (0, 0.25, 1)):
        p = flat * predictor.rates**power
        assert row["accuracy"] == pytest.approx((p.argmax(1) == labels).mean())
        np.testing.assert_allclose(
            predictor.at_rates(flat, predictor.class_rates(row["rates"])), p / p.sum(1, keepdims=True)
        )
    assert len({round(row["ece"], 9) for row in rows}) == 3


def test_scores_by_days_end_at_the_whole_curves(done: Done) -> None:
    few, whole = done.found.days
    assert (few["days"], whole["days"]) == (10.0, np.inf)
    for key in ("accuracy", "balanced_accuracy", "log_loss"):
        assert whole[key] == pytest.approx(done.found.metrics[key])
    assert whole["classified"] == 1 and 0.5 < few["classified"] <= 1
    predictor = TransientsPredictor(done.bundle, {})
    young = predictor.table([until(curve, 10.0) for curve in done.test])
    assert few["classified"] == (young["class"] != "").mean()
    p = young[[f"p_{name}" for name in KNOWN]].to_numpy()
    assert few["accuracy"] == (p.argmax(1) == done.labels).mean()


def test_intervals_hold_the_values(done: Done) -> None:
    assert [row["class"] for row in done.found.classes] == list(KNOWN)
    for row in done.found.classes:
        assert row["objects"] == 4
        for key in ("recall", "auc", "ap"):
            assert 0 <= row[f"{key}_low"] <= row[key] <= row[f"{key}_high"] <= 1
            assert row[key] == pytest.approx(done.found.metrics[f"{key}_{row['class']}"])
    low, high = bootstrap(recalls, done.labels, asked(done))
    assert [row["recall_low"] for row in done.found.classes] == pytest.approx(low)
    assert [row["recall_high"] for row in done.found.classes] == pytest.approx(high)


def test_unknown_kinds(done: Done) -> None:
    """Areas under the ROC of each score, of test objects against those of the class left out."""
    predictor, strange = TransientsPredictor(done.bundle, {}), done.data.unknown
    assert len(strange) == 20 and {curve.label for curve in strange} == {"flare"}
    known, unknown = predictor.table(done.test), predictor.table(strange)
    for row in done.found.unknown:
        values = np.concatenate([known[row["score"]], unknown[row["score"]]])
        area = sklearn.metrics.roc_auc_score(np.repeat([0, 1], [20, 20]), values)
        assert row["auc"] == pytest.approx(area) == done.found.metrics[f"unknown_auc_{row['score']}"]
        assert row["objects"] == 20


def test_network_and_trees_alone(done: Done) -> None:
    predictor, labels = TransientsPredictor(done.bundle, {}), done.labels
    found = predictor.answers(done.test)
    np.testing.assert_allclose(
        found.logits,
        found.network / float(predictor.model.temperature)
        + float(predictor.model.trees_weight) * found.trees,
    )
    weight = 1 / np.bincount(labels)[labels]
    for name, logits in (("network", found.network), ("trees", found.trees)):
        p = torch.from_numpy(logits).softmax(1).numpy()
        wanted = sklearn.metrics.log_loss(labels, p, sample_weight=weight)
        assert done.found.metrics[f"{name}_log_loss"] == pytest.approx(wanted)
        assert done.found.metrics[f"{name}_accuracy"] == (p.argmax(1) == labels).mean()
    # Specification 7.11: calibration before and after.
    before, after = done.found.metrics["network_ece"], done.found.metrics["ece"]
    assert any(f"ECE {before:.3f} of the network as trained, {after:.3f}" in n for n in done.found.notes)
    assert done.said[-1].startswith("weighed on 10 validation objects: network at temperature ")


# ---------------------------------------------------------------- what is written


def test_one_row_an_object_in_order(done: Done) -> None:
    table = pd.read_csv(done.out / "test.csv", keep_default_na=False)
    assert list(table["id"]) == [curve.id for curve in done.test]
    assert list(table["label"]) == [curve.label for curve in done.test]
    np.testing.assert_allclose(table[[f"p_{name}" for name in KNOWN]], asked(done))
    own = asked(done)[np.arange(20), done.labels]
    for row, curve, p in zip(done.found.table, done.test, own, strict=True):
        assert (row["object"], row["label"], row["points"]) == (curve.id, curve.label, len(curve))
        assert row["p_label"] == pytest.approx(p)
    assert not {curve.id for curve in done.test} & {curve.id for curve in done.data.copies(1)}


def test_pictures(done: Done) -> None:
    names = ["1-confusion.png", "2-ranking.png", "3-reliability.png", "4-days.png", "5-curves.png"]
    assert [path.name for path in done.found.figures.values()] == names
    for path in done.found.figures.values():
        assert path.parent == done.out
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) > 300 and pixels.std() > 5
    order = [row["object"] for row in sorted(done.found.table, key=lambda row: row["p_label"])]
    assert list(dict.fromkeys(row["id"] for row in done.found.hangs_on)) == [order[0], order[10], order[-1]]


def test_a_model_with_redshift_is_also_scored_without_and_its_map_is_that_of_the_grid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = random_bundle(tmp_path / "bundle", grid=16, redshift="tokens")
    curves, drawn = simulate(24, 5), []

    def curve_figure(*args: Any) -> Any:
        drawn.append(args[3].shape)
        return module.days_figure([])

    monkeypatch.setattr(module, "curve_figure", curve_figure)
    config = over(bundle.config(TransientsConfig), "data", path=written(tmp_path / "some.csv", curves))
    found = evaluate(bundle, config, tmp_path / "out")
    assert drawn == [(3, 16)], "steps of the redshift on the picture"
    p = TransientsPredictor(bundle, {"rates": "flat"}).probabilities([without_redshift(c) for c in curves])
    labels = [CLASSES.index(str(curve.label)) for curve in curves]
    wanted = sklearn.metrics.log_loss(labels, p, labels=range(len(CLASSES)))
    assert found.metrics["without_redshift_log_loss"] == pytest.approx(wanted, rel=1e-6)
    assert found.metrics["log_loss"] != pytest.approx(wanted, rel=1e-3)
    report = Report("transients", "")
    add_sections(report, config, found)
    report.write(tmp_path / "report.html")
    assert "redshifts hidden" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_report_and_card(done: Done, tmp_path: Path) -> None:
    report = Report("transients", "")
    add_sections(report, done.config, done.found)
    report.write(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in (
        *("Network, trees, and both", "network alone", "boosted trees alone", "Class rates to assume"),
        *(
            "Kinds left out of training",
            "90 % intervals",
            "Since first detection",
            "What the answers shown hang on",
            *KNOWN,
            CONVENTIONS[0][:60],
        ),
    ):
        assert words in text
    assert f"{done.found.metrics['accuracy']:.3f}" in text and text.count("data:image/png;base64") == 5
    card = card_text(done.config, done.found, DataFacts("embedded sample", "", 1))
    assert "Simulated light curves; none is real." in card and f"- Classes: {', '.join(KNOWN)}" in card


# ---------------------------------------------------------------- without trees


@pytest.mark.usefixtures("undrawn")
def test_trees_stand_beside_a_network_without_them(done: Done, tmp_path: Path) -> None:
    """The baseline is grown on the same objects; it is not part of the model."""
    config = over(done.config, "model", trees=False)
    state = {k: v for k, v in done.bundle.state_dict().items() if not k.startswith("grown.")}
    state["trees_weight"] = torch.zeros(())
    assert set(state) == set(Classifier(config).state_dict())
    keys = ("data_fingerprint", "transients")
    bundle = Bundle.save(
        tmp_path / "bundle",
        pipeline="transients",
        config=config,
        state_dict=state,
        schema={key: done.bundle.schema[key] for key in keys},
    )
    found = evaluate(bundle, config, tmp_path / "out")
    metrics = found.metrics
    # Nothing but the temperature lies between the network and the answer.
    for key in ("accuracy", "balanced_accuracy"):
        assert metrics[key] == metrics[f"network_{key}"]
    for key in ("log_loss", "accuracy", "auc_macro"):
        assert metrics[f"network_{key}"] == pytest.approx(done.found.metrics[f"network_{key}"])
        assert metrics[f"trees_{key}"] == pytest.approx(done.found.metrics[f"trees_{key}"], rel=1e-3)
    report = Report("transients", "")
    add_sections(report, config, found)
    report.write(tmp_path / "report.html")
    assert "boosted trees on summary numbers" in (tmp_path / "report.html").read_text(encoding="utf-8")


# ---------------------------------------------------------------- other data, other wishes


@pytest.mark.usefixtures("undrawn")
def test_other_data_are_scored_whole(done: Done, tmp_path: Path) -> None:
    curves = simulate(24, 77)
    path = written(tmp_path / "new.csv", curves)
    found = evaluate(done.bundle, over(done.config, "data", path=path), tmp_path / "out")
    assert found.metrics["objects"] == 20 and [row["object"] for row in found.table] == [
        curve.id for curve in curves if curve.label != "flare"
    ]
    assert found.notes[0] == "Scored: every labelled object; the model was trained on others, 20 objects."
    assert found.unknown[0]["objects"] == 4


def test_tables_of_no_known_make_have_the_models_bands_and_any_backbone_is_drawn(tmp_path: Path) -> None:
    """Of a table in g, r, i a model of ZTF reads ZTF's; convnext_atto's last map has a 32nd of the grid's times."""
    bundle = random_bundle(tmp_path / "bundle", "ztf", grid=64, backbone="convnext_atto")
    rows = [replace(curve, survey="lsst") for curve in simulate(24, 5)]
    frame = to_frame(rows)
    path = tmp_path / "some.csv"
    frame[frame["band"].isin(list("gri"))].to_csv(path, index=False)
    config = bundle.config(TransientsConfig)
    found = evaluate(bundle, over(config, "data", path=path), tmp_path / "out")
    assert "does not tell whether it was trained on some" in found.notes[0]
    assert len(found.figures) == 5 and all(path.stat().st_size > 5000 for path in found.figures.values())
    assert pd.read_csv(tmp_path / "out" / "test.csv")["notes"].isna().all(), "bands of another survey"


def test_the_weighted_loss_has_plasticcs_weights(tmp_path: Path) -> None:
    bundle = random_bundle(tmp_path / "bundle", classes=("15", "90"), grid=16)
    curves = [replace(c, label="15" if i % 3 else "90") for i, c in enumerate(simulate(24, 5))]
    config = over(bundle.config(TransientsConfig), "data", path=written(tmp_path / "some.csv", curves))
    metrics = evaluate(bundle, config, tmp_path / "out").metrics
    p = TransientsPredictor(bundle, {"rates": "flat"}).table(reading_of(config).curves)
    mean = {name: -np.log(p[f"p_{name}"][[c.label == name for c in curves]]).mean() for name in ("15", "90")}
    assert metrics["log_loss_weighted"] == pytest.approx((2 * mean["15"] + mean["90"]) / 3, rel=1e-6)
    assert metrics["log_loss"] == pytest.approx((mean["15"] + mean["90"]) / 2, rel=1e-6)
    # Calibration is that at the training set's rates, here 1 : 2.
    p = TransientsPredictor(bundle, {"rates": "training"}).table(reading_of(config).curves)
    labels = [int(c.label == "90") for c in curves]
    assert metrics["ece"] == pytest.approx(reliability(labels, p[["p_15", "p_90"]].to_numpy()).ece, rel=1e-6)


def test_distances_are_to_the_training_parts_classes(done: Done) -> None:
    model = TransientsPredictor(done.bundle, {}).model
    curves = done.data.part("train")
    pooled = model.network.pooled(inputs_of(curves, "lsst", 16)).detach().double().numpy()
    for k, name in enumerate(KNOWN):
        own = pooled[[c.label == name for c in curves]].mean(0)
        np.testing.assert_allclose(model.class_means[k].numpy(), own, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("undrawn")
def test_objects_trained_on_are_left_out_of_other_data(done: Done, tmp_path: Path) -> None:
    """Also where points were added to them since, after them or before."""
    used = [done.data.curves[i] for i in (*done.data.rows["train"][:6], *done.data.rows["val"][:2])]
    used[0], used[1] = altered_tail(used[0]), earlier(used[1])
    new = [curve for curve in simulate(24, 77) if curve.label != "flare"]
    path = written(tmp_path / "both.csv", [*used, *new, done.test[0]])
    found = evaluate(done.bundle, over(done.config, "data", path=path), tmp_path / "out")
    assert [row["object"] for row in found.table] == [*(curve.id for curve in new), done.test[0].id]
    assert (
        found.notes[0]
        == "Scored: labelled objects that the model was not trained on; 8 that it was are left out, 21 objects."
    )
    path = written(tmp_path / "seen.csv", used)
    with pytest.raises(DataInvalid, match=r"seen\.csv: nothing but objects that bundle was trained on"):
        evaluate(done.bundle, over(done.config, "data", path=path), tmp_path / "out")


def altered_tail(curve: LightCurve) -> LightCurve:
    """With its last point a day later and brighter."""
    time, flux = curve.time.copy(), curve.flux.copy()
    time[-1], flux[-1] = time[-1] + 1, 2 * flux[-1] + 10
    return replace(curve, time=time, flux=flux)


def earlier(curve: LightCurve) -> LightCurve:
    """With forced photometry of a week before."""
    first = {name: np.insert(getattr(curve, name), 0, getattr(curve, name)[0]) for name in PARTS}
    first["time"][0] -= 7
    first["flux"][0], first["detected"][0] = 0.0, False
    return replace(curve, **first)


@pytest.mark.usefixtures("undrawn")
def test_answers_are_scored_at_the_rates_asked_for(done: Done, tmp_path: Path) -> None:
    priors = {"agn": 0.9, "plateau": 0.1}
    found = evaluate(done.bundle, over(done.config, "predict", priors=priors), tmp_path)
    assert found.metrics["recall_periodic"] == 0 == found.metrics["recall_supernova"]
    assert found.metrics["log_loss"] == pytest.approx(done.found.metrics["log_loss"])
    table = pd.read_csv(tmp_path / "test.csv")
    assert (table["p_periodic"] == 0).all() and set(table["class"]) <= {"agn", "plateau"}


def test_training_objects_are_not_scored(done: Done, tmp_path: Path) -> None:
    for config, words in (
        (over(done.config, "data", fold=1), "configuration:data.fold: 1; 0 wanted"),
        (over(done.config, "data", test=0.5), "configuration:data.test: 0.5; 0.2 wanted"),
    ):
        with pytest.raises(UsageError) as caught:
            evaluate(done.bundle, config, tmp_path)
        assert str(caught.value) == (
            f"{words}, for {done.bundle.path} was trained on objects of another test part; leave the split as it was"
        )


def test_labels_the_model_does_not_know(done: Done, tmp_path: Path) -> None:
    other = [replace(curve, label="Ia") for curve in simulate(12, 5)]
    path = written(tmp_path / "other.csv", other)
    with pytest.raises(UsageError) as caught:
        evaluate(done.bundle, over(done.config, "data", path=path), tmp_path)
    assert str(caught.value) == (
        f"{path}: objects of Ia; one or more of {', '.join(KNOWN)} wanted; relabel them, or choose another model"
    )
    path = tmp_path / "none.csv"
    to_frame(other).drop(columns="label").to_csv(path, index=False)
    with pytest.raises(UsageError, match="objects of no class; one or more of agn"):
        evaluate(done.bundle, over(done.config, "data", path=path), tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_objects_that_nothing_can_be_said_of_get_the_class_rates(done: Done, tmp_path: Path) -> None:
    parts = ("time", "band", "flux", "error", "detected")
    few = [replace(c, **{name: getattr(c, name)[:2] for name in parts}) for c in simulate(12, 6)]
    path = written(tmp_path / "few.csv", few)
    found = evaluate(done.bundle, over(done.config, "data", path=path), tmp_path / "out")
    assert found.metrics["log_loss"] == pytest.approx(np.log(5))
    assert f"10 objects with status “{TOO_FEW}”, scored with what they get" in found.notes
    assert {row["class"] for row in found.table} == {""} and found.days[-1]["classified"] == 0
    assert np.isnan(found.metrics["unknown_auc_energy"])


def test_nothing_held_out(done: Done, tmp_path: Path) -> None:
    path = written(tmp_path / "tiny.csv", simulate(12, 8))
    config = over(done.config, "data", path=path)
    schema = {**done.bundle.schema, "data_fingerprint": TransientsData(config).fingerprint()}
    with pytest.raises(DataInvalid) as caught:
        evaluate(Bundle(done.bundle.path, schema), config, tmp_path)
    assert str(caught.value) == f"{path}: nothing held out; labelled objects; check data.test"
