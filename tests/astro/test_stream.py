"""Alerts as they come: whatever their order, chunks and repetitions, a stream ends at the batch's answer."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astro.transients.config_read import ReadConfig
from astro.transients.history import DETECTION, FORCED, NEVER, History, Packet, Points, curves, learn
from astro.transients.lightcurve import OK, SOLAR_SYSTEM, TOO_FEW, UNREADABLE, LightCurve
from astro.transients.pipeline import PIPELINE
from astro.transients.predict import TransientsPredictor
from astro.transients.read import read_all
from astro.transients.sample import simulate
from astro.transients.stream import Stream
from shared.errors import DataInvalid
from tests.astro.bundles import random_bundle
from tests.astro.test_alerts import NEW, lsst_record, lsst_schema, write, ztf_record, ztf_schema

PARTS = ("time", "band", "flux", "error", "detected")
SCHEMA = fastavro.parse_schema(lsst_schema("lsst.v11_0", NEW))


# ---------------------------------------------------------------- what a broker has


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> TransientsPredictor:
    """A network of smoke size with seeded random weights, and a few trees beside it."""
    made = PIPELINE.predictor(random_bundle(tmp_path_factory.mktemp("model") / "bundle"), {})
    assert isinstance(made, TransientsPredictor)
    return made


def alerts_of(curve: LightCurve, oid: int, most: int = 5) -> list[dict[str, Any]]:
    """Alerts at detections of a simulated object, each with what was measured before.

    Forced photometry is measured anew for every alert, one of its points is null in every other, and the last alert
    withdraws the first detection; a host redshift is known from the second on, and another from the third.
    """

    def source(name: str, i: int, again: int = 0) -> dict[str, Any]:
        nano = curve.flux[i] / 0.0275423 * (1 + 0.01 * again), curve.error[i] / 0.0275423
        flux, error = (float(np.float32(value)) for value in nano)
        return {f"{name}Id": i, "midpointMjdTai": curve.time[i], "band": str(curve.band[i])} | {
            "psfFlux": flux,
            "psfFluxErr": error,
        }

    seen = np.flatnonzero(curve.detected)
    chosen = seen[:: -(-len(seen) // most)]
    out = []
    for number, i in enumerate(chosen):
        before = [int(k) for k in seen if k < i]
        forced = [source("diaForcedSource", k, number) for k in range(max(0, i - 30), i)]
        if number % 2 and forced:
            forced[0]["psfFlux"] = None
        record = {
            "diaSourceId": int(i),
            "diaSource": source("diaSource", int(i)) | {"diaObjectId": oid},
            "prvDiaSources": [source("diaSource", k) for k in before] or None,
            "prvDiaForcedSources": forced or None,
            "diaObject": {"diaObjectId": oid} | ({"hostgal_zphot": 0.125 * min(number, 2)} if number else {}),
        }
        if number == len(chosen) - 1 and before:
            record["prvDiaSources"][0]["timeWithdrawnMjdTai"] = 70_000.0
        out.append(record)
    return out


def content(schema: Any, *records: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    fastavro.writer(file, schema, records)
    return file.getvalue()


@pytest.fixture(scope="module")
def packets() -> list[bytes]:
    """Some twenty alerts of seven objects: simulated ones, one with a single point, a minor planet, one of ZTF."""
    records = [r for n, curve in enumerate(simulate(4, 3)) for r in alerts_of(curve, n + 1)]
    planet = {"ssObjectId": 42, "midpointMjdTai": 60_000.5, "band": "r", "psfFlux": 1e4, "psfFluxErr": 100.0}
    single = {"diaObjectId": 99, "midpointMjdTai": 60_001.5, "band": "w", "psfFlux": 1e4, "psfFluxErr": 1e2}
    records += [{"diaSourceId": 1, "diaSource": {"diaSourceId": 1, **each}} for each in (planet, single)]
    ztf = content(fastavro.parse_schema(ztf_schema()), ztf_record())
    return [*(content(SCHEMA, record) for record in records), ztf]


def folder_of(path: Path, files: Sequence[bytes]) -> Path:
    path.mkdir()
    for index, each in enumerate(files):
        (path / f"{index:03}.avro").write_bytes(each)
    return path


def batch(path: Path, files: Sequence[bytes], predictor: TransientsPredictor) -> pd.DataFrame:
    """What `predict` says of a folder of `files`."""
    folder = folder_of(path, files)
    (item,) = predictor.discover([folder])
    return predictor.predict(item).table


def assert_rows(one: pd.DataFrame, two: pd.DataFrame) -> None:
    """Equal but for the order of objects, and notes on what was read."""
    one, two = (table.sort_values("id", ignore_index=True).drop(columns="notes") for table in (one, two))
    pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-6)


def assert_same(one: Sequence[LightCurve], two: Sequence[LightCurve]) -> None:
    assert [(c.id, c.status) for c in one] == [(c.id, c.status) for c in two]
    for a, b in zip(one, two):
        np.testing.assert_equal((a.redshift, a.redshift_error), (b.redshift, b.redshift_error))
        for part in PARTS:
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))


def state(stream: Stream) -> list[Any]:
    """All that is known, by object."""
    return [
        (key, each.points.tolist(), each.about, each.status, each.last)
        for key, each in sorted(stream.histories.items())
    ]


# ---------------------------------------------------------------- ends at the batch's answer


def test_every_prefix_ends_at_the_batch_answer(
    predictor: TransientsPredictor, packets: list[bytes], tmp_path: Path
) -> None:
    stream, order = Stream(predictor), np.random.default_rng(1).permutation(len(packets))
    for count, index in enumerate(order, 1):
        rows, faults = stream.update(packets[index])
        assert faults == [] and len(rows) == 1
        if count % 6 and count < len(order):
            continue
        expected = batch(tmp_path / f"{count}", [packets[i] for i in order[:count]], predictor)
        assert_rows(stream.table(), expected)
        assert_rows(rows, expected[expected["id"] == rows["id"][0]])
    status = dict(zip(expected["id"], expected["status"]))
    assert [status[str(n)] for n in range(1, 5)] == [OK] * 4
    assert status["ssObject 42"] == SOLAR_SYSTEM and status["99"] == TOO_FEW
    assert status["ZTF20abcdefg"] == OK  # g and r are bands of both
    redshift = expected.set_index("id")["redshift"]
    assert redshift[["1", "2", "3", "4"]].tolist() == [0.25] * 4


@given(data=st.data())
@settings(max_examples=6)
def test_no_order_chunks_or_repetition_changes_the_state(
    predictor: TransientsPredictor, packets: list[bytes], data: st.DataObject
) -> None:
    order = data.draw(st.permutations([*range(len(packets)), *data.draw(_some(len(packets)))]))
    cuts = sorted({0, len(order), *data.draw(_some(len(order)))})
    stream, straight = Stream(predictor), Stream(predictor)
    straight.update(packets)
    for start, end in itertools.pairwise(cuts):
        last = stream.update([packets[i] for i in order[start:end]])
    assert state(stream) == state(straight)
    whole = stream.table()
    assert_rows(whole, straight.table())
    assert_rows(last.rows, whole[whole["id"].isin(last.rows["id"])])


def _some(count: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, count - 1), max_size=5)


def test_saved_and_loaded_in_the_middle(
    predictor: TransientsPredictor, packets: list[bytes], tmp_path: Path
) -> None:
    straight = Stream(predictor)
    rows = straight.update(packets).rows
    stream, path = Stream(predictor), tmp_path / "deep" / "state.parquet"
    for part in (packets[15:], packets[5:15], packets[:8]):
        stream.update(part)
        assert stream.save(path) == path
        stream = Stream.load(path, predictor)
    assert state(stream) == state(straight)
    assert_rows(stream.table(), rows)
    assert [p.name for p in path.parent.iterdir()] == ["state.parquet"]


def test_records_bytes_files_and_folders_are_the_same(
    predictor: TransientsPredictor, packets: list[bytes], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "alerts", packets)
    files = sorted(folder.iterdir())
    records = [record for each in packets for record in fastavro.reader(io.BytesIO(each))]
    ways: list[Any] = [packets, files, folder, str(folder), records, iter([*records[:9], *files[9:]])]
    found = []
    for way in ways:
        stream = Stream(predictor)
        assert stream.update(way).faults == []
        found.append(state(stream))
    assert all(each == found[0] for each in found)
    assert_same(
        curves(list(stream.histories.values()), predictor.read), read_all(folder, predictor.read).curves
    )


def test_an_update_of_nothing_and_of_many_objects(
    predictor: TransientsPredictor, packets: list[bytes]
) -> None:
    stream = Stream(predictor)
    rows, faults = stream.update([])
    assert len(rows) == 0 and faults == [] and len(stream.table()) == 0
    rows = stream.update(packets).rows
    assert list(rows.columns) == list(stream.update([]).rows.columns)
    assert rows["id"].tolist() == ["1", "2", "3", "4", "ssObject 42", "99", "ZTF20abcdefg"]
    assert len(stream) == 7


# ---------------------------------------------------------------- merging


@st.composite
def _packet(draw: st.DrawFn) -> Packet:
    """Few times, bands and values, so that everything meets everything."""
    parts = []
    for rank, gone in itertools.product((DETECTION, FORCED), (False, True)):
        n = draw(st.integers(0, 3))
        time, flux, error = (
            np.array(draw(st.lists(st.sampled_from(values), min_size=n, max_size=n)), float)
            for values in ((1.0, 2.0, np.nan), (0.0, 3.0, 7.0, np.nan), (1.0, 2.0, 0.0))
        )
        band = draw(st.lists(st.sampled_from(["g", "r", "w", None]), min_size=n, max_size=n))
        if n:
            parts.append(Points(time, band, flux, error, rank, gone))
    about = {"redshift": draw(st.sampled_from([0.1, 0.2, np.nan]))} if draw(st.booleans()) else {}
    status = draw(st.sampled_from([None, UNREADABLE]))
    at = draw(st.sampled_from([NEVER, 5.0, 6.0]))
    return Packet(draw(st.sampled_from("ab")), "lsst", parts, about, status=status, at=at)


@given(st.lists(_packet(), max_size=6), st.data())
@settings(max_examples=80)
def test_merging_is_associative_commutative_and_idempotent(some: list[Packet], data: st.DataObject) -> None:
    batch: dict[tuple[str, str], History] = {}
    learn([(packet, "") for packet in some], batch)
    known: dict[tuple[str, str], History] = {}
    order = data.draw(st.permutations([*some, *some[:3]]))
    step = data.draw(st.integers(1, 4))
    for start in range(0, len(order), step):
        learn([(packet, "") for packet in order[start : start + step]], known)
    keys = sorted(batch)
    assert sorted(known) == keys
    for key in keys:
        a, b = batch[key], known[key]
        assert (a.points.tolist(), a.about, a.status, a.last) == (
            b.points.tolist(),
            b.about,
            b.status,
            b.last,
        )
    for how in ("merge", "last"):
        config = ReadConfig(duplicates=how)  # type: ignore[arg-type]
        assert_same(
            curves([batch[key] for key in keys], config), curves([known[key] for key in keys], config)
        )


def _alert(at: float, forced: dict[str, Any] | None = None, **about: Any) -> dict[str, Any]:
    """Of object 7, at `at`; with a detection and one forced measurement at 60000, in g."""
    row = {"midpointMjdTai": 60_000.0, "band": "g", "psfFlux": 1000.0, "psfFluxErr": 100.0}
    return {
        "diaSource": row | {"diaObjectId": 7, "midpointMjdTai": at, "band": "r"},
        "prvDiaForcedSources": [row | (forced or {})],
        "diaObject": {"diaObjectId": 7, **about},
    }


@pytest.mark.parametrize("at", [2_460_001.5, 1e30, -1.0])
def test_an_alert_without_a_date_is_never_the_latest(predictor: TransientsPredictor, at: float) -> None:
    stream, straight = Stream(predictor), Stream(predictor)
    odd = _alert(at, {"psfFlux": 5.0}, hostgal_zphot=0.9)
    rest = [_alert(60_001.0, hostgal_zphot=0.1), _alert(60_002.0, {"psfFlux": 2000.0})]
    rows, faults = stream.update([odd, *rest])
    straight.update(rest)
    assert state(stream) == state(straight) and rows["points"].tolist() == [3]
    assert [str(fault) for fault in faults] == [
        f"packets[0]: object 7: cannot be a date: diaSource.midpointMjdTai {at:.10g}; an MJD wanted; "
        "an alert of LSST, ELAsTiCC or ZTF; what else it says was taken"
    ]
    assert "cannot be a date" in rows["notes"][0]
    assert "cannot be a date" not in stream.update(_alert(60_002.5)).rows["notes"][0]  # of this update alone
    assert stream.forget_before(60_003.0) == 1


@pytest.mark.parametrize("packets", [None, 5, pd.DataFrame({"a": [1]})])
def test_what_is_no_delivery_is_refused_in_a_line(predictor: TransientsPredictor, packets: Any) -> None:
    wanted = rf"packets: a {type(packets).__name__}; records, bytes or paths, one or a list of them, wanted"
    with pytest.raises(TypeError, match=wanted):
        Stream(predictor).update(packets)


@pytest.mark.parametrize("turn", [1, -1])
@pytest.mark.parametrize(
    "later, flux",
    [
        ({"psfFlux": 2000.0}, 2000.0),  # measured anew
        ({"psfFluxErr": 50.0}, 1000.0),
        ({"timeWithdrawnMjdTai": 60_009.0}, None),
        ({"psfFlux": None}, 1000.0),  # a value that cannot be used replaces none
        ({"psfFluxErr": 0.0}, 1000.0),
        ({"psfFlux": 0.0}, 0.0),
    ],
)
def test_the_latest_alert_counts(
    predictor: TransientsPredictor, later: dict[str, Any], flux: float | None, turn: int
) -> None:
    stream = Stream(predictor)
    for record in [_alert(60_001.0), _alert(60_002.0, later)][::turn]:
        stream.update(record)
    (curve,) = curves(list(stream.histories.values()), ReadConfig())
    assert curve.time.tolist() == [60_000.0, 60_001.0, 60_002.0][flux is None :]
    if flux is not None:
        assert curve.flux[0] == pytest.approx(flux * 0.0275423, rel=1e-5)
        assert curve.error[0] == pytest.approx((later.get("psfFluxErr") or 100.0) * 0.0275423, rel=1e-5)


def test_a_withdrawn_source_may_come_back_and_a_detection_outweighs_forced_photometry(
    predictor: TransientsPredictor,
) -> None:
    stream = Stream(predictor)
    stream.update([_alert(60_003.0), _alert(60_002.0, {"timeWithdrawnMjdTai": 60_009.0}), _alert(60_001.0)])
    (row,) = stream.table().itertuples()
    assert row.points == 4
    detection = _alert(60_000.0)
    detection["diaSource"]["band"], detection["diaSource"]["psfFlux"] = "g", 5000.0
    stream.update(detection)
    (curve,) = curves(list(stream.histories.values()), ReadConfig())
    assert len(curve) == 4 and curve.flux[0] == pytest.approx(5000 * 0.0275423, rel=1e-5)


def test_equally_late_alerts_that_differ_count_as_duplicates_do(predictor: TransientsPredictor) -> None:
    stream, other = Stream(predictor), Stream(predictor)
    two = [_alert(60_001.0), _alert(60_001.0, {"psfFlux": 3000.0})]
    stream.update(two)
    other.update([two[1], two[0], two[1]])
    assert state(stream) == state(other)
    (curve,) = curves(list(stream.histories.values()), ReadConfig())
    assert curve.flux[0] == pytest.approx(2000 * 0.0275423, rel=1e-5)  # their mean


def test_notes_tell_what_was_replaced_and_withdrawn(tmp_path: Path) -> None:
    some = [_alert(60_001.0 + k, {"psfFlux": 1000.0 + k}) for k in range(3)]
    some.append(_alert(60_001.0 + 2, {"midpointMjdTai": 59_999.0, "timeWithdrawnMjdTai": 60_009.0}))
    (curve,) = read_all(folder_of(tmp_path / "a", [content(SCHEMA, _whole(r)) for r in some])).curves
    assert "2 points replaced by those of a later alert" in curve.notes
    assert "1 point withdrawn by the survey left out" in curve.notes
    assert "1 point delivered twice left out" in curve.notes
    assert "times were not in order: sorted" not in curve.notes


def _whole(record: dict[str, Any]) -> dict[str, Any]:
    """With the fields that the schema requires."""
    record["diaSource"]["diaSourceId"] = record["diaSourceId"] = 1
    for row in record["prvDiaForcedSources"]:
        row["diaForcedSourceId"] = 1
    return record


# ---------------------------------------------------------------- broken packets, old objects, broken states


def test_a_broken_packet_is_one_line_and_stops_nothing(
    predictor: TransientsPredictor, packets: list[bytes], tmp_path: Path
) -> None:
    renamed = lsst_record(NEW, oid=8)
    for rows in (renamed["prvDiaSources"], renamed["prvDiaForcedSources"], [renamed["diaSource"]]):
        for row in rows:
            row["differenceFlux"] = row.pop("psfFlux")
    odd = lsst_record(NEW, oid=8)
    odd["diaSource"]["psfFlux"] = "bright"
    nameless = lsst_record(NEW, oid=None)
    notes = tmp_path / "notes.txt"
    notes.write_text("no alert")
    broken: list[Any] = [renamed, odd, nameless, b"\x00\x00\x00\x00\x07framed", packets[0][:-40]]
    broken += [tmp_path / "absent.avro", notes, None, {"a": 1}]
    stream, straight = Stream(predictor), Stream(predictor)
    rows, faults = stream.update([*packets[:9], *broken, *packets[9:]])
    straight.update(packets)
    assert [key for key in stream.histories if key not in straight.histories] == [("lsst", "8")]
    assert dict(zip(rows["id"], rows["status"]))["8"] == UNREADABLE
    del stream.histories[("lsst", "8")]
    assert state(stream) == state(straight)
    kept, named = "nothing of it was taken", "diaObjectId, ssObjectId or objectId; not kept"
    fields = [f"missing required fields: {w}.psfFlux" for w in ("prvDiaForcedSources", "prvDiaSources")]
    said = [str(fault) for fault in faults]
    assert said[0] == (
        f"packets[9]: object 8: {'; '.join(fields)}; missing required fields: diaSource.psfFlux; "
        f"an alert of LSST, ELAsTiCC or ZTF; {kept}"
    )
    cannot = "cannot be read: could not convert string to float: 'bright'"
    assert said[1] == f"packets[10]: object 8: {cannot}; an alert of LSST, ELAsTiCC or ZTF; {kept}"
    assert said[2] == (
        f"packets[11]: no object named (missing required fields: diaSource.diaObjectId); {named}"
    )
    assert said[3] == (
        "packets[12]: bytes that are no Avro file; a file with its schema; "
        "decode what a schema registry frames, and give the records"
    )
    assert said[4].startswith("packets[13]: damaged after 0 alerts (") and said[4].endswith("copy it again")
    assert said[5].startswith(f"{tmp_path}/absent.avro: No such file or directory; ")
    assert said[6] == f"{notes}: no alerts; an Avro file, or a folder of them; check the path"
    assert said[7].startswith("packets[16]: no object named (cannot be read: ") and said[8].startswith(
        "packets[17]: no object named (missing required fields: diaSource (LSST) or candidate (ZTF))"
    )
    assert len(said) == 9 and not any("\n" in line for line in said)
    assert [fault.severity for fault in faults] == ["warning"] * 2 + ["error"] * 7


def test_an_unreadable_packet_does_not_spoil_its_object(predictor: TransientsPredictor) -> None:
    good, bad = lsst_record(NEW, oid=8), {"diaSource": {"diaObjectId": 8}}
    for order in ([good, bad], [bad, good]):
        stream = Stream(predictor)
        for record in order:
            rows = stream.update(record).rows
        assert rows["status"].tolist() == [OK]


def test_damaged_bytes_never_raise(predictor: TransientsPredictor) -> None:
    rng, stream = np.random.default_rng(0), Stream(predictor)
    for codec in ("null", "deflate"):
        file = io.BytesIO()
        fastavro.writer(file, SCHEMA, [lsst_record(NEW, oid=k) for k in (1, 2)], codec=codec)
        for _ in range(40):
            raw = bytearray(file.getvalue())
            for place in rng.integers(5, len(raw), 3):
                raw[place] = rng.integers(256)
            stream.update(bytes(raw))
    (rows, faults) = stream.update(lsst_record(NEW, oid=77))
    assert rows["status"].tolist() == [OK] and faults == []


def test_objects_not_seen_for_long_are_forgotten(predictor: TransientsPredictor) -> None:
    stream = Stream(predictor)
    stream.update([_alert(60_001.0), lsst_record(NEW, oid=8, start=20)])
    assert stream.forget_before(60_001.0) == 0
    assert stream.forget_before(60_001.5) == 1
    assert [key for key in stream.histories] == [("lsst", "8")]
    (row,) = stream.update(_alert(60_004.0)).rows.itertuples()
    assert row.points == 2  # what this alert repeats


def test_a_state_that_cannot_be_read_says_so(predictor: TransientsPredictor, tmp_path: Path) -> None:
    stream, path = Stream(predictor), tmp_path / "state.parquet"
    stream.update([_alert(60_001.0, redshift=0.1), ztf_record()])
    stream.save(path)
    whole, table = path.read_bytes(), pq.read_table(path)
    assert len(Stream.load(path, predictor)) == 2

    def said() -> str:
        with pytest.raises(DataInvalid) as caught:
            Stream.load(path, predictor)
        return str(caught.value)

    end = "; a state that Stream.save wrote; restore the file, or start anew from the alerts"
    path.write_bytes(whole[: len(whole) // 2])
    assert said().startswith(f"{path}: ") and said().endswith(end)
    pq.write_table(table.replace_schema_metadata({"state": "transients 0"}), path)
    assert said() == f"{path}: other columns, or of another version{end}"
    for name, value, found in (
        ("error", [[0.0] * 2, [1.0] * 4], "measurements that cannot be"),
        ("flux", [[1.0] * 2, [1.0] * 3], "flux: not as many as times"),
        ("band", [[1] * 2, [5] * 4], "object ZTF20abcdefg of survey ztf: bands that it does not have"),
        ("status", ["fine", None], "object 7: status fine"),
    ):
        place, kind = table.schema.get_field_index(name), table.schema.field(name)
        pq.write_table(table.set_column(place, kind, pa.array(value, kind.type)), path)
        assert said() == f"{path}: {found}{end}"
    path.unlink()
    assert "No such file" in said()


def test_a_state_of_before_dates_were_checked_is_taken_without_them(
    predictor: TransientsPredictor, tmp_path: Path
) -> None:
    stream, path = Stream(predictor), tmp_path / "state.parquet"
    stream.update([_alert(60_001.0, hostgal_zphot=0.1), ztf_record()])
    stream.save(path)
    table = pq.read_table(path)
    columns = {"time": [[0.0, 60_001.0], [1e30] * 4], "last": [2_460_001.5, 60_003.0]}
    columns |= {"version": [[2_460_001.5] * 2, [60_003.0] * 4], "redshift_version": [1e30, None]}
    for name, value in columns.items():
        place, kind = table.schema.get_field_index(name), table.schema.field(name)
        table = table.set_column(place, kind, pa.array(value, kind.type))
    pq.write_table(table, path)
    old = Stream.load(path, predictor)
    assert old.table()["points"].tolist() == [1, 0] and old.forget_before(60_000.0) == 1
    old = Stream.load(path, predictor)
    old.update(_alert(60_002.0, {"psfFlux": 2000.0}, hostgal_zphot=0.3))
    assert old.table().loc[0, ["points", "redshift"]].tolist() == [3, 0.3]


def test_files_of_a_stream_are_those_of_the_reader(predictor: TransientsPredictor, tmp_path: Path) -> None:
    """A packet that names no object is an object of its own where a file gives it a name, as in a folder."""
    nameless = lsst_record(NEW, oid=None)
    nameless["diaSource"]["diaObjectId"] = None
    path = write(tmp_path / "a.avro", lsst_schema("lsst.v11_0", NEW), [nameless, lsst_record(NEW)])
    stream = Stream(predictor)
    rows, faults = stream.update(path)
    assert_rows(rows, predictor.table(read_all(path).curves))
    assert rows["id"].tolist() == ["a#0", "7"] and [fault.severity for fault in faults] == ["warning"]
