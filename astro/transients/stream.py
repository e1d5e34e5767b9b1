"""Alerts as they come: what is known of each object is kept, and every update answers for the objects it touched.

    stream = Stream(PIPELINE.predictor(bundle, {}))
    rows, faults = stream.update(packets)

What is known is merged as a folder's alerts are (`history`), so no order and no repetition of deliveries changes it,
and after the same alerts a stream's rows are those of ``pipelines predict transients FOLDER``, but for notes. It does
not depend on the model: a saved state may be loaded beside a newer one. 35 bytes a measurement and about 600 an object
are held: 3 kB for one of 70 measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from astro.transients import photometry
from astro.transients.alerts import LSST_OBJECT, Record, packet_of, packets_in
from astro.transients.avro import Schema
from astro.transients.history import NEVER, POINT, History, Key, Packet, curves, learn
from astro.transients.lightcurve import STATUSES, UNREADABLE, WAVELENGTHS
from astro.transients.predict import TransientsPredictor
from astro.transients.read import files_in
from astro.transients.tables import AVRO, invalid
from shared.errors import DataInvalid, Fault, first_line
from shared.io.atomic import atomic_path

Delivery = Record | bytes | Path | str
"""A record that was decoded, the content of an Avro file, an Avro file, or a folder of them."""
_GROUP = 50_000
"""Objects written and read at once."""
_POINTS = {name: pa.from_numpy_dtype(POINT[name]) for name in POINT.names or ()}
_SCHEMA = pa.schema(
    [
        *(("survey", pa.string()), ("id", pa.string()), ("status", pa.string()), ("last", pa.float64())),
        *((name, pa.float64()) for role in LSST_OBJECT for name in (role, f"{role}_version")),
        *((name, pa.large_list(kind)) for name, kind in _POINTS.items()),
    ],
    metadata={"state": "transients 1"},
)


class Answer(NamedTuple):
    """Of one update."""

    rows: pd.DataFrame
    """`TransientsPredictor.table` of the objects it touched, in order of first mention; notes on this update alone"""
    faults: list[Fault]
    """What could not be read, a line each; warnings where an object's other packets or points still count"""


class Stream:
    """State per object. Not for several threads at once; share objects out over processes by their id."""

    def __init__(self, predictor: TransientsPredictor) -> None:
        self.predictor = predictor
        self.histories: dict[Key, History] = {}
        self._schema = Schema()

    def __len__(self) -> int:
        """Objects known."""
        return len(self.histories)

    # ------------------------------------------------------------ alerts

    def update(self, packets: Delivery | Iterable[Delivery], namespace: str = "") -> Answer:
        """Learn from `packets`, one or many, and classify the objects they are about, all together.

        `namespace` is the schema's of records that come decoded (``elasticc.v0_9_1``: another zero point than LSST's).
        A packet that cannot be read is a fault, and the rest goes on; one that names no object is not kept. Raises
        `TypeError` for what is no delivery, a DataFrame above all.
        """
        faults: list[Fault] = []
        several = [packets] if isinstance(packets, (Mapping, bytes, str, Path)) else packets
        if isinstance(several, pd.DataFrame) or not isinstance(several, Iterable):
            found = type(packets).__name__
            raise TypeError(f"packets: a {found}; records, bytes or paths, one or a list of them, wanted")
        heard = []
        for packet, name in self._packets(several, namespace, faults):
            missing = [note for note in packet.notes if note.startswith(("missing", "cannot"))]
            if not packet.id:
                found = f"no object named ({'; '.join(missing)})"
                faults.append(Fault(name, found, "diaObjectId, ssObjectId or objectId", "not kept"))
                continue
            if missing:
                wanted, taken = "an alert of LSST, ELAsTiCC or ZTF", packet.status != UNREADABLE
                mend = "what else it says was taken" if taken else "nothing of it was taken"
                found = f"object {packet.id}: {'; '.join(missing)}"
                faults.append(Fault(name, found, wanted, mend, severity="warning"))
            heard.append((packet, ""))
        touched = learn(heard, self.histories)
        rows = self._rows(touched)
        for history in touched:
            history.notes = []  # they tell of what was read, and would grow with it
        return Answer(rows, faults)

    def table(self) -> pd.DataFrame:
        """Rows of all objects, as they stand."""
        return self._rows(list(self.histories.values()))

    def forget_before(self, mjd: float) -> int:
        """Drop the objects whose latest alert is older, and say how many: of one that alerts again, only what that
        alert repeats is known."""
        old = [key for key, history in self.histories.items() if history.last < mjd]
        for key in old:
            del self.histories[key]
        return len(old)

    def _rows(self, histories: list[History]) -> pd.DataFrame:
        return self.predictor.table(curves(histories, self.predictor.read))

    def _packets(
        self, several: Iterable[Any], namespace: str, faults: list[Fault]
    ) -> Iterator[tuple[Packet, str]]:
        """(packet, name for messages) of every alert delivered."""
        for number, delivery in enumerate(several):
            name = f"packets[{number}]"
            if isinstance(delivery, (str, Path)):
                yield from self._files(Path(delivery), faults)
            elif not isinstance(delivery, bytes):
                yield packet_of(delivery, "", namespace), name
            elif delivery.startswith(AVRO):
                yield from packets_in(delivery, name, "", faults, [], self._schema)
            else:
                mend = "decode what a schema registry frames, and give the records"
                faults.append(Fault(name, "bytes that are no Avro file", "a file with its schema", mend))

    def _files(self, path: Path, faults: list[Fault]) -> Iterator[tuple[Packet, str]]:
        try:
            files, _ = files_in(path, self.predictor.read)
            if not files:
                raise invalid(path, "no alerts", "an Avro file, or a folder of them", "check the path")
        except DataInvalid as err:
            faults += err.faults
            return
        for file in files:
            yield from packets_in(file, str(file), file.stem, faults, [], self._schema)

    # ------------------------------------------------------------ to disk and back

    def save(self, path: Path) -> Path:
        """The state as a Parquet file, one row an object; complete or, where saving fails, the one before."""
        path, rest = Path(path), iter(self.histories.values())
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as draft, pq.ParquetWriter(draft, _SCHEMA) as writer:
            while some := list(islice(rest, _GROUP)):
                writer.write_table(_table(some))
        return path

    @classmethod
    def load(cls, path: Path, predictor: TransientsPredictor) -> Stream:
        """The stream that was saved, to go on with `predictor`. Raises `DataInvalid`."""
        stream = cls(predictor)
        try:
            with pq.ParquetFile(path) as file:
                found = file.schema_arrow
                if not found.equals(_SCHEMA) or found.metadata != _SCHEMA.metadata:
                    raise ValueError("other columns, or of another version")
                for batch in file.iter_batches(_GROUP):
                    stream.histories |= {(each.survey, each.id): each for each in _histories(batch)}
        except (OSError, ValueError, pa.ArrowException) as err:
            mend = "restore the file, or start anew from the alerts"
            raise invalid(path, first_line(err), "a state that Stream.save wrote", mend) from None
        return stream


def _table(histories: list[History]) -> pa.Table:
    columns: list[Any] = [
        [getattr(history, name) for history in histories] for name in ("survey", "id", "status", "last")
    ]
    for role in LSST_OBJECT:
        known = [history.about.get(role, (None, None)) for history in histories]
        columns += [[value for _, value in known], [version for version, _ in known]]
    edges = np.cumsum([0, *(len(history.points) for history in histories)])
    points = np.concatenate([history.points for history in histories])
    arrays = [pa.array(column, _SCHEMA.field(i).type) for i, column in enumerate(columns)]
    for name, kind in _POINTS.items():
        values = pa.array(np.ascontiguousarray(points[name]), kind)
        arrays.append(pa.LargeListArray.from_arrays(pa.array(edges, pa.int64()), values))
    return pa.Table.from_arrays(arrays, schema=_SCHEMA)


def _histories(batch: pa.RecordBatch) -> Iterator[History]:
    """Raises ValueError for values that `learn` cannot have made."""
    sizes = batch.column("time").value_lengths().to_numpy(zero_copy_only=False)
    points = np.empty(int(sizes.sum()), POINT)
    for name in _POINTS:
        column = batch.column(name)
        if column.null_count or not column.value_lengths().equals(batch.column("time").value_lengths()):
            raise ValueError(f"{name}: not as many as times")
        points[name] = column.flatten().to_numpy(zero_copy_only=False)
    fine = np.isfinite(points["time"]) & np.isfinite(points["flux"]) & np.isfinite(points["error"])
    if not (fine & (points["error"] > 0) & (points["band"] >= 0) & (points["rank"] >= 0)).all():
        raise ValueError("measurements that cannot be")
    points["version"] = _dated(points["version"])
    edges = np.cumsum([0, *sizes])
    about = [name for role in LSST_OBJECT for name in (role, f"{role}_version")]
    for index, row in enumerate(batch.select(["survey", "id", "status", "last", *about]).to_pylist()):
        part = points[edges[index] : edges[index + 1]]
        part = part[photometry.dated(part["time"])]
        bands, status = len(WAVELENGTHS.get(row["survey"], ())), row["status"]
        if not row["id"] or not bands or (part["band"] >= bands).any():
            raise ValueError(f"object {row['id']} of survey {row['survey']}: bands that it does not have")
        if status is not None and status not in STATUSES:
            raise ValueError(f"object {row['id']}: status {status}")
        told = [role for role in LSST_OBJECT if row[role] is not None]
        known = {role: (float(_dated(row[f"{role}_version"])), row[role]) for role in told}
        yield History(row["id"], row["survey"], "", part, known, status, float(_dated(row["last"])))


def _dated(mjd: Any) -> Any:
    """`mjd`; `NEVER` for what is no date, which states of before dates were checked may hold."""
    return np.where(photometry.dated(mjd), mjd, NEVER)
