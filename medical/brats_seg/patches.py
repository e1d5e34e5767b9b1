"""A set of real patches cut around lesions, with whole label maps beside it to paint into made heads.

Layout (the folder may also hold ``cases/``, complete cases that are only ever scored)::

    lesion_cubes/*.npz   x (N, 4, D, H, W) int8, y (N, D, H, W) labels 0 1 2 4, patient (N,), scale; optional modalities
    label_maps/*_labels_*.npz   one label map (D, H, W) a patient, key = patient

`x` times `scale` are z-scores over the whole head's non-zero voxels; channel order t1, t1ce, t2, flair unless
`modalities` says otherwise. Arrays lie on the case's own axes (L, P, S).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from medical.brats_seg.cases import patient_rank
from medical.brats_seg.labels import CONVENTIONS
from shared.errors import DataInvalid, Fault
from shared.pipeline import error_faults

CUBES, MAPS, CASES = "lesion_cubes", "label_maps", "cases"
ORDER = ("t1", "t1ce", "t2", "flair")
FIELD_MM = (240.0, 240.0, 155.0)
"""Field of view that a label map covers."""
_KEYS = ("x", "y", "patient", "scale")


@dataclass(frozen=True)
class PatchSet:
    """Patches and label maps of the patients of one side of a split."""

    x: NDArray[np.int8]
    """(N, 4, D, H, W) in the order asked for."""
    y: NDArray[np.uint8]
    patient: tuple[str, ...]
    scale: float
    maps: dict[str, NDArray[np.uint8]]

    def __len__(self) -> int:
        return len(self.patient)

    def image(self, index: int) -> NDArray[np.float32]:
        """z-scores (4, D, H, W)."""
        return self.x[index].astype(np.float32) * self.scale

    def only(self, patients: set[str]) -> PatchSet:
        rows = [i for i, name in enumerate(self.patient) if name in patients]
        maps = {name: volume for name, volume in self.maps.items() if name in patients}
        return PatchSet(self.x[rows], self.y[rows], tuple(self.patient[i] for i in rows), self.scale, maps)


def is_patch_set(path: Path, layout: str = "auto") -> bool:
    """Whether ``data.layout`` lets `path` be read as a patch set, and it is one."""
    return layout in ("auto", "patches") and bool(_cube_files(path))


def _cube_files(path: Path) -> list[Path]:
    folder = path / CUBES
    return sorted(folder.glob("*.npz")) if folder.is_dir() else []


def source_files(path: Path) -> list[Path]:
    """Every file that `read_patch_set` reads."""
    maps = path / MAPS
    return [*_cube_files(path), *(sorted(maps.glob("*_labels_*.npz")) if maps.is_dir() else ())]


def read_patch_set(path: Path, modalities: Sequence[str]) -> PatchSet:
    """The whole set with channels in the order `modalities`. Raises `DataInvalid`."""
    faults = error_faults(check_patch_set(path, modalities))
    if faults:
        raise DataInvalid(faults)
    xs, ys, patients, scales = [], [], [], set()
    for file in _cube_files(path):
        with np.load(file, allow_pickle=False) as data:
            order = [str(name) for name in data["modalities"]] if "modalities" in data else list(ORDER)
            xs.append(data["x"][:, [order.index(name) for name in modalities]])
            ys.append(data["y"])
            patients += [str(name) for name in data["patient"]]
            scales.add(float(data["scale"]))
    maps: dict[str, NDArray[np.uint8]] = {}
    for file in source_files(path)[len(xs) :]:
        with np.load(file, allow_pickle=False) as data:
            maps |= {name: data[name] for name in data.files}
    return PatchSet(np.concatenate(xs), np.concatenate(ys), tuple(patients), scales.pop(), maps)


def split_patches(
    whole: PatchSet, folds: int, fold: int, exclude: Sequence[str]
) -> tuple[PatchSet, PatchSet]:
    """(training, held-out) patches and label maps; a patient, with all that is known of it, is on one side only."""
    everyone = (set(whole.patient) | set(whole.maps)) - set(exclude)
    ranked = sorted(everyone, key=patient_rank)
    held_out = {name for index, name in enumerate(ranked) if index % folds == fold}
    return whole.only(everyone - held_out), whole.only(held_out)


def check_patch_set(path: Path, modalities: Sequence[str] = ORDER) -> list[Fault]:
    """Every fault of the patch and label-map files; `modalities` are those that training wants."""
    faults: list[Fault] = []
    scales, sides = set(), set()
    for file in source_files(path):
        try:
            with np.load(file, allow_pickle=False) as data:
                arrays = {name: data[name] for name in data.files}
        except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as err:
            text = f"unreadable ({str(err)[:80]})"
            faults.append(Fault(file, text, "an .npz file of arrays", "copy it again"))
            continue
        if file.parent.name == MAPS:
            faults += _map_faults(file, arrays)
            continue
        odd = _cube_faults(file, arrays, modalities)
        faults += odd
        if not odd:
            scales.add(float(arrays["scale"]))
            sides.add(arrays["x"].shape[2:])
    if len(scales) > 1:
        faults.append(Fault(path / CUBES, f"scales {sorted(scales)}", "one scale", "requantise", "scale"))
    if len(sides) > 1:
        faults.append(
            Fault(path / CUBES, f"patches of {sorted(sides)} voxels", "one size", "cut them alike", "x")
        )
    return faults


def _cube_faults(file: Path, data: dict[str, Any], modalities: Sequence[str]) -> list[Fault]:
    missing = [key for key in _KEYS if key not in data]
    if missing:
        return [Fault(file, f"no {', '.join(missing)}", f"arrays {', '.join(_KEYS)}", "add them")]
    x, y, patient, scale = (data[key] for key in _KEYS)
    if x.ndim != 5 or y.shape != (len(x), *x.shape[2:]) or patient.shape != (len(x),):
        shapes = f"x {x.shape}, y {y.shape}, patient {patient.shape}"
        return [Fault(file, shapes, "x (N, 4, D, H, W), y (N, D, H, W), patient (N,)", "export them again")]
    faults = _value_faults(file, "y", y)
    order = [str(name) for name in np.atleast_1d(data.get("modalities", ORDER))]
    if len(order) != x.shape[1] or not set(modalities) <= set(order):
        found = f"{x.shape[1]} channels, modalities {', '.join(order)}"
        wanted = f"one name a channel, {', '.join(modalities)} among them"
        faults.append(Fault(file, found, wanted, "correct them", "modalities"))
    if x.dtype.kind not in "iu":
        faults.append(Fault(file, f"{x.dtype}", "int8, z-scores divided by scale", "quantise it", "x"))
    if scale.size != 1 or not np.isfinite(scale).all() or float(scale) <= 0:
        faults.append(Fault(file, str(scale)[:60], "a positive number", "export it again", "scale"))
    return faults


def _map_faults(file: Path, maps: dict[str, Any]) -> list[Fault]:
    faults = []
    for name, volume in maps.items():
        if volume.ndim != 3:
            faults.append(Fault(file, f"{volume.ndim}-D", "3-D label maps", "export it again", name))
        else:
            faults += _value_faults(file, name, volume)
    return faults


def _value_faults(file: Path, field: str, labels: NDArray[Any]) -> list[Fault]:
    allowed = CONVENTIONS["brats2021"].values
    if labels.dtype != np.uint8:
        return [Fault(file, f"{labels.dtype} labels", "uint8", "convert them", field)]
    counts = np.bincount(labels.reshape(-1), minlength=256)  # some 20 times faster than np.unique
    odd = {value: int(counts[value]) for value in np.flatnonzero(counts).tolist() if value not in allowed}
    if not odd:
        return []
    listed = ", ".join(f"{value} ({count:,} voxels)" for value, count in odd.items())
    return [Fault(file, f"labels {listed}", f"values {sorted(allowed)}", "convert them", field)]
