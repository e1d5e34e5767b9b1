"""The batch engine: what is written where, what is done again, what is left alone, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pipelines.batch import Summary, exit_code, predict_batch
from pipelines.batch_item import describe
from pipelines.batch_output import LOCK, safe_name
from shared.errors import DataInvalid, EnvironmentUnfit, ModelUnusable, ResourcesExhausted, UsageError
from shared.pipeline import Item
from tests.pipelines.toy_pipeline import FLAT, PIPELINE, TARGET, make_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    PIPELINE.write_sample(folder, 3, 0)
    return folder


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("manifest.jsonl", LOCK)
    }


def counts(summary: Summary) -> tuple[int, int, int, int]:
    return summary.items, summary.ok, summary.failed, summary.skipped


def test_results_and_manifest(
    texts: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    summary = predict_batch(TARGET, model, [texts], output)
    keys = {"items", "ok", "failed", "skipped", "seconds", "manifest", "output", "incomplete"}
    assert set(summary.as_dict()) == keys
    assert counts(summary) == (3, 3, 0, 0)
    assert exit_code(summary) == 0
    made = files(output)
    assert sorted(made) == [f"text0{i}/text0{i}.{end}" for i in range(3) for end in ("json", "out")]
    assert made["text01/text01.out"] == b"GOOD 0 1"
    line = next(line for line in lines(output) if line["item"] == "text01")
    source = texts / "text01.txt"
    assert line["status"] == "ok"
    assert line["inputs"] == [
        {"path": str(source), "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    ]
    assert {o["path"]: o["sha256"] for o in line["outputs"]} == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in made.items()
        if name.startswith("text01/")
    }
    assert line["summary"] == {"letters": 8, "mean": None}
    assert capfd.readouterr().out == ""  # what the predictor prints does not reach the result's stream


def test_only_what_is_left_or_changed_is_done(texts: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict_batch(TARGET, model, [texts], output)
    (texts / "text03.txt").write_text("new")
    (texts / "text00.txt").write_text("other words")
    (output / "text01" / "text01.json").unlink()
    again = predict_batch(TARGET, model, [texts], output)
    assert counts(again) == (4, 3, 0, 1)
    assert (output / "text00" / "text00.out").read_text() == "OTHER WORDS"
    assert (output / "text01" / "text01.json").is_file()
    assert [line["item"] for line in lines(output)[-4:] if line["status"] == "skipped"] == ["text02"]
    assert counts(predict_batch(TARGET, model, [texts], output)) == (4, 0, 0, 4)
    assert counts(predict_batch(TARGET, model, [texts], output, overwrite=True)) == (4, 4, 0, 0)


def test_another_model_or_option_does_all_again(texts: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict_batch(TARGET, model, [texts], output)
    other = make_bundle(tmp_path / "other", value=1.0)
    assert counts(predict_batch(TARGET, other, [texts], output)) == (3, 3, 0, 0)
    changed = predict_batch(TARGET, other, [texts], output, options={"suffix": "text"})
    assert counts(changed) == (3, 3, 0, 0)
    assert sorted(p.name for p in (output / "text00").iterdir()) == ["text00.json", "text00.text"]


@pytest.mark.parametrize("target", [TARGET, FLAT])
def test_peoples_files_are_kept(texts: Path, model: Path, tmp_path: Path, target: str) -> None:
    output = tmp_path / "out"
    predict_batch(target, model, [texts], output)
    place = output / "text00" if target == TARGET else output
    (place / "note.md").write_text("mine")
    (place / "text00.out").write_text("corrected by hand")
    (texts / "text00.txt").write_text("changed")
    refused = predict_batch(target, model, [texts], output)
    assert counts(refused) == (3, 0, 1, 2)
    (error,) = [line["error"]["message"] for line in lines(output) if line["status"] == "failed"]
    assert "text00.out: was changed since it was written" in error
    assert "--overwrite" in error
    assert (place / "text00.out").read_text() == "corrected by hand"
    forced = predict_batch(target, model, [texts], output, overwrite=True)
    assert counts(forced) == (3, 3, 0, 0)
    assert (place / "text00.out").read_text() == "CHANGED"
    assert (place / "note.md").read_text() == "mine"


@pytest.mark.parametrize("target", [TARGET, FLAT])
def test_a_foreign_result_is_not_replaced(texts: Path, model: Path, tmp_path: Path, target: str) -> None:
    output = tmp_path / "out"
    place = output / "text00" if target == TARGET else output
    place.mkdir(parents=True)
    (place / "text00.out").write_text("from elsewhere")
    summary = predict_batch(target, model, [texts], output)
    assert counts(summary) == (3, 2, 1, 0)
    assert (place / "text00.out").read_text() == "from elsewhere"
    assert not (place / "text00.json").exists()


def test_two_items_of_one_name_are_refused_before_work(texts: Path, model: Path, tmp_path: Path) -> None:
    (texts / "sub").mkdir()
    (texts / "sub" / "text00.txt").write_text("twin")
    with pytest.raises(UsageError, match=r"same place as .*text00") as caught:
        predict_batch(TARGET, model, [texts], tmp_path / "out")
    assert caught.value.exit_code == 2
    assert files(tmp_path / "out") == {}


def test_the_same_input_twice_is_one_item(texts: Path, model: Path, tmp_path: Path) -> None:
    both = [texts, Path(f"{texts}/"), texts / "text00.txt"]
    assert counts(predict_batch(TARGET, model, both, tmp_path / "out")) == (3, 3, 0, 0)


def test_output_below_or_equal_to_input_is_not_predicted(texts: Path, model: Path) -> None:
    options = {"suffix": "out.txt"}  # results look like inputs
    for output in (texts / "results", texts):
        assert counts(predict_batch(FLAT, model, [texts], output, options=options)) == (3, 3, 0, 0)
        assert counts(predict_batch(FLAT, model, [texts], output, options=options)) == (3, 0, 0, 3)
        shutil.rmtree(texts / "results", ignore_errors=True)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("case_1", "case_1"), ("Patient 7+b.x", "Patient 7+b.x"), ("名前", "名前")],
)
def test_harmless_names_are_kept(name: str, wanted: str) -> None:
    assert safe_name(name) == wanted


def test_dangerous_names_are_tamed_and_stay_apart() -> None:
    names = ["..", ".", "", "../up", "a/b", "a\\b", "a\nb", "a\0b", ".hidden", "-rf", "manifest.jsonl", "é" * 200,
             "é" * 201, "😀" * 90, "a_b ", "~/x", "C:\\x", "\udcff"]  # fmt: skip
    tamed = [safe_name(name) for name in names]
    assert len(set(tamed)) == len(names)
    for name in tamed:
        assert name == os.path.basename(name)
        assert name[0] not in ".-"
        assert name.isprintable()
        assert len(name.encode()) <= 255
    assert safe_name("a/b") == safe_name("a/b")


def test_an_id_cannot_leave_the_output_folder(model: Path, tmp_path: Path) -> None:
    texts, output = tmp_path / "in", tmp_path / "out"
    texts.mkdir()
    (texts / "named.txt").write_text("id ../../escaped")
    assert counts(predict_batch(TARGET, model, [texts], output)) == (1, 1, 0, 0)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    assert [path.name for path in output.iterdir() if path.is_dir()] == [safe_name("../../escaped")]


def test_special_and_missing_sources_fail_without_hanging(texts: Path, model: Path, tmp_path: Path) -> None:
    os.mkfifo(texts / "pipe.txt")
    (texts / "dangling.txt").symlink_to(texts / "nowhere")
    (texts / "loop.txt").symlink_to(texts / "loop.txt")
    (texts / "emoji 😀\n.txt").write_text("fine")
    output = tmp_path / "out"
    assert counts(predict_batch(TARGET, model, [texts], output)) == (7, 4, 3, 0)
    failed = {line["item"]: line["error"]["message"] for line in lines(output) if line["status"] == "failed"}
    assert "special file" in failed["pipe"]
    assert "cannot be read" in failed["dangling"]
    assert set(failed) == {"pipe", "dangling", "loop"}


def test_whole_batch_errors(
    texts: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="absent: not found"):
        predict_batch(TARGET, model, [tmp_path / "absent"], output)
    with pytest.raises(UsageError, match="--engine spark"):
        predict_batch(TARGET, model, [texts], output, engine="spark")
    with pytest.raises(UsageError, match="cannot be written"):
        predict_batch(TARGET, model, [texts], tmp_path / "file")
    with pytest.raises(UsageError, match=r"predict\.sufix: unknown"):
        predict_batch(TARGET, model, [texts], output, options={"sufix": "x"})
    with pytest.raises(DataInvalid, match="0 of 0 files") as caught:
        predict_batch(TARGET, model, [tmp_path / "empty"], output)
    assert caught.value.exit_code == 6
    with pytest.raises(ModelUnusable):
        predict_batch(TARGET, tmp_path / "absent", [texts], output)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentUnfit, match="'scale' extra"):
        predict_batch(TARGET, model, [texts], output, engine="ray")


def test_an_output_folder_in_use_is_refused(texts: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict_batch(TARGET, model, [texts], output)
    with FileLock(output / LOCK), pytest.raises(UsageError, match=rf"in use by pid {os.getpid()} since"):
        predict_batch(TARGET, model, [texts], output)


def test_a_cut_manifest_line_and_old_drafts_are_mended(texts: Path, model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    predict_batch(TARGET, model, [texts], output)
    content = (output / "manifest.jsonl").read_bytes()
    (output / "manifest.jsonl").write_bytes(content[:-30])
    (output / ".item.123.0123abcd.tmp").mkdir()
    replaced = output / ".replaced.123.0123abcd.tmp"
    replaced.mkdir()
    (output / "text00").rename(replaced / "text00")  # killed while the old was away
    summary = predict_batch(TARGET, model, [texts], output)
    assert counts(summary) == (3, 1, 0, 2)  # the item whose line was cut is made again
    assert not list(output.glob(".*.tmp"))
    assert len(files(output)) == 6
    assert [json.loads(line)["item"] for line in (output / "manifest.jsonl").read_text().splitlines()[3:]]
    assert counts(predict_batch(TARGET, model, [texts], output)) == (3, 0, 0, 3)


def test_fail_fast_stops(texts: Path, model: Path, tmp_path: Path) -> None:
    (texts / "a.txt").write_text("bad")
    summary = predict_batch(TARGET, model, [texts], tmp_path / "out", fail_fast=True)
    assert counts(summary) == (4, 0, 1, 0)
    assert exit_code(summary) == 4


def test_a_full_disk_ends_the_batch(texts: Path, model: Path, tmp_path: Path) -> None:
    (texts / "text01.txt").write_text("full")
    with pytest.raises(ResourcesExhausted, match="No space left") as caught:
        predict_batch(TARGET, model, [texts], tmp_path / "out")
    assert caught.value.exit_code == 8
    assert sorted(files(tmp_path / "out")) == ["text00/text00.json", "text00/text00.out"]


def test_all_failed_is_five(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("bad")
    said: list[str] = []
    summary = predict_batch(TARGET, model, [tmp_path / "in"], tmp_path / "out", say=said.append)
    assert exit_code(summary) == 5
    assert said[0] == "1 of 1 items failed:"
    assert "a.txt:line 1: the word bad" in said[1]


def test_an_item_done_in_part_is_told_and_ends_in_four(texts: Path, model: Path, tmp_path: Path) -> None:
    (texts / "text01.txt").write_text("partly")
    said: list[str] = []
    summary = predict_batch(TARGET, model, [texts], tmp_path / "out", say=said.append)
    assert counts(summary) == (3, 3, 0, 0) and summary.incomplete == 1 and exit_code(summary) == 4
    assert said == ["parts of 1 of 3 items failed:", "  line 2: blotted"]


@pytest.mark.slow
def test_ray_writes_the_same_files(
    texts: Path, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if find_spec("ray") is None:
        pytest.skip("ray is not installed")
    for word in ("bad", "bug", "killed"):
        (texts / f"{word}.txt").write_text(word)
    local = predict_batch(TARGET, model, [texts], tmp_path / "local")
    spread = predict_batch(TARGET, model, [texts], tmp_path / "ray", engine="ray")
    assert counts(spread) == counts(local) == (6, 3, 3, 0)
    assert files(tmp_path / "ray") == files(tmp_path / "local") != {}
    keys = ("item", "status", "inputs", "outputs", "model", "options", "summary")
    told = [
        sorted(json.dumps([line[key] for key in keys]) for line in lines(where) if line["item"] != "killed")
        for where in (tmp_path / "local", tmp_path / "ray")
    ]
    assert told[0] == told[1]
    assert capfd.readouterr().out == ""
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert counts(predict_batch(TARGET, model, [texts], tmp_path / "ray")) == (6, 0, 3, 3)


def test_a_gpu_out_of_memory_is_told_as_such_not_as_a_bug() -> None:
    import torch

    item = Item("a", (Path("a.nii"),), None)
    fault, full = describe(torch.OutOfMemoryError("CUDA out of memory"), item)
    assert "out of memory" in fault["message"] and "bug" not in fault["message"]
    assert not full
