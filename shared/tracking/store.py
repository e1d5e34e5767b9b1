"""The tracking store, ready to use: an open client on MLflow's default place or ``MLFLOW_TRACKING_URI``.

Default: ``mlflow.db`` and ``mlruns/`` in the working directory. The first use of an empty database creates its
schema, and two processes doing that at once break each other: both wait for one file lock instead.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import EnvironmentUnfit
from shared.io.atomic import temporary_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_DATABASE = "mlflow.db"
LOCK_SECONDS = 60
_NOISY = ("alembic", "mlflow", "sqlalchemy")
_WITHIN = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Set in every process of ours that touches MLflow, whatever the user's shell says."""


@dataclass(frozen=True, slots=True)
class Store:
    """A reachable store. `folder` holds the database where it is a local file."""

    uri: str
    client: MlflowClient
    folder: Path | None

    def experiment(self, name: str) -> str:
        """Id of the experiment `name`, created when absent. Safe with several processes at once."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            with self.lock():
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    return str(self.client.create_experiment(name))
        if found.lifecycle_stage != "active":
            raise EnvironmentUnfit(
                f"{self.uri}: experiment '{name}' is deleted; an active one wanted; "
                f"run `mlflow experiments restore -x {found.experiment_id}`"
            )
        return str(found.experiment_id)

    def find_experiment(self, name: str) -> str | None:
        """Id of the experiment `name`, or None; creates nothing."""
        found = self.client.get_experiment_by_name(name)
        return None if found is None else str(found.experiment_id)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held by one process at a time; for what the store itself does not do atomically."""
        with _locked(self.uri, self.folder):
            yield


def quiet_mlflow() -> None:
    """Telemetry, job execution and pickle off, and nothing but errors in the log; before importing mlflow."""
    os.environ.update(_WITHIN)
    level = os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # read by mlflow when it is imported
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.getLevelNamesMapping().get(level.upper(), logging.ERROR))


def connect() -> Store:
    """The store of this working directory or of ``MLFLOW_TRACKING_URI``. Raises `EnvironmentUnfit`."""
    quiet_mlflow()
    uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip() or f"sqlite:///{Path.cwd() / DEFAULT_DATABASE}"
    folder = _database_folder(uri)
    with _locked(uri, folder), _impatient(uri):
        try:
            from mlflow import MlflowClient

            if folder is not None:
                _make(uri)
            client = MlflowClient(
                tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI", "").strip() or uri
            )
            client.search_experiments(max_results=1)
        except Exception as err:
            raise EnvironmentUnfit(_sentence(uri, err)) from err
    return Store(uri, client, folder)


def _database_folder(uri: str) -> Path | None:
    """Folder of a sqlite file, made sure of; None for servers. Raises `EnvironmentUnfit`."""
    if not uri.startswith("sqlite:///"):
        return None
    path = _file(uri)
    folder = path.parent.absolute()
    if not folder.is_dir():
        raise EnvironmentUnfit(f"{uri}: {folder} is not a folder; an existing one wanted; create it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise EnvironmentUnfit(
            f"{uri}: not writable; a store you may write wanted; change to another folder or set MLFLOW_TRACKING_URI"
        )
    return folder


def _make(uri: str) -> None:
    """An absent sqlite file with its schema, complete or not at all: one whose making was killed midway never opens."""
    from mlflow import MlflowClient

    path = _file(uri)
    if path.exists() or "?" in uri or path.name == ":memory:":
        return
    for left in path.parent.glob(f".{path.name}.*.tmp*"):  # by one that was killed; the lock is ours
        left.unlink()
    draft = temporary_name(path)
    try:
        MlflowClient(f"sqlite:///{draft}").search_experiments(max_results=1)
        os.link(draft, path)
    except FileExistsError:
        pass  # made meanwhile by a program that does not know our lock, and may hold its runs
    except OSError:  # no hard links on this file system
        os.rename(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _file(uri: str) -> Path:
    """Of a sqlite store."""
    return Path(uri.removeprefix("sqlite:///").split("?")[0])


@contextmanager
def _locked(uri: str, folder: Path | None) -> Iterator[None]:
    from filelock import FileLock, Timeout

    if folder is not None:
        path = folder / f"{Path(uri.split('?')[0]).name}.lock"
    else:
        digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
        path = Path(tempfile.gettempdir()) / f"pipelines-{os.getuid()}-{digest}.lock"
    lock = FileLock(path, timeout=LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise EnvironmentUnfit(
            f"{path}: held by another process for {LOCK_SECONDS} s; a free lock wanted; end that process"
        ) from None
    except OSError as err:
        raise EnvironmentUnfit(
            f"{path}: {err.strerror or err}; a folder that allows locks wanted; set MLFLOW_TRACKING_URI"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _impatient(uri: str) -> Iterator[None]:
    """One try and 10 s for a server at the first contact; MLflow's own patience is minutes."""
    if not uri.startswith("http"):
        yield
        return
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def without_password(uri: str) -> str:
    """`uri` as it may be shown and logged."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", uri)


def _sentence(uri: str, err: Exception) -> str:
    text = " ".join(str(err).split()).replace(uri, without_password(uri))
    uri = without_password(uri)
    if "out-of-date database schema" in text:
        return (
            f"{uri}: written by another MLflow version; its schema must be upgraded; back the file up, "
            f"then run `mlflow db upgrade {uri}`"
        )
    if "not a database" in text:
        return f"{uri}: not a database; an MLflow store wanted; move the file away or set MLFLOW_TRACKING_URI"
    if uri.startswith(("file:", "/", ".")) or "://" not in uri:
        return f"{uri}: MLflow 3 keeps no runs in plain files; a database wanted; use sqlite:///mlflow.db"
    return (
        f"{uri}: {_short(err, text)}; a reachable MLflow store wanted; check MLFLOW_TRACKING_URI or unset it"
    )


def _short(err: Any, text: str) -> str:
    """First sentence of a database's or network's error, 120 characters at most."""
    return f"{type(err).__name__}: {text}"[:120]
