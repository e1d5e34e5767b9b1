"""Every bad input of the reliability sheet, by its row: one line naming file and field, nothing else harmed.

Rows of NIfTI files break one file of one case beside a sound case: reading the file gives the words, checking the data
set gives one error among sound cases, and the sound case still reads.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medical.brats_seg.cases import check_dataset, read_case
from medical.brats_seg.config import BratsConfig
from medical.brats_seg.layouts import discover
from medical.nifti import read_volume
from shared.config import resolve
from shared.errors import DataInvalid, ItemError, SuiteError, UsageError
from shared.io.atomic import atomic_path, probe_writable
from tests.contract.conftest import call
from tests.reliability.messages import in_one_line
from tests.samples import (
    LPS,
    SHAPE,
    bomb,
    case_row,
    cut,
    flip_byte,
    head,
    make_fifo,
    nifti_bytes,
    without_trailer,
    write_case,
    write_csv,
    write_nifti,
)

Make = Callable[[Path], object]
IMAGE = head(seed=1)[0]["t1"]
MIRRORED = LPS @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
MEMORY = 96 * 2**20
"""Bytes any refusal may take at its peak."""


def plain(**fields: Any) -> Make:
    return lambda path: write_nifti(path, IMAGE, fields=fields)


def image(change: Callable[[np.ndarray], np.ndarray]) -> Make:
    return lambda path: write_nifti(path, change(IMAGE.astype(np.float32)))


def spoilt(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(data: np.ndarray) -> np.ndarray:
        data[3, 4, 5] = value
        return data

    return change


def sound(path: Path) -> Path:
    return write_nifti(path, IMAGE)


def moved(*steps: float) -> np.ndarray:
    affine = LPS.copy()
    affine[:3, 3] += steps
    return affine


def label(value: float, dtype: str = "uint8") -> Make:
    def make(path: Path) -> Path:
        data = np.zeros(SHAPE, dtype)
        data.flat[:7] = value
        return write_nifti(path, data)

    return make


# ---------------------------------------------------------------- NIfTI, rows 1 to 15

NIFTI: dict[str, tuple[str, Make, tuple[str, ...]]] = {
    "nifti-01-cut-nii": ("t1.nii", lambda p: cut(sound(p), 0.9), ("truncated: 6,537 bytes", "7,264 bytes")),
    "nifti-01-cut-header": ("t1.nii", lambda p: cut(sound(p), 0.02), ("truncated: 145 bytes",)),
    "nifti-02-cut-gz": ("t1.nii.gz", lambda p: cut(sound(p), 0.9), ("truncated gzip stream",)),
    "nifti-02-cut-gz-header": ("t1.nii.gz", lambda p: cut(sound(p), 0.001), ("truncated",)),
    "nifti-03-gzip-trailer-zeroed": (
        "t1.nii.gz",
        lambda p: without_trailer(sound(p)),
        ("incorrect data check",),
    ),
    "nifti-03-gzip-trailer-missing": (
        "t1.nii.gz",
        lambda p: p.write_bytes(sound(p).read_bytes()[:-8]),
        ("truncated",),
    ),
    "nifti-04-byte-flipped-in-gzip": (
        "t1.nii.gz",
        lambda p: flip_byte(sound(p), 900),
        ("damaged gzip stream",),
    ),
    "nifti-05-empty": ("t1.nii.gz", lambda p: p.write_bytes(b""), ("empty file",)),
    "nifti-05-empty-gzip": ("t1.nii.gz", lambda p: p.write_bytes(gzip.compress(b"")), ("empty file",)),
    "nifti-05-text-named-nii-gz": (
        "t1.nii.gz",
        lambda p: p.write_text("<html>not found</html>"),
        ("sizeof_hdr", "not a NIfTI file", "<htm"),
    ),
    "nifti-06-header-claims-32767-cubed": (
        "t1.nii",
        plain(**{"dim[1]": 32767, "dim[2]": 32767, "dim[3]": 32767}),
        (":dim: 32767×32767×32767 voxels, 131060.0 GiB decoded; at most 8.0 GiB", "predict.max_bytes"),
    ),
    "nifti-06-header-claims-32767-cubed-gz": (
        "t1.nii.gz",
        plain(**{"dim[1]": 32767, "dim[2]": 32767, "dim[3]": 32767}),
        (":dim: 32767×32767×32767",),
    ),
    "nifti-06-gzip-bomb": ("t1.nii.gz", lambda p: bomb(p, 2), ("over 16 MiB beyond its voxels",)),
    "nifti-07-negative-dim": ("t1.nii", plain(**{"dim[1]": -5}), (":dim[1]: -5",)),
    "nifti-07-zero-dim": ("t1.nii.gz", plain(**{"dim[3]": 0}), (":dim[3]: 0",)),
    "nifti-07-too-many-dims": ("t1.nii.gz", plain(**{"dim[0]": 9}), (":dim[0]", "dimensions")),
    "nifti-08-unknown-datatype": ("t1.nii", plain(datatype=999), (":datatype: unknown code 999",)),
    "nifti-08-rgb": ("t1.nii", plain(datatype=128), (":datatype: colour",)),
    "nifti-08-complex": ("t1.nii", plain(datatype=32), (":datatype: colour, complex",)),
    "nifti-09-vox-offset-nan": ("t1.nii", plain(vox_offset=np.nan), (":vox_offset: nan",)),
    "nifti-09-vox-offset-huge": ("t1.nii.gz", plain(vox_offset=1e30), (":vox_offset: 1e+30",)),
    "nifti-09-vox-offset-inside-header": ("t1.nii", plain(vox_offset=0), (":vox_offset: 0; 352 or more",)),
    "nifti-10-scl-inter-nan-in-use": (
        "t1.nii.gz",
        plain(scl_slope=2, scl_inter=np.nan),
        (":scl_inter: nan",),
    ),
    "nifti-11-nan-voxels": (
        "t1.nii.gz",
        image(spoilt(np.nan)),
        (":t1: 1 NaN or infinite voxels", "data.nan=zero"),
    ),
    "nifti-11-infinite-voxels": ("t1.nii.gz", image(spoilt(np.inf)), (":t1: 1 NaN or infinite voxels",)),
    "nifti-11-nan-in-label": ("seg.nii.gz", label(np.nan, "float32"), ("NaN or infinite labels",)),
    "nifti-12-singular-affine": (
        "t1.nii",
        plain(qform_code=0, srow_y=(0, 0, 0, 0)),
        (":affine: column 1 is zero or dependent; an invertible matrix",),
    ),
    "nifti-12-nan-affine": (
        "t1.nii",
        plain(qform_code=0, srow_x=(np.nan, 0, 0, 0)),
        (":affine: NaN or infinite",),
    ),
    "nifti-13-four-d-where-three-d": (
        "t1.nii.gz",
        lambda p: write_nifti(p, np.stack([IMAGE, IMAGE], -1)),
        (":dim: 4-D (16, 18, 12, 2); 3-D",),
    ),
    "nifti-14-other-shape": (
        "t1.nii.gz",
        lambda p: write_nifti(p, IMAGE[:, :, :11]),
        (":dim: 16×18×11 voxels; 16×18×12 like",),
    ),
    "nifti-14-other-spacing": (
        "t1.nii.gz",
        lambda p: write_nifti(p, IMAGE, LPS @ np.diag([1, 1, 1.2, 1])),
        (":affine: lies up to 0, 0, 2.2 mm (x, y, z) off",),
    ),
    "nifti-14-other-place": ("t1.nii.gz", lambda p: write_nifti(p, IMAGE, moved(0, 5, 0)), ("0, 5, 0 mm",)),
    "nifti-15-label-outside-table": ("seg.nii.gz", label(3), ("labels 3 (7 voxels) are not in brats2021",)),
    "nifti-15-float-labels": (
        "seg.nii.gz",
        label(0.999, "float32"),
        ("labels 0.999 (7 voxels); whole numbers",),
    ),
    "nifti-15-negative-labels": ("seg.nii.gz", label(-1, "int16"), ("labels -1 (7 voxels); 0 to 4",)),
}


def broken_case(root: Path, part: str, make: Make) -> tuple[Path, Path]:
    """Three sound cases; then `part` of the first is made anew, broken. (case folder, broken file)."""
    for number in (2, 3):
        write_case(root, number)
    folder = write_case(root, 1, suffix=".nii" if part.endswith(".nii") else ".nii.gz")
    path = folder / f"{folder.name}_{part}"
    path.unlink()
    make(path)
    return folder, path


@pytest.mark.parametrize(("part", "make", "words"), NIFTI.values(), ids=NIFTI)
def test_nifti(tmp_path: Path, part: str, make: Make, words: tuple[str, ...]) -> None:
    folder, path = broken_case(tmp_path, part, make)
    config = resolve(BratsConfig, [], [f"data.path={tmp_path}"])
    tracemalloc.start()
    with pytest.raises(ItemError) as caught:
        read_case(discover([folder])[0], config, with_label=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    in_one_line(caught.value, folder, path.name, *words)
    assert peak < MEMORY
    # Before training: one error, collected, and the sound cases pass.
    errors = [fault for fault in check_dataset(config) if fault.severity == "error"]
    assert [str(fault) for fault in errors] == [str(caught.value)]
    assert read_case(discover([tmp_path])[1], config, with_label=True).warnings == []


WARNED: dict[str, tuple[str, Make, str]] = {
    "nifti-10-scl-slope-infinite": (
        "t1.nii.gz",
        plain(scl_slope=np.inf),
        "scl_slope inf, scl_inter 0: not finite; values used unscaled",
    ),
    "nifti-10-scl-inter-nan": (
        "t1.nii.gz",
        plain(scl_slope=0, scl_inter=np.nan),
        "scl_inter nan: not finite",
    ),
    "nifti-12-no-form-set": ("t1.nii.gz", plain(sform_code=0), ""),
    "nifti-12-qform-damaged": ("t1.nii.gz", plain(quatern_b=9.0), "qform is damaged; sform used"),
    "nifti-14-other-orientation": (
        "t1.nii.gz",
        lambda p: write_nifti(p, np.ascontiguousarray(IMAGE[::-1]), MIRRORED),
        "axes RPS turned to LPS",
    ),
}


@pytest.mark.parametrize(("part", "make", "words"), WARNED.values(), ids=WARNED)
def test_nifti_that_is_read_with_a_warning(tmp_path: Path, part: str, make: Make, words: str) -> None:
    folder, path = broken_case(tmp_path, part, make)
    config = resolve(BratsConfig, [], [f"data.path={tmp_path}"])
    case = read_case(discover([folder])[0], config, with_label=True)
    np.testing.assert_array_equal(case.images[2], IMAGE)
    if words:
        assert [path.name in text and words in text for text in case.warnings] == [True]
    assert [fault.severity for fault in check_dataset(config)] == ["warning"] * len(case.warnings)


def test_nifti_nan_set_to_zero(tmp_path: Path) -> None:
    folder, _ = broken_case(tmp_path, "t1.nii.gz", image(spoilt(np.nan)))
    config = resolve(BratsConfig, [], ["data.nan=zero"])
    case = read_case(discover([folder])[0], config, with_label=True)
    assert case.images[2, 3, 4, 5] == 0 and any(
        "1 NaN or infinite voxels set to 0" in w for w in case.warnings
    )


@pytest.mark.parametrize("lost", ["flair", "t1ce", "t1", "t2"], ids=lambda name: f"nifti-13-missing-{name}")
def test_three_of_four(tmp_path: Path, lost: str) -> None:
    write_case(tmp_path, 1, skip=(lost,))
    write_case(tmp_path, 2)
    broken, whole = discover([tmp_path])
    assert whole.fault is None and broken.fault is not None
    assert f"but no {lost}; one file each: {lost} (…_{lost}" in str(broken.fault)


def test_brats_16_patient_on_both_sides(tmp_path: Path) -> None:
    folders = [
        write_case(tmp_path, 1, "brats2023"),
        write_case(tmp_path, 1, "brats2024"),
        write_case(tmp_path, 2),
    ]
    path = write_csv(tmp_path / "cases.csv", [case_row(f, fold=i) for i, f in enumerate(folders)])
    faults = check_dataset(resolve(BratsConfig, [], [f"data.path={path}"]))
    (text,) = [str(fault) for fault in faults if fault.severity == "error"]
    assert all(str(folder) in text for folder in folders[:2]) and "patient BraTS-GLI-00001" in text


# ---------------------------------------------------------------- paths, row 56


def replaced(make: Callable[[Path, Path], object]) -> Callable[[Path], Path]:
    """A case whose t2 file is replaced by what `make(path, root)` puts there."""

    def build(root: Path) -> Path:
        folder = write_case(root, 1)
        path = folder / f"{folder.name}_t2.nii.gz"
        path.rename(root / "kept.bin")
        make(path, root)
        return root

    return build


def named(name: str) -> Callable[[Path], Path]:
    return lambda root: write_case(root, case_id=name).parent


def behind_cycle(root: Path) -> Path:
    write_case(root, 1)
    (root / "loop").symlink_to(root)
    (root / "BraTS2021_00001" / "up").symlink_to(root)
    return root


PATHS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "paths-56-spaces": (named("a case of mine"), ""),
    "paths-56-emoji": (named("Žofie 🧠"), ""),
    "paths-56-newline": (named("two\nlines"), ""),
    "paths-56-255-bytes": (named("x" * 241), ""),
    "paths-56-255-bytes-of-emoji": (named("🧠" * 60), ""),
    "paths-56-percent-and-braces": (named("%s {0} $HOME `id`"), ""),
    "paths-56-link-to-file": (replaced(lambda path, root: path.symlink_to(root / "kept.bin")), ""),
    "paths-56-folder-cycle": (behind_cycle, ""),
    "paths-56-fifo": (replaced(lambda path, root: make_fifo(path)), "not a regular file; a NIfTI file"),
    "paths-56-dangling-link": (
        replaced(lambda path, root: path.symlink_to(root / "gone")),
        "a link to a file that is not there",
    ),
    "paths-56-link-loop": (
        replaced(lambda path, root: path.symlink_to(path)),
        "Too many levels of symbolic links",
    ),
    "paths-56-folder-named-nii-gz": (replaced(lambda path, root: path.mkdir()), "a folder; a NIfTI file"),
}


@pytest.mark.parametrize(("make", "words"), PATHS.values(), ids=PATHS)
def test_paths(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    (files,) = discover([make(tmp_path)])
    if words:
        assert files.fault is not None
        assert words in str(files.fault) and files.id in str(files.fault.source)
        with pytest.raises(ItemError):  # asked nevertheless, it never opens the thing
            read_volume(Path(files.fault.source))
        return
    assert files.fault is None
    case = (
        read_case(files, BratsConfig(), with_label=True)
        if files.convention
        else read_case(files, BratsConfig())
    )
    assert case.images.any(axis=(1, 2, 3)).all()
    with atomic_path(files.images["t1"].with_name(f"{files.id[:200]}.json")) as temp:
        temp.write_text("{}")  # the temporary name of an output beside it still fits


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda root: root / "gone", "gone: No such file or directory"),
        (lambda root: make_fifo(root / "x.nii.gz"), "not a regular file"),
        (lambda root: make_fifo(root / "x.csv"), "not a regular file"),
        (lambda root: (root / "x").symlink_to(root / "x") or root / "x", "symbolic links"),
        (lambda root: root / ("y" * 300), "File name too long"),
        (lambda root: root / "nul\0", "null byte"),
    ],
    ids=["absent", "fifo", "fifo-list", "link-loop", "300-bytes", "nul-byte"],
)
def test_paths_56_given_itself(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(DataInvalid, match=words):
        discover([make(tmp_path)])


def test_paths_56_relative_and_trailing_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_case(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    for text in (".", "./", f"{folder.name}/", f"../{tmp_path.name}", str(folder)):
        assert [case.id for case in discover([Path(text)])] == [folder.name]


def test_paths_56_file_where_a_folder_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("x")
    with pytest.raises(DataInvalid, match=r"notes\.txt: 0 of 1 files match a case"):
        discover([path])
    with pytest.raises(UsageError, match=r"notes\.txt: cannot be written"):
        probe_writable(path)


# ---------------------------------------------------------------- folders, row 57


def only_wrong(root: Path) -> Path:
    for number in range(12):
        (root / f"{number}.dat").write_text("x")
    return root


FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "folders-57-empty": (lambda root: root, "0 of 0 files match a case"),
    "folders-57-only-wrong-suffixes": (only_wrong, "0 of 12 files match a case"),
    "folders-57-only-own-outputs": (
        lambda root: (
            write_nifti(root / "a_prob_tc.nii.gz", IMAGE) and write_nifti(root / "a_seg.nii.gz", IMAGE).parent
        ),
        "0 of 2 files match a case",
    ),
    "folders-57-too-deep": (
        lambda root: write_case(root / "a" / "b" / "c", 1) and root,
        "0 of 0 files match",
    ),
}


@pytest.mark.parametrize(("make", "words"), FOLDERS.values(), ids=FOLDERS)
def test_folders(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    with pytest.raises(DataInvalid, match=words) as caught:
        discover([make(tmp_path)])
    assert caught.value.exit_code == 6 and str(tmp_path) in str(caught.value)
    faults = check_dataset(resolve(BratsConfig, [], [f"data.path={tmp_path}"]))
    assert words in str(faults[0])


def test_folders_57_two_files_with_one_output(tmp_path: Path) -> None:
    write_case(tmp_path / "monday", 1)
    write_case(tmp_path / "tuesday", 1, seed=9)
    first, second = discover([tmp_path])
    assert first.fault is None and second.fault is not None
    assert "tuesday" in str(second.fault) and "monday" in str(second.fault)


def test_folders_57_output_inside_input(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1)
    shutil.copytree(folder, tmp_path / "copy" / folder.name)  # a copy of a case is no output
    out = tmp_path / "out" / folder.name
    write_nifti(out / f"{folder.name}_seg.nii.gz", IMAGE)
    (out / f"{folder.name}.json").write_text(json.dumps({"id": folder.name}))
    assert [case.id for case in discover([tmp_path]) if case.fault is None] == [folder.name]


# ---------------------------------------------------------------- rights, row 58


def test_rights_58_read_only_output_is_found_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(
        "x"
    )  # permission bits do not bind root; a path below a file binds everybody
    for folder in (tmp_path / "file" / "out", Path("/proc/out")):
        with pytest.raises(SuiteError, match="cannot be written") as caught:
            probe_writable(folder)
        in_one_line(caught.value, tmp_path, "a writable folder wanted")
    assert probe_writable(tmp_path / "new" / "out") is None
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_rights_58_unreadable_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, path = broken_case(tmp_path, "t1.nii.gz", sound)

    def refuse(name: Any, *args: Any, **more: Any) -> Any:
        if str(name) == str(path):
            raise PermissionError(13, "Permission denied", str(name))
        return open(name, *args, **more)

    monkeypatch.setattr("medical.nifti.open", refuse, raising=False)
    config = resolve(BratsConfig, [], [f"data.path={tmp_path}"])
    with pytest.raises(ItemError) as caught:
        read_case(discover([folder])[0], config)
    in_one_line(
        caught.value, folder, f"{path.name}: Permission denied; a readable file; check its permissions"
    )
    assert [str(f) for f in check_dataset(config) if f.severity == "error"] == [str(caught.value)]


# ---------------------------------------------------------------- the same through the command line


def test_check_command_lists_every_fault_and_exits_6(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in (1, 2):
        write_case(data, number)
    write_case(data, 3, skip=("t2",))
    for number, (part, make, _) in enumerate((NIFTI["nifti-02-cut-gz"], NIFTI["nifti-15-float-labels"]), 4):
        folder = write_case(data, number)
        make(folder / f"{folder.name}_{part}")
    done = call(tmp_path, "check", "brats-seg", "--data", str(data), "--json")
    assert done.returncode == 6, done.stderr[-2000:]
    answer = json.loads(done.stdout)
    assert answer["errors"] == 3 and len(answer["rows"]) == 3
    assert "Traceback" not in done.stderr


def test_config_fault_exits_2_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train:\n  learning_rat: 1\n")
    done = call(tmp_path, "show", "brats-seg", "--config", "mine.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: mine.yaml:line 2: unknown key train.learning_rat")
    assert done.stderr.count("\n") == 1


def test_nifti_bytes_of_the_samples_are_sound() -> None:
    """The breaking is what breaks: the same file without it reads."""
    assert len(nifti_bytes(IMAGE)) == 7264
