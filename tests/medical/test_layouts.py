"""Which files make a case: every release's naming, Task01, datalists, and what must never pass for a case."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medical.brats_seg.layouts import CaseFiles, discover, patient_of
from shared.errors import DataInvalid
from tests.samples import (
    MODALITIES,
    STYLES,
    case_row,
    head,
    make_fifo,
    write_case,
    write_csv,
    write_msd,
    write_nifti,
)


def only(path: Path, layout: str = "auto") -> CaseFiles:
    (case,) = discover([path], layout)
    return case


# ---------------------------------------------------------------- BraTS folders


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("style", STYLES)
def test_every_release(tmp_path: Path, style: str, suffix: str) -> None:
    folder = write_case(tmp_path, 8, style, suffix=suffix)
    case = only(tmp_path)
    assert case.id == folder.name and case.fault is None and case.layout == "brats"
    assert set(case.images) == set(MODALITIES)
    assert case.label is not None and "seg" in case.label.name
    new = style in ("brats2023", "brats2024")
    assert case.convention == ("brats2023" if new else "brats2021")
    assert case.patient == ("BraTS-GLI-00008" if new else case.id)
    suffixes = dict(zip(MODALITIES, STYLES[style][2]))
    for name, file in case.matched.items():
        assert file.endswith(f"{STYLES[style][1]}{suffixes[name]}{suffix}")


def test_time_points_are_one_patient() -> None:
    assert patient_of("BraTS-GLI-00008-001") == patient_of("BraTS-GLI-00008-101") == "BraTS-GLI-00008"
    assert patient_of("BraTS-MEN-RT-0008-1") == "BraTS-MEN-RT-0008-1"
    assert patient_of("BraTS20_Training_001") == "BraTS20_Training_001"


def test_the_mask_of_355(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 355, "brats2020", suffix=".nii")
    (folder / f"{folder.name}_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    case = only(tmp_path)
    assert case.id == "BraTS20_Training_355"
    assert case.label is not None and case.label.name == "W39_1998.09.19_Segm.nii"


def test_grades_as_folders_flat_folders_and_bare_names(tmp_path: Path) -> None:
    write_case(tmp_path / "MICCAI" / "HGG", 1, "brats2018")
    write_case(tmp_path / "MICCAI" / "LGG", 2, "brats2018")
    assert [c.id for c in discover([tmp_path])] == ["Brats18_2013_1_1", "Brats18_2013_2_1"]
    flat = tmp_path / "flat"
    for number in (1, 2):
        for path in write_case(tmp_path / "made", number).iterdir():
            flat.mkdir(exist_ok=True)
            path.rename(flat / path.name)
    assert [c.id for c in discover([flat])] == ["BraTS2021_00001", "BraTS2021_00002"]
    bare = tmp_path / "bare" / "anna"
    for name, image in head()[0].items():
        write_nifti(bare / f"{name.upper()}.nii.gz", image)
    case = only(bare)
    assert (case.id, case.convention, case.label, case.fault) == ("anna", None, None, None)


def test_relative_paths_take_the_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "anna"
    for name, image in head()[0].items():
        write_nifti(bare / f"{name}.nii.gz", image)
    monkeypatch.chdir(bare)
    assert only(Path(".")).id == "anna"
    monkeypatch.chdir(tmp_path)
    assert only(Path("anna/")).id == "anna"


def test_a_missing_modality_names_itself_and_what_was_tried(tmp_path: Path) -> None:
    write_case(tmp_path, 1, skip=("t1ce",))
    case = only(tmp_path)
    assert case.fault is not None
    assert "has flair, t1, t2 but no t1ce" in str(case.fault)
    assert "…_t1ce, …_t1c, …_t1gd" in str(case.fault) and "allow_missing" in str(case.fault)


@pytest.mark.parametrize(
    "name", ["two words", "Žofie 🧠", "line\nbreak", "semi;colon,comma", "dots..in..it", "-o", "%s {x}"]
)
def test_odd_names(tmp_path: Path, name: str) -> None:
    write_case(tmp_path, case_id=name)
    case = only(tmp_path)
    assert case.id == name and case.fault is None and case.label is not None
    write_case(tmp_path, case_id=name, skip=("t2",))
    (tmp_path / name / f"{name}_t2.nii.gz").unlink()
    fault = only(tmp_path).fault
    assert fault is not None and "\n" not in str(fault)


def test_longest_names(tmp_path: Path) -> None:
    name = "x" * (255 - len("_flair.nii.gz"))
    write_case(tmp_path, case_id=name)
    assert only(tmp_path).id == name


# ---------------------------------------------------------------- what is not a case


def test_files_named_one_by_one_belong_together(tmp_path: Path) -> None:
    one, two = write_case(tmp_path, 1), write_case(tmp_path, 2)
    first, second = discover([*sorted(one.iterdir()), *sorted(two.glob("*t1*"))])
    assert (first.id, first.fault, set(first.images)) == (one.name, None, {"flair", "t1ce", "t1", "t2"})
    assert second.fault is not None and "no flair, t2" in second.fault.found


def test_two_files_for_one_modality_are_refused(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1)
    (path,) = folder.glob("*_t1.nii.gz")
    path.with_name(f"{folder.name}_T1n.nii").write_bytes(b"")
    case = only(folder)
    assert case.fault is not None and "two files for t1: " in case.fault.found
    next(folder.glob("*flair*")).unlink()
    assert not only(folder).incomplete  # so that allow_missing does not pass over it


def test_names_of_paediatric_cases_imply_no_convention(tmp_path: Path) -> None:
    assert only(write_case(tmp_path, 1, "brats2023", case_id="BraTS-PED-00001-000")).convention is None


@pytest.mark.parametrize("layout", ["msd", "datalist", "patches"])
def test_a_layout_that_is_asked_for_must_be_there(tmp_path: Path, layout: str) -> None:
    folder = write_case(tmp_path, 1)
    assert only(folder, "brats").fault is None
    with pytest.raises(DataInvalid, match=f"not laid out as data.layout={layout} says"):
        discover([folder], layout)


def test_own_outputs_never_become_cases_or_truth(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1)
    image = head()[0]["t1"]
    out = tmp_path / "predictions" / folder.name
    for name in ("seg", "prob_tc", "prob_wt", "prob_et"):
        write_nifti(out / f"{folder.name}_{name}.nii.gz", image)
    (out / f"{folder.name}_qc.png").write_bytes(b"")
    case = only(tmp_path)
    assert case.id == folder.name and case.label is not None and case.label.parent == folder
    # Predicted straight into the case's folder: the JSON beside the mask gives it away.
    facts = {"id": folder.name, "convention": "brats2021", "regions": {}, "voxels_changed": {}}
    (folder / f"{folder.name}.json").write_text(json.dumps(facts))
    assert only(tmp_path).label is None
    (folder / f"{folder.name}.json").write_text('{"scanner": "somebody\'s own side-car"}')
    assert only(tmp_path).label is not None


def test_a_second_case_of_one_id_is_refused_the_same_files_are_not(tmp_path: Path) -> None:
    one = write_case(tmp_path / "a", 1)
    write_case(tmp_path / "b", 1, seed=5)
    first, second = discover([tmp_path])
    assert first.fault is None and second.fault is not None and first.id != second.id
    assert "a second case BraTS2021_00001" in str(second.fault)
    assert len(discover([tmp_path / "a", one, one])) == 1


def test_links_are_followed_once_and_cycles_end(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "real", 1)
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "linked").symlink_to(folder)
    (inside / "again").symlink_to(folder)
    (inside / "loop").symlink_to(inside)
    (inside / "self").symlink_to(inside / "self")
    case = only(inside)
    assert case.id == folder.name and case.fault is None
    case = only(write_case(tmp_path / "more", 2).parent)
    for name in ("t1", "t2"):
        path = case.images[name]
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    assert only(tmp_path / "more").fault is None


@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling", "loop"])
def test_what_only_looks_like_an_image_is_the_cases_fault(tmp_path: Path, kind: str) -> None:
    folder = write_case(tmp_path, 1)
    write_case(tmp_path, 2)
    path = folder / f"{folder.name}_t2.nii.gz"
    path.unlink()
    words = {
        "fifo": "not a regular file",
        "folder": "a folder",
        "dangling": "a link to a file that is not there",
        "loop": "symbolic links",
    }
    if kind == "fifo":
        make_fifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "gone")
    broken, whole = discover([tmp_path])
    assert whole.fault is None
    assert broken.fault is not None and words[kind] in str(broken.fault) and path.name in str(broken.fault)


def test_a_folder_that_cannot_be_listed_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_case(tmp_path, 1)
    (tmp_path / "closed").mkdir()
    real = Path.iterdir

    def iterdir(self: Path) -> object:  # root reads everything, so the refusal is played
        if self.name == "closed":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    whole, closed = discover([tmp_path])
    assert whole.fault is None
    assert closed.id == "closed" and "closed: Permission denied; a readable folder" in str(closed.fault)


def test_an_archive_is_to_be_unpacked_first(tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz").write_bytes(b"x")
    with pytest.raises(DataInvalid, match=r"set\.tar\.gz: an archive; a folder or file; unpack it first"):
        discover([tmp_path / "set.tar.gz"])


def test_a_list_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="not a regular file"):
        discover([make_fifo(tmp_path / "cases.csv")])


# ---------------------------------------------------------------- 4-D files and Task01


def test_task01(tmp_path: Path) -> None:
    cases = discover([write_msd(tmp_path)])
    assert [case.id for case in cases] == ["BRATS_001", "BRATS_002", "BRATS_101"]
    assert [case.label is not None for case in cases] == [True, True, False]
    assert {case.convention for case in cases} == {"msd"} and {case.layout for case in cases} == {"msd"}
    assert cases[0].channels == {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}
    assert cases[0].matched["t1ce"] == "BRATS_001.nii.gz[2]"
    assert len(cases[0].sources) == 1


def test_task01_reads_order_and_label_names_from_its_json(tmp_path: Path) -> None:
    info = {
        "modality": {"3": "FLAIR", "0": "T1w", "1": "t1-gd", "2": "T2"},
        "labels": {"0": "background", "1": "necrosis", "2": "edema", "3": "enhancing"},
    }
    case = discover([write_msd(tmp_path, 1, 0, **info)])[0]
    assert case.channels == {"t1": 0, "t1ce": 1, "t2": 2, "flair": 3}
    assert case.convention == "brats2023"


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"modality": {"0": "CT"}}, "dataset.json:modality: CT; FLAIR, T1w, t1gd and T2w"),
        ({"modality": {"a": "FLAIR"}}, "dataset.json:modality"),
        ({"modality": 3}, "dataset.json:modality"),
        ({"modality": {}}, "dataset.json:modality: none"),
    ],
)
def test_task01_with_a_bad_modality_list(tmp_path: Path, info: dict[str, object], words: str) -> None:
    with pytest.raises(DataInvalid, match=words):
        discover([write_msd(tmp_path, 1, 0, **info)])


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", '"x"', "[" * 100_000])
def test_task01_with_a_broken_json(tmp_path: Path, text: str) -> None:
    (write_msd(tmp_path, 1, 0) / "dataset.json").write_text(text)
    with pytest.raises(DataInvalid, match=r"dataset\.json: "):
        discover([tmp_path])


def test_a_single_4d_file_takes_the_order_of_task01(tmp_path: Path) -> None:
    write_msd(tmp_path, 1, 0)
    case = only(tmp_path / "imagesTr" / "BRATS_001.nii.gz")
    assert case.layout == "4-D file" and case.channels == {"flair": 0, "t1": 1, "t1ce": 2, "t2": 3}
    assert [c.id for c in discover([tmp_path / "imagesTr"])] == ["BRATS_001"]


# ---------------------------------------------------------------- datalists


@pytest.mark.parametrize("style", ["brats2018", "brats2023"])
def test_csv(tmp_path: Path, style: str) -> None:
    folders = [write_case(tmp_path / "files", number, style) for number in (1, 2)]
    rows = [case_row(folder, fold=i, patient=f"P{i}") for i, folder in enumerate(folders)]
    cases = discover([write_csv(tmp_path / "cases.csv", rows)])
    assert [(c.id, c.patient, c.fold, c.layout) for c in cases] == [
        (folder.name, f"P{i}", i, "datalist") for i, folder in enumerate(folders)
    ]
    assert all(case.fault is None and case.label is not None for case in cases)


def test_csv_with_paths_beside_it_a_byte_order_mark_and_capitals(tmp_path: Path) -> None:
    folder = write_case(tmp_path, 1, label=False)
    names = [f"{folder.name}/{folder.name}_{part}.nii.gz" for part in MODALITIES]
    text = f"\ufeffID, Flair ,T1Gd,T1,T2\r\nanna,{','.join(names)}\r\n"
    (tmp_path / "list.CSV").write_text(text, encoding="utf-8")
    case = only(tmp_path / "list.CSV")
    assert (
        case.id == "anna"
        and case.fault is None
        and case.label is None
        and set(case.images) == set(MODALITIES)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flair": "gone.nii.gz"}, "cases.csv:line 2: .*gone.nii.gz: No such file"),
        ({"t1": ""}, "no t1"),
        ({"convention": "brats1999"}, "cases.csv:line 2: convention brats1999; one of brats2021"),
        ({"fold": "first"}, "cases.csv:line 2: fold first; a whole number"),
        ({"id": "../x"}, "cases.csv:line 2: id '../x'"),
        ({"label": "x" * 300}, "cases.csv:line 2: .*File name too long"),
    ],
)
def test_a_bad_row_is_that_cases_fault(tmp_path: Path, change: dict[str, str], words: str) -> None:
    rows = [case_row(write_case(tmp_path / "files", number)) for number in (1, 2)]
    cases = discover([write_csv(tmp_path / "cases.csv", [{**rows[0], **change}, rows[1]])])
    broken = [case for case in cases if case.fault is not None]
    assert len(cases) == 2 and len(broken) == 1
    assert re.search(words, str(broken[0].fault))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: columns none"),
        ("id;flair;t1ce;t1;t2\na;b;c;d;e\n", "line 1: columns id;flair.*separate columns by commas"),
        ("id,flair,flair,t1\na,b,c,d\n", "column flair twice"),
        ("id,flair,t2f,t1\na,b,c,d\n", "column flair twice"),
        ("x,y\n1,2\n", "columns x, y; id,flair,t1ce,t1,t2"),
        ("id,flair\n" + "a" * 200_000 + ",b\n", "field larger than field limit"),
        ("id,flair,t1ce,t1,t2\n", "0 of 1 files match"),
    ],
)
def test_a_bad_csv(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "cases.csv").write_text(text)
    with pytest.raises(DataInvalid, match=words):
        discover([tmp_path / "cases.csv"])


def test_csv_that_is_not_text_or_has_ragged_rows(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_bytes(b"id,flair\n\xe9,\xff\n")
    with pytest.raises(DataInvalid, match="not UTF-8 text"):
        discover([tmp_path / "cases.csv"])
    (tmp_path / "cases.csv").write_text("id,flair,t1ce,t1,t2\na,b\nc,d,e,f,g,h\n")
    assert ["more or fewer fields" in str(case.fault) for case in discover([tmp_path / "cases.csv"])] == [
        True,
        True,
    ]


def test_json_lists(tmp_path: Path) -> None:
    folders = [write_case(tmp_path, number) for number in (1, 2)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps([case_row(folder) for folder in folders]))
    assert [case.fault for case in discover([path])] == [None, None]
    monai = {
        "modalities": ["flair", "t1ce", "t1", "t2"],
        "training": [
            {"image": [row[name] for name in MODALITIES], "label": row["label"], "fold": i}
            for i, row in enumerate(map(case_row, folders))
        ],
    }
    path.write_text(json.dumps(monai))
    cases = discover([path])
    assert [(case.id, case.fold, case.fault) for case in cases] == [
        (f.name, i, None) for i, f in enumerate(folders)
    ]
    assert [case.images["t1ce"].name for case in cases] == [f"{f.name}_t1ce.nii.gz" for f in folders]
    del monai["modalities"]
    path.write_text(json.dumps(monai))
    with pytest.raises(DataInvalid, match=r'list\.json:modalities: no such key.*add "modalities"'):
        discover([path])


def test_json_list_of_4d_files(tmp_path: Path) -> None:
    write_msd(tmp_path, 1, 1)
    path = tmp_path / "list.json"
    rows = {
        "training": [
            {"image": "imagesTr/BRATS_001.nii.gz", "label": "labelsTr/BRATS_001.nii.gz", "convention": "msd"}
        ]
    }
    path.write_text(json.dumps({**rows, "test": ["imagesTs/BRATS_101.nii.gz"]}))
    first, second = discover([path])
    assert (first.id, first.convention, first.fault) == ("BRATS_001", "msd", None)
    assert first.channels is not None and first.label is not None
    assert (second.id, second.label, second.fault) == ("BRATS_101", None, None)


@pytest.mark.parametrize(
    "text", ["3", "[3]", '{"training": [3]}', '{"training": 3}', "nonsense", '{"training": [[1]]}']
)
def test_a_bad_json_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataInvalid, match=r"list\.json"):
        discover([tmp_path / "list.json"])


# ---------------------------------------------------------------- whatever is in a list

WORDS = st.sampled_from(
    ["id", "flair", "t1", "t1ce", "t2", "label", "image", "fold", "patient", "convention", "modalities"]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), WORDS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=8,
)
KEYS = st.sampled_from(["training", "validation", "testing", "test", "modalities"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(VALUES, st.dictionaries(KEYS, VALUES)), st.booleans())
def test_any_json_gives_cases_with_faults_or_one_error(tmp_path: Path, value: object, task01: bool) -> None:
    path = tmp_path / ("dataset.json" if task01 else "list.json")
    path.write_text(json.dumps(value))
    try:
        cases = discover([tmp_path if task01 else path])
    except DataInvalid as err:
        assert path.name in str(err) or "0 of 1 files" in str(err)
    else:
        assert all(case.fault is not None for case in cases)
    path.unlink()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.one_of(WORDS, st.text(max_size=6)), max_size=6), max_size=4),
    st.sampled_from([",", ";", "\0,", '",']),
)
def test_any_csv_gives_cases_with_faults_or_one_error(
    tmp_path: Path, rows: list[list[str]], separator: str
) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes("\n".join(separator.join(row) for row in rows).encode("utf-8", "surrogatepass"))
    try:
        cases = discover([path])
    except DataInvalid as err:
        assert "list.csv" in str(err)
    else:
        assert all(case.fault is not None for case in cases)
