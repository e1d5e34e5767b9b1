"""What normalises a return that no one can compute: the mean of episodes from fixed seeds."""

from __future__ import annotations

from functools import cache

import numpy as np

from robotics.icrl.envs.base import Task

EPISODES = 16
"""Played for each reference return."""
_FIRST_SEED = 1_000_000
"""No other play uses seeds from here on."""


@cache
def reference(task: Task, expert: bool = False) -> float:
    """Mean return of `EPISODES` episodes of uniformly random actions, or of the family's expert; real actions."""
    family = task.family
    limit, width = float(family.action_space["high"]), int(np.prod(family.action_space["shape"]))
    chosen, draw = family.expert(task) if expert else None, np.random.default_rng(0)
    env, total = family.make(task), 0.0
    for episode in range(EPISODES):
        obs, over = env.reset(seed=_FIRST_SEED + episode)[0], False
        while not over:
            act = draw.uniform(-limit, limit, width) if chosen is None else chosen(obs)
            obs, reward, ended, cut, _ = env.step(act.astype(np.float32))
            total, over = total + float(reward), ended or cut
    env.close()
    return total / EPISODES
