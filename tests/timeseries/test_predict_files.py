"""Folders of tables in, a forecast a series out; what is broken costs itself alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.batch import exit_code, predict_batch
from pipelines.batch_item import perform
from shared.bundle import Bundle
from tests.timeseries.repeating import (
    HORIZON,
    frame,
    make_config,
    repeating,
    save,
    scale,
    written,
)
from timeseries.forecast.predict import ForecastPredictor


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    config = make_config()
    return save(tmp_path / "bundle", config, repeating(config))


def test_items_have_stable_names_of_their_own(bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in (
        "a.csv",
        "b.csv.gz",
        "c.tsv",
        "d.parquet",
        "sub/a.csv",
        "e.csv",
        "e.parquet",
        "x.forecast.csv",
    ):
        written(root / name, frame())
    (root / "notes.txt").write_text("no table")
    (root / ".hidden.csv").write_text("x")
    (root / "f.csv").write_text("")
    (root / "g.csv").symlink_to(root / "gone.csv")
    predictor = ForecastPredictor(bundle, {})
    items = predictor.discover([root])
    assert [item.id for item in items] == [
        "a", "b", "c", "d", "e.csv", "e.parquet", "f", "g", "sub/a",
    ]  # fmt: skip
    faults = {item.id: str(item.fault).replace(f"{root}/", "") for item in items if item.fault}
    assert faults == {
        "f": "f.csv: empty file; a table; write it again",
        "g": "g.csv: a link to a file that is not there; a readable table; check the path",
    }
    (alone,) = predictor.discover([root / "notes.txt"])
    assert "suffix .txt; one of .csv, .csv.gz, .tsv" in str(alone.fault)
    two = predictor.discover([root / "a.csv", root / "sub" / "a.csv", root / "a.csv"])
    assert [item.id for item in two] == ["in/a.csv", "sub/a.csv"]
    results = [predictor.predict(item) for item in items if item.fault is None]
    for result in results[1:]:
        np.testing.assert_array_equal(result.forecasts[0].values, results[0].forecasts[0].values)


def test_a_long_table_gives_a_file_a_series_and_one_bad_series_costs_itself(tmp_path: Path) -> None:
    config = make_config(targets=["y"], layout="long", id_column="unique_id", date_column="ds")
    bundle = save(tmp_path / "b", config, repeating(config), {"one": scale(1), "two": scale(1)})
    parts = []
    for seed, (name, rows) in enumerate({"one": 30, "new/2": 30, "short": 10}.items()):
        part = frame(rows, seed=seed).rename(columns={"date": "ds", "a": "y"}).drop(columns="b")
        parts.append(part.assign(unique_id=name))
    table = pd.concat(parts)[["unique_id", "ds", "y"]]
    predictor = ForecastPredictor(bundle, {"picture": False})
    (item,) = predictor.discover([written(tmp_path / "shop.csv", table)])
    out = tmp_path / "out"
    summary = predictor.write(predictor.predict(item), out)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert (
        len(files) == 2
        and "shop/one.forecast.csv" in files
        and all(name.startswith("shop/") for name in files)
    )
    one = pd.read_csv(out / "shop/one.forecast.csv", parse_dates=["ds"])
    assert list(one.columns) == ["unique_id", "ds", "y", "y-lo-80", "y-hi-80", "y-lo-95", "y-hi-95"]
    assert set(one["unique_id"]) == {"one"}
    assert [(row["series"], row["scale"]) for row in summary["series"]] == [
        ("one", "training"),
        ("new/2", "own"),
    ]
    assert summary["failed_count"] == 1
    assert (
        summary["failed"]["short"]
        .replace(f"{tmp_path}/", "")
        .startswith("shop.csv:short: 10 rows; at least 24 (data.input_length)")
    )
    both = predictor.predict_frame(table[table["unique_id"] != "short"])
    assert list(both["unique_id"]) == ["one"] * HORIZON + ["new/2"] * HORIZON


BROKEN: dict[int, tuple[str, str]] = {
    2: ("cut", "gzip data is cut or damaged"),
    5: ("short", "12 rows"),
    7: ("column", "no column 'b'"),
    9: ("link", "a link to a file that is not there"),
    11: ("text", "text in row 5"),
}


def spoil(path: Path, how: str) -> None:
    if how == "cut":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif how == "link":
        path.unlink()
        path.symlink_to(path.with_name("gone"))
    elif how == "short":
        written(path, frame(12))
    elif how == "column":
        written(path, frame().drop(columns="b"))
    else:
        table = frame().astype({"a": object})
        table.loc[3, "a"] = "broken"
        written(path, table)


def test_twelve_files_five_broken(bundle: Bundle, tmp_path: Path) -> None:
    root, output = tmp_path / "in", tmp_path / "out"
    for number in range(12):
        path = written(root / f"s{number:02d}.csv.gz", frame(seed=number))
        if number in BROKEN:
            spoil(path, BROKEN[number][0])

    def run(place: Path) -> Any:
        (tmp_path / "again").mkdir(exist_ok=True)
        return predict_batch("timeseries.forecast.pipeline:PIPELINE", bundle.path, [root], place, workers=1)

    first = run(output)
    assert (first.items, first.ok, first.failed, exit_code(first)) == (12, 7, 5, 4)
    rows = {row["item"]: row for row in map(json.loads, (output / "manifest.jsonl").read_text().splitlines())}
    for number, (_, found) in BROKEN.items():
        error = rows[f"s{number:02d}"]["error"]
        assert error["source"] == str(root / f"s{number:02d}.csv.gz") and found in error["found"], error
    good = sorted(name for name, row in rows.items() if row["status"] == "ok")
    names = {path.name for path in output.iterdir() if not path.name.startswith((".", "manifest"))}
    assert names == {f"{name}{end}" for name in good for end in (".forecast.csv", ".png")}
    assert rows["s00"]["summary"]["rows"] == HORIZON

    # Again in this process: the same bytes, pictures too. In the same place: nothing but what failed.
    predictor = ForecastPredictor(bundle, {})
    items = {item.id: item for item in predictor.discover([root])}
    for name in good[:2]:
        outcome = perform(predictor, items[name], tmp_path / "again" / name)
        assert outcome["outputs"] == rows[name]["outputs"]
    written(root / "s05.csv.gz", frame(seed=5))
    second = run(output)
    assert (second.ok, second.failed, second.skipped) == (1, 4, 7)
