"""The run's own decisions: which data it may go on with, what repeats it, what a dead process left."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pipelines.run import Request, _card, _refuse_other_data, command, resolve
from shared.bundle import Bundle
from shared.errors import UsageError
from shared.io.atomic import sweep_temporaries, temporary_name
from shared.pipeline import DataFacts, Evaluation
from tests.pipelines.fake_tracking import PIPELINE, LineConfig, make_bundle


def test_a_resume_with_other_data_is_refused(tmp_path: Path) -> None:
    facts = DataFacts("my_study", "a" * 64, 3)
    for _ in range(2):  # the first attempt, and one with the same data
        _refuse_other_data(tmp_path, facts, "0123456789")
    with pytest.raises(UsageError, match=r"my_study: changed since run 01234567 began; .*--resume no"):
        _refuse_other_data(tmp_path, DataFacts("my_study", "b" * 64, 3), "0123456789")
    _refuse_other_data(tmp_path, facts, "0123456789")


def test_the_repeating_command_resolves_to_the_same_configuration() -> None:
    request = Request(
        "brats-seg", "smoke", None, Path("my study"), "auto", ("train.lr=1e-4", "data.nan=zero")
    )
    words = shlex.split(command(request))
    assert words[:3] == ["pipelines", "run", "brats-seg"]
    again = Request(
        words[2],
        words[words.index("--preset") + 1],
        data=Path(words[words.index("--data") + 1]),
        sets=[words[i + 1] for i, word in enumerate(words) if word == "-s"],
    )
    assert resolve(again)[1] == resolve(request)[1]


def test_card_states_data_size_seed_and_command(tmp_path: Path) -> None:
    bundle: Bundle = make_bundle(tmp_path / "b")
    evaluation = Evaluation({"score": 0.5, "spread": float("nan")}, notes=["one case"])
    facts = DataFacts("my_study", "a" * 64, 3, ("3 lines",))
    card = _card(PIPELINE, LineConfig(seed=7), bundle, evaluation, facts, "pipelines run toy-line")
    for text in ("my_study, 3 items", "a" * 16, "4; seed 7", "`pipelines run toy-line`", "| score | 0.5 |",
                 "- 3 lines\n- one case"):  # fmt: skip
        assert text in card, text


def test_what_a_dead_process_left_half_written_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    kept = [tmp_path / "checkpoints" / "save-000001.ckpt", tmp_path / ".lock", tmp_path / "notes.tmp"]
    half = temporary_name(tmp_path / "checkpoints" / "save-000002.ckpt")
    half = half.with_name(half.name + ".ckpt")
    for path in (*kept, half):
        path.write_text("x")
    draft = temporary_name(tmp_path / "bundle")
    draft.mkdir()
    (draft / "weights.safetensors").write_text("x")
    assert sweep_temporaries(tmp_path) == 2
    assert all(path.exists() for path in kept)
    assert not half.exists() and not draft.exists()
