"""Bundles in the registry: champion rule, every way to name a model, loading through MLflow alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from shared.bundle import Bundle
from shared.errors import ModelUnusable
from shared.pipeline import Primary
from shared.tracking.model import champion_of, resolve_model, verdict
from shared.tracking.run import TrackedRun
from shared.tracking.store import Store, connect
from tests.pipelines.fake_tracking import PIPELINE, LinePredictor, make_bundle, register_in


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, list[TrackedRun], list[str]]:
    """Four finished runs of the line: scores 0.5, 0.4, 0.6 on one data set and 0.9 on another."""
    folder = tmp_path_factory.mktemp("models")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = connect()
    runs, said = [], []
    for i, (score, data) in enumerate([(0.5, "f1"), (0.4, "f1"), (0.6, "f1"), (0.9, "f2")]):
        run = TrackedRun.start(
            store, "toy-line", params={}, tags={"preset": "smoke"}, work_root=Path("runs"), system=False
        )
        with run:
            bundle = make_bundle(run.work / "bundle", seed=i)
            run.log_metrics({"score": score, "val/score": 0.1}, 7)
            said.append(run.log_model(PIPELINE, bundle, {"score": score, "val/score": 0.2}, data))
        runs.append(run)
    patch.undo()
    return folder, store, runs, said


@pytest.fixture
def here(tracked: tuple, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, list[TrackedRun]]:
    folder, store, runs, _ = tracked
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.syspath_prepend(str(folder / "meta"))
    if not (folder / "meta").exists():
        register_in(folder / "meta")
    return store, runs


def test_the_models_metrics_leave_the_runs_curves_alone(here: tuple[Store, list[TrackedRun]]) -> None:
    store, runs = here
    curves = {
        key: {(point.step, point.value) for point in store.client.get_metric_history(runs[0].run_id, key)}
        for key in ("val/score", "score")
    }
    assert curves == {"val/score": {(7, 0.1)}, "score": {(7, 0.5)}}
    (model,) = store.client.get_run(runs[0].run_id).outputs.model_outputs
    found = store.client.get_logged_model(model.model_id).metrics
    assert [(metric.key, metric.value) for metric in found] == [("score", 0.5)]


def test_champion_moves_only_when_better_on_the_same_data(tracked: tuple) -> None:
    _, store, runs, said = tracked
    assert "champion, the first" in said[0]
    assert "does not improve on the champion's 0.5; version 1 is champion" in said[1]
    assert "new champion, score 0.5 → 0.6" in said[2]
    assert "other data" in said[3]
    assert "version 3 is champion" in said[3]
    champion = champion_of(store, "toy-line")
    assert champion is not None
    assert champion.run_id == runs[2].run_id
    assert champion.tags["fingerprint"] == "f1"


@pytest.mark.parametrize(
    ("mode", "new", "old", "moves"),
    [
        ("min", 0.4, 0.5, True),
        ("min", 0.6, 0.5, False),
        ("max", 0.5, 0.5, False),
        ("max", math.nan, 0.5, False),
        ("max", 0.1, math.nan, True),
    ],
)
def test_verdict(mode: str, new: float, old: float, moves: bool) -> None:
    tags = {"metric": "m", "fingerprint": "f"}
    primary = Primary("m", mode)  # type: ignore[arg-type]
    assert verdict(primary, {**tags, "value": repr(new)}, {**tags, "value": repr(old)})[0] is moves


def test_every_name_finds_the_bundle(here: tuple) -> None:
    _, runs = here
    hashes = [Bundle.open(run.work / "bundle").hash for run in runs]
    assert len(set(hashes)) == 4
    forms = {
        str(runs[1].work): 1,
        str(runs[1].work / "bundle"): 1,
        f"runs:/{runs[1].run_id}": 1,
        f"runs:/{runs[1].run_id[:9]}/model": 1,
        "models:/toy-line@champion": 2,
        "toy-line@champion": 2,
        "toy-line:champion": 2,
        "models:/toy-line/2": 1,
        "toy-line:1": 0,
        "toy-line:latest": 3,
        "models:/toy-line/latest": 3,
    }
    for text, i in forms.items():
        bundle = Bundle.open(resolve_model(text, PIPELINE))
        assert (text, bundle.hash) == (text, hashes[i])


@pytest.mark.parametrize(
    "text", ["nope", "toy-line:99", "other@champion", "runs:/ffff", "models:/x'y/1", "", None, "builtin"]
)
def test_absent_models_are_one_line(here: tuple, text: str | None) -> None:
    with pytest.raises(ModelUnusable) as caught:
        resolve_model(text, PIPELINE)
    assert "\n" not in str(caught.value)


def test_hint_says_what_exists(here: tuple) -> None:
    with pytest.raises(ModelUnusable, match=r"registered: toy-line:\{1,2,3,4\}"):
        resolve_model("nope", PIPELINE)


def test_a_run_without_a_model_says_so(here: tuple) -> None:
    store, _ = here
    with TrackedRun.start(store, "empty", params={}, tags={}, work_root=Path("runs"), system=False) as run:
        pass
    with pytest.raises(ModelUnusable, match="finished without a model"):
        resolve_model(f"runs:/{run.run_id}", PIPELINE)


def test_another_pipelines_model_is_refused(here: tuple, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    schema = bundle.path / "schema.json"
    schema.write_text(schema.read_text().replace("toy-line", "other"))
    with pytest.raises(ModelUnusable, match=r"a model of other; one of toy-line wanted"):
        resolve_model(str(bundle.path), PIPELINE)


@pytest.mark.filterwarnings("error::UserWarning:mlflow")
def test_mlflow_loads_and_predicts_the_same(here: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import pandas as pd

    store, runs = here
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    model = mlflow.pyfunc.load_model("models:/toy-line@champion")
    frame = model.predict(pd.DataFrame({"x": [1.0, -1.0, 2e6, 3.0]}))
    direct = LinePredictor(Bundle.open(runs[2].work / "bundle"))
    assert frame["y"][0] == direct.predict_record({"x": 1.0})["y"]
    assert frame["y"][3] == direct.predict_record({"x": 3.0})["y"]
    assert "x ≥ 0 wanted" in frame["error"][1]
    assert "ZeroDivisionError" in frame["error"][2]
    assert list(model.predict(pd.DataFrame({"x": [1.0]})).columns) == ["y"]
    by_run = mlflow.pyfunc.load_model(f"runs:/{runs[2].run_id}/model")
    assert by_run.predict([{"x": 1.0}])["y"][0] == frame["y"][0]


def test_what_is_stored_has_no_pickle_and_is_described(here: tuple) -> None:
    from mlflow.models import Model

    bundle = resolve_model("toy-line@champion", PIPELINE)
    folder = bundle.parent.parent
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".bin"))]
    described = Model.load(str(folder))
    assert described.signature.inputs.input_names() == ["x", "name"]
    assert described.signature.inputs.required_input_names() == ["x"]
    assert described.signature.outputs.input_names() == ["y", "error"]
    needs = (folder / "requirements.txt").read_text().split()
    assert {line.split("==")[0] for line in needs} >= {"mlflow", "torch"}
    assert not [line for line in needs if "pipelines" in line]


def test_logging_runs_no_prediction(here: tuple, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from shared.tracking.model import save_pyfunc

    def forbidden(self: object, record: object) -> dict[str, float]:
        raise AssertionError("the example was predicted")

    bundle = make_bundle(tmp_path / "b")
    monkeypatch.setattr(LinePredictor, "predict_record", forbidden)
    assert (save_pyfunc(PIPELINE, bundle, tmp_path / "model") / "MLmodel").is_file()


def test_a_failing_registry_does_not_end_the_run(
    here: tuple, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    store, _ = here

    def fail(*_: object, **__: object) -> None:
        raise MlflowException("database is locked")

    with TrackedRun.start(store, "toy-line", params={}, tags={}, work_root=Path("runs"), system=False) as run:
        bundle = make_bundle(run.work / "bundle")
        monkeypatch.setattr("shared.tracking.model.register", fail)
        assert "not registered" in run.log_model(PIPELINE, bundle, {"score": 1.0}, "f1")
    assert store.client.get_run(run.run_id).info.status == "FINISHED"
