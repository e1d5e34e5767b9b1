"""Looking back: the leaderboard of tracked runs, a run's report, MLflow's own interface on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import unquote, urlparse
from urllib.request import ProxyHandler, build_opener

from shared.errors import EnvironmentUnfit, UsageError

if TYPE_CHECKING:
    from mlflow.entities import Run

    from shared.pipeline import Pipeline

COLUMNS = (
    "name",
    "champion",
    "preset",
    "metric",
    "value",
    "data",
    "fingerprint",
    "params_count",
    "seconds",
    "when",
)
MAX_RUNS = 5000
UI_WORKERS = "1"
"""MLflow starts four by default, 1.4 GB in all; one person needs one."""
UI_START_SECONDS = 120

Say = Callable[[str], None]


def compare(pipeline: Pipeline, metric: str | None = None) -> list[dict[str, Any]]:
    """Finished runs, the best first within each data set: only equal data compare.

    Data sets follow each other by their newest run. Raises `UsageError` for a metric that no run has.
    """
    from shared.tracking.model import champion_of
    from shared.tracking.store import connect

    store = connect()
    experiment = store.find_experiment(pipeline.name)
    runs = [] if experiment is None else _finished(store.client, experiment)
    metric = metric or pipeline.primary.metric
    known = {key for run in runs for key in run.data.metrics if not key.startswith("system/")}
    if runs and metric not in known:
        raise UsageError(f"--metric {metric}: no run has it; one of {', '.join(sorted(known)[:12])} wanted")
    champion = champion_of(store, pipeline.name)
    rows = [_row(run, metric, champion.run_id if champion else None) for run in runs]
    sign = -1.0 if _higher_is_better(pipeline, metric) else 1.0
    newest: dict[str, str] = {}
    for row in rows:
        newest[row["fingerprint"]] = max(newest.get(row["fingerprint"], ""), row["when"])
    order = sorted(newest, key=lambda fingerprint: newest[fingerprint], reverse=True)
    place = {fingerprint: index for index, fingerprint in enumerate(order)}

    def key(row: dict[str, Any]) -> tuple[int, bool, float]:
        value = row["value"]
        missing = value is None or value != value
        return place[row["fingerprint"]], missing, 0.0 if missing else sign * value

    return sorted(rows, key=key)


def _finished(client: Any, experiment: str) -> list[Run]:
    """Newest first; the parents of sweeps measured nothing and are left out."""
    runs: list[Run] = []
    token = None
    while len(runs) < MAX_RUNS:
        page = client.search_runs(
            [experiment], filter_string="attributes.status = 'FINISHED'", max_results=1000, page_token=token
        )
        runs += [run for run in page if run.data.tags.get("kind") != "sweep"]
        token = page.token
        if not token:
            break
    return runs


def _row(run: Run, metric: str, champion_run: str | None) -> dict[str, Any]:
    tags = run.data.tags
    started = datetime.fromtimestamp(run.info.start_time / 1000)
    spent = (run.info.end_time - run.info.start_time) / 1000
    return {
        "name": run.info.run_id[:8],
        "champion": "★" if run.info.run_id == champion_run else "",
        "preset": tags.get("preset", ""),
        "metric": metric,
        "value": run.data.metrics.get(metric),
        "data": tags.get("data_source", ""),
        "fingerprint": tags.get("data_fingerprint", "")[:12],
        "params_count": int(tags["params_count"]) if tags.get("params_count", "").isdigit() else None,
        "seconds": round(float(tags.get("seconds", spent)), 1),
        "when": started.strftime("%Y-%m-%d %H:%M:%S"),
        "run_id": run.info.run_id,
    }


def _higher_is_better(pipeline: Pipeline, metric: str) -> bool:
    if metric == pipeline.primary.metric:
        return pipeline.primary.mode == "max"
    lower = ("loss", "hd95", "error", "mse", "mae", "rmse", "seconds", "lpips", "nll")
    return not any(word in metric.lower() for word in lower)


def find_report(run: str) -> Path:
    """The HTML report of `run` (id or its first digits) on this disk. Raises `UsageError` if there is none."""
    from mlflow.artifacts import download_artifacts

    from shared.tracking.history import find_run
    from shared.tracking.store import connect

    store = connect()
    found = find_run(store, run)
    run_id = found.info.run_id
    parts = urlparse(found.info.artifact_uri)
    local = Path(unquote(parts.path)) / "report.html"
    if parts.scheme in ("", "file") and local.is_file():
        return local
    if any(item.path == "report.html" for item in store.client.list_artifacts(run_id)):
        place = Path("runs") / ".reports" / run_id[:12]
        place.mkdir(parents=True, exist_ok=True)
        got = download_artifacts(
            run_id=run_id, artifact_path="report.html", dst_path=str(place), tracking_uri=store.uri
        )
        return Path(got)
    raise UsageError(
        f"{run_id[:12]}: no report, the run {found.info.status.lower()}; a finished run wanted; see `pipelines compare`"
    )


# ---------------------------------------------------------------- MLflow's interface


def review(*, port: int, say: Say) -> int:
    """Serve MLflow's interface on 127.0.0.1 until Ctrl-C; its exit code. Raises `UsageError` for a taken port."""
    from shared.tracking.store import connect, without_password

    store = connect()
    if store.uri.startswith("http"):
        say(f"the runs are on {without_password(store.uri)}: open it in a browser")
        return 0
    refuse_taken_port(port)
    # The address of the store goes by environment: a process list would show its password.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": store.uri}
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    say("starting MLflow's interface (half a minute on a busy machine) …")
    # A file, not a pipe: nobody reads it while the server runs, and a full pipe would stop it.
    with (
        tempfile.TemporaryFile() as errors,
        _group([*command, "--workers", UI_WORKERS], environment, errors) as server,
    ):
        url = f"http://127.0.0.1:{port}"
        _await_answer(server, f"{url}/health", errors)
        say(f"{url}  (this machine only; Ctrl-C stops it)")
        try:
            return server.wait()
        except KeyboardInterrupt:
            return 0


@contextmanager
def _group(
    command: list[str], environment: dict[str, str], errors: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all it starts; nothing of it outlives the block."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
    )
    try:
        yield process
    finally:
        for signum, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
            try:
                os.killpg(process.pid, signum)
            except ProcessLookupError:
                break
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            time.sleep(0.2)  # its children follow; then the second signal finds nobody, or the stubborn


def _await_answer(server: subprocess.Popen[bytes], url: str, errors: IO[bytes]) -> None:
    """Return when `url` answers. Raises `EnvironmentUnfit` when the server ends or stays silent."""
    opener = build_opener(ProxyHandler({}))  # a proxy for the outer world must not be asked for loopback
    deadline = time.monotonic() + UI_START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace").strip().splitlines()
            raise EnvironmentUnfit(
                f"mlflow ui: ended with code {server.returncode} ({' '.join(said[-1:])[:150]}); see `pipelines doctor`"
            )
        try:
            with opener.open(url, timeout=2):
                return
        except (URLError, OSError):
            time.sleep(0.3)
    raise EnvironmentUnfit(f"mlflow ui: silent for {UI_START_SECONDS} s; try again when the machine is idle")


def refuse_taken_port(port: int, host: str = "127.0.0.1") -> None:
    """Raise `UsageError` if `port` cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as err:
            raise UsageError(
                f"--port {port}: {err.strerror or err}; a free port wanted; choose another"
            ) from None
