"""A block of histories played once more, action by action."""

from __future__ import annotations

from typing import Any

import numpy as np

from robotics.icrl.store import Histories


def assert_replays(block: Histories, env: Any) -> None:
    """Every observation, reward and end is what gymnasium's environment gives to the actions."""
    after = block.next_obs("terminal")
    for row in range(len(block)):
        obs = env.reset()[0]
        for t in range(block.steps):
            assert np.array_equal(block.obs[row, t], obs)
            obs, reward, _, truncated, _ = env.step(int(block.actions[row, t]))
            assert np.array_equal(after[row, t], obs)
            assert (block.rewards[row, t], block.truncations[row, t]) == (reward, truncated)
            obs = env.reset()[0] if truncated else obs
