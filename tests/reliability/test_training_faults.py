"""Training that is killed, stopped, starved or fed nonsense: what is left, and what a resume makes of it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from shared.errors import Interrupted, ResourcesExhausted, SuiteError, UsageError
from shared.training import signals
from shared.training.checkpoint import newest
from shared.training.fit import FitResult
from shared.training.injector import EXIT_CODE, VARIABLE
from shared.training.seed import state_sha
from tests.shared.toy_training import final_state, toy_fit

ROOT = Path(__file__).resolve().parents[2]


def in_child(work: Callable[[], Any], crash_at: str = "") -> int:
    """Exit status of `work` run in a forked child: killable, and without the seconds that imports take."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            if crash_at:
                os.environ[VARIABLE] = crash_at
            work()
            status = 0
        except SuiteError as err:
            print(f"{type(err).__name__}: {err}", file=sys.stderr, flush=True)
            status = err.exit_code
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def same(result: FitResult, work: Path, unbroken: FitResult, other: Path) -> None:
    assert state_sha(result.state_dict) == state_sha(unbroken.state_dict)
    assert result.history == unbroken.history
    assert result.best == unbroken.best
    assert final_state(work) == final_state(other)


Unbroken = Callable[..., tuple[FitResult, Path]]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """Unbroken runs by their settings."""
    known: dict[tuple[str, ...], tuple[FitResult, Path]] = {}

    def get(*sets: str) -> tuple[FitResult, Path]:
        if sets not in known:
            work = tmp_path_factory.mktemp("unbroken")
            known[sets] = toy_fit(work, *sets), work
        return known[sets]

    return get


SPARSE = "train.checkpoint_seconds=1e9"  # saves after validations only
POINTS = [
    ("after_step:1",), ("after_step:5",), ("after_step:6",), ("after_step:15",),
    ("after_step:9", SPARSE), ("after_step:15", SPARSE),
    ("mid_save:1",), ("mid_save:8",), ("after_save:6",), ("after_manifest:5",),
    ("mid_validation:2",), ("mid_validation:6", SPARSE), ("mid_validation:9",),
    ("after_step:4", "train.accumulate=2"), ("mid_validation:5", "train.accumulate=2"),
    ("after_manifest:8", "train.validate_every=2"), ("after_step:11", "train.validate_every=7"),
]  # fmt: skip


@pytest.mark.parametrize("case", POINTS, ids=lambda case: "+".join(case).replace("train.", ""))
def test_killed_anywhere_and_resumed_is_bit_equal(
    case: tuple[str, ...], unbroken: Unbroken, tmp_path: Path
) -> None:
    point, *sets = case
    assert in_child(lambda: toy_fit(tmp_path, *sets), point) == EXIT_CODE
    same(toy_fit(tmp_path, *sets, resume=True), tmp_path, *unbroken(*sets))


def test_killed_after_the_end_does_not_train_again(unbroken: Unbroken, tmp_path: Path) -> None:
    assert in_child(lambda: toy_fit(tmp_path), "after_fit:1") == EXIT_CODE
    said: list[str] = []
    same(toy_fit(tmp_path, "no_memory_at_step=0", resume=True, said=said), tmp_path, *unbroken())
    assert said == ["training was finished before (15 steps); taking its weights"]


def test_killed_again_and_again(unbroken: Unbroken, tmp_path: Path) -> None:
    for point in ("after_step:2", "mid_validation:3", "mid_save:3", "after_step:13"):
        assert in_child(lambda: toy_fit(tmp_path, resume=True), point) == EXIT_CODE
    same(toy_fit(tmp_path, resume=True), tmp_path, *unbroken())


def test_killed_with_loader_processes(unbroken: Unbroken, tmp_path: Path) -> None:
    two, others = "data.workers=2", _children()  # what tests before this one left running in the process
    assert in_child(lambda: toy_fit(tmp_path, two), "after_step:8") == EXIT_CODE
    same(toy_fit(tmp_path, two, resume=True), tmp_path, *unbroken())  # as without them
    assert _children() <= others


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("signum", "where", "code"),
    [
        (signal.SIGINT, "signal_at_step=7", 130),
        (signal.SIGTERM, "signal_at_step=4", 143),  # the last step of an epoch
        (signal.SIGTERM, "signal_in_validation=true", 143),
    ],
)
def test_a_signal_finishes_the_step_saves_and_says_so(
    signum: int, where: str, code: int, unbroken: Unbroken, tmp_path: Path
) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted, match="saved after step") as caught:
        toy_fit(tmp_path, SPARSE, where, f"signum={int(signum)}")
    assert caught.value.exit_code == code
    assert signal.getsignal(signum) is before
    saved = newest(tmp_path / "checkpoints", print)
    assert saved is not None
    wanted = {"signal_at_step=7": 8, "signal_at_step=4": 5}.get(where, 10)  # nothing is lost
    assert saved.facts["step"] == wanted
    same(toy_fit(tmp_path, SPARSE, resume=True), tmp_path, *unbroken(SPARSE))


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="at once by a second signal") as caught:
        toy_fit(tmp_path, SPARSE, "signal_at_step=7", "signals=2", f"signum={int(signal.SIGINT)}")
    assert caught.value.exit_code == 130
    saved = newest(tmp_path / "checkpoints", print)
    assert saved is not None
    assert saved.facts["step"] == 5  # that of the validation; the rest is not waited for


def test_signals_long_apart_are_two_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with signals.StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        now[0] += 6.0
        signal.raise_signal(signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


# ---------------------------------------------------------------- the disk


def test_a_damaged_last_checkpoint_costs_a_step(unbroken: Unbroken, tmp_path: Path) -> None:
    assert in_child(lambda: toy_fit(tmp_path), "after_step:8") == EXIT_CODE
    last = max((tmp_path / "checkpoints").glob("save-*.ckpt"))
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    said: list[str] = []
    same(toy_fit(tmp_path, resume=True, said=said), tmp_path, *unbroken())
    assert f"checkpoint {last.name}: content differs from its sha256; trying the one before" in said
    assert "resuming after step 6, in epoch 2" in said


def test_nothing_usable_is_told(tmp_path: Path) -> None:
    assert in_child(lambda: toy_fit(tmp_path), "after_step:3") == EXIT_CODE
    for path in (tmp_path / "checkpoints").glob("save-*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"none usable; .* --resume no"):
        toy_fit(tmp_path, resume=True)


def test_lost_best_weights_do_not_stop_a_resume(tmp_path: Path) -> None:
    assert in_child(lambda: toy_fit(tmp_path), "after_step:8") == EXIT_CODE
    for path in (tmp_path / "checkpoints").glob("best-*.ckpt"):
        path.write_bytes(b"")
    said: list[str] = []
    result = toy_fit(tmp_path, resume=True, said=said)
    assert any(line.startswith("best weights so far are lost (best-00000005.ckpt") for line in said)
    assert result.best["val/loss"] == min(value for step, value in result.history["val/loss"] if step > 5)


def test_a_full_disk_ends_the_run_and_spoils_nothing(
    unbroken: Unbroken, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert in_child(lambda: toy_fit(tmp_path), "after_step:8") == EXIT_CODE

    def starved() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        toy_fit(tmp_path, resume=True)

    assert in_child(starved) == ResourcesExhausted.exit_code
    assert "no space left writing it" in capfd.readouterr().err
    same(toy_fit(tmp_path, resume=True), tmp_path, *unbroken())


# ---------------------------------------------------------------- several processes

EXACT = ("norm=false", "dropout=0", "train.ema_decay=0")


def script(folder: Path, *args: str) -> tuple[int, dict[str, Any]]:
    """The toy as a program: exit code and what it prints."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    env.pop(VARIABLE, None)
    command = [sys.executable, "-m", "tests.shared.toy_training", str(folder), *args]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=240, check=False, cwd=ROOT
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_two_processes_learn_what_one_does(unbroken: Unbroken, tmp_path: Path) -> None:
    code, two = script(tmp_path, "train.devices=2", *EXACT)
    assert code == 0
    one = unbroken(*EXACT)[0]
    for name, points in one.history.items():
        assert [step for step, _ in points] == [step for step, _ in two["history"][name]]
        wanted = pytest.approx([value for _, value in points], abs=1e-6)
        assert [value for _, value in two["history"][name]] == wanted
    assert two["steps"] == 15
    assert len([line for line in two["said"] if line.startswith("epoch")]) == 3


@pytest.mark.slow
def test_the_death_of_a_process_ends_all(tmp_path: Path) -> None:
    code, told = script(tmp_path, "train.devices=2", "die_at_step=7", *EXACT)
    assert code == ResourcesExhausted.exit_code
    assert "process 1 of 0–1 ended (exit code 11" in told["text"]
    saved = newest(tmp_path / "checkpoints", print)
    assert saved is not None
    assert saved.facts["step"] == 7
    assert _strays(tmp_path) == []


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on(unbroken: Unbroken, tmp_path: Path) -> None:
    code, told = script(tmp_path, "train.devices=2", "signal_at_step=7", *EXACT)
    assert code == 143
    assert "saved after step 8" in told["text"]
    code, two = script(tmp_path, "train.devices=2", "resume", *EXACT)
    assert code == 0
    wanted = pytest.approx([value for _, value in unbroken(*EXACT)[0].history["train/loss"]], abs=1e-6)
    assert [value for _, value in two["history"]["train/loss"]] == wanted
    assert _strays(tmp_path) == []


@pytest.mark.slow
def test_kill_9_at_random_moments_with_loader_processes(unbroken: Unbroken, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    command = [sys.executable, "-m", "tests.shared.toy_training", str(tmp_path), "resume", "data.workers=2"]
    family: list[psutil.Process] = []
    for _ in range(2):
        running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        checkpoints, deadline = tmp_path / "checkpoints", time.monotonic() + 120
        before = set(checkpoints.glob("save-*.json"))
        while not set(checkpoints.glob("save-*.json")) - before and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(float(random.uniform(0, 0.3)))
        family += psutil.Process(running.pid).children(recursive=True)
        running.kill()
        running.wait()
    same(toy_fit(tmp_path, "data.workers=2", resume=True), tmp_path, *unbroken())
    assert len(family) >= 2
    psutil.wait_procs(family, timeout=30)  # loader processes look for their parent every few seconds
    assert not [process for process in family if process.is_running()]


def _children() -> set[str]:
    found = psutil.Process().children(recursive=True)
    lines = {" ".join(p.cmdline()) for p in found if p.is_running()}
    return {line for line in lines if "resource_tracker" not in line}


def _strays(folder: Path) -> list[int]:
    """Processes with `folder` on their command line."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found
