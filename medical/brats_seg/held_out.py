"""Which labelled cases a model may be scored on: those it has not seen in training, as far as can be known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medical.brats_seg.cases import CaseFiles, discover, split_by_patient
from medical.brats_seg.config import BratsConfig
from medical.brats_seg.patches import (
    CASES,
    PatchSet,
    is_patch_set,
    read_patch_set,
    source_files,
    split_patches,
)
from shared.errors import DataInvalid, Fault, UsageError
from shared.io.hashes import sha256_files

if TYPE_CHECKING:
    from shared.bundle import Bundle


def labelled_cases(path: Path, config: BratsConfig, layout: str = "") -> list[CaseFiles]:
    """Whole labelled cases under `path`, without the excluded patients. Raises `DataInvalid`."""
    found = discover([path], layout or config.data.layout)
    kept = [
        case
        for case in found
        if case.fault is None and case.label is not None and case.patient not in config.data.exclude_patients
    ]
    if not kept:
        faults = [case.fault for case in found if case.fault is not None]
        raise DataInvalid(
            faults or [Fault(path, "no labelled case", "a …_seg file per case", "add label maps")]
        )
    return kept


def held_out(config: BratsConfig, everything: bool = False) -> tuple[list[CaseFiles], PatchSet | None]:
    """(cases on disk, patches) that were not trained on; all there are with `everything`, for foreign data.

    Of a patch set, the complete cases beside the patches are never trained on. Raises `DataInvalid`.
    """
    path, data = Path(config.data.path or "."), config.data
    if is_patch_set(path, config.data.layout):
        whole = read_patch_set(path, data.modalities)
        patches = (
            whole if everything else split_patches(whole, data.folds, data.fold, data.exclude_patients)[1]
        )
        return cases_beside(path, config), patches
    cases = labelled_cases(path, config)
    return cases if everything else split_by_patient(cases, data.folds, data.fold)[1], None


def cases_beside(path: Path, config: BratsConfig) -> list[CaseFiles]:
    """The complete cases of the patch set `path`; none is ever trained on."""
    return labelled_cases(path / CASES, config, "auto") if (path / CASES).is_dir() else []


def data_fingerprint(config: BratsConfig) -> str:
    """sha256 over every file that training on ``config.data.path`` reads, whatever fold is held out."""
    path = Path(config.data.path or ".")
    if is_patch_set(path, config.data.layout):
        return sha256_files([*source_files(path), *_files(cases_beside(path, config))])
    return sha256_files(_files(labelled_cases(path, config)))


def _files(cases: Sequence[CaseFiles]) -> list[Path]:
    files = [path for case in cases for path in (*case.sources, *([case.label] if case.label else []))]
    return [path for path in files if path.is_file()]


# ---------------------------------------------------------------- a model's own data


def is_own(bundles: Sequence[Bundle], config: BratsConfig) -> tuple[bool, list[str]]:
    """Whether `config.data` is what a model was trained on, the same place or the same files elsewhere; warnings.

    Raises `UsageError` when the cases asked for were then part of some model's training.
    """
    content = _fingerprint(config)
    own, warnings = False, []
    for bundle in bundles:
        trained: BratsConfig = bundle.config(BratsConfig)
        here, there = config.data.path, trained.data.path
        known = bundle.schema.get("data_fingerprint")
        if here is None or there is None:
            same = here is there and config.seed == trained.seed
        else:
            same = here.resolve() == there.resolve() or (content is not None and known == content)
        if not same:
            continue
        own = True
        for key in ("folds", "fold", "exclude_patients"):
            asked, kept = getattr(config.data, key), getattr(trained.data, key)
            if asked != kept:
                raise UsageError(
                    f"configuration:data.{key}: found {asked}; {kept} wanted, what {bundle.path} was trained with: it "
                    "has seen the other cases; leave the key out, and score ensembles of folds on other data"
                )
        if here is not None and known not in (None, content):
            warnings.append(
                f"{here} has changed since training: patients may have moved between folds, so that cases scored here "
                "may have been trained on."
            )
    return own, warnings


def _fingerprint(config: BratsConfig) -> str | None:
    try:
        return None if config.data.path is None else data_fingerprint(config)
    except (DataInvalid, OSError):
        return None  # said in full by whatever reads the data next
