"""One tracked run, from its first parameter to its status: FINISHED, FAILED or KILLED, exactly once.

Tracking serves the training: once the run is open, no trouble with the store ends it.
"""

from __future__ import annotations

import atexit
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from shared.distributed.signals import Stopped
from shared.errors import DataInvalid, Interrupted, ItemError, ResourcesExhausted
from shared.tracking import ranks
from shared.tracking.buffer import MetricBuffer, Point
from shared.tracking.history import last_interrupted, sweep_stale
from shared.tracking.opening import TAG_CHARS, batches, create, reopen
from shared.tracking.provenance import Provenance, collect
from shared.tracking.store import Store

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from shared.bundle import Bundle
    from shared.pipeline import Pipeline

__all__ = ["TrackedRun", "last_interrupted", "sweep_stale"]

log = logging.getLogger(__name__)

SHOWN = (
    "command",
    "package_version",
    "git_commit",
    "git_dirty",
    "lock_hash",
    "python",
    "torch",
    "machine",
    "host",
    "attempt",
)
"""Tags that a report repeats."""


class TrackedRun:
    """An open run. Use as a context manager: leaving it sets the status from the exception, if any."""

    def __init__(
        self,
        store: Store,
        pipeline: str,
        run_id: str,
        work: Path,
        *,
        resumed: bool,
        provenance: dict[str, str],
        started_ms: int,
        seconds_before: float = 0.0,
        lock: BaseFileLock | None = None,
        system: bool = True,
    ) -> None:
        self.store = store
        self.pipeline = pipeline
        self.run_id = run_id
        self.work = work
        """Folder for checkpoints and results; the same after a resume."""
        self.resumed = resumed
        self.provenance = provenance
        """What a report says about code and machine."""
        self._lock = lock
        self._leads = lock is not None
        self._ended = False
        self._opened = time.monotonic()
        self._seconds_before = seconds_before
        self._buffer: MetricBuffer | None = None
        self._sampler: Any = None
        if self._leads:
            atexit.register(self.finish, "KILLED", "the process left without closing the run")
            self._buffer = MetricBuffer(self._send, work / "metrics.jsonl")
            if system:
                from shared.tracking.system import SystemSampler

                self._sampler = SystemSampler(run_id, store.uri, started_ms, self.log_metrics)

    # ------------------------------------------------------------ opening

    @classmethod
    def start(
        cls,
        store: Store,
        pipeline: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        work_root: Path,
        resume_run_id: str | None = None,
        seed: int | None = None,
        system: bool = True,
    ) -> TrackedRun:
        """A new run, or `resume_run_id` (or its first digits) taken up again under the same id.

        Its folder is ``work_root/<pipeline>/<first digits of the id>``. Raises `UsageError` when the run to resume
        is unknown, finished, in use, or of another configuration.
        """
        folder = work_root.absolute() / pipeline
        if not ranks.is_leader():
            run_id, work, resumed = ranks.follow(folder)
            return cls(store, pipeline, run_id, work, resumed=resumed, provenance={}, started_ms=0)
        found = collect(seed)
        tags = {**found.tags, **tags}
        experiment = store.experiment(pipeline)
        if resume_run_id is None:
            run, work, lock = create(store, experiment, folder, params, tags)
        else:
            run, work, lock = reopen(store, pipeline, resume_run_id, params, tags)
        tracked = cls(
            store,
            pipeline,
            run.info.run_id,
            work,
            resumed=resume_run_id is not None,
            provenance={key: tags[key] for key in SHOWN if key in tags},
            started_ms=run.info.start_time,
            seconds_before=float(run.data.tags.get("seconds", 0)),
            lock=lock,
            system=system,
        )
        ranks.announce(tracked.run_id, work, tracked.resumed)
        tracked._keep_patch(found, tags)
        return tracked

    def _keep_patch(self, found: Provenance, tags: Mapping[str, str]) -> None:
        if found.patch:
            self.log_text(found.patch, f"provenance/dirty-{tags.get('attempt', '1')}.patch")

    # ------------------------------------------------------------ logging

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Queue numbers for the store; microseconds, never raises for the store's sake."""
        if self._buffer is not None:
            self._buffer.add(metrics, step)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        def write() -> None:
            for part in batches(list(tags.items())):
                self.store.client.log_batch(
                    self.run_id, tags=[RunTag(key, str(value)[:TAG_CHARS]) for key, value in part]
                )

        self._attempt("tags", write)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of the file `path` with the run, under `folder`."""
        self._attempt(path.name, lambda: self.store.client.log_artifact(self.run_id, str(path), folder))

    def log_artifacts(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of everything in the folder `path`; nothing when there is no such folder."""
        if path.is_dir():
            self._attempt(path.name, lambda: self.store.client.log_artifacts(self.run_id, str(path), folder))

    def log_text(self, text: str, name: str) -> None:
        """Keep `text` as the artifact `name`."""
        self._attempt(name, lambda: self.store.client.log_text(self.run_id, text, name))

    def log_model(
        self, pipeline: Pipeline, bundle: Bundle, metrics: Mapping[str, float], fingerprint: str
    ) -> str:
        """Log the bundle as a model, register it, decide on champion; one sentence saying what came of it."""
        if not self._leads:
            return ""
        from shared.tracking.model import log_and_register

        self.flush()
        try:
            return log_and_register(self.store, self.run_id, pipeline, bundle, metrics, fingerprint)
        except Exception as err:
            if not _is_store_trouble(err):
                raise
            log.warning("model not registered: %s: %s", type(err).__name__, " ".join(str(err).split())[:200])
            return f"not registered, the store failed; the model itself is whole: {bundle.path}"

    def lightning_logger(self) -> Any:
        """A Lightning logger that writes here."""
        from shared.tracking.lightning import RunLogger

        return RunLogger(self)

    def flush(self) -> None:
        """Hand all queued metrics to the store now."""
        if self._buffer is not None:
            self._buffer.flush()

    # ------------------------------------------------------------ closing

    def __enter__(self) -> TrackedRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        status, reason, resumable = _outcome(err)
        self.finish(status, reason, resumable=resumable)

    def finish(self, status: str, reason: str = "", *, resumable: bool = False) -> None:
        """Set the final status; later calls do nothing."""
        if self._ended or not self._leads:
            return
        self._ended = True
        atexit.unregister(self.finish)
        try:
            if self._sampler is not None:
                self._sampler.close()
            left = self._buffer.close() if self._buffer is not None else 0
            seconds = self._seconds_before + time.monotonic() - self._opened
            tags = {"seconds": f"{seconds:.1f}", "resumable": "yes" if resumable else "no"}
            if "torch" in sys.modules:
                tags["threads"] = str(sys.modules["torch"].get_num_threads())
            if reason:
                tags["end_reason"] = reason
            if left:
                tags["metrics_spooled"] = str(left)
            self.set_tags(tags)
            self._attempt(
                f"status {status}", lambda: self.store.client.set_terminated(self.run_id, status=status)
            )
        finally:
            ranks.withdraw(self.work.parent)
            if self._lock is not None:
                self._lock.release()

    # ------------------------------------------------------------ inside

    def _send(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(key, value, when, step) for key, value, when, step in points]
        self.store.client.log_batch(self.run_id, metrics=metrics)

    def _attempt(self, what: str, write: Callable[[], object]) -> None:
        if not self._leads:
            return
        try:
            write()
        except Exception as err:  # noqa: BLE001 - whatever ails the store must not end the training
            text = " ".join(str(err).split())[:160]
            log.warning("tracking store refuses %s (%s: %s); going on", what, type(err).__name__, text)


def _outcome(err: BaseException | None) -> tuple[str, str, bool]:
    """(status, reason, whether the same command should go on with this run)."""
    if err is None:
        return "FINISHED", "", False
    if isinstance(err, Interrupted | KeyboardInterrupt):
        return "KILLED", str(err) or "interrupted (Ctrl-C)", True
    if isinstance(err, Stopped):
        return "KILLED", f"stopped by {signal.Signals(err.signum).name}", True
    if isinstance(err, SystemExit):
        return "KILLED", f"left with exit code {err.code}", True
    kind = type(err).__name__
    if isinstance(err, DataInvalid):  # paths of patients' files stay out of the store
        return "FAILED", f"{kind}: {len(err.faults)} faults in the data set", False
    if isinstance(err, ItemError):
        return "FAILED", f"{kind}: one item cannot be read", False
    exhausted = isinstance(err, ResourcesExhausted | MemoryError) or getattr(err, "errno", None) == 28
    return "FAILED", f"{kind}: {' '.join(str(err).split())}"[:1000], exhausted


def _is_store_trouble(err: Exception) -> bool:
    """An error of MLflow, its database or its network, as against one of ours."""
    home = type(err).__module__.split(".")[0]
    return home in ("mlflow", "sqlalchemy", "requests", "urllib3", "sqlite3") or isinstance(err, OSError)
