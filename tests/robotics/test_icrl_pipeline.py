"""The rooms of `icrl` together: histories in, windows out; files of tasks in, episodes out; the shipped model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

pytest.importorskip("h5py", reason="the robotics extra is not installed")

from robotics.icrl.collect.run import collect
from robotics.icrl.config import IcrlConfig
from robotics.icrl.data import IcrlData, check, train_tasks, trained_on
from robotics.icrl.data import check as check_data
from robotics.icrl.envs.families import tasks
from robotics.icrl.evaluate import evaluate, interval, metrics_of
from robotics.icrl.models.batch import Arrays
from robotics.icrl.pipeline import PIPELINE
from robotics.icrl.play import Played, first_good, play
from robotics.icrl.predict import IcrlPredictor, returns_table, steps_table
from robotics.icrl.prepare import _wait_for
from robotics.icrl.sample import write_sample
from robotics.icrl.store import parts_folder
from robotics.icrl.task import IcrlTask
from robotics.icrl.tasks_file import MAX_STEPS, Amount, parse, read
from shared.bundle import Bundle
from shared.config import merge
from shared.errors import DataInvalid, EnvironmentUnfit, ItemError, UsageError

SMALL: dict[str, Any] = {
    "data": {"streams": 3, "episodes": 3, "tasks": 5},
    "model": {"dim": 16, "depth": 1, "heads": 2, "inner": 16, "context": 30},
    "train": {"steps": 2, "batch_size": 4, "play_episodes": 2, "play_copies": 1},
}


def small(**over: Any) -> IcrlConfig:
    return PIPELINE.complete(IcrlConfig.model_validate(merge(SMALL, over)))


@pytest.mark.parametrize(
    "model",
    [{"method": method} for method in ("ad", "dpt", "dicp", "dt")]
    + [{"method": method, "legacy": True} for method in ("ad", "dpt", "dicp")],
    ids=str,
)
def test_every_method_learns_from_what_was_collected_and_plays(tmp_path: Path, model: dict[str, Any]) -> None:
    config = small(model=model, predict={"beam": {"width": 4, "depth": 2}})
    data = IcrlData(config)
    data.setup("fit")
    facts = data.facts()
    data.collect(tmp_path)
    task = IcrlTask(config)
    task.learn_from(data)
    batch = next(iter(data.train_dataloader()))
    loss = task.training_step(batch, 0)
    loss.backward()
    assert np.isfinite(float(loss.detach())) and batch.reward.shape == (4, 30)
    played = play(task.network, task.play_on, 2, 2, 0, config.predict)
    assert played.returns.shape == (1, 2, 2)
    assert played.episode("rewards", 0, 1, 1).sum() == played.returns[0, 1, 1]
    assert facts.items == 15


def test_windows_are_a_function_of_the_draw_and_held_out_goals_stay_out(tmp_path: Path) -> None:
    config = small()
    one, two = IcrlData(config), IcrlData(config)
    one.collect(tmp_path)
    two.open_collected(tmp_path)
    first, again = (list(data.train_dataloader()) for data in (one, two))
    assert len(first) == 2
    assert all((a.obs == b.obs).all() and (a.action == b.action).all() for a, b in zip(first, again))
    held = {task.index for task in tasks("darkroom", "test")}
    assert not held & {index for part in one.parts.values() for index in part}
    assert one.facts().fingerprint == two.facts().fingerprint != IcrlData(small(seed=1)).facts().fingerprint


def test_filters_take_the_best_more_often_and_leave_the_worst(tmp_path: Path) -> None:
    noisy = {"streams": 10, "random_share": 0.3}
    plain = IcrlData(small(data=noisy))
    plain.collect(tmp_path)
    for mode in ("stochastic", "reweight"):
        data = IcrlData(small(data=noisy, filter={"mode": mode}))
        data.open_collected(tmp_path)
        assert len(data.scores) == len(data.parts["train"]) == 4
        found = data.train_arrays
        assert len(found.reward) == len(plain.train_arrays.reward) == 40
        if mode == "reweight":
            assert float(found.weight.mean()) == pytest.approx(1) and float(found.weight.min()) == 0
        else:
            assert float(found.reward.sum()) > float(plain.train_arrays.reward.sum())


def test_filters_take_what_each_task_s_scores_say(tmp_path: Path) -> None:
    def used(mode: str) -> tuple[IcrlData, Arrays]:
        data = IcrlData(small(data={"streams": 6, "random_share": 0.3}, filter={"mode": mode}))
        data.open_collected(tmp_path)
        return data, data.train_arrays

    IcrlData(small(data={"streams": 6, "random_share": 0.3})).collect(tmp_path)
    data, found = used("stochastic")
    assert data.store is not None and [int(name) for name in data.scores] == data.parts["train"]
    kept = [data.store.read(int(name)).keep(each.taken) for name, each in data.scores.items()]
    assert np.array_equal(found.obs, np.concatenate([each.obs for each in kept]))
    assert np.array_equal(found.action, np.concatenate([each.actions for each in kept]))
    data, found = used("reweight")
    weight = np.concatenate([each.weight for each in data.scores.values()])
    assert found.weight.numpy() == pytest.approx(weight) and len(set(weight)) > 4


def test_a_share_of_the_histories_is_their_first_steps(tmp_path: Path) -> None:
    whole = IcrlData(small(data={"episodes": 4}))
    whole.collect(tmp_path)
    half = IcrlData(small(data={"episodes": 4, "first": 0.5}, filter={"mode": "stochastic"}))
    half.open_collected(tmp_path)
    for part in ("train", "val"):
        long, short = whole.histories(part), half.histories(part)
        assert (long.steps, short.steps) == (80, 40) and np.array_equal(short.obs, long.obs[:, :40])
    assert {len(each) for scores in half.scores.values() for each in scores.returns} == {2}


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0.0, 0.1), (0.5, 0.4, 0.6), (1.0, 1.0, 1.0)])
def test_the_asked_share_of_windows_begins_with_the_history(
    tmp_path: Path, share: float, least: float, most: float
) -> None:
    data = IcrlData(small(train={"from_start": share, "steps": 4, "batch_size": 64}))
    data.collect(tmp_path)
    nothing_before = [np.asarray(batch.before_action[:, 0] == 5) for batch in data.train_dataloader()]
    assert least <= np.concatenate(nothing_before).mean() <= most


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_decay_and_biases_only_where_published(legacy: bool) -> None:
    task = IcrlTask(small(model={"legacy": legacy}))
    task.trainer = SimpleNamespace(estimated_stepping_batches=9)  # type: ignore[assignment]
    groups = task.configure_optimizers()["optimizer"].param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {group["betas"] for group in groups} == {(0.9, 0.99)}
    assert len(decay) == len(list(task.parameters()))
    for name, parameter in task.named_parameters():
        assert decay[id(parameter)] == (0.01 if legacy or parameter.ndim > 1 else 0), name


def test_a_store_of_ones_own_is_checked_and_used(tmp_path: Path) -> None:
    held, train = tasks("darkroom", "test")[0].index, [task.index for task in train_tasks(small())[:3]]
    path = tmp_path / "own.h5"
    collect("darkroom", [held, *train], 2, 60, 0, path, "q-learning")
    config = small(data={"path": str(path)})
    said = check(IcrlConfig.model_validate({"data": {"path": path}}))
    assert {fault.severity for fault in said} == {"warning"}
    assert str(said[-1]).endswith(
        f":tasks: {held} of darkroom's test part; training tasks; left out of training"
    )
    data = IcrlData(config)
    data.setup("fit")
    assert sorted(index for part in data.parts.values() for index in part) == sorted(train)
    assert data.facts().items == 6

    later = [task.index for task in tasks("darkroom", "train")[20:23]]  # none of the split's first two
    collect("darkroom", later, 2, 60, 0, tmp_path / "later.h5", "q-learning")
    data = IcrlData(small(data={"path": str(tmp_path / "later.h5"), "tasks": 2}))
    data.setup("fit")
    assert data.parts == {"train": later[:1], "val": later[1:2]}

    lonely = tmp_path / "lonely.h5"
    collect("darkroom", [held], 2, 60, 0, lonely, "q-learning")
    assert "training tasks: 0" in str(check(IcrlConfig.model_validate({"data": {"path": lonely}}))[-2])
    (tmp_path / "tasks.yaml").write_text("tasks:\n  - goal: [1, 2]\n")
    with pytest.raises(DataInvalid, match="a file of tasks; a store of histories"):
        IcrlData(small(data={"path": str(tmp_path / "tasks.yaml")})).setup("fit")


def test_histories_too_short_for_the_filter_are_found_before_training(tmp_path: Path) -> None:
    train = [task.index for task in train_tasks(small())[:2]]
    collect("darkroom", train, 2, 80, 0, tmp_path / "s.h5", "random")

    def said(first: float, mode: str) -> list[str]:
        over = {"path": str(tmp_path / "s.h5"), "first": first}
        config = IcrlConfig.model_validate(merge(SMALL, {"data": over, "filter": {"mode": mode}}))
        return [str(fault) for fault in check(config) if fault.severity == "error"]

    assert said(0.5, "stochastic") == said(0.3, "none") == []
    (line,) = said(0.3, "reweight")
    some = ", ".join(map(str, sorted(train)))
    assert f":data.first: 0.3 leaves fewer than 2 episodes in histories of tasks {some}; 2 or more" in line


def test_files_of_tasks_are_read_alike_in_three_formats(tmp_path: Path) -> None:
    texts = {
        ".yaml": "env: darkroom\nepisodes: 5\ntasks:\n  - goal: [4, 2]\n  - index: 17\n",
        ".json": json.dumps({"env": "darkroom", "episodes": 5, "tasks": [{"goal": [4, 2]}, {"index": 17}]}),
        ".csv": "env,episodes,goal,index\ndarkroom,5,4 2,\ndarkroom,5,,17\n",
    }
    for suffix, text in texts.items():
        path = tmp_path / f"tasks{suffix}"
        path.write_text(text)
        found = read(path, "darkroom-large")
        assert [task.places for task in found.tasks] == [((4, 2),), ((1, 8),)]
        assert (found.episodes, found.copies, found.seed, found.faults) == (5, None, None, [])
    spaced = 'env, goal\ndarkroom, 4 2\ndarkroom,"4,2"\ndarkroom,"[3, 2]"\n'
    found = parse(spaced, "t.csv", "darkroom", ".csv")
    assert [task.places for task in found.tasks] == [((4, 2),), ((3, 2),)]
    assert "goal [4, 2]: is there already" in str(found.faults[0])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("goal: [4, 20]", "not in the room"),
        ("goal: [4.9, 2]", "goal [4.9, 2]: whole numbers wanted"),
        ("goal: '42'", "goal 42: whole numbers wanted"),
        ("index: 17.8", "index 17.8: whole numbers wanted"),
        ("index: [1, 2]", "one whole number wanted"),
        ("permutation: [0, 1, 2, 3, 4]", "permutation; goal wanted"),
    ],
)
def test_a_task_that_cannot_be_played_is_named_and_the_others_are_played(row: str, said: str) -> None:
    part = parse(f"tasks:\n  - {row}\n  - goal: [4, 2]\n", "t", "darkroom")
    assert len(part.tasks) == 1 and said in str(part.faults[0]) and part.faults[0].field == "tasks[0]"


@pytest.mark.parametrize(
    ("text", "suffix", "said"),
    [
        ("not data", ".yaml", "a str; a mapping with `tasks`"),
        ("env: darkroom\nepiso", ".yaml", "t.yaml"),
        ("{", ".json", "not JSON"),
        ("env: lightroom\ntasks: [{index: 1}]", ".yaml", "environment lightroom: unknown; one of darkroom"),
        ("tasks: [{index: 81}]", ".yaml", "task 81 of darkroom: unknown"),
        ("tasks: [{index: 1}]\nepisodes: 0", ".yaml", "found 0; a whole number from 1"),
        (
            "tasks: [{index: 1}]\nepisodes: 99999999",
            ".yaml",
            "t.yaml: 99,999,999 episodes × 20 steps are 1,999,999,980 steps; at most 50,000,000; ask for",
        ),
        ("tasks: [{index: 1}]\nepisode: 3", ".yaml", "unknown key episode"),
        ("tasks: []", ".yaml", "no tasks"),
        (
            "env: [darkroom]\ntasks: [{index: 1}]",
            ".yaml",
            "t.yaml:env: ['darkroom']; one environment's name; a file for each",
        ),
        ("goal\n4 2,9\n", ".csv", "another width"),
        ("goal,goal\n4 2,5 6\n", ".csv", "t.csv:goal: column goal twice"),
        (
            '{"tasks": [{"goal": [4, 2], "goal": [5, 6]}]}',
            ".json",
            "t.json: key goal twice; each once wanted",
        ),
    ],
)
def test_bad_files_of_tasks_are_said_in_a_line(text: str, suffix: str, said: str) -> None:
    with pytest.raises(ItemError) as caught:
        parse(text, f"t{suffix}", "darkroom", suffix)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_configurations_that_cannot_work_are_refused() -> None:
    for sets, said in (
        (["data.env=dark-key-to-door"], "explorer in dark-key-to-door"),
        (["predict.plan=always"], "a world model wanted"),
    ):
        with pytest.raises(UsageError, match=said):
            PIPELINE.resolve("default", sets=sets)


def test_a_context_is_no_longer_than_histories_are() -> None:
    sets = ["data.episodes=5", "data.first=0.5", "model.context=90", "model.keep=80"]
    found = PIPELINE.complete(PIPELINE.resolve("default", sets=sets)).model
    assert (found.context, found.kept) == (50, 25)
    same = PIPELINE.complete(PIPELINE.resolve("default", sets=[*sets, "data.first=1"])).model
    assert (same.context, same.kept) == (90, 80)


def test_evaluation_says_which_tasks_were_trained_on() -> None:
    config = PIPELINE.resolve("default")
    both = [*tasks("darkroom", "test")[:2], *tasks("darkroom", "train")[:2]]
    numbers = ", ".join(str(task.index) for task in both[2:])
    assert trained_on(config, both)[0].startswith(f"2 of the 4 tasks are of the training part ({numbers})")
    assert trained_on(config, both[:2]) == []
    assert trained_on(config, tasks("darkroom-large", "train")[:2]) == []


def test_other_processes_wait_for_the_collection(tmp_path: Path) -> None:
    store = tmp_path / "histories.h5"
    with pytest.raises(EnvironmentUnfit, match="process 0 collects it"):
        _wait_for(store, seconds=0)
    store.touch()
    parts_folder(store).mkdir()
    with pytest.raises(EnvironmentUnfit, match="not complete"):
        _wait_for(store, seconds=0)
    parts_folder(store).rmdir()
    _wait_for(store, seconds=0)


def test_metrics_by_hand() -> None:
    curve = np.array([0.0, 0.5, 0.9, 1.0])
    found = metrics_of(np.broadcast_to(curve, (2, 3, 1, 4)))
    assert found["normalised_return"] == pytest.approx(0.6) and found["first_episode"] == 0
    assert found["episode_above_90"] == 3 and first_good(curve * 0.5) is None
    assert "episode_above_90" not in metrics_of(np.zeros((1, 1, 1, 4)))


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([1.0, 2.0, 3.0], 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5),  # t of 2 degrees of freedom; sd 1
        ([0.0, 0.0, 1.0, 2.0, 2.0], 1 - 2.776 * 0.2**0.5, 1 + 2.776 * 0.2**0.5),  # t of 4; sd 1
        ([0.7], 0.7, 0.7),
    ],
)
def test_intervals_by_hand(values: list[float], low: float, high: float) -> None:
    found = interval(np.stack([values, np.zeros(len(values))], 1))
    assert found[:, 0] == pytest.approx([low, high], abs=1e-3) and found[:, 1].tolist() == [0, 0]


def test_every_round_of_an_evaluation_is_played_with_a_seed_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[Played] = []
    monkeypatch.setattr(
        "robotics.icrl.evaluate.play", lambda *args: (rounds.append(play(*args)), rounds[-1])[1]
    )
    assert PIPELINE.builtin is not None
    bundle = Bundle.open(PIPELINE.builtin)
    few = {"evaluate": {"episodes": 2, "copies": 1, "seeds": 3, "tasks": 2}}
    found = evaluate(bundle, bundle.config(IcrlConfig, few), tmp_path)
    actions = [one.rollout.actions.tobytes() for one in rounds]
    assert len(set(actions)) == len(rounds) == 3
    returns = np.stack([one.normalised for one in rounds]).mean((0, 1, 2))
    assert [row["normalised_return"] for row in found.curve] == pytest.approx(returns.tolist())


def test_a_file_of_tasks_says_how_they_are_played(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("episodes: 3\ncopies: 2\nseed: 7\ntasks:\n  - goal: [0, 0]\n")
    assert PIPELINE.builtin is not None
    bundle = Bundle.open(PIPELINE.builtin)
    over = {"data": {"path": str(path)}, "evaluate": {"seeds": 1}}
    config = bundle.config(IcrlConfig, over)
    assert check_data(config) == []  # to be scored
    (warning,) = check_data(IcrlConfig.model_validate({"data": {"path": path}}))
    assert "a store to train on" in str(warning) and warning.severity == "warning"
    found = evaluate(bundle, config, tmp_path)
    assert len(found.curve) == 3
    said = "\n".join(found.notes)
    assert (
        "played 2 times with each of 1 seeds, 3 episodes" in said
        and "1 of the 1 tasks are of the training" in said
    )
    predictor = IcrlPredictor(bundle, {})
    result: Any = predictor.predict(predictor.discover([path])[0])
    assert result.played.returns.shape == (1, 2, 3) and result.notes[0].startswith(
        "1 of the 1 tasks are of the"
    )
    assert result.played.normalised.mean((0, 1)).tolist() == pytest.approx(
        [row["normalised_return"] for row in found.curve]
    )


ALL_GOALS = "tasks:\n" + "".join(f"  - index: {index}\n" for index in range(81))


@pytest.mark.parametrize(
    ("said", "played", "total"),
    [
        ("", {"episodes": 30_000, "copies": 1}, 48_600_000),
        ("", {"episodes": 30_000, "copies": 2}, 97_200_000),
        ("copies: 1\n", {"episodes": 30_000, "copies": 2}, 48_600_000),
        ("episodes: 40_000\n", {"episodes": 2, "copies": 1}, 64_800_000),
        ("", {"episodes": 30_000, "copies": 10, "tasks": 4, "seeds": 2}, 48_000_000),
        ("", {"episodes": 30_000, "copies": 10, "tasks": 4, "seeds": 3}, 72_000_000),
    ],
)
def test_what_is_played_is_counted(said: str, played: dict[str, int], total: int) -> None:
    if total <= MAX_STEPS:
        assert len(parse(said + ALL_GOALS, "t", "darkroom", unsaid=Amount(**played)).tasks) == 81
        return
    with pytest.raises(ItemError, match=f" are {total:,} steps; at most 50,000,000; ask for fewer"):
        parse(said + ALL_GOALS, "t", "darkroom", unsaid=Amount(**played))


def test_no_one_plays_more_than_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file says nothing, what the settings say counts: of `predict`, of a request and of `evaluate`."""
    for module in ("predict", "evaluate"):
        monkeypatch.setattr(f"robotics.icrl.{module}.play", None)
    assert PIPELINE.builtin is not None
    bundle = Bundle.open(PIPELINE.builtin)
    (tmp_path / "t.yaml").write_text(ALL_GOALS)
    predictor = IcrlPredictor(bundle, {"episodes": 10_000_000})
    with pytest.raises(
        ItemError, match=r"t\.yaml: 81 tasks × 10,000,000 episodes × 20 steps are 16,200,000,000"
    ):
        predictor.predict(predictor.discover([tmp_path / "t.yaml"])[0])
    with pytest.raises(
        ItemError, match="81 tasks × 120 copies × 20 episodes × 20 steps are 3,888,000 steps; at "
    ):
        IcrlPredictor(bundle, {}).predict_record({"tasks": ALL_GOALS + "copies: 120\n"})
    over = {
        "data": {"path": str(tmp_path / "t.yaml")},
        "evaluate": {"episodes": 4000, "copies": 20, "tasks": 16, "seeds": 3},
    }
    with pytest.raises(
        DataInvalid, match="16 tasks × 20 copies × 3 seeds × 4,000 episodes × 20 steps are 76,8"
    ):
        evaluate(bundle, bundle.config(IcrlConfig, over), tmp_path)


@pytest.fixture(scope="module")
def shipped() -> IcrlPredictor:
    assert PIPELINE.builtin is not None
    return IcrlPredictor(Bundle.open(PIPELINE.builtin), {})


@pytest.mark.parametrize("name", sorted(PIPELINE.shipped))
def test_the_shipped_models_learn_new_goals_in_their_context(name: str, tmp_path: Path) -> None:
    shipped = IcrlPredictor(Bundle.open(PIPELINE.shipped[name]), {})
    path = tmp_path / "held.yaml"
    rows = "".join(f"  - index: {task.index}\n" for task in tasks("darkroom", "test"))
    copies = 2 if name == "builtin" else 1  # plans take their time
    path.write_text(f"episodes: 20\ncopies: {copies}\nseed: 0\ntasks:\n{rows}")
    (item,) = shipped.discover([path])
    result: Any = shipped.predict(item)
    curve = result.played.normalised.mean((0, 1))
    assert curve[0] < 0.3 and curve[-3:].mean() > 0.95
    if name != "builtin":  # its policy imitates errors, its plans leave them out
        by_policy = IcrlPredictor(Bundle.open(PIPELINE.shipped[name]), {"plan": "never"}).predict(item)
        assert by_policy.played.normalised[..., -3:].mean() < curve[-3:].mean() - 0.1

    (tmp_path / "out").mkdir()
    summary = shipped.write(result, tmp_path / "out")
    assert summary["tasks"] == 8 and summary["episodes"] == 20
    returns, steps = (pd.read_csv(tmp_path / "out" / name) for name in ("returns.csv", "steps.csv"))
    assert len(returns) == 8 * copies * 20 and len(steps) == 8 * copies * 20 * 20
    summed = steps.groupby(["task", "copy", "episode"])["reward"].sum()
    assert (returns.set_index(["task", "copy", "episode"])["return"].sort_index() == summed).all()


def test_other_rooms_and_files_are_refused_one_by_one(shipped: IcrlPredictor, tmp_path: Path) -> None:
    write_sample(tmp_path, 1, 0)
    (tmp_path / "large.yaml").write_text("env: darkroom-large\ntasks: [{index: 3}]\n")
    (tmp_path / "notes.txt").write_text("left alone")
    items = shipped.discover([tmp_path, tmp_path / "notes.txt"])
    assert [item.id for item in items] == ["darkroom-00", "large", "notes"]
    with pytest.raises(ItemError, match="darkroom-large has cells"):
        shipped.predict(items[1])
    with pytest.raises(ItemError, match=r"a \.txt file"):
        shipped.predict(items[2])


def test_a_store_is_scored_history_by_history(shipped: IcrlPredictor, tmp_path: Path) -> None:
    collect("darkroom", [0, 44], 6, 200, 0, tmp_path / "h.h5", "q-learning", random_share=0.3)
    (item,) = shipped.discover([tmp_path / "h.h5"])
    (tmp_path / "out").mkdir()
    summary = shipped.write(shipped.predict(item), tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "histories.csv")
    assert len(table) == summary["histories"] == 12 and (tmp_path / "out" / "filter.png").is_file()
    assert (table.groupby("task")["multiplicity"].sum() == 6).all()


def test_a_store_is_scored_as_published_whatever_the_bundle_says(tmp_path: Path) -> None:
    assert PIPELINE.builtin is not None
    shutil.copytree(PIPELINE.builtin, tmp_path / "own")
    file = tmp_path / "own" / "config.yaml"
    told = yaml.safe_load(file.read_text())
    told["filter"], told["seed"] = {"mode": "reweight", "stability_weight": 7.0}, 3
    told["data"] |= {"first": 0.5}
    file.write_text(yaml.safe_dump(told))
    collect("darkroom", [0], 6, 200, 0, tmp_path / "h.h5", "q-learning")
    published = {"mode": "filter", "stability_weight": 1.0, "temperature": None, "seed": 0}
    for options, wanted in (
        ({}, published),
        ({"filter.stability_weight": 0.5}, published | {"stability_weight": 0.5}),
        ({"filter.mode": "reweight"}, published | {"mode": "reweight"}),
    ):
        predictor = IcrlPredictor(Bundle.open(tmp_path / "own"), options)
        found = predictor.predict(predictor.discover([tmp_path / "h.h5"])[0])
        assert predictor.write(found, tmp_path)["rule"] == wanted
        table = pd.read_csv(tmp_path / "histories.csv")
        assert (table["episodes"] == 10).all()
        unified = table["improvement"] + wanted["stability_weight"] * table["stability"]
        assert table["unified"].to_numpy() == pytest.approx(unified)


def test_serving_answers_as_the_tables_say(shipped: IcrlPredictor) -> None:
    answer = shipped.predict_record(shipped.example_record())
    assert set(answer) == set(shipped.record_outputs)
    assert answer["returns"].startswith("task,goal,copy,episode,return,normalised\n38,")
    result: Any = shipped._played(parse(shipped.example_record()["tasks"], "r", "darkroom"), "r")
    assert len(returns_table(result.played)) * 20 == len(steps_table(result.played))
