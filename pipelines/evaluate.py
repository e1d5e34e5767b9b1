"""Score a model on labelled data, outside a run."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines import registry
from shared.bundle import Bundle
from shared.config import merge, nested, parse_set
from shared.io.atomic import atomic_write_text


def nest(sets: Sequence[str]) -> dict[str, Any]:
    """``a.b=c`` texts as one nested mapping."""
    out: dict[str, Any] = {}
    for keys, value in map(parse_set, sets):
        out = merge(out, nested(keys, value))
    return out


def evaluate(
    name: str, data: Path | None, model: str | None, sets: Sequence[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Metrics and the per-item table of `model` on `data` (none: the held-out part of its own training data)."""
    from pipelines.run import check
    from shared.tracking.model import resolve_model

    started = time.monotonic()
    pipeline = registry.load(name)
    pipeline.ready()
    bundle = Bundle.open(resolve_model(model, pipeline))
    over = merge({"data": {"path": str(data)}} if data else {}, nest(sets))
    config = bundle.config(pipeline.config_type, over)
    say(f"{name}: {model or 'builtin'} on {config.data.path or 'embedded sample (no --data given)'}")
    check(pipeline, config, say)
    out = Path("runs") / name / f"evaluate-{time.strftime('%Y%m%d-%H%M%S')}"
    result = pipeline.evaluate(bundle, config, out)
    table = out / "table.csv"
    atomic_write_text(table, _csv(result.table))
    for note in result.notes:
        say(f"note: {note}")
    return {
        "pipeline": name,
        "model": model or "builtin",
        "items": len(result.table),
        "metrics": result.metrics,
        "table": str(table),
        "seconds": round(time.monotonic() - started, 1),
    }


def _csv(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
