"""The dark grids: published constants, splits, optimal actions; the array form against the gymnasium form."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium")
pytest.importorskip("h5py")

import gymnasium as gym
from gymnasium.utils.env_checker import check_env

from robotics.icrl import envs, video
from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.families import family, tasks
from robotics.icrl.envs.grid import GRIDS, GridTask, labels, optimal_table, random_returns
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.play import Played
from robotics.icrl.rollout import Rollout
from shared.errors import UsageError

envs.register()
NAMES = tuple(GRIDS)


@pytest.mark.parametrize(
    ("name", "split", "count", "optimum", "at_random"),
    [
        ("darkroom", "all", 81, 16.543, 0.247),
        ("darkroom", "train", 73, 16.466, None),
        ("darkroom", "test", 8, 17.250, 0.325),
        ("darkroom-permuted", "all", 120, 35, 0.024),
        ("darkroom-permuted", "test", 12, 35, 0.024),
        ("darkroom-large", "all", 225, 43.53, None),
        ("dark-key-to-door", "all", 6561, 2, None),
        ("dark-key-to-door", "test", 328, 2, None),
    ],
)
def test_constants_of_the_families(
    name: str, split: Any, count: int, optimum: float, at_random: float | None
) -> None:
    chosen = tasks(name, split)
    assert len(chosen) == count
    assert np.mean([task.optimum for task in chosen]) == pytest.approx(optimum, abs=2e-3)
    if at_random is not None:
        assert random_returns(chosen).mean() == pytest.approx(at_random, abs=5e-4)


def test_split_of_dicp() -> None:
    held_out = tasks("darkroom", "test")
    goals = [(4, 2), (5, 6), (6, 8), (7, 2), (3, 6), (0, 5), (5, 8), (5, 4)]
    assert [task.places[0] for task in held_out] == goals
    assert [task.optimum for task in held_out] == [19, 18, 15, 16, 18, 16, 16, 20]
    for name in NAMES:
        both = [task.index for split in ("train", "test") for task in tasks(name, split)]  # type: ignore[arg-type]
        assert sorted(both) == list(range(len(family(name))))


@pytest.mark.parametrize("name", NAMES)
def test_optimal_actions_reach_the_optimum_in_every_task(name: str) -> None:
    chosen = tasks(name) if name != "dark-key-to-door" else tasks(name, "test")
    batch = GridBatch(chosen)
    table = np.stack([optimal_table(task) for task in chosen])
    total = np.zeros(len(chosen))
    for _ in range(batch.family.horizon):
        stage = np.minimum(batch.stages, batch.family.stages - 1)
        action = table[np.arange(len(chosen))[:, None], stage, batch.cells]
        total += batch.step(action).rewards[:, 0]
    assert total.tolist() == [task.optimum for task in chosen]


def test_key_and_door_in_one_cell_need_two_steps_there() -> None:
    task = family("dark-key-to-door").find({"key": (4, 4), "door": (4, 4)})
    batch = GridBatch([task])
    assert [batch.step([[4]]).rewards.item() for _ in range(3)] == [1, 1, 0]


def test_random_returns_agree_with_play() -> None:
    chosen = [family("dark-key-to-door").find({"key": (5, 4), "door": (5, 6)})]
    batch, rng = GridBatch(chosen, 40_000), np.random.default_rng(0)
    total = sum(
        batch.step(rng.integers(0, 5, batch.shape)).rewards.mean() for _ in range(batch.family.horizon)
    )
    assert random_returns(chosen)[0] == pytest.approx(total, abs=0.015)


def some(name: str) -> list[GridTask]:
    rng = np.random.default_rng(1)
    near = {"goal": (4, 5)} if name == "darkroom" else {"goal": (7, 8)}
    near = {"key": (4, 5), "door": (5, 5)} if name == "dark-key-to-door" else near
    easy = [] if name == "darkroom-permuted" else [family(name).find(near)]
    return [*easy, *(family(name).task(int(index)) for index in rng.integers(0, len(family(name)), 4))]


@pytest.mark.parametrize("name", NAMES)
def test_arrays_and_gymnasium_agree_step_by_step(name: str) -> None:
    chosen, streams = some(name), 3
    batch = GridBatch(chosen, streams, auto_reset="same-step")
    singles = [gym.make(batch.family.env_id, task=task.index) for task in chosen for _ in range(streams)]
    assert all(np.array_equal(env.reset()[0], batch.obs[0, 0]) for env in singles)
    rng = np.random.default_rng(2)
    ended = rewarded = 0
    for _ in range(2 * batch.family.horizon + 7):
        actions = rng.integers(0, 5, batch.shape)
        if name == "darkroom-permuted":  # random play hardly gets to its far corner
            moves = rng.choice([0, 0, 2, 2, 1, 4], batch.shape)
            actions = np.array([np.argsort(task.moves)[row] for task, row in zip(chosen, moves)])
        step = batch.step(actions)
        for number, (place, env) in enumerate(zip(np.ndindex(batch.shape), singles)):
            obs, reward, terminated, truncated, _ = env.step(actions[place])
            assert reward == step.rewards[place]
            assert terminated == step.terminations[place] and truncated == step.truncations[place]
            rewarded += reward > 0
            if truncated:
                assert step.final_obs is not None and np.array_equal(obs, step.final_obs[place])
                obs, ended = env.reset()[0], ended + (number == 0)
            assert np.array_equal(obs, step.obs[place])
    assert ended == 2
    assert rewarded > 0


@pytest.mark.parametrize("task", [0, 17, 119])
def test_permuted_actions_move_as_the_permutation_says(task: int) -> None:
    chosen = family("darkroom-permuted").task(task)
    batch = GridBatch([chosen])
    up, right = chosen.moves.index(2), chosen.moves.index(0)
    assert batch.step([[up]]).obs.ravel().tolist() == [0, 1]
    assert batch.step([[right]]).obs.ravel().tolist() == [1, 1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
def test_gymnasium_finds_no_fault(name: str, render_mode: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(family(name).env_id, task=3, render_mode=render_mode).unwrapped)


def test_same_step_reset_through_gymnasium_keeps_the_terminal_observation() -> None:
    mode = gym.vector.AutoresetMode.SAME_STEP
    env = gym.make_vec(
        "icrl/Darkroom-v0", 2, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}
    )
    env.reset(seed=0)
    for _ in range(20):
        obs, _, _, truncations, info = env.step(np.array([0, 2]))
    assert truncations.all() and (obs == 4).all()
    assert [final.tolist() for final in info["final_obs"]] == [[8, 4], [4, 8]]


def test_batch_without_auto_reset_says_when_to_reset() -> None:
    batch = GridBatch(tasks("darkroom")[:2], 2, auto_reset="disabled")
    for _ in range(20):
        step = batch.step(np.zeros(batch.shape, int))
    assert step.final_obs is not None and np.array_equal(step.obs, step.final_obs)
    with pytest.raises(RuntimeError, match="call reset"):
        batch.step(np.zeros(batch.shape, int))


def test_labels_follow_what_the_history_has_reached() -> None:
    task = family("dark-key-to-door").find({"key": (4, 5), "door": (4, 3)})
    obs = np.array([[[4, 4], [4, 5], [4, 4], [4, 3], [4, 4], [4, 4]]])
    rewards = np.array([[1, 0, 1, 0, 0, 0]])
    starts = np.array([[True, False, False, False, True, False]])
    # To the key, then to the door, hold there; the new episode begins without the key.
    assert labels(task, obs, rewards, starts).tolist() == [[2, 3, 3, 4, 2, 2]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: family("lightroom"), "environment lightroom: unknown; one of darkroom, darkroom-permuted, "),
        (lambda: family("darkroom").task(81), "task 81 of darkroom: unknown; 0 to 80"),
        (lambda: family("darkroom").find({"goal": (9, 0)}), r"goal \[9, 0\]: not in the room; two numbers "),
        (lambda: family("darkroom").find({"key": (1, 0)}), "task of darkroom: key; goal wanted"),
        (
            lambda: family("darkroom-permuted").find({"permutation": (0, 0, 1, 2, 3)}),
            "an order of 0 to 4 wanted",
        ),
        (lambda: GridBatch([]), "nothing to play"),
    ],
)
def test_what_cannot_be_played_is_said_in_a_line(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()


def test_parameters_name_their_task() -> None:
    for name, index in itertools.product(NAMES, (0, 77)):
        assert family(name).find(family(name).task(index).params).index == index


def test_steps_of_a_gymnasium_environment_are_checked() -> None:
    env = gym.make("robotics.icrl.envs.gym_grid:icrl/Darkroom-v0", goal=(4, 2)).unwrapped
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    env.reset(options={"task": 5})
    assert env.task.index == 5  # type: ignore[attr-defined]
    with pytest.raises(gym.error.InvalidAction, match="0 to 4 wanted"):
        env.step(7)


def test_films_show_what_the_environment_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two episodes: first the key goes, then the door; both are back where the next one begins."""
    task = family("dark-key-to-door").find({"key": (4, 5), "door": (4, 3)})
    env = task.family.make(task, "rgb_array")
    actions = np.tile(np.resize([2, 3, 3, 4], 50), 2)
    shown, rows = [], []
    obs, over = env.reset()[0], False
    for action in actions:
        obs = env.reset()[0] if over else obs
        shown.append(env.render())
        before, (obs, reward, _, over, _) = obs, env.step(action)
        rows.append((before, action, reward, over))
    colours = [len(np.unique(each.reshape(-1, 3), axis=0)) for each in (*shown[:4], shown[50])]
    assert colours == [5, 4, 4, 3, 5]  # floor, lines, agent, and what is still to be reached
    played = Rollout(np.full((1, 2), 2.0), *(np.stack(each)[None] for each in zip(*rows)))
    assert played.rewards.sum() == played.returns.sum()
    films: list[Any] = []
    monkeypatch.setattr(video, "_write", lambda pictures, path: films.append(pictures))
    assert video.write_films(Played([task], 1, played), tmp_path, ["gif"], ModelConfig()) == []
    assert np.array_equal(films[0][:, : -video.STRIP], np.stack(shown))
