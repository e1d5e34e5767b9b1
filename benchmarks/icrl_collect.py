"""Histories of the dark grids: steps of the batched rooms, collectors with their stores, Stable-Baselines3 beside them.

Processor seconds of one process. The peer is the collector ``sb3``, which learns one task as DICP's collect_data.py
does (PPO, MlpPolicy, 100 copies in a DummyVecEnv, n_steps 20, batch 50, 20 epochs); ours makes the same number of steps
for each of 81 tasks and writes them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from robotics.icrl.collect.run import collect
from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.families import tasks
from robotics.icrl.envs.grid import GRIDS
from robotics.icrl.store import Store

Say = Callable[[str], None]
STREAMS, STEPS = 100, 1000


def run_steps(say: Say) -> list[dict[str, Any]]:
    """Environment steps per second, observations and resets included, on 8,100 rooms at once."""
    rows = []
    for name in GRIDS:
        batch, rng = GridBatch(tasks(name)[:81], STREAMS), np.random.default_rng(0)
        actions = rng.integers(0, 5, (50, *batch.shape))
        started = time.process_time()
        for step in range(500):
            batch.step(actions[step % 50])
        rate = 500 * batch.cells.size / (time.process_time() - started)
        say(f"{name}: {rate / 1e6:.1f} million steps/s")
        rows.append(_row(name, "grid", "steps_per_s", "steps/s", rate))
    return rows


def run_collect(
    name: str, algorithm: str, every: int, options: dict[str, Any], say: Say
) -> list[dict[str, Any]]:
    """Seconds of collecting and writing every `every`-th task, and the returns, 0 random to 1 optimal."""
    chosen = [task.index for task in tasks(name)[::every]]
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        store = collect(name, chosen, STREAMS, STEPS, 0, Path(folder) / "s.h5", algorithm, options)
        seconds = time.process_time() - started
        curves = _curves(store)
    last = curves[:, -1]
    say(
        f"{name}, {algorithm}: {len(chosen)} tasks in {seconds:.1f} s; last episode {last.mean():.3f}, "
        f"worst task {last.min():.3f}; episodes 1, 6, 11, 26: "
        + ", ".join(f"{value:.3f}" for value in curves.mean(axis=0)[[0, 5, 10, min(25, curves.shape[1] - 1)]])
    )
    return [
        _row(name, algorithm, "seconds", "s", seconds),
        _row(name, algorithm, "tasks", "", len(chosen)),
        _row(name, algorithm, "last_return", "", float(last.mean())),
        _row(name, algorithm, "last_return_worst", "", float(last.min())),
    ]


def run_peer(say: Say) -> list[dict[str, Any]]:
    """Processor seconds of one Darkroom task by Stable-Baselines3. Raises `EnvironmentUnfit` without it."""
    peer = run_collect("darkroom", "sb3", 81, {}, say)[0]["ours"]
    ours = run_collect("darkroom", "population", 1, {}, say)[0]["ours"] / 81
    say(f"one task: Stable-Baselines3 {peer:.0f} s, ours {ours:.3f} s")
    row = _row("darkroom", "population", "seconds_per_task", "s", ours)
    return [row | {"peer": round(peer, 1), "peer_name": "stable-baselines3", "ratio": round(peer / ours, 1)}]


def _curves(store: Store) -> np.ndarray[Any, Any]:
    """(tasks, episodes) normalised return, mean over a task's histories."""
    curves = []
    for task, block in store:
        low, high = task.random_return or 0.0, task.r_max or 1.0
        curves.append((block.returns().mean(axis=0) - low) / (high - low))
    return np.array(curves)


def _row(case: str, model: str, quantity: str, unit: str, value: float) -> dict[str, Any]:
    figure = float(f"{value:.4g}")
    names = {"case": case, "model": model, "quantity": quantity, "unit": unit, "ours": figure}
    return names | {"peer": None, "peer_name": "", "ratio": None}


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    "steps": run_steps,
    "darkroom-population": partial(run_collect, "darkroom", "population", 1, {}),
    "darkroom-noise": partial(run_collect, "darkroom", "noise-distillation", 1, {}),
    "darkroom-q": partial(run_collect, "darkroom", "q-learning", 4, {}),
    "permuted-population": partial(run_collect, "darkroom-permuted", "population", 2, {}),
    "large-population": partial(run_collect, "darkroom-large", "population", 4, {}),
    "key-population": partial(run_collect, "dark-key-to-door", "population", 100, {}),
    "key-population-sees-key": partial(
        run_collect, "dark-key-to-door", "population", 100, {"sees_key": True}
    ),
    "darkroom-sb3": run_peer,
}
QUICK = ("steps", "darkroom-population")
