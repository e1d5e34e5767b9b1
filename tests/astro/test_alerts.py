"""Alerts of LSST (two schema majors), ELAsTiCC and ZTF, written here with fastavro from minimal schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from astro.transients.alerts import _pruned, packet_of, raw_alert, read_alert
from astro.transients.avro import Schema, records
from astro.transients.history import NEVER, Packet, curves, learn
from astro.transients.lightcurve import OK, SOLAR_SYSTEM, TOO_FEW, UNREADABLE
from astro.transients.read import ReadConfig, read_all, read_path
from shared.errors import DataInvalid

NULL_FLOAT = ["null", "float"]
NEW = {"time": "midpointMjdTai", "band": "band", "flux": "psfFlux", "error": "psfFluxErr"}
OLD = {"time": "midPointTai", "band": "filterName", "flux": "psFlux", "error": "psFluxErr"}


def lsst_schema(namespace: str, names: dict[str, str]) -> Any:
    def source(name: str) -> dict[str, Any]:
        fields: list[dict[str, Any]] = [
            {"name": f"{name}Id", "type": "long"},
            {"name": "diaObjectId", "type": ["null", "long"], "default": None},
            {"name": "ssObjectId", "type": ["null", "long"], "default": None},
            {"name": "snr", "type": NULL_FLOAT, "default": None},
            {"name": "timeWithdrawnMjdTai", "type": ["null", "double"], "default": None},
        ]
        kinds = {"time": "double", "band": ["null", "string"], "flux": NULL_FLOAT, "error": NULL_FLOAT}
        fields += [{"name": names[role], "type": kind} for role, kind in kinds.items() if role in names]
        return {"type": "record", "name": name, "namespace": namespace, "fields": fields}

    about = {
        "type": "record",
        "name": "diaObject",
        "fields": [{"name": "diaObjectId", "type": "long"}]
        + [{"name": n, "type": NULL_FLOAT, "default": None} for n in ("hostgal_zphot", "mwebv", "ra")],
    }
    former = {"type": "array", "items": f"{namespace}.diaSource"}
    forced = {"type": "array", "items": source("diaForcedSource")}
    return {
        "type": "record",
        "name": "alert",
        "namespace": namespace,
        "fields": [
            {"name": "diaSourceId", "type": "long"},
            {"name": "diaSource", "type": source("diaSource")},
            {"name": "prvDiaSources", "type": ["null", former], "default": None},
            {"name": "prvDiaForcedSources", "type": ["null", forced], "default": None},
            {"name": "diaObject", "type": ["null", about], "default": None},
            {"name": "cutoutDifference", "type": ["null", "bytes"], "default": None},
        ],
    }


def lsst_record(names: dict[str, str], oid: int | None = 7, start: int = 3, **about: Any) -> dict[str, Any]:
    def row(t: float, band: str | None, flux: float | None, name: str) -> dict[str, Any]:
        values = {"time": t, "band": band, "flux": flux, "error": 100.0}
        return {f"{name}Id": int(t), "diaObjectId": oid} | {
            names[r]: v for r, v in values.items() if r in names
        }

    former = [row(60000.0 + k, "gri"[k % 3], 1000.0 * (k + 1), "diaSource") for k in range(start)]
    forced = [row(59998.0, "g", 50.0, "diaForcedSource"), row(60001.0, "r", 1900.0, "diaForcedSource")]
    forced += [row(59999.0, "u", None, "diaForcedSource")]
    return {
        "diaSourceId": 1,
        "diaSource": row(60000.0 + start, "z", 5000.0, "diaSource"),
        "prvDiaSources": former,
        "prvDiaForcedSources": forced,
        "diaObject": {"diaObjectId": oid, **about} if oid else None,
        "cutoutDifference": b"x" * 1000,
    }


def write(path: Path, schema: Any, records: list[dict[str, Any]]) -> Path:
    with open(path, "wb") as file:
        fastavro.writer(file, fastavro.parse_schema(schema), records)
    return path


@pytest.mark.parametrize("namespace, names", [("lsst.v11_0", NEW), ("lsst.v3_0", OLD)])
def test_two_majors_of_lsst_read_alike(tmp_path: Path, namespace: str, names: dict[str, str]) -> None:
    path = write(tmp_path / "a.avro", lsst_schema(namespace, names), [lsst_record(names)])
    reading = read_all(path)
    (curve,) = reading.checked()
    assert reading.faults == [] and reading.notes == (f"format: alerts, schema {namespace}",)
    assert (curve.id, curve.status, curve.survey, curve.source) == ("7", OK, "lsst", f"{path}#0")
    assert curve.time.tolist() == [59998.0, 60000.0, 60001.0, 60002.0, 60003.0]
    assert curve.band.tolist() == ["g", "g", "r", "i", "z"]
    np.testing.assert_allclose(curve.flux, np.array([50, 1000, 2000, 3000, 5000]) * 0.0275423, rtol=1e-5)
    assert curve.detected.tolist() == [False, True, True, True, True]
    assert np.isnan(curve.redshift)
    assert "1 point with flux NaN, null or beyond 1e16 dropped" in curve.notes
    assert "1 point of forced photometry at a detection's own time left out" in curve.notes


def test_elasticc_has_its_own_zero_point_and_redshift(tmp_path: Path) -> None:
    record = lsst_record(OLD, hostgal_zphot=0.25, mwebv=0.1)
    path = write(tmp_path / "a.avro", lsst_schema("elasticc.v0_9_1", OLD), [record])
    (curve,) = read_path(path)
    assert curve.flux[1] == pytest.approx(1000.0)
    assert curve.redshift == pytest.approx(0.25)
    assert read_alert(record, namespace="elasticc.v0_9_1").flux[1] == pytest.approx(1000.0)
    (dusted,) = read_path(path, ReadConfig(dust=True))
    assert dusted.flux[1] == pytest.approx(1000.0 * 10 ** (0.4 * 3.237 * 0.1), rel=1e-6)


def test_of_redshifts_the_latest_known_one_counts_with_its_own_error() -> None:
    """−9 and NaN say that there is none."""

    def at(day: int, **about: Any) -> tuple[Packet, str]:
        return packet_of(lsst_record(OLD, start=day, **about), "x", "elasticc.v0_9_1"), ""

    def known(*packets: tuple[Packet, str]) -> tuple[float, float]:
        (curve,) = curves(learn(packets, {}), ReadConfig())
        return curve.redshift, curve.redshift_error

    early = at(1, hostgal_zphot=0.3, hostgal_zphot_err=0.02)
    for none in (-9.0, float("nan"), None):
        assert known(early, at(2, hostgal_zphot=none)) == (0.3, 0.02)
    assert known(at(1, hostgal_zphot=-9.0, z_final=0.31))[0] == 0.31
    for order in (1, -1):
        z, error = known(*[early, at(2, hostgal_zphot=0.9)][::order])
        assert z == 0.9 and np.isnan(error)


def test_a_damaged_alert_is_still_its_objects() -> None:
    odd = lsst_record(NEW, oid=4)
    odd["diaSource"]["midpointMjdTai"] = "x"
    assert (packet_of(odd, "a#0").id, packet_of(odd, "a#0").status) == ("4", UNREADABLE)
    nameless = lsst_record(NEW, oid=None)
    nameless["diaSource"]["diaObjectId"] = float("nan")
    assert packet_of(nameless, "a#0").id == "a#0"


def test_of_ztfs_alerts_the_latest_counts() -> None:
    """Whose forced photometry of one image differs, by the candidate's own date."""

    def at(day: float, flux: float) -> tuple[Packet, str]:
        record = ztf_record()
        record["candidate"]["jd"] += day
        record["fp_hists"][0]["forcediffimflux"] = flux
        return packet_of(record, "x"), ""

    for packets in ([at(1, 100.0), at(2, 200.0)], [at(2, 200.0), at(1, 100.0)]):
        (curve,) = curves(learn(packets, {}), ReadConfig())
        assert curve.flux[0] == pytest.approx(200 * 10**0.4)


def test_unknown_major_lists_what_is_missing_and_reads_the_rest(tmp_path: Path) -> None:
    new = {**NEW, "flux": "differenceFlux"}
    schema = lsst_schema("lsst.v12_0", new)
    reading = read_all(write(tmp_path / "a.avro", schema, [lsst_record(new), lsst_record(new, oid=8)]))
    assert [str(f) for f in reading.faults] == [
        f"{tmp_path}/a.avro: schema major 12; one up to 11; "
        "fields were taken by name; look at the notes of the curves"
    ]
    assert [c.id for c in reading.checked()] == ["7", "8"]
    for curve in reading.curves:
        assert curve.status == UNREADABLE and len(curve) == 0
        assert "missing required fields: diaSource.psfFlux" in curve.notes
        assert "missing required fields: prvDiaForcedSources.psfFlux" in curve.notes
        assert f"raw packet: {curve.source}" in curve.notes
    raw = raw_alert(reading.curves[1].source)
    assert raw["diaSource"]["diaObjectId"] == 8 and len(raw["cutoutDifference"]) == 1000


def test_one_list_without_a_field_leaves_the_others() -> None:
    record = lsst_record(NEW)
    for row in record["prvDiaForcedSources"]:
        del row["psfFluxErr"]
    curve = read_alert(record)
    assert curve.status == OK and len(curve) == 4
    assert "missing required fields: prvDiaForcedSources.psfFluxErr" in curve.notes


def test_no_survey_at_all(tmp_path: Path) -> None:
    schema = {"type": "record", "name": "x", "fields": [{"name": "a", "type": "int"}]}
    (curve,) = read_path(write(tmp_path / "other.avro", schema, [{"a": 1}]))
    assert (curve.id, curve.status) == ("other#0", UNREADABLE)
    assert curve.notes == (
        "missing required fields: diaSource (LSST) or candidate (ZTF)",
        f"raw packet: {tmp_path}/other.avro#0",
    )


def test_solar_system_unknown_band_and_withdrawn_points() -> None:
    record = lsst_record(NEW, oid=None)
    record["diaSource"]["ssObjectId"] = 42
    assert read_alert(record).status == SOLAR_SYSTEM
    record = lsst_record(NEW)
    record["diaSource"]["band"] = "w"
    record["prvDiaSources"][0]["band"] = None
    record["prvDiaSources"][1]["timeWithdrawnMjdTai"] = 60010.0
    curve = read_alert(record)
    assert "1 point in unknown band 'w' dropped (accepted: u, g, r, i, z, y)" in curve.notes
    assert "1 point in unknown band (none given) dropped (accepted: u, g, r, i, z, y)" in curve.notes
    assert "1 point withdrawn by the survey left out" in curve.notes
    assert curve.time.tolist() == [
        59998.0,
        60001.0,
        60002.0,
    ]  # the forced point stands in for the withdrawn one


def test_alerts_of_one_object_become_one_curve_in_any_order_and_number(tmp_path: Path) -> None:
    schema = lsst_schema("lsst.v11_0", NEW)
    alerts = [lsst_record(NEW, start=n) for n in (1, 2, 3)]
    other = lsst_record(NEW, oid=9)
    for name, some in {
        "a": [alerts[0], other, alerts[1], alerts[2]],
        "b": [alerts[2], alerts[0], other, alerts[1], alerts[1]],
    }.items():
        (tmp_path / name).mkdir()
        for index, record in enumerate(some):
            write(tmp_path / name / f"{index}.avro", schema, [record])
    first, second = (read_path(tmp_path / name) for name in "ab")
    assert [c.id for c in first] == [c.id for c in second] == ["7", "9"]
    for one, two in zip(first, second):
        for part in ("time", "band", "flux", "error", "detected"):
            np.testing.assert_array_equal(getattr(one, part), getattr(two, part))
    assert first[0].source.endswith("0.avro#0")


def test_damaged_file_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "a.avro"
    with open(path, "wb") as file:
        schema = fastavro.parse_schema(lsst_schema("lsst.v11_0", NEW))
        fastavro.writer(file, schema, [lsst_record(NEW, oid=k) for k in range(1, 40)], sync_interval=1)
    path.write_bytes(path.read_bytes()[:-500])
    reading = read_all(path)
    *whole, lost = reading.curves
    assert 30 < len(whole) < 39 and {curve.status for curve in whole} == {OK}
    assert f"damaged after {len(whole)} alerts" in str(reading.faults[0])
    assert (lost.id, lost.status, lost.source) == (f"a#{len(whole)}", UNREADABLE, str(path))
    with pytest.raises(DataInvalid, match="copy it again"):
        reading.checked()


# ---------------------------------------------------------------- ZTF


def ztf_schema() -> Any:
    double, text = ["null", "double"], ["null", "string"]
    points = [("jd", "double"), ("fid", "int"), ("magpsf", double), ("sigmapsf", double)]
    points += [("isdiffpos", text), ("diffmaglim", double), ("rb", double)]
    forced = [("jd", "double"), ("fid", "int"), ("forcediffimflux", double)]
    forced += [("forcediffimfluxunc", double), ("magzpsci", double)]

    def record(name: str, fields: list[Any]) -> dict[str, Any]:
        return {"type": "record", "name": name, "fields": [{"name": n, "type": t} for n, t in fields]}

    return record(
        "alert",
        [
            ("objectId", "string"),
            ("candid", "long"),
            ("candidate", record("candidate", points)),
            ("prv_candidates", ["null", {"type": "array", "items": record("prv_candidate", points)}]),
            ("fp_hists", ["null", {"type": "array", "items": record("fp_hist", forced)}]),
            ("cutoutScience", ["null", "bytes"]),
        ],
    ) | {"namespace": "ztf"}


def ztf_record() -> dict[str, Any]:
    def row(day: float, fid: int, mag: float | None, sign: str = "t") -> dict[str, Any]:
        common = {"jd": 2460000.5 + day, "fid": fid, "magpsf": mag, "sigmapsf": None if mag is None else 0.1}
        return {**common, "isdiffpos": sign, "diffmaglim": 20.5, "rb": 0.9}

    forced = [
        {"jd": 2460000.5, "fid": 2, "forcediffimflux": 100.0, "forcediffimfluxunc": 10.0, "magzpsci": 26.5}
    ]
    forced.append({**forced[0], "jd": 2460000.6, "forcediffimflux": -99999.0})
    return {
        "objectId": "ZTF20abcdefg",
        "candid": 5,
        "candidate": row(3.0, 1, 19.0),
        "prv_candidates": [row(0.5, 1, None), row(1.0, 1, 20.0), row(2.0, 2, 20.0, "f"), row(2.1, 4, 20.0)],
        "fp_hists": forced,
        "cutoutScience": b"x",
    }


def test_ztf_alert(tmp_path: Path) -> None:
    path = write(tmp_path / "z.avro", ztf_schema(), [ztf_record()])
    (curve,) = read_path(path)
    assert (curve.id, curve.status, curve.survey) == ("ZTF20abcdefg", OK, "ztf")
    np.testing.assert_allclose(curve.time, [60000.0, 60001.0, 60002.0, 60003.0])
    assert curve.band.tolist() == ["r", "g", "r", "g"]
    np.testing.assert_allclose(curve.flux, [100 * 10**0.4, 1000.0, -1000.0, 10**3.4], rtol=1e-9)
    np.testing.assert_allclose(curve.error[1:] / np.abs(curve.flux[1:]), 0.0921034, rtol=1e-6)
    assert curve.detected.all()
    assert "1 upper limit left out" in curve.notes
    assert "1 point in unknown band '4' dropped (accepted: g, r, i)" in curve.notes
    assert "1 point with flux NaN, null or beyond 1e16 dropped" in curve.notes


def test_ztf_alert_without_history_and_with_a_missing_field() -> None:
    record = {"objectId": "ZTF1", "candidate": ztf_record()["candidate"]}
    assert read_alert(record).status == TOO_FEW
    del record["candidate"]["magpsf"]
    packet = packet_of(record, "x")
    assert packet.status == UNREADABLE and packet.notes == ["missing required fields: candidate.magpsf"]


@pytest.mark.parametrize("time", [60003.0, -1.0, 1e30, 0.0])
def test_a_julian_date_that_is_none_costs_its_point_and_is_told(time: float) -> None:
    record = ztf_record()
    record["candidate"]["jd"] = record["fp_hists"][0]["jd"] = time
    packet = packet_of(record, "x")
    assert packet.at == NEVER
    assert packet.notes[0] == f"cannot be a date: candidate.jd {time:.10g}; a Julian date wanted"
    curve = read_alert(record)
    assert curve.time.tolist() == [60001.0, 60002.0]
    assert "2 points without a date dropped" in curve.notes


def test_lists_may_be_arrays() -> None:
    """As Parquet's columns of lists are read."""
    for record in (lsst_record(NEW), ztf_record()):
        rows = {name: np.array(each) if isinstance(each, list) else each for name, each in record.items()}
        assert any(isinstance(each, np.ndarray) for each in rows.values())
        one, two = read_alert(rows), read_alert(record)
        np.testing.assert_array_equal(one.time, two.time)
        assert (one.status, one.notes) == (two.status, two.notes) and one.status == OK


def test_mixed_surveys_stay_in_order(tmp_path: Path) -> None:
    write(tmp_path / "1.avro", ztf_schema(), [ztf_record()])
    write(tmp_path / "0.avro", lsst_schema("lsst.v11_0", NEW), [lsst_record(NEW)])
    write(tmp_path / "2.avro", lsst_schema("lsst.v11_0", NEW), [lsst_record(NEW, oid=8)])
    assert [(c.id, c.survey) for c in read_path(tmp_path)] == [
        ("7", "lsst"),
        ("ZTF20abcdefg", "ztf"),
        ("8", "lsst"),
    ]


# ---------------------------------------------------------------- containers


def peer(path: Path, schema: Schema) -> list[Any]:
    """What fastavro's own reader decodes of the same fields."""
    with open(path, "rb") as file:
        return list(fastavro.reader(file, reader_schema=schema.read))


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2"])
def test_records_are_those_of_fastavro_whatever_the_packing(tmp_path: Path, codec: str) -> None:
    schema, seen = Schema(), []
    for number, (of, made) in enumerate(
        [(lsst_schema("lsst.v11_0", NEW), [lsst_record(NEW, oid=k) for k in range(1, 30)])] * 2
        + [(ztf_schema(), [ztf_record()]), (lsst_schema("lsst.v3_0", OLD), [lsst_record(OLD)])]
    ):
        path = tmp_path / f"{number}.avro"
        with open(path, "wb") as file:
            fastavro.writer(file, fastavro.parse_schema(of), made, codec=codec, sync_interval=2000)
        with open(path, "rb") as file:
            found = list(records(file, schema, _pruned))
        assert found == peer(path, schema) and len(found) == len(made)
        assert "cutoutDifference" not in found[0] and "snr" not in found[0].get("diaSource", {})
        seen.append(schema.read)
    assert seen[0] is seen[1] and seen[1] is not seen[2]  # parsed once for the two files that share it


@pytest.mark.parametrize("cut", [3, 100, -20, -5])
def test_a_cut_file_is_an_error_wherever_it_is_cut(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "a.avro", lsst_schema("lsst.v11_0", NEW), [lsst_record(NEW)])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises((EOFError, ValueError, IndexError)), open(path, "rb") as file:
        list(records(file, Schema(), _pruned))
