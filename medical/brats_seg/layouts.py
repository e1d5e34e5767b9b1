"""Which files make up which case: BraTS folders of every year, MSD Task01, datalists, 4-D files, DICOM studies.

Nothing is read here but names and small JSON/CSV files. What was concluded is in `CaseFiles.matched` and
`CaseFiles.convention`, to be shown; a case that cannot be assembled carries its `fault`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medical.nifti import irregular, is_nifti, stem
from shared.errors import DataInvalid, Fault
from shared.io.archive import is_archive

MODALITIES = ("flair", "t1ce", "t1", "t2")
SYNONYMS = {
    "flair": "flair", "t2f": "flair",
    "t1ce": "t1ce", "t1c": "t1ce", "t1gd": "t1ce", "t1post": "t1ce",
    "t1": "t1", "t1n": "t1", "t1w": "t1",
    "t2": "t2", "t2w": "t2",
    "seg": "label", "label": "label", "segm": "label",
}  # fmt: skip
_PART = re.compile(r"(?P<id>.*)[_\-. ](?P<part>[A-Za-z0-9]+)", re.DOTALL)
_NEW_SUFFIXES = ("t2f", "t1n", "t1c", "t2w")
_LISTS = (".csv", ".json")
_OWN = re.compile(r"(_prob_(tc|wt|et)|_qc)$")
"""Files that our own prediction writes."""
_DEPTH = 3


@dataclass(frozen=True)
class CaseFiles:
    """One patient's examination as files. `channels` maps a modality to its index in a 4-D file."""

    id: str
    patient: str
    images: Mapping[str, Path]
    label: Path | None = None
    layout: str = "brats"
    convention: str | None = None
    channels: Mapping[str, int] | None = None
    fold: int | None = None
    fault: Fault | None = None
    incomplete: bool = False
    """Whether `fault` is that modalities are missing, and nothing else."""
    folders: tuple[Path, ...] = ()
    """The folders that hold a DICOM study; its series are told apart when it is read."""

    @property
    def sources(self) -> tuple[Path, ...]:
        if self.folders:
            return self.folders
        return tuple(dict.fromkeys(self.images[name] for name in sorted(self.images)))

    @property
    def matched(self) -> dict[str, str]:
        """Modality → file (and channel), as sentences show it."""
        if self.channels is not None:
            return {m: f"{self.images[m].name}[{i}]" for m, i in self.channels.items()}
        if self.folders:
            return dict.fromkeys(self.images, "DICOM")  # folder names may name a patient
        return {m: path.name for m, path in self.images.items()}


def patient_of(case_id: str) -> str:
    """Patient of a case: 2023+ names end in a time point (BraTS-GLI-00008-001 → BraTS-GLI-00008)."""
    match = re.match(r"^(BraTS-[A-Za-z]+-\d+)-\d{3}$", case_id, re.I)
    return match.group(1) if match else case_id


def id_of(path: Path) -> str:
    """Case id in a file's name: what stands before the modality (BraTS2021_00001_t1ce → BraTS2021_00001)."""
    match = _PART.fullmatch(stem(path))
    return match.group("id") if match else stem(path)


def discover(paths: Sequence[Path], layout: str = "auto") -> list[CaseFiles]:
    """Every case under `paths`, sorted by id; incomplete ones with their fault. Raises `DataInvalid` if none."""
    found: list[CaseFiles] = []
    seen = 0
    volumes = [path for path in map(Path, paths) if is_nifti(path) and irregular(path) is None]
    for path in map(Path, paths):
        if path not in volumes:
            cases, files = _under(path, layout)
            found += cases
            seen += files
    found += _given_files(volumes)
    seen += len(volumes)
    found = [_regular(case) for case in found]
    if not found:
        where = ", ".join(str(path) for path in paths)
        raise DataInvalid(
            [
                Fault(
                    where,
                    f"0 of {seen} files match a case",
                    "BraTS folders (…_flair, …_t1ce, …_t1, …_t2 as .nii or .nii.gz), an MSD folder, "
                    "a CSV/JSON datalist, or a DICOM study",
                    "check the path, or list the files in a datalist",
                )
            ]
        )
    return _refuse_doubles(sorted(found, key=lambda case: case.id))


def _regular(case: CaseFiles) -> CaseFiles:
    """A pipe, a folder or a dangling link under an image's name is the case's fault, before anyone opens it."""
    if case.fault is not None or case.layout == "dicom":
        return case
    for path in (*case.sources, *([case.label] if case.label else ())):
        odd = irregular(path)
        if odd:
            return replace(case, fault=Fault(path, odd, "a NIfTI file", "give the file itself"))
    return case


def _refuse_doubles(cases: list[CaseFiles]) -> list[CaseFiles]:
    """Later cases of one id get a fault (their results would overwrite the first's); the same files twice, nothing."""
    first: dict[str, CaseFiles] = {}
    out: list[CaseFiles] = []
    for case in cases:
        twin = first.setdefault(case.id, case)
        if twin is not case:
            if [p.absolute() for p in twin.sources] == [p.absolute() for p in case.sources] != []:
                continue
            where = next(iter(case.images.values()), Path(case.id))
            other = next(iter(twin.images.values()), Path(twin.id))
            fault = Fault(where, f"a second case {case.id}", f"one, as in {other}", "rename one of them")
            kept = fault if case.incomplete else case.fault or fault
            case = replace(case, id=f"{case.id}~{len(out)}", fault=kept, incomplete=False)
        out.append(case)
    return out


def _under(path: Path, layout: str) -> tuple[list[CaseFiles], int]:
    """Cases of a folder or list, and how many files were looked at. Raises `DataInvalid`."""
    odd = irregular(path)
    if odd and odd != "a folder":
        raise DataInvalid([Fault(path, odd, "a folder or file", "check the path")])
    _refuse_layout(path, layout)
    if odd:
        from medical.brats_seg.datalist import msd_cases

        if layout in ("auto", "msd") and (path / "dataset.json").is_file():
            return msd_cases(path), 1
        return _folders(path, layout)
    if path.suffix.lower() in _LISTS:
        from medical.brats_seg.datalist import list_cases

        return list_cases(path), 1
    if is_archive(path):
        raise DataInvalid([Fault(path, "an archive", "a folder or file", "unpack it first")])
    return [], 1


def _refuse_layout(path: Path, layout: str) -> None:
    """Raise `DataInvalid` if `path` cannot be what ``data.layout`` says it is."""
    a_list = path.suffix.lower() in _LISTS and path.is_file()
    fits, wanted = {
        "brats": (path.is_dir(), "a folder of cases"),
        "msd": ((path / "dataset.json").is_file(), "a folder with dataset.json"),
        "datalist": (a_list, "a .csv or .json file"),
        "patches": (False, "a folder with lesion_cubes/*.npz"),
    }.get(layout, (True, ""))
    if not fits:
        fault = Fault(path, f"not laid out as data.layout={layout} says", wanted, "set data.layout=auto")
        raise DataInvalid([fault])


def _given_files(volumes: Sequence[Path]) -> list[CaseFiles]:
    """Files named one by one: those called after a modality belong together, any other is a 4-D file."""
    named: dict[Path, list[Path]] = {}
    for path in volumes:
        if _part(path)[1]:
            named.setdefault(path.parent, []).append(path)
    cases = [case for folder, files in named.items() for case in _brats(folder, files)]
    return cases + [four_d_case(path) for path in volumes if not _part(path)[1]]


# ---------------------------------------------------------------- BraTS folders


def _folders(root: Path, layout: str) -> tuple[list[CaseFiles], int]:
    """Case folders at most three levels down; files of one folder belong together."""
    cases: list[CaseFiles] = []
    rest: dict[Path, list[Path]] = {}
    files = 0
    for folder, inside in _walk(root, _DEPTH, set()):
        if isinstance(inside, Fault):
            cases.append(CaseFiles(_name(folder), _name(folder), {}, fault=inside))
            continue
        files += len(inside)
        volumes = [p for p in inside if is_nifti(p) and not _OWN.search(stem(p))]
        found = _brats(folder, volumes) if volumes else []
        cases += found
        if not found and layout == "auto":
            rest[folder] = [p for p in inside if p.is_file()]
    return cases + _dicom(rest), files


def _walk(folder: Path, depth: int, seen: set[tuple[int, int]]) -> Iterator[tuple[Path, list[Path] | Fault]]:
    """Every folder once, with its visible entries; or the fault of one that cannot be listed.

    Links are followed; a folder reached a second time (a cycle, or a second link) is left out.
    """
    try:
        info = folder.stat()
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as err:
        yield folder, Fault(folder, err.strerror or str(err), "a readable folder", "check its permissions")
        return
    if (info.st_dev, info.st_ino) in seen:
        return
    seen.add((info.st_dev, info.st_ino))
    folders = {p for p in entries if not is_nifti(p) and irregular(p) == "a folder"}
    # A folder called x_t1.nii.gz counts as a file, so that its case says what is wrong.
    yield folder, [p for p in entries if p not in folders]
    if depth:
        for child in sorted(folders):
            yield from _walk(child, depth - 1, seen)


def _name(folder: Path) -> str:
    return folder.name or folder.resolve().name


def _part(path: Path) -> tuple[str, str]:
    """(case id, or "" where the folder's name is it; modality, "label" or "") that a file's name gives away."""
    match = _PART.fullmatch(stem(path))
    if match is None:
        return "", SYNONYMS.get(stem(path).lower(), "")
    if path.name.lower().startswith("w39_1998.09.19_segm"):  # the mask of BraTS20_Training_355
        return "", "label"
    return match.group("id"), SYNONYMS.get(match.group("part").lower(), "")


def _brats(folder: Path, volumes: Sequence[Path]) -> list[CaseFiles]:
    groups: dict[str, dict[str, list[Path]]] = {}
    for path in volumes:
        case_id, part = _part(path)
        if part:
            groups.setdefault(case_id or _name(folder), {}).setdefault(part, []).append(path)
    cases = []
    for case_id, files in groups.items():
        parts = {part: paths[0] for part, paths in files.items()}
        label = parts.pop("label", None)
        if label is not None and _predicted(label, case_id):
            label = None
        if not parts:
            continue  # a lone mask: a finished prediction, or labels kept apart
        fresh = any(_part(p)[0] and stem(p).lower().endswith(_NEW_SUFFIXES) for p in parts.values())
        convention = convention_of(case_id, fresh)
        case = CaseFiles(case_id, patient_of(case_id), parts, label, "brats", convention)
        cases.append(complete(_unambiguous(case, files), folder))
    return cases or [four_d_case(path) for path in volumes if not _part(path)[1]]


def _unambiguous(case: CaseFiles, files: Mapping[str, Sequence[Path]]) -> CaseFiles:
    """The case, with a fault if two files would be the same image."""
    for part, paths in files.items():
        if len(paths) > 1:
            found = f"two files for {part}: {paths[0].name}, {paths[1].name}"
            return replace(case, fault=Fault(paths[1].parent, found, "one", "move one of them away"))
    return case


def _predicted(label: Path, case_id: str) -> bool:
    """Whether a mask is our own prediction: its JSON lies beside it. It must never pass for the truth."""
    from medical.brats_seg.datalist import read_json

    try:
        facts = read_json(label.with_name(f"{case_id}.json"))
    except DataInvalid:
        return False
    return isinstance(facts, dict) and {"convention", "regions", "voxels_changed"} <= facts.keys()


def convention_of(case_id: str, fresh: bool = False) -> str | None:
    """Convention that the naming alone implies; 2023+ names leave 2023 and 2024 open until values are seen.

    Paediatric releases numbered their tissues otherwise from one year to the next: their names imply nothing.
    """
    if re.match(r"^BraTS-PED-", case_id, re.I):
        return None
    if fresh or re.match(r"^BraTS-[A-Za-z]+-\d", case_id):
        return "brats2023"
    if re.match(r"^brats(1[2-9]|20|2021|2022)", case_id, re.I):
        return "brats2021"
    return None


def complete(case: CaseFiles, folder: Path) -> CaseFiles:
    """The case, with a fault if it lacks a modality."""
    missing = [name for name in MODALITIES if name not in case.images]
    if not missing or case.fault is not None:
        return case
    tried = {name: [key for key, value in SYNONYMS.items() if value == name] for name in missing}
    names = "; ".join(f"{name} (…_{', …_'.join(keys)})" for name, keys in tried.items())
    fault = Fault(
        folder,
        f"case {case.id} has {', '.join(sorted(case.images))} but no {', '.join(missing)}",
        f"one file each: {names}",
        "add it, or predict with -s allow_missing=true",
    )
    return replace(case, fault=fault, incomplete=True)


# ---------------------------------------------------------------- 4-D files


def four_d_case(path: Path, order: Sequence[str] = ("flair", "t1", "t1ce", "t2"), **kwargs: Any) -> CaseFiles:
    """One file of four channels; without a dataset.json the order of MSD Task01 is taken, and said."""
    name = stem(path).removesuffix("_0000")
    return CaseFiles(
        name,
        patient_of(name),
        {modality: path for modality in order},
        kwargs.get("label"),
        kwargs.get("layout", "4-D file"),
        kwargs.get("convention"),
        {modality: index for index, modality in enumerate(order)},
    )


# ---------------------------------------------------------------- DICOM


def _dicom(rest: Mapping[Path, Sequence[Path]]) -> list[CaseFiles]:
    """One case a study, however many of the folders its series lie in; ids are hashes (see `medical.dicom`)."""
    from medical.dicom import StudyKey, study_key

    studies: dict[StudyKey, list[Path]] = {}
    for folder, files in rest.items():
        key = study_key(files)
        if key is not None:
            studies.setdefault(key, []).append(folder)
    return [
        CaseFiles(
            key.study,
            key.patient,
            dict.fromkeys(MODALITIES, folders[0]),
            layout="dicom",
            folders=tuple(folders),
        )
        for key, folders in studies.items()
    ]
