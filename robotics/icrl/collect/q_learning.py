"""Tabular Q-learning by independent agents, one per stream, all of them at once.

Each agent explores with a falling share of random actions and learns from its own steps only, so a history explains its
own improvement (spec 0.9). Learning takes longer than a history is: every `every`-th episode is kept, as the AD paper
keeps every tenth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from robotics.icrl.collect.recording import Recording
from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.grid import ACTIONS, GridTask
from shared.config import Config


class QLearningOptions(Config):
    """Tabular Q-learning, one-step targets."""

    every: int = Field(12, ge=1, description="episodes played for each one kept")
    lr: float = Field(0.1, gt=0, le=1, description="step towards the target")
    gamma: float = Field(0.9, gt=0, lt=1)
    epsilon: float = Field(1.0, ge=0, le=1, description="share of random actions at first")
    epsilon_end: float = Field(0.0, ge=0, le=1, description="share of random actions at last")
    explore: float = Field(0.8, gt=0, le=1, description="share of the episodes in which it falls, linearly")
    sees_key: bool = Field(False, description="the source agent knows how far it is in the key-to-door room")


def play(
    chosen: Sequence[GridTask], numbers: NDArray[np.int64], steps: int, seed: int, options: QLearningOptions
) -> Recording:
    """What the agents do while they learn. An agent's draws depend on `seed`, its task and its number alone."""
    batch = GridBatch(chosen, len(numbers))
    recording = Recording.empty(steps, batch)
    horizon = batch.family.horizon
    episodes = -(-steps // horizon) * options.every
    states = (3 if options.sees_key else 1) * batch.family.cells
    values = np.zeros((*batch.shape, states, ACTIONS), np.float32).reshape(-1, ACTIONS)
    first = np.arange(batch.shape[0] * batch.shape[1]).reshape(batch.shape) * states
    generators = [[np.random.default_rng([seed, task.index, 2, int(n)]) for n in numbers] for task in chosen]
    for episode in range(episodes):
        kept = (episode + 1) % options.every == 0
        begin = episode // options.every * horizon if kept else steps
        fall = min(1.0, episode / max(1, options.explore * (episodes - 1)))
        epsilon = options.epsilon + (options.epsilon_end - options.epsilon) * fall
        if episode % options.every == 0:
            size = (options.every, horizon, 2)
            block = np.array([[rng.random(size, np.float32) for rng in row] for row in generators])
        draws = block[:, :, episode % options.every]
        batch.reset()
        at = first + batch.cells
        for t in range(horizon):
            actions = _choose(values.take(at, axis=0), draws[:, :, t], epsilon)
            noted = begin + t < steps
            rewarded = recording.act(begin + t, batch, actions) if noted else batch.advance(actions)
            state = batch.stages * batch.family.cells + batch.cells if options.sees_key else batch.cells
            after = first + state
            last = t == horizon - 1
            target = rewarded + (0 if last else options.gamma) * values.take(after, axis=0).max(axis=-1)
            old = values[at, actions]
            values[at, actions] = old + np.float32(options.lr) * (target - old)
            at = after
    return recording


def _choose(values: NDArray[np.float32], draws: NDArray[np.float32], epsilon: float) -> NDArray[np.uint8]:
    """Greedy, ties by lot, or random in a share `epsilon` of the cases."""
    best = values == values.max(axis=-1, keepdims=True)
    order = best.cumsum(axis=-1, dtype=np.uint8)
    wanted = np.floor(draws[..., 1] * order[..., -1]).astype(np.uint8) + 1
    greedy = (order < wanted[..., None]).sum(axis=-1, dtype=np.uint8)
    return np.where(draws[..., 0] < epsilon, (draws[..., 1] * ACTIONS).astype(np.uint8), greedy)
