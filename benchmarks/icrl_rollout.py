"""Rollouts with a cache or a mixer's state against computing the whole context anew in every step.

    python benchmarks/icrl_rollout.py

Copies of Darkroom (40; 8 for mamba), the default network with random weights, a context of 200 steps, one thread.
Seconds are of the process, so that other work on the machine counts less. Prints for each mixer the time of the steps
181 to 200 of both ways, their ratio, the ratio over all 200 steps, and whether all actions were the same.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.families import tasks
from robotics.icrl.models import build
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.rollout import rollout

EPISODES, LAST = 10, 20


class _Clocked(GridBatch):
    """Notes the process's time at every step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.times: list[float] = []

    def step(self, actions: Any) -> Any:
        self.times.append(time.process_time())
        return super().step(actions)


def main() -> None:
    torch.set_num_threads(1)
    spaces, held_out = Spaces(cells=(9, 9), actions=5), tasks("darkroom", "test")
    for mixer, streams in (("rotary", 5), ("mamba", 1)):
        torch.manual_seed(0)
        network = build(ModelConfig(context=200, mixer=mixer), spaces)
        took, whole, actions = {}, {}, []
        for cached in (True, False):
            rooms = _Clocked(held_out, streams)
            actions.append(rollout(network, rooms, EPISODES, seed=0, cached=cached).actions)
            took[cached] = (rooms.times[-1] - rooms.times[-1 - LAST]) / LAST
            whole[cached] = rooms.times[-1] - rooms.times[0]
        print(
            f"{mixer}: {took[True] * 1e3:.1f} ms a step cached, {took[False] * 1e3:.1f} ms anew at context 200: "
            f"{took[False] / took[True]:.1f} x; whole rollout {whole[False] / whole[True]:.1f} x; "
            f"same actions: {np.array_equal(actions[0], actions[1])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
