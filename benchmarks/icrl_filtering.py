"""Learning-history filtering against none, for each backbone, in LHF's four settings.

The runs of a cell differ by the filter alone: same histories, same seed. Histories are noise-distilled: at this size
nothing is learned in context from streams of PPO. Seeds come one after another, so that a stopped benchmark has whole
rounds; runs that are finished are not repeated. The peer is LHF's table (arXiv 2505.15143), PPO's histories and 50,000
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pipelines.run import Request, run_once
from robotics.icrl.evaluate import interval
from shared.bundle import Bundle

Say = Callable[[str], None]
SEEDS = 5
METHODS = ("ad", "dicp", "dpt")
ROOMS = {
    "darkroom": ("data.streams=40", "data.episodes=20", "model.context=80", "evaluate.episodes=40"),
    "dark-key-to-door": (
        "data.streams=10", "data.episodes=20", "data.tasks=400", "model.context=150", "train.steps=600",
        "evaluate.episodes=20", "evaluate.copies=3",
    ),
}  # fmt: skip
SETTINGS: dict[str, tuple[str, ...]] = {
    "clean": (),
    "30 % random": ("data.random_share=0.3",),
    "half histories": ("data.first=0.5",),
    "light model": ("model.dim=16",),
}
PUBLISHED = {
    ("darkroom", "clean"): (25.1, 15.2, 3.5),
    ("darkroom", "30 % random"): (90.7, 19.0, 21.4),
    ("darkroom", "half histories"): (14.1, 11.4, 19.6),
    ("darkroom", "light model"): (22.4, 28.8, 10.6),
    ("dark-key-to-door", "clean"): (1.8, 2.5, 15.5),
    ("dark-key-to-door", "30 % random"): (1.2, 4.2, 10.1),
    ("dark-key-to-door", "half histories"): (0.3, 1.0, 0.1),
    ("dark-key-to-door", "light model"): (16.7, 18.7, 2.1),
}
"""Relative enhancement, %, of `METHODS`"""
COMMON = (
    "threads=1",
    "data.collector=noise-distillation",
    "model.dim=32", "model.depth=2", "model.heads=2", "model.inner=64",
    "train.epochs=1", "train.steps=700", "train.lr=1e-2", "train.warmup_epochs=0.02", "train.from_start=0.3",
    "train.play_copies=1", "train.play_episodes=2",
    "predict.beam.width=5", "predict.beam.depth=4",
    "evaluate.seeds=2", "evaluate.copies=5", "evaluate.tasks=24",
)  # fmt: skip
"""A minute on one core each."""


def filtering_rows(room: str, setting: str, say: Say) -> list[dict[str, Any]]:
    """Mean return over all test episodes, normalised, of both ways, and the relative enhancement with its interval."""
    found: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    rows: list[dict[str, Any]] = []
    for seed in range(SEEDS):
        for method in METHODS:
            found[method].append(
                (
                    _run(room, setting, method, "none", seed, say),
                    _run(room, setting, method, "stochastic", seed, say),
                )
            )
        rows = [
            row
            for at, method in enumerate(METHODS)
            for row in _rows(room, setting, at, np.array(found[method]))
        ]
        say(
            "; ".join(
                f"{row['model']} {row['ours']:+.1f} % ({row['low']:+.1f} to {row['high']:+.1f})"
                for row in rows
                if "low" in row
            )
        )
    return rows


def _run(room: str, setting: str, method: str, mode: str, seed: int, say: Say) -> float:
    sets = (
        *COMMON, *ROOMS[room], *SETTINGS[setting], f"data.env={room}", f"model.method={method}",
        f"filter.mode={mode}", f"seed={seed}",
    )  # fmt: skip
    _, folder = run_once(Request("icrl", "default", sets=sets), say)
    return float(Bundle.open(folder / "bundle").metrics["normalised_return"])


def _rows(room: str, setting: str, at: int, pairs: Any) -> list[dict[str, Any]]:
    """(S, 2) normalised returns without and with the filter → table rows.

    The enhancement is of the means over seeds, as published; its interval is that of the paired differences over the
    mean without the filter (Student's t, 95 %).
    """
    case, without = f"{room}, {setting}", float(pairs[:, 0].mean())
    difference = (pairs[:, 1] - pairs[:, 0])[:, None] / without * 100
    low, high = interval(difference)[:, 0]
    named = {"case": case, "model": METHODS[at], "seeds": len(pairs)}
    return [
        named | {"quantity": "normalised return, no filter", "ours": round(without, 3)},
        named | {"quantity": "normalised return, LHF", "ours": round(float(pairs[:, 1].mean()), 3)},
        named
        | {
            "quantity": "relative enhancement", "unit": "%", "ours": round(float(difference.mean()), 1),
            "low": round(float(low), 1), "high": round(float(high), 1),
            "published": PUBLISHED[room, setting][at],
        },
    ]  # fmt: skip


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    f"{room}, {setting}": partial(filtering_rows, room, setting) for room in ROOMS for setting in SETTINGS
}
QUICK = ("darkroom, 30 % random",)
