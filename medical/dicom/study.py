"""A DICOM study as volumes: its series recognised, checked, stacked and brought to one grid.

Nothing that names a person leaves this module: ids are hashes, and words of the patient's name or id that occur in a
path or description are hidden from every message (`medical.dicom.slices.hide`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medical.dicom.geometry import stack
from medical.dicom.rules import assign
from medical.dicom.slices import (
    Series,
    collect,
    hide,
    is_directory,
    looks_like_dicom,
    read_header,
    read_pixels,
    text_of,
)
from medical.nifti import MAX_BYTES, Volume, offset_mm, reorient
from shared.errors import ItemError

__all__ = ["StudyKey", "read_study", "study_key"]

_DEPTH = 3
_SAME_GRID_MM = 1e-3
_LISTED = 8
_SNIFFED = 16


@dataclass(frozen=True)
class StudyKey:
    """Hashes of StudyInstanceUID and PatientID: equal for equal studies and patients, and nothing else."""

    study: str
    patient: str


def study_key(files: Iterable[Path]) -> StudyKey | None:
    """Key of the first DICOM image among the first few `files` (DICOMDIR is none); None without one."""
    for path in list(files)[:_SNIFFED]:
        if not looks_like_dicom(path):
            continue
        try:
            header = read_header(path)
        except ItemError:
            return StudyKey(_hashed("study", str(path.parent)), _hashed("patient", str(path.parent)))
        if is_directory(header):
            continue
        study = text_of(header, "StudyInstanceUID") or str(path.parent)
        return StudyKey(_hashed("study", study), _hashed("patient", text_of(header, "PatientID") or study))
    return None


def _hashed(kind: str, text: str) -> str:
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def read_study(
    source: Path | Sequence[Path],
    modalities: Sequence[str],
    max_bytes: int = MAX_BYTES,
    *,
    allow_missing: bool = False,
) -> dict[str, Volume]:
    """Modality → volume (columns, rows, slices), all on one grid: t1ce's, else the first's.

    `source`: the study's folder (three levels deep), or the folders and files that hold it. Volumes carry NIfTI
    headers with both forms set, and `origin`, the series they were read from. Raises `ItemError` naming the series
    found, or the position in mm.
    """
    places = [source] if isinstance(source, Path) else list(source)
    files = [file for place in places for file in _files(place, _DEPTH if isinstance(source, Path) else 0)]
    where = Path(os.path.commonpath(places))
    series, hidden, refusal = collect(files)
    try:
        if refusal is not None:
            raise refusal
        chosen = _chosen(series, modalities, where, allow_missing)
        volumes = {
            name: _volume(one, name, reason, where, max_bytes) for name, (one, reason) in chosen.items()
        }
        frames = {name: one.frame_of_reference for name, (one, _) in chosen.items()}
        out = _one_grid(volumes, frames, where)
    except ItemError as err:
        fault = err.fault
        parts = (str(fault.source), fault.found, fault.wanted, fault.mend, fault.field)
        raise ItemError(*(hide(part, hidden) for part in parts)) from None
    return {name: _anonymous(volume, hidden) for name, volume in out.items()}


def _files(folder: Path, depth: int) -> list[Path]:
    if folder.is_file():
        return [folder]
    try:
        inside = sorted(folder.iterdir())
    except OSError as err:
        raise ItemError(folder, err.strerror or "unreadable", "a folder", "check the path") from None
    out = []
    for path in inside:
        if path.name.startswith("."):
            continue
        if path.is_file():
            out.append(path)
        elif path.is_dir() and depth:
            out += _files(path, depth - 1)
    return out


def _chosen(
    series: Sequence[Series], modalities: Sequence[str], where: Path, allow_missing: bool
) -> dict[str, tuple[Series, str]]:
    if not series:
        raise ItemError(where, "no DICOM image", f"series of {', '.join(modalities)}", "check the folder")
    studies = {text_of(one.first, "StudyInstanceUID") for one in series}
    if len(studies) > 1:
        raise ItemError(
            where, f"{len(studies)} studies in one folder", "one", "give each study its own folder"
        )
    fitting = assign(series)
    listed = "; ".join(one.name for one in series[:_LISTED])
    if len(series) > _LISTED:
        listed += f"; and {len(series) - _LISTED} more"
    for name in modalities:
        if len(fitting.get(name, ())) > 1:
            these = "; ".join(one.name for one, _ in fitting[name])
            mend = "move the series that are not meant out of the folder"
            raise ItemError(
                where, f"{len(fitting[name])} series fit {name}: {these}", "one", mend, "SeriesDescription"
            )
    missing = [name for name in modalities if name not in fitting]
    if missing and not (allow_missing and len(missing) < len(modalities)):
        mend = "add it, or convert with dcm2niix and name the files …_flair, …_t1ce, …_t1, …_t2"
        found = f"no series for {', '.join(missing)} among {listed}"
        raise ItemError(where, found, "one series a modality", mend, "SeriesDescription")
    return {name: fitting[name][0] for name in modalities if name in fitting}


def _volume(series: Series, modality: str, reason: str, where: Path, max_bytes: int) -> Volume:
    slices = series.slices()
    columns, rows = slices[0].shape
    needed = columns * rows * len(slices) * 4
    if needed > max_bytes or not needed:
        found = f"{series.name}: {columns}×{rows}×{len(slices)} voxels, {needed / 2**30:.1f} GiB decoded"
        raise ItemError(where, found, f"at most {max_bytes / 2**30:.1f} GiB", "raise -s max_bytes=…", "Rows")
    ordered, affine = stack(slices, where, series.name)
    data = read_pixels(ordered)
    path = Path(_hashed("study", text_of(series.first, "StudyInstanceUID"))) / modality
    return Volume(path, data, affine, _header(data.shape, affine), origin=f"{series.name}: {reason}")


def _header(shape: Sequence[int], affine: NDArray[np.float64]) -> Any:
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    return header


def _anonymous(volume: Volume, hidden: Sequence[str]) -> Volume:
    warnings = tuple(hide(text, hidden) for text in volume.warnings)
    return Volume(
        volume.path, volume.data, volume.affine, volume.header, warnings, hide(volume.origin, hidden)
    )


# ---------------------------------------------------------------- one grid


def _one_grid(volumes: dict[str, Volume], frames: dict[str, str], where: Path) -> dict[str, Volume]:
    """Every volume on the grid of t1ce (or the first). Raises `ItemError` for unregistered ones."""
    target = "t1ce" if "t1ce" in volumes else next(iter(volumes))
    like = volumes[target]
    out = {}
    for name, volume in volumes.items():
        same_frame = frames[name] == frames[target] != ""
        if _same_grid(volume, like):
            note = (
                ()
                if same_frame or name == target
                else (f"frame of reference differs from {target}'s, but not the grid",)
            )
            out[name] = Volume(volume.path, volume.data, volume.affine, volume.header, note, volume.origin)
            continue
        if not same_frame:
            found = f"{name} ({volume.origin}) and {target} have different frames of reference"
            raise ItemError(where, found, "one frame", "register them first", "FrameOfReferenceUID")
        out[name] = _resampled(volume, like, target)
    return out


def _same_grid(volume: Volume, like: Volume) -> bool:
    data, affine = reorient(volume.data, volume.affine, like.affine)
    return data.shape == like.data.shape and bool(
        (offset_mm(affine, like.affine, data.shape) <= _SAME_GRID_MM).all()
    )


def _resampled(volume: Volume, like: Volume, target: str) -> Volume:
    """`volume` at the voxels of `like`: linear, 0 beyond half a voxel outside."""
    from scipy.ndimage import affine_transform

    move = np.linalg.inv(volume.affine) @ like.affine
    shape = like.data.shape
    data = affine_transform(
        volume.data, move[:3, :3], move[:3, 3], output_shape=shape, output=np.float32, order=1, mode="nearest"
    )
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    for axis, size in enumerate(volume.data.shape):
        at = (move[axis, 0] * i + move[axis, 3]) + move[axis, 1] * j + move[axis, 2] * k
        data[(at < -0.5) | (at > size - 0.5)] = 0
    was, now = (f"{'×'.join(map(str, v.data.shape))} voxels of {_mm(v)} mm" for v in (volume, like))
    note = f"{was} interpolated linearly to the grid of {target}, {now}"
    return Volume(volume.path, data, like.affine, like.header.copy(), (note,), volume.origin)


def _mm(volume: Volume) -> str:
    return "×".join(f"{length:.3g}" for length in volume.zooms)
