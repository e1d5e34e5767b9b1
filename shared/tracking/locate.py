"""From what a user types after ``--model`` to a bundle folder on this disk."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from shared.errors import ItemError, ModelUnusable, UsageError
from shared.io.archive import is_archive, unpack
from shared.io.hashes import sha256_file
from shared.tracking.history import find_run

if TYPE_CHECKING:
    from shared.pipeline import Pipeline
    from shared.tracking.store import Store

FORMS = "a bundle folder or archive, runs:/ID, models:/NAME@champion, NAME:latest, builtin or builtin:NAME"
FETCHED = Path("runs") / ".models"
"""Where models of a remote store are kept, one folder each, so that a second use fetches nothing."""


def locate(text: str | None, pipeline: Pipeline) -> Path:
    """The bundle folder that `text` means; not opened yet. Raises `ModelUnusable`."""
    if text is None or text.partition(":")[0] == "builtin":
        return _shipped(text or "builtin", pipeline)
    if text.startswith("runs:/"):
        return _of_run(text, pipeline)
    if text.startswith("models:/"):
        return _of_registry(text.removeprefix("models:/"), text)
    path = Path(text).expanduser()
    if text and path.is_dir():
        return _inside(path)
    if text and is_archive(path) and path.is_file():
        return _unpacked(path)
    if re.fullmatch(r"[\w.-]+[:@][\w.-]+", text):
        return _of_registry(text, text)
    found = "a file that is no bundle; checkpoints are never unpickled" if path.is_file() else "not found"
    raise ModelUnusable(f"{text}: {found}; {FORMS} wanted; {_what_exists(pipeline)}")


def _shipped(text: str, pipeline: Pipeline) -> Path:
    if text in pipeline.shipped:
        return pipeline.shipped[text]
    what = f"weights of that name; it has {', '.join(pipeline.shipped)}" if pipeline.shipped else "weights"
    raise ModelUnusable(
        f"{text}: {pipeline.name} ships no {what}; --model with {FORMS} wanted; {_what_exists(pipeline)}"
    )


def _inside(folder: Path) -> Path:
    """The bundle in `folder`: itself, a run's work folder, or an MLflow model folder."""
    for candidate in (folder, folder / "bundle", *sorted(folder.glob("artifacts/*"))):
        if (candidate / "schema.json").is_file():
            return candidate
    return folder  # Bundle.open names the missing files


def _unpacked(path: Path) -> Path:
    """The bundle in a .zip or .tar.gz, unpacked once per content. Raises `ModelUnusable`."""
    folder = FETCHED / f"{path.name.split('.')[0][:80]}-{sha256_file(path)[:12]}"
    if not folder.is_dir():
        try:
            unpack(path, folder)
        except ItemError as err:
            raise ModelUnusable(str(err)) from None
    inner = [child for child in folder.iterdir() if child.is_dir()]
    found = _inside(folder)
    return _inside(inner[0]) if len(inner) == 1 and not (found / "schema.json").is_file() else found


def _of_run(text: str, pipeline: Pipeline) -> Path:
    store = _store()
    run_text = text.removeprefix("runs:/").strip("/").split("/")[0]
    try:
        run = find_run(store, run_text)
    except UsageError as err:
        raise ModelUnusable(f"{err}") from None
    outputs = run.outputs.model_outputs if run.outputs else []
    if not outputs:
        raise ModelUnusable(
            f"{text}: the run {run.info.status.lower()} without a model; a finished run wanted; "
            f"{_what_exists(pipeline)}"
        )
    models = [store.client.get_logged_model(output.model_id) for output in outputs]
    # A run resumed after its model was logged has two.
    return _of_model_id(store, max(models, key=lambda model: model.creation_timestamp).model_id, text)


def _of_registry(text: str, shown: str) -> Path:
    """``NAME@alias``, ``NAME/3``, ``NAME/latest``, and the same with a colon."""
    from mlflow.exceptions import MlflowException

    store = _store()
    name, mark, which = re.match(r"([^@:/]*)([@:/]?)(.*)", text).groups()  # type: ignore[union-attr]
    if re.fullmatch(r"m-[0-9a-f]{32}", name) and not which:
        return _of_model_id(store, name, shown)
    try:
        versions = store.client.search_model_versions(f"name='{name}'") if "'" not in name else []
        by_number = {str(version.version): version for version in versions}
        if which == "latest" and by_number:
            found = by_number[max(by_number, key=int)]
        elif mark != "@" and which in by_number:
            found = by_number[which]
        else:
            found = store.client.get_model_version_by_alias(name, which)
    except MlflowException:
        raise ModelUnusable(f"{shown}: not registered; {FORMS} wanted; {_registered(store, name)}") from None
    if found.model_id:
        return _of_model_id(store, found.model_id, shown)
    source = store.client.get_model_version_download_uri(name, found.version)
    return _inside(_on_disk(source) or _fetch(store, source, f"{name}-{found.version}", shown))


def _of_model_id(store: Store, model_id: str, shown: str) -> Path:
    from mlflow.exceptions import MlflowException

    try:
        place = store.client.get_logged_model(model_id).artifact_location
    except MlflowException:
        raise ModelUnusable(f"{shown}: its model {model_id} is gone from the store; {FORMS} wanted") from None
    return _inside(_on_disk(place) or _fetch(store, f"models:/{model_id}", model_id, shown))


def _on_disk(uri: str) -> Path | None:
    """The folder `uri` names if it is on this machine."""
    parts = urlparse(uri)
    if parts.scheme not in ("", "file"):
        return None
    path = Path(unquote(parts.path))
    return path if path.is_dir() else None


def _fetch(store: Store, uri: str, key: str, shown: str) -> Path:
    """Copy of a remote model under `FETCHED`, complete or absent."""
    import tempfile

    from mlflow.artifacts import download_artifacts

    place = FETCHED / key
    if place.is_dir():
        return place
    FETCHED.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{key}.", suffix=".tmp", dir=FETCHED))
    try:
        got = Path(download_artifacts(artifact_uri=uri, dst_path=str(draft), tracking_uri=store.uri))
        got.rename(place)
    except Exception as err:
        reason = " ".join(str(err).split())[:160]
        raise ModelUnusable(f"{shown}: cannot be fetched ({reason}); a reachable store wanted") from err
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return place


def _store() -> Any:
    from shared.tracking.store import connect

    return connect()


def _registered(store: Store, name: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        versions = store.client.search_model_versions(f"name='{name}'") if "'" not in name else []
    except MlflowException:
        versions = []
    if not versions:
        return f"nothing is registered as {name or '(empty)'}; train with `pipelines run`"
    numbers = sorted(int(version.version) for version in versions)
    return f"registered: {name}:{{{','.join(map(str, numbers[-5:]))}}}"


def _what_exists(pipeline: Pipeline) -> str:
    shipped = f"shipped: {', '.join(pipeline.shipped)}; " if pipeline.shipped else ""
    try:
        return f"{shipped}{_registered(_store(), pipeline.name)}"
    except Exception:  # noqa: BLE001 - the hint must not hide the error it belongs to
        return f"{shipped}train one with `pipelines run`"
