"""The network library's mixers against each other: generated tasks under one rule, and cost against length.

Peers: for accuracy a linear model on a bag of tokens (the best trivial baseline that knows no order), for time torch's
`scaled_dot_product_attention` in the same process. Every case writes docs/nets-bench.md anew from all results so far.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from shared.bench.efficiency import GRIDS, SEQUENCES, crossover, efficiency
from shared.bench.page import EXPERIMENT, log_costs, log_task, write_page
from shared.bench.records import Records
from shared.bench.runner import run_task
from shared.bench.tables import summary
from shared.bench.tasks import TASKS, find_task
from shared.io.atomic import probe_writable
from shared.nets.layout import Size

Say = Callable[[str], None]
RUNS = Path("runs")
OUT = RUNS / EXPERIMENT
PAGE = Path(__file__).resolve().parent.parent / "docs" / "nets-bench.md"
COMMENTS = Path(__file__).with_name("nets_comments.yaml")
SHORT = SEQUENCES[:3]


def run_costs(sizes: tuple[Size, ...], say: Say) -> list[dict[str, Any]]:
    """Times and memory of every mixer at `sizes`; what was measured before is not measured again."""
    records = _records()
    found = efficiency(records, say, sizes)
    _publish(records, say)
    log_costs(found, PAGE, RUNS)
    first = {
        name: crossover([r for r in found if r["mixer"] == name and len(r["size"]) == 1])
        for name in {r["mixer"] for r in found}
    }
    return [_cost_row(record, first[record["mixer"]]) for record in found if record["forward_ms"] is not None]


def _cost_row(record: dict[str, Any], crossing: int | None) -> dict[str, Any]:
    peer = record.get("sdpa_forward_ms")
    return {
        "case": "efficiency",
        "model": record["mixer"],
        "quantity": "forward " + "×".join(map(str, record["size"])),
        "unit": "ms",
        "ours": round(record["forward_ms"], 2),
        "peer": None if peer is None else round(peer, 2),
        "peer_name": "torch scaled_dot_product_attention",
        "ratio": None if peer is None else round(peer / record["forward_ms"], 2),
        "with_gradients_ms": record["training_ms"],
        "peak_mib": record.get("training_mib"),
        "step_ms": record.get("step_ms"),
        "faster_from": crossing,
    }


def run_accuracy(name: str, say: Say) -> list[dict[str, Any]]:
    """Every mixer on one task, three seeds; trainings done before are not done again."""
    task, records = find_task(name), _records()
    found = run_task(task, records, say)
    _publish(records, say)
    log_task(task, found, RUNS)
    return [
        {
            "case": name,
            "model": row["mixer"],
            "quantity": "accuracy",
            "unit": "",
            "ours": round(row["accuracy"], 4),
            "peer": round(row["bag"], 4),
            "peer_name": "bag of tokens, linear",
            "ratio": round(row["accuracy"] / row["bag"], 2),
            **{key: row[key] for key in ("sd", "seeds", "params", "fair", "budget", "below")},
        }
        for row in summary(task, found)
    ]


def _records() -> Records:
    probe_writable(OUT)
    return Records(OUT / "results.jsonl")


def _publish(records: Records, say: Say) -> None:
    open_flags = write_page(records, PAGE, COMMENTS)
    say(f"{PAGE.name}: written")
    if open_flags:
        say(f"below the bag of tokens and without a remark in {COMMENTS.name}: {', '.join(open_flags)}")


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    "efficiency-short": partial(run_costs, SHORT),
    **{name: partial(run_accuracy, name) for name in TASKS},
    "efficiency": partial(run_costs, SEQUENCES + GRIDS),
}
QUICK = ("efficiency-short", "digits-seq")
