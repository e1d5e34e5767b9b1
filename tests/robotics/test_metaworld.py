"""Meta-World's ML1: what is said without it, and with it: its tasks, what is hidden, experts, histories, a network."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import warnings
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="the robotics extra is not installed")
pytest.importorskip("h5py")

from robotics.icrl.collect.run import collect
from robotics.icrl.config import IcrlConfig
from robotics.icrl.data import IcrlData, infer
from robotics.icrl.envs import ml1, names
from robotics.icrl.envs.families import FAMILIES, family
from robotics.icrl.pipeline import PIPELINE
from robotics.icrl.play import normalised, play, told
from robotics.icrl.store_check import check
from robotics.icrl.task import IcrlTask
from robotics.icrl.tasks_file import as_yaml, parse
from shared.errors import EnvironmentUnfit, UsageError

ROOT = Path(__file__).resolve().parents[2]
REACH = ml1.ML1["ml1-reach"]


def _lacks() -> str:
    try:
        REACH.ready()
    except EnvironmentUnfit as err:
        return str(err)
    return ""


needs_metaworld = pytest.mark.skipif(bool(_lacks()), reason=_lacks())

# ---------------------------------------------------------------- without Meta-World


def test_the_configuration_knows_all_families_and_loads_none() -> None:
    assert tuple(FAMILIES) == names.ROOMS and len(names.ML1) == 50
    code = (
        "import sys; from robotics.icrl.pipeline import PIPELINE; "
        "PIPELINE.resolve('ml1', sets=['data.env=ml1-push']); "
        "sys.exit(bool({'metaworld', 'mujoco', 'gymnasium', 'numpy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["data.env=ml1-pusj"], "found 'ml1-pusj'; ml1-push"),
        (["data.env=maze"], "one of darkroom, .*ml1-TASK .50 of Meta-World's, such as ml1-reach. wanted"),
        (["data.env=ml1-reach", "data.collector=explorer"], "explorer in ml1-reach; it knows rooms with one goal"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(sets: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        PIPELINE.resolve("default", sets=sets)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"metaworld": None, "mujoco": "4.0.0"}, "metaworld not installed, mujoco 4.0.0"),
        ({"metaworld": "3.1.1", "mujoco": "4.0.0"}, "metaworld 3.1.1, mujoco 4.0.0"),
        ({"metaworld": "2.0.0", "mujoco": None}, "metaworld 2.0.0, mujoco not installed"),
    ],
)
def test_what_is_not_installed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, str | None], said: str
) -> None:
    monkeypatch.setattr(ml1, "_installed", found.get)
    config = PIPELINE.resolve("ml1")
    chosen = REACH.tasks("test")[:1]
    for call in (lambda: infer(config), lambda: REACH.batch(chosen, 1)):
        with pytest.raises(EnvironmentUnfit) as caught:
            call()
        assert str(caught.value) == (
            f"ml1-reach: {said}; metaworld 3.1.1 with mujoco 3.3.0 wanted; run `make metaworld`, or "
            "`pip install -e '.[metaworld]'` in an environment of its own"
        )


def test_the_extra_brings_what_is_asked_for_and_is_not_in_all() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"metaworld=={ml1.PINNED['metaworld']}" in extras["metaworld"]
    assert not any("metaworld" in each for each in extras["all"])
    if not _lacks():
        assert f"mujoco=={ml1.PINNED['mujoco']}" in (requires("metaworld") or [])


def test_tasks_are_numbers_of_a_list() -> None:
    assert [task.index for task in REACH.tasks("train")] == list(range(50))
    assert [task.index for task in REACH.tasks("test")] == list(range(50, 100))
    found = parse(as_yaml("ml1-reach", REACH.tasks("test")[:2], 3, 1), "t", "darkroom")
    assert found.tasks == REACH.tasks("test")[:2] and family("icrl/ML1-reach-v3") is REACH
    assert told(found.tasks[1]) == {"task": 51}
    assert family("ml1-reach").observation_space["shape"] == [11]
    assert family("ml1-hammer").observation_space["shape"] == [18]
    for call, said in (
        (lambda: REACH.task(100), "task 100 of ml1-reach: unknown; 0 to 99"),
        (lambda: REACH.find({"goal": [0, 0, 0]}), "task of ml1-reach: goal; index: 0 to 99 wanted"),
    ):
        with pytest.raises(UsageError, match=said):
            call()


# ---------------------------------------------------------------- with it


def _bare(task: ml1.ML1Task, shown: bool = False) -> Any:
    """Meta-World's own environment, the goal shown as in its MT1."""
    env = ml1._made(task)
    if shown:
        del env.sawyer_observation_space  # as its set_task does
        env._partially_observable = False
    return env


@needs_metaworld
def test_tasks_are_those_of_ml1() -> None:
    import metaworld

    assert {f"{each}-v3" for each in names.ML1_TASKS} == set(metaworld.ML1.ENV_NAMES)
    np.random.seed(5)
    before = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    ml1._benchmark.cache_clear()
    goals = np.array([ml1._goal(REACH.task(index)) for index in (0, 49, 50)])
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]
    assert goals[0] == pytest.approx([-0.0233117, 0.8791725, 0.18222373], abs=1e-8)
    ml1._benchmark.cache_clear()
    ml1._goal.cache_clear()
    np.random.seed(6)
    assert np.array_equal(goals, [ml1._goal(REACH.task(index)) for index in (0, 49, 50)])
    given = metaworld.ML1("reach-v3", seed=0)
    env = given.train_classes["reach-v3"]()
    for task, goal in zip((given.train_tasks[0], given.train_tasks[49], given.test_tasks[0]), goals):
        env.set_task(task)
        env.reset()
        assert np.array_equal(env._get_pos_goal(), goal)


@needs_metaworld
@pytest.mark.parametrize("name", ["ml1-reach", "ml1-stick-push"])
def test_the_goal_is_hidden_and_episodes_begin_the_same(name: str) -> None:
    room = family(name)
    task, draw = room.task(50), np.random.default_rng(0)
    env, bare = room.make(task), _bare(task)
    first = env.reset(seed=1)[0]
    whole = bare.reset()[0]
    assert np.array_equal(first, whole[: room.numbers]) and not whole[36:].any()
    actions = draw.uniform(-1, 1, (room.horizon, 4)).astype(np.float32)
    gained = []
    for number, action in enumerate(actions):
        obs, reward, ended, cut, _ = env.step(action)
        whole, own = bare.step(action)[:2]
        assert np.array_equal(obs, whole[: room.numbers]) and reward == own and not whole[36:].any()
        assert not ended and cut == (number == room.horizon - 1) and 0 <= reward <= 10
        gained.append(reward)
    assert np.array_equal(env.reset(seed=2)[0], first)
    assert [env.step(action)[1] for action in actions[:20]] == gained[:20]


def _agrees(room: Any, steps: int) -> float:
    """Return of `steps` steps of the expert, whose every action is Meta-World's own where the goal is shown."""
    from metaworld.policies import ENV_POLICY_MAP

    task = room.task(60)
    expert, policy = room.expert(task), ENV_POLICY_MAP[f"{room.skill}-v3"]()
    env, total = _bare(task, shown=True), 0.0
    obs = env.reset()[0]
    for _ in range(steps):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = np.clip(policy.get_action(obs.copy()), -1, 1)  # some write into what they are given
        seen = np.asarray(obs[: room.numbers], float)
        assert np.array_equal(expert(seen), wanted)
        obs, reward = env.step(wanted)[:2]
        total += float(reward)
    return total


@needs_metaworld
@pytest.mark.parametrize("name", ["ml1-reach", "ml1-push", "ml1-stick-push"])
def test_the_expert_is_meta_worlds(name: str) -> None:
    room = family(name)
    found, task = _agrees(room, room.horizon), room.task(60)
    assert normalised([task], np.array([[found]]))[0, 0] > 0.3
    assert room.best([task]).tolist() == [1000.0] and 0 < room.chance([task])[0] < 300
    seen = np.stack([room.make(task).reset()[0]] * 6).reshape(2, 3, -1)
    acted = room.expert(task)(seen)
    assert acted.shape == (2, 3, 4) and acted.dtype == np.float32 and np.abs(acted).max() <= 1


@needs_metaworld
@pytest.mark.slow
@pytest.mark.parametrize("name", names.ML1)
def test_every_skill_has_its_expert(name: str) -> None:
    assert _agrees(family(name), 30) >= 0


@needs_metaworld
def test_noise_distillation_goes_from_random_to_expert(tmp_path: Path) -> None:
    store = collect("ml1-reach", [0, 1], 2, 600, 0, tmp_path / "s.h5", "noise-distillation")
    assert {fault.severity for fault in check(store.path)} == {"warning"}  # no bound of the returns is known
    for index in (0, 1):
        found, task = store.read(index), REACH.task(index)
        assert np.array_equal(found.optimal_actions, REACH.expert(task)(found.obs))
        curve = normalised([task], found.returns().mean(0)[None])[0]
        assert curve[0] < 0.4 and curve[-1] > 0.7
        assert found.truncations[:, 99::100].all() and found.truncations.sum() == 2 * 6
    again = collect("ml1-reach", [1], 2, 600, 0, tmp_path / "a.h5", "noise-distillation").read(1)
    assert np.array_equal(again.rewards, store.read(1).rewards)


@needs_metaworld
def test_stable_baselines_learns_in_it(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    found = collect("ml1-push", [3], 2, 110, 0, tmp_path / "s.h5", "sb3").read(3)
    assert found.obs.shape == (2, 110, 11) and found.truncations[:, 99].all()


@needs_metaworld
@pytest.mark.parametrize("method", ["ad", "dpt", "dicp"])
def test_a_network_learns_from_it_and_plays(tmp_path: Path, method: str) -> None:
    sets = [
        "data.tasks=2", "data.streams=1", "data.episodes=2", f"model.method={method}", "model.dim=16",
        "model.heads=2", "model.depth=1", "model.context=120", "train.steps=2", "train.batch_size=2",
    ]  # fmt: skip
    config: IcrlConfig = PIPELINE.complete(PIPELINE.resolve("ml1", sets=sets))
    data = IcrlData(config)
    data.collect(tmp_path)
    task = IcrlTask(config)
    task.learn_from(data)
    loss = task.training_step(next(iter(data.train_dataloader())), 0)
    loss.backward()
    assert np.isfinite(float(loss.detach()))
    played = play(task.network, task.play_on, 1, 2, 0, config.predict)
    assert played.returns.shape == (1, 2, 1) and played.returns.min() > 0 and played.returns.max() < 1000
