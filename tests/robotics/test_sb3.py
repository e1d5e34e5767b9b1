"""Stable-Baselines3 as a source: what was played is kept, a seed gives the same bytes, what cannot be is said."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py", reason="the robotics extra is not installed")
pytest.importorskip("stable_baselines3", reason="the robotics extra is not installed")
pytest.importorskip("minari", reason="the robotics extra is not installed")

import gymnasium as gym
import torch

from robotics.icrl.collect.run import collect
from robotics.icrl.collect.sb3 import Sb3Options, hyper
from robotics.icrl.collect.sb3_agent import Log, learn
from robotics.icrl.convert import convert
from robotics.icrl.envs.families import FAMILIES, family
from robotics.icrl.store_check import check
from shared.errors import EnvironmentUnfit, UsageError
from tests.robotics.replay import assert_replays


def test_what_was_played_is_kept_and_a_seed_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "left"))
    outside = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[index, union-attr]
    stores = [collect("darkroom", [40, 5], 3, 70, 1, tmp_path / f"{n}.h5", "sb3") for n in range(2)]
    assert stores[0].path.read_bytes() == stores[1].path.read_bytes()
    assert random.getstate() == outside[0] and torch.equal(torch.get_rng_state(), outside[2])
    assert np.random.get_state()[1].tolist() == outside[1]  # type: ignore[index, union-attr]
    assert torch.get_num_threads() == 1 and not list((tmp_path / "left").glob("SB3*"))
    assert not [fault for fault in check(stores[0].path) if fault.severity == "error"]
    from robotics.icrl import envs

    envs.register()
    for task, block in stores[0]:
        assert block.obs.dtype == block.actions.dtype == np.uint8 and block.optimal_actions is not None
        assert len(block) == 3 and block.steps == 70
        assert_replays(block, gym.make("icrl/Darkroom-v0", task=task.index))
        assert block.episode[:, -1].tolist() == [3, 3, 3] and set(block.source) == {"sb3"}


def test_agents_of_their_own_do_not_know_of_each_other(tmp_path: Path) -> None:
    options = {"agents": "independent", "settings": {"n_epochs": 2}}
    many, few = (
        collect("darkroom", [3], n, 60, 0, tmp_path / f"{n}.h5", "sb3", options).read(3) for n in (3, 2)
    )
    assert np.array_equal(many.actions[:2], few.actions)
    assert not np.array_equal(many.actions[0], many.actions[1])


def test_settings_are_the_published_ones_and_stand_in_the_store() -> None:
    for name, (n_steps, batch, epochs) in {
        "darkroom": (20, 50, 20),
        "darkroom-permuted": (50, 50, 20),
        "dark-key-to-door": (50, 100, 10),
    }.items():
        found = hyper(family(name), Sb3Options(), 100, 1000)
        wanted = {"policy": "MlpPolicy", "learning_rate": 3e-4, "n_steps": n_steps, "batch_size": batch}
        assert found["settings"] == wanted | {"n_epochs": epochs}
        assert found["bootstrap"] is False and found["stable_baselines3"][0] == "2"
    own = Sb3Options(settings={"learning_rate": 1e-3, "ent_coef": 0.01})
    assert hyper(FAMILIES["darkroom"], own, 100, 1000)["settings"]["learning_rate"] == 1e-3


def test_an_interrupted_collection_goes_on_task_by_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robotics.icrl.collect import sb3_agent

    whole = collect("darkroom", [1, 2, 3], 2, 40, 0, tmp_path / "whole.h5", "sb3")
    inner, calls = sb3_agent.learn, 0

    def stopping(*args: Any) -> Log:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return inner(*args)

    monkeypatch.setattr(sb3_agent, "learn", stopping)
    told: list[tuple[int, int]] = []
    again = (tmp_path / "again.h5", "sb3")
    with pytest.raises(KeyboardInterrupt):
        collect("darkroom", [1, 2, 3], 2, 40, 0, *again, tick=lambda *at: told.append(at))
    assert told == [(2, 6), (4, 6)]
    resumed = collect("darkroom", [1, 2, 3], 2, 40, 0, *again, resume="must")
    assert calls == 4 and resumed.path.read_bytes() == whole.path.read_bytes()


class Line(gym.Env[Any, Any]):
    """A point on a line, real actions; it falls off beyond 1 and is cut after five steps."""

    observation_space = gym.spaces.Box(-2, 2, (1,), np.float32)
    action_space = gym.spaces.Box(-0.6, 0.6, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Mapping[str, Any]]:
        super().reset(seed=seed)
        self.at, self.count = self.np_random.uniform(-0.5, 0.5, 1).astype(np.float32), 0
        return self.at, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, np.float32))
        self.at, self.count = self.at + np.asarray(action, np.float32), self.count + 1
        off = bool(abs(self.at[0]) > 1)
        return self.at, float(-abs(self.at[0])), off, self.count == 5 and not off, {}


@pytest.mark.parametrize("algorithm", ["sac", "td3", "ppo"])
def test_real_actions_and_episodes_that_end_by_themselves(algorithm: str) -> None:
    small = {"policy": "MlpPolicy", "batch_size": 8}
    small |= {"n_steps": 10} if algorithm == "ppo" else {"learning_starts": 8, "buffer_size": 200}
    one, two = (learn(Line, 4, 30, 7, algorithm, small, True) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two))
    ends = one.terminations | one.truncations
    assert one.terminations.any() and one.truncations.any() and not (one.terminations & one.truncations).any()
    after = one.obs + one.actions
    assert np.abs(one.actions).max() <= 0.6 and one.actions.dtype == np.float32
    assert np.allclose(
        one.final_obs[ends], after[ends], atol=1e-6
    )  # where it really was, not where it began anew
    assert np.allclose(one.obs[1:][~ends[:-1]], after[:-1][~ends[:-1]], atol=1e-6)
    assert (
        np.allclose(one.final_obs[-1], after[-1], atol=1e-6) and (one.final_obs[:-1][~ends[:-1]] == 0).all()
    )
    assert np.array_equal(one.terminations, np.abs(after[..., 0]) > 1)


def test_a_time_limit_is_an_end_for_the_agent_alone() -> None:
    small = {"policy": "MlpPolicy", "n_steps": 10, "batch_size": 8}
    told, untold = (learn(Line, 4, 40, 7, "ppo", small, bootstrap) for bootstrap in (True, False))
    assert untold.truncations.any()  # the store keeps what it was
    assert not np.array_equal(told.actions[10:], untold.actions[10:])


def test_soft_actor_critic_in_a_control_family(tmp_path: Path) -> None:
    published = hyper(family("reacher"), Sb3Options(algorithm="sac"), 100, 10_000)
    assert published["bootstrap"] and published["settings"]["gradient_steps"] == 10
    assert published["settings"]["learning_starts"] == 100 and published["settings"]["buffer_size"] == 10**6
    options = {"algorithm": "sac", "settings": {"gradient_steps": 1}}
    store = collect("reacher", [3], 3, 110, 0, tmp_path / "s.h5", "sb3", options)
    block = store.read(3)
    assert block.actions.dtype == np.float32 and block.truncations[:, 49].all()
    assert not [fault for fault in check(store.path) if fault.severity == "error"]
    convert(store.path, "minari", tmp_path)
    convert(tmp_path / "reacher-sb3-v0", "store", tmp_path)
    assert (tmp_path / "histories.h5").read_bytes() == store.path.read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"algorithm": "trpo"}, "collector sb3, algorithm: Input should be 'ppo', 'sac'"),
        (
            {"algorithm": "sac"},
            "algorithm sac: darkroom has discrete actions; box ones wanted; choose ppo or a2c",
        ),
        (
            {"settings": {"n_step": 3}},
            "settings.n_step: unknown to ppo; one of policy, learning_rate, n_steps",
        ),
        ({"settings": {"device": "cuda"}}, "settings.device: unknown to ppo"),
        ({"settings": {"policy": "CnnPolicy"}}, "collector sb3, ppo: .*; correct data.options.settings"),
        ({"settings": {"learning_rate": "fast"}}, "collector sb3, ppo: .*; correct data.options.settings"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        collect("darkroom", [0], 2, 40, 0, tmp_path / "s.h5", "sb3", options)
    assert "\n" not in str(caught.value)


def test_without_the_library_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import util

    inner = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "stable_baselines3" else inner(name))
    with pytest.raises(
        EnvironmentUnfit, match=r"^stable_baselines3: not installed; the 'robotics' extra is wanted"
    ):
        collect("darkroom", [0], 2, 40, 0, tmp_path / "s.h5", "sb3")


@pytest.mark.slow
@pytest.mark.parametrize(("goal", "optimum"), [((5, 4), 20), ((7, 2), 16), ((0, 5), 16)])
def test_ppo_as_published_gets_to_the_optimum(tmp_path: Path, goal: tuple[int, int], optimum: int) -> None:
    """About a minute each."""
    task = family("darkroom").find({"goal": goal})
    store = collect("darkroom", [task.index], 100, 1000, 0, tmp_path / "s.h5", "sb3")
    last = store.read(task.index).returns()[:, -5:]
    assert last.mean() > 0.97 * optimum
