"""Cases from lists: CSV and JSON datalists, and the dataset.json of the Medical Segmentation Decathlon."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medical.brats_seg.labels import CONVENTIONS
from medical.brats_seg.layouts import (
    MODALITIES,
    SYNONYMS,
    CaseFiles,
    complete,
    convention_of,
    four_d_case,
    id_of,
    patient_of,
)
from medical.nifti import irregular, is_nifti, stem
from shared.errors import DataInvalid, Fault

MAX_LIST_BYTES = 64 * 2**20
"""Largest datalist or dataset.json read."""


# ---------------------------------------------------------------- small text files


def _text(path: Path) -> str:
    odd = irregular(path)
    if not odd and path.stat().st_size > MAX_LIST_BYTES:
        odd = f"{path.stat().st_size:,} bytes"
    try:
        if odd:
            raise OSError(odd)
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        found = "not UTF-8 text" if isinstance(err, UnicodeDecodeError) else err.strerror or str(err)
        raise DataInvalid([Fault(path, found, "a UTF-8 text file", "save it again")]) from None


def read_json(path: Path) -> Any:
    text = _text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as err:
        raise DataInvalid([Fault(path, f"not JSON ({str(err)[:80]})", "a JSON file", "mend it")]) from None


def _mapping(path: Path, value: Any, field: str = "") -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataInvalid([Fault(path, f"a {type(value).__name__}", "a mapping", "mend it", field)])
    return value


# ---------------------------------------------------------------- dataset.json


def msd_cases(root: Path) -> list[CaseFiles]:
    """Medical Segmentation Decathlon: modality order and label names come from dataset.json."""
    path = root / "dataset.json"
    info = _mapping(path, read_json(path))
    modality = info.get("modality") or info.get("channel_names") or {}
    names = dict(enumerate(modality)) if isinstance(modality, list) else modality
    try:
        order = [str(names[key]) for key in sorted(names, key=int)]
    except (TypeError, ValueError):
        raise DataInvalid(
            [Fault(path, repr(modality)[:60], '{"0": "FLAIR", …}', "mend it", "modality")]
        ) from None
    known = [SYNONYMS.get(re.sub(r"[^a-z0-9]", "", name.lower()), "") for name in order]
    if sorted(known) != sorted(MODALITIES):
        found = ", ".join(order)[:80] or "none"
        raise DataInvalid([Fault(path, found, "FLAIR, T1w, t1gd and T2w", "correct the list", "modality")])
    convention = _msd_convention(info.get("labels"))
    cases = []
    for folder, labels in (("imagesTr", "labelsTr"), ("imagesTs", "")):
        for image in sorted((root / folder).glob("*.nii*")):
            if image.name.startswith(".") or not is_nifti(image):
                continue
            label = root / labels / image.name if labels else None
            present = label if label is not None and label.is_file() else None
            cases.append(four_d_case(image, known, label=present, layout="msd", convention=convention))
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


def list_cases(path: Path) -> list[CaseFiles]:
    """CSV with columns id, flair, t1ce, t1, t2[, label, patient, fold], or MONAI-style JSON with `modalities`."""
    table = path.suffix.lower() == ".csv"
    rows = _csv_rows(path) if table else _json_rows(path)
    return [_row(path, number, row) for number, row in enumerate(rows, 2 if table else 1)]


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(_text(path)))
    try:
        rows: list[dict[str, Any]] = [dict(row) for row in reader]
    except csv.Error as err:
        raise DataInvalid(
            [Fault(path, str(err), "a CSV file", "save it again", f"line {reader.line_num}")]
        ) from None
    columns = [str(name).strip().lower() for name in reader.fieldnames or ()]
    if not any(name == "image" or SYNONYMS.get(name, "label") != "label" for name in columns):
        found = f"columns {', '.join(columns)[:80] or 'none'}"
        mend = "separate columns by commas" if any(";" in name for name in columns) else "name the columns so"
        raise DataInvalid([Fault(path, found, "id,flair,t1ce,t1,t2[,label,patient,fold]", mend, "line 1")])
    meant = [SYNONYMS.get(name, name) for name in columns]
    double = sorted({name for name in meant if meant.count(name) > 1})
    if double:
        found = f"column {double[0]} twice (by one name or two)"
        raise DataInvalid([Fault(path, found, "each once", "remove one", "line 1")])
    return rows


def _json_rows(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    if isinstance(content, list):
        return [dict(_mapping(path, row, f"[{i}]")) for i, row in enumerate(content)]
    content = _mapping(path, content)
    order = content.get("modalities")
    rows = []
    for key in ("training", "validation", "testing", "test"):
        group = content.get(key, [])
        for i, given in enumerate(group if isinstance(group, list) else [group]):
            row = dict(_mapping(path, {"image": given} if isinstance(given, str) else given, f"{key}[{i}]"))
            if isinstance(row.get("image"), list):
                if not isinstance(order, list) or len(order) != len(row["image"]):
                    wanted = f"the order of the {len(row['image'])} images of a row"
                    mend = f'add "modalities": {json.dumps(MODALITIES)}'
                    found = "no such key" if order is None else repr(order)[:60]
                    raise DataInvalid([Fault(path, found, wanted, mend, "modalities")])
                row |= dict(zip(map(str, order), row["image"]))
            rows.append(row)
    return rows


def _row(path: Path, number: int, given: Mapping[Any, Any]) -> CaseFiles:
    row = {str(key).strip().lower(): value for key, value in given.items() if key is not None}
    parts = {
        SYNONYMS[key]: path.parent / str(value).strip()
        for key, value in row.items()
        if key in SYNONYMS and value
    }
    label = parts.pop("label", None)
    four_d = not parts and bool(row.get("image"))
    first = path.parent / str(row["image"]) if four_d else next(iter(parts.values()), None)
    name = "" if first is None else stem(first) if four_d else id_of(first)
    case_id = str(row.get("id") or name or f"row {number}").strip()
    fold = str(row.get("fold") if row.get("fold") is not None else "").strip()
    case = CaseFiles(
        case_id,
        str(row.get("patient") or patient_of(case_id)),
        parts,
        label,
        "datalist",
        str(row.get("convention") or "") or convention_of(case_id),
        None,
        int(fold) if fold.isdecimal() and len(fold) < 5 else None,
    )
    if four_d and first is not None:
        whole = four_d_case(first, label=label, convention=case.convention)
        case = replace(whole, id=case_id, patient=case.patient, fold=case.fold)
    field = f"{'line' if path.suffix.lower() == '.csv' else 'row'} {number}"
    fault = _row_fault(path, field, case, fold, given)
    return replace(case, fault=fault) if fault else complete(case, path)


def _row_fault(path: Path, field: str, case: CaseFiles, fold: str, given: Mapping[Any, Any]) -> Fault | None:
    if None in given or (None in given.values() and path.suffix.lower() == ".csv"):
        return Fault(path, "more or fewer fields than columns", "one field a column", "mend the row", field)
    if case.convention is not None and case.convention not in CONVENTIONS:
        return Fault(
            path,
            f"convention {case.convention}"[:60],
            f"one of {', '.join(CONVENTIONS)}",
            "correct it",
            field,
        )
    if fold and case.fold is None:
        return Fault(path, f"fold {fold}"[:60], "a whole number", "correct it", field)
    if not case.id or case.id in (".", "..") or any(mark in case.id for mark in "/\\\0"):
        # The id becomes file names of results.
        return Fault(path, f"id {case.id!r}"[:60], "a name without / and \\", "correct it", field)
    for file in (*case.sources, *([case.label] if case.label else [])):
        odd = irregular(file)
        if odd:
            return Fault(path, f"{file}: {odd}", "an existing file", "correct the path", field)
    return None
