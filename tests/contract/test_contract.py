"""What every registered pipeline must do; a new one is tested by being registered."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import registry
from shared.bundle import FILES, Bundle
from shared.config import flatten, resolve
from shared.errors import ItemError, ModelUnusable, UsageError
from shared.training.injector import EXIT_CODE as CRASHED
from tests.contract.conftest import Smoke, call, interrupt, surroundings

NAMES = registry.names()
RUN_KEYS = {
    "pipeline", "preset", "run_id", "status", "seconds", "seed", "data", "metrics", "params_count", "bundle", "report",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_presets_resolve_and_unknown_keys_are_refused(name: str) -> None:
    pipeline = registry.load(name)
    assert {"smoke", "default", "paper"} <= set(pipeline.presets)
    for preset in pipeline.presets:
        config = pipeline.resolve(preset)
        again = resolve(pipeline.config_type, [("dump", config.model_dump(mode="json"))])
        assert again == config
    with pytest.raises(UsageError, match=r"did you mean train\.epochs"):
        pipeline.resolve("smoke", sets=["train.epoch=3"])


@pytest.mark.parametrize("address", ["192.0.2.1", "example.org"])
def test_every_command_below_is_cut_off_from_the_network(address: str) -> None:
    code = f"import socket\ntry: socket.create_connection(({address!r}, 80))\nexcept Exception: pass"
    done = subprocess.run([sys.executable, "-c", code], env=surroundings(), check=False, capture_output=True)
    assert done.returncode == 97, done.stderr


def test_run_result_is_complete(smoke: Smoke) -> None:
    assert set(smoke.result) >= RUN_KEYS
    assert smoke.result["status"] == "FINISHED"
    assert set(smoke.result["data"]) == {"source", "fingerprint", "items"}
    primary = registry.load(smoke.name).primary.metric
    assert math.isfinite(smoke.result["metrics"][primary])


def test_run_is_in_mlflow_with_everything(smoke: Smoke) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{smoke.cwd}/mlflow.db")
    run = client.get_run(smoke.result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["seed"] == str(smoke.result["seed"])
    config = Bundle.open(smoke.cwd / smoke.result["bundle"]).config(registry.load(smoke.name).config_type)
    assert set(run.data.params) >= set(flatten(config))
    for tag in ("preset", "data_fingerprint", "config_hash"):
        assert run.data.tags[tag], tag
    paths = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"report.html", "config.yaml"} <= paths
    version = client.get_model_version_by_alias(smoke.name, "champion")
    assert version.run_id == run.info.run_id


def test_report_is_self_contained(smoke: Smoke) -> None:
    page = (smoke.cwd / smoke.result["report"]).read_text(encoding="utf-8")
    assert len(page) < 5_000_000
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert "<script" not in page
    assert "Content-Security-Policy" in page
    assert page.count('src="data:image/') >= 2  # the curves and at least one picture of the field
    assert "picture left out" not in page
    assert not re.search(r">\s*(nan|inf|None)\s*<", page)


def test_bundle_round_trip_and_damage(smoke: Smoke, tmp_path: Path) -> None:
    path = smoke.cwd / smoke.result["bundle"]
    assert {item.name for item in path.iterdir()} == set(FILES)
    bundle = Bundle.open(path)
    pipeline = registry.load(smoke.name)
    config = bundle.config(pipeline.config_type)
    bundle.load_into(pipeline.task(config).network)
    assert bundle.schema["params_count"] == smoke.result["params_count"]

    damaged = tmp_path / "damaged"
    shutil.copytree(path, damaged)
    weights = damaged / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelUnusable, match="differs"):
        Bundle.open(damaged)


def test_killed_stopped_and_resumed_equals_unbroken(smoke: Smoke, tmp_path: Path) -> None:
    """Death, then Ctrl-C, then the end: weights and metrics are those of the undisturbed run, to the last bit.

    So the same command gives the same result in another folder, process and run, too.
    """
    from mlflow import MlflowClient

    args = ("run", smoke.name, "--preset", "smoke", "-s", "threads=1", "--json")
    killed = call(tmp_path, *args, env={"PIPELINES_CRASH_AT": "after_step:2"})
    assert killed.returncode == CRASHED, killed.stderr[-2000:]

    code, said = interrupt(tmp_path, *args, when=lambda: saves(tmp_path) >= 3)
    assert code == 130, said[-3000:]
    assert "Traceback" not in said
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (stopped,) = client.search_runs(experiments)
    assert stopped.info.status == "KILLED"

    resumed = call(tmp_path, *args)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    result = json.loads(resumed.stdout)
    assert result["run_id"] == stopped.info.run_id
    assert client.get_run(result["run_id"]).info.status == "FINISHED"
    ours = Bundle.open(tmp_path / result["bundle"]).schema["weights_sha256"]
    assert ours == Bundle.open(smoke.cwd / smoke.result["bundle"]).schema["weights_sha256"]
    assert result["metrics"] == smoke.result["metrics"]


def saves(cwd: Path) -> int:
    """The step of the last whole checkpoint below `cwd`."""
    return max((int(path.stem.removeprefix("save-")) for path in cwd.rglob("save-*.json")), default=0)


def test_serving_record_round_trip(smoke: Smoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is answered with the declared columns, each time alike, and alike through MLflow's registry."""
    import mlflow
    import pandas as pd

    pipeline = registry.load(smoke.name)
    predictor = pipeline.predictor(Bundle.open(smoke.cwd / smoke.result["bundle"]), {})
    if not predictor.record_inputs:
        pytest.skip("does not serve")
    record = predictor.example_record()
    assert record and set(record) <= set(predictor.record_inputs)
    answer = predictor.predict_record(record)
    assert set(answer) == set(predictor.record_outputs)
    kinds = {"string": str, "double": float, "long": int, "boolean": bool}
    for key, kind in predictor.record_outputs.items():
        assert isinstance(answer[key], kinds[kind]), key
    assert predictor.predict_record(record) == answer
    with pytest.raises(ItemError):
        predictor.predict_record({})

    monkeypatch.chdir(smoke.cwd)
    mlflow.set_tracking_uri(f"sqlite:///{smoke.cwd}/mlflow.db")
    try:
        model = mlflow.pyfunc.load_model(f"models:/{smoke.name}@champion")
        rows = model.predict(pd.DataFrame([record])).to_dict("records")
    finally:
        # Not back to what get_tracking_uri() said: that would pin every later test to this folder's store.
        mlflow.set_tracking_uri(None)
    assert rows == [answer]


def test_batch_survives_bad_files_and_finishes_the_rest(smoke: Smoke, tmp_path: Path) -> None:
    inputs, output = tmp_path / "in", tmp_path / "out"
    written = registry.load(smoke.name).write_sample(inputs, 3, seed=5)
    files = sorted(p for p in written[0].rglob("*") if p.is_file()) if written[0].is_dir() else [written[0]]
    content = files[0].read_bytes()
    files[0].write_bytes(content[: len(content) // 2])
    args = (
        "predict",
        smoke.name,
        str(inputs),
        "--output",
        str(output),
        "--model",
        smoke.result["bundle"],
        "--json",
    )

    first = call(smoke.cwd, *args)
    assert first.returncode == 4, first.stderr[-3000:]
    summary = json.loads(first.stdout)
    assert (summary["items"], summary["ok"], summary["failed"]) == (3, 2, 1)
    lines = [json.loads(line) for line in Path(summary["manifest"]).read_text().splitlines()]
    bad = [line for line in lines if line["status"] == "failed"]
    assert len(bad) == 1
    assert files[0].name in json.dumps(bad[0]["error"])

    files[0].write_bytes(content)
    second = call(smoke.cwd, *args)
    assert second.returncode == 0, second.stderr[-3000:]
    summary = json.loads(second.stdout)
    assert (summary["ok"], summary["skipped"], summary["failed"]) == (1, 2, 0)
    assert not list(output.rglob("*.tmp"))


def test_all_items_bad_is_exit_5_and_nothing_found_is_6(smoke: Smoke, tmp_path: Path) -> None:
    inputs = tmp_path / "in"
    written = registry.load(smoke.name).write_sample(inputs, 1, seed=6)
    for path in (p for p in inputs.rglob("*") if p.is_file()):
        path.write_bytes(gzip.compress(b"not data") if path.suffix == ".gz" else b"not data")
    args = ("--model", smoke.result["bundle"], "--json")
    bad = call(smoke.cwd, "predict", smoke.name, str(written[0]), "--output", str(tmp_path / "a"), *args)
    assert bad.returncode == 5, bad.stderr[-2000:]
    (tmp_path / "empty").mkdir()
    none = call(
        smoke.cwd, "predict", smoke.name, str(tmp_path / "empty"), "--output", str(tmp_path / "b"), *args
    )
    assert none.returncode == 6, none.stderr[-2000:]
    assert "Traceback" not in bad.stderr + none.stderr


def test_compare_lists_the_run(smoke: Smoke) -> None:
    done = call(smoke.cwd, "compare", smoke.name, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)["rows"]
    assert any(smoke.result["run_id"].startswith(row["name"]) for row in rows)
