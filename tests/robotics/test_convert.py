"""Histories in other forms: a Minari dataset and back is the same store; datasets of others; the command's door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("h5py", reason="the robotics extra is not installed")
pytest.importorskip("minari", reason="the robotics extra is not installed")

import h5py
import minari

from robotics.icrl.collect.run import collect
from robotics.icrl.convert import convert, open_source
from robotics.icrl.envs.families import family
from robotics.icrl.pipeline import PIPELINE
from robotics.icrl.store import Histories, Meta, Store, Task
from robotics.icrl.store_check import check
from robotics.icrl.store_writer import StoreWriter
from shared.bundle import Bundle
from shared.errors import DataInvalid, EnvironmentUnfit, ItemError, UsageError
from shared.pipeline import Predictor
from tests.contract.conftest import call
from tests.robotics.test_store import dicp_file

BOX = {"kind": "box", "shape": [3], "dtype": "float32", "low": None, "high": None}
CELLS = {"kind": "box", "shape": [2], "dtype": "int32", "low": 0, "high": 8}
REALS = {"kind": "box", "shape": [2], "dtype": "float32", "low": [-1.0, -2.0], "high": [1.0, 2.0]}


@st.composite
def stores(draw: st.DrawFn) -> tuple[Meta, list[tuple[Task, Histories]]]:
    """Any episodes at all: ended or cut, of any length, the last one finished or not; reals or whole numbers."""
    real, best, steps = draw(st.booleans()), draw(st.booleans()), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    meta = Meta(
        "x/Line-v0",
        "some-ppo",
        3,
        12,
        BOX if real else CELLS,
        REALS if real else {"kind": "discrete", "n": 5},
    )
    found = []
    for index in draw(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True)):
        shape = (draw(st.integers(1, 3)), steps)
        ends = rng.random((2, *shape)) < 0.25
        over = ends.any(0)
        obs, final = (
            rng.normal(size=(*shape, 3)).astype(np.float32)
            if real
            else rng.integers(0, 9, (*shape, 2)).astype(np.uint8)
            for _ in range(2)
        )
        final[:, :-1][~over[:, :-1]] = 0
        acts = (
            rng.normal(size=(*shape, 2)).astype(np.float32)
            if real
            else rng.integers(0, 5, shape).astype(np.uint8)
        )
        block = Histories(
            obs=obs,
            actions=acts,
            rewards=rng.normal(size=shape).astype(np.float32),
            terminations=ends[0],
            truncations=ends[1],
            episode=(np.cumsum(over, 1) - over).astype(np.int32),
            final_obs=final,
            task=np.full(shape[0], index),
            history=np.sort(rng.permutation(50)[: shape[0]]),
            source=np.array(["ppo", "random", "x"])[rng.integers(0, 3, shape[0])],
            optimal_actions=acts if best else None,
        )
        top = draw(st.sampled_from([None, 0.1, 20.0]))
        found.append((Task(index, {"goal": [index, 0.1], "name": "é"}, None, top, -1 / 3), block))
    return meta, found


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stores())
def test_there_and_back_is_the_same_store(
    tmp_path_factory: pytest.TempPathFactory, store: tuple[Meta, list[tuple[Task, Histories]]]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    with StoreWriter(folder / "s.h5", store[0]) as writer:
        writer.add(store[1])
    there = convert(folder / "s.h5", "minari", folder)
    back = convert(folder / str(there["written"]), "store", folder)
    assert (folder / "histories.h5").read_bytes() == (folder / "s.h5").read_bytes()
    assert there["tasks"] == back["tasks"] == len(store[1])
    assert there["histories"] == sum(len(block) for _, block in store[1])


def test_minari_reads_what_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = collect("darkroom", [5, 17], 2, 50, 0, tmp_path / "s.h5", "q-learning")
    convert(store.path, "minari", tmp_path / "sets")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    assert list(minari.list_local_datasets()) == ["darkroom-q-learning-v0"]
    found = minari.load_dataset("darkroom-q-learning-v0")
    assert (
        found.total_episodes == 12 and found.total_steps == 200
    )  # two whole ones and a half of each history
    one, block = found[4], store.read(5)
    assert np.array_equal(one.observations[:-1], block.obs[1, 20:40])
    assert np.array_equal(one.observations[-1], block.final_obs[1, 39])
    assert np.array_equal(one.rewards, block.rewards[1, 20:40]) and one.truncations.tolist() == [
        False
    ] * 19 + [True]
    about = list(found.storage.get_episode_metadata([4, 8]))
    assert [(each["task"], each["history"], each["source"]) for each in about] == [
        (5, 1, "q-learning"),
        (17, 0, "q-learning"),
    ]
    env = found.recover_environment()
    assert env.reset(options={"task": int(about[1]["options"]["task"])})[1] == {"task": 17}


def others(folder: Path, monkeypatch: pytest.MonkeyPatch, **episode: Any) -> Path:
    """A dataset that somebody else made with Minari in Darkroom: two episodes of task 17."""
    import gymnasium as gym
    from minari.data_collector.episode_buffer import EpisodeBuffer

    from robotics.icrl import envs

    envs.register()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    env, buffers = gym.make("icrl/Darkroom-v0"), []
    for number in range(2):
        obs = [env.reset(options={"task": 17})[0]]
        rewards, actions = [], [(number + t) % 4 for t in range(20)]
        for action in actions:
            seen, reward, *_ = env.step(action)
            obs.append(seen)
            rewards.append(reward)
        cut = [False] * 19 + [True]
        buffers.append(
            EpisodeBuffer(
                observations=obs,
                actions=actions,
                rewards=rewards,
                terminations=[False] * 20,
                truncations=cut,
                **({"options": {"task": 17}} | episode),
            )
        )
    with pytest.warns(UserWarning, match="is set to None"):
        minari.create_dataset_from_buffers("mine-v0", buffers, env=env)
    return folder / "mine-v0"


def test_datasets_of_others_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = others(tmp_path, monkeypatch)
    convert(path, "store", tmp_path)
    store = Store(tmp_path / "histories.h5")
    assert store.tasks == [17] and store.task(17).params == family("darkroom").task(17).params
    block = store.read(17)
    assert (
        block.returns().shape == (1, 2) and block.obs.dtype == np.uint8 and block.optimal_actions is not None
    )
    assert all(fault.severity == "warning" for fault in check(store.path))


def test_datasets_that_say_too_little_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = others(tmp_path, monkeypatch, options=None)
    with pytest.raises(
        DataInvalid, match=r"mine-v0: episode 0 names no task; `task` in its metadata or its reset"
    ):
        open_source(path)
    about = json.loads((path / "data" / "metadata.json").read_text())
    for change, said in (
        ({"env_spec": None}, "environment None: unknown; one of darkroom"),
        ({"observation_space": None}, "unreadable"),
        ({"data_format": "arrow"}, "unreadable"),
        ({"total_episodes": 0}, "no episode; one or more"),
    ):
        with h5py.File(path / "data" / "main_data.hdf5", "a") as file:
            for name in file:
                file[name].attrs["task"] = 17
        (path / "data" / "metadata.json").write_text(json.dumps(about | change))
        with pytest.raises(DataInvalid, match=said) as caught:
            open_source(path)
        assert "\n" not in str(caught.value)
    (path / "data" / "metadata.json").write_text(
        json.dumps({k: v for k, v in about.items() if k != "action_space"})
    )
    with pytest.raises(DataInvalid, match=r"mine-v0:metadata.json: no action_space; Minari's metadata"):
        open_source(path)
    (path / "data" / "metadata.json").write_text("{")
    with pytest.raises(DataInvalid, match="unreadable"):
        open_source(path)
    with pytest.raises(DataInvalid, match=r"no metadata.json; a folder of a Minari dataset"):
        open_source(tmp_path)


def test_histories_of_different_lengths_are_refused(tmp_path: Path) -> None:
    store = collect("darkroom", [5], 2, 40, 0, tmp_path / "s.h5", "random")
    convert(store.path, "minari", tmp_path)
    with h5py.File(tmp_path / "darkroom-random-v0" / "data" / "main_data.hdf5", "a") as file:
        file["episode_3"].attrs["history"] = 0
    _, blocks = open_source(tmp_path / "darkroom-random-v0")
    with pytest.raises(DataInvalid, match="task 5: histories of 20 to 60 steps; one length"):
        list(blocks)


def predictor(form: str) -> Predictor:
    assert PIPELINE.builtin is not None
    return PIPELINE.predictor(Bundle.open(PIPELINE.builtin), {"convert": form})


def test_the_door_finds_files_and_datasets(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    own = collect("darkroom", [0, 40], 3, 60, 0, tmp_path / "in" / "own.h5", "noise-distillation")
    dicp_file(tmp_path / "in", own)
    convert(own.path, "minari", tmp_path / "in" / "sets")
    (tmp_path / "in" / "notes.txt").write_text("left alone")
    items = predictor("store").discover([tmp_path / "in", tmp_path / "in" / "notes.txt"])
    assert [item.id for item in items] == [
        "history_darkroom_PPO_alg-seed0",
        "own",
        "sets/darkroom-noise-distillation-v0",
        "notes",
    ]
    assert [path.name for path in items[2].sources] == ["main_data.hdf5", "metadata.json"]
    returns = []
    for number, item in enumerate(items[:3]):
        folder = tmp_path / str(number)
        folder.mkdir()
        door = predictor("store")
        summary = door.write(door.predict(item), folder)
        assert [path.name for path in folder.iterdir()] == ["histories.h5"]
        assert (summary["tasks"], summary["histories"]) == (2, 6)
        returns.append(Store(folder / "histories.h5").load([0, 40]).returns())
    assert np.array_equal(returns[0], returns[1]) and np.array_equal(returns[1], returns[2])
    with pytest.raises(ItemError, match=r"a \.txt file; a store, a file of DICP's or a Minari dataset"):
        predictor("store").predict(items[3])


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.h5").write_text("no HDF5")
    (item,) = predictor("minari").discover([tmp_path / "x.h5"])
    with pytest.raises(ItemError, match=r"x\.h5: cannot be read as HDF5"):
        predictor("minari").write(predictor("minari").predict(item), tmp_path)


def test_options_beside_it_and_other_forms_are_refused() -> None:
    with pytest.raises(UsageError, match=r"predict\.convert=csv: store or minari wanted, alone"):
        predictor("csv")
    assert PIPELINE.builtin is not None
    with pytest.raises(UsageError, match=r"predict\.gif beside convert: store or minari wanted, alone"):
        PIPELINE.predictor(Bundle.open(PIPELINE.builtin), {"convert": "store", "gif": True})


def test_without_minari_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    store = collect("darkroom", [0], 2, 40, 0, tmp_path / "s.h5", "random")
    inner = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "minari" else inner(name))
    with pytest.raises(EnvironmentUnfit, match=r"^minari: not installed; the 'robotics' extra is wanted"):
        convert(store.path, "minari", tmp_path)


def test_the_commands(tmp_path: Path) -> None:
    own = collect("darkroom", [0, 40], 3, 60, 0, tmp_path / "own.h5", "noise-distillation")
    theirs = dicp_file(tmp_path, own)
    refused = call(tmp_path, "check", "icrl", "--data", theirs.name)
    assert refused.returncode == 6
    wanted = f"convert it: pipelines predict icrl {theirs.name} -o FOLDER -s convert=store"
    assert wanted in refused.stdout
    convert(own.path, "minari", tmp_path / "sets")
    folder = tmp_path / "sets" / "darkroom-noise-distillation-v0"
    for path, found in ((folder, "a folder"), (folder / "data" / "main_data.hdf5", "format None")):
        with pytest.raises(DataInvalid, match=rf"{found}; .*convert it: pipelines predict icrl {folder} -o"):
            Store(path)
    done = call(tmp_path, "predict", "icrl", theirs.name, "own.h5", "-o", "out", "-s", "convert=minari")
    assert done.returncode == 0, done.stderr
    for item in ("own/darkroom-noise-distillation-v0", "history_darkroom_PPO_alg-seed0/darkroom-ppo-v0"):
        meta, blocks = open_source(tmp_path / "out" / item)
        assert (meta.env_id, meta.horizon, len(list(blocks))) == ("icrl/Darkroom-v0", 20, 2)
