"""Bundles as MLflow models: logged, registered under the pipeline's name, compared with the champion."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import ModelUnusable
from shared.tracking.store import Store, quiet_mlflow

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from shared.bundle import Bundle
    from shared.pipeline import Pipeline, Primary

ALIAS = "champion"
MODEL_NAME = "model"
BUNDLE_KEY = "bundle"
CODE = Path(__file__).with_name("pyfunc_model.py")


def log_and_register(
    store: Store,
    run_id: str,
    pipeline: Pipeline,
    bundle: Bundle,
    metrics: Mapping[str, float],
    fingerprint: str,
) -> str:
    """Log `bundle` with the run, register it, move the champion if it won; a sentence saying what was decided."""
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.models import Model

    run = store.client.get_run(run_id)
    step = max((p.step for p in store.client.get_metric_history(run_id, pipeline.primary.metric)), default=0)
    tags = {
        "metric": pipeline.primary.metric,
        "value": repr(float(metrics.get(pipeline.primary.metric, float("nan")))),
        "fingerprint": fingerprint,
        "preset": run.data.tags.get("preset", ""),
        "bundle_hash": bundle.hash,
        "params_count": str(bundle.schema.get("params_count", "")),
    }
    logged = store.client.create_logged_model(
        run.info.experiment_id, name=MODEL_NAME, source_run_id=run_id, tags=tags, model_type=pipeline.name
    )
    try:
        with tempfile.TemporaryDirectory(prefix="pipelines-model-") as scratch:
            folder = Path(scratch) / "model"
            described = Model(
                artifact_path=logged.artifact_location,
                run_id=run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
            )
            save_pyfunc(pipeline, bundle, folder, described)
            store.client.log_model_artifacts(logged.model_id, str(folder))
    except BaseException:
        store.client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    store.client.finalize_logged_model(logged.model_id, "READY")
    store.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    numbers = [
        Metric(key, float(value), int(time.time() * 1000), step, model_id=logged.model_id, run_id=run_id)
        for key, value in metrics.items()
        if not key.startswith(
            "val/"
        )  # MLflow adds these points to the run's curves, which have the val/ ones
    ]
    store.client.log_batch(run_id, metrics=numbers[:1000])
    store.client.log_batch(run_id, tags=_run_tags(tags))
    return register(store, pipeline.name, pipeline.primary, logged.model_id, run_id, tags)


def save_pyfunc(pipeline: Pipeline, bundle: Bundle, folder: Path, described: Any = None) -> Path:
    """An MLflow model folder around `bundle`, made from code, with signature and input example."""
    quiet_mlflow()
    from mlflow.pyfunc import save_model

    predictor = pipeline.predictor(bundle, {})
    # With signature and requirements given MLflow has nothing to infer, and so does not run the example.
    save_model(
        path=str(folder),
        mlflow_model=described,
        python_model=str(CODE),
        artifacts={BUNDLE_KEY: str(bundle.path)},
        signature=_signature(predictor),
        input_example=_example(predictor),
        pip_requirements=_requirements(pipeline),
    )
    return folder


def register(
    store: Store, name: str, primary: Primary, model_id: str, run_id: str, tags: Mapping[str, str]
) -> str:
    """A new version of the registered model `name`; moves the champion by `verdict`; says what was decided."""
    from mlflow.exceptions import MlflowException

    with store.lock():
        try:
            store.client.create_registered_model(name)
        except MlflowException as err:
            if err.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        new = store.client.create_model_version(
            name, source=f"models:/{model_id}", run_id=run_id, tags=dict(tags), model_id=model_id
        )
        champion = champion_of(store, name)
        moves, sentence = verdict(primary, tags, champion.tags if champion else None)
        if moves:
            store.client.set_registered_model_alias(name, ALIAS, new.version)
    holds = f"; version {champion.version} is champion" if champion and not moves else ""
    return f"{name} version {new.version} registered: {sentence}{holds}"


def champion_of(store: Store, name: str) -> ModelVersion | None:
    """The version that holds the alias, None if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return store.client.get_model_version_by_alias(name, ALIAS)
    except MlflowException:
        return None


def verdict(primary: Primary, new: Mapping[str, str], old: Mapping[str, str] | None) -> tuple[bool, str]:
    """(whether `new` becomes champion, why); both are tags of model versions."""
    value = _number(new.get("value"))
    if value != value:
        return False, f"{primary.metric} was not measured"
    if old is None:
        return True, f"champion, the first with {primary.metric} {value:.4g}"
    by_hand = f"to prefer it all the same, give it the alias '{ALIAS}' in `pipelines review`"
    if old.get("fingerprint") != new.get("fingerprint"):
        return False, f"the champion was scored on other data, which do not compare ({by_hand})"
    if old.get("metric") != new.get("metric"):
        return False, f"the champion was chosen by {old.get('metric')}, not {new.get('metric')} ({by_hand})"
    before = _number(old.get("value"))
    if primary.improves(value, before):
        return True, f"new champion, {primary.metric} {before:.4g} → {value:.4g}"
    return False, f"{primary.metric} {value:.4g} does not improve on the champion's {before:.4g}"


def resolve_model(text: str | None, pipeline: Pipeline) -> Path:
    """Bundle folder for a folder, ``runs:/…``, ``models:/NAME@champion``, ``NAME:latest`` or ``builtin`` (None).

    Raises `ModelUnusable` with what there is when the model is absent or another pipeline's.
    """
    from shared.tracking.locate import locate

    path = locate(text, pipeline)
    try:
        found = str(json.loads((path / "schema.json").read_text(encoding="utf-8"))["pipeline"])
    except (OSError, ValueError, KeyError, TypeError):
        return path  # Bundle.open says better what is wrong with it
    if found != pipeline.name:
        raise ModelUnusable(
            f"{text or path}: a model of {found}; one of {pipeline.name} wanted; choose another --model"
        )
    return path


# ---------------------------------------------------------------- parts


def _signature(predictor: Any) -> Any:
    """Columns of request and answer; None for a predictor that does not serve."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    if not predictor.record_inputs:
        return None
    example = predictor.example_record()
    # A column that even the example leaves out may be left out by everybody.
    inputs: list[Any] = [
        ColSpec(kind, key, required=key in example or not example)
        for key, kind in predictor.record_inputs.items()
    ]
    outputs: list[Any] = [
        ColSpec(kind, key, required=False) for key, kind in predictor.record_outputs.items()
    ]
    return ModelSignature(Schema(inputs), Schema([*outputs, ColSpec("string", "error", required=False)]))


def _example(predictor: Any) -> Any:
    import pandas as pd

    record = predictor.example_record() if predictor.record_inputs else {}
    return pd.DataFrame([record]) if record else None


def _requirements(pipeline: Pipeline) -> list[str]:
    """Pinned third-party packages. The suite itself is not named: no index has it, a namesake might be fetched."""
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    modules = ("mlflow", "torch", "numpy", "pandas", "safetensors", "pydantic", "yaml", *pipeline.requires)
    # A namespace has several owners (mlflow, mlflow-skinny, …): the one of its own name brings the others.
    names = {
        module if module in owners[module] else owners[module][0] for module in modules if module in owners
    }
    out = []
    for name in sorted(names):
        try:
            out.append(f"{name}=={version(name).split('+')[0]}")
        except PackageNotFoundError:
            continue
    return out


def _run_tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(key, tags[key]) for key in ("params_count", "bundle_hash") if tags.get(key)]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
