"""The page of the benches in the documentation, and their runs in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.bench.figures import cost_figure, tasks_figure
from shared.bench.records import Records
from shared.bench.tables import (
    Comments,
    Record,
    grids_table,
    memory_table,
    steps_table,
    summary,
    task_table,
    times_table,
    uncommented,
)
from shared.bench.tasks import TASKS, Task
from shared.config import read_yaml
from shared.io.atomic import atomic_write_text
from shared.plots.style import save_png

EXPERIMENT = "nets-bench"
INTRODUCTION = """# Benches of the network library

Made by `pipelines bench nets`; everything below is measured, nothing is quoted from a paper. Results are kept in
`runs/nets-bench/results.jsonl`, so that a bench that was cut short goes on where it stopped, and in MLflow under the
experiment `nets-bench`.
"""
TASKS_TEXT = """## Generated tasks

One network for all: two pre-norm blocks of 64 channels, 4 heads, learned positions, feed-forward ratio 2, mean pool
(an answer a position, or two sequences compared, where the task asks that). AdamW 3e-3, weight decay 0.05, one-cycle.
The number of parameters lies within ±10 % of attention's: where a mixer's own would not, the feed-forward part is
widened or narrowed, which the column *ratio* shows. Mean ± standard deviation over three seeds (start and order of the
samples; the samples are the same). Padding is a token like any other, for all mixers.

▼ marks a mixer below a linear model on a bag of tokens where the order of the tokens decides. The budget for a CPU is
small on purpose (about two hours for all); a task at its majority line was not learned in it and says nothing about the
mixers. On a GPU the same command takes ten times the samples and more.
"""
COST_TEXT = """## Cost against length

The mixer alone: one sample, 256 channels, 4 heads, float32. In brackets how many times faster than torch's
`scaled_dot_product_attention` (without its linear maps) in the same process. `skipped (predicted)`: shorter lengths
predict more than 60 s a call or more than 8 GB. Exponents are fitted from 4,096 tokens on.
"""


def write_page(records: Records, page: Path, comments_file: Path) -> list[str]:
    """``<page>`` and its figures in ``img/`` beside it, from whatever the records hold. Returned are ``task/mixer`` of
    flagged results without a comment in `comments_file` (YAML: task or "any" → mixer → remark)."""
    comments: Comments = read_yaml(comments_file) if comments_file.is_file() else {}
    found: list[Record] = list(records)
    parts = [INTRODUCTION]
    tables = [text for task in TASKS.values() if (text := task_table(task, found, comments))]
    if tables:
        save_png(tasks_figure(found), page.parent / "img" / "nets-tasks.png")
        parts += [TASKS_TEXT, "![accuracy of every mixer on every task](img/nets-tasks.png)\n", *tables]
    if any(r.get("bench") == "efficiency" for r in found):
        save_png(cost_figure(found), page.parent / "img" / "nets-efficiency.png")
        parts += [COST_TEXT + _machine(found), "![time and memory against length](img/nets-efficiency.png)\n"]
        for title, table in _cost_tables(found):
            if table.strip():
                parts.append(f"### {title}\n\n{table}")
    atomic_write_text(page, "\n".join(parts))
    return uncommented(found, comments)


def _cost_tables(found: Sequence[Record]) -> list[tuple[str, str]]:
    return [
        ("One pass, ms", times_table(found, "forward_ms")),
        ("With gradients, ms", times_table(found, "training_ms")),
        ("Peak memory with gradients, MiB", memory_table(found)),
        ("One step of a stream after that many tokens, ms", steps_table(found)),
        ("Maps of two and three axes: pass / with gradients, ms, peak memory", grids_table(found)),
    ]


def _machine(found: Sequence[Record]) -> str:
    last = [r for r in found if r.get("bench") == "efficiency"][-1]
    threads = f"{last['threads']} thread" + ("s" if last["threads"] > 1 else "")
    return f"Measured on {'a GPU' if last['device'] == 'cuda' else f'a CPU, {threads}'}.\n"


# ---------------------------------------------------------------- MLflow


def log_task(task: Task, records: Sequence[Record], work_root: Path) -> None:
    """One MLflow run a mixer of the task: what it was, its accuracy by seed (as step), mean and spread."""
    from shared.tracking.run import TrackedRun
    from shared.tracking.store import connect

    store = connect()
    for row in summary(task, records):
        params = {
            "task": task.name,
            **{k: row[k] for k in ("mixer", "params", "ratio", "part", "budget", "device")},
        }
        tags = {"preset": f"{task.name}-{row['mixer']}", "kind": "bench"}
        with TrackedRun.start(
            store, EXPERIMENT, params=params, tags=tags, work_root=work_root, system=False
        ) as run:
            for record in records:
                if record.get("task") == task.name and record["mixer"] == row["mixer"]:
                    run.log_metrics({"accuracy_seed": record["accuracy"]}, int(record["seed"]))
            numbers = ("accuracy", "sd", "steps_per_s", "peak_mib", "majority", "bag", "nearest")
            run.log_metrics({key: float(row[key]) for key in numbers if row.get(key) is not None}, 0)


def log_costs(records: Sequence[Record], page: Path, work_root: Path) -> None:
    """One MLflow run a mixer: its times and memory with the number of tokens as step; the page is kept with each."""
    from shared.tracking.run import TrackedRun
    from shared.tracking.store import connect

    store = connect()
    for name in sorted({str(r["mixer"]) for r in records}):
        mine = [r for r in records if r["mixer"] == name]
        params = {"mixer": name, "device": mine[-1]["device"], "threads": mine[-1]["threads"]}
        tags = {"preset": f"efficiency-{name}", "kind": "bench"}
        with TrackedRun.start(
            store, EXPERIMENT, params=params, tags=tags, work_root=work_root, system=False
        ) as run:
            for record in mine:
                run.log_metrics(_numbers(record), int(record["tokens"]))
            run.log_artifact(page)


def _numbers(record: Record) -> dict[str, float]:
    axes = f"{len(record['size'])}d"
    keys = ("forward_ms", "training_ms", "forward_mib", "training_mib", "step_ms", "sdpa_forward_ms")
    values: dict[str, Any] = {key: record.get(key) for key in keys}
    return {f"{axes}/{key}": float(value) for key, value in values.items() if value is not None}
