"""Histories without learning: an expert whose actions are random less and less often, and plain random play.

Noise distillation (Zisman et al., arXiv 2312.12275): the share of random actions falls from 1 to 0 over a history. The
expert is the optimal action of `grid.optimal_table`, which knows the task and what has been reached in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from robotics.icrl.collect.recording import Recording
from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.grid import ACTIONS, GridTask, optimal_table
from shared.config import Config


class NoiseOptions(Config):
    """Noise distillation."""

    epsilon: float = Field(1.0, ge=0, le=1, description="share of random actions at a history's first step")
    epsilon_end: float = Field(0.0, ge=0, le=1, description="share of random actions at its last step")
    power: float = Field(1.0, gt=0, description="1: it falls linearly; above: sooner")


class RandomOptions(Config):
    """Uniformly random actions."""


def schedule(steps: int, options: NoiseOptions) -> NDArray[np.float64]:
    """(steps,) share of random actions."""
    left = (1 - np.arange(steps) / max(1, steps - 1)) ** options.power
    return options.epsilon_end + (options.epsilon - options.epsilon_end) * left


def play(
    chosen: Sequence[GridTask],
    numbers: NDArray[np.int64],
    steps: int,
    seed: int,
    options: NoiseOptions | RandomOptions,
) -> Recording:
    """Every stream's draws depend on `seed`, its task and its number alone."""
    distilled = isinstance(options, NoiseOptions)
    epsilon = schedule(steps, options) if isinstance(options, NoiseOptions) else np.ones(steps)
    batch = GridBatch(chosen, len(numbers))
    recording = Recording.empty(steps, batch)
    kind = 3 if distilled else 4
    draws = np.array(
        [
            [
                np.random.default_rng([seed, task.index, kind, int(n)]).random((steps, 2), np.float32)
                for n in numbers
            ]
            for task in chosen
        ]
    )
    draws = np.ascontiguousarray(draws.transpose(2, 3, 0, 1))
    table, row = np.stack([optimal_table(task) for task in chosen]), np.arange(len(chosen))[:, None]
    last_stage = batch.family.stages - 1
    for t in range(steps):
        if batch.elapsed == batch.family.horizon:
            batch.reset()
        expert = table[row, np.minimum(batch.stages, last_stage), batch.cells]
        at_random = (draws[t, 1] * ACTIONS).astype(np.uint8)
        recording.act(t, batch, np.where(draws[t, 0] < epsilon[t], at_random, expert).astype(np.uint8))
    return recording
