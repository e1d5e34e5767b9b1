"""Environments of a user's own: named as gymnasium names them, probed, played; what breaks costs its task alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("gymnasium", reason="the robotics extra is not installed")
pytest.importorskip("h5py")

from robotics.icrl.config import IcrlConfig, PlayConfig
from robotics.icrl.data import check
from robotics.icrl.envs.user import GymTask
from robotics.icrl.evaluate import evaluate
from robotics.icrl.models import build
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.pipeline import PIPELINE
from robotics.icrl.play import play, told
from robotics.icrl.predict import IcrlPredictor, steps_table
from robotics.icrl.rollout import rollout
from robotics.icrl.tasks_file import parse
from shared.bundle import Bundle
from shared.config import merge
from shared.errors import DataInvalid, ItemError

MODULE = '''
import gymnasium as gym
import numpy as np

class Wind(gym.Env):
    """A point on a line that the wind drives; it ends when it is blown away."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, wind=0.0, raise_at=0, nan_at=0, wide=False, old=False, late=False, low=-1, odd="",
                 reset_at=0, render_mode=None):
        self.wind, self.raise_at, self.nan_at, self.old = wind, raise_at, nan_at, old
        self.late, self.odd, self.reset_at, self.render_mode = late, odd, reset_at, render_mode
        if odd == "unlicensed":
            raise SystemExit("no licence")
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Box(low, 1, (2 if wide else 1,), np.float32)
        self.episodes = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episodes += 1
        if self.episodes == self.reset_at:
            raise RuntimeError("no wind")
        self.steps, self.x = 0, self.np_random.uniform(-0.1, 0.1)
        obs = np.array([self.x, 0.0])
        return obs if self.old == "reset" else (obs, {})

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        if self.odd == "at once":
            raise SystemExit(0)
        if self.raise_at and (self.episodes, self.steps) == (2, self.raise_at):
            raise RuntimeError("the motor stopped\\nsecond line")
        if self.odd and (self.episodes, self.steps) == (1, 4):
            if self.odd == "exit":
                raise SystemExit(3)
            return np.zeros(2), 1e39, False, False, {}
        self.x += 0.1 * float(action[0]) + self.wind
        obs = np.array([self.x, np.nan if self.nan_at and (self.episodes, self.steps) == (1, self.nan_at) else 0.0])
        if self.old:
            return obs, -abs(self.x), False, {}
        return obs, -abs(self.x), abs(self.x) > 1, False, {}

    def render(self):
        return np.full((8, 10 + self.late * self.steps, 3), 100, np.uint8)

    def close(self):
        if self.late:
            raise SystemExit(0)

def wrapped(**keys):
    env = Wind(**keys)
    env.observation_space = gym.spaces.Dict({"x": gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)})
    reset, step = env.reset, env.step
    env.reset = lambda **more: ({"x": reset(**more)[0]}, {})
    env.step = lambda action: ({"x": (found := step(action))[0]}, *found[1:])
    return gym.wrappers.FlattenObservation(env)

gym.register("own/Wind-v0", Wind, max_episode_steps=12)
gym.register("own/Wrapped-v0", wrapped, max_episode_steps=12)
gym.register("own/Endless-v0", Wind)

class Halves(gym.Env):
    """Whole numbers are promised, halves come."""

    observation_space, got = gym.spaces.Box(0, 9, (1,), np.int64), []

    def __init__(self, half=False, start=0, render_mode=None):
        self.half, self.action_space = half, gym.spaces.Discrete(2, start=start)

    def reset(self, *, seed=None, options=None):
        return np.array([1]), {}

    def step(self, action):
        self.half += bool(self.half)
        self.got.append(action)
        return np.array([1.5 if self.half > 2 else 1]), 0.0, False, False, {}

gym.register("own/Halves-v0", Halves, max_episode_steps=12)
'''


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("module")
    (folder / "own_wind.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained network that sees two reals and does one."""
    spaces = Spaces(numbers=2, action_numbers=1)
    data = {"env": "reacher", "collector": "noise-distillation", "spaces": spaces.model_dump()}
    config = IcrlConfig.model_validate(
        {"data": data, "model": {"dim": 16, "depth": 1, "heads": 2, "context": 30}}
    )
    path = tmp_path_factory.mktemp("bundle") / "wind"
    pytest.importorskip("torch").manual_seed(0)
    network = build(config.model, spaces)
    return Bundle.save(path, pipeline="icrl", config=config, state_dict=network.state_dict())


def played(bundle: Bundle, folder: Path, text: str, **options: Any) -> dict[str, Any]:
    (folder / "t.yaml").write_text(text)
    (folder / "out").mkdir()
    predictor = IcrlPredictor(bundle, options)
    (item,) = predictor.discover([folder / "t.yaml"])
    return predictor.write(predictor.predict(item), folder / "out")


def test_it_is_played_with_episodes_that_end_apart(bundle: Bundle, tmp_path: Path) -> None:
    text = "env: own_wind:own/Wind-v0\nepisodes: 4\ncopies: 2\ntasks: [{wind: 0.0}, {wind: 0.4}]\n"
    said = played(bundle, tmp_path, text, gif=True)
    assert said["tasks"] == 2 and said["first_return"] < 0 and "first_episode" not in said
    returns, steps = (pd.read_csv(tmp_path / "out" / name) for name in ("returns.csv", "steps.csv"))
    assert len(returns) == 2 * 2 * 4 and returns["normalised"].isna().all()
    lengths = steps.groupby(["task", "copy", "episode"])["step"].agg(["count", "max"])
    assert (lengths["count"] == lengths["max"] + 1).all()
    assert lengths.loc[0, "count"].max() == 12 and (lengths.loc[1, "count"] < 6).all()
    summed = steps.groupby(["task", "copy", "episode"])["reward"].sum().to_numpy()
    assert returns["return"].to_numpy() == pytest.approx(summed, abs=1e-4)
    first = steps[steps["step"] == 0].groupby(["task", "copy"])["obs_0"].nunique()
    assert (first == 4).all()  # each episode begins anew
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "returns.csv", "steps.csv", "paths.png", "rollout.gif",
    }  # fmt: skip


def test_a_wrapped_environment_and_one_that_ends_badly(bundle: Bundle, tmp_path: Path) -> None:
    for env in ("Wind", "Wrapped"):
        (tmp_path / env).mkdir()
        text = f"env: own_wind:own/{env}-v0\nepisodes: 2\ntasks: [{{late: true}}]\n"
        said = played(bundle, tmp_path / env, text, gif=True)
        assert said["tasks"] == 1 and "failed" not in said
        assert any("its pictures differ in size" in note for note in said["notes"])
    one, two = (pd.read_csv(tmp_path / env / "out" / "returns.csv") for env in ("Wind", "Wrapped"))
    assert one.equals(two)


def test_returns_are_normalised_where_the_file_says_how(bundle: Bundle, tmp_path: Path) -> None:
    text = "env: own_wind:own/Wind-v0\nrandom: -10\noptimum: 0\nepisodes: 2\ntasks: [{}]\n"
    said = played(bundle, tmp_path, text)
    returns = pd.read_csv(tmp_path / "out" / "returns.csv")
    assert returns["normalised"].to_numpy() == pytest.approx(returns["return"].to_numpy() / 10 + 1, abs=1e-5)
    assert said["first_episode"] == pytest.approx(returns["normalised"][0], abs=1e-4)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("raise_at: 3", "task 1: episode 2, step 3: RuntimeError: the motor stopped"),
        ("nan_at: 5", "task 1: episode 1, step 5: ValueError: observation[1] is nan; finite numbers wanted"),
        (
            "wide: true",
            "actions [2] float32 from -1 to 1; observations [2] float64, actions [1] float32 from -1 to 1 as in",
        ),
        (
            "old: true",
            "step gives 4 values, the interface before gymnasium 0.26; observation, reward, terminated,",
        ),
        (
            "old: reset",
            "reset gives no (observation, info), the interface before gymnasium 0.26; return both",
        ),
        ("odd: exit", "task 1: episode 1, step 4: SystemExit: 3"),
        (
            "odd: reward",
            "task 1: episode 1, step 4: ValueError: reward is 1e+39; a number of at most 1e+18 wanted",
        ),
        ("nan_at: 1", "its observation after a step is [0."),
        (
            "low: 0",
            "actions [1] float32 from 0 to 1; observations [2] float64, actions [1] float32 from -1 to 1",
        ),
        ("speed: 1", "with speed=1: TypeError: "),
        ("reset_at: 2", "task 1: episode 2, step 0: RuntimeError: no wind"),
        *(
            (
                f"{key}: 50",
                f"tasks[1]: {key} is gymnasium.make's own; arguments of own_wind:own/Wind-v0 wanted",
            )
            for key in ("max_episode_steps", "render_mode", "disable_env_checker", "id")
        ),
        (
            "wind: 0.0",
            "tasks[1]: wind 0.0: is there already; each task once, and `copies` for more; correct it",
        ),
    ],
)
def test_what_breaks_costs_its_task_alone(bundle: Bundle, tmp_path: Path, broken: str, said: str) -> None:
    text = f"env: own_wind:own/Wind-v0\nepisodes: 3\ntasks:\n  - wind: 0.0\n  - {{{broken}}}\n  - wind: 0.1\n"
    result = played(bundle, tmp_path, text)
    assert result["failed_count"] == 1 and said in result["failed"][0] and "\n" not in result["failed"][0]
    assert result["failed"][0].startswith(str(tmp_path / "t.yaml"))
    returns = pd.read_csv(tmp_path / "out" / "returns.csv")
    assert returns["task"].tolist() == [0, 0, 0, 2, 2, 2] and returns["return"].notna().all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "env: own_wind:own/Wind-v0\ntasks: [{raise_at: 1}]",
            "task 0: episode 2, step 1: RuntimeError: the motor",
        ),
        ("env: own/Gale-v3\ntasks: [{}]", "env: environment own/Gale-v3: "),
        (
            "env: no_such_module:own/Wind-v0\ntasks: [{}]",
            "ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "env: own_wind:own/Endless-v0\ntasks: [{}]",
            "no time limit; `horizon:`, the steps of an episode at most",
        ),
        (
            "env: own_wind:own/Wind-v0\ntasks: [3]",
            "tasks[0]: task 3; keyword arguments of the environment, or {}",
        ),
        (
            "env: own_wind:own/Wind-v0\nrandom: 1\noptimum: 0\ntasks: [{}]",
            "random 1, optimum 0; the optimum above",
        ),
        ("env: own_wind:own/Wind-v0\nrandom: low\ntasks: [{}]", "random: found low; a number"),
        (
            "env: reacher\nrandom: 1\ntasks: [{index: 0}]",
            "random of reacher: known already; for environments of",
        ),
        (
            "env: CartPole-v1\ntasks: [{}]",
            "CartPole-v1 has 4 reals and 2 actions; the model knows 2 reals and 1 real",
        ),
        (
            "env: own_wind:own/Wind-v0\ntasks: [{wide: true}]",
            "2 reals and 2 real actions up to 1; the model knows",
        ),
        (
            "env: own_wind:own/Wind-v0\ntasks: [{low: 0}]",
            "action space: from [0.0] to [1.0]; the same limit up and down for all numbers wanted; rescale them",
        ),
    ],
)
def test_files_that_cannot_be_played_fail_in_a_line(
    bundle: Bundle, tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(ItemError) as caught:
        played(bundle, tmp_path, text + "\nepisodes: 3\n")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_observation_is_not_cut_to_a_whole_number() -> None:
    found = parse("env: own_wind:own/Halves-v0\ntasks: [{}, {half: true}]\n", "t", "darkroom")
    batch = found.tasks[0].family.batch(found.tasks, 1)
    batch.reset()
    for _ in range(3):
        batch.step(np.zeros((2, 1), int))
    assert list(batch.broken) == [1]
    assert str(batch.broken[1]) == (
        "episode 1, step 2: ValueError: observation [1.5]; whole numbers wanted, as its space says"
    )


@pytest.mark.parametrize(("breaks", "episodes"), [("nan_at: 6", 1), ("reset_at: 2", 1), ("reset_at: 3", 2)])
def test_an_episode_that_no_one_asked_for_costs_nothing(
    bundle: Bundle, tmp_path: Path, breaks: str, episodes: int
) -> None:
    """The wind's copies have had theirs, at different times, long before the task beside them has."""
    found = []
    for more in ("", breaks):
        folder = tmp_path / more.partition(":")[0] / "play"
        folder.mkdir(parents=True)
        rows = f"[{{wind: 0.4, {more}}}, {{}}]"
        text = f"env: own_wind:own/Wind-v0\nepisodes: {episodes}\ncopies: 3\ntasks: {rows}\n"
        assert "failed" not in played(bundle, folder, text)
        tables = (pd.read_csv(folder / "out" / name) for name in ("returns.csv", "steps.csv"))
        found.append([table[["task", "copy", "episode", *list(table)[-2:]]] for table in tables])
    for before, after in zip(*found):
        pd.testing.assert_frame_equal(before, after)
    lengths = found[1][1].groupby(["task", "copy", "episode"]).size().to_numpy().reshape(2, 3, episodes)
    assert (lengths[0] < 6).all() and (lengths[1] > 8).all()


def test_steps_have_the_actions_that_the_environment_got() -> None:
    import own_wind  # type: ignore[import-not-found]

    found = parse("env: own_wind:own/Halves-v0\ntasks: [{start: 3}, {start: 2}]\n", "t", "darkroom")
    (said,) = found.faults
    assert (
        "actions of 2 kinds from 2; observations [1] int64 from 0 to 9, actions of 2 kinds from 3 as"
        in str(said)
    )
    network = build(ModelConfig(dim=16, depth=1, heads=2, context=30), Spaces(cells=(10,), actions=2))
    own_wind.Halves.got.clear()
    steps = steps_table(play(network, found.tasks, 2, 1, 0, PlayConfig()))
    assert steps["action"].tolist() == own_wind.Halves.got and set(own_wind.Halves.got) == {3, 4}


def test_a_parameter_never_takes_a_column_s_name() -> None:
    found = parse("env: own_wind:own/Halves-v0\ntasks: [{start: 3}]\n", "t", "darkroom").tasks[0]
    odd = replace(found, params={"task": 3, "copy": [1, 2], "index": 4, "wind": None})
    assert told(odd, ("copy",)) == {"task": 0, "task_": 3, "copy_": "1 2", "index": 4, "wind": None}


def test_a_limit_of_ones_own(bundle: Bundle, tmp_path: Path) -> None:
    played(bundle, tmp_path, "env: own_wind:own/Endless-v0\nhorizon: 7\nepisodes: 2\ntasks: [{}]\n")
    steps = pd.read_csv(tmp_path / "out" / "steps.csv")
    assert steps.groupby("episode")["step"].max().tolist() == [6, 6]


def test_a_request_makes_no_environment_of_a_users_own(bundle: Bundle) -> None:
    for env in ("own_wind:own/Wind-v0", "CartPole-v1"):
        with pytest.raises(ItemError, match="unknown; one of darkroom"):
            IcrlPredictor(bundle, {}).predict_record({"tasks": f"env: {env}\ntasks: [{{}}]\n"})


def test_environments_that_end_the_program_cost_their_task_alone(bundle: Bundle, tmp_path: Path) -> None:
    """In the making, in the first step, and when they are closed."""
    rows = "{late: true}, {odd: unlicensed}, {odd: at once}"
    said = played(bundle, tmp_path, f"env: own_wind:own/Wind-v0\ntasks: [{rows}]\nepisodes: 2\n")
    text = said["failed"]
    assert (
        said["tasks"] == 1
        and len(text) == 2
        and "SystemExit: no licence" in text[0]
        and "SystemExit: 0 in a first step" in text[1]
    )


def test_an_argument_called_index_is_told_wherever_it_stands() -> None:
    """And no argument takes another's place in a table."""
    room = parse("env: own_wind:own/Wind-v0\ntasks: [{}]\n", "t", "reacher").tasks[0].family
    task = GymTask(room, 5, {"index": 5, "return_": 3, "return": 4, "task": 1})
    assert told(task, ("return",)) == {"task": 5, "index": 5, "return_": 3, "return__": 4, "task_": 1}


def test_evaluation_wants_to_know_what_a_return_is_worth(bundle: Bundle, tmp_path: Path) -> None:
    small = {"evaluate": {"episodes": 2, "copies": 1, "seeds": 2}, "data": {"path": str(tmp_path / "t.yaml")}}
    config = IcrlConfig.model_validate(merge(bundle.config(IcrlConfig).model_dump(mode="json"), small))
    (tmp_path / "t.yaml").write_text("env: own_wind:own/Wind-v0\ntasks: [{wind: 0.1}]\n")
    with pytest.raises(
        DataInvalid, match="returns that no one can normalise; `random` and `optimum`; add them"
    ):
        evaluate(bundle, config, tmp_path / "a")
    (tmp_path / "t.yaml").write_text(
        "env: own_wind:own/Wind-v0\nrandom: -10\noptimum: 0\ntasks: [{wind: 0.1}]\n"
    )
    found = evaluate(bundle, config, tmp_path / "b")
    assert found.table[0]["wind"] == 0.1 and found.table[0]["reference"] == 0.0
    (tmp_path / "t.yaml").write_text("env: own_wind:own/Wind-v0\ntasks: [{wind: 0.1}, {raise_at: 2}]\n")
    with pytest.raises(DataInvalid, match="task 1: episode 2, step 2: RuntimeError: the motor stopped"):
        evaluate(bundle, config, tmp_path / "c")
    (tmp_path / "t.yaml").write_text("episodes: 1\nenv: own_wind:own/Wind-v0\ntasks: [{wind: 0.1}]\n")
    with pytest.raises(DataInvalid, match=r"t\.yaml:episodes: found 1; 2 or more, to see it learn; raise it"):
        evaluate(bundle, config, tmp_path / "d")
    assert check(config) == []  # of a trained model's configuration, no word that a file is not to train on


def test_a_broken_task_does_not_change_the_context_of_others() -> None:
    """Every copy's context is its own: greedy play beside a task that breaks equals greedy play alone."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = build(ModelConfig(dim=16, depth=1, heads=2, context=30), Spaces(numbers=2, action_numbers=1)).eval()
    beside = parse("env: own_wind:own/Wind-v0\ntasks: [{wind: 0.2}, {raise_at: 4}]", "t", "reacher").tasks
    alone = parse("env: own_wind:own/Wind-v0\ntasks: [{wind: 0.2}]", "t", "reacher").tasks
    batches = [each[0].family.batch(each, 1, 0) for each in (beside, alone)]
    runs = [rollout(net, batch, 3, greedy=True) for batch in batches]
    count = runs[1].obs.shape[1]
    assert np.allclose(runs[0].obs[0, :count], runs[1].obs[0], atol=1e-5)
    assert runs[0].returns[0] == pytest.approx(runs[1].returns[0], abs=1e-4)
    assert (
        rollout(net, batches[1], 3, greedy=True).returns < 0
    ).all()  # a second time from its first episode


def test_the_shipped_model_learns_in_a_room_that_a_user_brings(tmp_path: Path) -> None:
    """Darkroom as if it were a user's: gymnasium makes it, one copy at a time, and nothing is known of its returns."""
    assert PIPELINE.builtin is not None
    shipped = Bundle.open(PIPELINE.builtin)
    env = "robotics.icrl.envs.gym_grid:icrl/Darkroom-v0"
    how = "horizon: 20\nrandom: 0\noptimum: 20\nepisodes: 15\ncopies: 3"
    text = f"env: {env}\n{how}\ntasks: [{{goal: [4, 2]}}, {{goal: [5, 4]}}]\n"
    said = played(shipped, tmp_path, text)
    assert said["first_episode"] < 0.5 and said["last_episode"] > 0.85
    assert said["notes"] == [f"trained in darkroom, played in {env}"]
