"""Stable-Baselines3 as the source: PPO, SAC or another of its algorithms learns one task; all its steps are kept.

Published (DICP's collect_data.py, arXiv 2502.19009): one PPO run a task, MlpPolicy (tanh 64-64, a critic of its own),
100 copies of the task in a DummyVecEnv. Its 100 "histories" are these parallel streams of ONE agent (spec 0.8); with
``agents: independent`` each history is an agent of its own, which alone explains what it learns. Seeds are DICP's too
(seed + task): in Darkroom states, actions, rewards and next states equal those of its own code, bit for bit.

===================  =======  ==========  ========  ==========================================================
PPO in               n_steps  batch_size  n_epochs  others
===================  =======  ==========  ========  ==========================================================
darkroom             20       50          20        learning_rate 3e-4, and Stable-Baselines3's own: gamma .99,
darkroom-permuted,   50       50          20        gae_lambda .95, clip_range .2, ent_coef 0, vf_coef .5
darkroom-large [R]
dark-key-to-door     50       100         10
others (Meta-World)  100      200         20
===================  =======  ==========  ========  ==========================================================

SAC in Meta-World: learning_starts 100, batch_size 128, 10 gradient steps after each step of all streams, learning_rate
3e-4. `settings` replaces or adds arguments of the algorithm's class, such as ``ent_coef: 0.01`` or ``policy_kwargs:
{net_arch: [128, 128]}``.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from robotics.icrl.collect.recording import block
from robotics.icrl.envs.base import Family, Task
from robotics.icrl.store import Histories
from shared.config import Config
from shared.errors import UsageError, need

Algorithm = Literal["ppo", "sac", "a2c", "dqn", "td3", "ddpg"]
_ACTIONS: Mapping[str, str] = {"sac": "box", "td3": "box", "ddpg": "box", "dqn": "discrete"}
"""What an algorithm can do where it cannot do both."""
_PPO = {
    "darkroom": (20, 50, 20),
    "darkroom-permuted": (50, 50, 20),
    "darkroom-large": (50, 50, 20),
    "dark-key-to-door": (50, 100, 10),
}
_PPO_ELSEWHERE = (100, 200, 20)
_SAC: Mapping[str, Any] = {
    "learning_rate": 3e-4,
    "learning_starts": 100,
    "batch_size": 128,
    "train_freq": 1,
    "gradient_steps": 10,
}
_BUFFER = 1_000_000
_OWN = ("self", "env", "seed", "device", "verbose", "tensorboard_log", "_init_setup_model")
"""Arguments of the algorithms that are not a user's."""


class Sb3Options(Config):
    """Stable-Baselines3."""

    algorithm: Algorithm = Field("ppo", description="sac, td3 and ddpg want real actions, dqn discrete ones")
    agents: Literal["streams", "independent"] = Field(
        "streams",
        description="streams: one agent learns from all streams of a task (DICP's data); independent: one per stream",
    )
    settings: dict[str, Any] = Field(
        {}, description="arguments of the algorithm's class; left out: the published ones"
    )
    bootstrap: bool | None = Field(
        None,
        description="a time limit's last state still has a value; none: not in grids (DICP's code), yes elsewhere",
    )


def hyper(room: Family[Any], options: Sb3Options, streams: int, steps: int) -> dict[str, Any]:
    """All that decides a collection, for the store: options with every published setting, and the library's version.

    Raises `EnvironmentUnfit` without the library, `UsageError` for settings and actions the algorithm does not know.
    """
    need("robotics", "gymnasium", "stable_baselines3")
    wanted, found = _ACTIONS.get(options.algorithm), room.action_space["kind"]
    if wanted not in (None, found):
        raise UsageError(
            f"collector sb3, algorithm {options.algorithm}: {room.name} has {found} actions; {wanted} ones wanted; "
            "choose ppo or a2c"
        )
    import stable_baselines3

    known = inspect.signature(getattr(stable_baselines3, options.algorithm.upper()).__init__).parameters
    if odd := sorted(set(options.settings) - set(known) | set(options.settings) & set(_OWN)):
        names = ", ".join(name for name in known if name not in _OWN)
        raise UsageError(
            f"collector sb3, settings.{odd[0]}: unknown to {options.algorithm}; one of {names} wanted"
        )
    batch = streams if options.agents == "streams" else 1
    published = _published(room.name, options.algorithm, batch, steps)
    bootstrap = room.name not in _PPO if options.bootstrap is None else options.bootstrap
    return options.model_dump(mode="json") | {
        "settings": {"policy": "MlpPolicy", **published, **options.settings},
        "bootstrap": bootstrap,
        "stable_baselines3": version("stable-baselines3"),
    }


def _published(room: str, algorithm: str, streams: int, steps: int) -> dict[str, Any]:
    if algorithm == "ppo":
        n_steps, batch, epochs = _PPO.get(room, _PPO_ELSEWHERE)
        found = {"learning_rate": 3e-4, "n_steps": n_steps, "n_epochs": epochs}
        return found | {
            "batch_size": min(batch, n_steps * streams)
        }  # one agent's rollout may be smaller than that
    buffer = {"buffer_size": min(_BUFFER, steps * streams)}  # more could never be filled
    if algorithm == "sac":
        return {**_SAC, **buffer}
    return {} if algorithm == "a2c" else dict(buffer)


def play(
    chosen: Sequence[Task], numbers: NDArray[np.int64], steps: int, seed: int, options: Sb3Options
) -> list[Histories]:
    """One block a task. A task's draws depend on `seed`, its index and, in streams, their number. Raises as `hyper`."""
    streams = len(numbers)
    how = hyper(chosen[0].family, options, streams, steps)
    from robotics.icrl.collect.sb3_agent import Log, learn

    blocks = []
    for task in chosen:
        make = partial(task.family.make, task)
        agents = [numbers] if options.agents == "streams" else np.split(numbers, streams)
        logs = [
            learn(
                make,
                len(own),
                steps,
                _seed(seed, task.index, own, options),
                options.algorithm,
                how["settings"],
                how["bootstrap"],
            )
            for own in agents
        ]
        arrays = (np.ascontiguousarray(array.swapaxes(0, 1)) for array in Log.join(logs))
        blocks.append(block(task, numbers, "sb3", *arrays))
    return blocks


def _seed(seed: int, task: int, numbers: NDArray[np.int64], options: Sb3Options) -> int:
    """Of an agent: DICP's, so that its histories can be made again; a draw of its own where each stream is an agent."""
    if options.agents == "streams":
        return (seed + task) % 2**31
    return int(np.random.SeedSequence([seed, task, 6, int(numbers[0])]).generate_state(1)[0] >> 1)
