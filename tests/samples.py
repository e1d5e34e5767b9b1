"""Tiny NIfTI files and cases made by code, a few kB each: what a user brings, and every way it can be broken."""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SHAPE = (16, 18, 12)
LPS = np.array([[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]], float)
"""The usual BraTS affine: left-posterior-superior, 1 mm."""
STYLES = {
    "brats2018": ("Brats18_2013_{n}_1", "_", ("flair", "t1ce", "t1", "t2"), (1, 2, 4)),
    "brats2019": ("BraTS19_CBICA_A{n:02}_1", "_", ("flair", "t1ce", "t1", "t2"), (1, 2, 4)),
    "brats2020": ("BraTS20_Training_{n:03}", "_", ("flair", "t1ce", "t1", "t2"), (1, 2, 4)),
    "brats2021": ("BraTS2021_{n:05}", "_", ("flair", "t1ce", "t1", "t2"), (1, 2, 4)),
    "brats2023": ("BraTS-GLI-{n:05}-000", "-", ("t2f", "t1c", "t1n", "t2w"), (1, 2, 3)),
    "brats2024": ("BraTS-GLI-{n:05}-101", "-", ("t2f", "t1c", "t1n", "t2w"), (1, 2, 3)),
}
"""Release → (case name, separator, suffixes of flair, t1ce, t1, t2, values of core, oedema, enhancing)."""
MODALITIES = ("flair", "t1ce", "t1", "t2")
_CONTRAST = {"flair": (60, 250, 150), "t1ce": (-40, 0, 300), "t1": (-60, -20, 30), "t2": (120, 180, 140)}


def head(
    shape: Sequence[int] = SHAPE, seed: int = 0
) -> tuple[dict[str, NDArray[np.int16]], NDArray[np.uint8]]:
    """Four modalities of a ball-shaped head, 0 outside, and its tissues: 1 core, 2 oedema, 3 enhancing."""
    rng = np.random.default_rng(seed)
    axes = np.ogrid[tuple(slice(-1, 1, complex(0, n)) for n in shape)]
    centre = rng.uniform(-0.25, 0.25, 3)
    inside = sum(axis**2 for axis in axes) < 0.95
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(axes, centre)))
    tissue = np.zeros(tuple(shape), np.uint8)
    for radius, value in ((0.6, 2), (0.42, 3), (0.25, 1)):
        tissue[inside & (distance < radius)] = value
    images = {}
    for name, lift in _CONTRAST.items():
        values = 400.0 + rng.normal(0, 12, tuple(shape))
        for value, step in zip((1, 2, 3), lift):
            values[tissue == value] += step
        images[name] = np.where(inside, values, 0).astype(np.int16)
    return images, tissue


def nifti_bytes(
    data: NDArray[Any],
    affine: NDArray[np.float64] | None = LPS,
    *,
    codes: tuple[int, int] = (1, 1),
    order: str = "<",
    fields: Mapping[str, Any] | None = None,
    version: int = 1,
) -> bytes:
    """An uncompressed NIfTI file. `codes`: sform, qform; `order`: byte order; `fields`: raw header values set last."""
    kind = {1: nib.Nifti1Image, 2: nib.Nifti2Image}[version]
    header = kind.header_class(endianness=order)
    header.set_data_dtype(data.dtype)
    image = kind(data, affine, header)
    if affine is not None:
        image.set_sform(affine, codes[0])
        image.set_qform(affine, codes[1])
    content = bytearray(image.to_bytes())
    raw = type(image.header)(bytes(content[: header.sizeof_hdr]), check=False)
    for key, value in (fields or {}).items():
        if isinstance(key, str) and key.startswith("dim["):
            raw["dim"][int(key[4:-1])] = value
        else:
            raw[key] = value
    content[: header.sizeof_hdr] = raw.binaryblock
    return bytes(content)


def write_nifti(
    path: Path, data: NDArray[Any], affine: NDArray[np.float64] | None = LPS, **more: Any
) -> Path:
    """`data` as `path`, compressed if its name ends in .gz; `more` as in `nifti_bytes`."""
    content = nifti_bytes(data, affine, **more)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, 1, mtime=0) if path.name.endswith(".gz") else content)
    return path


def write_case(
    root: Path,
    number: int = 1,
    style: str = "brats2021",
    *,
    case_id: str | None = None,
    shape: Sequence[int] = SHAPE,
    seed: int | None = None,
    affine: NDArray[np.float64] = LPS,
    suffix: str = ".nii.gz",
    label: bool = True,
    skip: Sequence[str] = (),
    images: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """One case folder under `root`; returns it. `images` replaces single modalities."""
    pattern, dash, suffixes, values = STYLES[style]
    name = case_id or pattern.format(n=number)
    made, tissue = head(shape, number if seed is None else seed)
    folder = root / name
    for modality, part in zip(MODALITIES, suffixes):
        if modality not in skip:
            data = (images or {}).get(modality, made[modality])
            write_nifti(folder / f"{name}{dash}{part}{suffix}", data, affine)
    if label:
        table = np.array([0, *values], np.uint8)
        write_nifti(folder / f"{name}{dash}seg{suffix}", table[tissue], affine)
    return folder


def write_msd(root: Path, training: int = 2, test: int = 1, **info: Any) -> Path:
    """A Task01 folder: 4-D images in the order FLAIR, T1w, t1gd, T2w; label 1 is oedema. Returns `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for folder, first, count in (("imagesTr", 1, training), ("imagesTs", 101, test)):
        for number in range(first, first + count):
            images, tissue = head(seed=number)
            stack = np.stack([images[name] for name in ("flair", "t1", "t1ce", "t2")], axis=-1)
            write_nifti(root / folder / f"BRATS_{number:03}.nii.gz", stack)
            if folder == "imagesTr":
                label = np.array([0, 2, 1, 3], np.uint8)[tissue]
                write_nifti(root / "labelsTr" / f"BRATS_{number:03}.nii.gz", label)
    facts = {
        "name": "BRATS",
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
    }
    (root / "dataset.json").write_text(json.dumps({**facts, **info}), encoding="utf-8")
    return root


def case_row(folder: Path, **more: Any) -> dict[str, Any]:
    """A datalist row for a case folder of any style: id, one path per modality, label."""
    row: dict[str, Any] = {"id": folder.name}
    names = {part: name for style in STYLES.values() for name, part in zip(MODALITIES, style[2])}
    for path in sorted(folder.glob("*.nii*")):
        part = path.name.split(".")[0].replace("-", "_").rpartition("_")[2]
        row[names.get(part, "label")] = str(path)
    return row | more


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def without_trailer(path: Path) -> Path:
    """Zero the checksum and length at the end of a gzip file."""
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))
    return path


def flip_byte(path: Path, at: int, mask: int = 0xFF) -> Path:
    content = bytearray(path.read_bytes())
    content[at] ^= mask
    path.write_bytes(bytes(content))
    return path


def cut(path: Path, keep: float) -> Path:
    """Keep the first part of a file only."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path


def bomb(path: Path, gib: float = 1.0) -> Path:
    """A small gzip file of a small volume that goes on for `gib` GiB of zeros."""
    block = gzip.compress(bytes(2**24), 9, mtime=0)
    head_ = gzip.compress(nifti_bytes(np.ones(SHAPE, np.int16)), mtime=0)
    with open(path, "wb") as file:
        file.write(head_)
        for _ in range(int(gib * 64)):
            file.write(block)  # gzip members follow one another
    return path


def make_fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path
