"""A case as arrays: read, checked against everything that silently ruins a segmentation, and split by patient."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medical.brats_seg.config import BratsConfig
from medical.brats_seg.labels import CONVENTIONS
from medical.brats_seg.layouts import CaseFiles, discover
from medical.nifti import Volume, axcodes, offset_mm, read_header, read_volume, reorient
from shared.errors import DataInvalid, Fault, ItemError

__all__ = [
    "Case",
    "CaseFiles",
    "check_dataset",
    "discover",
    "read_case",
    "settle_convention",
    "split_by_patient",
]

AFFINE_TOLERANCE_MM = 1e-3
_LABEL_ROUNDING = 5e-4
"""Deviation from a whole number that scaling factors explain; more means an interpolated label map."""
_ONE_FILE_EACH = "merge the modalities into it, or name one file each …_flair, …_t1ce, …_t1, …_t2"
MIN_BACKGROUND = 0.2
"""Skull-stripped heads are mostly zeros; fewer than this and the skull is probably still there."""


@dataclass
class Case:
    """One case on its own grid. `images` (C, D, H, W) float32 in the wanted order; `label` (D, H, W) or None."""

    id: str
    images: NDArray[np.float32]
    label: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    reference: Volume
    convention: str | None
    matched: dict[str, str]
    warnings: list[str]


# ---------------------------------------------------------------- reading one case


def read_case(files: CaseFiles, config: BratsConfig, *, with_label: bool = False) -> Case:
    """The case's channels in ``config.data.modalities`` order. Raises `ItemError` naming file and field."""
    wanted = config.data.modalities
    if files.fault is not None and (with_label or not fillable(files, config)):
        raise ItemError.of(files.fault)
    warnings: list[str] = []
    volumes = _volumes(files, config, warnings)
    matched = files.matched | {name: volume.origin for name, volume in volumes.items() if volume.origin}
    present = [name for name in wanted if name in volumes]
    reference = volumes[present[0]]
    images = np.zeros((len(wanted), *reference.data.shape), np.float32)
    for index, name in enumerate(wanted):
        if name not in volumes:
            warnings.append(f"{name} missing; zeros used")
            continue
        volume = volumes.pop(name)  # its memory is free once it is copied
        images[index] = _aligned(volume, reference, warnings)
        _judge(images[index], name, volume.path, config, warnings)
    views: dict[str, NDArray[np.float32]] = {name: images[wanted.index(name)] for name in present}
    reference = replace(reference, data=views[present[0]])
    _judge_together(views, reference.path, warnings)
    label, convention = None, settle_convention(files, config, None)
    if with_label:
        label = _read_label(files, reference, config)
        convention = settle_convention(files, config, label)
    return Case(files.id, images, label, reference.affine, reference, convention, matched, warnings)


def fillable(files: CaseFiles, config: BratsConfig) -> bool:
    """Whether nothing is wrong with a case but missing modalities, which ``predict.allow_missing`` makes zeros."""
    present = [name for name in config.data.modalities if name in files.images]
    return files.incomplete and config.predict.allow_missing and bool(present)


def _volumes(files: CaseFiles, config: BratsConfig, warnings: list[str]) -> dict[str, Volume]:
    limit = config.predict.max_bytes
    if files.layout == "dicom":
        from medical.dicom import read_study

        fill = config.predict.allow_missing
        volumes = read_study(files.sources, config.data.modalities, limit, allow_missing=fill)
    elif files.channels is not None:
        path = next(iter(files.images.values()))
        whole = read_volume(path, dims=4, max_bytes=limit, mend=_ONE_FILE_EACH)
        volumes = _channels(whole, files.channels)
        if files.layout == "4-D file":
            warnings.append(f"{path.name}: channel order taken as {', '.join(files.channels)} (MSD Task01)")
    else:
        volumes = {name: read_volume(path, max_bytes=limit) for name, path in files.images.items()}
    for volume in {id(v): v for v in volumes.values()}.values():
        warnings += [f"{volume.path.name}: {text}" for text in volume.warnings]
    return volumes


def _channels(volume: Volume, channels: Any) -> dict[str, Volume]:
    count = volume.data.shape[3]
    if count != len(channels):
        raise ItemError(
            volume.path, f"{count} channels", f"{len(channels)} ({', '.join(channels)})", "split it", "dim[4]"
        )
    return {
        name: Volume(volume.path, volume.data[..., i], volume.affine, volume.header)
        for name, i in channels.items()
    }


def _aligned(volume: Volume, reference: Volume, warnings: list[str]) -> NDArray[np.float32]:
    """The voxels on the reference's grid; flips and permutations are mended, anything else refused."""
    data, affine = volume.data, volume.affine
    if axcodes(affine) != axcodes(reference.affine):
        warnings.append(
            f"{volume.path.name}: axes {axcodes(affine)} turned to {axcodes(reference.affine)} "
            f"like {reference.path.name}"
        )
        data, affine = reorient(data, affine, reference.affine)
    if data.shape != reference.data.shape:
        raise ItemError(
            volume.path,
            f"{'×'.join(map(str, data.shape))} voxels",
            f"{'×'.join(map(str, reference.data.shape))} like {reference.path.name}",
            "register and resample the modalities to one grid",
            "dim",
        )
    apart = offset_mm(affine, reference.affine, data.shape)
    if (apart > AFFINE_TOLERANCE_MM).any():
        raise ItemError(
            volume.path,
            f"lies up to {apart[0]:.3g}, {apart[1]:.3g}, {apart[2]:.3g} mm (x, y, z) off {reference.path.name}",
            f"one grid within {AFFINE_TOLERANCE_MM} mm",
            "register and resample the modalities to one grid",
            "affine",
        )
    return data


def _judge(
    channel: NDArray[np.float32], name: str, path: Path, config: BratsConfig, warnings: list[str]
) -> None:
    """Refuse or mend voxels that poison normalisation. Works in place."""
    bad = ~np.isfinite(channel)
    if bad.any():
        count = int(bad.sum())
        if config.data.nan == "fail":
            raise ItemError(
                path,
                f"{count:,} NaN or infinite voxels",
                "finite intensities",
                "mend them, or set nan=zero (data.nan=zero to train or evaluate)",
                name,
            )
        channel[bad] = 0
        warnings.append(f"{path.name}: {count:,} NaN or infinite voxels set to 0")
    _settle_background(channel, path, warnings)
    inside = channel[channel != 0]
    if inside.size == 0 or inside.min() == inside.max():
        what = "all voxels are 0" if inside.size == 0 else f"all non-zero voxels are {inside.flat[0]:g}"
        raise ItemError(
            path, what, "an image", "replace the file, or leave it out with allow_missing=true", name
        )


def _settle_background(channel: NDArray[np.float32], path: Path, warnings: list[str]) -> None:
    """Set to 0 a background that an intercept or a standardisation has moved off it. Works in place.

    Normalisation, cropping and skipped windows all take 0 for what lies outside the head.
    """
    corners = channel[tuple(slice(None, None, max(n - 1, 1)) for n in channel.shape)]
    value = float(corners.flat[0])
    if value == 0 or not (corners == value).all():
        return
    outside = channel == value
    if MIN_BACKGROUND <= outside.mean() < 1:
        channel[outside] = 0
        warnings.append(f"{path.name}: background is {value:g}, not 0; set to 0")


def _judge_together(images: Mapping[str, NDArray[np.float32]], path: Path, warnings: list[str]) -> None:
    """Warn of what only shows when the modalities are seen side by side."""
    seen: dict[str, str] = {}
    outside = np.ones(next(iter(images.values())).shape, bool)
    for name, image in images.items():
        digest = hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()
        if digest in seen:
            warnings.append(
                f"{name} and {seen[digest]} are identical; one of them is probably the wrong file"
            )
        seen[digest] = name
        outside &= image == 0
    background = float(outside.mean())
    if background < MIN_BACKGROUND and outside.size > 32**3:
        warnings.append(
            f"{path.name}: only {background:.0%} of voxels are 0; skull-stripped images wanted, results will suffer"
        )


def _read_label(files: CaseFiles, reference: Volume, config: BratsConfig) -> NDArray[np.uint8]:
    if files.label is None:
        raise ItemError(files.sources[0], "no label file", "…_seg beside the images", "add it", "seg")
    volume = read_volume(files.label, labels=True, max_bytes=config.predict.max_bytes)
    data = _aligned(volume, reference, [])
    if not np.isfinite(data).all():
        raise ItemError(files.label, "NaN or infinite labels", "whole numbers", "export the label map again")
    rounded = np.rint(data)
    off = np.abs(data - rounded) > _LABEL_ROUNDING
    if off.any():
        found = f"labels {_tally(data[off])}"
        raise ItemError(files.label, found, "whole numbers", "resample labels with nearest neighbour")
    odd = (rounded < 0) | (rounded > 255)
    if odd.any():
        raise ItemError(files.label, f"labels {_tally(rounded[odd])}", "0 to 4", "check the file")
    return rounded.astype(np.uint8)


def _tally(values: NDArray[Any]) -> str:
    """Distinct values and how often each occurs; the first three."""
    distinct, counts = np.unique(values, return_counts=True)
    listed = [f"{value:g} ({count:,} voxels)" for value, count in zip(distinct[:3], counts)]
    return ", ".join(listed) + (f" and {len(distinct) - 3:,} more values" if len(distinct) > 3 else "")


def settle_convention(files: CaseFiles, config: BratsConfig, label: NDArray[np.uint8] | None) -> str | None:
    """The label convention, from the configuration or names and values. Raises `ItemError` when in doubt.

    Without a label map the name's implication (possibly None) is returned.
    """
    named = files.convention if config.data.labels == "auto" else config.data.labels
    if label is None:
        return named
    values, counts = np.unique(label, return_counts=True)
    present = {int(v): int(n) for v, n in zip(values, counts) if v != 0}
    where = files.label or files.sources[0]
    if config.data.labels == "auto" and named == "brats2023" and 4 in present:
        raise ItemError(
            where,
            f"label 4 ({present[4]:,} voxels) under 2023+ naming: cavity (2024) or enhancing (2021)?",
            "a stated convention",
            "set data.labels=brats2024 or brats2021",
        )
    if named is None:
        if not present or (4 in present and 3 not in present):  # an empty map means the same in all of them
            named = "brats2021"
        else:
            raise ItemError(
                where,
                f"labels {sorted(present)} fit several conventions",
                "a stated convention",
                f"set data.labels to one of {', '.join(CONVENTIONS)}",
            )
    odd = {value: count for value, count in present.items() if value not in CONVENTIONS[named].values}
    if odd:
        fits = [name for name, table in CONVENTIONS.items() if set(present) <= table.values]
        listed = ", ".join(f"{value} ({count:,} voxels)" for value, count in odd.items())
        raise ItemError(
            where,
            f"labels {listed} are not in {named}",
            f"values {sorted(CONVENTIONS[named].values)}",
            f"set data.labels={' or '.join(fits)}" if fits else "correct the label map",
        )
    return named


# ---------------------------------------------------------------- the whole data set


def split_by_patient(
    cases: Iterable[CaseFiles], folds: int, fold: int
) -> tuple[list[CaseFiles], list[CaseFiles]]:
    """(training, held-out) cases of one fold; a patient is on one side only.

    Folds given by a datalist are used; otherwise a patient's fold is its rank in the order of a hash of its name, so
    that it depends neither on the seed nor on the folder. Raises `DataInvalid` if a datalist splits a patient.
    """
    cases = list(cases)
    faults = _fold_faults(cases)
    if faults:
        raise DataInvalid(faults)
    patients = sorted({case.patient for case in cases}, key=patient_rank)
    by_patient = {patient: index % folds for index, patient in enumerate(patients)}
    for case in cases:
        if case.fold is not None:
            by_patient[case.patient] = case.fold
    held_out = [case for case in cases if by_patient[case.patient] == fold]
    return [case for case in cases if by_patient[case.patient] != fold], held_out


def _fold_faults(cases: Iterable[CaseFiles]) -> list[Fault]:
    """Patients that a datalist puts into two folds: the model would be scored on what it has seen."""
    first: dict[str, CaseFiles] = {}
    faults = []
    for case in cases:
        twin = first.setdefault(case.patient, case)
        if twin.fold != case.fold:
            found = f"patient {case.patient} is in fold {case.fold} here and {twin.fold} at {twin.sources[0]}"
            faults.append(Fault(case.sources[0], found, "one fold a patient", "correct the datalist", "fold"))
    return faults


def patient_rank(patient: str) -> str:
    """Sort key that is as good as random but never changes."""
    return hashlib.sha256(patient.encode()).hexdigest()


def check_dataset(config: BratsConfig, tick: Callable[[int, int], None] | None = None) -> list[Fault]:
    """Every fault of the labelled data set at ``config.data.path``, headers first, then content."""
    from medical.brats_seg.patches import CASES, check_patch_set, is_patch_set

    path, layout = Path(config.data.path or "."), config.data.layout
    if is_patch_set(path, layout):
        beside = path / CASES  # cases that are only scored: neither patients nor folds are needed
        faults = check_patch_set(path, config.data.modalities)
        return faults + (_check_cases(beside, "auto", config, tick) if beside.is_dir() else [])
    return _check_cases(path, layout, config, tick, _odd_set)


def _check_cases(
    path: Path,
    layout: str,
    config: BratsConfig,
    tick: Callable[[int, int], None] | None,
    together: Callable[[Sequence[CaseFiles], BratsConfig], list[Fault]] = lambda cases, config: [],
) -> list[Fault]:
    """Faults of every case under `path`, and what `together` says of the whole ones as a set."""
    try:
        cases = discover([path], layout)
    except DataInvalid as err:
        return err.faults
    faults = [case.fault for case in cases if case.fault is not None]
    whole = [case for case in cases if case.fault is None]
    faults += together(whole, config)
    readable = []
    for case in whole:
        if case.label is not None:
            odd = header_faults(case, config)
            faults += odd
            readable += [] if odd else [case]
    for number, case in enumerate(readable, 1):
        try:
            read = read_case(case, config, with_label=True)
            faults += [Fault(case.id, text, severity="warning") for text in read.warnings]
        except ItemError as err:
            faults.append(err.fault)
        if tick:
            tick(number, len(readable))
    return faults


def _odd_set(cases: Sequence[CaseFiles], config: BratsConfig) -> list[Fault]:
    labelled = [case for case in cases if case.label is not None]
    faults = _fold_faults(labelled)
    if not labelled:
        faults.append(
            Fault("data set", "no labelled case", "a …_seg file per case", "add label maps, or use predict")
        )
    elif len({case.patient for case in labelled}) < 2:
        text = "1 labelled patient; enough to score a model, too few to train one"
        faults.append(Fault("data set", text, severity="warning"))
    elif not faults and not split_by_patient(labelled, config.data.folds, config.data.fold)[1]:
        folds = (
            sorted({case.fold for case in labelled if case.fold is not None})
            or f"0 to {config.data.folds - 1}"
        )
        text = f"no labelled case in fold {config.data.fold}; to train, set data.fold to one of {folds}, or add cases"
        faults.append(Fault("data set", text, severity="warning", field="data.fold"))
    without = len(cases) - len(labelled)
    if labelled and without:
        faults.append(Fault("data set", f"{without} cases without label are left out", severity="warning"))
    kinds = {case.convention for case in labelled if case.convention}
    if len(kinds) > 1:
        text = f"label conventions mixed: {', '.join(sorted(kinds))}; each case is read by its own"
        faults.append(Fault("data set", text, severity="warning"))
    return faults


def header_faults(case: CaseFiles, config: BratsConfig) -> list[Fault]:
    """What the headers of a case's files already give away, every file of it."""
    faults: list[Fault] = []
    shapes: dict[Path, list[int]] = {}
    for path in (*case.sources, *([case.label] if case.label else [])):
        if path.is_dir():
            continue
        try:
            shapes[path] = [int(n) for n in read_header(path, config.predict.max_bytes)["dim"][1:4]]
        except ItemError as err:
            faults.append(err.fault)
    reference = next(iter(shapes), None)
    for path, shape in shapes.items():
        # Permuted axes are mended later, so only the set of lengths counts here.
        if reference is not None and sorted(shape) != sorted(shapes[reference]):
            wanted = f"{'×'.join(map(str, shapes[reference]))} like {reference.name}"
            found = f"{'×'.join(map(str, shape))} voxels"
            faults.append(
                Fault(path, found, wanted, "register and resample the modalities to one grid", "dim")
            )
    return faults
