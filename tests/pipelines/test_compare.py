"""The leaderboard, finding a report, and MLflow's interface on loopback."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

import psutil
import pytest

from pipelines.compare import COLUMNS, compare, find_report, review
from shared.errors import UsageError
from shared.tracking.run import TrackedRun
from shared.tracking.store import Store, connect
from tests.pipelines.fake_tracking import PIPELINE, make_bundle


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return connect()


def one(store: Store, score: float | None, data: str, **tags: str) -> TrackedRun:
    all_tags = {"preset": "smoke", "data_source": f"source {data}", "data_fingerprint": data, **tags}
    run = TrackedRun.start(store, "toy-line", params={}, tags=all_tags, work_root=Path("runs"), system=False)
    with run:
        if score is not None:
            run.log_metrics({"score": score, "loss": -score, "system/cpu": 1}, 3)
    return run


def test_nothing_yet(store: Store) -> None:
    assert compare(PIPELINE) == []


def test_rows_are_grouped_by_data_and_best_first(store: Store) -> None:
    old = one(store, 0.99, "old")
    with TrackedRun.start(
        store,
        "toy-line",
        params={},
        tags={"preset": "smoke", "data_fingerprint": "new"},
        work_root=Path("runs"),
        system=False,
    ) as best:
        best.log_metrics({"score": 0.8}, 1)
        best.log_model(PIPELINE, make_bundle(best.work / "bundle"), {"score": 0.8}, "new")
        (best.work / "report.html").write_text("<html>")
        best.log_artifact(best.work / "report.html")
    worse, unmeasured, nan = (one(store, score, "new") for score in (0.5, None, math.nan))
    one(store, None, "new", kind="sweep")
    with (
        pytest.raises(KeyboardInterrupt),
        TrackedRun.start(
            store, "toy-line", params={}, tags={}, work_root=Path("runs"), system=False
        ) as killed,
    ):
        raise KeyboardInterrupt
    rows = compare(PIPELINE)
    assert [row["run_id"] for row in rows[:2]] == [best.run_id, worse.run_id]
    assert {row["run_id"] for row in rows[2:4]} == {unmeasured.run_id, nan.run_id}
    assert rows[4]["run_id"] == old.run_id
    assert len(rows) == 5
    assert [row["champion"] for row in rows] == ["★", "", "", "", ""]
    assert (rows[0]["name"], rows[0]["params_count"], rows[0]["value"]) == (best.run_id[:8], 4, 0.8)
    assert set(COLUMNS) <= set(rows[0])
    assert compare(PIPELINE, "loss")[0]["run_id"] == worse.run_id
    with pytest.raises(UsageError, match=r"--metric dice: no run has it; one of loss, score wanted"):
        compare(PIPELINE, "dice")
    assert find_report(best.run_id[:8]).read_text() == "<html>"
    with pytest.raises(UsageError, match="no report, the run killed"):
        find_report(killed.run_id)
    with pytest.raises(UsageError, match="no such run"):
        find_report("zzz")


def test_review_of_a_server_only_names_it(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    said: list[str] = []
    away = Store("http://runs.example:5000", store.client, None)
    monkeypatch.setattr("shared.tracking.store.connect", lambda: away)
    assert review(port=1, say=said.append) == 0
    assert "http://runs.example:5000" in said[0]


@pytest.mark.slow
def test_review_answers_and_leaves_no_process(store: Store, folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    ui = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "review", "--port", str(port)],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert ui.stderr is not None
        said = [ui.stderr.readline(), ui.stderr.readline()]
        assert f"http://127.0.0.1:{port}" in said[1], said
        with build_opener(ProxyHandler({})).open(f"http://127.0.0.1:{port}/", timeout=20) as page:
            assert b"MLflow" in page.read()
        family = psutil.Process(ui.pid).children(recursive=True)
        assert family
        addresses = {
            link.laddr.ip for child in family for link in child.net_connections() if link.status == "LISTEN"
        }
        assert addresses == {"127.0.0.1"}
        ui.send_signal(signal.SIGINT)
        assert ui.wait(30) == 0
    finally:
        ui.kill()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
