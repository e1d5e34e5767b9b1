"""Training that is killed, stopped, starved or fed nonsense: what is left, and what a resume makes of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.training.fit import FitResult
from shared.training.injector import EXIT_CODE, VARIABLE
from shared.training.seed import state_sha
from tests.shared.toy_training import final_state, toy_fit


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
    ("after_step:1",), ("after_step:3",), ("after_step:5",), ("after_step:6",), ("after_step:15",),
    ("after_step:4", SPARSE), ("after_step:9", SPARSE), ("after_step:15", SPARSE),
    ("mid_save:1",), ("mid_save:4",), ("mid_save:8",), ("after_save:5",), ("after_save:6",), ("after_manifest:5",),
    ("mid_validation:2",), ("mid_validation:6",), ("mid_validation:5", SPARSE), ("mid_validation:9",),
    ("after_step:4", "train.accumulate=2"), ("mid_validation:5", "train.accumulate=2"),
    ("after_step:7", "train.validate_every=2"), ("after_manifest:8", "train.validate_every=2"),
    ("mid_validation:4", "train.validate_every=2"), ("after_step:11", "train.validate_every=7"),
]  # fmt: skip


@pytest.mark.parametrize("case", POINTS, ids=lambda case: "+".join(case).replace("train.", ""))
def test_killed_anywhere_and_resumed_is_bit_equal(
    case: tuple[str, ...], unbroken: Unbroken, tmp_path: Path
) -> None:
    point, *sets = case
    assert in_child(lambda: toy_fit(tmp_path, *sets), point) == EXIT_CODE
    same(toy_fit(tmp_path, *sets, resume=True), tmp_path, *unbroken(*sets))
