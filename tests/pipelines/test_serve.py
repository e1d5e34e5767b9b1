"""A bundle behind HTTP: MLflow's own command and ours answer, and ours refuses what it should."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.serve import LOOPBACK, Guard, refuse_remote, serve
from shared.errors import ModelUnusable, UsageError
from tests.pipelines.fake_tracking import PIPELINE, LinePredictor, make_bundle, register_in

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(port: int, body: object, **headers: str) -> tuple[int, Any]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    link.request("POST", "/invocations", json.dumps(body), {"Content-Type": "application/json", **headers})
    answer = link.getresponse()
    text = answer.read().decode()
    link.close()
    return answer.status, json.loads(text) if text.startswith("{") else text


@contextmanager
def running(command: list[str], cwd: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """The server of `command`, once it listens; all of its processes are gone afterwards."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(cwd / "meta")]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    server = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    family = [psutil.Process(server.pid)]
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        assert server.poll() is None, server.stderr.read() if server.stderr else ""
        family += family[0].children(recursive=True)
        yield server
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(30)
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive


def test_our_server_answers_and_guards(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    register_in(tmp_path / "meta")
    port = free_port()
    command = [sys.executable, "-m", "pipelines", "serve", "toy-line", "-m", "bundle", "--port", str(port)]
    rows = {"dataframe_records": [{"x": 2.0}, {"x": -1.0}]}
    with running(command, tmp_path, port) as server:
        status, answer = post(port, rows)
        assert status == 200
        wanted = LinePredictor(bundle).predict_record({"x": 2.0})["y"]
        assert answer["predictions"][0] == {"y": wanted, "error": None}
        assert "x ≥ 0 wanted" in answer["predictions"][1]["error"]
        assert post(port, {"dataframe_records": [{"name": "no x"}]})[0] == 400
        assert post(port, rows, Host="evil.example")[0] == 403
        assert post(port, rows, Origin="https://evil.example")[0] == 403
        assert post(port, rows, Origin=f"http://localhost:{port}")[0] == 200
        assert post(port, {"dataframe_records": [{"x": 3.0}]})[1]["predictions"][0]["y"] != wanted
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
        assert server.stderr is not None
        said = server.stderr.read()
    assert "curl -H 'Content-Type: application/json' -d '{\"dataframe_split\"" in said
    assert len(said.strip().splitlines()) == 2, said


@pytest.mark.slow
def test_mlflows_own_command_serves_the_model(tmp_path: Path) -> None:
    from shared.tracking.model import save_pyfunc

    bundle = make_bundle(tmp_path / "bundle")
    register_in(tmp_path / "meta")
    save_pyfunc(PIPELINE, bundle, tmp_path / "model")
    port = free_port()
    command = ["mlflow", "models", "serve", "-m", "model", "-p", str(port), "--env-manager", "local"]
    with running([sys.executable, "-m", *command], tmp_path, port):
        status, answer = post(port, {"dataframe_records": [{"x": 2.0}]})
    assert (status, answer["predictions"]) == (200, [LinePredictor(bundle).predict_record({"x": 2.0})])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org"])
def test_a_wide_host_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no login"):
        serve(PIPELINE, str(tmp_path), port=free_port(), host=host, allow_remote=False, say=print)


def test_loopback_is_allowed() -> None:
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        refuse_remote(host)


def test_a_taken_port_and_an_absent_model_are_one_line(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: .*a free port wanted"):
            serve(PIPELINE, None, port=port, host="127.0.0.1", allow_remote=False, say=print)
    with pytest.raises(ModelUnusable):
        serve(PIPELINE, str(tmp_path), port=free_port(), host="127.0.0.1", allow_remote=False, say=print)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:1", "content-length": "11"}, 413),
        ({"host": "localhost:1"}, 411),
        ({"host": "localhost:1", "content-length": "-3"}, 411),
        ({"host": "[::1]:5001", "content-length": "10"}, 200),
        ({"content-length": "10"}, 403),
        ({"host": "localhost.evil.example", "content-length": "10"}, 403),
        ({"host": "localhost", "content-length": "10", "origin": "null"}, 403),
    ],
)
def test_guard(headers: dict[str, str], status: int) -> None:
    import asyncio

    sent: list[Any] = []

    async def inner(scope: object, receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    pairs = [(key.encode(), value.encode()) for key, value in headers.items()]
    scope = {"type": "http", "method": "POST", "headers": pairs}
    asyncio.run(Guard(inner, LOOPBACK, limit=10)(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == status
