"""Training, validation and test objects, split by object within each class, gridded once."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from astro.transients.augment import altered
from astro.transients.config import TransientsConfig, TransientsDataConfig
from astro.transients.features import numbers
from astro.transients.grids import inputs_of
from astro.transients.lightcurve import OK, WAVELENGTHS, LightCurve
from astro.transients.read import Reading, read_all
from astro.transients.t2 import Inputs
from shared.errors import DataInvalid, Fault
from shared.pipeline import DataFacts
from shared.training.loader import Draw, ExactLoader, make_loader

Part = Literal["train", "val", "test"]
Batch = tuple[Inputs, Tensor]


def reading_of(config: TransientsConfig) -> Reading:
    """What lies at ``data.path``, or the simulator's objects."""
    if config.data.path is None:
        return _simulated(config.data.simulated, config.seed)
    return _read(Path(config.data.path), config.data.read)


@cache
def _simulated(count: int, seed: int) -> Reading:
    from astro.transients.sample import simulate

    return Reading(simulate(count, seed), notes=("simulated light curves; none is real",))


@cache
def _read(path: Path, read: Any) -> Reading:
    return read_all(path, read)


def where(config: TransientsConfig) -> str:
    """What messages call the data."""
    return "embedded sample" if config.data.path is None else str(config.data.path)


def check(config: TransientsConfig) -> list[Fault]:
    """Every fault of the data set: what the readers say, and what cannot be learned from it.

    `data.classes` given (a trained model's, too): one of them must occur; else two large ones.
    """
    reading, data = reading_of(config), config.data
    faults, place = list(reading.faults), where(config)
    labelled = [curve for curve in reading.curves if curve.label is not None]
    if not labelled:
        if reading.curves or not faults:
            faults.append(
                Fault(place, "no object has a label", "labelled objects", "set data.read.label_column")
            )
        return faults
    severity: Literal["warning", "error"] = "warning" if data.classes else "error"
    usable = {curve.label for curve in labelled if curve.status == OK}
    for name in data.classes or kept_classes(labelled, data):
        if name not in usable and any(curve.label == name for curve in labelled):
            found, mend = f"{name}: no object with a usable curve", "add, or leave the class out"
            faults.append(Fault(place, found, "some to train on", mend, severity=severity))
    faults += _class_faults(labelled, data, place)
    surveys = sorted({curve.survey for curve in labelled})
    if len(surveys) > 1 and not data.survey:
        faults.append(Fault(place, f"bands of {', '.join(surveys)}", "one survey", "set data.survey"))
    return faults


def _class_faults(labelled: Sequence[LightCurve], data: TransientsDataConfig, place: str) -> list[Fault]:
    names = sorted({str(curve.label) for curve in labelled})
    known, kept = ", ".join(names), kept_classes(labelled, data)
    if data.classes and not set(data.classes) & set(names):
        wanted = f"one or more of {', '.join(data.classes)}"
        return [Fault(place, f"objects of {known}", wanted, "relabel them, or choose other classes")]
    faults = [
        Fault(
            *(place, f"no object of class {name}", f"classes among {known}", "check the name"),
            severity="warning" if data.classes else "error",
        )
        for name in (*data.classes, *data.left_out)
        if name not in names
    ]
    if not data.classes and len(kept) < 2:
        found = f"{'one class' if kept else 'no class'} with {data.smallest_class} objects or more"
        faults.append(Fault(place, found, "two or more", "add objects, or lower data.smallest_class"))
    return faults


def infer(config: TransientsConfig) -> dict[str, Any]:
    """The completed keys of ``data``."""
    labelled = [curve for curve in reading_of(config).checked() if curve.label is not None]
    return {
        "classes": config.data.classes or kept_classes(labelled, config.data),
        "survey": config.data.survey or labelled[0].survey,
    }


def kept_classes(curves: Sequence[LightCurve], data: TransientsDataConfig) -> tuple[str, ...]:
    number = Counter(str(curve.label) for curve in curves)
    known = (name for name, count in number.items() if count >= data.smallest_class)
    return tuple(sorted(name for name in known if name not in data.left_out))


def split(
    curves: Sequence[LightCurve], data: TransientsDataConfig, seed: int
) -> dict[Part, NDArray[np.int64]]:
    """Rows of each part: within a class by the hash of (seed, id), so that others of its class, added or removed,
    move only objects at a part's border, and other classes none. `data.fold` turns the order on by so many test parts.
    Objects of one name in several files (`read.read_files`) are one, and go to one part.
    """
    parts: dict[Part, list[int]] = {"train": [], "val": [], "test": []}
    names = {curve.id for curve in curves}
    classes: dict[str, dict[str, list[int]]] = {}
    for i, curve in enumerate(curves):
        tail = curve.id.partition("/")[2]
        name = tail if tail in names else curve.id
        classes.setdefault(str(curve.label), {}).setdefault(name, []).append(i)
    for _, objects in sorted(classes.items()):
        order = sorted(objects, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        turn = round(len(order) * data.test * data.fold) % len(order)
        order = order[turn:] + order[:turn]
        test = round(len(order) * data.test * (data.fold + 1)) - round(len(order) * data.test * data.fold)
        val = max(1, round(len(order) * data.validation))
        cuts: dict[Part, list[str]] = {
            "test": order[:test], "val": order[test : test + val], "train": order[test + val :]
        }  # fmt: skip
        for part, some in cuts.items():
            parts[part] += [i for name in some for i in objects[name]]
    return {part: np.array(sorted(rows), np.int64) for part, rows in parts.items()}


class Objects:
    """Gridded objects with labels, as a dataset that gathers whole batches."""

    def __init__(self, inputs: Inputs, labels: Tensor, names: Sequence[str]) -> None:
        self.inputs, self.labels, self.names = inputs, labels, list(names)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self.names[index]

    def batch(self, draws: Sequence[Draw]) -> Batch:
        rows = torch.tensor([draw.index for draw in draws])
        return self.inputs.take(rows), self.labels[rows]


def marks(curves: Sequence[LightCurve]) -> NDArray[np.uint32]:
    """(N, 2) of each object, by its id and the day of its first and of its best point: of a curve that goes on, or that
    forced photometry takes further back, one stays at least."""
    made = np.zeros((len(curves), 2), "<u4")
    for i, curve in enumerate(curves):
        name = curve.id.rpartition("/")[2]
        best = curve.time[np.argmax(np.abs(curve.flux) / curve.error)] if len(curve) else 0.0
        made[i] = [zlib.crc32(f"{name}|{day:.3f}".encode()) for day in (min(curve.time, default=0.0), best)]
    return made


def among(curves: Sequence[LightCurve], trained_on: str) -> NDArray[np.bool_]:
    """(N,) whether each is one of the objects of `TransientsData.trained_on`."""
    found = marks(curves)
    old: NDArray[np.bool_] = np.isin(found, np.frombuffer(base64.b64decode(trained_on), "<u4"))
    return np.logical_or(old[:, 0], old[:, 1])


def without_redshift(curve: LightCurve) -> LightCurve:
    return replace(curve, redshift=np.nan, redshift_error=np.nan)


class TransientsData(pl.LightningDataModule):
    """Loaders of one split; `curves` and `rows` say what went where."""

    def __init__(self, config: TransientsConfig) -> None:
        super().__init__()
        self.config = config

    @cached_property
    def curves(self) -> list[LightCurve]:
        """Labelled objects of the classes to learn, in input order."""
        names = set(self.config.data.classes)
        return [curve for curve in reading_of(self.config).checked() if curve.label in names]

    @cached_property
    def rows(self) -> dict[Part, NDArray[np.int64]]:
        return split(self.curves, self.config.data, self.config.seed)

    def part(self, part: Part) -> list[LightCurve]:
        """Objects of a part; those that no curve can be made of are left out of training, not of the scores."""
        found = [self.curves[i] for i in self.rows[part]]
        return [curve for curve in found if curve.status == OK] if part != "test" else found

    @cached_property
    def unknown(self) -> list[LightCurve]:
        """Objects of the classes left out of training."""
        return [c for c in reading_of(self.config).checked() if c.label in self.config.data.left_out]

    def copies(self, number: int) -> list[LightCurve]:
        """The training objects, then `number` altered copies of all, the first ones the same whatever `number`."""
        curves = self.part("train")
        draw = np.random.default_rng(self.config.seed)
        return [*curves, *(altered(curve, draw) for _ in range(number) for curve in curves if len(curve))]

    @cached_property
    def train_set(self) -> Objects:
        """The training objects and their altered copies."""
        return self.objects(self.copies(self.config.train.copies))

    @cached_property
    def val_curves(self) -> list[LightCurve]:
        """Of the validation set."""
        return self._partly_hidden(self.part("val"))

    @cached_property
    def val_set(self) -> Objects:
        return self.objects(self.val_curves)

    def _partly_hidden(self, curves: Sequence[LightCurve]) -> list[LightCurve]:
        """`curves`, the redshift of a random ``train.hide_redshift`` of them hidden: the network's training hides it
        anew in each batch, so trees grow and answers are weighed on objects of both kinds as well."""
        draws = np.random.default_rng([self.config.seed, 1]).random(len(curves))
        share = self.config.train.hide_redshift
        return [without_redshift(curve) if draw < share else curve for curve, draw in zip(curves, draws)]

    def objects(self, curves: Sequence[LightCurve]) -> Objects:
        data = self.config.data
        inputs = inputs_of(curves, data.survey, data.grid, shown=True)
        return Objects(inputs, torch.from_numpy(self.labels(curves)), [curve.id for curve in curves])

    def for_trees(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """(N, F) numbers and (N,) labels of the training objects and as many copies as trees are grown on."""
        config = self.config
        curves = self._partly_hidden(self.copies(min(config.train.tree_copies, config.train.copies)))
        bands, redshift = list(WAVELENGTHS[config.data.survey]), config.model.redshift != "none"
        inputs = self.train_set.inputs.take(slice(len(curves)))
        return numbers(curves, inputs, bands, redshift), self.labels(curves)

    def labels(self, curves: Sequence[LightCurve]) -> NDArray[np.int64]:
        number = {name: k for k, name in enumerate(self.config.data.classes)}
        return np.array([number[str(curve.label)] for curve in curves], np.int64)

    def counts(self) -> list[int]:
        """Training objects of each class, copies included."""
        return torch.bincount(self.train_set.labels, minlength=len(self.config.data.classes)).tolist()

    def setup(self, stage: str = "fit") -> None:
        """Read, split and grid. Raises `DataInvalid`."""
        train, val = self.part("train"), self.part("val")
        kinds = sorted({str(curve.label) for curve in train})
        if len(kinds) < 2 or not val:
            found = f"usable objects: {len(train)} ({', '.join(kinds) or 'none'}) to train on, {len(val)} to validate"
            raise DataInvalid(
                [Fault(where(self.config), found, "two classes, and some of both", "add objects")]
            )
        _ = self.train_set, self.val_set

    def fingerprint(self) -> str:
        """sha256 over ids, labels and fluxes of `curves`."""
        digest = hashlib.sha256()
        for curve in self.curves:
            digest.update(f"{curve.id}|{curve.label}|".encode())
            digest.update(curve.flux.tobytes())
        return digest.hexdigest()

    def trained_on(self) -> str:
        """`marks` of the objects that trained the model or chose its weights, as text."""
        used = [self.curves[i] for part in ("train", "val") for i in self.rows[part]]
        return base64.b64encode(np.unique(marks(used)).tobytes()).decode()

    def facts(self) -> DataFacts:
        config, number = self.config, {part: len(rows) for part, rows in self.rows.items()}
        shares = Counter(str(curve.label) for curve in self.curves)
        notes = (
            *reading_of(config).notes,
            f"{config.data.survey}: {number['train']} objects to train on, {number['val']} to validate, "
            f"{number['test']} to test, split by object within each class",
            "classes: " + ", ".join(f"{name} {shares[name]}" for name in config.data.classes),
        )
        return DataFacts(where(config), self.fingerprint(), len(self.train_set), notes)

    def train_dataloader(self) -> ExactLoader:
        return make_loader(self.train_set, self.config.train.batch_size, self.config.seed)

    def val_dataloader(self) -> ExactLoader:
        return make_loader(self.val_set, 512, self.config.seed, shuffle=False)
