"""Cases as arrays: conventions settled or asked for, everything that ruins a segmentation refused or said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medical.brats_seg.cases import Case, check_dataset, read_case, split_by_patient
from medical.brats_seg.config import BratsConfig
from medical.brats_seg.layouts import CaseFiles, discover
from medical.nifti import reorient
from shared.config import resolve
from shared.errors import DataInvalid, ItemError
from tests.samples import (
    LPS,
    MODALITIES,
    SHAPE,
    STYLES,
    case_row,
    head,
    write_case,
    write_csv,
    write_msd,
    write_nifti,
)


def config(*sets: str) -> BratsConfig:
    return resolve(BratsConfig, [], sets)


def read(folder: Path, *sets: str, label: bool = True) -> Case:
    (files,) = discover([folder])
    return read_case(files, config(*sets), with_label=label)


def relabel(folder: Path, data: np.ndarray, **more: Any) -> None:
    (path,) = folder.glob("*seg.nii.gz")
    write_nifti(path, data, **more)


# ---------------------------------------------------------------- what is read


def test_a_case_is_what_the_files_say(tmp_path: Path) -> None:
    images, tissue = head(seed=1)
    case = read(write_case(tmp_path, 1))
    assert case.images.shape == (4, *SHAPE) and case.images.dtype == np.float32
    for name, channel in zip(("flair", "t1ce", "t1", "t2"), case.images):
        np.testing.assert_array_equal(channel, images[name])
    assert case.label is not None and case.label.dtype == np.uint8
    np.testing.assert_array_equal(case.label, np.array([0, 1, 2, 4])[tissue])
    np.testing.assert_array_equal(case.affine, LPS)
    assert (case.convention, case.warnings) == ("brats2021", [])


def test_channels_follow_the_configured_order(tmp_path: Path) -> None:
    case = read(write_case(tmp_path, 1, "brats2023"), "data.modalities=[t1, t2, flair, t1ce]")
    np.testing.assert_array_equal(case.images[3], head(seed=1)[0]["t1ce"])
    assert case.matched["t1"] == "BraTS-GLI-00001-000-t1n.nii.gz"


def test_task01_channels_and_labels(tmp_path: Path) -> None:
    files = discover([write_msd(tmp_path, 1, 0)])[0]
    case = read_case(files, config(), with_label=True)
    images, tissue = head(seed=1)
    np.testing.assert_array_equal(case.images[1], images["t1ce"])
    np.testing.assert_array_equal(case.label, np.array([0, 2, 1, 3])[tissue])
    assert case.convention == "msd"
    alone = read_case(discover([tmp_path / "imagesTr" / "BRATS_001.nii.gz"])[0], config())
    assert any("channel order taken as flair, t1, t1ce, t2" in text for text in alone.warnings)


# ---------------------------------------------------------------- conventions


@pytest.mark.parametrize(
    ("style", "values", "sets", "wanted"),
    [
        ("brats2021", (1, 2, 4), (), "brats2021"),
        ("brats2018", (2,), (), "brats2021"),
        ("brats2023", (1, 2, 3), (), "brats2023"),
        ("brats2024", (1, 2, 3, 4), ("data.labels=brats2024",), "brats2024"),
        ("brats2023", (1, 2, 4), ("data.labels=brats2021",), "brats2021"),
        (None, (1, 2, 4), (), "brats2021"),
        (None, (1, 2, 3), ("data.labels=msd",), "msd"),
        (None, (), ("data.labels=brats2023",), "brats2023"),
        ("brats2021", (), (), "brats2021"),
    ],
)
def test_convention_settled(
    tmp_path: Path, style: str | None, values: tuple[int, ...], sets: tuple[str, ...], wanted: str
) -> None:
    folder = write_case(tmp_path, 1, style or "brats2021", case_id=None if style else "anna")
    data = np.zeros(SHAPE, np.uint8)
    data.flat[: len(values)] = values
    relabel(folder, data)
    assert read(folder, *sets).convention == wanted


@pytest.mark.parametrize(
    ("style", "values", "sets", "words"),
    [
        (
            "brats2024",
            (1, 2, 3, 4),
            (),
            "label 4 .1 voxels. under 2023.* cavity .2024. or enhancing .2021.*set data.labels",
        ),
        (None, (1, 2, 3), (), r"labels \[1, 2, 3\] fit several conventions"),
        (None, (1, 2, 3, 4), (), "fit several conventions"),
        (
            "brats2021",
            (1, 2, 3),
            (),
            "labels 3 .1 voxels. are not in brats2021.*data.labels=brats2023 or brats2024 or msd",
        ),
        (
            "brats2023",
            (1, 7, 9),
            (),
            r"labels 7 \(1 voxels\), 9 \(1 voxels\) are not in brats2023.*correct the label map",
        ),
        ("brats2021", (1, 2, 4), ("data.labels=msd",), "labels 4 .1 voxels. are not in msd"),
    ],
)
def test_convention_asked_for(
    tmp_path: Path, style: str | None, values: tuple[int, ...], sets: tuple[str, ...], words: str
) -> None:
    folder = write_case(tmp_path, 1, style or "brats2021", case_id=None if style else "anna")
    data = np.zeros(SHAPE, np.uint8)
    data.flat[: len(values)] = values
    relabel(folder, data)
    with pytest.raises(ItemError, match=words) as caught:
        read(folder, *sets)
    assert "seg.nii.gz" in str(caught.value)


def test_without_a_label_the_name_speaks(tmp_path: Path) -> None:
    assert read(write_case(tmp_path, 1, "brats2023", label=False), label=False).convention == "brats2023"
    assert read(write_case(tmp_path / "b", 1, case_id="anna", label=False), label=False).convention is None
    with pytest.raises(ItemError, match="no label file"):
        read(tmp_path / "b")


@pytest.mark.parametrize(
    ("value", "dtype", "words"),
    [
        (0.999, "float32", r"labels 0\.999 \(9 voxels\); whole numbers; resample labels with nearest"),
        (0.999, "float64", r"labels 0\.999 \(9 voxels\)"),
        (np.nan, "float32", "NaN or infinite labels"),
        (np.inf, "float64", "NaN or infinite labels"),
        (-1, "int16", r"labels -1 \(9 voxels\); 0 to 4"),
        (256, "int32", r"labels 256 \(9 voxels\)"),
        (1e30, "float32", r"labels 1e\+30 \(9 voxels\)"),
    ],
)
def test_labels_that_are_no_labels(tmp_path: Path, value: float, dtype: str, words: str) -> None:
    folder = write_case(tmp_path, 1)
    data = np.ones(SHAPE, dtype)
    data.flat[:9] = value
    relabel(folder, data)
    with pytest.raises(ItemError, match=words):
        read(folder)


def test_float_labels_that_are_whole_numbers_are_fine(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1)
    data = np.zeros(SHAPE, np.float32)
    data.flat[:3] = (1, 2.0000002, 3.9999998)
    relabel(folder, data)
    case = read(folder)
    assert case.label is not None and np.unique(case.label).tolist() == [0, 1, 2, 4]


# ---------------------------------------------------------------- geometry


def test_another_shape_is_refused_with_both_files(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1, images={"t2": head((16, 18, 11))[0]["t2"]})
    with pytest.raises(
        ItemError, match=r"_t2\.nii\.gz:dim: 16×18×11 voxels; 16×18×12 like BraTS2021_00001_flair"
    ):
        read(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.array([5, 0, -2]), r"5, 0, 2 mm \(x, y, z\) off BraTS2021_00001_flair"),
        (np.array([0.01, 0, 0]), r"0\.01, 0, 0 mm"),
    ],
)
def test_another_place_is_refused_in_mm(tmp_path: Path, change: np.ndarray, words: str) -> None:
    folder = write_case(tmp_path, 1)
    moved = LPS.copy()
    moved[:3, 3] += change
    write_nifti(folder / f"{folder.name}_t1.nii.gz", head(seed=1)[0]["t1"], moved)
    with pytest.raises(ItemError, match=words) as caught:
        read(folder)
    assert "_t1.nii.gz:affine" in str(caught.value)


def test_another_spacing_is_refused(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1)
    write_nifti(folder / f"{folder.name}_t1.nii.gz", head(seed=1)[0]["t1"], LPS @ np.diag([1, 1, 2, 1.0]))
    with pytest.raises(ItemError, match=r"0, 0, 11 mm"):
        read(folder)


def test_header_rounding_is_tolerated(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1)
    moved = LPS.copy()
    moved[:3, 3] += 5e-4
    write_nifti(folder / f"{folder.name}_t1.nii.gz", head(seed=1)[0]["t1"], moved)
    assert read(folder).warnings == []


@pytest.mark.parametrize("part", ["t1", "seg"])
def test_another_orientation_is_mended(tmp_path: Path, part: str) -> None:
    images, tissue = head(seed=1)
    folder = write_case(tmp_path, 1)
    path = folder / f"{folder.name}_{part}.nii.gz"
    original = images["t1"] if part == "t1" else np.array([0, 1, 2, 4], np.uint8)[tissue]
    swapped = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    data, affine = reorient(original, LPS, swapped)
    assert data.shape != original.shape
    write_nifti(path, np.ascontiguousarray(data), affine)
    case = read(folder)
    np.testing.assert_array_equal(case.images[2], images["t1"])
    np.testing.assert_array_equal(case.label, np.array([0, 1, 2, 4])[tissue])
    assert any("turned to LPS" in text for text in case.warnings) == (part == "t1")


# ---------------------------------------------------------------- intensities


def with_image(tmp_path: Path, image: np.ndarray, name: str = "t1") -> Path:
    return write_case(tmp_path, 1, images={name: image})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_a_number_fails_or_becomes_zero(tmp_path: Path, value: float) -> None:
    image = head(seed=1)[0]["t1"].astype(np.float32)
    image[8, 9, 6:9] = value
    folder = with_image(tmp_path, image)
    with pytest.raises(ItemError, match=r"_t1\.nii\.gz:t1: 3 NaN or infinite voxels; .*data\.nan=zero"):
        read(folder)
    case = read(folder, "data.nan=zero")
    assert not case.images[2, 8, 9, 6:9].any() and np.isfinite(case.images).all()
    assert any("3 NaN or infinite voxels set to 0" in text for text in case.warnings)


@pytest.mark.parametrize(("value", "words"), [(0, "all voxels are 0"), (7, "all non-zero voxels are 7")])
def test_an_empty_or_constant_channel_is_refused(tmp_path: Path, value: int, words: str) -> None:
    folder = with_image(tmp_path, np.full(SHAPE, value, np.int16))
    with pytest.raises(ItemError, match=words):
        read(folder)


def test_the_same_image_twice_is_said(tmp_path: Path) -> None:
    case = read(with_image(tmp_path, head(seed=1)[0]["t1ce"]))
    assert any("t1 and t1ce are identical" in text for text in case.warnings)


def test_a_head_with_its_skull_is_said(tmp_path: Path) -> None:
    shape = (40, 40, 40)
    images, _ = head(shape, 1)
    noise = np.random.default_rng(0).integers(20, 40, shape).astype(np.int16)
    folder = write_case(
        tmp_path, 1, shape=shape, images={name: image + noise for name, image in images.items()}
    )
    assert any("only 0% of voxels are 0; skull-stripped" in text for text in read(folder).warnings)
    assert read(write_case(tmp_path / "b", 1, shape=shape)).warnings == []


def test_a_constant_background_off_zero_is_settled(tmp_path: Path) -> None:
    """What an intercept or a standardisation leaves outside the head: normalisation would take it for head."""
    images, _ = head(seed=1)
    plain = read(write_case(tmp_path, 1))
    moved = {name: image - 7 if name == "t1" else image for name, image in images.items()}
    case = read(write_case(tmp_path / "b", 1, images=moved))
    assert any("background is -7, not 0; set to 0" in text for text in case.warnings)
    np.testing.assert_array_equal(case.images[2], np.where(plain.images[2] != 0, plain.images[2] - 7, 0))


def test_identical_images_are_named_right_beside_a_missing_one(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1, label=False)
    (flair,) = folder.glob("*flair*")
    flair.unlink()
    (t1,), (t2,) = folder.glob("*_t1.nii.gz"), folder.glob("*_t2.nii.gz")
    t2.write_bytes(t1.read_bytes())
    case = read(folder, "predict.allow_missing=true", label=False)
    assert [text for text in case.warnings if "identical" in text] == [
        "t2 and t1 are identical; one of them is probably the wrong file"
    ]


def test_an_empty_map_fits_every_convention(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1, case_id="anna")
    relabel(folder, np.zeros(SHAPE, np.uint8))
    assert read(folder).convention == "brats2021"


def test_scaling_slopes_are_applied(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1)
    image = head(seed=1)[0]["t1"]
    write_nifti(folder / f"{folder.name}_t1.nii.gz", image, fields={"scl_slope": 0.5, "scl_inter": 0})
    np.testing.assert_allclose(read(folder).images[2], image * 0.5)


# ---------------------------------------------------------------- missing modalities


def test_a_missing_modality_is_refused_or_filled(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1, skip=("t1ce",))
    with pytest.raises(ItemError, match="no t1ce"):
        read(folder, label=False)
    case = read(folder, "predict.allow_missing=true", label=False)
    assert not case.images[1].any() and case.images[0].any()
    assert "t1ce missing; zeros used" in case.warnings
    with pytest.raises(ItemError, match="no t1ce"):  # never in training
        read(folder, "predict.allow_missing=true", label=True)


def test_a_case_of_nothing_cannot_be_filled(tmp_path: Path) -> None:
    files = CaseFiles("x", "x", {}, fault=None)
    broken = replace(discover([write_case(tmp_path, 1, skip=("t1",))])[0], images={})
    with pytest.raises(ItemError):
        read_case(broken, config("predict.allow_missing=true"))
    assert files.sources == ()


# ---------------------------------------------------------------- splits


def patients(names: Mapping[str, int]) -> list[CaseFiles]:
    return [
        CaseFiles(f"{name}-{i:03}", name, {"t1": Path(f"{name}-{i}.nii")})
        for name, n in names.items()
        for i in range(n)
    ]


@given(
    st.dictionaries(st.text("abcdef0123", min_size=1, max_size=6), st.integers(1, 3), min_size=5),
    st.randoms(),
)
def test_split_is_by_patient_disjoint_and_stable(names: dict[str, int], random: Any) -> None:
    cases = patients(names)
    held: list[str] = []
    for fold in range(5):
        train, test = split_by_patient(cases, 5, fold)
        assert not {c.patient for c in train} & {c.patient for c in test}
        assert sorted(c.id for c in (*train, *test)) == sorted(c.id for c in cases)
        held += [c.patient for c in test]
        shuffled = random.sample(cases, len(cases))
        assert {c.id for c in split_by_patient(shuffled, 5, fold)[1]} == {c.id for c in test}
    counts = [len({c.patient for c in split_by_patient(cases, 5, fold)[1]}) for fold in range(5)]
    assert max(counts) - min(counts) <= 1 and set(held) == set(names)


def test_split_is_the_same_for_ever() -> None:
    cases = patients({f"BraTS20_Training_{n:03}": 1 for n in range(1, 11)})
    assert [c.patient[-3:] for c in split_by_patient(cases, 5, 0)[1]] == ["008", "009"]


def test_folds_of_a_datalist_are_used(tmp_path: Path) -> None:
    folders = [write_case(tmp_path, number, "brats2023") for number in (1, 2, 3)]
    rows = [case_row(folder, fold=number) for number, folder in enumerate(folders)]
    train, test = split_by_patient(discover([write_csv(tmp_path / "cases.csv", rows)]), 5, 1)
    assert [c.id for c in test] == [folders[1].name] and len(train) == 2


# ---------------------------------------------------------------- the whole set


def test_check_lists_every_fault_at_once(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_case(tmp_path, number)
    write_case(tmp_path, 4, skip=("t2",))
    write_case(tmp_path, 5, images={"t2": head((16, 18, 11))[0]["t2"]})
    relabel(write_case(tmp_path, 6), np.full(SHAPE, 9, np.uint8))
    two = write_case(tmp_path, 7)
    for part in ("t1", "t2"):
        path = two / f"{two.name}_{part}.nii.gz"
        write_nifti(path, head()[0][part], fields={"dim[1]": -5})
    image = head(seed=8)[0]["flair"].astype(np.float32)
    image[0, 0, 0] = np.nan
    write_case(tmp_path, 8, images={"flair": image})
    write_case(tmp_path, 9, label=False)
    ticks: list[tuple[int, int]] = []
    faults = check_dataset(config(f"data.path={tmp_path}"), lambda *at: ticks.append(at))
    errors = [str(fault) for fault in faults if fault.severity == "error"]
    for words in (
        "no t2",
        "16×18×12 like",
        "labels 9 (3,456 voxels)",
        "_t1.nii.gz:dim[1]",
        "_t2.nii.gz:dim[1]",
        "NaN",
    ):
        assert sum(words in text for text in errors) == 1, words
    assert len(errors) == 6
    assert [fault.found for fault in faults if fault.severity == "warning"] == [
        "1 cases without label are left out"
    ]
    assert ticks[-1] == (5, 5)


def test_check_of_a_sound_set_is_silent(tmp_path: Path) -> None:
    for number, style in enumerate(STYLES):
        write_case(tmp_path, number, style)
    faults = check_dataset(config(f"data.path={tmp_path}"))
    assert [str(fault) for fault in faults if fault.severity == "error"] == []
    assert [fault.found for fault in faults] == [
        "label conventions mixed: brats2021, brats2023; each case is read by its own"
    ]


def test_check_wants_labels_and_says_what_training_lacks(tmp_path: Path) -> None:
    """One labelled patient, or an empty fold, is enough to score a model: only training fails, and says so itself."""
    write_case(tmp_path, 1, label=False)
    settings = f"data.path={tmp_path}"
    assert "no labelled case" in str(check_dataset(config(settings))[0])
    write_case(tmp_path / "b", 2)
    (fault, *_) = check_dataset(config(settings))
    assert (fault.severity, fault.found[:18]) == ("warning", "1 labelled patient")
    write_case(tmp_path / "b", 3)
    (fault, *_) = check_dataset(config(settings, "data.fold=7"))
    assert fault.severity == "warning" and "no labelled case in fold 7" in str(fault)


def test_one_patient_in_two_folds_is_refused_with_both_paths(tmp_path: Path) -> None:
    folders = [
        write_case(tmp_path, 1, "brats2023"),
        write_case(tmp_path, 1, "brats2024"),
        write_case(tmp_path, 2),
    ]
    rows = [case_row(folder, fold=number) for number, folder in enumerate(folders)]
    path = write_csv(tmp_path / "cases.csv", rows)
    (fault,) = [f for f in check_dataset(config(f"data.path={path}")) if f.severity == "error"]
    assert all(folder.name in str(fault) for folder in folders[:2])
    assert "patient BraTS-GLI-00001 is in fold 1 here and 0 at" in str(fault)
    with pytest.raises(DataInvalid, match="one fold a patient"):
        split_by_patient(discover([path]), 5, 0)


# ---------------------------------------------------------------- real cases


@pytest.mark.parametrize(
    ("name", "convention", "counts"),
    [
        ("Brats18_2013_21_1", "brats2021", {0: 8_807_326, 1: 57_655, 2: 45_203, 4: 17_816}),
        ("BraTS-GLI-00000-000", "brats2023", {0: 8_870_695, 1: 11_738, 2: 12_836, 3: 32_731}),
    ],
)
def test_real_cases_have_the_label_counts_of_their_manifest(
    data_dir: Path, name: str, convention: str, counts: dict[int, int]
) -> None:
    case = read(data_dir / "brats" / "cases" / name)
    assert (case.convention, case.images.shape, case.warnings) == (convention, (4, 240, 240, 155), [])
    assert case.label is not None
    values, found = np.unique(case.label, return_counts=True)
    assert dict(zip(values.tolist(), found.tolist())) == counts
    assert set(case.matched) == set(MODALITIES)
