"""Reading tables: every real set, every bad input of the specification, and what no row order may change."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.table import MaskedColumn, Table
from astropy.time import Time
from hypothesis import given
from hypothesis import strategies as st

from astro.transients.lightcurve import NEVER_DETECTED, OK, TOO_FEW, WAVELENGTHS, LightCurve
from astro.transients.points import SNR_RULE
from astro.transients.read import (
    ReadConfig,
    _file,
    _read,
    files_in,
    read_all,
    read_frame,
    read_path,
    read_table,
    read_text,
)
from astro.transients.tables import Table as Columns
from shared.errors import DataInvalid

NJY = ReadConfig(unit="nJy")
PARTS = ("time", "band", "flux", "error", "detected")


def frame(**over: Any) -> pd.DataFrame:
    """Two objects of four good points, fluxes in no stated unit."""
    columns: dict[str, Any] = {
        "object_id": [5, 5, 5, 5, 3, 3, 3, 3],
        "mjd": [60000.0, 60001.0, 60002.0, 60003.0] * 2,
        "band": list("grizgriz"),
        "flux": [100.0, 200.0, 300.0, 250.0] * 2,
        "flux_err": [5.0] * 8,
    }
    return pd.DataFrame({**columns, **over})


def put(table: pd.DataFrame, row: int, **values: Any) -> pd.DataFrame:
    out = table.copy()
    for name, value in values.items():
        out[name] = out[name].astype(object)
        out.loc[row, name] = value
    return out


def said(call: Any) -> str:
    with pytest.raises(DataInvalid) as caught:
        call()
    return str(caught.value)


def assert_same(one: list[LightCurve], two: list[LightCurve]) -> None:
    assert [(c.id, c.status) for c in one] == [(c.id, c.status) for c in two]
    for a, b in zip(one, two):
        for part in PARTS:
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))


# ---------------------------------------------------------------- the real sets


@pytest.mark.parametrize(
    "name, objects, points, labels",
    [
        ("snpcc", 14_923, 1_434_245, {"II": 9400, "Ia": 3562, "Ibc": 1961}),
        (
            "mallorn",
            2_130,
            331_363 - 533,
            {"AGN": 1250, "Ia": 577, "II": 147, "TDE": 104, "Ibc": 35, "SLSN": 17},
        ),
        (
            "ztf_bts",
            1_892,
            68_516 - 357,
            {"Ia": 1397, "II": 265, "Ibc": 137, "IIn": 43, "SLSN": 27, None: 23},
        ),
        (
            "plasticc_full",
            64,
            11_797,
            {"90": 23, "62": 20, "42": 18, "65": 1, "88": 1, "92": 1},
        ),
        (
            "plasticc_reduced",
            553,
            None,
            {"90": 141, "42": 83, "16": 75, "65": 59, "15": 50, "62": 37, "88": 23, "92": 16, "67": 16}
            | {"95": 15, "6": 13, "64": 10, "52": 10, "53": 5},
        ),
    ],
)
def test_real_sets(data_dir: Path, name: str, objects: int, points: int | None, labels: Any) -> None:
    path = data_dir / "astro" / f"{name}_lightcurves.parquet"
    reading = read_all(path)
    curves = reading.checked()
    assert len(curves) == objects and reading.faults == []
    assert points is None or sum(map(len, curves)) == points
    assert Counter(curve.label for curve in curves) == labels
    key = {"snpcc": "SNID", "ztf_bts": "ZTFID"}.get(name, "object_id")
    ids = pd.read_parquet(path, columns=[key])[key].drop_duplicates().astype(str)
    assert [curve.id for curve in curves] == list(ids)
    for curve in curves:
        assert (np.diff(curve.time) >= 0).all() and (curve.error > 0).all() and np.isfinite(curve.flux).all()
        assert set(curve.band) <= set(WAVELENGTHS[curve.survey])


def test_snpcc_reads_no_truth(data_dir: Path) -> None:
    path = data_dir / "astro" / "snpcc_lightcurves.parquet"
    first = read_path(path)[0]
    assert first.redshift == pytest.approx(0.9609) and first.redshift_error == pytest.approx(0.0158)
    truth = said(lambda: read_path(path, ReadConfig(redshift_column="SIM_REDSHIFT")))
    assert truth.endswith(
        "snpcc_lightcurves.parquet:SIM_REDSHIFT: SIM_REDSHIFT is truth; an observed redshift; name another column"
    )


def test_plasticc_galactic_flag_and_dust(data_dir: Path) -> None:
    path = data_dir / "astro" / "plasticc_full_lightcurves.parquet"
    curves = {curve.id: curve for curve in read_path(path, ReadConfig(dust=True))}
    assert curves["615"].redshift == 0.0 and curves["713"].redshift == pytest.approx(1.627)
    assert curves["615"].flux[0] == pytest.approx(-544.810303)
    assert "corrected for dust already by the survey: not corrected again" in curves["615"].notes
    assert len(curves["615"]) == 352 and curves["615"].detected.sum() > 0


def test_ztf_redshift_only_when_named(data_dir: Path) -> None:
    path = data_dir / "astro" / "ztf_bts_lightcurves.parquet"
    assert np.isnan(read_path(path)[0].redshift)
    named = read_path(path, ReadConfig(redshift_column="redshift"))
    assert named[0].redshift == pytest.approx(0.0348)


def test_dust_of_mallorn(data_dir: Path) -> None:
    path = data_dir / "astro" / "mallorn_lightcurves.parquet"
    plain, corrected = read_path(path)[0], read_path(path, ReadConfig(dust=True))[0]
    ratio = (corrected.flux / plain.flux)[corrected.band == "g"]
    np.testing.assert_allclose(ratio, 10 ** (0.4 * 3.237 * 0.11), rtol=1e-9)
    np.testing.assert_allclose(plain.flux[0], -1.630159 * 27.5422870, rtol=1e-6)
    assert "corrected for dust, E(B−V) = 0.11" in corrected.notes


def test_dust_of_ztf(data_dir: Path) -> None:
    """The catalogue has A_V, of which E(B−V) is a 3.1th."""
    path = data_dir / "astro" / "ztf_bts_lightcurves.parquet"
    plain, corrected = read_path(path)[0], read_path(path, ReadConfig(dust=True))[0]
    ratio = (corrected.flux / plain.flux)[corrected.band == "g"]
    np.testing.assert_allclose(ratio, 10 ** (0.4 * 3.172 * 0.092 / 3.1), rtol=1e-9)


def test_shuffled_rows_of_a_real_set_give_the_same_curves(data_dir: Path) -> None:
    folder = data_dir / "astro"
    table, about = (pd.read_parquet(folder / f"ztf_bts_{p}.parquet") for p in ("lightcurves", "metadata"))
    table = table[table.ZTFID.isin(about.ZTFID[:300])]
    config = ReadConfig(objects="metadata")
    mixed = table.sample(frac=1.0, random_state=3)
    assert_same(read_frame(table, config, about), read_frame(mixed, config, about))


# ---------------------------------------------------------------- ids are text


ROWS = "".join(f"{{id}},{60000 + k},{'gr'[k % 2]},{100 + k},5,27.5\n" for k in range(4))
HEAD = "object_id,mjd,band,flux,flux_err,zp\n"


@pytest.mark.parametrize(
    "ids",
    [("170000000000000001", "170000000000000002"), ("00123", "123"), ("12E3", "12000"), ("1.50", "1.5")],
)
@pytest.mark.parametrize("lost", ["", ",60000,g,1,1,27.5\n"])
def test_ids_are_text_whatever_they_look_like(tmp_path: Path, ids: tuple[str, str], lost: str) -> None:
    """Also beside a row without one, for which a column of numbers would be read as decimal ones."""
    text = HEAD + "".join(ROWS.format(id=name) for name in ids) + lost
    (tmp_path / "a.csv").write_text(text)
    for curves in (read_all(tmp_path / "a.csv").curves, read_text(text)):
        assert [(c.id, len(c)) for c in curves] == [(name, 4) for name in ids]


def test_whole_numbers_as_ids_keep_their_digits(tmp_path: Path) -> None:
    names = [170000000000000001] * 4 + [170000000000000002] * 4
    columns = frame(zp=27.5).drop(columns="object_id").to_dict("list")
    ids = pa.array([*names[:7], None], pa.int64())
    pq.write_table(
        pa.table({"object_id": ids, **{k: pa.array(v) for k, v in columns.items()}}), tmp_path / "a.parquet"
    )
    masked = Table({"object_id": MaskedColumn(names, mask=[False] * 7 + [True]), **columns})
    for curves in (read_all(tmp_path / "a.parquet").curves, read_table(masked)):
        assert [(c.id, len(c)) for c in curves] == [("170000000000000001", 4), ("170000000000000002", 3)]
    lost = said(lambda: read_frame(frame(object_id=[1.7e17] * 4 + [np.nan] * 4, zp=27.5)))
    assert "whose last digits are lost; whole numbers or text" in lost
    assert [c.id for c in read_frame(frame(object_id=[615.0] * 4 + [3.0] * 4, zp=27.5))] == ["615", "3"]


def test_text_that_is_not_utf8_and_columns_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes((HEAD + ROWS.format(id="é") + ROWS.format(id="è")).encode("latin-1"))
    line = f"{path}: text that is not UTF-8; UTF-8; write the table in UTF-8"
    assert said(lambda: read_path(path)) == line
    path.write_bytes(b"\xb0\xff,\xfe\n\xb0,1,\xb0\n")  # no text at all, and a row of another width
    assert said(lambda: read_path(path)) == line
    path.write_text(HEAD.replace("zp", "flux") + ROWS.format(id="a"))
    assert (
        said(lambda: read_path(path)) == f"{path}:flux: two columns flux; one of a name; rename or drop one"
    )


# ---------------------------------------------------------------- spec section 8, row by row


def test_absent_dates_and_sentinels_among_times() -> None:
    dates = pd.to_datetime(["2023-02-25", "2023-02-26", "2023-02-27", None] * 2)
    first = read_frame(frame(mjd=dates), NJY)[0]
    assert (
        first.time.tolist() == [60000.0, 60001.0, 60002.0] and "1 point without a date dropped" in first.notes
    )
    for odd in (0.0, -999.0, 2e6):
        first = read_frame(put(frame(), 0, mjd=odd), NJY)[0]
        assert first.time.tolist() == [60001.0, 60002.0, 60003.0]
        assert "1 times in mjd are no dates: their points left out" in first.notes
    counted = read_frame(frame(mjd=[0.0, 1.0, 2.0, 3.0] * 2), NJY)[0]  # from an object's first point
    assert counted.time.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_units_of_times_and_of_magnitude_errors() -> None:
    table = Table.from_pandas(frame(zp=27.5))
    table["mjd"] = (table["mjd"] * 24).astype(float)
    table["mjd"].unit = units.h
    assert read_table(table)[0].time.tolist() == [60000.0, 60001.0, 60002.0, 60003.0]
    table["mjd"].unit = units.m
    assert said(lambda: read_table(table)).startswith("table:mjd: unit m; a unit of time")
    renamed = {"flux": "mag", "flux_err": "mag_err"}
    table = Table.from_pandas(frame(flux=[20.0] * 8, flux_err=[50.0] * 8).rename(columns=renamed))
    table["mag"].unit, table["mag_err"].unit = units.mag, units.mmag
    first = read_table(table)[0]
    assert first.flux[0] == pytest.approx(1000.0)
    assert first.error[0] == pytest.approx(0.05 * 0.4 * np.log(10) * 1000)
    table["mag"].unit = "mag(ST)"
    assert said(lambda: read_table(table)).startswith("table:mag: unit mag(st); AB magnitudes")


def test_signs_of_difference_magnitudes() -> None:
    table = frame(flux=[20.0] * 8).rename(columns={"flux": "magpsf", "flux_err": "sigmapsf"})
    for negative in ("f", -1, "-1", False):
        first = read_frame(table.assign(isdiffpos=pd.Series(["t", negative] * 4, dtype=object)))[0]
        np.testing.assert_allclose(first.flux, [1000.0, -1000.0] * 2)
    assert "4 differences negative by isdiffpos" in first.notes


def test_names_like_plasticcs_with_other_bands_are_no_plasticc() -> None:
    """So that no zero point is taken for granted."""
    table = frame().rename(columns={"band": "passband"})
    assert "no unit for flux" in said(lambda: read_frame(table))
    numbered = table.assign(passband=[0, 1, 2, 3] * 2)
    assert read_frame(numbered)[0].band.tolist() == list("ugri")
    assert "no unit for flux" in said(lambda: read_frame(numbered, ReadConfig(survey="des")))


def test_an_object_twice_in_the_metadata_is_said() -> None:
    about = pd.DataFrame({"object_id": [5, 3, 5], "label": ["a", "b", "c"]})
    found = _read(Columns(frame(zp=27.5)), ReadConfig(), about, "x")
    assert [c.label for c in found.curves] == ["c", "b"]
    assert "1 rows of the metadata on objects that have one already" in str(found.faults[0])


def test_metadata_is_what_lies_beside_a_table_by_its_name(tmp_path: Path) -> None:
    about = pd.DataFrame({"object_id": [3, 5], "redshift": [0.1, 0.2]})
    for name in ("a_lightcurves.csv", "light_curves.csv", "curves_and_metadata.csv"):
        frame(zp=27.5).to_csv(tmp_path / name, index=False)
    for name in ("a_metadata.csv", "metadata.csv", "b_metadata.csv"):
        about.to_csv(tmp_path / name, index=False)
    _, files = files_in(tmp_path, ReadConfig())
    assert [file.name for file in files] == [
        *("a_lightcurves.csv", "b_metadata.csv", "curves_and_metadata.csv", "light_curves.csv")
    ]
    read = {file.name: _file(file, ReadConfig()) for file in files}
    assert "b_metadata.csv" in str(read["b_metadata.csv"].faults[0])  # no pair of anything: said
    assert read["curves_and_metadata.csv"].curves[0].redshift != 0.2
    assert [read[name].curves[0].redshift for name in ("a_lightcurves.csv", "light_curves.csv")] == [0.2, 0.2]


def test_text_among_numbers_is_named_once() -> None:
    table = put(put(put(frame(zp=27.5), 1, flux="bright"), 6, flux="12,5"), 2, flux="null")
    about = pd.DataFrame({"object_id": [3, 5], "redshift": ["far", 0.1]})
    found = _read(Columns(put(table, 3, mjd="--")), ReadConfig(), about, "x")
    assert [str(fault) for fault in found.faults] == [
        "x:redshift: 'far' of 3; numbers; taken as absent",
        "x:flux: 'bright' in row 2 and 1 more; numbers; taken as absent",
    ]
    assert [len(curve) for curve in found.curves] == [1, 3] and found.curves[0].redshift == 0.1


def test_several_labels_of_an_object_are_said() -> None:
    table = frame(zp=27.5, label=["Ia", "Ia", "II", "Ib", None, "II", "II", "II"])
    found = _read(Columns(table), ReadConfig(), None, "x")
    assert [c.label for c in found.curves] == ["Ia", "II"]
    assert [str(fault) for fault in found.faults] == [
        "x:label: 1 object whose rows have several labels; the first counts"
    ]


def test_unsorted_times_are_sorted_once_and_said() -> None:
    table = frame(mjd=[60002.0, 60001.0, 60000.0, 60003.0, 60000.0, 60001.0, 60002.0, 60003.0])
    first, second = read_frame(table, NJY)
    assert first.time.tolist() == [60000.0, 60001.0, 60002.0, 60003.0] and first.band.tolist() == list("irgz")
    assert first.notes.count("times were not in order: sorted") == 1
    assert "times were not in order: sorted" not in second.notes


def test_duplicates() -> None:
    table = pd.concat([frame(), frame().iloc[[1]].assign(flux=400.0), frame().iloc[[2]]])
    last, _ = read_frame(table, ReadConfig(unit="nJy", duplicates="last"))
    assert "1 point delivered twice left out" in last.notes
    assert "1 point replaced by a later row of the same band and time" in last.notes
    np.testing.assert_allclose(last.flux[1] / last.flux[0], 4.0)
    merged, _ = read_frame(table, NJY)
    assert "1 point merged with the same band and time" in merged.notes
    np.testing.assert_allclose(merged.flux[1] / merged.flux[0], 3.0)
    np.testing.assert_allclose(merged.error, merged.error[0])
    table["flux_err"] = np.where(table.flux == 400.0, 10.0, 5.0)
    weighted, _ = read_frame(table, NJY)
    np.testing.assert_allclose(weighted.flux[1] / weighted.flux[0], (200 * 4 + 400) / 5 / 100)


@pytest.mark.parametrize("name", ["w", "7", "clear"])
def test_unknown_band(name: str) -> None:
    first, second = read_frame(put(frame(), 1, band=name), NJY)
    assert f"1 point in unknown band '{name}' dropped (accepted: u, g, r, i, z, y)" in first.notes
    assert first.status == OK and len(first) == 3 and len(second) == 4


@pytest.mark.parametrize(
    "values, note",
    [
        ({"flux_err": 0.0}, "1 point with error ≤ 0, NaN or beyond 1e16 dropped"),
        ({"flux_err": -1.0}, "1 point with error ≤ 0, NaN or beyond 1e16 dropped"),
        ({"flux_err": np.nan}, "1 point with error ≤ 0, NaN or beyond 1e16 dropped"),
        ({"flux_err": np.inf}, "1 point with error ≤ 0, NaN or beyond 1e16 dropped"),
        ({"flux": np.nan}, "1 point with flux NaN, null or beyond 1e16 dropped"),
        ({"flux": None}, "1 point with flux NaN, null or beyond 1e16 dropped"),
        ({"flux": "bad"}, "1 point with flux NaN, null or beyond 1e16 dropped"),
        ({"mjd": np.nan}, "1 point without a date dropped"),
        ({"band": None}, "1 point in unknown band (none given) dropped (accepted: u, g, r, i, z, y)"),
    ],
)
def test_bad_points_are_dropped_and_counted(values: dict[str, Any], note: str) -> None:
    first, second = read_frame(put(frame(), 2, **values), NJY)
    assert note in first.notes and len(first) == 3 and first.status == OK
    assert note not in second.notes and len(second) == 4


def test_too_few_points_and_one_epoch_keep_their_row() -> None:
    few = put(put(frame(), 0, flux=np.nan), 1, flux=np.nan)
    assert [c.status for c in read_frame(few, NJY)] == [TOO_FEW, OK]
    none = frame(flux=[np.nan] * 4 + [1e3] * 4)
    first, _ = read_frame(none, NJY)
    assert (
        first.status == TOO_FEW
        and len(first) == 0
        and "4 points with flux NaN, null or beyond 1e16 dropped" in first.notes
    )
    once = frame(mjd=[60000.0] * 4 + [60000.0, 60001.0, 60002.0, 60003.0])
    assert [c.status for c in read_frame(once, NJY)] == [TOO_FEW, OK]


def test_magnitudes_given_as_fluxes() -> None:
    table = frame(flux=[18.0, 19.0, 20.0, 21.0] * 2, flux_err=[0.1] * 8)
    assert said(lambda: read_frame(table, NJY)) == (
        "frame:flux: all values between 10 and 30 with errors below 1: magnitudes given as fluxes?; fluxes; "
        "set data.read.unit=mag to convert them; data.read.check_magnitudes=false if they are fluxes"
    )
    first = read_frame(table, ReadConfig(unit="mag"))[0]
    np.testing.assert_allclose(first.flux, 10 ** (0.4 * (27.5 - np.array([18.0, 19, 20, 21]))))
    assert "magnitudes taken as AB, to flux at zero point 27.5" in first.notes
    assert len(read_frame(table, ReadConfig(unit="nJy", check_magnitudes=False))) == 2


def test_a_table_without_a_unit_asks_for_one() -> None:
    assert said(lambda: read_frame(frame())) == (
        "frame:flux: no unit for flux; a unit, as the table has none; "
        "set data.read.unit (nJy, uJy, mJy, Jy, mag) or data.read.zero_point (27.5 for PLAsTiCC and FLUXCAL)"
    )


@pytest.mark.parametrize(
    "config, factor",
    [
        ({"unit": "nJy"}, 0.0275423),
        ({"unit": "uJy"}, 27.5423),
        ({"zero_point": 27.5}, 1),
        ({"zero_point": 25}, 10),
    ],
)
def test_units(config: dict[str, Any], factor: float) -> None:
    first = read_frame(frame(), ReadConfig(**config))[0]
    np.testing.assert_allclose(first.flux, factor * np.array([100.0, 200, 300, 250]), rtol=1e-6)
    np.testing.assert_allclose(first.error, factor * 5.0, rtol=1e-6)


def test_columns_that_say_their_unit() -> None:
    named = read_frame(frame().rename(columns={"flux": "FLUXCAL", "flux_err": "FLUXCALERR"}))
    assert named[0].flux[0] == 100.0
    magnitudes = frame(flux=[20.0] * 8).rename(columns={"flux": "mag", "flux_err": "mag_err"})
    assert read_frame(magnitudes)[0].flux[0] == pytest.approx(1000.0)


def test_mixed_zero_points() -> None:
    table = frame(zp=[25.0] * 4 + [27.5] * 4)
    assert said(lambda: read_frame(table)) == (
        "frame:zp: mixed zero points: 25 and 27.5; one in a table; "
        "convert them to one, or set data.read.zero_point_column=zp to have each row converted"
    )
    first, second = read_frame(table, ReadConfig(zero_point_column="zp"))
    assert (first.flux[0], second.flux[0]) == (pytest.approx(1000.0), pytest.approx(100.0))
    assert read_frame(frame(zp=25.0))[0].flux[0] == pytest.approx(1000.0)
    assert "two zero points: unit=nJy and column zp (25)" in said(lambda: read_frame(frame(zp=25.0), NJY))
    # Where one is missing it may have been another.
    first, second = read_frame(frame(zp=[25.0] * 4 + [np.nan] * 4))
    assert first.flux[0] == pytest.approx(1000.0) and second.status == TOO_FEW
    assert "4 rows without a zero point in zp, where others have one: left out" in first.notes


def test_no_detection_flag_and_no_detections() -> None:
    first = read_frame(frame(flux=[24.0, 26.0, -26.0, 0.0] * 2), NJY)[0]
    assert first.detected.tolist() == [False, True, True, False] and SNR_RULE in first.notes
    faint = read_frame(frame(flux=[1.0] * 4 + [100.0] * 4), NJY)
    assert [c.status for c in faint] == [NEVER_DETECTED, OK] and len(faint[0]) == 4
    flagged = read_frame(frame(detected=[0, 0, 0, 0, 1, 0, 0, 0]), NJY)
    assert [c.status for c in flagged] == [NEVER_DETECTED, OK]
    words = read_frame(frame(detected=["True", "False", None, "t"] * 2), NJY)[0]
    assert words.detected.tolist() == [True, False, True, True]  # the third by its 60 errors


@pytest.mark.parametrize("z", [-9.0, -99.0, -0.1, np.nan, 0.0])
def test_absent_redshifts(z: float) -> None:
    about = pd.DataFrame({"object_id": [5, 3], "redshift": [z, 0.5], "redshift_err": [0.1, -9.0]})
    first, second = read_frame(frame(), NJY, about)
    assert np.isnan(first.redshift) and np.isnan(first.redshift_error)
    assert second.redshift == 0.5 and np.isnan(second.redshift_error)
    assert (f"redshift {z:g} taken as absent" in first.notes) == (not np.isnan(z))


@pytest.mark.parametrize(
    "times, found",
    [
        (
            [2460000.5, 2460001.5, 2460002.5, 2460003.5],
            "look like Julian dates (JD = MJD + 2400000.5); MJD; set data.read.time=jd",
        ),
        (
            [5.184e9, 5.1841e9, 5.1842e9, 5.1843e9],
            "look like MJD in seconds; MJD; set data.read.time=mjd_seconds",
        ),
        (
            [1.7e9, 1.70001e9, 1.70002e9, 1.7001e9],
            "look like seconds since 1970 (Unix or TAI); MJD; set data.read.time=unix",
        ),
        (
            [1.7e18, 1.7001e18, 1.7002e18, 1.7003e18],
            "look like nanoseconds since 1970 (TAI or Unix); MJD; set data.read.time=nano",
        ),
    ],
)
def test_times_that_are_no_mjd(times: list[float], found: str) -> None:
    text = said(lambda: read_frame(frame(mjd=times * 2), NJY))
    assert text.startswith("frame:mjd: values ") and "cannot be MJD; they " + found in text


def test_times_told_or_named() -> None:
    table = frame(mjd=np.array([0.0, 1, 2, 3] * 2) + 2460000.5)
    assert read_frame(table, ReadConfig(unit="nJy", time="jd"))[0].time[0] == 60000.0
    assert read_frame(table.rename(columns={"mjd": "hjd"}), NJY)[0].time[0] == 60000.0
    mixed = put(frame(), 0, mjd=2460000.5)
    assert "values 60000 to 2460000.5 cannot be MJD alone; one kind of time" in said(
        lambda: read_frame(mixed, NJY)
    )
    told = ReadConfig(unit="nJy", time="jd")
    assert "values below 2400000; Julian dates, as told" in said(lambda: read_frame(frame(), told))
    dates = frame(mjd=pd.to_datetime(["2023-02-25", "2023-02-26", "2023-02-27", "2023-02-28"] * 2))
    assert read_frame(dates, NJY)[0].time.tolist() == [60000.0, 60001.0, 60002.0, 60003.0]


@pytest.mark.parametrize(
    "column, role", [("object_id", "id"), ("mjd", "time"), ("band", "band"), ("flux_err", "error")]
)
def test_missing_columns(column: str, role: str) -> None:
    text = said(lambda: read_frame(frame().drop(columns=column), NJY))
    assert text.startswith(f"frame:{role}: no column of {role}s; a column of {role}s")
    assert f"name it in data.read.{role}_column (columns: " in text
    renamed = frame().rename(columns={column: "odd"})
    assert_same(
        read_frame(renamed, ReadConfig(unit="nJy", **{f"{role}_column": "odd"})), read_frame(frame(), NJY)
    )


@pytest.mark.parametrize("column", ["SIM_REDSHIFT", "true_z", "tflux_u", "SNTYPE", "libid_cadence"])
def test_truth_is_never_a_feature(column: str) -> None:
    table = frame(**{column: 0.5})
    assert np.isnan(read_frame(table, NJY)[0].redshift)
    config = ReadConfig(unit="nJy", redshift_column=column)
    assert f"{column} is truth; an observed redshift" in said(lambda: read_frame(table, config))


def test_rows_without_an_id_and_ids_written_differently() -> None:
    table = put(put(frame(), 0, object_id=None), 5, object_id="3 ")
    reading_ids = [c.id for c in read_frame(table, NJY)]
    assert reading_ids == ["5", "3"] and len(read_frame(table, NJY)[1]) == 4


def test_metadata_order_absent_objects_and_second_entries() -> None:
    about = pd.DataFrame({"object_id": [3, 8, 3], "redshift": [0.1, 0.2, 0.3], "class": ["Ia", "II", "Ia"]})
    kept = read_frame(frame(), NJY, about)
    assert [(c.id, c.label) for c in kept] == [("5", None), ("3", "Ia")] and kept[1].redshift == 0.3
    every = read_frame(frame(), ReadConfig(unit="nJy", objects="metadata"), about)
    assert [(c.id, c.status, len(c)) for c in every] == [("3", OK, 4), ("8", TOO_FEW, 0), ("5", OK, 4)]
    nameless = put(frame(), 0, object_id=None)
    every = read_frame(nameless, ReadConfig(unit="nJy", objects="metadata"), about)
    assert [(c.id, len(c)) for c in every] == [("3", 4), ("8", 0), ("5", 3)]


# ---------------------------------------------------------------- what no order and no frame may change


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["b", "a", "c", 7]),
            st.one_of(st.floats(0, 70000), st.just(float("nan"))),
            st.sampled_from(["u", "r", "Y", "lsstg", "w", None]),
            st.one_of(st.floats(), st.none()),
            st.one_of(st.floats(), st.none()),
        ),
        max_size=30,
    ),
    st.sampled_from(["merge", "last"]),
    st.randoms(use_true_random=False),
)
def test_any_frame_gives_one_sound_curve_an_object_in_order(rows: list[Any], how: Any, random: Any) -> None:
    names = ["id", "mjd", "band", "flux", "flux_err"]
    config = ReadConfig(unit="nJy", duplicates=how, check_magnitudes=False)
    curves = read_frame(pd.DataFrame(rows, columns=names), config)
    assert [c.id for c in curves] == list(dict.fromkeys(str(row[0]) for row in rows))
    for curve in curves:
        assert (np.diff(curve.time) >= 0).all() and (curve.error > 0).all()
        assert np.isfinite(np.concatenate([curve.time, curve.flux, curve.error])).all()
        assert len(set(zip(curve.time, curve.band))) == len(curve)
    if how == "merge":
        random.shuffle(rows)
        again = {c.id: c for c in read_frame(pd.DataFrame(rows + rows[:3], columns=names), config)}
        assert_same(curves, [again[c.id] for c in curves])


# ---------------------------------------------------------------- files and astropy tables


def test_plasticc_csv_pairs_by_kaggle_and_unblinded_names(tmp_path: Path, data_dir: Path) -> None:
    folder = data_dir / "astro"
    table = pd.read_parquet(folder / "plasticc_full_lightcurves.parquet").drop(columns="origin")
    about = pd.read_parquet(folder / "plasticc_train_metadata.parquet")
    wanted = read_path(folder / "plasticc_full_lightcurves.parquet")
    blinded = about[["object_id", "hostgal_photoz", "hostgal_photoz_err", "mwebv", "target"]]
    table.rename(columns={"detected_bool": "detected"}).to_csv(tmp_path / "training_set.csv", index=False)
    blinded.to_csv(tmp_path / "training_set_metadata.csv", index=False)
    table.to_csv(tmp_path / "plasticc_train_lightcurves.csv.gz", index=False)
    about.drop(columns="target").to_csv(tmp_path / "plasticc_train_metadata.csv.gz", index=False)
    for name in ("training_set.csv", "plasticc_train_lightcurves.csv.gz"):
        reading = read_all(tmp_path / name)
        assert_same(reading.checked(), wanted)
        assert [c.label for c in reading.curves] == [c.label for c in wanted]
        assert reading.notes[0] == "format: plasticc, bands of lsst"
        assert reading.notes[-1].startswith("metadata: ")


def test_folder_of_tables(tmp_path: Path) -> None:
    frame().to_parquet(tmp_path / "b.parquet")
    frame().assign(object_id=[5] * 4 + [9] * 4).to_csv(tmp_path / "c.csv", index=False)
    reading = read_all(tmp_path, NJY)
    assert [c.id for c in reading.checked()] == ["5", "3", "c/5", "9"]
    assert [str(f) for f in reading.faults] == [
        f"{tmp_path}/c.csv: 1 objects named as in an earlier file; called c/… in the output"
    ]
    (tmp_path / "e").mkdir()
    assert "none of 0 files is *.csv" in said(lambda: read_path(tmp_path / "e"))


def test_csv_with_broken_rows_and_words_among_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = frame().to_csv(index=False).splitlines()
    lines[3] += ",1,2"
    lines[6] = lines[6].replace("200.0", "oops")
    path.write_text("\n".join(lines) + "\n")
    reading = read_all(path, NJY)
    assert [len(c) for c in reading.checked()] == [3, 3]
    assert "1 rows without one value a column (rows 4); one value a column; left out" in str(
        reading.faults[0]
    )


@pytest.mark.parametrize(
    "name, content, found",
    [
        ("a.csv", b"", "empty file"),
        ("a.csv", b"\x00\x01\x02 binary", "neither text nor a known kind of table"),
        ("a.parquet", b"PAR1 then nothing", "cannot be read"),
        ("a.fits", b"SIMPLE  =                    T", "cannot be read"),
        ("a.csv.gz", gzip.compress(b"object_id,mjd\n" * 400, mtime=0)[:-20], ""),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert found in said(lambda: read_path(tmp_path / name, NJY))
    assert "No such file" in said(lambda: read_path(tmp_path / "absent.csv"))


def astropy_table() -> Table:
    table = Table.from_pandas(frame(band=list("grizgriz")))
    table["flux"].unit, table["flux_err"].unit = units.uJy, units.nJy
    return table


def test_astropy_units_count_column_by_column(tmp_path: Path) -> None:
    first = read_table(astropy_table())[0]
    np.testing.assert_allclose(first.flux[0], 2754.23, rtol=1e-5)
    np.testing.assert_allclose(first.error[0], 5 * 0.0275423, rtol=1e-5)
    for name in ("t.fits", "t.ecsv"):
        astropy_table().write(tmp_path / name)
        assert_same(read_path(tmp_path / name), read_table(astropy_table()))
    assert "two zero points: unit=nJy and the column's unit uJy" in said(
        lambda: read_table(astropy_table(), NJY)
    )
    odd = astropy_table()
    odd["flux"].unit = units.adu
    assert "table:flux: unit adu; a flux density (nJy, uJy, Jy) or mag" in said(lambda: read_table(odd))


def test_astropy_times_masks_and_one_object_tables() -> None:
    table = astropy_table()[:4]
    table.remove_columns(["object_id", "mjd"])
    table["time"] = Time([2460000.5, 2460001.5, 2460002.5, 2460003.5], format="jd", scale="tai")
    table["flux"] = MaskedColumn([100.0, 200, 300, 400], mask=[0, 0, 0, 1], unit=units.uJy)
    table.meta = {"name": "SN 2011fe", "z": 0.0008, "mwebv": 0.01}
    (curve,) = read_table(table)
    assert (curve.id, curve.redshift, len(curve)) == ("SN 2011fe", 0.0008, 3)
    assert curve.time.tolist() == [60000.0, 60001.0, 60002.0]
    table.meta = {}
    assert "no column of ids" in said(lambda: read_table(table))
    assert read_table(table, ReadConfig(id_column=""), source="x/sn1.ecsv")[0].id == "sn1"


def test_unit_and_zero_point_together_are_refused() -> None:
    with pytest.raises(ValueError, match="give one"):
        ReadConfig(unit="nJy", zero_point=27.5)
