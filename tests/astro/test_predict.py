"""Answers: one row an object whatever is wrong with it, and nothing beside an object changes what is said of it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from astro.transients.config_read import ReadConfig
from astro.transients.lightcurve import NEVER_DETECTED, OK, SOLAR_SYSTEM, TOO_FEW, UNREADABLE, LightCurve
from astro.transients.pipeline import PIPELINE
from astro.transients.predict import TransientsPredictor
from astro.transients.read import read_frame, read_path
from astro.transients.sample import CLASSES, simulate, to_frame
from astro.transients.tables import about_rows
from astro.transients.threads import in_threads
from pipelines.batch import exit_code, predict_batch
from shared.bench.real_data import data_root
from shared.bundle import Bundle
from shared.errors import DataInvalid, ItemError, UsageError
from tests.astro.bundles import random_bundle
from tests.astro.test_alerts import NEW, lsst_record, lsst_schema, write

P = [f"p_{name}" for name in CLASSES]
BUILTIN = PIPELINE.folder / "builtin"
SHIPPED = [BUILTIN, *sorted(each for each in BUILTIN.iterdir() if each.is_dir())]
SCORES = ["doubt", "energy", "distance"]


def made(bundle: Bundle, **options: Any) -> TransientsPredictor:
    predictor = PIPELINE.predictor(bundle, options)
    assert isinstance(predictor, TransientsPredictor)
    return predictor


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return random_bundle(tmp_path_factory.mktemp("model") / "bundle")


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> TransientsPredictor:
    return made(bundle)


# ---------------------------------------------------------------- nothing beside an object counts


def real_or_simulated(count: int) -> tuple[list[LightCurve], str]:
    """Curves of SNPCC where they are at hand, and the survey."""
    path = data_root() / "astro" / "snpcc_lightcurves.parquet"
    if not path.is_file():
        return simulate(count, 7), "lsst"
    table = pd.read_parquet(path)
    chosen = table["SNID"].unique()[::20][:count]
    return read_frame(table[table["SNID"].isin(chosen)]), "des"


def test_alone_and_among_512(tmp_path: Path) -> None:
    curves, survey = real_or_simulated(512)
    predictor = made(random_bundle(tmp_path / "bundle", survey))
    together = predictor.table(curves)
    assert len(together) == 512 and (together["status"] == OK).mean() > 0.9
    assert together[P].std().min() > 1e-3  # objects differ
    for row in range(0, 512, 37):
        alone = predictor.table([curves[row]])
        np.testing.assert_allclose(alone[P], together[P].iloc[[row]], rtol=0, atol=1e-5)
        np.testing.assert_allclose(alone[SCORES], together[SCORES].iloc[[row]], rtol=1e-3, atol=1e-4)


def test_order_of_rows_and_objects_changes_nothing(predictor: TransientsPredictor) -> None:
    frame = to_frame(simulate(40, 3))
    frame = pd.concat([frame, frame.iloc[::9].assign(flux=lambda f: f["flux"] * 1.05)])  # measured twice
    first = predictor.table(read_frame(frame)).set_index("id")
    for seed in range(2):
        mixed = frame.sample(frac=1, random_state=seed)
        again = predictor.table(read_frame(mixed)).set_index("id")
        assert list(again.index) != list(first.index)
        again = again.loc[first.index]
        np.testing.assert_allclose(again[P], first[P], rtol=0, atol=1e-6)
        assert (
            again[["class", "status", "points", "bands"]] == first[["class", "status", "points", "bands"]]
        ).all(axis=None)


def test_batches_and_threads_change_nothing(bundle: Bundle, predictor: TransientsPredictor) -> None:
    curves = simulate(50, 5)
    first, ticks = predictor.table(curves), []
    torch.set_num_threads(3)
    try:
        second = made(bundle, batch=8).table(curves, lambda done, total: ticks.append((done, total)))
    finally:
        torch.set_num_threads(1)
    pd.testing.assert_frame_equal(first, second, rtol=0, atol=1e-6)
    usable = int((first["class"] != "").sum())
    assert ticks[-1] == (usable, usable) and len(ticks) == -(-usable // 8)


def test_in_threads_takes_every_curve_once_the_longest_first_and_tells_of_errors() -> None:
    curves = [replace(simulate(1, 0)[0], id=str(i), time=np.arange(float(i % 7))) for i in range(23)]
    parts = list(in_threads(lambda some: [curve.id for curve in some], curves, 4))
    assert [ids for _, ids in parts] == [[str(i) for i in rows] for rows, _ in parts]
    places = np.concatenate([rows for rows, _ in parts])
    assert sorted(places) == list(range(23)) and [len(rows) for rows, _ in parts] == [4] * 5 + [3]
    assert (np.diff([len(curves[i]) for i in places]) <= 0).all()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            list(in_threads(lambda some: 1 // 0, curves, 4))
    finally:
        torch.set_num_threads(1)
    assert list(in_threads(len, [], 4)) == []


# ---------------------------------------------------------------- one row an object


def object_rows(oid: int, rows: Sequence[tuple[float, str, float, float]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["mjd", "band", "flux", "flux_err"])
    return table.assign(object_id=oid, zero_point=27.5, redshift=np.nan)


def good(bands: str = "ugrizy", n: int = 24, flux: float = 300.0) -> list[tuple[float, str, float, float]]:
    days = np.arange(n) * 3.0
    shape = flux * np.exp(-0.5 * ((days - 30) / 12) ** 2)
    return [(60_000 + d, bands[i % len(bands)], f, 5.0) for i, (d, f) in enumerate(zip(days, shape))]


def spoiled(rows: list[tuple[float, str, float, float]], **to: Any) -> list[tuple[float, str, float, float]]:
    """Every third row with other values."""
    names = ("mjd", "band", "flux", "flux_err")
    return [
        tuple(to.get(name, value) for name, value in zip(names, row)) if i % 3 == 0 else row  # type: ignore[misc]
        for i, row in enumerate(rows)
    ]


WRONG: dict[int, tuple[list[tuple[float, str, float, float]], str, bool, str]] = {
    9: (good(), OK, True, ""),
    3: (good()[:2], TOO_FEW, False, ""),
    8: ([(60_000.0, band, 100.0, 5.0) for band in "ugriz"], TOO_FEW, False, ""),
    1: ([(t, b, 2.0, e) for t, b, _, e in good()], NEVER_DETECTED, False, ""),
    7: (spoiled(good(), flux=np.nan), OK, True, "8 points with flux NaN, null or beyond 1e16 dropped"),
    2: (
        [(t, b, np.nan, e) for t, b, _, e in good()],
        TOO_FEW,
        False,
        "24 points with flux NaN, null or beyond 1e16 dropped",
    ),
    6: (
        spoiled(good(), flux_err=0.0),
        OK,
        True,
        "8 points with error ≤ 0, NaN or beyond 1e16 dropped",
    ),
    5: (
        spoiled(good("gri"), band="w"),
        OK,
        True,
        "8 points in unknown band 'w' dropped (accepted: u, g, r, i, z, y)",
    ),
    4: (
        [(t, "K", f, e) for t, _, f, e in good()],
        TOO_FEW,
        False,
        "24 points in unknown band 'K' dropped (accepted: u, g, r, i, z, y)",
    ),
    11: (good()[::-1], OK, True, "times were not in order: sorted"),
    10: (good() * 2, OK, True, "times were not in order: sorted; 24 points delivered twice left out"),
}
"""Object → its rows, and what is said of it: status, whether it is classified, notes."""


def test_one_row_an_object_in_input_order_whatever_is_wrong(predictor: TransientsPredictor) -> None:
    frame = pd.concat([object_rows(oid, rows) for oid, (rows, *_) in WRONG.items()], ignore_index=True)
    table = predictor.table(read_frame(frame))
    assert list(table["id"]) == [str(oid) for oid in WRONG]
    np.testing.assert_allclose(table[P].sum(axis=1), 1)
    assert (table[P] >= 0).all(axis=None)
    for row, (_, status, classified, note) in zip(table.itertuples(), WRONG.values()):
        assert (row.status, row.notes) == (status, note), row
        assert (row._3 in CLASSES) if classified else (row._3 == ""), row  # the column `class`
        probability = table.loc[row.Index, P].to_numpy(float)
        assert np.allclose(probability, predictor.priors) != classified
        assert np.isnan(table.loc[row.Index, SCORES].to_numpy(float)).all() != classified
        assert (row.fit == "") != classified
    same = table.set_index("id").loc[["9", "11", "10"], P]  # in disorder, twice: the same object
    np.testing.assert_allclose(same.iloc[1:], same.iloc[[0, 0]], rtol=0, atol=1e-6)
    assert list(table.set_index("id").loc[["9", "5", "4"], "bands"]) == ["ugrizy", "ri", ""]
    assert list(table.set_index("id").loc[["9", "7", "10"], "points"]) == [24, 16, 24]


def test_an_object_is_not_worse_for_points_in_an_unknown_band(predictor: TransientsPredictor) -> None:
    extra = [(60_001.0 + 3 * i, "w", 1e4, 5.0) for i in range(20)]
    frame = pd.concat([object_rows(1, good("gri")), object_rows(2, good("gri") + extra)])
    table = predictor.table(read_frame(frame))
    np.testing.assert_allclose(table[P].iloc[1], table[P].iloc[0], rtol=0, atol=1e-6)
    assert list(table["notes"]) == [
        "",
        "20 points in unknown band 'w' dropped (accepted: u, g, r, i, z, y)",
    ]


def test_alerts_that_cannot_be_classified_keep_their_rows(
    tmp_path: Path, predictor: TransientsPredictor
) -> None:
    planet = lsst_record(NEW, oid=None)
    planet["diaSource"]["ssObjectId"] = 42
    other = {**NEW, "flux": "differenceFlux"}
    folder = tmp_path / "night"
    folder.mkdir()
    write(folder / "0.avro", lsst_schema("lsst.v11_0", NEW), [lsst_record(NEW, oid=5), planet])
    write(folder / "1.avro", lsst_schema("lsst.v12_0", other), [lsst_record(other, oid=6)])
    (item,) = predictor.discover([folder])
    table = predictor.predict(item).table.set_index("id")
    assert table["status"].to_dict() == {"5": OK, "ssObject 42": SOLAR_SYSTEM, "6": UNREADABLE}
    assert (table["class"] != "").tolist() == [True, False, False]
    np.testing.assert_allclose(table[P].iloc[1:], [predictor.priors] * 2)
    assert "missing required fields: diaSource.psfFlux" in table.loc["6", "notes"]
    assert f"raw packet: {folder}/1.avro#0" in table.loc["6", "notes"]


def test_a_damaged_packet_has_a_row_and_costs_no_other(
    tmp_path: Path, predictor: TransientsPredictor
) -> None:
    folder = tmp_path / "night"
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}.avro", lsst_schema("lsst.v11_0", NEW), [lsst_record(NEW, oid=number + 5)])
    whole = (folder / "1.avro").read_bytes()
    (folder / "1.avro").write_bytes(whole[:-40])
    (item,) = predictor.discover([folder])
    result = predictor.predict(item)
    table = result.table.set_index("id")
    assert table["status"].to_dict() == {"5": OK, "1#0": UNREADABLE, "7": OK}
    assert table.loc["1#0", "notes"].startswith("damaged after 0 alerts (")
    assert result.notes[0].startswith(f"{folder}/1.avro: damaged after 0 alerts")
    for number in (0, 2):
        (folder / f"{number}.avro").unlink()
    (item,) = predictor.discover([folder])
    with pytest.raises(
        ItemError, match=r"1\.avro: damaged after 0 alerts .*; a whole Avro file; copy it again"
    ):
        predictor.predict(item)


def test_bands_that_the_model_does_not_know(tmp_path: Path) -> None:
    predictor = made(random_bundle(tmp_path / "bundle", "des"))
    frame = pd.concat([object_rows(1, good("griz")), object_rows(2, good("ugriz"))])
    table = predictor.table(read_frame(frame))
    assert list(table["status"]) == [OK, OK]
    assert table["notes"][0] == "bands of lsst, the model's are des's"
    assert table["notes"][1].endswith("u unknown to the model, used for the others alone")
    none = predictor.table(read_frame(object_rows(1, good("uy"))))
    assert list(none["status"]) == ["bands of lsst, des wanted"] and none["class"][0] == ""
    np.testing.assert_allclose(none[P].iloc[0], predictor.priors)
    # A table of no known make has the model's bands, and their wavelengths.
    (item,) = predictor.discover([table_of(tmp_path / "own.csv", object_rows(1, good("griz")))])
    assert predictor.predict(item).table["notes"][0] == ""
    told = made(Bundle.open(tmp_path / "bundle"), **{"data.read.survey": "lsst"})
    assert told.predict(item).table["notes"][0] == "bands of lsst, the model's are des's"


def table_of(path: Path, rows: pd.DataFrame) -> Path:
    rows.to_csv(path, index=False)
    return path


def test_what_was_told_of_the_training_set_is_not_said_of_other_files(tmp_path: Path) -> None:
    """But what they are made into is as in training."""
    read = {"unit": "nJy", "flux_column": "brightness", "format": "table", "dust": True, "duplicates": "last"}
    kept = random_bundle(tmp_path / "bundle", read=read)
    assert made(kept).read == ReadConfig(dust=True, duplicates="last")
    told = made(kept, **{"data.read.zero_point": 25.0, "data.read.format": "mallorn"}).read
    assert (told.zero_point, told.format, told.unit) == (25.0, "mallorn", None)
    with pytest.raises(UsageError, match=r"data\.grid: the model's own"):
        made(kept, **{"data.grid": 50})


def test_alerts_given_by_name_are_one_item(tmp_path: Path, predictor: TransientsPredictor) -> None:
    schema = lsst_schema("lsst.v11_0", NEW)
    for folder, numbers in (("a", (1, 2)), ("b", (3,))):
        (tmp_path / folder).mkdir()
        for k in numbers:
            write(tmp_path / folder / f"{k}.avro", schema, [lsst_record(NEW, oid=7, start=k)])
    items = predictor.discover(sorted(tmp_path.glob("*/*.avro")))
    assert [(item.id, len(item.sources)) for item in items] == [("a", 2), ("3.avro", 1)]
    assert list(predictor.predict(items[0]).table["id"]) == ["7"]
    with pytest.raises(DataInvalid, match="give the folders in it"):
        predictor.discover([tmp_path])
    fault, _ = predictor.discover([tmp_path, tmp_path / "b"])
    assert fault.fault is not None and "give the folders in it" in str(fault.fault)


# ---------------------------------------------------------------- class rates, redshift


def test_class_rates_of_the_answers(bundle: Bundle) -> None:
    curves = [*simulate(12, 2), *read_frame(object_rows(1, good()[:2]))]
    flat, training = (made(bundle, rates=rates).table(curves)[P].to_numpy() for rates in ("flat", "training"))
    counts = np.arange(1, len(CLASSES) + 1) * 10.0
    np.testing.assert_allclose(flat[-1], 1 / len(CLASSES))
    np.testing.assert_allclose(training[-1], counts / counts.sum())
    expected = flat * counts
    np.testing.assert_allclose(training, expected / expected.sum(1, keepdims=True), atol=1e-12)

    for wrong in ({CLASSES[0]: -1, CLASSES[1]: 2}, {CLASSES[0]: 0}):
        with pytest.raises(UsageError, match=r"predict\.priors"):
            made(bundle, priors=wrong)
    # The default is a quarter of the way, in logarithms.
    expected = flat * counts**0.25
    between = made(bundle).table(curves)[P].to_numpy()
    np.testing.assert_allclose(between, expected / expected.sum(1, keepdims=True), atol=1e-12)
    own = made(bundle, priors={CLASSES[0]: 3, CLASSES[2]: 1}).table(curves)
    weights = np.array([3.0, 0.0, 1.0] + [0.0] * (len(CLASSES) - 3))
    expected = flat * weights
    np.testing.assert_allclose(own[P], expected / expected.sum(1, keepdims=True), atol=1e-12)
    assert set(own["class"][:-1]) <= {CLASSES[0], CLASSES[2]}
    with pytest.raises(UsageError, match=r"priors.*'comet' is no class"):
        made(bundle, priors={"comet": 1.0})


def test_redshift_missing_or_impossible(tmp_path: Path) -> None:
    predictor = made(random_bundle(tmp_path / "bundle", redshift="tokens"))
    frame = pd.concat([object_rows(k, good()) for k in range(5)])
    frame["redshift"] = frame["object_id"].map({0: np.nan, 1: -99.0, 2: 0.0, 3: 0.1, 4: 1.0})
    table = predictor.table(read_frame(frame))
    assert np.isfinite(table[P]).all(axis=None) and (table["status"] == OK).all()
    np.testing.assert_allclose(table[P].iloc[1:3], table[P].iloc[[0, 0]], rtol=0, atol=1e-6)
    assert np.abs(table[P].iloc[4] - table[P].iloc[3]).max() > 1e-3
    np.testing.assert_array_equal(table["redshift"], [np.nan, np.nan, np.nan, 0.1, 1.0])
    assert list(table["notes"][:4]) == [
        "",
        "redshift -99 taken as absent",
        "redshift 0 taken as absent",
        "",
    ]


# ---------------------------------------------------------------- files


def test_the_file_holds_the_table(tmp_path: Path, predictor: TransientsPredictor) -> None:
    path = tmp_path / "objects.csv"
    frame = pd.concat([object_rows(oid, rows) for oid, (rows, *_) in WRONG.items()], ignore_index=True)
    frame.to_csv(path, index=False)
    (item,) = predictor.discover([path])
    result = predictor.predict(item)
    summary = predictor.write(result, tmp_path)
    (written,) = tmp_path.glob("*.classes.csv")
    back = pd.read_csv(written, dtype={"id": str, "bands": str}, float_precision="round_trip").fillna(
        {"class": "", "bands": "", "fit": "", "notes": ""}
    )
    assert written.name == "objects.classes.csv"
    pd.testing.assert_frame_equal(back, result.table, check_exact=True)
    assert summary["objects"] == len(WRONG) and summary["status"] == {OK: 6, TOO_FEW: 4, NEVER_DETECTED: 1}
    assert predictor.table(read_path(path)).equals(result.table)


def test_what_the_answers_hang_on(tmp_path: Path, bundle: Bundle) -> None:
    """A row a band and a tenth of the points, of what can be classified; its change is that of a second prediction."""
    curves = simulate(2, 9)
    bad = replace(curves[0].taken(np.arange(len(curves[0])) < 1), id="short")
    to_frame([*curves, bad]).to_csv(tmp_path / "some.csv", index=False)
    predictor = made(bundle, explain=True)
    result = predictor.predict(predictor.discover([tmp_path / "some.csv"])[0])
    predictor.write(result, tmp_path / "out")
    found = pd.read_csv(tmp_path / "out" / "some.why.csv", dtype={"id": str})
    assert set(found["id"]) == {curve.id for curve in curves}
    read = next(each for each in read_path(tmp_path / "some.csv") if each.id == curves[0].id)
    own = found[found["id"] == read.id]
    assert list(own["part"]) == [*dict.fromkeys(map(str, read.band)), *["epoch"] * 10]
    band = str(read.band[0])
    kept = read.band != band
    answer = result.table.set_index("id").loc[read.id]
    column = f"p_{answer['class']}"
    change = answer[column] - predictor.table([read.taken(kept)])[column][0]
    assert own.iloc[0]["class"] == answer["class"] and own.iloc[0]["probability"] == pytest.approx(
        answer[column]
    )
    assert own.iloc[0]["change"] == pytest.approx(change, abs=1e-6) and own["change"].abs().max() > 0
    assert own.iloc[0]["first_mjd"] == pytest.approx(read.time[0])
    assert made(bundle).predict(predictor.discover([tmp_path / "some.csv"])[0]).why is None


@pytest.mark.parametrize("name", [folder.name for folder in SHIPPED])
def test_shipped_models_answer(name: str) -> None:
    """And tell what they were trained on."""
    (folder,) = (each for each in SHIPPED if each.name == name)
    bundle = Bundle.open(folder)
    predictor = made(bundle)
    table = pd.read_csv(io.StringIO(predictor.predict_record(predictor.example_record())["csv"]))
    assert list(table["status"]) == [OK] and table["class"][0] in predictor.classes
    assert len(bundle.schema["transients"]["trained_on"]) > 1000


def test_without_nearly_all_points_nothing_is_said_to_hang_on_the_rest(bundle: Bundle) -> None:
    curve = simulate(2, 9)[0]
    few = curve.taken(np.arange(len(curve)) < 3)
    rows = made(bundle).why([replace(few, status=OK, time=few.time + np.arange(3.0))])
    assert rows and all(np.isnan(row["change"]) for row in rows)


def test_a_broken_file_costs_itself_alone(tmp_path: Path, bundle: Bundle) -> None:
    root, output = tmp_path / "in", tmp_path / "out"
    root.mkdir()
    for name, seed in (("a", 1), ("c", 2)):
        to_frame(simulate(4, seed)).to_csv(root / f"{name}.csv", index=False)
    (root / "b.csv").write_text("object_id,mjd,band,flux,flux_err\n1,60000,r,5,1\n")  # no unit
    (root / "d.parquet").write_bytes((b"PAR1" + b"x" * 64)[:40])
    write(root / "e.avro", lsst_schema("lsst.v11_0", NEW), [lsst_record(NEW)])

    def run() -> Any:
        return predict_batch("transients", bundle.path, [root], output, workers=1)

    first = run()
    assert (first.items, first.ok, first.failed, exit_code(first)) == (5, 3, 2, 4)
    rows = {row["item"]: row for row in map(json.loads, (output / "manifest.jsonl").read_text().splitlines())}
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {"b", "d"}
    assert rows["b"]["error"]["source"] == str(root / "b.csv") and "unit" in rows["b"]["error"]["message"]
    assert "cannot be read" in rows["d"]["error"]["message"]
    assert {path.name for path in output.glob("*.csv")} == {f"{n}.classes.csv" for n in ("a", "c", "in")}
    assert list(pd.read_csv(output / "in.classes.csv", dtype=str)["id"]) == ["7"]
    assert rows["a"]["summary"]["objects"] == 4

    frame = to_frame(simulate(3, 4))
    frame.to_csv(root / "b.csv", index=False)
    second = run()
    assert (second.ok, second.failed, second.skipped) == (1, 1, 3)


def test_a_long_table_is_done_in_parts_that_stay_done(
    tmp_path: Path, predictor: TransientsPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = to_frame(simulate(11, 6))
    path = tmp_path / "survey.parquet"
    frame.to_parquet(path)
    assert [item.id for item in predictor.discover([path])] == ["survey"]
    monkeypatch.setattr("astro.transients.predict.MOST_ROWS", -(-len(frame) // 3))
    items = predictor.discover([path])
    names = [f"survey.{k}-of-3" for k in (1, 2, 3)]
    assert [item.id for item in items] == names
    parts = [predictor.predict(item).table for item in items]
    assert [len(part) for part in parts] == [3, 4, 4]
    whole = predictor.table(read_path(path))
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole, rtol=0, atol=1e-6)
    # More parts than objects: some are empty tables.
    few = replace(items[0], payload=(0, 50))
    assert list(predictor.predict(few).table.columns) == list(whole.columns)
    written = tmp_path / "out"
    for item in items:
        predictor.write(predictor.predict(item), written)
    assert sorted(path.name for path in written.iterdir()) == [f"{name}.classes.csv" for name in names]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_rows_of_a_table_are_known_before_it_is_read(tmp_path: Path, kind: str) -> None:
    frame, path = to_frame(simulate(30, 6)), tmp_path / f"survey.{kind}"
    frame.to_parquet(path) if kind == "parquet" else frame.to_csv(path, index=False)
    assert len(frame) / 4 < about_rows(path) < len(frame) * 4
    assert about_rows(path) == len(frame) or kind != "parquet"
    assert about_rows(tmp_path / "absent.csv") == 0


def test_one_detection_far_from_every_other_point_is_no_curve(predictor: TransientsPredictor) -> None:
    """Only what lies around the detections is classified, so that is what has to be enough."""
    days = np.arange(60000.0, 63000.0, 100.0)
    flux = np.where(np.arange(len(days)) == 7, 900.0, 1.0)
    frame = pd.DataFrame({"id": "lone", "mjd": days, "band": "r", "flux": flux, "flux_err": 20.0})
    table = predictor.table(read_frame(frame, ReadConfig(unit="nJy")))
    assert table["status"][0] == TOO_FEW and table["class"][0] == "" and np.isnan(table["doubt"][0])
    np.testing.assert_allclose(table[P].iloc[0], predictor.priors)
