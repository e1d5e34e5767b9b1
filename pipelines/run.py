"""One run, start to end: check → train → package → evaluate → report → register, all in one MLflow run."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import registry
from shared.bundle import Bundle
from shared.config import RunConfig, config_hash, flatten, to_yaml
from shared.errors import DataInvalid, Fault, UsageError
from shared.io.atomic import atomic_write_text, probe_writable, sweep_temporaries
from shared.pipeline import DataFacts, Evaluation, Pipeline, error_faults

if TYPE_CHECKING:
    from shared.training.fit import FitResult

Say = Callable[[str], None]
RUNS = Path("runs")


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asked for."""

    name: str
    preset: str = "default"
    config_file: Path | None = None
    data: Path | None = None
    resume: str = "auto"
    sets: Sequence[str] = ()
    parent: str | None = None
    """Run id of the sweep this run belongs to."""


def resolve(request: Request) -> tuple[Pipeline, Any]:
    pipeline = registry.load(request.name)
    over: Mapping[str, Any] = {"data": {"path": str(request.data)}} if request.data is not None else {}
    return pipeline, pipeline.resolve(request.preset, request.config_file, request.sets, over)


def run(request: Request, say: Say) -> dict[str, Any]:
    """Train, evaluate, report and register; the object that ``--json`` prints.

    Raises a `SuiteError`: `UsageError` (configuration, paths, nothing to resume), `EnvironmentUnfit` (extra, device,
    store), `DataInvalid`, `Diverged`, `ResourcesExhausted` or `Interrupted`; the run then ends FAILED or KILLED.
    """
    from shared.tracking.run import TrackedRun, last_interrupted, sweep_stale
    from shared.tracking.store import connect
    from shared.training.hardware import require as require_hardware

    started = time.monotonic()
    pipeline, config = resolve(request)
    pipeline.ready()
    require_hardware(config.train)
    probe_writable(RUNS)
    where = config.data.path or "embedded sample (no --data given)"
    say(f"{pipeline.name}: preset {request.preset}, data: {where}")
    check(pipeline, config, say)
    config = pipeline.complete(config)
    store = connect()
    for stale in sweep_stale(store, pipeline.name):
        say(f"run {stale} was left by a dead process; marked KILLED")
    resume_id = _resume_id(
        request.resume, lambda: last_interrupted(store, pipeline.name, config_hash(config))
    )
    tags = {"preset": request.preset, "config_hash": config_hash(config), "data": str(where)}
    if request.parent:
        tags["mlflow.parentRunId"] = request.parent
    tracked = TrackedRun.start(
        store,
        pipeline.name,
        params=flatten(config),
        tags=tags,
        work_root=RUNS,
        resume_run_id=resume_id,
        seed=config.seed,
    )
    with tracked:
        if resume_id:
            say(f"resuming run {tracked.run_id[:8]} (--resume no starts anew)")
        trained = _train(pipeline, config, tracked, say)
        result = _deliver(pipeline, config, request, tracked, trained, say)
    result |= {"seconds": round(time.monotonic() - started, 1), "status": "FINISHED"}
    return result


def run_once(request: Request, say: Say) -> tuple[str, Path]:
    """Run id and work folder of the finished run of this configuration in the store and in ``runs/``; else `run`'s.

    So that a benchmark that is repeated, or was stopped, trains nothing twice.
    """
    from shared.tracking.store import connect

    pipeline, config = resolve(request)
    wanted = config_hash(pipeline.complete(config))
    client = connect().client
    if (experiment := client.get_experiment_by_name(pipeline.name)) is not None:
        query = f"tags.config_hash = '{wanted}' and attributes.status = 'FINISHED'"
        for found in client.search_runs([experiment.experiment_id], query, max_results=5):
            folder = RUNS / pipeline.name / found.info.run_id[:12]
            if (folder / "bundle").is_dir():
                return found.info.run_id, folder
    result = run(request, say)
    return result["run_id"], Path(result["bundle"]).parent


def check(pipeline: Pipeline, config: Any, say: Say) -> None:
    """Say every warning; raise `DataInvalid` with all errors."""
    faults = faults_of(pipeline, config)
    for fault in faults:
        if fault.severity == "warning":
            say(f"warning: {fault}")
    if error_faults(faults):
        raise DataInvalid(faults)


def faults_of(pipeline: Pipeline, config: Any) -> list[Fault]:
    """Everything wrong or odd with the data set; [] for the embedded sample. Raises `UsageError` if it is absent."""
    path = config.data.path
    if path is not None and not Path(path).exists():
        raise UsageError(f"{path}: not found; a data set wanted; check --data")
    return [] if path is None else pipeline.check(config)


def _resume_id(choice: str, last: Callable[[], str | None]) -> str | None:
    """The run to go on with. `auto` takes the last interrupted one of the same configuration, if any."""
    if choice == "no":
        return None
    if choice in ("auto", "must"):
        found = last()
        if found is None and choice == "must":
            raise UsageError(
                "--resume must: no interrupted run of this configuration; "
                "give the same preset, data and -s as the first time, or --resume no"
            )
        return found
    return choice


@dataclass(frozen=True, slots=True)
class _Trained:
    """What the training hands on."""

    facts: DataFacts
    """Of the data, with the task's own notes."""
    fitted: FitResult
    params_count: int
    own: dict[str, Any]
    """The pipeline's facts for the bundle."""


def _train(pipeline: Pipeline, config: RunConfig, tracked: Any, say: Say) -> _Trained:
    """The first stage, from the data to the best weights."""
    from shared.tracking.ranks import is_leader
    from shared.training.fit import FitContext
    from shared.training.seed import seed_everything

    work: Path = tracked.work
    if tracked.resumed and is_leader():
        sweep_temporaries(work)
    seed_everything(config.seed, config.threads)
    atomic_write_text(work / "config.yaml", to_yaml(config))
    tracked.log_artifact(work / "config.yaml")

    data: Any = pipeline.data(config)
    data.setup("fit")
    facts: DataFacts = data.facts()
    for note in facts.notes:
        say(f"data: {note}")
    _refuse_other_data(work, facts, tracked.run_id)
    tracked.set_tags(
        {"data_source": facts.source, "data_fingerprint": facts.fingerprint, "data_items": str(facts.items)}
    )
    pipeline.prepare(config, data, work)

    task = pipeline.task(config)
    for note in (about := tuple(getattr(task, "notes", ()))):
        say(f"model: {note}")
    facts = replace(facts, notes=(*facts.notes, *about))
    network: Any = task.network
    params_count = sum(parameter.numel() for parameter in network.parameters())
    say(f"[1/5] train: {facts.items} items, {params_count / 1e6:.2f} M parameters, run {tracked.run_id[:8]}")
    context = FitContext(
        work=work,
        logger=tracked.lightning_logger(),
        resume=tracked.resumed,
        say=say,
        monitor=f"val/{pipeline.primary.metric}",
        mode=pipeline.primary.mode,
        config_hash=config_hash(config),
    )
    fitted = pipeline.fit(config, task, data, context)
    tracked.log_metrics({"train_seconds": fitted.seconds}, fitted.steps)
    return _Trained(facts, fitted, params_count, pipeline.schema(config, data))


def _deliver(
    pipeline: Pipeline, config: RunConfig, request: Request, tracked: Any, trained: _Trained, say: Say
) -> dict[str, Any]:
    """The other stages, from the weights to the registered model; the object that ``--json`` prints."""
    work: Path = tracked.work
    facts, fitted = trained.facts, trained.fitted
    say("[2/5] package")
    bundle = Bundle.save(
        work / "bundle",
        pipeline=pipeline.name,
        config=config,
        state_dict=fitted.state_dict,
        schema={
            "params_count": trained.params_count,
            "data_fingerprint": facts.fingerprint,
            "data_source": facts.source,
            "run_id": tracked.run_id,
            pipeline.name: trained.own,
        },
        overwrite=True,
    )
    say("[3/5] evaluate")
    evaluation = pipeline.evaluate(bundle, config, work / "figures")
    metrics = {**fitted.best, **evaluation.metrics}
    tracked.log_metrics(evaluation.metrics, fitted.steps)
    card = _card(pipeline, config, bundle, evaluation, facts, command(request))
    bundle = bundle.annotate(metrics=metrics, card=card)

    say("[4/5] report")
    report = write_report(pipeline, config, evaluation, facts, fitted, tracked, work / "report.html")
    tracked.log_artifact(report)
    tracked.log_artifacts(work / "figures", "figures")

    say("[5/5] register")
    verdict = tracked.log_model(pipeline, bundle, metrics, facts.fingerprint)
    say(verdict)
    return {
        "pipeline": pipeline.name,
        "preset": request.preset,
        "run_id": tracked.run_id,
        "seed": config.seed,
        "data": {"source": facts.source, "fingerprint": facts.fingerprint, "items": facts.items},
        "metrics": metrics,
        "params_count": trained.params_count,
        "bundle": str(bundle.path),
        "report": str(report),
    }


def _refuse_other_data(work: Path, facts: DataFacts, run_id: str) -> None:
    """A training must not go on with other data than it began with. Raises `UsageError`."""
    note = work / "data_fingerprint"
    if note.is_file() and note.read_text(encoding="utf-8") != facts.fingerprint:
        raise UsageError(
            f"{facts.source}: changed since run {run_id[:8]} began; the same data wanted to go on with it; "
            f"restore them and give --resume {run_id[:8]}, or start anew with --resume no"
        )
    atomic_write_text(note, facts.fingerprint)


def command(request: Request) -> str:
    """The command line that repeats this run anew; the points of a sweep have one, too."""
    words = ["pipelines", "run", request.name, "--preset", request.preset, "--resume", "no"]
    for flag, value in (("--config", request.config_file), ("--data", request.data)):
        words += [flag, str(value)] if value is not None else []
    words += [word for text in request.sets for word in ("-s", text)]
    return shlex.join(words)


def _card(
    pipeline: Pipeline,
    config: RunConfig,
    bundle: Bundle,
    evaluation: Evaluation,
    facts: DataFacts,
    command: str,
) -> str:
    """Facts any card must state, then the pipeline's own words."""
    chosen = pipeline.main_metrics(evaluation.metrics)
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in chosen.items())
    notes = "".join(f"- {note}\n" for note in (*facts.notes, *evaluation.notes))
    return (
        f"# {pipeline.name}\n\n{pipeline.summary}\n\n"
        f"- Training data: {facts.source}, {facts.items} items, fingerprint `{facts.fingerprint[:16]}`\n"
        f"- Parameters: {bundle.schema['params_count']:,}; seed {config.seed}; bundle `{bundle.hash}`\n"
        f"- Reproduce: `{command}`\n\n"
        f"| metric | value |\n|---|---|\n{rows}\n\n{notes}\n"
        f"{pipeline.card(config, evaluation, facts)}"
    )


def write_report(
    pipeline: Pipeline,
    config: RunConfig,
    evaluation: Evaluation,
    facts: DataFacts,
    fitted: FitResult,
    tracked: Any,
    path: Path,
) -> Path:
    """The run's self-contained HTML page: results first, then the pipeline's sections, then provenance."""
    from shared.plots.curves import curves
    from shared.report.html import Report

    report = Report(f"{pipeline.name} · {tracked.run_id[:8]}", pipeline.summary)
    report.heading("Result")
    if config.data.path is None:
        report.warning(
            "Trained and scored on the embedded sample: the figures say nothing about data of your own."
        )
    chosen = pipeline.main_metrics(evaluation.metrics)
    report.keyvalues(chosen)
    pipeline.report(report, config, evaluation)
    report.heading("Training")
    report.keyvalues({"epochs": fitted.epochs, "steps": fitted.steps, "seconds": f"{fitted.seconds:.0f}"})
    if fitted.history:
        report.figure(curves(fitted.history), "Loss and validation metrics against training step.")
    report.heading("Provenance")
    report.keyvalues(
        {
            "run": tracked.run_id,
            "data": facts.source,
            "fingerprint": facts.fingerprint,
            "items": facts.items,
            **tracked.provenance,
        }
    )
    report.heading("Configuration")
    report.code(to_yaml(config))
    report.write(path)
    return path
