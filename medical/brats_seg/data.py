"""Training and held-out items: labelled cases on the network's grid, real patches, heads made by the simulator.

Three kinds of data set: none given (simulator only), cases (any layout of `layouts.py`), and a patch set
(`patches.py`: real patches, and their patients' label maps painted into made heads). An item is image (4, D, H, W)
fp32 and label (3, D, H, W) fp32 in the order tc, wt, et.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from medical.brats_seg.augment import IMAGE, LABEL, augmentation, augmented, crop_start
from medical.brats_seg.cases import Case, CaseFiles, read_case, split_by_patient
from medical.brats_seg.config import BratsConfig, BratsDataConfig
from medical.brats_seg.grid import Grid, axis_maps, network_grid, normalise, resample, to_target_axes
from medical.brats_seg.held_out import cases_beside, data_fingerprint, labelled_cases
from medical.brats_seg.labels import convert, encode
from medical.brats_seg.patches import PatchSet, is_patch_set, read_patch_set, split_patches
from shared.errors import DataInvalid, Fault
from shared.pipeline import DataFacts
from shared.training.loader import Draw, ExactLoader, make_loader

if TYPE_CHECKING:
    from medical.brats_seg.sample import SampleCase

LABELS = "brats2021"
"""Convention of every label map inside training."""
HELD_OUT_HEADS = 4
"""Made heads that a patch set is validated on beside its patches: they show false tumours in normal tissue."""


# ---------------------------------------------------------------- the network's grid


def to_network_grid(case: Case, data: BratsDataConfig) -> tuple[NDArray[np.float32], Grid]:
    """(standardised channels (C, D, H, W), their grid). The whole head is standardised before anything is cut."""
    own = Grid(_shape(case.images), case.affine)
    grid = network_grid(own, data.orientation, data.spacing_mm)
    maps = axis_maps(own, grid)
    image = np.empty((len(case.images), *grid.shape), np.float32)
    for out, channel in zip(image, case.images):
        out[:] = to_target_axes(resample(normalise(channel.copy()), maps), maps)
    return image, grid


def _labels_on_grid(label: NDArray[np.uint8], case: Case, grid: Grid) -> NDArray[np.uint8]:
    """The label map at the grid's positions, nearest neighbour."""
    maps = axis_maps(Grid(_shape(case.images), case.affine), grid)
    for axis, line in enumerate(maps):
        label = label.take(np.where(line.weight > 0.5, line.high, line.low), axis)
    return np.ascontiguousarray(to_target_axes(label, maps), np.uint8)


def _shape(images: NDArray[Any]) -> tuple[int, int, int]:
    return int(images.shape[1]), int(images.shape[2]), int(images.shape[3])


@dataclass(frozen=True)
class Example:
    """One prepared case: fp16 channels (4, D, H, W), labels (D, H, W), flat indices of its tumour voxels."""

    name: str
    image: NDArray[np.float16]
    label: NDArray[np.uint8]
    tumour: NDArray[np.intp]

    @classmethod
    def of(cls, case: Case, config: BratsConfig) -> Example:
        """`case` (with label) on the network's grid, padded to at least one crop."""
        image, grid = to_network_grid(case, config.data)
        assert case.label is not None and case.convention is not None
        label = _labels_on_grid(convert(case.label, case.convention, LABELS), case, grid)
        short = [max(c - n, 0) for c, n in zip(config.train.crop, grid.shape)]
        pad = [(s // 2, s - s // 2) for s in short]
        label = np.pad(label, pad)
        return cls(case.id, np.pad(image, [(0, 0), *pad]).astype(np.float16), label, np.flatnonzero(label))


# ---------------------------------------------------------------- where examples come from


def made_case(config: BratsConfig, index: int, maps: Sequence[NDArray[np.uint8]] = ()) -> Case:
    """Head number `index` of the simulator on the network's spacing, with its own lesions or one of `maps`."""
    made = made_sample(config, index, maps)
    order = [("flair", "t1ce", "t1", "t2").index(name) for name in config.data.modalities]
    reference: Any = None
    return Case(f"made-{index:04d}", made.images[order], made.label, made.affine, reference, LABELS, {}, [])


def made_sample(config: BratsConfig, index: int, maps: Sequence[NDArray[np.uint8]] = ()) -> SampleCase:
    """What the simulator makes for `made_case`, as a scanner would give it."""
    from medical.brats_seg.sample import make_case

    spacing = config.data.spacing_mm or (1.0, 1.0, 1.0)
    painted = maps[index % len(maps)] if maps else None
    return make_case(config.seed * 100_003 + index, spacing_mm=spacing, label_map=painted)


# ---------------------------------------------------------------- datasets


class Crops:
    """Random crops of examples; the same draw gives the same crop."""

    def __init__(self, examples: Sequence[Example | CaseFiles], config: BratsConfig, length: int) -> None:
        self._examples = examples
        self._config = config
        self._length = length
        self._steps = augmentation(config.train)

    def __len__(self) -> int:
        return self._length

    def name(self, index: int) -> str:
        found = self._examples[index % len(self._examples)]
        return found.name if isinstance(found, Example) else found.id

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        train = self._config.train
        found = self._examples[draw.index % len(self._examples)]
        example = found if isinstance(found, Example) else _read(found, self._config)
        rng = np.random.default_rng(draw.seed)
        start = crop_start(example.label.shape, train.crop, example.tumour, train.tumour_crops, rng)
        here = tuple(slice(s, s + n) for s, n in zip(start, train.crop))
        image = example.image[(slice(None), *here)].astype(np.float32)
        return augmented(self._steps, _item(image, example.label[here]), draw.seed)


class PatchesAndHeads:
    """Real patches and crops of made heads in a fixed proportion."""

    def __init__(self, patches: PatchSet, heads: Sequence[Example], config: BratsConfig) -> None:
        share = config.data.real_fraction
        total = config.train.crops_per_epoch or round(len(patches) / share)
        self._real = max(1, round(total * share))
        self._patches = replace(patches, maps={})  # loader processes get a copy: spare them 2 MB a patient
        self._heads = Crops(heads, config, max(total - self._real, 0))
        self._steps = augmentation(config.train)

    def __len__(self) -> int:
        return self._real + len(self._heads)

    def name(self, index: int) -> str:
        if index >= self._real:
            return self._heads.name(index - self._real)
        return f"patch {index % len(self._patches)}"

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        if draw.index >= self._real:
            return self._heads[Draw(draw.index - self._real, draw.seed)]
        # More draws than patches: which ones come twice changes with the seed, not always the first.
        index = draw.index if draw.index < len(self._patches) else draw.seed % len(self._patches)
        item = _item(self._patches.image(index), self._patches.y[index])
        return augmented(self._steps, item, draw.seed)


class Whole:
    """Validation items as they are: patches first, then whole heads or cases."""

    def __init__(
        self, patches: PatchSet | None, examples: Sequence[Example | CaseFiles], config: BratsConfig
    ) -> None:
        self._patches = patches
        self._examples = examples
        self._config = config

    def __len__(self) -> int:
        return len(self._patches or ()) + len(self._examples)

    def name(self, index: int) -> str:
        first = len(self._patches or ())
        if index < first:
            return f"patch {index}"
        found = self._examples[index - first]
        return found.name if isinstance(found, Example) else found.id

    def __getitem__(self, draw: Draw) -> dict[str, Tensor]:
        first = len(self._patches or ())
        if self._patches is not None and draw.index < first:
            item = _item(self._patches.image(draw.index), self._patches.y[draw.index])
        else:
            found = self._examples[draw.index - first]
            example = found if isinstance(found, Example) else _read(found, self._config)
            item = _item(example.image.astype(np.float32), example.label)
        return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in item.items()}


def _item(image: NDArray[np.float32], label: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    return {IMAGE: image, LABEL: encode(label, LABELS).astype(np.float32)}


def _read(files: CaseFiles, config: BratsConfig) -> Example:
    return Example.of(read_case(files, config, with_label=True), config)


# ---------------------------------------------------------------- the module


class BratsData(pl.LightningDataModule):
    """Loaders of one fold."""

    def __init__(self, config: BratsConfig) -> None:
        super().__init__()
        self.config = config
        self._train: Any = None
        self._val: Any = None
        self._facts: DataFacts | None = None

    def setup(self, stage: str = "fit") -> None:
        """Read and split. Raises `DataInvalid`, `ItemError`."""
        if self._train is not None:
            return
        path = self.config.data.path
        if path is None:
            self._setup_made()
        elif is_patch_set(Path(path), self.config.data.layout):
            self._setup_patches(Path(path))
        else:
            self._setup_cases(Path(path))

    def facts(self) -> DataFacts:
        if self._facts is None:
            raise RuntimeError("facts are known after setup('fit')")
        return self._facts

    def train_dataloader(self) -> ExactLoader:
        return make_loader(
            self._train,
            self.config.train.batch_size,
            self.config.seed,
            workers=self.config.data.workers,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> ExactLoader:
        return make_loader(self._val, 1, self.config.seed, shuffle=False)

    # ------------------------------------------------------------ three kinds of data set

    def _setup_made(self) -> None:
        data = self.config.data
        examples = [
            Example.of(made_case(self.config, index), self.config) for index in range(data.synthetic_cases)
        ]
        train = [e for i, e in enumerate(examples) if i % data.folds != data.fold]
        val = [e for i, e in enumerate(examples) if i % data.folds == data.fold]
        if not val:
            raise DataInvalid(
                [
                    Fault(
                        "data.fold",
                        f"fold {data.fold} of {len(examples)} cases is empty",
                        "a smaller fold number",
                    )
                ]
            )
        self._train = Crops(train, self.config, self.config.train.crops_per_epoch or len(train))
        self._val = Whole(None, val, self.config)
        digest = hashlib.sha256()
        for example in examples:
            digest.update(example.image.tobytes())
            digest.update(example.label.tobytes())
        note = f"{len(train)} made heads to train on, {len(val)} held out; no real image is used"
        self._facts = DataFacts("embedded sample", digest.hexdigest(), len(examples), (note,))

    def _setup_patches(self, path: Path) -> None:
        data = self.config.data
        whole = read_patch_set(path, data.modalities)
        train, val = split_patches(whole, data.folds, data.fold, data.exclude_patients)
        if data.orientation != "LPS":
            raise DataInvalid(
                [
                    Fault(
                        "data.orientation",
                        data.orientation,
                        "LPS, the patches' own",
                        "set it, or take --preset patches",
                    )
                ]
            )
        if not len(train) or not len(val):
            found = f"fold {data.fold} of {data.folds} leaves {len(train)} patches to train on and {len(val)} held out"
            raise DataInvalid([Fault(path, found, "at least one of each", "set data.folds and data.fold")])
        if train.x.shape[2:] != self.config.train.crop:
            raise DataInvalid(
                [
                    Fault(
                        path,
                        f"patches of {train.x.shape[2:]} voxels",
                        f"train.crop {self.config.train.crop}",
                        f"set train.crop={list(train.x.shape[2:])}, or take --preset patches",
                    )
                ]
            )
        heads = self._painted(train, data.synthetic_cases, 0)
        self._train = PatchesAndHeads(train, heads, self.config)
        watched = min(HELD_OUT_HEADS, max(data.synthetic_cases // 4, 1))
        self._val = Whole(val, self._painted(val, watched, data.synthetic_cases), self.config)
        scored = cases_beside(path, self.config)
        notes = (
            f"real patches: {len(train)} of {len(set(train.patient))} patients to train on, "
            f"{len(val)} of {len(set(val.patient))} held out",
            f"made heads: {len(heads)} with {len(train.maps)} real label maps painted in",
            f"complete cases, only scored: {', '.join(case.id for case in scored) or 'none'}",
        )
        self._facts = DataFacts(str(path), data_fingerprint(self.config), len(train) + len(heads), notes)

    def _painted(self, patches: PatchSet, count: int, first: int) -> list[Example]:
        maps = [patches.maps[name] for name in sorted(patches.maps)]
        return [Example.of(made_case(self.config, first + i, maps), self.config) for i in range(count)]

    def _setup_cases(self, path: Path) -> None:
        cases = labelled_cases(path, self.config)
        train, val = split_by_patient(cases, self.config.data.folds, self.config.data.fold)
        if not train or not val:
            patients = len({case.patient for case in cases})
            raise DataInvalid(
                [
                    Fault(
                        path,
                        f"fold {self.config.data.fold} of {self.config.data.folds} leaves {len(train)} cases to "
                        f"train on and {len(val)} held out ({patients} patients)",
                        "at least one of each",
                        "set data.folds and data.fold",
                    )
                ]
            )
        prepared: Sequence[Example | CaseFiles] = train
        if self.config.data.cache:
            prepared = [_read(files, self.config) for files in train]
        length = self.config.train.crops_per_epoch or len(train)
        self._train = Crops(prepared, self.config, length)
        self._val = Whole(None, val, self.config)
        layouts = ", ".join(sorted({case.layout for case in cases}))
        conventions = ", ".join(sorted({case.convention or "by values" for case in cases}))
        notes = (
            f"{layouts}: {len(train)} cases to train on, {len(val)} held out, split by patient",
            f"label convention: {conventions if self.config.data.labels == 'auto' else self.config.data.labels}",
        )
        self._facts = DataFacts(str(path), data_fingerprint(self.config), len(cases), notes)
