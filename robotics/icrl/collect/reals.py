"""Histories of families that are played one environment at a time: noise distillation of an expert, and random play.

Of a continuous action the random part is a share, not a chance: action = ε · uniform + (1 − ε) · expert (spec 8.1), and
ε falls over the history. The expert's actions are kept as labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robotics.icrl.collect.noise import NoiseOptions, RandomOptions, schedule
from robotics.icrl.collect.recording import block
from robotics.icrl.envs.base import Array, Task
from robotics.icrl.envs.gym_batch import GymBatch
from robotics.icrl.store import Histories
from shared.errors import UsageError


def play(
    chosen: Sequence[Task],
    numbers: NDArray[np.int64],
    steps: int,
    seed: int,
    options: NoiseOptions | RandomOptions,
) -> list[Histories]:
    """One block a task. Every stream's draws depend on `seed`, its task and its number alone. Raises `UsageError` where
    an environment breaks."""
    return [_task(task, numbers, steps, seed, options) for task in chosen]


def _task(
    task: Task, numbers: NDArray[np.int64], steps: int, seed: int, options: NoiseOptions | RandomOptions
) -> Histories:
    family, distilled = task.family, isinstance(options, NoiseOptions)
    limit, width = float(family.action_space["high"]), int(np.prod(family.action_space["shape"]))
    expert = family.expert(task)
    assert expert is not None or not distilled, "`known.refusal` comes first"
    epsilon = schedule(steps, options) if isinstance(options, NoiseOptions) else np.ones(steps)
    kind = 3 if distilled else 4
    draws = [np.random.default_rng([seed, task.index, kind, int(n)]) for n in numbers]
    noise = np.stack([each.uniform(-limit, limit, (steps, width)) for each in draws])
    batch = GymBatch([task], len(numbers), seed, int(numbers[0]))
    log: list[tuple[Array, ...]] = []
    obs = batch.reset()[0]
    for at in range(steps):
        wanted = np.zeros((len(numbers), width)) if expert is None else np.asarray(expert(obs), float)
        action = (epsilon[at] * noise[:, at] + (1 - epsilon[at]) * wanted).astype(np.float32)
        step = batch.step(action[None])
        if batch.broken:
            raise UsageError(f"{family.name}, task {task.index}: {batch.broken[0]}; mend the environment")
        last = np.zeros_like(obs) if step.final_obs is None else step.final_obs[0]
        log.append((obs, action, step.rewards[0], step.terminations[0], step.truncations[0], last))
        obs = step.obs[0]
    batch.close()
    seen, actions, rewards, terminations, truncations, final = (
        np.ascontiguousarray(np.stack(each, 1)) for each in zip(*log)
    )
    running = ~(terminations | truncations)[:, -1]
    final[running, -1] = obs[running]
    source = "noise-distillation" if distilled else "random"
    return block(task, numbers, source, seen, actions, rewards, terminations, truncations, final)
