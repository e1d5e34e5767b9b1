"""Broken items, killed processes, signals: the rest is done, nothing is half, the next run does what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.batch import exit_code, predict_batch
from tests.pipelines.test_batch import counts, files, lines
from tests.pipelines.toy_pipeline import PIPELINE, TARGET, make_bundle

ROOT = Path(__file__).resolve().parents[2]
WAIT_SECONDS = 60
COMMAND = f"""
from pipelines import cli, registry
registry._targets = lambda: {{"toy-upper": "{TARGET}"}}
if __name__ == "__main__":
    cli.main()
"""
"""The real command line, with the toy registered."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    PIPELINE.write_sample(folder, 6, 0)
    return folder


class Command:
    """`pipelines predict toy-upper …` in a process (and group) of its own."""

    def __init__(self, folder: Path, model: Path, *args: str) -> None:
        script = folder / "command.py"
        script.write_text(COMMAND)
        self.output = folder / "out"
        words = [
            "predict",
            "toy-upper",
            str(folder / "in"),
            "-o",
            str(self.output),
            "-m",
            str(model),
            "--json",
            *args,
        ]
        self.process = subprocess.Popen(
            [sys.executable, str(script), *words],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.children: list[psutil.Process] = []

    def wait_for(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT_SECONDS
        while not what():
            assert time.monotonic() < end, "nothing happened"
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def finished(self, items: int) -> Callable[[], bool]:
        """Whether `items` are in their place and another is being worked on."""
        return lambda: len([*self.output.glob("text*")]) >= items and any(self.output.glob(".item.*.tmp"))

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=WAIT_SECONDS)
        _, alive = psutil.wait_procs(self.children, timeout=10)
        assert not alive, [child.cmdline() for child in alive]
        return self.process.returncode, out, err


def whole(output: Path, items: int) -> None:
    """`items` complete results, and nothing that is half."""
    made = {path: content for path, content in files(output).items() if not path.startswith(".")}
    assert {path.split("/")[0] for path in made} <= {
        line["item"] for line in lines(output) if line["status"] == "ok"
    }
    assert len(made) == 2 * items
    for path, content in made.items():
        if path.endswith(".json"):
            assert json.loads(content)["letters"] == len(made[path.removesuffix("json") + "out"])
        else:
            assert content.startswith(b"GOOD")


def test_twenty_items_five_broken(model: Path, tmp_path: Path) -> None:
    texts, output = tmp_path / "in", tmp_path / "out"
    PIPELINE.write_sample(texts, 15, 0)
    broken = {
        "bad": "the word bad; good words; write others",
        "bug": "ZeroDivisionError: nobody thought of this",
        "exit": "ended with code 7",
        "killed": "killed (SIGKILL",
        "lone": "incomplete; a second file; add it",
    }
    for word in broken:
        (texts / f"{word}.txt").write_text(word)
    said: list[str] = []
    first = predict_batch(TARGET, model, [texts], output, workers=2, say=said.append)
    assert counts(first) == (20, 15, 5, 0)
    assert exit_code(first) == 4
    whole(output, 15)
    errors = {line["item"]: line["error"] for line in lines(output) if line["status"] == "failed"}
    assert set(errors) == set(broken)
    for word, reason in broken.items():
        assert reason in errors[word]["message"]
        assert str(texts / f"{word}.txt") in errors[word]["message"]
        assert "\n" not in errors[word]["message"]
    assert "trace" in errors["bug"]
    assert said[0] == "5 of 20 items failed:"
    before = files(output)

    second = predict_batch(TARGET, model, [texts], output, workers=2)
    assert counts(second) == (20, 0, 5, 15)
    for word in broken:
        (texts / f"{word}.txt").unlink()
        (texts / f"mended_{word}.txt").write_text("good now")
    third = predict_batch(TARGET, model, [texts], output)
    assert counts(third) == (20, 5, 0, 15)
    assert before.items() <= files(output).items()


@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_kill_nine_in_the_middle_and_again(texts: Path, model: Path, tmp_path: Path, victim: str) -> None:
    (texts / "text02b.txt").write_text("slow")
    command = Command(tmp_path, model)
    command.wait_for(command.finished(3))
    if victim == "parent":
        command.process.kill()
        code, _, _ = command.end()
        assert code == -signal.SIGKILL
        whole(command.output, 3)
    else:
        (worker,) = [child for child in command.children if "spawn_main" in " ".join(child.cmdline())]
        worker.kill()
        code, out, err = command.end()
        assert code == 4, err
        assert (json.loads(out)["ok"], json.loads(out)["failed"]) == (6, 1)
        assert "text02b.txt: the worker process was killed" in err
        whole(command.output, 6)

    (texts / "text02b.txt").write_text("good 0 9")
    again = predict_batch(TARGET, model, [texts], command.output)
    done = 3 if victim == "parent" else 6
    assert counts(again) == (7, 7 - done, 0, done)
    whole(command.output, 7)
    assert not list(command.output.glob(".*.tmp"))


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_whole_results_and_no_children(
    texts: Path, model: Path, tmp_path: Path, signum: int, code: int
) -> None:
    (texts / "text02b.txt").write_text("slow")
    command = Command(tmp_path, model, "--workers", "2")
    command.wait_for(command.finished(6))  # all but the slow one
    if signum == signal.SIGINT:
        os.killpg(command.process.pid, signum)  # as a terminal does: the workers get it too
    else:
        command.process.send_signal(signum)
    returned, out, err = command.end()
    assert returned == code, err
    assert out == ""
    assert "goes on where it stopped" in err
    assert "Traceback" not in err
    whole(command.output, 6)
    assert not list(command.output.glob(".*.tmp"))
    again = Command(tmp_path, model, "-s", "seconds=0.1")
    returned, out, err = again.end()
    # `seconds` is an option, so all is done again; the slow text has another length.
    assert (returned, json.loads(out)["ok"]) == (0, 7), err


def test_two_batches_in_one_folder(texts: Path, model: Path, tmp_path: Path) -> None:
    (texts / "text02b.txt").write_text("slow")
    first = Command(tmp_path, model)
    first.wait_for(first.finished(3))
    second = Command(tmp_path, model)
    code, _, err = second.end()
    assert code == 2
    assert f"in use by pid {first.process.pid} since" in err
    first.process.terminate()
    first.end()
    whole(first.output, 3)


def test_a_kill_between_line_and_move_is_mended(
    texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.batch_output import OutputFolder

    output = tmp_path / "out"
    move = OutputFolder._move_folder

    def cut(self: Any, draft: Path, name: str) -> None:
        if name == "text03":
            raise KeyboardInterrupt  # stands for the kill: nothing after the manifest line happens
        move(self, draft, name)

    monkeypatch.setattr(OutputFolder, "_move_folder", cut)
    with pytest.raises(KeyboardInterrupt):
        predict_batch(TARGET, model, [texts], output)
    monkeypatch.undo()
    assert lines(output)[-1]["item"] == "text03"
    assert not (output / "text03").exists()
    again = predict_batch(TARGET, model, [texts], output)
    assert counts(again) == (6, 3, 0, 3)
    whole(output, 6)


@pytest.mark.slow
def test_memory_stays_flat_over_many_items(model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "in"
    PIPELINE.write_sample(texts, 1000, 0)
    for index in range(0, 1000, 20):
        (texts / f"text{index:02d}.txt").write_text("bad")
    process, seen = psutil.Process(), []

    class Watch:
        """A progress that measures."""

        total = 0

        def __enter__(self) -> Watch:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def task(self, label: str, total: int) -> Watch:
            return self

        def update(self, done: int, note: str = "") -> None:
            if done >= 100:
                everyone = [process, *process.children(recursive=True)]
                seen.append(sum(one.memory_info().rss for one in everyone))

    watch: Any = Watch()
    summary = predict_batch(TARGET, model, [texts], tmp_path / "out", progress=watch)
    assert counts(summary) == (1000, 950, 50, 0)
    assert exit_code(summary) == 4
    assert max(seen) - seen[0] < 50 * 2**20
