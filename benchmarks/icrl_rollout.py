"""Rollouts with a cache or a mixer's state against computing the whole context anew in every step.

Copies of Darkroom (40; 8 for mamba), the default network with random weights, a context of 200 steps, one thread.
Seconds are of the process, so that other work on the machine counts less. The ratio is that of the steps 181 to 200,
where the context is full; the actions of both ways are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.families import tasks
from robotics.icrl.models import build
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.rollout import rollout

Say = Callable[[str], None]
EPISODES, LAST = 10, 20


class _Clocked(GridBatch):
    """Notes the process's time at every step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.times: list[float] = []

    def step(self, actions: Any) -> Any:
        self.times.append(time.process_time())
        return super().step(actions)


def rollout_rows(mixer: str, streams: int, say: Say) -> list[dict[str, Any]]:
    """Milliseconds a step at full context, both ways."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spaces = Spaces(cells=(9, 9), actions=5)
    network = build(ModelConfig(context=200, mixer=mixer), spaces)
    step, whole, actions = {}, {}, []
    for cached in (True, False):
        rooms = _Clocked(tasks("darkroom", "test"), streams)
        actions.append(rollout(network, rooms, EPISODES, seed=0, cached=cached).actions)
        step[cached] = (rooms.times[-1] - rooms.times[-1 - LAST]) / LAST * 1e3
        whole[cached] = rooms.times[-1] - rooms.times[0]
    same = np.array_equal(*actions)
    say(
        f"{mixer}: {step[True]:.1f} ms a step cached, {step[False]:.1f} ms anew at context 200: "
        f"{step[False] / step[True]:.1f} x; whole rollout {whole[False] / whole[True]:.1f} x; same actions: {same}"
    )
    row = {"case": mixer, "quantity": "step_ms", "unit": "ms", "ours": step[True], "peer": step[False]}
    return [row | {"peer_name": "context anew", "ratio": step[False] / step[True], "same_actions": same}]


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    mixer: partial(rollout_rows, mixer, streams) for mixer, streams in (("rotary", 5), ("mamba", 1))
}
QUICK = ("rotary", "mamba")
