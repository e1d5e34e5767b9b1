"""Runs in the store: parameters, metrics, status on every way out, resume, sweeping."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from shared.distributed.signals import Stopped
from shared.errors import DataInvalid, EnvironmentUnfit, Fault, Interrupted, ResourcesExhausted, UsageError
from shared.tracking.buffer import MetricBuffer, read_spool
from shared.tracking.history import find_run
from shared.tracking.run import TrackedRun, last_interrupted, sweep_stale
from shared.tracking.store import Store, connect


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """One database for this file: making its schema takes seconds."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return connect()


def start(store: Store, name: str = "toy", **over: object) -> TrackedRun:
    given = {"params": {"a": 1}, "tags": {"config_hash": "h", "preset": "smoke"}, "work_root": Path("runs")}
    return TrackedRun.start(store, name, **(given | {"system": False} | over))  # type: ignore[arg-type]


def test_default_store_lies_in_the_working_directory(store: Store, folder: Path) -> None:
    assert store.uri == f"sqlite:///{folder}/mlflow.db"
    assert (folder / "mlflow.db").is_file()
    assert start(store).finish("FINISHED") is None
    run = store.client.search_runs([store.experiment("toy")])[0]
    assert run.info.artifact_uri.startswith(str(folder / "mlruns"))


def test_a_database_whose_making_was_killed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, mlflow\n"
        "from shared.tracking.store import connect\n"
        "mlflow.MlflowClient.search_experiments = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "connect()"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    env.pop("MLFLOW_TRACKING_URI", None)
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env).returncode == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists() and list(tmp_path.glob(".mlflow.db.*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert connect().experiment("toy") == "1"
    assert not list(tmp_path.glob(".mlflow.db.*"))


def test_a_database_that_another_program_made_meanwhile_keeps_its_runs(
    folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a program that does not know our lock, such as `mlflow ui`."""
    there, asked = tmp_path / "mlflow.db", MlflowClient.search_experiments
    monkeypatch.chdir(tmp_path)

    def meanwhile(self: MlflowClient, *args: Any, **keys: Any) -> Any:
        if not there.exists():
            shutil.copy(folder / "mlflow.db", there)
            MlflowClient(f"sqlite:///{there}").create_experiment("of another program")
        return asked(self, *args, **keys)

    monkeypatch.setattr(MlflowClient, "search_experiments", meanwhile)
    assert connect().find_experiment("of another program") is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_everything_logged_comes_back(store: Store, tmp_path: Path) -> None:
    params = {f"k{i}": i for i in range(230)} | {"long": "x" * 13_000, "none": None}
    with start(store, params=params, seed=7) as tracked:
        for step in range(150):
            tracked.log_metrics({"train/loss": 1 / (step + 1)}, step)
        tracked.set_tags({"data_fingerprint": "f"})
        tracked.log_text("hello", "notes/hello.txt")
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures" / "a.txt").write_text("a")
        tracked.log_artifacts(tmp_path / "figures", "figures")
        tracked.log_artifacts(tmp_path / "absent", "absent")
    run = store.client.get_run(tracked.run_id)
    found = run.data.params
    assert run.info.status == "FINISHED"
    assert len(found) == 230 + 3 + 1
    assert found["long"] + found["long.part2"] + found["long.part3"] == "x" * 13_000
    history = store.client.get_metric_history(tracked.run_id, "train/loss")
    assert [point.step for point in history] == list(range(150))
    assert {"host", "pid", "boot", "command", "package_version", "work", "seconds"} <= set(run.data.tags)
    assert run.data.tags["seed"] == "7"
    names = {item.path for item in store.client.list_artifacts(tracked.run_id)}
    assert {"notes", "figures"} <= names
    assert "absent" not in names
    assert tracked.work == Path("runs/toy").absolute() / tracked.run_id[:12]


@pytest.mark.parametrize(
    ("error", "status", "resumable"),
    [
        (Interrupted("stopped", signal.SIGTERM), "KILLED", "yes"),
        (KeyboardInterrupt(), "KILLED", "yes"),
        (Stopped(signal.SIGTERM), "KILLED", "yes"),
        (ValueError("a bug"), "FAILED", "no"),
        (ResourcesExhausted("no memory"), "FAILED", "yes"),
        (OSError(28, "No space left on device"), "FAILED", "yes"),
    ],
)
def test_status_and_reason_follow_the_exception(
    store: Store, error: BaseException, status: str, resumable: str
) -> None:
    with pytest.raises(type(error)), start(store) as tracked:
        raise error
    run = store.client.get_run(tracked.run_id)
    assert run.info.status == status
    assert run.data.tags["resumable"] == resumable
    assert run.data.tags["end_reason"]
    tracked.finish("FINISHED")
    assert store.client.get_run(tracked.run_id).info.status == status


def test_reason_names_no_patient(store: Store) -> None:
    with pytest.raises(DataInvalid), start(store) as tracked:
        raise DataInvalid([Fault("patient-smith/t1.nii.gz", "cut")])
    assert "smith" not in store.client.get_run(tracked.run_id).data.tags["end_reason"]


def test_resume_keeps_the_run(store: Store) -> None:
    tags = {"config_hash": "resume", "preset": "smoke"}
    with pytest.raises(KeyboardInterrupt), start(store, tags=tags) as first:
        first.log_metrics({"loss": 1.0}, 0)
        raise KeyboardInterrupt
    assert last_interrupted(store, "toy", "resume") == first.run_id
    with start(store, tags=tags, resume_run_id=first.run_id[:10]) as second:
        assert (second.run_id, second.work, second.resumed) == (first.run_id, first.work, True)
        assert store.client.get_run(first.run_id).info.status == "RUNNING"
        second.log_metrics({"loss": 0.5}, 1)
    run = store.client.get_run(first.run_id)
    assert (run.info.status, run.data.tags["attempt"], run.data.tags["resumable"]) == ("FINISHED", "2", "no")
    assert len(store.client.get_metric_history(first.run_id, "loss")) == 2
    assert last_interrupted(store, "toy", "resume") is None


def test_a_later_finished_run_makes_resuming_pointless(store: Store) -> None:
    tags = {"config_hash": "later", "preset": "smoke"}
    with pytest.raises(KeyboardInterrupt), start(store, tags=tags):
        raise KeyboardInterrupt
    time.sleep(0.01)
    start(store, tags=tags).finish("FINISHED")
    assert last_interrupted(store, "toy", "later") is None


def test_resume_refuses_what_it_cannot_do(store: Store) -> None:
    with start(store) as done, pytest.raises(UsageError, match="in use by pid"):
        start(store, resume_run_id=done.run_id)
    with pytest.raises(UsageError, match="finished"):
        start(store, resume_run_id=done.run_id)
    with pytest.raises(UsageError, match="no such run"):
        start(store, resume_run_id="ffffffffffff")
    with pytest.raises(UsageError, match="no such run"):
        find_run(store, "%' OR '1")
    with pytest.raises(KeyboardInterrupt), start(store) as killed:
        raise KeyboardInterrupt
    with pytest.raises(UsageError, match=r"another configuration \(a\)"):
        start(store, resume_run_id=killed.run_id, params={"a": 2}, tags={"config_hash": "other"})
    for path in killed.work.iterdir():
        path.unlink()
    killed.work.rmdir()
    assert last_interrupted(store, "toy", "h") != killed.run_id
    with pytest.raises(UsageError, match="work folder is gone"):
        start(store, resume_run_id=killed.run_id)


CHILD = """
import sys, time
from pathlib import Path
from shared.tracking.run import TrackedRun
from shared.tracking.store import connect
run = TrackedRun.start(connect(), "swept", params={}, tags={"config_hash": "k"}, work_root=Path("runs"))
print(run.run_id, flush=True)
time.sleep(60)
"""


def test_a_killed_run_is_swept_and_a_living_one_is_not(store: Store, folder: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, cwd=folder)
    try:
        assert child.stdout is not None
        run_id = child.stdout.readline().strip()
        assert sweep_stale(store, "swept") == []
        assert last_interrupted(store, "swept", "k") is None
    finally:
        child.kill()
        child.wait()
    assert last_interrupted(store, "swept", "k") == run_id
    assert sweep_stale(store, "swept") == [run_id]
    run = store.client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert "without a word" in run.data.tags["end_reason"]
    assert last_interrupted(store, "swept", "k") == run_id
    assert sweep_stale(store, "absent") == []


def test_a_process_that_forgets_its_run_leaves_it_killed(store: Store, folder: Path) -> None:
    code = CHILD.replace("time.sleep(60)", "sys.exit(0)").replace("swept", "forgot")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=60
    )
    run = store.client.get_run(done.stdout.strip())
    assert run.info.status == "KILLED"


def test_metrics_survive_a_failing_store(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked = start(store)
    sends = tracked._send
    monkeypatch.setattr(tracked._buffer, "_send", _refuse)
    with tracked:
        for step in range(250):
            tracked.log_metrics({"loss": float(step)}, step)
        tracked.flush()
        tracked.log_metrics({"loss": 250.0}, 250)
        tracked.flush()
        assert len(read_spool(tracked.work / "metrics.jsonl")) == 251
        monkeypatch.setattr(tracked._buffer, "_send", sends)
    assert len(store.client.get_metric_history(tracked.run_id, "loss")) == 251
    assert not (tracked.work / "metrics.jsonl").exists()
    assert sum("refuses metrics" in record.message for record in caplog.records) == 1


def _refuse(points: object) -> None:
    raise OSError(28, "No space left on device")


def test_what_stays_unsent_stays_on_disk(tmp_path: Path) -> None:
    buffer = MetricBuffer(_refuse, tmp_path / "spool.jsonl", seconds=0.05)
    buffer.add({"a": 1.0, "b": float("nan")}, 3)
    deadline = time.monotonic() + 5
    while not (tmp_path / "spool.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert buffer.close() == 2
    assert [point[0] for point in read_spool(tmp_path / "spool.jsonl")] == ["a", "b"]


def test_memory_holds_metrics_when_the_spool_fails_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    buffer = MetricBuffer(_refuse, tmp_path / "file" / "spool.jsonl", seconds=60)
    buffer.add({"a": 1.0}, 0)
    buffer.flush()
    sent: list[object] = []
    buffer._send = sent.extend  # type: ignore[assignment]
    buffer._left_alone_until = 0
    assert buffer.close() == 0
    assert len(sent) == 1


def test_system_metrics_are_sampled(store: Store) -> None:
    from shared.tracking.system import SystemSampler

    seen: list[dict[str, float]] = []
    sampler = SystemSampler(
        "run", store.uri, int(time.time() * 1000), lambda m, s: seen.append(dict(m)), 0.05
    )
    deadline = time.monotonic() + 10
    while not seen and time.monotonic() < deadline:
        time.sleep(0.02)
    sampler.close()
    assert seen[0]["system/process_memory_megabytes"] > 0
    assert "system/cpu_utilization_percentage" in seen[0]


def test_other_ranks_join_the_run_and_write_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with start(store) as leader:
        monkeypatch.setenv("LOCAL_RANK", "1")
        with start(store) as follower:
            assert (follower.run_id, follower.work) == (leader.run_id, leader.work)
            follower.log_metrics({"loss": 1.0}, 0)
            follower.log_text("x", "x.txt")
        monkeypatch.delenv("LOCAL_RANK")
        assert store.client.get_run(leader.run_id).info.status == "RUNNING"
    assert "loss" not in store.client.get_run(leader.run_id).data.metrics


@pytest.mark.parametrize(
    ("uri", "match"),
    [
        ("http://127.0.0.1:9", "reachable MLflow store wanted"),
        ("sqlite:////no/such/folder/mlflow.db", "not a folder"),
        ("./mlruns", "plain files"),
        ("postgresql://me:secret@127.0.0.1:9/x", r"me:\*\*\*@"),
    ],
)
def test_unusable_stores_are_one_line(uri: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    began = time.monotonic()
    with pytest.raises(EnvironmentUnfit, match=match) as caught:
        connect()
    assert time.monotonic() - began < 20
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_text_file_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.db").write_text("hello " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(EnvironmentUnfit, match="not a database"):
        connect()


def test_logger_forwards_to_the_run(store: Store) -> None:
    with start(store) as tracked:
        logger = tracked.lightning_logger()
        logger.log_metrics({"val/dice": 0.5, "epoch": 3}, step=4)
        logger.log_hyperparams({"a": 1})
        assert (logger.name, logger.version) == ("toy", tracked.run_id)
    metrics = store.client.get_run(tracked.run_id).data.metrics
    assert metrics == {"val/dice": 0.5}
