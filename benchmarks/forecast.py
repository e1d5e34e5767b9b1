"""The table of the LTSF-Linear paper (arXiv 2205.13504, table 2), computed by this pipeline on the same files.

For every set and horizon: repeat-last, the three linear models by gradient steps in the published recipe, and exact
least squares. Errors are on scaled values over every test window; the published code dropped the last partial batch of
32 test windows, so ours are given that way beside theirs. Results are kept in runs/forecast-bench/results.jsonl and
make docs/forecast-bench.md; FORECAST_SEEDS (default 5) is the number of starts of what depends on one.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from shared.bench.real_data import data_folder
from shared.bench.records import Records
from shared.config import read_yaml, resolve
from shared.io.atomic import atomic_write_text, probe_writable
from shared.training.fit import FitContext
from shared.training.seed import seed_everything
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.data import ForecastData
from timeseries.forecast.pipeline import PIPELINE
from timeseries.forecast.scores.score import score

Say = Callable[[str], None]
Record = dict[str, Any]
EXPERIMENT = "forecast-bench"
OUT = Path("runs") / EXPERIMENT
PAGE = Path(__file__).resolve().parent.parent / "docs" / "forecast-bench.md"
PUBLISHED = Path(__file__).with_name("forecast_published.yaml")
PUBLISHED_TEST_BATCH = 32
SEED = 2021


@dataclass(frozen=True)
class Table:
    """A data set and the published recipe of the linear models on it (LTSF-Linear/scripts/EXP-LongForecasting)."""

    file: str
    length: int
    horizons: tuple[int, ...]
    batch: tuple[int, ...]
    lr: tuple[float, ...]
    dated: bool = True
    """The stamps are a calendar; those of Weather repeat and skip, and the published code only counts rows."""


LONG = (96, 192, 336, 720)
TABLES = {
    "ETTh1": Table("ETTh1.csv.gz", 336, LONG, (32,) * 4, (5e-3,) * 4),
    "ETTh2": Table("ETTh2.csv.gz", 336, LONG, (32,) * 4, (5e-2,) * 4),
    "ETTm1": Table("ETTm1.csv.gz", 336, LONG, (8,) * 4, (1e-4,) * 4),
    "ETTm2": Table("ETTm2.csv.gz", 336, LONG, (32,) * 4, (1e-3, 1e-3, 1e-2, 1e-2)),
    "Exchange": Table("exchange_rate.csv.gz", 336, LONG, (8, 8, 32, 32), (5e-4,) * 4),
    "ILI": Table("national_illness.csv.gz", 104, (24, 36, 48, 60), (32,) * 4, (1e-2,) * 4),
    "Weather": Table("weather.csv.gz", 336, LONG, (16,) * 4, (1e-4,) * 4, dated=False),
}
MODELS = {
    "naive": "repeat last",
    "linear": "Linear",
    "nlinear": "NLinear",
    "dlinear": "DLinear",
    "closed-form nlinear": "exact, NLinear inputs",
    "closed-form linear": "exact, Linear (= DLinear)",
}
INTRODUCTION = """# Bench of forecasting

Made by `pipelines bench forecast` (one case a set and horizon, `--only ETTh1-96`). MSE / MAE on scaled values. *all* is
the mean over every test window, the figure to quote; *published* is table 2 of arXiv 2205.13504, whose test loader left
out the last windows that do not fill a batch of 32; *as published* is ours with the same windows left out. Gradient
steps in the published recipe, mean ± standard deviation over the starts named; exact least squares (ridge 1e-3) has no
start. Every number is from one thread of a CPU.
"""
KINDS = ("linear", "nlinear", "dlinear")


def cell(name: str, at: int, say: Say) -> list[dict[str, Any]]:
    """All models on one set and horizon; what was computed before is not computed again."""
    probe_writable(OUT)
    records = Records(OUT / "results.jsonl")
    table, horizon = TABLES[name], TABLES[name].horizons[at]
    case = f"{name}-{horizon}"
    for model, sets in _jobs(table, at):
        key = f"{case}/{model}/{' '.join(sets)}"
        if key not in records:
            found = measure(table, horizon, sets)
            records.add(key, {"case": case, "set": name, "horizon": horizon, "model": model, **found})
            say(f"{case} {model}: mse {found['mse']:.4f}, mae {found['mae']:.4f}, {found['seconds']:.1f} s")
    mine = [record for record in records if record["case"] == case]
    write_page(list(records), say)
    log(case, mine, OUT.parent)
    return rows_of(case, mine)


def _jobs(table: Table, at: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name of a model and its settings."""
    yield "naive", ("model.name=naive",)
    for kind in ("nlinear", "linear"):
        yield f"closed-form {kind}", (f"model.name={kind}",)
    for number in range(int(os.environ.get("FORECAST_SEEDS", "5"))):
        for kind in KINDS:
            yield (
                kind,
                (
                    f"model.name={kind}",
                    "model.solver=sgd",
                    f"train.batch_size={table.batch[at]}",
                    f"train.lr={table.lr[at]}",
                    f"seed={SEED + number}",
                ),
            )


def measure(table: Table, horizon: int, sets: tuple[str, ...]) -> dict[str, Any]:
    """Train and score one model the way `pipelines run forecast` does, without its report."""
    data: dict[str, Any] = {
        "path": str(data_folder("timeseries") / table.file),
        "input_length": table.length,
        "horizon": horizon,
    }
    if not table.dated:
        data["date_column"] = ""
    layers = [("bench", {"data": data, "intervals": {"method": "none"}, "threads": 1})]
    config: ForecastConfig = PIPELINE.complete(resolve(ForecastConfig, layers, sets))
    seed_everything(config.seed, config.threads)
    module: Any = PIPELINE.data(config)
    assert isinstance(module, ForecastData)
    module.setup("fit")
    task: Any = PIPELINE.task(config)
    with tempfile.TemporaryDirectory() as folder:
        context = FitContext(Path(folder), None, False, lambda text: None, "val/mse", "min", "bench")
        started = time.perf_counter()
        result = PIPELINE.fit(config, task, module, context)
        seconds = time.perf_counter() - started
    test = module.windows("test")
    whole, legacy = score(task.network, test), score(task.network, test, PUBLISHED_TEST_BATCH)
    return {
        "seed": config.seed,
        "mse": whole.mse,
        "mae": whole.mae,
        "windows": whole.windows,
        "legacy_mse": legacy.mse,
        "legacy_mae": legacy.mae,
        "legacy_windows": legacy.windows,
        "seconds": seconds,
        "epochs": result.epochs,
        "settings": " ".join(sets),
    }


# ---------------------------------------------------------------- page


def summary(records: Sequence[Record]) -> list[Record]:
    """One row a case and model: means and spreads over its seeds."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record["case"], record["model"]), []).append(record)
    rows = []
    for (case, model), found in groups.items():
        row: Record = {"case": case, "model": model, "seeds": len(found)}
        row |= {key: found[0][key] for key in ("set", "horizon", "windows", "legacy_windows")}
        for key in ("mse", "mae", "legacy_mse", "legacy_mae", "seconds"):
            values = [record[key] for record in found]
            row[key] = fmean(values)
            row[f"{key}_sd"] = stdev(values) if len(values) > 1 else 0.0
        rows.append(row)
    return rows


def published() -> dict[str, dict[str, list[float]]]:
    return dict(read_yaml(PUBLISHED))


def _theirs(model: str, case: str) -> list[float] | None:
    """The published figure of the same model; the exact solution of a model is set beside that model's."""
    return published().get(case, {}).get(model.removeprefix("closed-form "))


def rows_of(case: str, records: Sequence[Record]) -> list[Record]:
    """What `--json` prints."""
    out = []
    for row in summary(records):
        theirs = _theirs(row["model"], case)
        for number, quantity in enumerate(("mse", "mae")):
            out.append(
                {
                    "case": case,
                    "model": row["model"],
                    "quantity": quantity,
                    "unit": "",
                    "ours": round(row[quantity], 4),
                    "sd": round(row[f"{quantity}_sd"], 4),
                    "as_published": round(row[f"legacy_{quantity}"], 4),
                    "published": None if theirs is None else theirs[number],
                    "seeds": row["seeds"],
                    "windows": row["windows"],
                    "seconds": round(row["seconds"], 2),
                }
            )
    return out


def write_page(records: Sequence[Record], say: Callable[[str], None]) -> None:
    """docs/forecast-bench.md from whatever was computed so far."""
    found = summary(records)
    parts = [INTRODUCTION]
    for name in dict.fromkeys(row["set"] for row in found):
        mine = [row for row in found if row["set"] == name]
        parts += [f"## {name}\n", _table(mine)]
    atomic_write_text(PAGE, "\n".join(parts))
    say(f"{PAGE.name}: written")


def _table(found: Sequence[Record]) -> str:
    lines = [
        "| horizon | windows | model | all | ± | as published | published | starts | s a training |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    order = list(MODELS)
    for row in sorted(found, key=lambda r: (r["horizon"], order.index(r["model"]))):
        theirs = _theirs(row["model"], row["case"])
        best = min(r["mse"] for r in found if r["horizon"] == row["horizon"])
        mse = f"**{row['mse']:.3f}**" if row["mse"] == best else f"{row['mse']:.3f}"
        spread = f"{row['mse_sd']:.3f} / {row['mae_sd']:.3f}" if row["seeds"] > 1 else ""
        cells = [
            str(row["horizon"]),
            f"{row['windows']:,}",
            MODELS[row["model"]],
            f"{mse} / {row['mae']:.3f}",
            spread,
            f"{row['legacy_mse']:.3f} / {row['legacy_mae']:.3f}",
            "" if theirs is None else f"{theirs[0]:.3f} / {theirs[1]:.3f}",
            str(row["seeds"]) if row["model"] in ("linear", "nlinear", "dlinear") else "",
            f"{row['seconds']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def log(case: str, records: Sequence[Record], work_root: Path) -> None:
    """One MLflow run a model of the case, its seeds as steps."""
    from shared.tracking.run import TrackedRun
    from shared.tracking.store import connect

    store = connect()
    for row in summary(records):
        params = {"case": case, "model": row["model"], "seeds": row["seeds"]}
        tags = {"preset": f"{case}-{row['model']}", "kind": "bench"}
        with TrackedRun.start(
            store, EXPERIMENT, params=params, tags=tags, work_root=work_root, system=False
        ) as run:
            for number, record in enumerate(r for r in records if r["model"] == row["model"]):
                run.log_metrics({"mse_seed": record["mse"], "mae_seed": record["mae"]}, number)
            run.log_metrics(
                {key: float(row[key]) for key in ("mse", "mae", "mse_sd", "legacy_mse", "seconds")}, 0
            )


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    f"{name}-{horizon}": partial(cell, name, at)
    for name, table in TABLES.items()
    for at, horizon in enumerate(table.horizons)
}
QUICK = ("ILI-24",)
