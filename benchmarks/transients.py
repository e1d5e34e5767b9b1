"""Alerts a second through `pipelines predict transients FOLDER`, from packets on the disk to the table of classes.

The packets are written here: every object of the labelled surveys is one alert, a file of its own, with its whole
history, in a schema of the names, the number of fields and the images of the survey's own. Nothing is faster than in
use: a packet's schema is read from its file, every object has its Gaussian process, network and trees, and sources and
results are hashed for the manifest. Weights do not matter here: the network is of the default size with random ones.

Rates are of the command itself, held to one core and to two: the alerts lie in two folders, which one process takes one
after the other, with as many threads as it has cores, or two processes (`--workers 2`) side by side. "Running" leaves
out the start of the processes. A machine that does nothing else is wanted: the load beforehand is said. The shares are
of processor time, by one thread.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fastavro
import numpy as np
import torch

from astro.transients import predict as rooms
from astro.transients.classifier import Classifier
from astro.transients.config import TransientsConfig
from astro.transients.grids import inputs_of
from astro.transients.lightcurve import OK, ZERO_POINT, LightCurve
from astro.transients.photometry import JD_OFFSET, factor
from astro.transients.pipeline import PIPELINE
from astro.transients.predict import TransientsPredictor
from astro.transients.read import read_path
from astro.transients.t2 import TransientNetwork
from astro.transients.task import grow
from pipelines import batch_item
from pipelines.batch import predict_batch
from shared.bench.real_data import data_folder
from shared.bundle import Bundle
from shared.config import resolve
from shared.distributed.pool import THREAD_VARIABLES

Say = Callable[[str], None]
Record = dict[str, Any]
SHARES = 2
"""Folders that the alerts lie in"""
WANTED = 300
"""Alerts a second on two cores: LSST's 10 million a night are 278."""
NULL = ["null", "float"]
PER_MAG = 0.4 * np.log(10)
LSST_IMAGE, ZTF_IMAGE = 3_600, 15_000
"""Bytes of each of a packet's three"""


# ---------------------------------------------------------------- packets


def record(name: str, fields: Mapping[str, Any], count: int = 0) -> Record:
    """An Avro record type of `count` fields, those it has besides `fields` being numbers that nothing reads."""
    more = {f"other{i}": NULL for i in range(count - len(fields))}
    listed = [{"name": key, "type": kind} for key, kind in {**fields, **more}.items()]
    return {"type": "record", "name": name, "fields": listed}


def others(fields: Mapping[str, Any], count: int) -> Record:
    """Values of those numbers."""
    return {f"other{i}": 0.5 for i in range(count - len(fields))}


def some(kind: Any) -> list[Any]:
    return ["null", {"type": "array", "items": kind}]


MEASURED = {
    "diaObjectId": ["null", "long"],
    "midpointMjdTai": "double",
    "band": ["null", "string"],
    "psfFlux": NULL,
    "psfFluxErr": NULL,
    "timeWithdrawnMjdTai": ["null", "double"],
}
SOURCE = {"diaSourceId": "long", "ssObjectId": ["null", "long"], **MEASURED}
FORCED = {"diaForcedSourceId": "long", **MEASURED}
CANDIDATE = {
    **{"jd": "double", "fid": "int", "magpsf": NULL, "sigmapsf": NULL},
    **{"isdiffpos": ["null", "string"], "diffmaglim": NULL},
}
LSST_IMAGES = [f"cutout{name}" for name in ("Difference", "Science", "Template")]
ZTF_IMAGES = [f"cutout{name}" for name in ("Science", "Template", "Difference")]


def lsst_schema() -> Record:
    """The names and numbers of fields of schema 11.0 (lsst/alert_packet)."""
    return record(
        "alert",
        {
            "diaSourceId": "long",
            "diaSource": record("diaSource", SOURCE, 98),
            "prvDiaSources": some("lsst.v11_0.diaSource"),
            "prvDiaForcedSources": some(record("diaForcedSource", FORCED, 14)),
            "diaObject": ["null", record("diaObject", {"diaObjectId": "long"}, 82)],
            **{name: ["null", "bytes"] for name in LSST_IMAGES},
        },
    ) | {"namespace": "lsst.v11_0"}


def lsst_alert(curve: LightCurve, number: int) -> Record:
    """The last detection as the alert's own source, all else forced photometry."""
    flux, error = (values / factor(31.4) for values in (curve.flux, curve.error))
    columns = (each.tolist() for each in (curve.time, curve.band, flux, error))
    names = ("midpointMjdTai", "band", "psfFlux", "psfFluxErr")
    rows = [{"diaObjectId": number, **dict(zip(names, row))} for row in zip(*columns)]
    last = int(np.flatnonzero(curve.detected)[-1]) if curve.detected.any() else len(rows) - 1
    own = {"diaSourceId": number, **rows.pop(last), **others(SOURCE, 98)}
    forced = [{"diaForcedSourceId": i, **row, **others(FORCED, 14)} for i, row in enumerate(rows)]
    images = dict.fromkeys(LSST_IMAGES, _noise(number, LSST_IMAGE))
    about = {"diaObjectId": number, **others({"": ""}, 82)}
    return {
        "diaSourceId": number,
        "diaSource": own,
        "prvDiaForcedSources": forced,
        "diaObject": about,
        **images,
    }


def ztf_schema() -> Record:
    """The names and numbers of fields of ZTF's schema 4 (ZwickyTransientFacility/ztf-avro-alert)."""
    image = record("cutout", {"fileName": "string", "stampData": "bytes"})
    return record(
        "alert",
        {
            "objectId": "string",
            "candid": "long",
            "candidate": record("candidate", CANDIDATE, 103),
            "prv_candidates": some(record("prv_candidate", CANDIDATE, 57)),
            **{name: ["null", "ztf.cutout" if i else image] for i, name in enumerate(ZTF_IMAGES)},
        },
    ) | {"namespace": "ztf"}


def ztf_alert(curve: LightCurve, number: int) -> Record:
    """The last point as the candidate, those before it as previous ones."""
    magnitude = ZERO_POINT - np.log(np.abs(curve.flux)) / PER_MAG
    columns = (curve.time + JD_OFFSET, magnitude, curve.error / np.abs(curve.flux) / PER_MAG)
    rows = [
        {"jd": jd, "fid": "gri".index(band) + 1, "magpsf": mag, "sigmapsf": sigma}
        | {"isdiffpos": "t" if flux > 0 else "f", "diffmaglim": 20.5}
        for band, flux, jd, mag, sigma in zip(curve.band, curve.flux, *(each.tolist() for each in columns))
    ]
    image = {"fileName": f"{number}.fits.gz", "stampData": _noise(number, ZTF_IMAGE)}
    return {
        "objectId": curve.id,
        "candid": number,
        "candidate": rows[-1] | others(CANDIDATE, 103),
        "prv_candidates": [row | others(CANDIDATE, 57) for row in rows[:-1]],
        **dict.fromkeys(ZTF_IMAGES, image),
    }


def _noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


# ---------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class Survey:
    sources: Mapping[str, int]
    """Set → objects of it at most, evenly from the list"""
    schema: Callable[[], Record]
    alert: Callable[[LightCurve, int], Record]

    def curves(self) -> list[LightCurve]:
        chosen: list[LightCurve] = []
        for name, most in self.sources.items():
            found = [c for c in read_path(data_folder("astro") / f"{name}_lightcurves.parquet") if len(c)]
            chosen += found[:: max(1, len(found) // most)][:most]
        return chosen

    def write(self, curves: Sequence[LightCurve], folders: Sequence[Path]) -> None:
        """To each folder in turn."""
        for folder in folders:
            folder.mkdir()
        schema = fastavro.parse_schema(self.schema())
        for number, curve in enumerate(curves, 1):
            with open(folders[number % len(folders)] / f"{number:06d}.avro", "wb") as file:
                fastavro.writer(file, schema, [self.alert(curve, number)])


SURVEYS = {
    "lsst": Survey({"snpcc": 2400, "mallorn": 800}, lsst_schema, lsst_alert),
    "ztf": Survey({"ztf_bts": 1892}, ztf_schema, ztf_alert),
}


def rates(name: str, say: Say) -> list[dict[str, Any]]:
    """Alerts a second of one survey. Raises `UsageError` where the data are absent."""
    survey = SURVEYS[name]
    curves = survey.curves()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        folders = [root / f"alerts{number}" for number in range(SHARES)]
        survey.write(curves, folders)
        points = np.median([len(curve) for curve in curves])
        case = f"{name}, {len(curves):,} alerts of {points:.0f} points in the middle"
        bundle = _bundle(name, curves, root / "bundle")
        rows = _stages(case, bundle, folders[0], root / "stages")
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        for cores, workers in ((1, 1), (2, 1), (2, 2)):
            if cores <= available:
                say(f"{case}: {cores} of {available} cores, load {os.getloadavg()[0]:.1f} beforehand")
                rows += _command(case, bundle, folders, root / f"out{cores}{workers}", cores, workers)
    for row in rows:
        say(f"{row['case']}: {row['quantity']}: {row['ours']} {row['unit']}")
    return rows


def _bundle(survey: str, curves: Sequence[LightCurve], path: Path) -> Bundle:
    """Random network of the default size, and trees grown on every fourth object."""
    known = [curve for curve in curves if curve.label and curve.status == OK][::4]
    classes = sorted({str(curve.label) for curve in known})
    sets = {"data": {"classes": classes, "survey": survey}}
    config: TransientsConfig = resolve(TransientsConfig, [("bench", sets)])
    torch.manual_seed(0)
    model = Classifier(config)
    labels = np.array([classes.index(str(curve.label)) for curve in known])
    if model.grown is not None:
        inputs = inputs_of(known, survey, config.data.grid)
        model.grown.put(grow(model.numbers(known, inputs), labels, config))
    model.trees_weight.fill_(1.0)
    model.class_means.zero_()
    counts = {"transients": {"class_counts": dict(zip(classes, np.bincount(labels).tolist()))}}
    return Bundle.save(
        path, pipeline=PIPELINE.name, config=config, state_dict=model.state_dict(), schema=counts
    )


# ---------------------------------------------------------------- the command


def _command(
    case: str, bundle: Bundle, folders: list[Path], output: Path, cores: int, workers: int
) -> list[dict[str, Any]]:
    """One run of the command."""
    with _held_to(cores):
        summary = predict_batch(PIPELINE.name, bundle.path, folders, output, workers=workers)
    lines = [json.loads(line) for line in Path(summary.manifest).read_text().splitlines()]
    count = sum(line["summary"]["objects"] for line in lines)
    if summary.ok != len(folders) or count != sum(len(list(folder.iterdir())) for folder in folders):
        raise RuntimeError(f"{summary.manifest}: not every alert has its row")
    seconds = [line["seconds"] for line in lines]
    running = sum(seconds) if workers == 1 else max(seconds)
    held = "one core" if cores == 1 else f"two cores, {'one process' if workers == 1 else '--workers 2'}"
    peer = WANTED if cores == 2 else None
    return [
        _row(case, f"{held}, running", "alerts/s", count / running, peer),
        _row(case, f"{held}, with the start", "alerts/s", count / summary.seconds, peer),
    ]


@contextmanager
def _held_to(cores: int) -> Iterator[None]:
    """This process and those it starts may use so many cores, and no thread variable says otherwise."""
    before = os.sched_getaffinity(0)
    kept = {name: os.environ.pop(name) for name in THREAD_VARIABLES if name in os.environ}
    os.sched_setaffinity(0, sorted(before)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        os.environ.update(kept)


# ---------------------------------------------------------------- its parts

STAGES = {
    "packets to light curves": (rooms, "read_alerts"),
    "Gaussian process": (rooms, "fitted"),
    "network": (TransientNetwork, "pooled"),
    "trees": (Classifier, "tree_logs"),
    "table written": (TransientsPredictor, "write"),
    "files hashed": (batch_item, "hash_sources"),
}


def _stages(case: str, bundle: Bundle, folder: Path, output: Path) -> list[dict[str, Any]]:
    """Processor time of each part of what a worker does with the folder, by one thread."""
    threads, spent = torch.get_num_threads(), dict.fromkeys(STAGES, 0.0)
    torch.set_num_threads(1)
    try:
        predictor = PIPELINE.predictor(bundle, {})
        (item,) = predictor.discover([folder])
        with ExitStack() as stack:
            for name, (owner, function) in STAGES.items():
                timed = _timed(getattr(owner, function), name, spent)
                stack.enter_context(patch.object(owner, function, timed))
            started = time.process_time()
            outcome = batch_item.perform(predictor, item, output)
            total = time.process_time() - started
    finally:
        torch.set_num_threads(threads)
    count = outcome["summary"]["objects"]
    spent["else"] = total - sum(spent.values())
    rows = [_row(case, f"{name}, share", "%", 100 * value / total) for name, value in spent.items()]
    return [_row(case, "an alert in all", "ms of CPU", 1000 * total / count), *rows]


def _timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        started = time.process_time()
        try:
            return function(*given, **named)
        finally:
            spent[name] += time.process_time() - started

    return call


def _row(case: str, quantity: str, unit: str, value: float, peer: float | None = None) -> dict[str, Any]:
    return {
        "case": case,
        "model": "default",
        "quantity": quantity,
        "unit": unit,
        "ours": round(value, 1),
        "peer": peer,
        "peer_name": "wanted" if peer else "",
        "ratio": round(value / peer, 2) if peer else None,
    }


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {name: partial(rates, name) for name in SURVEYS}
QUICK = ("ztf",)
