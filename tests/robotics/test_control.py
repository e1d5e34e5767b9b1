"""Continuous control with a hidden task: what is hidden, splits, references, expert, histories, a bundle at play."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("mujoco", reason="the robotics extra is not installed")
pytest.importorskip("h5py")

import gymnasium as gym
from gymnasium.utils.env_checker import check_env

from robotics.icrl import envs
from robotics.icrl.collect.run import collect
from robotics.icrl.config import IcrlConfig, PlayConfig
from robotics.icrl.data import IcrlData
from robotics.icrl.envs.control import CONTROL
from robotics.icrl.envs.families import family, tasks
from robotics.icrl.envs.gym_batch import GymBatch
from robotics.icrl.envs.reacher import draw_arm, fingertip, joints
from robotics.icrl.models import build
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.pipeline import PIPELINE
from robotics.icrl.play import normalised, play
from robotics.icrl.predict import IcrlPredictor
from robotics.icrl.store import Store
from robotics.icrl.store_check import check
from robotics.icrl.task import IcrlTask
from robotics.icrl.tasks_file import as_yaml, parse
from robotics.icrl.video import STRIP
from shared.bundle import Bundle
from shared.errors import ItemError, UsageError

envs.register()
BODIES = ("reacher", "half-cheetah", "ant", "pusher")
HELD = family("reacher").tasks("test")[0]


@pytest.mark.filterwarnings("ignore:.*Box")
@pytest.mark.parametrize("name", BODIES)
def test_gymnasium_finds_no_fault(name: str) -> None:
    room = family(name)
    env = gym.make(room.env_id)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.spec is not None and env.spec.max_episode_steps == room.horizon
    assert env.observation_space.shape == tuple(room.observation_space["shape"])
    space: Any = env.action_space
    assert space.shape == tuple(room.action_space["shape"]) and space.high.max() == room.action_space["high"]


@pytest.mark.parametrize("name", BODIES)
def test_the_task_shows_in_the_rewards_alone(name: str) -> None:
    room = family(name)
    chosen = (replace(room.task(0), index=1), room.task(1))  # the same draws
    one, two = (GymBatch([task], 2, seed=1) for task in chosen)
    random, seen = np.random.default_rng(0), [batch.reset() for batch in (one, two)]
    assert np.array_equal(*seen) and not np.array_equal(seen[0][0, 0], seen[0][0, 1])
    rewards = []
    for _ in range(5):
        action = random.uniform(-1, 1, (1, 2, *room.action_space["shape"]))
        steps = [batch.step(action) for batch in (one, two)]
        assert np.array_equal(steps[0].obs, steps[1].obs)
        rewards.append([step.rewards for step in steps])
    assert not np.allclose(*np.moveaxis(np.array(rewards), 1, 0))


@pytest.mark.parametrize("name", ["reacher", "ant"])
def test_arrays_and_single_environments_agree(name: str) -> None:
    room = family(name)
    chosen, random = room.tasks("test")[:2], np.random.default_rng(0)
    batch = room.batch(chosen, 2, seed=3)
    obs: Any = batch.reset()
    singles = {}
    for at in np.ndindex(2, 2):
        env = room.make(chosen[at[0]])
        seed = int(np.random.SeedSequence([3, chosen[at[0]].index, at[1]]).generate_state(1)[0])
        assert np.array_equal(env.reset(seed=seed)[0].astype(np.float32), obs[at])
        singles[at] = env
    for _ in range(room.horizon + 3):
        actions = random.uniform(-1, 1, (2, 2, *room.action_space["shape"])).astype(np.float32)
        step = batch.step(actions)
        for at, env in singles.items():
            one, reward, ended, cut, _ = env.step(actions[at])
            assert np.float32(reward) == step.rewards[at]
            assert (ended, cut) == (step.terminations[at], step.truncations[at])
            if cut:
                assert step.final_obs is not None
                assert np.array_equal(one.astype(np.float32), step.final_obs[at])
                one = env.reset()[0]
            assert np.array_equal(one.astype(np.float32), step.obs[at])


def test_lists_and_splits_never_change() -> None:
    for name in CONTROL:
        room = family(name)
        both = [task.index for split in ("train", "test") for task in tasks(name, split)]  # type: ignore[arg-type]
        assert sorted(both) == list(range(200)) and len(tasks(name, "test")) == 20
        for index in (0, 123):
            assert room.find(room.task(index).params) == room.task(index)
    assert [task.goal for task in family("reacher").tasks("test")[:2]] == [
        (-0.0818, -0.1624),
        (0.0231, 0.1025),
    ]
    assert family("half-cheetah").task(0).params == {"speed": 2.5333}
    assert set(family("ant-dynamics").task(3).params) == {"direction", "gravity", "viscosity", "damping"}


def test_the_expert_reaches_every_held_out_goal() -> None:
    room = family("reacher")
    chosen = room.tasks("test")
    batch = room.batch(chosen, 1, seed=5)
    obs: Any = batch.reset()
    total = np.zeros(len(chosen))
    for _ in range(room.horizon):
        actions = np.stack([room.expert(task)(obs[row]) for row, task in enumerate(chosen)])  # type: ignore[misc]
        step = batch.step(actions)
        total, obs = total + step.rewards[:, 0], step.obs
    assert step.rewards.min() > -0.001  # within a millimetre
    found = normalised(chosen, total[:, None])
    assert found.min() > 0.95 and found.max() < 1.05
    assert room.chance(chosen[:1])[0] == pytest.approx(-12.01, abs=0.01)
    assert room.best(chosen).mean() == pytest.approx(-1.33, abs=0.05)


def test_dynamics_change_the_world() -> None:
    room = family("reacher")
    plain, slow = room.find({"goal": [0.1, 0.1]}), room.find({"goal": [0.1, 0.1], "damping": 10.0})
    tips = []
    for task in (plain, slow):
        env = room.make(task)
        env.reset(seed=0)
        for _ in range(10):
            obs = env.step(np.ones(2, np.float32))[0]
        tips.append(obs[4])
    assert tips[0] > 2 * tips[1]


def test_pictures_show_the_arm_and_the_goal() -> None:
    room = family("reacher")
    env = room.make(room.task(0))
    obs = env.reset(seed=0)[0]
    tip = env.unwrapped.get_body_com("fingertip")[:2]  # type: ignore[attr-defined]
    assert np.array_equal(fingertip(obs), tip) and joints(obs)[2] == pytest.approx(tip, abs=1e-6)
    image = draw_arm(obs, (0.1, -0.1))
    assert tuple(image[170, 170]) == (220, 120, 0) and image.shape == (240, 240, 3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: family("reacher").task(200), "task 200 of reacher: unknown; 0 to 199"),
        (
            lambda: family("reacher").find({"speed": 1}),
            "task of reacher: speed; goal and, if wanted, gravity",
        ),
        (lambda: family("reacher").find({"damping": 1.0}), "task of reacher: no goal; one wanted"),
        (
            lambda: family("reacher").find({"goal": [0.2, 0.2]}),
            r"goal \[0.2, 0.2\]: out of reach; at most 0.21 m",
        ),
        (lambda: family("ant").find({"direction": 7}), "direction 7: one number from 0 to 6.283 wanted"),
        (
            lambda: family("reacher").find({"goal": ["a", 0.1]}),
            r"goal \['a', 0.1\]: 2 numbers from -0.21 to 0.21 and",
        ),
    ],
)
def test_what_cannot_be_played_is_said_in_a_line(call: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call()


# ---------------------------------------------------------------- histories


def test_noise_distillation_goes_from_random_to_expert(tmp_path: Path) -> None:
    room = family("reacher")
    chosen = [task.index for task in room.tasks("train")[:3]]
    store = collect("reacher", chosen, 3, 500, 0, tmp_path / "s.h5", "noise-distillation", random_share=0.3)
    assert {fault.severity for fault in check(store.path)} == {"warning"}  # no bound of the returns is known
    for index in chosen:
        block, task = store.read(index), room.task(index)
        assert block.source.tolist() == ["noise-distillation"] * 2 + ["random"]
        curve = normalised([task], block.returns()[:2].mean(0)[None])[0]
        assert abs(curve[0]) < 0.35 and curve[-1] > 0.95
        assert np.array_equal(
            block.optimal_actions, room.labels(task, block.obs, block.rewards, block.starts())
        )
        assert np.abs(block.actions[:2, -5:] - block.optimal_actions[:2, -5:]).max() < 0.03  # type: ignore[index]
        assert np.array_equal(
            block.next_obs()[:, :-1][~block.ends[:, :-1]], block.obs[:, 1:][~block.ends[:, :-1]]
        )
    alone = collect("reacher", chosen[1:2], 5, 500, 0, tmp_path / "a.h5", "noise-distillation")
    both = collect("reacher", chosen[:2], 2, 500, 0, tmp_path / "b.h5", "noise-distillation")
    assert np.array_equal(alone.read(chosen[1]).obs[:2], both.read(chosen[1]).obs)
    collect("reacher", chosen[:2], 5, 500, 0, both.path, "noise-distillation")
    assert np.array_equal(Store(both.path).read(chosen[1]).rewards, alone.read(chosen[1]).rewards)


@pytest.mark.parametrize(
    ("collector", "env", "said"),
    [
        ("explorer", "reacher", "it knows rooms with one goal; choose noise-distillation, sb3 or random"),
        ("explorer", "half-cheetah", "it knows rooms with one goal; choose sb3 or random"),
        (
            "explorer",
            "darkroom-permuted",
            "one goal; choose population, q-learning, noise-distillation, sb3 or random",
        ),
        ("population", "reacher", "it knows the dark grids only; choose noise-distillation, sb3 or random"),
        ("noise-distillation", "ant", "no expert is known there; choose sb3 or random"),
    ],
)
def test_collectors_that_do_not_fit_are_refused(tmp_path: Path, collector: str, env: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        PIPELINE.resolve(
            "default", sets=["data.options={}", f"data.env={env}", f"data.collector={collector}"]
        )
    with pytest.raises(UsageError, match=f"collector {collector} in {env}; .*choose "):
        collect(env, [0], 1, 50, 0, tmp_path / "s.h5", collector)


def test_random_play_needs_no_expert(tmp_path: Path) -> None:
    store = collect("pusher", [0], 1, 110, 0, tmp_path / "s.h5", "random")
    block = store.read(0)
    assert block.optimal_actions is None and block.truncations[0, 99] and np.abs(block.actions).max() > 1.9


# ---------------------------------------------------------------- a bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained network of the right shape."""
    data = {"env": "reacher", "collector": "noise-distillation"}
    config = PIPELINE.complete(
        IcrlConfig.model_validate({"data": data, "model": {"dim": 16, "depth": 1, "heads": 2, "context": 60}})
    )
    assert config.data.spaces is not None
    network = build(config.model, config.data.spaces)
    path = tmp_path_factory.mktemp("bundle") / "reacher"
    return Bundle.save(path, pipeline="icrl", config=config, state_dict=network.state_dict())


def test_files_of_tasks_go_round() -> None:
    room = family("reacher")
    held = room.tasks("test")[:2]
    found = parse(as_yaml("reacher", held, 3, 1), "t", "darkroom")
    assert found.tasks == held and (found.episodes, found.seed) == (3, 1)
    rows = (
        "{goal: [0.1, 0.05]}, {goal: [0, 0.1], damping: 2}, {goal: [1, 1]}, {goal: [0.10, 0.05]}, {index: 3}"
    )
    own = parse(f"tasks: [{rows}, {{goal: {list(room.task(3).goal)}}}]", "t", "reacher")
    assert [task.index for task in own.tasks] == [200, 201, 3]
    assert [fault.field for fault in own.faults] == ["tasks[2]", "tasks[3]", "tasks[5]"]
    assert "goal [0.1, 0.05]: is there already; each task once, and `copies`" in str(own.faults[1])
    table = parse("env,goal\nreacher,0.1 -0.05\n", "t", "darkroom", ".csv")
    assert table.tasks[0].params == {"goal": [0.1, -0.05]}


def test_a_bundle_plays_a_file_of_goals(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "goals.yaml").write_text(
        f"episodes: 3\ncopies: 2\ntasks:\n  - goal: [0.1, 0.05]\n  - index: {HELD.index}\n"
    )
    predictor = IcrlPredictor(bundle, {"gif": True, "mp4": True})
    (item,) = predictor.discover([tmp_path / "goals.yaml"])
    out = tmp_path / "out"
    out.mkdir()
    said = predictor.write(predictor.predict(item), out)
    assert said["env"] == "reacher" and said["notes"] == [] and said["episodes"] == 3
    steps, returns = pd.read_csv(out / "steps.csv"), pd.read_csv(out / "returns.csv")
    assert list(steps) == [
        "task", "copy", "episode", "step", *(f"obs_{n}" for n in range(8)), "action_0", "action_1", "reward",
    ]  # fmt: skip
    assert len(steps) == 2 * 2 * 3 * 50 and steps[["action_0", "action_1"]].abs().max().max() <= 1
    summed = steps.groupby(["task", "copy", "episode"])["reward"].sum()
    goals = returns.groupby("task")["goal"].unique().map(list)
    assert goals.to_dict() == {200: ["0.1 0.05"], HELD.index: [" ".join(map(str, HELD.goal))]}
    assert returns.set_index(["task", "copy", "episode"])["return"].sort_index().to_numpy() == pytest.approx(
        summed.to_numpy(), abs=1e-3
    )
    assert {path.name for path in out.iterdir()} == {
        "returns.csv", "steps.csv", "paths.png", "rollout.gif", "rollout.mp4",
    }  # fmt: skip
    import imageio.v3 as imageio

    assert imageio.imread(out / "rollout.gif").shape == (100, 240 + STRIP, 240, 3)
    assert imageio.imread(out / "rollout.mp4", plugin="FFMPEG").shape[1:] == (240 + STRIP, 240, 3)


def test_without_ffmpeg_all_but_the_film_is_there(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    predictor = IcrlPredictor(bundle, {"mp4": True, "picture": False})
    (tmp_path / "goals.yaml").write_text(f"episodes: 1\ntasks:\n  - index: {HELD.index}\n")
    (item,) = predictor.discover([tmp_path / "goals.yaml"])
    (tmp_path / "out").mkdir()
    said = predictor.write(predictor.predict(item), tmp_path / "out")
    assert said["notes"] == [
        "predict.mp4: no film, ffmpeg is not there; pip install imageio-ffmpeg, or set predict.gif=true"
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"returns.csv", "steps.csv"}


def test_other_spaces_are_shown_side_by_side(bundle: Bundle, tmp_path: Path) -> None:
    predictor = IcrlPredictor(bundle, {})
    for env, said in (
        (
            "darkroom",
            "darkroom has cells [9, 9] and 5 actions; the model knows 8 reals and 2 real actions up to 1",
        ),
        (
            "ant",
            "ant has 27 reals and 8 real actions up to 1; the model knows 8 reals and 2 real actions up to 1",
        ),
    ):
        (tmp_path / "t.yaml").write_text(f"env: {env}\ntasks: [{{index: 3}}]\n")
        (item,) = predictor.discover([tmp_path / "t.yaml"])
        with pytest.raises(ItemError) as caught:
            predictor.predict(item)
        assert said in str(caught.value)


def test_without_a_graphics_library_a_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from robotics.icrl import video

    monkeypatch.setattr(video, "find_library", lambda name: None)
    for name in ("DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(name, raising=False)
    room = family("half-cheetah")
    spaces = Spaces.of(room.observation_space, room.action_space)
    net = build(ModelConfig(dim=16, depth=1, heads=2, context=20), spaces).eval()
    played = play(net, room.tasks("test")[:1], 1, 1, 0, PlayConfig())
    assert video.write_films(played, tmp_path, ["gif"], ModelConfig()) == [
        "half-cheetah: no film, MuJoCo has no OpenGL library to draw with; install libosmesa6, or libegl1 and "
        "libegl-mesa0; everything else is there"
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["ad", "dpt", "dicp", "dt"])
def test_every_method_learns_from_reals_and_plays(tmp_path: Path, method: str) -> None:
    config = PIPELINE.complete(
        IcrlConfig.model_validate(
            {
                "data": {
                    "env": "reacher",
                    "collector": "noise-distillation",
                    "streams": 2,
                    "episodes": 2,
                    "tasks": 3,
                },
                "model": {"method": method, "dim": 16, "depth": 1, "heads": 2, "inner": 16, "context": 60},
                "train": {"steps": 2, "batch_size": 4},
                "predict": {"beam": {"samples": 3}},
                "filter": {"mode": "stochastic"},
            }
        )
    )
    data = IcrlData(config)
    data.collect(tmp_path)
    task = IcrlTask(config)
    task.learn_from(data)
    loss = task.training_step(next(iter(data.train_dataloader())), 0)
    loss.backward()
    assert np.isfinite(float(loss.detach()))
    played = play(task.network, task.play_on, 2, 1, 0, config.predict)
    assert played.returns.shape == (1, 1, 2) and np.abs(played.rollout.actions).max() <= 1
