"""Files of light curves in, one table of class probabilities a file out: a row for every object, in input order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from astro.transients.classifier import Classifier
from astro.transients.config import TransientsConfig
from astro.transients.config_read import ReadConfig
from astro.transients.decide import doubt, with_priors
from astro.transients.explain import WHY, why
from astro.transients.grids import fitted
from astro.transients.lightcurve import OK, UNREADABLE, WAVELENGTHS, Floats, LightCurve
from astro.transients.read import Reading, files_in, read_alerts, read_all, read_text, stem
from astro.transients.tables import about_rows
from astro.transients.threads import in_threads
from shared.bundle import Bundle
from shared.config import merge, nested
from shared.errors import DataInvalid, ItemError, UsageError
from shared.io.atomic import atomic_write_text
from shared.io.names import unique_names
from shared.pipeline import Item, Predictor, Tick, error_faults

BETWEEN = 0.25
"""Finds rare classes without drowning them in false ones: on the surveys of docs/transients.md, by far most of the
accuracy of the training set's rates at most of the recall of equal ones."""
MAX_REQUEST_CHARACTERS = 5_000_000
MOST_ROWS = 2_000_000
"""Of a table that is one item, some 20,000 objects; a longer one is several, so that what is done stays done."""


class Answers(NamedTuple):
    """Of N objects, at equal class rates."""

    network: Floats
    """(N, K) logits of the network alone"""
    trees: Floats
    """(N, K) ln p of the trees alone"""
    logits: Floats
    """(N, K) of both"""
    pooled: Floats
    """(N, C) the network's features"""
    fits: NDArray[np.object_]
    """(N,) what is to say of each Gaussian process, `gp.Fit.status`"""


def _parts(table: Path) -> tuple[int, int]:
    """The first of so many."""
    return 0, max(1, -(-about_rows(table) // MOST_ROWS))


def _parted(item: Item) -> list[Item]:
    """An item for each part of a long table, named after it."""
    if item.payload is None or item.payload[1] == 1:
        return [item]
    count = int(item.payload[1])
    names = (f"{item.id}.{k:0{len(str(count))}d}-of-{count}" for k in range(1, count + 1))
    return [replace(item, id=name, payload=(k, count)) for k, name in enumerate(names)]


def _shares(values: Floats) -> Floats:
    return values / values.sum()


@dataclass(frozen=True)
class Result:
    """Of one file."""

    name: str
    table: pd.DataFrame
    notes: tuple[str, ...]
    why: pd.DataFrame | None = None


class TransientsPredictor(Predictor):
    """An item is a table, or a part of a long one's objects; alerts of one folder are one item, given by its name or by
    theirs, for they share objects.

    Payload of an item: None for alerts, else (which part of the table, of how many).
    """

    layout: ClassVar[Any] = "flat"
    record_inputs: ClassVar[Mapping[str, str]] = {"csv": "string"}
    record_outputs: ClassVar[Mapping[str, str]] = {"csv": "string"}

    def __init__(self, bundle: Bundle, options: Mapping[str, Any]) -> None:
        over: dict[str, Any] = {}
        for key, value in options.items():
            if key.startswith("data.") and not key.startswith("data.read."):
                raise UsageError(
                    f"{key}: the model's own; data.read.… or an option of predict wanted; leave it out"
                )
            path = key if key.startswith("data.") else f"predict.{key}"
            over = merge(over, nested(path.split("."), value))
        # Names and units are those of the user's files now, not of the training set's; treatment is as in training.
        saved = bundle.config(TransientsConfig).data
        kept = ReadConfig(
            dust=saved.read.dust, duplicates=saved.read.duplicates, table_survey=saved.survey or "lsst"
        )
        over = merge({"data": {"read": kept.model_dump(mode="json")}}, over)
        self.config: TransientsConfig = bundle.config(TransientsConfig, over)
        self.read = self.config.data.read
        self.classes = self.config.data.classes
        self.model: Classifier = bundle.load_into(Classifier(self.config))
        self.distances = self.model.distances
        counts = bundle.schema["transients"]["class_counts"]
        self.rates: Floats = _shares(np.array([counts[name] for name in self.classes], np.float64))
        self._kept: tuple[Any, Reading] | None = None
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device)

    # ------------------------------------------------------------ probabilities

    @property
    def priors(self) -> Floats:
        """Class rates of the answers: ``predict.priors``, or what ``predict.rates`` says."""
        if given := self.config.predict.priors:
            return _shares(np.array([given.get(name, 0.0) for name in self.classes]))
        return self.class_rates(self.config.predict.rates)

    def class_rates(self, kind: str) -> Floats:
        """``flat``, ``training`` or, ``between``, `BETWEEN` of the way from one to the other, geometrically."""
        return _shares(self.rates ** {"flat": 0.0, "between": BETWEEN, "training": 1.0}[kind])

    def at_rates(self, flat: Floats, rates: Floats) -> Floats:
        """(N, K) at class rates `rates`; `flat` assumes equal ones, as the pooled logits do."""
        return with_priors(flat, np.full(len(self.classes), 1 / len(self.classes)), rates)

    def answers(self, curves: Sequence[LightCurve], tick: Tick | None = None) -> Answers:
        """Of objects with status ok."""
        places, parts, done = [], [], 0
        for rows, part in in_threads(self._answers, curves, self.config.predict.batch):
            places.append(rows)
            parts.append(part)
            done += len(rows)
            if tick is not None:
                tick(done, len(curves))
        back = np.argsort(np.concatenate(places))
        z, trees, pooled, fits = (np.concatenate(each)[back] for each in zip(*parts))
        return Answers(z, trees, self.model.pooled_logits(z, trees), pooled, fits)

    @torch.no_grad()
    def _answers(self, curves: Sequence[LightCurve]) -> tuple[NDArray[Any], ...]:
        """Logits at equal class rates, the trees', the network's pooled features, and words on the fits."""
        data, model = self.config.data, self.model
        inputs, fits = fitted(curves, data.survey, data.grid)
        features = model.network.pooled(inputs.to(self.device))
        logits = model.logits(features).double().cpu().numpy()
        return (
            logits,
            model.tree_logs(curves, inputs),
            features.double().cpu().numpy(),
            np.array(fits, object),
        )

    def table(self, curves: Sequence[LightCurve], tick: Tick | None = None) -> pd.DataFrame:
        """One row a curve, in order: id, status, the most probable class, probabilities, how unlike any class it is,
        what it was made of, and what was odd."""
        rows, status = self.usable(curves)
        p = np.tile(self.priors, (len(curves), 1))
        unlike = {name: np.full(len(curves), np.nan) for name in ("doubt", "energy", "distance")}
        fits = np.full(len(curves), "", object)
        if rows:
            found = self.answers([curves[i] for i in rows], tick)
            p[rows] = self.at_rates(softmax(found.logits, axis=1), self.priors)
            scores = doubt(found.logits)
            unlike["doubt"][rows], unlike["energy"][rows] = scores["max_probability"], scores["energy"]
            unlike["distance"][rows], fits[rows] = self.distances(found.pooled), found.fits
        columns: dict[str, Any] = {"id": [curve.id for curve in curves], "status": status}
        given = np.full(len(curves), "", object)
        given[rows] = np.array(self.classes, object)[p[rows].argmax(1)]
        columns |= {"class": given} | {f"p_{name}": p[:, k] for k, name in enumerate(self.classes)}
        columns |= unlike | {"points": [len(curve) for curve in curves]}
        columns["bands"] = ["".join(b for b in WAVELENGTHS[c.survey] if b in set(c.band)) for c in curves]
        columns |= {"redshift": [curve.redshift for curve in curves], "fit": fits}
        columns["notes"] = ["; ".join([*curve.flags, *self._foreign(curve)]) for curve in curves]
        return pd.DataFrame(columns)

    def probabilities(self, curves: Sequence[LightCurve]) -> Floats:
        """(N, K) of `table`, NaN for what cannot be classified."""
        p = self.table(curves)[[f"p_{name}" for name in self.classes]].to_numpy(copy=True)
        p[np.setdiff1d(np.arange(len(curves)), self.usable(curves)[0])] = np.nan
        return p

    def why(self, curves: Sequence[LightCurve]) -> list[dict[str, Any]]:
        """What the answers hang on, `explain.why`, of the objects that can be classified."""
        rows, _ = self.usable(curves)
        return why([curves[i] for i in rows], self.probabilities, self.classes)

    def usable(self, curves: Sequence[LightCurve]) -> tuple[list[int], list[str]]:
        """Rows that can be classified, and every object's status."""
        rows, status = [], [curve.status for curve in curves]
        for i, curve in enumerate(curves):
            if curve.status != OK:
                continue
            if set(map(str, curve.band)) & set(WAVELENGTHS[self.config.data.survey]):
                rows.append(i)
            else:
                status[i] = f"bands of {curve.survey}, {self.config.data.survey} wanted"
        return rows, status

    def _foreign(self, curve: LightCurve) -> list[str]:
        """What is to say of bands that are not the model's: its process takes their points all the same."""
        own = self.config.data.survey
        others = [band for band in dict.fromkeys(map(str, curve.band)) if band not in WAVELENGTHS[own]]
        notes = []
        if curve.survey != own and len(curve):
            notes.append(f"bands of {curve.survey}, the model's are {own}'s")
        if others:
            notes.append(f"{', '.join(others)} unknown to the model, used for the others alone")
        return notes

    # ------------------------------------------------------------ files

    def discover(self, paths: Sequence[Path]) -> list[Item]:
        """Raises `DataInvalid` where there is nothing but folders without any."""
        found: list[tuple[tuple[Path, Path], Item]] = []
        given: dict[Path, list[Path]] = {}
        for path in map(Path, paths):
            try:
                packets, tables = files_in(path, self.read)
            except DataInvalid as err:
                found.append(((path.parent, path), Item("", (path,), fault=err.faults[0])))
                continue
            if packets and path.is_dir():
                whole = path.absolute()
                found.append(((whole.parent, whole), Item("", tuple(packets))))
            elif packets:
                given.setdefault(path.absolute().parent, []).append(path)
            root = path if path.is_dir() else path.parent
            found += [((root, file), Item("", (file,), _parts(file))) for file in tables]
        for folder, files in given.items():  # alerts given one by one share objects as those of a folder do
            place = folder if len(files) > 1 else files[0].absolute()
            found.append(((place.parent, place), Item("", tuple(files))))
        if all(item.fault is not None and item.sources[0].is_dir() for _, item in found):
            raise DataInvalid([item.fault for _, item in found if item.fault is not None])
        names = unique_names([place for place, _ in found], stem)
        return [each for name, (_, item) in zip(names, found) for each in _parted(replace(item, id=name))]

    def predict(self, item: Item, tick: Tick | None = None) -> Result:
        if item.fault is not None:
            raise ItemError.of(item.fault)
        alerts = item.payload is None
        reading = read_alerts(item.sources, self.read) if alerts else self._table(item)
        wrong = error_faults(reading.faults)
        # A damaged packet has a row that says so, and does not cost the others of its folder theirs.
        if wrong and not (alerts and any(curve.status != UNREADABLE for curve in reading.curves)):
            raise ItemError.of(wrong[0])
        if not reading.curves:
            raise ItemError(item.sources[0], "no object", "one or more light curves", "check the file")
        part, parts = item.payload or (0, 1)
        first, last = (len(reading.curves) * number // parts for number in (part, part + 1))
        curves = reading.curves[first:last]
        table = self.table(curves, tick)
        hangs_on = pd.DataFrame(self.why(curves), columns=list(WHY)) if self.config.predict.explain else None
        return Result(item.id, table, (*map(str, reading.faults), *reading.notes), hangs_on)

    def _table(self, item: Item) -> Reading:
        """What is read of a long table is kept for its other parts."""
        stat = item.sources[0].stat()
        key = (item.sources, stat.st_mtime_ns, stat.st_size)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, read_all(item.sources[0], self.read))
        reading = self._kept[1]
        if item.payload[0] + 1 == item.payload[1]:
            self._kept = None
        return reading

    def write(self, result: Result, folder: Path) -> dict[str, Any]:
        atomic_write_text(folder / f"{result.name}.classes.csv", result.table.to_csv(index=False))
        if result.why is not None:
            atomic_write_text(folder / f"{result.name}.why.csv", result.why.to_csv(index=False))
        status = result.table["status"].value_counts().to_dict()
        return {"objects": len(result.table), "status": status, "notes": list(result.notes)[:20]}

    # ------------------------------------------------------------ serving

    def predict_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        text = record.get("csv")
        if not isinstance(text, str) or not text.strip():
            raise ItemError(
                "request", "no csv", "the text of a table of light curves", "send a column csv", "csv"
            )
        if len(text) > MAX_REQUEST_CHARACTERS:
            raise ItemError(
                "request",
                f"{len(text):,} characters",
                f"at most {MAX_REQUEST_CHARACTERS:,}",
                "split it",
                "csv",
            )
        try:
            curves = read_text(text, self.read, "request")
        except DataInvalid as err:
            raise ItemError.of(err.faults[0]) from None
        return {"csv": self.table(curves).to_csv(index=False)}

    def example_record(self) -> dict[str, Any]:
        days = np.arange(0.0, 60.0, 3.0)
        flux = 300 * np.exp(-0.5 * ((days - 25) / 12) ** 2)
        band = [list(WAVELENGTHS[self.config.data.survey])[i % 3] for i in range(len(days))]
        frame = pd.DataFrame(
            {"object_id": 1, "mjd": 60_000 + days, "band": band, "flux": flux, "flux_err": 5.0}
        )
        frame["zero_point"] = 27.5
        return {"csv": frame.to_csv(index=False)}
