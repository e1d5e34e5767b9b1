"""Commands only: read the command line, call one function, print, choose the exit code.

Standard output carries results (with ``--json`` exactly one object); everything for people goes to standard error.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pipelines import registry
from shared.distributed.signals import Stopped
from shared.errors import Fault, SuiteError, UsageError
from shared.io.strict_json import as_line

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Published transformer systems on your files: train, predict a folder, compare every run.",
    epilog="--debug, with any command: the traceback of an error beside its one line.",
)

Name = Annotated[str, typer.Argument(help="a pipeline, see `pipelines list`", show_default=False)]
Sets = Annotated[list[str] | None, typer.Option("--set", "-s", help="dotted key=value; repeatable")]
Preset = Annotated[str, typer.Option(help="smoke, default or paper")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file laid over the preset")]
Data = Annotated[Path | None, typer.Option("--data", help="data set; none = the embedded sample")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="bundle folder, runs:/…, models:/NAME@champion, NAME:latest, builtin[:NAME]"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output")]
INTERRUPTED = "interrupted; nothing is half written; give the same command again"
PIPED_WIDTH = 160
"""Columns of a table that goes into a file or another program."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def emit(value: dict[str, Any], as_json: bool, human: Callable[[dict[str, Any]], None] | None = None) -> None:
    """The command's result: one JSON object, or the human form."""
    if as_json:
        print(as_line(value))
    elif human:
        human(value)


def table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        out.add_column(column, overflow="fold")
    for row in rows:
        out.add_row(*(Text(_cell(row.get(column))) for column in columns))  # plain strings are rich's markup
    # A pipe has no width; rich would take 80 columns and fold run ids and paths.
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(out)


def main_metrics(name: str, metrics: dict[str, float]) -> None:
    """The pipeline's headline metrics as a table, and how many more there are."""
    chosen = registry.load(name).main_metrics(metrics)
    table([{"metric": key, "value": number} for key, number in chosen.items()], ("metric", "value"))
    if len(chosen) < len(metrics):
        print(f"{len(metrics) - len(chosen)} more with --json")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


# ---------------------------------------------------------------- what there is


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Pipelines: task, input files, models, presets, shipped weights."""
    rows = []
    for name in registry.names():
        pipeline = registry.load(name)
        rows.append(
            {
                "name": name,
                "task": pipeline.summary,
                "inputs": pipeline.inputs,
                "models": list(pipeline.models),
                "presets": list(pipeline.presets),
                "weights": ", ".join(pipeline.shipped) or "none",
                "status": f"needs extra '{pipeline.extra}'" if pipeline.missing else "ready",
            }
        )
    columns = ("name", "task", "inputs", "models", "presets", "weights", "status")
    emit({"rows": rows}, as_json, lambda value: table(value["rows"], columns))


@app.command()
def show(name: Name, preset: Preset = "default", config: ConfigFile = None, sets: Sets = None) -> None:
    """The resolved configuration as YAML, every default visible."""
    from shared.config import to_yaml

    print(to_yaml(registry.load(name).resolve(preset, config, sets or ())), end="")


@app.command()
def doctor(as_json: Json = False) -> None:
    """What works on this machine, and the one-line mend for what does not."""
    from pipelines.doctor import diagnose

    rows = diagnose()
    emit({"rows": rows}, as_json, lambda value: table(value["rows"], ("name", "state", "detail", "mend")))
    if any(row["state"] == "fail" for row in rows):
        raise typer.Exit(3)


# ---------------------------------------------------------------- training


@app.command()
def check(
    name: Name,
    data: Data = None,
    preset: Preset = "default",
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Every fault of a data set in one list, before any training."""
    from pipelines.run import Request, faults_of, resolve
    from shared.errors import UsageError
    from shared.pipeline import error_faults

    pipeline, resolved = resolve(Request(name, preset, config, data, sets=sets or ()))
    pipeline.ready()
    if resolved.data.path is None:
        raise UsageError("check: no data set; --data PATH wanted; give the folder or datalist to check")
    faults = faults_of(pipeline, resolved)
    rows: list[Fault] = sorted(faults, key=lambda fault: fault.severity)
    errors = error_faults(faults)

    def human(_: dict[str, Any]) -> None:
        for fault in rows:
            print(f"{fault.severity}: {fault}")
        print(f"errors: {len(errors)}, warnings: {len(faults) - len(errors)}")

    emit(
        {"pipeline": name, "errors": len(errors), "rows": [fault.as_dict() for fault in rows]}, as_json, human
    )
    if errors:
        raise typer.Exit(6)


@app.command()
def run(
    name: Name,
    preset: Preset = "default",
    config: ConfigFile = None,
    data: Data = None,
    resume: Annotated[str, typer.Option(help="no, auto, must, or a run id")] = "auto",
    sets: Sets = None,
    as_json: Json = False,
) -> None:
    """Train, evaluate, report and register: one MLflow run."""
    from pipelines.run import Request
    from pipelines.run import run as run_pipeline

    result = run_pipeline(Request(name, preset, config, data, resume, sets or ()), say)

    def human(value: dict[str, Any]) -> None:
        main_metrics(name, value["metrics"])
        print(f"bundle  {value['bundle']}\nreport  {value['report']}")

    emit(result, as_json, human)


@app.command()
def sweep(
    name: Name,
    sets: Annotated[list[str], typer.Option("--set", "-s", help="key=v1,v2 for a grid; key=v fixes it")],
    preset: Preset = "default",
    config: ConfigFile = None,
    data: Data = None,
    random: Annotated[int, typer.Option(min=0, help="draw this many points of the grid instead of all")] = 0,
    as_json: Json = False,
) -> None:
    """Grid or random search, resumable, under one parent run."""
    from pipelines.sweep import sweep as run_sweep

    result = run_sweep(name, sets, preset=preset, config_file=config, data=data, random=random, say=say)
    emit(result, as_json, lambda value: table(value["rows"], ("name", "point", "status", "metric", "value")))
    failed = sum(row["status"] != "FINISHED" for row in result["rows"])
    raise typer.Exit(0 if not failed else 5 if failed == len(result["rows"]) else 4)


# ---------------------------------------------------------------- using a model


@app.command()
def sample(
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the files")],
    items: Annotated[int, typer.Option(min=1, help="how many")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write a few small input files of the kind the pipeline reads, for a first try."""
    pipeline = registry.load(name)
    pipeline.ready()
    for path in pipeline.write_sample(output, items, seed):
        print(path)


@app.command()
def predict(
    name: Name,
    inputs: Annotated[list[Path], typer.Argument(help="files or folders", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the results")],
    model: Model = None,
    engine: Annotated[str, typer.Option(help="local or ray")] = "local",
    workers: Annotated[int, typer.Option(min=0, help="processes; 0 = one per two cores")] = 0,
    overwrite: Annotated[bool, typer.Option(help="redo finished items")] = False,
    fail_fast: Annotated[bool, typer.Option(help="stop at the first failed item")] = False,
    sets: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="predict.key=value, as `pipelines show` names it")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict files and folders; a failed item never stops the others."""
    from pipelines.batch import exit_code, predict_batch
    from shared.config import parse_set
    from shared.progress import Progress
    from shared.tracking.model import resolve_model

    pipeline = registry.load(name)
    pipeline.ready()
    options = {".".join(key).removeprefix("predict."): value for key, value in map(parse_set, sets or ())}
    summary = predict_batch(
        name,
        resolve_model(model, pipeline),
        inputs,
        output,
        engine=engine,
        workers=workers,
        options=options,
        overwrite=overwrite,
        fail_fast=fail_fast,
        say=say,
        progress=Progress(),
    )
    emit(
        {"pipeline": name, "model": model or "builtin", **summary.as_dict()},
        as_json,
        lambda v: print(f"{v['ok']} ok, {v['failed']} failed, {v['skipped']} already done; {v['manifest']}"),
    )
    raise typer.Exit(exit_code(summary))


@app.command()
def evaluate(
    name: Name, data: Data = None, model: Model = None, sets: Sets = None, as_json: Json = False
) -> None:
    """Score a model on labelled data."""
    from pipelines.evaluate import evaluate as run_evaluation

    result = run_evaluation(name, data, model, sets or (), say)

    def human(value: dict[str, Any]) -> None:
        main_metrics(name, value["metrics"])
        print(f"table   {value['table']}   (pictures beside it)")

    emit(result, as_json, human)


@app.command()
def export(
    name: Name,
    model: Model = None,
    format_: Annotated[str, typer.Option("--format", help="onnx or torch")] = "onnx",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="file to write; none = NAME.onnx or NAME.pt2")
    ] = None,
    as_json: Json = False,
) -> None:
    """The network as ONNX or torch.export program, checked against the original."""
    from pipelines.export import FORMATS
    from pipelines.export import export as run_export
    from shared.tracking.model import resolve_model

    pipeline = registry.load(name)
    pipeline.ready()
    output = output or Path(name + FORMATS.get(format_, ""))
    result = run_export(pipeline, resolve_model(model, pipeline), format_, output)
    emit(result, as_json, lambda value: print("\n".join(f"{key}: {item}" for key, item in value.items())))


@app.command()
def serve(
    name: Name,
    model: Model = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5001,
    host: Annotated[str, typer.Option(help="stays on this machine unless --i-understand")] = "127.0.0.1",
    i_understand: Annotated[
        bool, typer.Option(help="allow a host other machines can reach (no login!)")
    ] = False,
) -> None:
    """Answer requests over HTTP with MLflow's scoring server."""
    from pipelines.serve import serve as run_server

    pipeline = registry.load(name)
    pipeline.ready()
    raise typer.Exit(run_server(pipeline, model, port=port, host=host, allow_remote=i_understand, say=say))


# ---------------------------------------------------------------- looking back


@app.command()
def compare(
    name: Name,
    metric: Annotated[str | None, typer.Option(help="metric to sort by")] = None,
    as_json: Json = False,
) -> None:
    """Leaderboard of tracked runs, grouped by data."""
    from pipelines.compare import COLUMNS
    from pipelines.compare import compare as leaderboard

    rows = leaderboard(registry.load(name), metric)
    emit({"rows": rows}, as_json, lambda value: table(value["rows"], COLUMNS))


@app.command()
def report(run: Annotated[str, typer.Argument(help="run id, or its first digits")]) -> None:
    """Path of the run's self-contained HTML report."""
    from pipelines.compare import find_report

    print(find_report(run))


@app.command()
def review(port: Annotated[int, typer.Option(min=1, max=65535)] = 5000) -> None:
    """Open the MLflow UI on this machine (loopback only)."""
    from pipelines.compare import review as run_ui

    raise typer.Exit(run_ui(port=port, say=say))


@app.command()
def zoo(
    pipeline: Annotated[
        str | None, typer.Option("--for", metavar="NAME", help="only what this one can use")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="backbone, mixer, rewrite, …")] = None,
    as_json: Json = False,
) -> None:
    """Backbones, mixers, their parts and rewrites: parameters, multiply-accumulates, paper, where usable."""
    from shared.nets.zoo import zoo as parts

    use = registry.load(pipeline).network if pipeline else None
    if pipeline and use is None:
        raise UsageError(
            f"{pipeline}: takes no backbone of the library; a pipeline that does wanted; see its models"
        )
    rows = parts(use, kind)
    columns = (
        "name",
        "kind",
        "dims",
        "causal",
        "streaming",
        "masks",
        "params",
        "macs",
        "at",
        "source",
        "paper",
    )
    emit({"rows": rows}, as_json, lambda value: table([_readable(row) for row in value["rows"]], columns))


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the zoo for the eye: 11.92 M, yes or nothing."""
    out = dict(row)
    for key in ("params", "macs"):
        number = row.get(key)
        if number is not None:
            power = min(max(len(str(int(number))) - 1, 0) // 3, 3)
            out[key] = f"{number / 1000**power:.4g} {('', 'k', 'M', 'G')[power]}".strip()
    for key in ("streaming", "masks"):
        out[key] = "yes" if row[key] else ""
    return out


@app.command()
def bench(
    name: Name,
    only: Annotated[str | None, typer.Option(help="one case")] = None,
    quick: Annotated[bool, typer.Option(help="small sizes, minutes at most")] = False,
    as_json: Json = False,
) -> None:
    """Speed and quality side by side with the named peers."""
    from pipelines.bench import bench as run_bench

    rows = run_bench(name, only, quick, say)
    columns = ("case", "model", "quantity", "unit", "ours", "peer", "peer_name", "ratio", "published")
    emit({"rows": rows}, as_json, lambda value: table(value["rows"], columns))


# ---------------------------------------------------------------- the way out


def main() -> NoReturn:
    """Run the command; every error becomes one line and its exit code (shared/errors.py)."""
    argv = [arg for arg in sys.argv[1:] if arg != "--debug"]
    debug = len(argv) != len(sys.argv[1:])
    signal.signal(signal.SIGTERM, _terminate)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a file's name may be any bytes
    try:
        # typer.Exit comes back as value, KeyboardInterrupt as 130
        code = int(app(args=argv, prog_name="pipelines", standalone_mode=False) or 0)
        sys.stdout.flush()
        if code == 130:
            _fail(INTERRUPTED, code, debug=False)
    except SuiteError as err:
        code = _fail(str(err), err.exit_code, debug)
    except Stopped as stop:
        code = _fail(
            "terminated; nothing is half written; give the same command again", 128 + stop.signum, debug
        )
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _fail(INTERRUPTED, 130, debug)
    except MemoryError:
        code = _fail(
            "out of memory; a smaller batch, crop or window wanted; see -s train.* and predict.*", 8, debug
        )
    except (BrokenPipeError, SystemExit) as left:  # typer makes the first into the second
        if isinstance(left, SystemExit) and not isinstance(left.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
        code = 0
    except Exception as err:  # noqa: BLE001 - the last line of defence: ours, so say so and keep the traceback
        code = _unforeseen(err, debug)
    raise SystemExit(code)


_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)


def _unforeseen(err: Exception, debug: bool) -> int:
    click_code = getattr(err, "exit_code", None)
    if click_code is not None and hasattr(err, "format_message"):  # click's own usage errors
        return _fail(err.format_message(), 2, debug) if err.format_message() else 2  # without: help was shown
    if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT):
        return _fail(f"{err.filename or 'disk'}: no space left; free some and repeat the command", 8, debug)
    if isinstance(err, OSError) and err.errno in _NO_ACCESS and err.filename is not None:
        return _fail(f"{err.filename}: {err.strerror}; a path you may use wanted; check it", 2, debug)
    log = Path(f"pipelines-error-{time.strftime('%Y%m%d-%H%M%S')}.log")
    try:
        log.write_text(traceback.format_exc())
    except OSError:
        log = Path(os.devnull)
    return _fail(f"bug: {type(err).__name__}: {err}; traceback in {log}; please report it", 1, debug)


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    say("error: " + text.replace("\n", " "))
    return code


def _terminate(signum: int, frame: Any) -> NoReturn:
    raise Stopped(signum)
