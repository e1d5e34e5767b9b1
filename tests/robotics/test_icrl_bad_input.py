"""What users get for histories and models that cannot be used: one line, the promised exit code, nothing half done."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py", reason="the robotics extra is not installed")

from pipelines import cli
from robotics.icrl.collect.run import collect
from robotics.icrl.config import IcrlConfig
from robotics.icrl.data import IcrlData, check
from robotics.icrl.envs.families import tasks
from robotics.icrl.pipeline import PIPELINE
from robotics.icrl.store import Histories, Store, parts_folder
from shared.bundle import Bundle
from shared.pipeline import error_faults
from tests.contract.conftest import call, interrupt, surroundings
from tests.robotics import test_store as bad
from tests.robotics.test_store import block, write


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str
) -> tuple[int, list[str], list[str]]:
    """Exit code of ``pipelines ARGS``, its errors and its warnings."""
    monkeypatch.setattr(sys, "argv", ["pipelines", *args])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # handlers of this process stay
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main()
    lines = capsys.readouterr().err.splitlines()
    chosen = (
        [line[len(kind) :] for line in lines if line.startswith(kind)] for kind in ("error: ", "warning: ")
    )
    errors, warnings = (list(dict.fromkeys(each)) for each in chosen)
    return int(stop.value.code or 0), errors, warnings


DARKROOM = replace(
    bad.META, horizon=20, observation_space=dict(tasks("darkroom")[0].family.observation_space)
)


def long() -> Histories:
    found = block(steps=45, horizon=20)
    return replace(found, rewards=found.rewards / 3)


STORES: dict[str, tuple[Callable[[Path], object], str]] = {
    "histories of different lengths": (
        lambda path: write(path, block(0), block(1), block(2, steps=14)),
        "s.h5:2: histories of 14 steps; 12 as in the other tasks; collect it again",
    ),
    "another horizon": (
        lambda path: write(path, block(horizon=6)),
        "s.h5:0: history 0 and 2 more: an episode of 6 steps; at most 5",
    ),
    "another family's horizon": (
        lambda path: write(path, block(), meta=replace(DARKROOM, horizon=5)),
        "s.h5:horizon: 5; 20, as darkroom has; collect it in the family, or correct the attributes",
    ),
    "tasks numbered otherwise": (
        lambda path: write(path, long(), meta=DARKROOM, goal=[4, 2]),
        "s.h5:tasks: task 0 is {'goal': [4, 2]}; {'goal': [0, 0]} as the family numbers them; number the tasks so",
    ),
    "other spaces": (
        lambda path: write(path, long(), meta=replace(DARKROOM, action_space={"kind": "discrete", "n": 6})),
        "s.h5:spaces: cells [9, 9] and 6 actions; cells [9, 9] and 5 actions, as darkroom has; collect it",
    ),
    "observations of another width": (
        lambda path: write(path, replace(long(), obs=long().obs[..., :1]), meta=DARKROOM),
        "s.h5:0: obs of shape [1]; the space's [2]; collect again",
    ),
    "broken coordinates": (
        lambda path: write(path, replace(long(), obs=long().obs / np.float32(2)), meta=DARKROOM),
        "s.h5:0: obs 1.5 in history 0, step 0; whole numbers; collect again",
    ),
    "labels that are no actions": (
        lambda path: write(path, replace(long(), optimal_actions=long().actions + 5), meta=DARKROOM),
        "s.h5:0: optimal_actions 7 in history 0, step 0; the space's 0 to 4; collect again",
    ),
    "NaN reward": (
        lambda path: write(path, *bad.nan_rewards()),
        "s.h5:0: rewards nan in history 1, step 4; finite; collect again",
    ),
    "unknown action": (
        lambda path: write(path, *bad.wrong_action()),
        "s.h5:0: actions 5 in history 0, step 3; the space's 0 to 4; collect again",
    ),
    "one episode": (
        lambda path: write(path, block(steps=9)),
        "s.h5:0: history 0 and 2 more with 1 complete episodes; 2 at least, to see it learn; collect more steps",
    ),
    "empty": (
        lambda path: bad.emptied(write(path, block())),
        "s.h5: holds no history; at least one task; collect again",
    ),
    "of another program": (
        lambda path: bad.foreign(write(path, block())),
        "s.h5:format: format None; 'icrl-histories'",
    ),
    "cut off": (
        lambda path: bad.truncated(write(path, block())),
        "s.h5: cannot be read as HDF5 (Unable to synchronously open file (truncated file",
    ),
    "pickle": (
        lambda path: path.write_bytes(b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os\x94."),
        "s.h5: cannot be read as HDF5 (Unable to synchronously open file (file signature not found))",
    ),
}


@pytest.mark.parametrize(("make", "line"), STORES.values(), ids=STORES)
def test_stores_that_cannot_be_learned_from(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
    line: str,
) -> None:
    make(here / "s.h5")
    for command in ("run", "check"):
        code, errors, _ = ends(monkeypatch, capsys, command, "icrl", "--data", "s.h5")
        assert code == 6
        if command == "run":
            assert len(errors) == 1 and errors[0].startswith(line)
    assert not list(here.glob("runs/icrl/*")) and not (here / "mlflow.db").exists()


def test_equal_scores_and_unknown_scales_are_warnings(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played = collect("darkroom", [0], 3, 45, 0, here / "played.h5", "random").read(0)
    alike = replace(played.keep([1, 1, 1]), history=np.arange(3))
    write(here / "s.h5", alike, meta=DARKROOM, r_max=None)
    code, errors, warnings = ends(monkeypatch, capsys, "run", "icrl", "--data", "s.h5")
    assert code == 6  # for want of a second task alone
    assert errors == ["s.h5: training tasks: 1; 2 or more: one trains, one validates; collect more tasks"]
    assert [each.split(";")[0] for each in warnings] == [
        f"s.h5:0: r_max not known; best return seen is {alike.returns()[:, :2].max():g}".split(";")[0],
        "s.h5:0: all 3 histories have the same returns, so the same score",
    ]


@pytest.mark.slow
def test_a_context_longer_than_the_histories_and_tasks_held_out(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are shortened and left out, each with a line, and the run goes on to its end."""
    held, train = tasks("darkroom", "test")[0].index, [task.index for task in tasks("darkroom", "train")[:3]]
    collect("darkroom", [held, *train], 2, 60, 0, here / "s.h5", "q-learning")
    sets = ["model.context=100", "train.epochs=1", "train.steps=2", "evaluate.episodes=2", "evaluate.seeds=1"]
    done = call(
        here,
        "run",
        "icrl",
        "--preset",
        "smoke",
        "--data",
        "s.h5",
        *(part for each in sets for part in ("-s", each)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stderr.splitlines()
    assert "data: context of 60 steps, all that a history has" in said
    assert (
        f"warning: s.h5:tasks: {held} of darkroom's test part; training tasks; left out of training" in said
    )
    assert "data: collected by q-learning: 6 histories of 3 tasks" in said


def test_models_of_another_size_and_pickled_ones(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert PIPELINE.builtin is not None
    shutil.copytree(PIPELINE.builtin, here / "other")
    text = (here / "other" / "config.yaml").read_text()
    assert "  dim: 64\n" in text
    (here / "other" / "config.yaml").write_text(text.replace("  dim: 64\n", "  dim: 32\n"))
    code, errors, _ = ends(monkeypatch, capsys, "evaluate", "icrl", "-m", "other")
    assert code == 5
    assert errors[0].startswith(
        "other: weights do not fit config.yaml; first differing keys act.weight [6, 64] not [6, 32], "
        "gain.weight [64, 1] not [32, 1], mark.weight [3, 64] not [3, 32] ("
    )
    (here / "model.pt").write_bytes(b"\x80\x02}q\x00.")
    code, errors, _ = ends(monkeypatch, capsys, "evaluate", "icrl", "-m", "model.pt")
    assert code == 5
    assert errors[0].startswith(
        "model.pt: a file that is no bundle; checkpoints are never unpickled; a bundle folder"
    )
    shutil.copytree(PIPELINE.builtin, here / "swapped")
    shutil.copy(here / "model.pt", here / "swapped" / "weights.safetensors")
    code, errors, _ = ends(monkeypatch, capsys, "evaluate", "icrl", "-m", "swapped")
    assert code == 5
    assert errors[0].startswith(
        "swapped/weights.safetensors: content differs from schema.json:weights_sha256"
    )


@pytest.mark.parametrize(
    ("sets", "code", "line"),
    [
        ("model.mixer=foo", 2, "found mixer 'foo'; nearest is"),
        ("model.mixer=window", 2, "mixer 'window': has no causal form"),
        ("model.heads=3", 2, "3 heads do not divide 16 channels"),
        (
            "data.first=0.3",
            2,
            "data.first: 0.3 of 4 episodes; two whole ones wanted for filter.mode stochastic; ",
        ),
        ("model.legacy=true data.env=reacher data.collector=random", 2, "model.legacy: true; a grid and"),
        ("model.legacy=true model.context=90", 6, "histories: 80 steps; model.context 90 or more; lower it"),
    ],
)
def test_models_that_cannot_be_trained_are_refused_before_anything_is_collected(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sets: str,
    code: int,
    line: str,
) -> None:
    monkeypatch.setattr("robotics.icrl.data.collect", lambda *_, **__: pytest.fail("collects"))
    given = [part for each in sets.split() for part in ("-s", each)]
    found, errors, _ = ends(monkeypatch, capsys, "run", "icrl", "--preset", "smoke", *given)
    assert found == code and len(errors) == 1 and line in errors[0]
    assert not (here / "mlflow.db").exists()


def test_settings_of_collecting_do_nothing_beside_a_store_and_that_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collect(
        "darkroom", [task.index for task in tasks("darkroom", "train")[:3]], 2, 60, 0, here / "s.h5", "random"
    )
    for sets, line in (
        (
            "data.streams=99",
            "--set data.streams: s.h5 is given, and nothing is collected; a store's histories",
        ),
        ("data={random_share: 0.3}", "--set data.random_share: s.h5 is given"),
        ("data.options={foo: 1}", "--set data.options: s.h5 is given"),
        (
            "data.env=darkroom-large",
            "data.env: darkroom-large, but s.h5 holds darkroom; its own wanted; set it with",
        ),
    ):
        for command in ("run", "check"):
            code, errors, _ = ends(monkeypatch, capsys, command, "icrl", "--data", "s.h5", "-s", sets)
            assert code == 2 and len(errors) == 1 and errors[0].startswith(line)
    sets = ["data.streams=40", "data.env=darkroom", "data.first=0.7"]
    code, *_ = ends(monkeypatch, capsys, "check", "icrl", "--data", "s.h5", *(f"-s{each}" for each in sets))
    assert code == 0

    # A trained model is scored on the tasks of a store's family, whatever the store would be to train on.
    config = Bundle.open(PIPELINE.builtin).config(IcrlConfig, {"data": {"path": "s.h5", "first": 0.3}})
    assert config.data.env == "darkroom" and not error_faults(check(config))
    permuted = [task.index for task in tasks("darkroom-permuted", "train")[:2]]
    collect("darkroom-permuted", permuted, 2, 150, 0, here / "p.h5", "random")
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": here / "p.h5"})})
    assert not error_faults(check(config))

    def notes(preset: str) -> tuple[str, ...]:
        config = PIPELINE.complete(PIPELINE.resolve(preset, over={"data": {"path": "s.h5"}}))
        data = IcrlData(config)
        data.setup()
        return data.facts().notes

    assert "data.streams, data.episodes: of collecting, and change nothing in a store" in notes("smoke")
    assert not any("of collecting" in note for note in notes("default"))


def test_settings_of_collectors_are_refused_before_anything_is_collected(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for sets, line in (
        (["data.collector=dqn"], "data.collector: found 'dqn'; Input should be 'explorer'"),
        (
            ["data.collector=sb3", "data.options={algorithm: sac}"],
            "collector sb3, algorithm sac: darkroom has",
        ),
        (
            ["data.collector=sb3", "data.options={settings: {n_step: 3}}"],
            "collector sb3, settings.n_step: unknown",
        ),
        (["data.options={rate: 1}"], "collector explorer, rate: Extra inputs"),
    ):
        given = [part for each in sets for part in ("-s", each)]
        code, errors, _ = ends(monkeypatch, capsys, "run", "icrl", "--preset", "smoke", *given)
        assert code == 2 and len(errors) == 1 and line in errors[0], errors


# ---------------------------------------------------------------- stopped in the middle

COLLECT = """
import sys
from pathlib import Path
from robotics.icrl.collect.run import collect
collect("darkroom", range(12), 10, 100, 0, Path(sys.argv[1]), "sb3", {"settings": {"n_epochs": 2}})
"""


def test_ctrl_c_in_collection_keeps_finished_tasks_and_the_rest_follows(tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3", reason="the robotics extra is not installed")
    path = tmp_path / "s.h5"
    process = subprocess.Popen(
        [sys.executable, "-c", COLLECT, str(path)], stderr=subprocess.PIPE, env=surroundings()
    )
    end = time.monotonic() + 120
    while process.poll() is None and len(list(parts_folder(path).glob("part-*.h5"))) < 2:
        assert time.monotonic() < end, "no task was finished"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said and process.returncode != 0
    there = Store(path)
    assert 2 <= len(there.tasks) < 12 and {len(there.read(index)) for index in there.tasks} == {10}
    args, how = ("darkroom", range(12), 10, 100, 0), ("sb3", {"settings": {"n_epochs": 2}})
    resumed = collect(*args, path, *how, resume="must")
    assert resumed.path.read_bytes() == collect(*args, tmp_path / "fresh.h5", *how).path.read_bytes()


@pytest.mark.slow
def test_a_run_stopped_in_collection_ends_with_the_same_metrics(tmp_path: Path) -> None:
    """The same command afterwards: histories and metrics are those of a run that was never stopped."""
    pytest.importorskip("stable_baselines3", reason="the robotics extra is not installed")
    run = ("run", "icrl", "--preset", "smoke", "-s", "data.collector=sb3", "-s", "threads=1", "--json")
    stopped, unbroken = tmp_path / "stopped", tmp_path / "unbroken"
    stopped.mkdir()
    unbroken.mkdir()

    def parts() -> list[Path]:
        return list(stopped.glob("runs/icrl/*/histories.h5.parts/part-*.h5"))

    code, said = interrupt(stopped, *run, when=lambda: len(parts()) >= 3)
    assert code == 130 and "Traceback" not in said, said[-2000:]
    (folder,) = stopped.glob("runs/icrl/*")
    there = Store(folder / "histories.h5")
    assert 3 <= len(there.tasks) < 10 and {len(there.read(index)) for index in there.tasks} == {4}
    done = [call(each, *run) for each in (stopped, unbroken)]
    assert [each.returncode for each in done] == [0, 0], done[0].stderr[-2000:]
    files = [next(each.glob("runs/icrl/*/histories.h5")) for each in (stopped, unbroken)]
    assert files[0].read_bytes() == files[1].read_bytes() and not parts_folder(files[0]).exists()
    results = [json.loads(each.stdout) for each in done]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["data"]["fingerprint"] == results[1]["data"]["fingerprint"]


# ---------------------------------------------------------------- filtering what was really collected


def test_random_histories_of_a_noisy_set_hardly_remain(tmp_path: Path) -> None:
    """LHF's noisy setting, PPO and 30 % random play: their share of what is taken, and all P (spec 13.10)."""
    from robotics.icrl.lhf import Rule, score

    chosen = [task.index for task in tasks("darkroom", "train")[:12]]
    store = collect("darkroom", chosen, 100, 1000, 0, tmp_path / "s.h5", "population", random_share=0.3)
    blocks = {str(task.index): (task, histories) for task, histories in store}
    found = score(
        {name: list(histories.returns()) for name, (_, histories) in blocks.items()},
        Rule("filter"),
        seed=0,
        r_max={name: float(task.r_max or 0) for name, (task, _) in blocks.items()},
    )
    noisy = np.array([[at >= 70 for at in each.taken] for each in found.values()])
    assert noisy.shape == (12, 100) and noisy.mean() < 0.05
    chance = np.stack([each.probability for each in found.values()])
    assert chance[:, :70].mean() > 0.75 and chance[:, 70:].mean() < 0.2
    for each in found.values():
        expected = each.probability / each.probability.mean()
        assert each.multiplicity[np.argmin(each.probability)] == 0 and len(each.taken) == 100
        deviation = np.sqrt(expected * (1 - each.probability)) + 1
        assert (np.abs(each.multiplicity - expected) <= 3 * deviation).all()
