"""Twenty case folders, five broken in different ways: fifteen segmentations, five mends, and a second run that does
only what is left."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medical.brats_seg.pipeline import PIPELINE
from pipelines.batch import Summary, exit_code, predict_batch
from shared.bundle import Bundle
from tests import samples

CASES = 20
TINY = (
    "data.spacing_mm=null",
    "model.window_size=4",
    "model.stages=2",
    "predict.window=[16,16,16]",
    "predict.overlap=0",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with fresh weights: what it calls tumour does not matter here."""
    config = PIPELINE.resolve("smoke", sets=TINY)
    torch.manual_seed(0)
    weights = PIPELINE.task(config).network.state_dict()
    path = tmp_path_factory.mktemp("model") / "bundle"
    return Bundle.save(path, pipeline=PIPELINE.name, config=config, state_dict=weights).path


def truncate(folder: Path) -> Path:
    return samples.cut(folder / f"{folder.name}_t1ce.nii.gz", 0.5)


def reshape(folder: Path) -> Path:
    return samples.write_nifti(folder / f"{folder.name}_t2.nii.gz", np.ones((16, 18, 11), np.int16))


def remove(folder: Path) -> Path:
    (folder / f"{folder.name}_flair.nii.gz").unlink()
    return folder


def spoil_affine(folder: Path) -> Path:
    path = folder / f"{folder.name}_t1.nii.gz"
    return samples.write_nifti(path, samples.head()[0]["t1"], fields={"srow_x": [np.nan, 0, 0, 0]})


def unreadable(folder: Path) -> Path:
    """Rights would not stop root: a link to nowhere stops everybody."""
    path = folder / f"{folder.name}_t1.nii.gz"
    path.unlink()
    path.symlink_to(folder / "gone.nii.gz")
    return path


# Case number → what is done to it, what the manifest must say was found, the field it must name.
BROKEN: dict[int, tuple[Callable[[Path], Path], str, str]] = {
    2: (truncate, "truncated gzip", ""),
    5: (reshape, "16×18×11 voxels", "dim"),
    9: (remove, "t1, t1ce, t2 but no flair", ""),
    13: (spoil_affine, "NaN", "affine"),
    17: (unreadable, "link to a file that is not there", ""),
}


@pytest.fixture
def cases(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """The folder of cases, and case id → its broken file."""
    root, broken = tmp_path / "in", {}
    for number in range(CASES):
        folder = samples.write_case(root, number, label=False)
        if number in BROKEN:
            broken[folder.name] = BROKEN[number][0](folder)
    return root, broken


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


def predict(model: Path, root: Path, output: Path, said: list[str]) -> Summary:
    return predict_batch(
        "brats-seg", model, [root], output, workers=1, options={"picture": False}, say=said.append
    )


def test_twenty_cases_five_broken(model: Path, cases: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    root, broken = cases
    output = tmp_path / "out"
    said: list[str] = []
    first = predict(model, root, output, said)
    assert (first.items, first.ok, first.failed, first.skipped) == (20, 15, 5, 0)
    assert exit_code(first) == 4
    rows = {line["item"]: line for line in lines(output)}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == set(broken)
    for number, name in zip(BROKEN, broken):
        _, found, field = BROKEN[number]
        error = rows[name]["error"]
        assert error["source"] == str(broken[name])
        assert re.search(found, error["found"]), error
        assert error.get("field", "") == field
        assert error["mend"], error
        assert any(error["message"] in line for line in said)
    for name in rows.keys() - set(broken):
        label = nib.load(output / name / f"{name}_seg.nii.gz")
        assert label.shape == samples.SHAPE
        assert np.array_equal(label.affine, samples.LPS)
        assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1, 2, 4}
        assert {path.name for path in (output / name).iterdir()} == {f"{name}_seg.nii.gz", f"{name}.json"}
    assert not list(output.rglob("*.tmp"))

    # One of the five is mended: the next run does it, tries the other four again, and leaves the fifteen alone.
    made = {path: path.stat().st_mtime_ns for path in output.rglob("*_seg.nii.gz")}
    mended = root / "BraTS2021_00009"
    shutil.rmtree(mended)
    samples.write_case(root, 9, label=False)
    second = predict(model, root, output, [])
    assert (second.items, second.ok, second.failed, second.skipped) == (20, 1, 4, 15)
    assert exit_code(second) == 4
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert {*output.rglob("*_seg.nii.gz")} - {*made} == {output / mended.name / f"{mended.name}_seg.nii.gz"}
