"""Which files make up which case: BraTS folders of every year, MSD Task01, datalists, 4-D files, DICOM studies.

Nothing is read here but names, small JSON/CSV files and headers. What was concluded is in `CaseFiles.matched` and
`CaseFiles.convention`, to be shown; a case that cannot be assembled carries its `fault`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medical.nifti import is_nifti, stem
from shared.errors import DataInvalid, Fault

MODALITIES = ("flair", "t1ce", "t1", "t2")
SYNONYMS = {
    "flair": "flair", "t2f": "flair",
    "t1ce": "t1ce", "t1c": "t1ce", "t1gd": "t1ce", "t1post": "t1ce",
    "t1": "t1", "t1n": "t1", "t1w": "t1",
    "t2": "t2", "t2w": "t2",
    "seg": "label", "label": "label", "segm": "label",
}  # fmt: skip
_PART = re.compile(r"^(?P<id>.*?)[_\-. ](?P<part>[A-Za-z0-9]+)$")
_NEW_SUFFIXES = {"t2f", "t1n", "t1c", "t2w"}
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

    @property
    def sources(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(self.images[name] for name in sorted(self.images)))

    @property
    def matched(self) -> dict[str, str]:
        """Modality → file (and channel), as sentences show it."""
        if self.channels is not None:
            return {m: f"{self.images[m].name}[{i}]" for m, i in self.channels.items()}
        return {m: path.name for m, path in self.images.items()}


def patient_of(case_id: str) -> str:
    """Patient of a case: 2023+ names end in a time point (BraTS-GLI-00008-001 → BraTS-GLI-00008)."""
    match = re.match(r"^(BraTS-[A-Za-z]+-\d+)-\d{3}$", case_id, re.I)
    return match.group(1) if match else case_id


def discover(paths: Sequence[Path], layout: str = "auto") -> list[CaseFiles]:
    """Every case under `paths`, sorted by id; incomplete ones with their fault. Raises `DataInvalid` if none."""
    found: list[CaseFiles] = []
    seen = 0
    for path in paths:
        cases, files = _under(Path(path), layout)
        found += cases
        seen += files
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


def _refuse_doubles(cases: list[CaseFiles]) -> list[CaseFiles]:
    first: dict[str, CaseFiles] = {}
    out = []
    for case in cases:
        twin = first.setdefault(case.id, case)
        if twin is not case and case.fault is None:
            where = next(iter(case.images.values()))
            fault = Fault(where, f"a second case {case.id}", "one folder a case", "rename one of them")
            case = replace(case, id=f"{case.id}~{len(out)}", fault=fault)
        out.append(case)
    return out


def _under(path: Path, layout: str) -> tuple[list[CaseFiles], int]:
    if path.is_dir():
        if layout in ("auto", "msd") and (path / "dataset.json").is_file():
            return _msd(path), 1
        return _folders(path, layout)
    if path.suffix.lower() in (".csv", ".json") and layout in ("auto", "datalist"):
        return _datalist(path), 1
    if is_nifti(path):
        return [_four_d(path)], 1
    if not path.exists():
        raise DataInvalid([Fault(path, "not found", "a folder or file", "check the path")])
    return [], 1


# ---------------------------------------------------------------- BraTS folders


def _folders(root: Path, layout: str) -> tuple[list[CaseFiles], int]:
    """Case folders at most three levels down; files of one folder belong together."""
    cases: list[CaseFiles] = []
    files = 0
    for folder in _walk(root, _DEPTH):
        inside = sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.is_file())
        files += len(inside)
        volumes = [p for p in inside if is_nifti(p) and not _OWN.search(stem(p))]
        if volumes:
            cases += _brats(folder, volumes)
        elif layout in ("auto",) and inside:
            cases += _dicom(folder, inside)
    return cases, files


def _walk(root: Path, depth: int) -> Iterable[Path]:
    yield root
    if depth == 0:
        return
    for child in sorted(root.iterdir()):
        # A link is followed once from where it lies; `depth` bounds any cycle.
        if not child.name.startswith(".") and child.is_dir():
            yield from _walk(child, depth - 1)


def _brats(folder: Path, volumes: Sequence[Path]) -> list[CaseFiles]:
    groups: dict[str, dict[str, Path]] = {}
    fresh: set[str] = set()
    loose: list[Path] = []
    for path in volumes:
        match = _PART.match(stem(path))
        part = SYNONYMS.get(match.group("part").lower()) if match else SYNONYMS.get(stem(path).lower())
        if part is None:
            loose.append(path)
            continue
        case_id = match.group("id") if match else folder.name
        if path.name.lower().startswith("w39_1998.09.19_segm"):  # the mask of BraTS20_Training_355
            case_id = folder.name
        if match and match.group("part").lower() in _NEW_SUFFIXES:
            fresh.add(case_id)
        groups.setdefault(case_id, {})[part] = path
    cases = []
    for case_id, parts in groups.items():
        label = parts.pop("label", None)
        if not parts:
            continue  # a lone mask: a finished prediction, or labels kept apart
        convention = _by_name(case_id, case_id in fresh)
        case = CaseFiles(case_id, patient_of(case_id), parts, label, "brats", convention)
        cases.append(_complete(case, folder))
    if not cases and loose:
        cases = [_four_d(path) for path in loose]
    return cases


def _by_name(case_id: str, fresh: bool) -> str | None:
    """Convention that the naming alone implies; 2023+ names leave 2023 and 2024 open until values are seen."""
    if fresh or re.match(r"^BraTS-[A-Za-z]+-\d", case_id):
        return "brats2023"
    if re.match(r"^brats(1[2-9]|20|2021|2022)", case_id, re.I):
        return "brats2021"
    return None


def _complete(case: CaseFiles, folder: Path) -> CaseFiles:
    missing = [name for name in MODALITIES if name not in case.images]
    if not missing:
        return case
    tried = {name: [key for key, value in SYNONYMS.items() if value == name] for name in missing}
    names = "; ".join(f"{name} (…_{', …_'.join(keys)})" for name, keys in tried.items())
    fault = Fault(
        folder,
        f"case {case.id} has {', '.join(sorted(case.images))} but no {', '.join(missing)}",
        f"one file each: {names}",
        "add it, or predict with -s allow_missing=true",
    )
    return replace(case, fault=fault)


# ---------------------------------------------------------------- 4-D files


def _four_d(path: Path, order: Sequence[str] = ("flair", "t1", "t1ce", "t2"), **kwargs: Any) -> CaseFiles:
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


def _msd(root: Path) -> list[CaseFiles]:
    """Medical Segmentation Decathlon: modality order and label names come from dataset.json."""
    path = root / "dataset.json"
    info = _json(path)
    modality = info.get("modality") or info.get("channel_names") or {}
    order = [
        SYNONYMS.get(re.sub(r"[^a-z0-9]", "", str(modality[k]).lower()), "")
        for k in sorted(modality, key=int)
    ]
    if sorted(order) != sorted(MODALITIES):
        found = ", ".join(str(v) for v in modality.values()) or "none"
        raise DataInvalid([Fault(path, found, "FLAIR, T1w, t1gd and T2w", "correct the list", "modality")])
    convention = _msd_convention(info.get("labels"))
    cases = []
    for folder, labels in (("imagesTr", "labelsTr"), ("imagesTs", "")):
        for image in sorted((root / folder).glob("*.nii*")):
            if image.name.startswith("."):
                continue
            label = root / labels / image.name if labels else None
            present = label if label is not None and label.is_file() else None
            cases.append(_four_d(image, order, label=present, layout="msd", convention=convention))
    return cases


def _msd_convention(labels: Any) -> str | None:
    """Task01 says 1 oedema, 2 non-enhancing, 3 enhancing; a re-export may have swapped them, so read the names."""
    names = {str(k): str(v).lower() for k, v in labels.items()} if isinstance(labels, dict) else {}
    if "edema" in names.get("1", "") or "oedema" in names.get("1", ""):
        return "msd"
    if "edema" in names.get("2", "") or "oedema" in names.get("2", ""):
        return "brats2023"
    return None


# ---------------------------------------------------------------- datalists


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DataInvalid([Fault(path, f"not JSON ({err})", "a JSON file", "mend it")]) from None


def _datalist(path: Path) -> list[CaseFiles]:
    """CSV with columns id, flair, t1ce, t1, t2[, label, patient, fold], or MONAI-style JSON with `modalities`."""
    if path.suffix.lower() == ".csv":
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        rows: list[dict[str, Any]] = [dict(row) for row in csv.DictReader(io.StringIO(text))]
    else:
        rows = _json_rows(path)
    cases = []
    for number, row in enumerate(rows, 2 if path.suffix.lower() == ".csv" else 1):
        cases.append(_row(path, number, {str(k).strip().lower(): v for k, v in row.items() if k is not None}))
    return cases


def _json_rows(path: Path) -> list[dict[str, Any]]:
    content = _json(path)
    if isinstance(content, list):
        return content
    order = content.get("modalities")
    rows = []
    for key in ("training", "validation", "testing", "test"):
        for row in content.get(key, ()):
            row = {"image": row} if isinstance(row, str) else dict(row)
            if isinstance(row.get("image"), list):
                if order is None:
                    raise DataInvalid(
                        [
                            Fault(
                                path,
                                "no key modalities",
                                "the order of each image list",
                                f'add "modalities": {list(MODALITIES)}',
                            )
                        ]
                    )
                row |= dict(zip(order, row["image"]))
            rows.append(row)
    return rows


def _row(path: Path, number: int, row: Mapping[str, Any]) -> CaseFiles:
    parts: dict[str, Path] = {}
    for key, value in row.items():
        name = SYNONYMS.get(key)
        if name and value:
            parts[name] = path.parent / str(value)
    label = parts.pop("label", None)
    first = next(iter(parts.values()), None)
    case_id = str(row.get("id") or (_PART.sub(r"\g<id>", stem(first)) if first else f"row {number}"))
    fold = row.get("fold")
    case = CaseFiles(
        case_id,
        str(row.get("patient") or patient_of(case_id)),
        parts,
        label,
        "datalist",
        str(row["convention"]) if row.get("convention") else _by_name(case_id, False),
        None,
        int(fold) if fold not in (None, "") else None,
    )
    absent = [p for p in (*parts.values(), *([label] if label else [])) if not p.exists()]
    if absent:
        return replace(
            case,
            fault=Fault(
                path, f"{absent[0]} not found", "an existing file", "correct the path", f"row {number}"
            ),
        )
    return _complete(case, path)


# ---------------------------------------------------------------- DICOM


def _dicom(folder: Path, files: Sequence[Path]) -> list[CaseFiles]:
    from medical.dicom import looks_like_dicom

    if not any(looks_like_dicom(path) for path in files[:3]):
        return []
    return [CaseFiles(folder.name, folder.name, {name: folder for name in MODALITIES}, layout="dicom")]
