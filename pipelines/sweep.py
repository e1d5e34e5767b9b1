"""Grid or random search: one parent run, one child run a point; the same command does only what is left."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random as rng
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import registry
from pipelines.run import RUNS, Request, resolve, run
from shared.config import config_hash
from shared.errors import Interrupted, SuiteError, UsageError
from shared.io.atomic import atomic_write_text

if TYPE_CHECKING:
    from shared.tracking.store import Store


def points(sets: Sequence[str], draw: int, seed: int = 0) -> list[list[str]]:
    """Every combination of ``key=v1,v2`` texts as lists of ``key=value``, or `draw` of them at random.

    A value in brackets is one value: ``train.crop=[64,64,64]``.
    """
    axes = []
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: no '='; key=v1,v2 wanted; for example train.lr=1e-3,3e-4")
        axes.append([f"{key}={choice}" for choice in _split(value)])
    grid = [list(point) for point in itertools.product(*axes)]
    return rng.Random(seed).sample(grid, draw) if 0 < draw < len(grid) else grid


def _split(value: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, char in enumerate(value):
        depth += (char in "[{") - (char in "]}")
        if char == "," and depth == 0:
            parts.append(value[start:i])
            start = i + 1
    return [*parts, value[start:]]


def sweep(
    name: str,
    sets: Sequence[str],
    *,
    preset: str,
    config_file: Path | None,
    data: Path | None,
    random: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Rows of all points, best first. A point that fails is a row with its error, and the others go on.

    Raises `UsageError` for a point that is no configuration, before the first one is trained.
    """
    from shared.tracking.run import TrackedRun
    from shared.tracking.store import connect

    pipeline = registry.load(name)
    todo = points(sets, random)
    # What is trained decides whether it was done before: an edited --config file is another sweep.
    hashes = [config_hash(resolve(Request(name, preset, config_file, data, sets=point))[1]) for point in todo]
    store = connect()
    folder = RUNS / name / f"sweep-{hashlib.sha256(' '.join([store.uri, *hashes]).encode()).hexdigest()[:12]}"
    done, known = _finished(folder, store)
    parent = TrackedRun.start(
        store,
        name,
        params={"sweep": " ".join(sets), "points": len(todo)},
        tags={"preset": preset, "kind": "sweep"},
        work_root=RUNS,
        resume_run_id=known,
    )
    with parent:
        atomic_write_text(folder / "parent.json", json.dumps({"parent": parent.run_id}))
        everywhere = set(todo[0]).intersection(*todo[1:]) if len(todo) > 1 else set()
        for index, point in enumerate(todo, 1):
            label = " ".join(text for text in point if text not in everywhere)
            if label in done:
                say(f"[{index}/{len(todo)}] {label}: done before")
                continue
            say(f"[{index}/{len(todo)}] {label}")
            request = Request(name, preset, config_file, data, "auto", point, parent.run_id)
            done[label] = _one(request, pipeline.primary.metric, label, say)
            if done[label]["status"] == "FINISHED":
                atomic_write_text(folder / f"point-{index:04d}.json", json.dumps(done[label], default=str))
    sign = -1 if pipeline.primary.mode == "max" else 1

    def place(row: dict[str, Any]) -> float:
        value = row["value"]
        return sign * value if value is not None and math.isfinite(value) else math.inf

    return {"pipeline": name, "run_id": parent.run_id, "rows": sorted(done.values(), key=place)}


def _one(request: Request, metric: str, label: str, say: Callable[[str], None]) -> dict[str, Any]:
    row = {
        "name": "",
        "run_id": "",
        "point": label,
        "status": "FAILED",
        "metric": metric,
        "value": None,
        "error": None,
    }
    try:
        result = run(request, say)
    except Interrupted:
        raise
    except SuiteError as err:
        say(f"error: {err}")
        return row | {"error": str(err)}
    run_id, value = result["run_id"], result["metrics"].get(metric)
    return row | {"name": run_id[:8], "run_id": run_id, "status": "FINISHED", "value": value}


def _finished(folder: Path, store: Store) -> tuple[dict[str, Any], str | None]:
    """Rows of finished points by label, and the parent's run id; nothing where the store has lost the parent."""
    from shared.tracking.history import find_run

    try:
        parent = str(json.loads((folder / "parent.json").read_text(encoding="utf-8"))["parent"])
        find_run(store, parent)
    except (OSError, UsageError):
        return {}, None
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("point-*.json"))]
    return {row["point"]: row for row in rows}, parent
