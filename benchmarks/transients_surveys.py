"""`transients` on labelled surveys, with their presets: every object scored once by a model that had not seen it.

Small surveys in five folds by object, SNPCC in one (3,000 test objects). The peer is the data's own reference: boosted
trees on seven summary numbers a band, scored on objects outside these files. Runs that are finished are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from astro.transients.metrics import bootstrap, recalls
from pipelines.run import Request, run_once
from shared.bench.real_data import data_folder
from shared.bundle import Bundle

Say = Callable[[str], None]
PEER = "seven numbers a band (data/astro/MANIFEST.md)"
PARTS = {"both": "", "network alone": "network_", "trees alone": "trees_"}


@dataclass(frozen=True)
class Survey:
    file: str
    folds: int
    wanted: tuple[float, float]
    """Accuracy, balanced accuracy"""
    peer: tuple[float, float]
    preset: str
    sets: tuple[str, ...] = ()


SURVEYS = {
    "snpcc": Survey("snpcc", 1, (0.92, 0.85), (0.88, 0.78), "default"),
    "snpcc, hyena": Survey("snpcc", 1, (0.92, 0.85), (0.88, 0.78), "snpcc"),
    "mallorn": Survey("mallorn", 5, (0.90, 0.55), (0.87, 0.43), "mallorn"),
    "ztf": Survey("ztf_bts", 5, (0.87, 0.55), (0.85, 0.46), "ztf"),
}


def survey_rows(name: str, say: Say) -> list[dict[str, Any]]:
    """Scores pooled over folds with intervals; the parts' as means over folds."""
    survey = SURVEYS[name]
    data = data_folder("astro") / f"{survey.file}_lightcurves.parquet"
    tables, metrics = [], []
    for fold in range(survey.folds):
        sets = ("threads=1", f"data.fold={fold}", *survey.sets)
        _, folder = run_once(Request("transients", survey.preset, data=data, sets=sets), say)
        metrics.append(Bundle.open(folder / "bundle").metrics)
        tables.append(_test(folder))
        rows = _pooled(name, survey, pd.concat(tables), metrics)
        say(f"{name}, {fold + 1} of {survey.folds} folds: {_text(rows)}")
    return rows


def _test(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "figures" / "test.csv", dtype={"id": str, "label": str, "class": str})


def _pooled(
    name: str, survey: Survey, table: pd.DataFrame, metrics: list[dict[str, float]]
) -> list[dict[str, Any]]:
    columns = [column for column in table.columns if column.startswith("p_")]
    classes = [column.removeprefix("p_") for column in columns]
    labels, p = np.array([classes.index(label) for label in table["label"]]), table[columns].to_numpy()
    low, high = bootstrap(_accuracies, labels, p)
    rows: list[dict[str, Any]] = []
    for k, quantity in enumerate(("accuracy", "balanced_accuracy")):
        for part, prefix in PARTS.items():
            value = float(np.mean([each[prefix + quantity] for each in metrics]))
            row = {"case": name, "model": part, "quantity": quantity, "objects": len(table)}
            if not prefix:
                value = float(_accuracies(labels, p)[k])
                row |= {"low": round(low[k], 4), "high": round(high[k], 4), "wanted": survey.wanted[k]}
                row |= {"peer": survey.peer[k], "peer_name": PEER}
            rows.append(row | {"ours": round(value, 4)})
    for key in ("log_loss", "ece", "auc_macro"):
        value = float(np.mean([each[key] for each in metrics]))
        rows.append({"case": name, "model": "both", "quantity": key, "ours": round(value, 4)})
    for k, found in enumerate(recalls(labels, p)):
        row = {
            "case": name,
            "model": "both",
            "quantity": f"recall {classes[k]}",
            "ours": round(float(found), 4),
        }
        rows.append(row | {"objects": int((labels == k).sum())})
    return rows


def _text(rows: list[dict[str, Any]]) -> str:
    both = [row for row in rows if "wanted" in row]
    return ", ".join(
        f"{row['quantity']} {row['ours']:.3f} ({row['low']:.3f} to {row['high']:.3f}, wanted {row['wanted']})"
        for row in both
    )


def _accuracies(labels: Any, probability: Any) -> Any:
    found = recalls(labels, probability)
    return np.array([(probability.argmax(1) == labels).mean(), np.nanmean(found)])


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    name: partial(survey_rows, name) for name in SURVEYS
}
QUICK = ("ztf",)
