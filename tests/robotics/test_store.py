"""Learning histories on disk: what is written is read, a kill loses nothing finished, every fault is one line."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py")

import h5py

from robotics.icrl.collect.run import collect
from robotics.icrl.convert import convert
from robotics.icrl.envs.grid import GRIDS
from robotics.icrl.lhf import score
from robotics.icrl.models.batch import of_histories
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.store import Histories, Meta, Store, Task, parts_folder
from robotics.icrl.store_check import check, check_rules
from robotics.icrl.store_writer import StoreWriter
from shared.errors import DataInvalid, ResourcesExhausted, UsageError

META = Meta(
    "icrl/Darkroom-v0",
    "random",
    0,
    5,
    {"kind": "box", "shape": [2], "low": 0, "high": 8},
    {"kind": "discrete", "n": 5},
)


def block(task: int = 0, count: int = 3, steps: int = 12, horizon: int = 5) -> Histories:
    """Histories of episodes of `horizon` steps, the last one unfinished; every number differs between histories."""
    rng = np.random.default_rng(task)
    shape, step = (count, steps), np.arange(steps)
    over = np.broadcast_to((step + 1) % horizon == 0, shape).copy()
    final = rng.integers(0, 9, (*shape, 2)).astype(np.uint8)
    final[:, :-1][~over[:, :-1]] = 0
    return Histories(
        obs=rng.integers(0, 9, (*shape, 2)).astype(np.uint8),
        actions=rng.integers(0, 5, shape).astype(np.uint8),
        rewards=rng.random(shape, np.float32) * np.arange(1, count + 1, dtype=np.float32)[:, None],
        terminations=np.zeros(shape, bool),
        truncations=over,
        episode=np.broadcast_to(step // horizon, shape).astype(np.int32),
        final_obs=final,
        task=np.full(count, task),
        history=np.arange(count),
        source=np.full(count, "random"),
    )


def write(path: Path, *blocks: Histories, meta: Meta = META, **task: Any) -> Path:
    scales = {"r_min": 0.0, "r_max": 20.0, "random_return": 1.0} | task
    goal = scales.pop("goal", [0, 0])
    with StoreWriter(path, meta) as writer:
        for each in blocks:
            index = int(each.task[0])
            writer.add([(Task(index, {"goal": [goal[0] + index, goal[1]]}, **scales), each)])
    return path


def same(one: Histories, other: Histories) -> bool:
    names = [name for name in Histories.__dataclass_fields__ if getattr(one, name) is not None]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


# ---------------------------------------------------------------- writing and reading


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = Store(write(tmp_path / "s.h5", block(7), block(2, count=2)))
    assert store.meta == META and store.tasks == [2, 7] and len(store) == 5
    assert store.task(7).params == {"goal": [7, 0]} and store.task(2).r_max == 20
    assert same(store.read(7), block(7)) and same(store.read(2), block(2, count=2))
    both = store.load(store.tasks)
    assert both.task.tolist() == [2, 2, 7, 7, 7] and both.obs.shape == (5, 12, 2)
    assert not parts_folder(tmp_path / "s.h5").exists()
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["7/obs"].chunks == (1, 12, 2) and file["7/obs"].compression == "gzip"


def test_pieces_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    whole = [block(task) for task in range(3)]
    write(tmp_path / "whole.h5", *whole)
    pieces = [each.keep([row]) for each in whole for row in (2, 0, 1)]
    write(tmp_path / "pieces.h5", *pieces[5:])
    write(tmp_path / "pieces.h5", *pieces[:5])
    assert (tmp_path / "whole.h5").read_bytes() == (tmp_path / "pieces.h5").read_bytes()


def test_next_observations_by_both_conventions() -> None:
    one = block(count=1)
    terminal, reset = one.next_obs("terminal")[0], one.next_obs("reset")[0]
    assert np.array_equal(terminal[4], one.final_obs[0, 4]) and np.array_equal(reset[4], one.obs[0, 5])
    assert np.array_equal(terminal[3], one.obs[0, 4]) and np.array_equal(reset[11], one.final_obs[0, 11])


def test_returns_count_complete_episodes_only() -> None:
    one = block()
    expected = one.rewards[:, :10].reshape(3, 2, 5).sum(axis=2)
    assert np.allclose(one.returns(), expected, atol=1e-6)
    one.truncations[1, 9] = False  # its second episode goes on
    one.episode[1, 10:] = 1
    assert np.isnan(one.returns()[1, 1]) and np.allclose(one.returns()[0], expected[0])


def test_a_share_of_the_steps_ends_with_the_true_observation() -> None:
    half = block().first(0.5)
    assert half.steps == 6 and half.returns().shape == (3, 1)
    assert np.array_equal(half.next_obs()[:, -1], block().obs[:, 6])


# ---------------------------------------------------------------- killed, resumed, refused

KILLED = """
import os, signal, sys
from pathlib import Path
from robotics.icrl import store_writer
from robotics.icrl.collect import run
run._STEPS_AT_ONCE = 4 * 40 * 5
name, after = sys.argv[2], int(sys.argv[3])
inner, calls = getattr(store_writer, name), [0]
def killing(*args):
    calls[0] += 1
    if calls[0] > after:
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*args)
setattr(store_writer, name, killing)
run.collect("darkroom", range(20), 5, 40, 3, Path(sys.argv[1]), "noise-distillation")
"""


@pytest.mark.parametrize(("where", "after", "there"), [("_write", 7, 6), ("_merge_task", 3, 20)])
def test_kill_in_mid_write_loses_the_running_piece_only(
    tmp_path: Path, where: str, after: int, there: int
) -> None:
    path = tmp_path / "s.h5"
    arguments = [sys.executable, "-c", KILLED, str(path), where, str(after)]
    done = subprocess.run(arguments, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=60)
    assert done.returncode == -9 and not path.exists()
    assert Store(path).tasks == list(range(there))  # read as it stands
    assert [fault.severity for fault in check(path)] == ["warning"]
    resumed = collect("darkroom", range(20), 5, 40, 3, path, "noise-distillation", resume="must")
    fresh = collect("darkroom", range(20), 5, 40, 3, tmp_path / "fresh.h5", "noise-distillation")
    assert digest(resumed) == digest(fresh)
    assert sorted(each.name for each in tmp_path.iterdir() if each.suffix != ".lock") == ["fresh.h5", "s.h5"]


def digest(store: Store) -> str:
    return hashlib.sha256(store.path.read_bytes()).hexdigest()


def test_other_settings_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    collect("darkroom", [0], 2, 40, 0, path, "random")
    with pytest.raises(UsageError, match=r"s\.h5: collected with other settings \(seed 1 and 0\)"):
        collect("darkroom", [0], 2, 40, 1, path, "random")
    with pytest.raises(UsageError, match="exists already"):
        collect("darkroom", [0], 2, 40, 0, path, "random", resume="no")
    with pytest.raises(UsageError, match="nothing to resume"):
        collect("darkroom", [0], 2, 40, 0, tmp_path / "none.h5", "random", resume="must")


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        StoreWriter(tmp_path / "s.h5", META),
        pytest.raises(UsageError, match="another process is writing it"),
    ):
        StoreWriter(tmp_path / "s.h5", META)


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.h5"
    write(path, block(0))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ResourcesExhausted, match="No space left"), StoreWriter(path, META) as writer:
        writer.add([(Task(1, {}), block(1))])
        monkeypatch.setattr("robotics.icrl.store_writer._write", full)
        writer.add([(Task(2, {}), block(2))])
    monkeypatch.undo()
    assert Store(path).tasks == [0, 1]
    with StoreWriter(path, META) as writer:
        assert writer.missing(1, 3).size == 0 and writer.missing(2, 3).tolist() == [0, 1, 2]


# ---------------------------------------------------------------- faults


def nan_rewards() -> list[Histories]:
    one = block()
    one.rewards[1, 4] = np.nan
    return [one]


def early_cut() -> list[Histories]:
    one = block()
    one.truncations[2, 2], one.episode[2, 3:] = True, one.episode[2, 3:] + 1
    return [one]


def wrong_action() -> list[Histories]:
    one = block()
    one.actions[0, 3] = 5
    return [one]


def alike() -> list[Histories]:
    one = block()
    one.rewards[:] = one.rewards[0]
    return [one]


@pytest.mark.parametrize(
    ("blocks", "line"),
    [
        (nan_rewards, "0: rewards nan in history 1, step 4; finite; collect again"),
        (wrong_action, "0: actions 5 in history 0, step 3; the space's 0 to 4; collect again"),
        (
            early_cut,
            "0: history 2: an episode cut after 3 steps; the horizon of 5; mend `horizon` or collect again",
        ),
        (
            lambda: [block(horizon=6)],
            "0: history 0 and 2 more: an episode of 6 steps; at most 5",
        ),
        (
            lambda: [block(steps=9)],
            "0: history 0 and 2 more with 1 complete episodes; 2 at least, to see it learn; collect more steps",
        ),
        (
            lambda: [block(0), block(1), block(2, steps=14)],
            "2: histories of 14 steps; 12 as in the other tasks; collect it again",
        ),
        (
            alike,
            "0: all 3 histories have the same returns, so the same score; some better than others; "
            "a filter keeps all of them",
        ),
    ],
)
def test_faults_of_histories_are_lines(
    tmp_path: Path, blocks: Callable[[], list[Histories]], line: str
) -> None:
    path = write(tmp_path / "s.h5", *blocks())
    assert [str(fault) for fault in check(path)] == [f"{path}:{line}"]


def test_scales_that_do_not_hold_are_said(tmp_path: Path) -> None:
    unknown = check(write(tmp_path / "unknown.h5", block(), r_max=None))
    assert [fault.severity for fault in unknown] == ["warning"] and "r_max not known" in str(unknown[0])
    below = block()
    below.rewards[0] -= 9
    (unknown,) = check(write(tmp_path / "below.h5", below, r_min=None))
    assert unknown.severity == "warning" and "r_min not known; r_min no return falls below" in str(unknown)


@pytest.mark.parametrize(
    ("bounds", "line"),
    [
        (
            {"r_max": 1.0},
            "history 0: return 4.40518 beyond r_max 1; returns within the bounds; correct r_max",
        ),
        (
            {"r_min": 5.0},
            "history 0: return 2.06114 beyond r_min 5; returns within the bounds; correct r_min",
        ),
        ({"r_min": 9.0, "r_max": 9.0}, "r_max 9, r_min 9; r_max above r_min (0 by default); give both"),
    ],
    ids=str,
)
def test_check_refuses_what_a_filter_refuses(tmp_path: Path, bounds: dict[str, Any], line: str) -> None:
    path = write(tmp_path / "s.h5", block(), **bounds)
    found = check(path)
    assert {fault.severity for fault in found} == {"error"}
    assert f"{path}:0: {line}" in map(str, found)
    with pytest.raises(DataInvalid):
        score({"0": list(block().returns())}, **{key: {"0": value} for key, value in bounds.items()})


def absent(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def text(path: Path) -> None:
    path.write_text("obs,actions\n")


def foreign(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)


def emptied(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["0"]


def without_rewards(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["0/rewards"]


def ragged(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["0/rewards"]
        file["0/rewards"] = np.zeros((3, 11), np.float32)


def put(name: str, values: Any) -> Callable[[Path], None]:
    """A dataset of task 0 is another one; a group for {}."""

    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file["0"][name]
            if isinstance(values, dict):
                file["0"].create_group(name)
            else:
                file["0"][name] = values

    return damage


def without_rows(path: Path) -> None:
    with h5py.File(path, "a") as file:
        for name in list(file["0"]):
            rows = file["0"][name][:0]
            del file["0"][name]
            file["0"][name] = rows


def no_group(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["0"]
        file["0"] = np.zeros(3)


def dangling(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["0"]
        file["0"] = h5py.SoftLink("/nowhere")


def newer(path: Path) -> None:
    with h5py.File(path, "a") as file:
        file.attrs["version"] = 9


def said(where: str, name: str, value: Any) -> Callable[[Path], None]:
    """One attribute is something else."""

    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            file[where].attrs[name] = value

    return damage


def final_broken(path: Path) -> None:
    with h5py.File(path, "a") as file:
        final = file["0/final_obs"][()] + 0.5
        del file["0/final_obs"]
        file["0/final_obs"] = final
    said("/", "observation_space", '{"kind": "box", "shape": [2], "dtype": "int32", "low": 0, "high": 8}')(
        path
    )


NO_MAPPING, NO_ATTRIBUTE = (
    "is no mapping); all of them; collect again",
    "s.h5: attribute absent or unreadable (",
)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (said("/", "hyper", 3), f"{NO_ATTRIBUTE}the JSON object must be str"),
        (said("/", "observation_space", "[]"), f"{NO_ATTRIBUTE}observation_space {NO_MAPPING}"),
        (
            said("/", "action_space", '{"kind": "discrete"}'),
            f"{NO_ATTRIBUTE}'n'); all of them; collect again",
        ),
        (said("/", "action_space", '{"kind": "dict"}'), f"{NO_ATTRIBUTE}action_space of kind dict)"),
        (said("/", "observation_space", '{"kind": "box", "shape": [2], "low": [0, 0, 0]}'), NO_ATTRIBUTE),
        (said("0", "params", "3"), "s.h5:0: params or returns unreadable ('int' object is not iterable)"),
        (
            said("0", "r_max", "high"),
            "s.h5:0: params or returns unreadable (could not convert string to float",
        ),
        (final_broken, "s.h5:0: final_obs "),
        (absent, "s.h5: no such store; an HDF5 file of histories"),
        (truncated, "s.h5: cannot be read as HDF5"),
        (text, "s.h5: cannot be read as HDF5"),
        (foreign, "s.h5:format: format None; 'icrl-histories'"),
        (emptied, "s.h5: holds no history; at least one task; collect again"),
        (without_rewards, "s.h5:0: no dataset rewards; it; collect again"),
        (ragged, "s.h5:0: rewards is (3, 11), obs (3, 12); (history, step)"),
        (put("history", 0), "s.h5:0: history is (); one for each history; collect again"),
        (put("history", [0, 1]), "s.h5:0: history is (2,), obs (3, 12); one for each history"),
        (put("history", [0, 1, 2, 3]), "s.h5:0: history is (4,), obs (3, 12); one for each history"),
        (
            put("history", [4, 4, 5]),
            "s.h5:0: history number 4 is there 2 times; each once, from 0; number them",
        ),
        (put("history", [-1, 0, 1]), "s.h5:0: history number -1; each once, from 0; number them 0, 1, 2, …"),
        (put("history", [0.0, 0.5, 1.0]), "s.h5:0: history of type float64; whole numbers; collect again"),
        (put("source", [b"x", b"y"]), "s.h5:0: source is (2,), obs (3, 12); one for each history; collect"),
        (put("source", [1, 2, 3]), "s.h5:0: source of type int64; text; collect again"),
        (put("rewards", np.full((3, 12), b"x")), "s.h5:0: rewards of type bytes8; numbers; collect again"),
        (put("rewards", {}), "s.h5:0: rewards is a group; a dataset; collect again"),
        (put("obs", np.zeros((3, 0, 2))), "s.h5:0: obs is (3, 0); (history, step); collect again"),
        (put("source", ["é", "x", "x"]), "s.h5:0: source unreadable; ASCII text; rename it"),
        (
            put("episode", np.zeros((3, 12, 1), int)),
            "s.h5:0: episode is (3, 12, 1), obs (3, 12); (history, step)",
        ),
        (put("episode", np.zeros((3, 12))), "s.h5:0: episode of type float64; whole numbers; collect again"),
        (
            put("truncations", block().truncations * 2),
            "s.h5:0: truncations 2 in history 0, step 4; false or true, 0 or 1; collect again",
        ),
        (without_rows, "s.h5:0: no history; one or more; collect it again, or remove the group"),
        (no_group, "s.h5:0: a dataset; a group of datasets; collect again"),
        (dangling, "s.h5:0: a link to nothing; a group of datasets; collect again"),
        (newer, "s.h5:version: version 9; 1; collect again"),
    ],
)
def test_faults_of_files_are_lines(tmp_path: Path, damage: Callable[[Path], None], line: str) -> None:
    path = write(tmp_path / "s.h5", block())
    damage(path)
    faults = check(path)
    assert len(faults) == 1 and line in str(faults[0]) and "\n" not in str(faults[0])
    with pytest.raises(DataInvalid):
        of_histories(Store(path).load([0]), Spaces(cells=(9, 9), actions=5))


def test_other_types_of_whole_numbers_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "s.h5", block())
    put("truncations", block().truncations.astype(np.int8))(path)
    put("episode", block().episode.astype(np.uint8))(path)
    assert not check(path) and same(Store(path).read(0), block())


def test_a_malformed_task_hides_no_fault_of_another(tmp_path: Path) -> None:
    broken = block(1)
    broken.rewards[1, 4] = np.nan
    path = write(tmp_path / "s.h5", block(), broken, block(2))
    put("history", [0, 0, 0])(path)
    assert [fault.field for fault in check(path)] == ["0", "1"]
    with pytest.raises(DataInvalid, match="0: history number 0 is there 3 times"):
        Store(path)


@pytest.mark.parametrize(
    ("room", "index"),
    [("darkroom", 40), ("darkroom-permuted", 77), ("darkroom-large", 97), ("dark-key-to-door", 3321)],
)
def test_histories_of_grids_keep_their_rules(tmp_path: Path, room: str, index: int) -> None:
    def first(**change: Any) -> str:
        return " ".join(str(fault) for fault in check_rules(tmp_path, task, replace(played, **change)))

    task = GRIDS[room].task(index)
    played = collect(room, [index], 4, 130, 0, tmp_path / "s.h5", "noise-distillation").read(index)
    assert played.rewards.sum() > 0 and first() == ""
    assert f"{index}: next observation [" in first(actions=(played.actions + 1) % 5)
    assert f"history 0, step 0; {np.array(task.family.start)} by the rules of {room}" in first(
        obs=played.obs * 0 + 2
    )
    row, step = np.argwhere(played.rewards)[-1]
    rewards = played.rewards.copy()
    rewards[row, step] = 0
    assert f"{index}: rewards 0.0 in history {row}, step {step}; 1 by the rules of {room}" in first(
        rewards=rewards
    )


def test_lengths_differ_between_tasks(tmp_path: Path) -> None:
    store = Store(write(tmp_path / "s.h5", block(0), block(1, steps=14)))
    with pytest.raises(DataInvalid, match="histories of 12 to 14 steps; one length"):
        store.load([0, 1])
    with pytest.raises(DataInvalid, match="no task 5; one of 0, 1"):
        store.read(5)


# ---------------------------------------------------------------- DICP's files


def dicp_file(folder: Path, store: Store) -> Path:
    """What DICP's collect_data.py would have written of the same play."""
    path = folder / "history_darkroom_PPO_alg-seed0.hdf5"
    with h5py.File(path, "w") as file:
        for index in store.tasks:
            one, group = store.read(index), file.create_group(str(index))
            after = one.next_obs("reset")
            after[:, -1] = (4, 4)  # the last step of all ends an episode there too
            for name, array in {
                "states": one.obs,
                "next_states": after,
                "actions": one.actions,
                "rewards": one.rewards,
            }.items():
                group[name] = array.swapaxes(0, 1).astype(np.int32)
            group["dones"] = one.ends.T
            group["optimal_actions"] = one.optimal_actions
    return path


def test_dicp_files_are_converted(tmp_path: Path) -> None:
    own = collect("darkroom", [0, 40, 77], 4, 60, 0, tmp_path / "own.h5", "noise-distillation")
    published = dicp_file(tmp_path, own)
    convert(published, "store", tmp_path / "out")
    store = Store(tmp_path / "out" / "histories.h5")
    assert (store.meta.algorithm, store.meta.seed) == ("ppo", 0) and store.tasks == own.tasks
    assert all(fault.severity != "error" for fault in check(store.path))
    for index in own.tasks:
        mine, theirs = own.read(index), store.read(index)
        assert np.array_equal(mine.next_obs(), theirs.next_obs())
        assert np.array_equal(mine.returns(), theirs.returns())
        assert np.array_equal(mine.optimal_actions, theirs.optimal_actions)
        assert store.task(index) == own.task(index)


def test_dicp_files_that_break_the_rules_are_refused(tmp_path: Path) -> None:
    own = collect("darkroom", [40], 4, 60, 0, tmp_path / "own.h5", "random")
    published = dicp_file(tmp_path, own)
    with pytest.raises(DataInvalid, match=r"convert it: pipelines predict icrl"):
        Store(published)
    with h5py.File(published, "a") as file:
        file["40/actions"][0, 1] = (file["40/actions"][0, 1] + 1) % 4
    with pytest.raises(DataInvalid, match="40: a step that the rules do not allow; moves of darkroom"):
        convert(published, "store", tmp_path / "out")
    with pytest.raises(UsageError, match=r"no environment in its name; .*rename the file"):
        convert(published.rename(tmp_path / "mine.hdf5"), "store", tmp_path / "out")


@pytest.mark.parametrize(
    ("env", "name", "value", "line"),
    [
        ("darkroom", "rewards", 2, "reward 2 at step 7, stream 1; [01] by the rules of darkroom"),
        (
            "dark-key-to-door",
            "rewards",
            5,
            "reward 5 at step 7, stream 1; [01] by the rules of dark-key-to-door",
        ),
        ("darkroom", "optimal_actions", 5, r"optimal_actions \(4, 100\) or out of range"),
        ("darkroom", "optimal_actions", 0.5, r"optimal_actions \(4, 100\) or out of range"),
        ("darkroom", "actions", 1.5, "states or actions out of range"),
    ],
)
def test_dicp_rewards_and_labels_are_the_rules(
    tmp_path: Path, env: str, name: str, value: float, line: str
) -> None:
    index = 400 if env == "dark-key-to-door" else 40
    published = dicp_file(tmp_path, collect(env, [index], 4, 100, 0, tmp_path / "own.h5", "random"))
    published = published.rename(tmp_path / f"history_{env.replace('-', '')}_PPO_alg-seed0.hdf5")
    convert(published, "store", tmp_path / "good")
    with h5py.File(published, "a") as file:
        group = file[str(index)]
        array = group[name][()].astype(float if value % 1 else int)
        array[(7, 1) if name != "optimal_actions" else (1, 7)] = value
        del group[name]
        group[name] = array
    with pytest.raises(DataInvalid, match=line):
        convert(published, "store", tmp_path / "out")
