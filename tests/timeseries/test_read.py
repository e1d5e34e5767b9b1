"""Tables of every kind a user may bring: what they read as, and what is said of those that are wrong."""

from __future__ import annotations

import gzip
import os
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import DataInvalid, ItemError
from shared.pipeline import error_faults
from timeseries.forecast.config import ForecastConfig, ForecastDataConfig
from timeseries.forecast.series import Series
from timeseries.forecast.tables import read, stamps, table
from timeseries.forecast.tables.check import check, infer
from timeseries.forecast.tables.read import (
    fingerprint,
    match_columns,
    read_all,
    read_dataset,
    read_file,
    read_frame,
    to_frame,
)

HEAD = "date,a,b\n"
TEXT_MEND = "numbers; correct the cells, empty them if missing, or name columns in data.targets"
NO_TABLE = "a CSV, TSV or Parquet table; export it as CSV"
ISO = "ISO stamps (2016-02-13 00:00)"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(read, "_cache", type(read._cache)())


def hours(n: int, start: int = 0) -> str:
    return "".join(f"2020-01-01 {h:02d}:00,{h}.5,{h * 2}\n" for h in range(start, start + n))


def days(*values: object, head: str = "date,a") -> str:
    return head + "\n" + "".join(f"2020-01-{i + 1:02d},{value}\n" for i, value in enumerate(values))


def told(content: str | bytes, name: str = "x.csv", **keys: object) -> list[str]:
    """Errors of the file as one line each."""
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataInvalid) as caught:
        read_file(Path(name), ForecastDataConfig(**keys))  # type: ignore[arg-type]
    return [str(fault) for fault in caught.value.faults]


def one(content: str | bytes, name: str = "x.csv", **keys: object) -> Series:
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (series,) = read_file(Path(name), ForecastDataConfig(**keys))  # type: ignore[arg-type]
    return series


# ---------------------------------------------------------------- bad inputs, each with its message

BAD: dict[str, tuple[str | bytes, dict[str, object], list[str]]] = {
    "30-empty": ("", {}, ["x.csv: empty file; a CSV, TSV or Parquet table; write the table again"]),
    "blank": ("\n\n", {}, ["x.csv: empty file; a CSV, TSV or Parquet table; write the table again"]),
    "header-only": (
        "date,a\n",
        {},
        ["x.csv: a header and no rows; at least two rows; write the table again"],
    ),
    "one-row": (days(1), {}, ["x.csv: 1 row; at least two, to see the step; add rows, or set data.freq"]),
    "31-ragged": (
        HEAD + hours(2) + "2020-01-01 02:00,1,2,3\n2020-01-01 03:00,1\n",
        {},
        [
            "x.csv: row 4 has 4 fields, row 5 has 2 fields; 3 fields as in the header; correct these rows; "
            "quote cells that hold the separator"
        ],
    ),
    "32-semicolons": (
        "date;OT\n2020-01-01;1,5\n2020-01-02;2,5\n",
        {},
        [
            "x.csv: one column 'date;OT'; columns divided by ','; set data.sep=';' and data.decimal=comma if numbers "
            "read 1,5"
        ],
    ),
    "decimal-commas": (
        "date;OT\n2020-01-01;1,5\n2020-01-02;2,5\n",
        {"sep": ";"},
        [
            "x.csv:OT: decimal commas in row 2 ('1,5'), row 3 ('2,5'); numbers such as 1.5; set data.decimal=comma"
        ],
    ),
    "33-named-twice": (
        days("1,2", head="date,OT,OT"),
        {},
        ["x.csv: named twice: OT (columns 2, 3); every column once; rename or remove one"],
    ),
    "34-text": (
        HEAD + hours(3) + "2020-01-01 03:00,bad,1\n2020-01-01 04:00,1,ERR#5\n",
        {},
        [f"x.csv:a: text in row 5 ('bad'); {TEXT_MEND}", f"x.csv:b: text in row 6 ('ERR#5'); {TEXT_MEND}"],
    ),
    "34-text-often": (
        days(*["x"] * 7, 1),
        {},
        [
            "x.csv:a: text in row 2 ('x'), row 3 ('x'), row 4 ('x'), row 5 ('x'), row 6 ('x') (7 in all); "
            + TEXT_MEND
        ],
    ),
    "35-nul": (
        (HEAD + hours(3)).replace("1.5", "1\0.5"),
        {},
        ["x.csv: a NUL byte in row 3; text; write the table again"],
    ),
    "36-too-large": (
        days(1, "1e400", 3, "-inf"),
        {},
        [
            "x.csv:a: infinite in row 3 ('inf'), row 5 ('-inf'); finite numbers; correct the cells, or empty them"
        ],
    ),
    "37-latin-1": (
        "date,Temp °C\n2020-01-01,1\n".encode("latin-1"),
        {},
        [
            "x.csv: byte 0xb0 in row 1 is not UTF-8; UTF-8 text; set data.encoding=latin-1, or save it as UTF-8"
        ],
    ),
    "utf-16": (
        days(1, 2).encode("utf-16"),
        {},
        ["x.csv: UTF-16 text; UTF-8; set data.encoding=utf-16, or save it as UTF-8"],
    ),
    "wrong-encoding": (
        days(1, 2),
        {"encoding": "utf-32"},
        [
            "x.csv: not utf-32 text ('utf-32-le' codec can't decode bytes in position 0-3: code p); utf-32; set "
            "data.encoding to what the file was written in"
        ],
    ),
    "38-day-first": (
        "date,a\n01/02/2016,1\n13/02/2016,2\n",
        {},
        [
            f"x.csv:date: no stamp in row 2 ('01/02/2016'), row 3 ('13/02/2016'); {ISO}; set "
            "data.date_format='%d/%m/%Y'"
        ],
    ),
    "38-month-first": (
        "date,a\n2/1/2016 5:00,1\n2/13/2016 6:00,2\n",
        {},
        [
            f"x.csv:date: no stamp in row 2 ('2/1/2016 5:00'), row 3 ('2/13/2016 6:00'); {ISO}; set "
            "data.date_format='%m/%d/%Y %H:%M'"
        ],
    ),
    "38-either": (
        "date,a\n01.02.2016,1\n02.02.2016,2\n",
        {},
        [
            f"x.csv:date: no stamp in row 2 ('01.02.2016'), row 3 ('02.02.2016'); {ISO}; set data.date_format="
            "'%d.%m.%Y' or '%m.%d.%Y', whichever is meant"
        ],
    ),
    "mixed-formats": (
        "date,a\n2016-01-01,1\n2016-01-02,2\n13/01/2016,3\n2016-01-04,3\n",
        {},
        [f"x.csv:date: no stamp in row 4 ('13/01/2016'); {ISO}; set data.date_format='%d/%m/%Y'"],
    ),
    "no-date-there": (
        "date,a\n2016-01-01,1\n2016-01-02,2\nlater,3\n2016-01-04,3\n,5\n",
        {},
        [f"x.csv:date: no stamp in row 4 ('later'), row 6 (''); {ISO}; correct or remove these rows"],
    ),
    "other-format": (
        "date,a\n12/02/2016,1\n13/02/2016,2\n",
        {"date_format": "%m/%d/%Y"},
        ["x.csv:date: no stamp in row 3 ('13/02/2016'); stamps as %m/%d/%Y; correct data.date_format"],
    ),
    "far-future": (
        "date,a\n2020-01-01,1\n2999-01-01,3\n",
        {},
        [f"x.csv:date: no stamp in row 3 ('2999-01-01'); {ISO}; correct or remove these rows"],
    ),
    "zones-mixed": (
        "date,a\n2020-01-01T00:00Z,1\n2020-01-01T01:00,2\n2020-01-01T02:00Z,1\n",
        {},
        [
            "x.csv:date: no stamp in row 3 ('2020-01-01T01:00'); a time zone in every stamp or in none; write all "
            "stamps in UTC"
        ],
    ),
    "39-duplicate": (
        HEAD + hours(3) + hours(1, 2) + hours(3, 3),
        {},
        [
            "x.csv:date: stamps repeat at row 5 (2020-01-01 02:00); every stamp once; remove them, or set "
            "data.duplicates=first, last or mean"
        ],
    ),
    "39-unsorted": (
        HEAD + hours(2, 2) + hours(2) + hours(3, 4),
        {},
        [
            "x.csv:date: stamps go back at row 4 (2020-01-01 00:00); rising stamps; sort the table, or set "
            "data.unsorted=sort"
        ],
    ),
    "39-newest-first": (
        HEAD + "".join(reversed(hours(5).splitlines(keepends=True))),
        {},
        [
            "x.csv:date: newest row first, from row 2 (2020-01-01 04:00); rising stamps; sort the table, or set "
            "data.unsorted=sort"
        ],
    ),
    "39-gaps": (
        HEAD + hours(5) + hours(4, 7) + hours(3, 14),
        {},
        [
            "x.csv:date: stamps absent: 2 after row 6 (2020-01-01 04:00), 3 after row 10 (2020-01-01 10:00); a row "
            "every h; add the rows, or set data.gaps=mask to leave them missing"
        ],
    ),
    "39-all-at-once": (
        HEAD + hours(3) + hours(1, 1) + hours(2, 2) + hours(6, 5) + "2020-01-01 12:00,?,1\n",
        {},
        [
            f"x.csv:a: text in row 14 ('?'); {TEXT_MEND}",
            "x.csv:date: stamps go back at row 5 (2020-01-01 01:00); rising stamps; sort the table, or set "
            "data.unsorted=sort",
            "x.csv:date: stamps repeat at row 5 (2020-01-01 01:00), row 6 (2020-01-01 02:00); every stamp once; remove "
            "them, or set data.duplicates=first, last or mean",
            "x.csv:date: stamps absent: 1 after row 7 (2020-01-01 03:00), 1 after row 13 (2020-01-01 10:00); a row "
            "every h; add the rows, or set data.gaps=mask to leave them missing",
        ],
    ),
    "39-off-the-step": (
        HEAD + hours(4) + "2020-01-01 04:07,1,1\n" + hours(3, 5),
        {},
        [
            "x.csv:date: off the step at row 6 (2020-01-01 04:07); a row every h; correct these stamps, or set "
            "data.freq"
        ],
    ),
    "39-no-step": (
        "date,a\n2020-01-01,1\n2020-01-02,1\n2020-01-05,2\n2020-01-11,2\n2020-01-21,3\n",
        {},
        [
            "x.csv: steps vary: D (1 of 4), 3D (1 of 4), 6D (1 of 4); one step between rows; resample the table, or "
            "set data.freq, and data.gaps=mask if stamps are absent"
        ],
    ),
    "39-mid-month": (
        "date,a\n2020-01-15,1\n2020-02-15,3\n2020-03-15,3\n2020-04-15,3\n2020-05-15,3\n",
        {},
        [
            "x.csv: steps vary: 31D (2 of 4), 29D (1 of 4), 30D (1 of 4); one step between rows; months by their first "
            "or last day; resample the table, or set data.freq, and data.gaps=mask if stamps are absent"
        ],
    ),
    "39-summer-time-ends": (
        "date,a\n"
        + "".join(f"2020-10-25 0{h}:00,{h}\n" for h in (0, 1, 2))
        + "".join(f"2020-10-25 0{h}:00,{h}\n" for h in (2, 3, 4)),
        {},
        [
            "x.csv:date: stamps repeat at row 5 (2020-10-25 02:00); every stamp once; remove them, or set "
            "data.duplicates=first, last or mean; is it summer time? then write stamps in UTC"
        ],
    ),
    "39-summer-time-begins": (
        "date,a\n" + "".join(f"2020-03-29 0{h}:00,{h}\n" for h in (0, 1, 3, 4, 5)),
        {},
        [
            "x.csv:date: stamps absent: 1 after row 3 (2020-03-29 01:00); a row every h; add the rows, or set "
            "data.gaps=mask to leave them missing; is it summer time? then write stamps in UTC"
        ],
    ),
    "endless-calendar": (
        "date,a\n1900-01-01 00:00:00,1\n" + "".join(f"2020-01-01 00:00:0{i},{i}\n" for i in range(4)),
        {"gaps": "mask"},
        [
            "x.csv:date: 3,786,825,604 steps of s from 1900-01-01 00:00 to 2020-01-01 00:00:03; 5,000,000 at most "
            "(data.max_rows); correct the stamps, or set data.freq"
        ],
    ),
    "other-step": (
        days(1, 2, 3),
        {"freq": "h"},
        ["x.csv: a step of D; h (data.freq); set data.freq=D, or resample"],
    ),
    "no-such-step": (
        days(1, 2, 3),
        {"freq": "fortnight"},
        [
            "x.csv:data.freq: 'fortnight' is no step; s, min, h, D, B, W, MS, ME, QS, QE, YS, YE, with a number "
            "before (15min); correct it"
        ],
    ),
    "counted-with-a-gap": (
        "ds,a\n1,1\n2,3\n4,3\n",
        {},
        [
            "x.csv:ds: no stamp in row 4 ('4'); stamps, or numbers that count the rows; set data.date_format, or "
            "data.date_column='' for steps"
        ],
    ),
    "numbers-as-dates": (
        "date,a\n0.5,1\n1.5,3\n",
        {},
        [
            "x.csv:date: no stamp in row 2 ('0.5'), row 3 ('1.5'); stamps, or whole numbers that count the rows; "
            "correct them, or set data.date_column='' if rows are steps"
        ],
    ),
    "thousands": (
        days('"1,234.5"', '"2,345.6"', 7),
        {},
        [
            "x.csv:a: thousands separators in row 2 ('1,234.5'), row 3 ('2,345.6'); plain numbers; write 1234.5"
        ],
    ),
    "thousands-or-fractions": (
        days('"1,234"', '"2,345"'),
        {},
        [
            "x.csv:a: thousands separators in row 2 ('1,234'), row 3 ('2,345'); plain numbers; write 1234.5, or set "
            "data.decimal=comma if 1,234 is a fraction"
        ],
    ),
    "all-missing": (
        days("1,", "2,", head="date,a,b"),
        {},
        ["x.csv:b: no value at all; numbers; remove the column, or name others in data.targets"],
    ),
    "missing-refused": (
        days(1, "", "NA", 4),
        {"missing": "fail"},
        [
            "x.csv:a: 2 of 4 values missing: row 3 (2020-01-02 00:00), row 4 (2020-01-03 00:00); a value in every row; "
            "fill them, or set data.missing=mask"
        ],
    ),
    "percent": (
        days("12%", "13%"),
        {},
        [
            "x.csv: no numbers in the columns date, a; at least one column to forecast; add it",
            f"x.csv:a: text in row 2 ('12%'), row 3 ('13%'); {TEXT_MEND}",
        ],
    ),
    "text-asked-for": (
        days("1,JFK", "2,LGA", head="date,a,station"),
        {"targets": ("a", "station")},
        [f"x.csv:station: text in row 2 ('JFK'), row 3 ('LGA'); {TEXT_MEND}"],
    ),
    "no-such-target": (
        days(1, 2, head="date,OT"),
        {"targets": ("OTT",)},
        ["x.csv:data.targets: no column 'OTT'; one of date, OT; is 'OT' meant?"],
    ),
    "no-such-date": (
        days(1, 2),
        {"date_column": "when"},
        ["x.csv:data.date_column: no column 'when'; one of date, a; correct data.date_column or the header"],
    ),
    "not-long": (
        days(1, 2),
        {"layout": "long"},
        ["x.csv:data.id_column: no column 'unique_id'; one of date, a; correct data.id_column or the header"],
    ),
    "no-header": (
        "2020-01-01,1.5,2\n2020-01-02,2.5,3\n",
        {},
        ["x.csv: row 1 holds values (2020-01-01, 1.5, …); the columns' names; add a header"],
    ),
    "open-quote": (
        days('"1', 2, 3),
        {},
        ["x.csv: a quotation mark in row 2 without its other; pairs; close or remove it"],
    ),
    "too-many-rows": (
        HEAD + hours(5),
        {"max_rows": 4},
        ["x.csv: 5 rows; 4 at most (data.max_rows); split it, or raise data.max_rows"],
    ),
    "excel": (b"PK\x03\x04" + bytes(99), {}, [f"x.csv: an Excel or zip file; {NO_TABLE}"]),
    "binary": (bytes(range(256)) * 9, {}, [f"x.csv: binary data; {NO_TABLE}"]),
    "pickle": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os\x94.", {}, [f"x.csv: binary data; {NO_TABLE}"]),
    "web-page": ("<!DOCTYPE html><p>404", {}, [f"x.csv: a web page; {NO_TABLE}"]),
    "json": ('{"a": 1}', {}, [f"x.csv: JSON; {NO_TABLE}"]),
    "cut-gzip": (
        gzip.compress((HEAD + hours(9)).encode() * 9)[:60],
        {},
        ["x.csv: gzip data is cut or damaged; a whole file; copy it again"],
    ),
    "gzip-checksum": (
        gzip.compress((HEAD + hours(9)).encode())[:-8] + bytes(8),
        {},
        ["x.csv: gzip data is cut or damaged; a whole file; copy it again"],
    ),
    "long-nameless": (
        "unique_id,ds,y\nA,2020-01-01,1\n,2020-01-02,2\nA,2020-01-03,2\n",
        {},
        ["x.csv:unique_id: no name in row 3; the name of a series; fill it in"],
    ),
    "long-other-step": (
        "unique_id,ds,y\n" + "".join(f"{k},2020-01-0{d},{d}\n" for k, d in zip("AABAAB", (1, 2, 1, 3, 4, 3))),
        {"freq": "D"},
        ["x.csv:B: a step of 2D; D (data.freq); set data.freq=2D, or resample"],
    ),
    "long-two-steps": (
        "unique_id,ds,y\n"
        + "".join(f"A,2020-01-0{d},{d}\nC,2020-01-0{d},1{d}\n" for d in (1, 2, 3))
        + "B,2020-01-01,5\nB,2020-01-08,6\n",
        {},
        ["x.csv:B: a step of W-WED; D as in most series; give series of one step"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_table_is_told_in_one_line_each(name: str) -> None:
    content, keys, expected = BAD[name]
    assert told(content, **keys) == expected
    assert all(len(line) <= 240 and "\n" not in line for line in expected)


def test_kinds_of_path_are_refused_without_reading(tmp_path: Path) -> None:
    os.mkfifo("pipe.csv")
    Path("folder.csv").mkdir()
    Path("loop.csv").symlink_to("loop.csv")
    Path("x.parquet").write_text("date,a\n")
    for name, found in (
        ("absent.csv", "No such file or directory"),
        ("pipe.csv", "not a regular file"),
        ("folder.csv", "a folder"),
        ("loop.csv", "Too many levels of symbolic links"),
    ):
        with pytest.raises(DataInvalid) as caught:
            read_file(Path(name), ForecastDataConfig())
        assert str(caught.value) == f"{name}: {found}; a CSV, TSV or Parquet table; check the path"
    with pytest.raises(
        DataInvalid, match=r"^x.parquet: does not begin as Parquet does; a Parquet table; write it "
    ):
        read_file(Path("x.parquet"), ForecastDataConfig())


def test_text_of_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_BYTES", 1 << 20)
    bomb = gzip.compress(b"date,a\n" + b"2020-01-01,1\n" * 700_000)
    assert told(bomb, "x.csv.gz") == [
        "x.csv.gz: more than 4 GiB of text; 4 GiB at most; split it, or write Parquet"
    ]


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_cut_parquet(keep: float) -> None:
    pd.DataFrame({"ds": pd.date_range("2020", periods=99), "y": np.arange(99.0)}).to_parquet("x.parquet")
    whole = Path("x.parquet").read_bytes()
    (line,) = told(whole[: int(len(whole) * keep)], "x.parquet")
    assert line.startswith("x.parquet: Parquet is cut or damaged (") and line.endswith(
        "; a whole file; copy it again"
    )


def test_longest_table_holds_for_parquet_and_frames() -> None:
    frame = pd.DataFrame({"ds": pd.date_range("2020", periods=9), "y": np.arange(9.0)})
    frame.to_parquet("x.parquet")
    short = ForecastDataConfig(max_rows=8)
    for call in (lambda: read_file(Path("x.parquet"), short), lambda: read_frame(frame, short, "x.parquet")):
        with pytest.raises(DataInvalid) as caught:
            call()
        assert (
            str(caught.value)
            == "x.parquet: 9 rows; 8 at most (data.max_rows); split it, or raise data.max_rows"
        )


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300) | st.text(alphabet='0123456789,.-:;"\n\r\t aeNT/', max_size=200).map(str.encode)
)
def test_no_bytes_raise_anything_but_faults(content: bytes) -> None:
    Path("f.csv").write_bytes(content)
    try:
        read_file(Path("f.csv"), ForecastDataConfig(gaps="mask", duplicates="mean", unsorted="sort"))
    except DataInvalid as err:
        assert error_faults(err.faults)


# ---------------------------------------------------------------- what is mended, as asked for


def test_repeats_gaps_and_order_are_mended_and_told() -> None:
    text = HEAD + hours(2, 1) + hours(1) + "2020-01-01 02:00,9,\n" + hours(2, 5)
    for how, kept in (("first", [2.5, 4.0]), ("last", [9.0, np.nan]), ("mean", [5.75, 4.0])):
        series = one(text, duplicates=how, gaps="mask", unsorted="sort", freq="h")
        np.testing.assert_array_equal(series.values[2], kept)
        assert np.isnan(series.values[3:5]).all() and len(series) == 7
        assert list(series.times) == list(pd.date_range("2020-01-01", periods=7, freq="h"))
        did = {
            "first": "the first of each was kept",
            "last": "the last of each was kept",
            "mean": "their means were taken",
        }
        assert [note for note in series.notes if "row" in note][:3] == [
            "stamps go back at row 4 (2020-01-01 00:00); rows were sorted",
            f"stamps repeat at row 5 (2020-01-01 02:00); {did[how]}",
            "stamps absent: 2 after row 3 (2020-01-01 02:00); these 2 steps are missing values"
            if how != "last"
            else "stamps absent: 2 after row 5 (2020-01-01 02:00); these 2 steps are missing values",
        ]


def test_values_missing_constant_or_marked_stay_and_are_told() -> None:
    series = one(days("1,5,-9999", ",5,3", "NA,5,4", "4,5,4", head="date,a,b,c"))
    np.testing.assert_array_equal(series.values[:, 0], [1, np.nan, np.nan, 4])
    assert series.notes[-3:] == (
        "a: 2 of 4 values missing: row 3 (2020-01-02 00:00), row 4 (2020-01-03 00:00); they weigh nothing in training "
        "and scores",
        "b: constant (5); its scale is kept at 1",
        "c: -9999 occurs 1 times; empty these cells if it marks missing readings",
    )
    severities = {
        fault.field: fault.severity for fault in read_all(Path("x.csv"), ForecastDataConfig()).faults
    }
    assert severities == dict.fromkeys("abc", "warning")


def test_text_blank_rows_and_row_counts_are_left_out_and_told() -> None:
    series = one(",date,a,station\n0,2020-01-01,1,JFK\n1,2020-01-02,3,JFK\n2,2020-01-03,5,JFK\n")
    assert series.channels == ("a",)
    assert series.notes[:2] == ("wide table", "the first column counts rows and is left out")
    assert "left out (no numbers): station" in series.notes
    series = one(HEAD + hours(2) + "\n,,\n" + hours(2, 2) + ",,\n,,\n")
    assert len(series) == 4
    assert "2 blank rows at the end are left out" in series.notes
    assert "blank rows are left out: row 4, row 5" in series.notes


def test_rows_are_numbered_as_a_spreadsheet_does() -> None:
    text = 'date,a\n2020-01-01,1\n\n"2020-01-02",2\n2020-01-03,x\n'
    assert told(text) == [f"x.csv:a: text in row 5 ('x'); {TEXT_MEND}"]


# ---------------------------------------------------------------- what tables read as


@pytest.mark.parametrize(
    ("cells", "freq", "first"),
    [
        (("1990/1/1 0:00", "1990/1/2 0:00", "1990/1/3 0:00"), "D", "1990-01-01"),
        (("2016-07-01 00:00:00", "2016-07-01 00:15:00", "2016-07-01 00:30:00"), "15min", "2016-07-01"),
        (("2002-01-01", "2002-01-08", "2002-01-15"), "W-TUE", "2002-01-01"),
        (("2020-01", "2020-02", "2020-03"), "MS", "2020-01-01"),
        (("2020-01-31", "2020-02-29", "2020-03-31"), "ME", "2020-01-31"),
        (("2020-03-31", "2020-06-30", "2020-09-30"), "QE-DEC", "2020-03-31"),
        (("20200101", "20200102", "20200103"), "D", "2020-01-01"),
        (("1577836800", "1577840400", "1577844000"), "h", "2020-01-01"),
        (("1577836800000", "1577836800500", "1577836801000"), "500ms", "2020-01-01"),
        (("2000", "2001", "2002"), "YS-JAN", "2000-01-01"),
        (("2020-01-01T00:00Z", "2020-01-01T00:10Z", "2020-01-01T00:20Z"), "10min", "2020-01-01"),
        (
            ("2020-01-01T00:00+01:00", "2020-01-01T01:00+01:00", "2020-01-01T02:00+01:00"),
            "h",
            "2019-12-31 23:00",
        ),
        (("2020-10-25T02:00+02:00", "2020-10-25T02:00+01:00", "2020-10-25T03:00+01:00"), "h", "2020-10-25"),
        (("2020-03-28T00:00+01:00", "2020-03-29T00:00+01:00", "2020-03-30T00:00+02:00"), "D", "2020-03-28"),
    ],
)
def test_stamps(cells: tuple[str, ...], freq: str, first: str) -> None:
    text = "date,a\n" + "".join(f"{cell},{i}\n" for i, cell in enumerate(cells))
    series = one(text)
    assert (series.freq, len(series)) == (freq, 3)
    assert series.times[0] == pd.Timestamp(first)
    assert list(series.stamps(0)) == list(pd.date_range(first, periods=3, freq=freq))


@pytest.mark.parametrize(
    "freq",
    [
        *(
            "s",
            "30s",
            "min",
            "15min",
            "h",
            "36h",
            "D",
            "2D",
            "B",
            "W-SUN",
            "2W-FRI",
            "MS",
            "ME",
            "BMS",
            "BME",
        ),
        *("2MS", "QS-JAN", "QE-NOV", "BQE-DEC", "YS-APR", "YE-DEC", "BYE-DEC"),
    ],
)
def test_the_step_is_seen_through_gaps(freq: str) -> None:
    every = pd.date_range("2001-02-03", periods=60, freq=freq)
    seen = np.r_[0:20, 25:50, 51:60]
    step, share = stamps.infer(every[seen])
    assert step is not None and share > 0.9
    assert stamps.step_key(step) == stamps.step_key(freq)
    places, on, first = stamps.positions(every[seen], step)
    assert on.all() and (places == seen).all()
    assert list(pd.date_range(first, periods=60, freq=step)) == list(every)


@pytest.mark.parametrize(
    ("given", "same"),
    [("H", "h"), ("T", "min"), ("M", "ME"), ("Q", "QE"), ("W", "7D"), ("5 min", "5min"), ("24h", "D")],
)
def test_old_and_other_spellings_of_a_step(given: str, same: str) -> None:
    assert stamps.step_key(given) == stamps.step_key(same)


@pytest.mark.parametrize("bad", ["", "0h", "-1h", "x", "h h", "D'"])
def test_what_is_no_step(bad: str) -> None:
    with pytest.raises(ValueError):
        stamps.offset_of(bad)


def test_a_given_week_takes_the_day_of_the_stamps() -> None:
    assert one("date,a\n2002-01-01,1\n2002-01-08,2\n2002-01-15,4\n", freq="W").freq == "W-TUE"


def test_business_days_and_a_holiday() -> None:
    every = [day for i, day in enumerate(pd.bdate_range("2020-01-01", periods=12)) if i != 5]
    text = "date,a\n" + "".join(f"{day:%Y-%m-%d},{i}\n" for i, day in enumerate(every))
    assert told(text)[0].startswith(
        "x.csv:date: stamps absent: 1 after row 6 (2020-01-07 00:00); a row every B;"
    )
    series = one(text, gaps="mask")
    assert (series.freq, len(series)) == ("B", 12) and np.isnan(series.values[5, 0])


def test_numbered_rows_found_given_and_counted() -> None:
    plain = one("773869,767541\n64.4,67.6\n62.7,68.6\n")
    assert (
        plain.freq is None and plain.times.equals(pd.RangeIndex(2)) and plain.channels == ("773869", "767541")
    )
    assert "no column of stamps: rows are numbered steps" in plain.notes
    counted = one("step,a\n5,1\n6,3\n7,3\n")
    assert counted.times.equals(pd.RangeIndex(5, 8)) and counted.channels == ("a",)
    ignored = one(days(1, 2), date_column="")
    assert ignored.freq is None and ignored.channels == ("a",)


def test_formats_that_are_named() -> None:
    text = "Datum;Temp °C;Netz\n13.02.2016 01:00;1.234,5;-1,5\n13.02.2016 02:00;NaN;2\n"
    found = told(
        text.encode("latin-1"), sep=";", decimal="comma", encoding="latin-1", date_format="%d.%m.%Y %H:%M"
    )
    assert found == ["x.csv:Temp °C: thousands separators in row 2 ('1.234,5'); plain numbers; write 1234.5"]
    series = one(
        text.replace("1.234,5", "1234,5").encode("latin-1"),
        sep=";",
        decimal="comma",
        encoding="latin-1",
        date_format="%d.%m.%Y %H:%M",
    )
    np.testing.assert_array_equal(series.values, [[1234.5, -1.5], [np.nan, 2.0]])
    assert series.channels == ("Temp °C", "Netz") and series.times[0] == pd.Timestamp("2016-02-13 01:00")
    assert one(days(1, 2.5).encode("utf-16"), encoding="utf-16").values[1, 0] == 2.5
    assert one(b"\xef\xbb\xbf" + days(1, 2.5).encode()).channels == ("a",)
    assert one(days(1, 2.5).replace(",", "\t"), "x.tsv").values[1, 0] == 2.5


def test_future_rows_go_past_the_last_target() -> None:
    text = days("1,0,7", "3,true,8", "2,1,9", ",0,", ",TRUE,", head="date,a,holiday,load")
    series = one(text, future_columns=("holiday",), past_columns=("load",))
    assert (series.channels, len(series), series.past.ravel().tolist()) == (("a",), 3, [7, 8, 9])
    assert series.future.ravel().tolist() == [0, 1, 1, 0, 1]
    assert "holiday known for 2 steps past the last row" in series.notes
    assert not any("missing" in note for note in series.notes)
    tail = one(text, targets=("a",), past_columns=("load",))
    assert len(tail) == 5 and np.isnan(tail.values[3:]).all(), (
        "without future columns they are missing values"
    )
    back = to_frame(series)
    assert back["a"].isna().tolist() == [False] * 3 + [True] * 2 and back["holiday"].tolist() == [
        0,
        1,
        1,
        0,
        1,
    ]


def test_long_tables_hold_several_series() -> None:
    text = "unique_id,ds,y\nB2,2020-01-01,5\nA,2020-02-01,1\nB2,2020-01-02,6\nA,2020-02-02,2\nA,2020-02-03,\n"
    Path("x.csv").write_text(text)
    b, a = read_file(Path("x.csv"), ForecastDataConfig())
    assert (b.id, a.id, b.channels, len(b), len(a)) == ("B2", "A", ("y",), 2, 3)
    assert b.values.ravel().tolist() == [5, 6] and a.times[0] == pd.Timestamp("2020-02-01")
    assert any("A:y: 1 of 3 values missing: row 6" in note for note in a.notes) and len(b.notes) == 3
    Path("n.csv").write_text("shop,ds,y\n007,1,1\n007,2,2\nB,1,5\nB,2,6\n")
    shops = read_file(Path("n.csv"), ForecastDataConfig(id_column="shop"))
    assert [(s.id, s.freq, s.times[0]) for s in shops] == [("007", None, 1), ("B", None, 1)]


# ---------------------------------------------------------------- frames


def test_frames_of_every_dtype_read_alike() -> None:
    times = pd.date_range("2020-01-31", periods=4, freq="ME")
    wanted = np.array([1.0, 2.5, np.nan, 4.0])
    for stamped in (
        times,
        times.astype("datetime64[s]"),
        times.tz_localize("Asia/Tokyo"),
        list(times.date),
        list(map(str, times)),
        pd.Series(times).astype("string"),
    ):
        for cells in (
            wanted,
            pd.array(wanted, "Float64"),
            ["1", "2.5", None, 4],
            pd.array(wanted, "double[pyarrow]"),
        ):
            (series,) = read_frame(pd.DataFrame({"when": stamped, "y": cells}), ForecastDataConfig())
            assert series.freq == "ME" and series.times[0] == pd.Timestamp("2020-01-31")
            np.testing.assert_array_equal(series.values[:, 0], wanted)
    assert isinstance(times.date[0], date)


def test_frames_with_an_index() -> None:
    frame = pd.DataFrame(
        {0: [1.0, 2, 3], "flag": [True, False, True]}, pd.period_range("2020-01", periods=3, freq="M")
    )
    (series,) = read_frame(frame, ForecastDataConfig(), "sales")
    assert (series.id, series.freq, series.channels) == ("sales", "MS", ("0", "flag"))
    assert series.values.tolist() == [[1, 1], [2, 0], [3, 1]]
    index = pd.MultiIndex.from_product(
        [["A", "B"], pd.date_range("2020", periods=3)], names=["unique_id", "ds"]
    )
    panel = read_frame(pd.DataFrame({"y": np.arange(6.0)}, index), ForecastDataConfig())
    assert [(s.id, s.values.ravel().tolist()) for s in panel] == [("A", [0, 1, 2]), ("B", [3, 4, 5])]
    frame.set_index(pd.date_range("2020", periods=3, name="t")).rename(columns=str).to_parquet("i.parquet")
    assert read_file(Path("i.parquet"), ForecastDataConfig())[0].freq == "D"


def test_frames_that_are_none() -> None:
    for frame, found in (
        (pd.DataFrame(), "no rows"),
        (
            pd.DataFrame({"ds": pd.date_range("2020", periods=2), "y": [1j, 2j]}),
            "text in row 2 ('1j'), row 3 ('2j')",
        ),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "named twice: a (columns 1, 2)"),
        (
            pd.DataFrame({"ds": [pd.Timestamp("2020"), None, None], "y": [1.0, 2, 3]}),
            "no stamp in row 3 (''), row 4 ('')",
        ),
    ):
        with pytest.raises(DataInvalid) as caught:
            read_frame(frame, ForecastDataConfig())
        assert caught.value.faults[0].found == found and caught.value.faults[0].source == "frame"


FREQS = ["s", "15min", "h", "D", "B", "W-WED", "MS", "ME", "QS-FEB", "YE-DEC"]


@st.composite
def regular(draw: st.DrawFn) -> tuple[pd.DataFrame, str]:
    """A frame on a calendar, some values missing but no column empty, with names that need quotes."""
    freq = draw(st.sampled_from(FREQS))
    rows = draw(st.integers(6, 25))
    start = draw(st.datetimes(pd.Timestamp("1970"), pd.Timestamp("2100"))).replace(microsecond=0)
    times = pd.date_range(start if freq in ("s", "15min", "h") else start.date(), periods=rows, freq=freq)
    names = draw(st.lists(st.text("abcxyzé ,\"'", min_size=1, max_size=6), min_size=1, max_size=4))
    number = st.floats(-1e12, 1e12, allow_subnormal=False) | st.none()
    frame = pd.DataFrame({"ds": times})
    for index, name in enumerate(names):
        cells = draw(st.lists(number, min_size=rows, max_size=rows))
        frame[f"{name.strip()}{index}"] = np.array([float(index), *cells[1:]], np.float64)
    return frame, freq


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(regular(), st.sampled_from(["csv", "csv.gz", "tsv", "parquet", "frame"]))
def test_written_and_read_is_the_same(made: tuple[pd.DataFrame, str], kind: str) -> None:
    frame, freq = made
    path, data = Path(f"t.{kind}"), ForecastDataConfig()
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind != "frame":
        frame.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    (series,) = read_frame(frame, data) if kind == "frame" else read_file(path, data)
    assert series.channels == tuple(frame.columns[1:])
    assert list(series.times) == list(frame["ds"])
    assert stamps.step_key(str(series.freq)) == stamps.step_key(freq) or len(frame) < 8, (series.freq, freq)
    np.testing.assert_array_equal(series.values, frame.iloc[:, 1:].to_numpy())
    (again,) = read_frame(to_frame(series), data)
    np.testing.assert_array_equal(again.values, series.values)
    assert list(again.times) == list(series.times)
    assert len(series.stamps(3)) == len(series) + 3


@settings(max_examples=40)
@given(regular())
def test_wide_is_long(made: tuple[pd.DataFrame, str]) -> None:
    frame, _ = made
    long = frame.melt("ds", var_name="unique_id", value_name="y")
    (wide,) = read_frame(frame, ForecastDataConfig())
    parts = read_frame(long.sort_values("ds", kind="stable"), ForecastDataConfig())
    assert [part.id.strip() for part in parts] == [name.strip() for name in wide.channels]
    for index, part in enumerate(parts):
        assert (part.freq, part.channels) == (wide.freq, ("y",)) and part.times.equals(wide.times)
        np.testing.assert_array_equal(part.values[:, 0], wide.values[:, index])


# ---------------------------------------------------------------- data sets


def test_a_folder_is_a_series_a_file() -> None:
    Path("d").mkdir()
    Path("d/b.csv").write_text(days("1,2", "3,4", "5,7", head="date,x,y"))
    Path("d/c.csv").write_text(days("2,1", "4,3", "7,5", head="date,y,x"))
    Path("d/notes.txt").write_text("not a table")
    Path("d/.hidden.csv").write_text("x")
    b, c = read_dataset(Path("d"), ForecastDataConfig())
    assert (b.id, c.id, c.channels, c.source) == ("b", "c", ("x", "y"), "d/c.csv")
    np.testing.assert_array_equal(b.values, c.values)
    Path("d/d.csv").write_text(days("1", "3", "6", head="date,x"))
    Path("d/e.csv").write_text(days("1,2,3", "3,4,5", "5,6,8", head="date,x,y,z"))
    Path("d/f.csv").write_text("date,x,y\n" + "".join(f"2020-01-01 0{i}:00,{i},1{i}\n" for i in range(3)))
    Path("d/g.csv").write_text("")
    with pytest.raises(DataInvalid) as caught:
        read_dataset(Path("d"), ForecastDataConfig())
    assert [str(fault) for fault in caught.value.faults] == [
        "d/d.csv: no column y; the columns as in b.csv; add or rename them",
        "d/e.csv: columns z more; those of b.csv; name the columns in data.targets",
        "d/f.csv: a step of h; a step of D as in b.csv; resample it, or train on such data",
        "d/g.csv: empty file; a CSV, TSV or Parquet table; write the table again",
    ]


def test_folders_without_series_or_with_one_twice() -> None:
    Path("d").mkdir()
    Path("d/notes.txt").write_text("x")
    with pytest.raises(DataInvalid) as caught:
        read_dataset(Path("d"), ForecastDataConfig())
    assert str(caught.value) == (
        "d: 0 of 1 files match *.csv, *.csv.gz, *.tsv, *.tsv.gz, *.parquet; at least one table; check the path"
    )
    for name in ("a.csv", "a.tsv"):
        Path("d", name).write_text(days(1, 2))
    with pytest.raises(DataInvalid) as caught:
        read_dataset(Path("d"), ForecastDataConfig())
    assert str(caught.value) == "d: one series twice: a.csv, a.tsv; one file a series; rename one"
    with pytest.raises(
        DataInvalid, match=r"^no: No such file or directory; a table or a folder of tables; check the path"
    ):
        read_dataset(Path("no"), ForecastDataConfig())


def test_a_data_set_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("x.csv").write_text(days(1, 2, 3, head="date,OT"))
    loads: list[Path] = []
    real = table.load
    monkeypatch.setattr(table, "load", lambda path, data: (loads.append(path), real(path, data))[1])
    config = ForecastConfig(data=ForecastDataConfig(path=Path("x.csv"), input_length=2, horizon=1))
    found = infer(config)
    assert found == {
        "layout": "wide",
        "date_column": "date",
        "id_column": None,
        "freq": "D",
        "targets": ("OT",),
    }
    check(config)
    done = config.data.model_copy(update=found)
    first = read_dataset(Path("x.csv"), done)
    assert len(loads) == 1, "check, infer and the completed configuration share one reading"
    Path("x.csv").write_text(days(1, 2, 3, 4, head="date,OT"))
    assert len(read_dataset(Path("x.csv"), done)[0]) == 4 and len(loads) == 2
    assert len(first[0]) == 3
    read_dataset(Path("x.csv"), done.model_copy(update={"duplicates": "first"}))
    assert len(loads) == 3, "another configuration may read otherwise"


def test_check_tells_all_faults_and_rows_that_do_not_suffice() -> None:
    Path("x.csv").write_text(days(*range(9), head="date,OT"))
    config = ForecastConfig(data=ForecastDataConfig(path=Path("x.csv"), input_length=7, horizon=3))
    assert str(check(config)[0]) == (
        "x.csv: train part of 6 rows; 7 + 3 = 10 (input_length + horizon); give a longer series, or set data.split and "
        "data.fractions"
    )
    Path("x.csv").write_text("date,a,b,c\n2020-01-01,1,2,x\n2020-01-02,1,inf,4\n2020-01-03,1,2,3\n")
    faults = check(config)
    assert [fault.field for fault in faults] == ["b", "c"]
    Path("x.csv").write_text(HEAD + hours(24).replace("2020", "2021"))
    late = ForecastDataConfig(
        path=Path("x.csv"), input_length=2, horizon=1, split="dates", dates=("2022-01-01", "2023-01-01")
    )
    (fault,) = check(ForecastConfig(data=late))
    assert fault.found == "2022-01-01 and 2023-01-01 leave 24, 0, 0 rows"


def test_real_tables(data_dir: Path) -> None:
    for name, rows, channels, freq, start in (
        ("ETTh1", 17_420, 7, "h", "2016-07-01"),
        ("ETTm1", 69_680, 7, "15min", "2016-07-01"),
        ("exchange_rate", 7_588, 8, "D", "1990-01-01"),
        ("national_illness", 966, 7, "W-TUE", "2002-01-01"),
    ):
        (series,) = read_file(data_dir / "timeseries" / f"{name}.csv.gz", ForecastDataConfig())
        assert (series.id, len(series), series.values.shape[1], series.freq) == (name, rows, channels, freq)
        assert (
            series.times[0] == pd.Timestamp(start)
            and series.channels[-1] == "OT"
            and np.isfinite(series.values).all()
        )
    (speed,) = read_file(data_dir / "timeseries" / "los_speed.csv.gz", ForecastDataConfig())
    assert speed.values.shape == (2_016, 207) and speed.freq is None
    weather = data_dir / "timeseries" / "weather.csv.gz"
    with pytest.raises(DataInvalid) as caught:
        read_file(weather, ForecastDataConfig())
    assert [fault.found for fault in caught.value.faults] == [
        "stamps repeat at row 19046 (2020-05-12 06:00)",
        "stamps absent: 9 after row 21515 (2020-05-29 09:30)",
    ]
    (mended,) = read_file(weather, ForecastDataConfig(duplicates="first", gaps="mask"))
    assert (len(mended), mended.freq, int(np.isnan(mended.values).sum())) == (52_704, "10min", 9 * 21)


# ---------------------------------------------------------------- columns by name


def trained(**keys: object) -> ForecastConfig:
    return ForecastConfig(data=ForecastDataConfig(date_column="date", freq="D", **keys))  # type: ignore[arg-type]


def test_columns_are_matched_by_name() -> None:
    series = one(days("1,2,3,4", "5,6,7,8", "9,1,1,1", head="date,c,extra,b,a"))
    config = trained(targets=("a", "b"), future_columns=("c",))
    matched = match_columns(series, config)
    assert matched.channels == ("a", "b") and matched.values.tolist() == [[4, 3], [8, 7], [1, 1]]
    assert matched.future_columns == ("c",) and matched.future.ravel().tolist() == [1, 5, 9]
    assert matched.notes[-1] == "left out: extra"
    assert match_columns(matched, config) is matched
    with pytest.raises(ItemError) as caught:
        match_columns(series, trained(targets=("a", "x", "y")))
    assert (
        str(caught.value)
        == "x.csv: no column x, y; the columns as the model was trained on; add or rename them"
    )
    hourly = one(HEAD + hours(3))
    with pytest.raises(ItemError) as caught:
        match_columns(hourly, trained(targets=("a",)))
    assert str(caught.value) == (
        "x.csv: a step of h; a step of D as the model was trained on; resample it, or train on such data"
    )
    with pytest.raises(ItemError, match="numbered rows; a step of D as the model was trained on"):
        match_columns(one(days(1, 2), date_column=""), trained(targets=("a",)))
    weekly = one("date,a\n2002-01-01,1\n2002-01-08,2\n")
    assert match_columns(weekly, ForecastConfig(data=ForecastDataConfig(freq="W-SUN"))).freq == "W-TUE"


def test_fingerprint_follows_content_alone() -> None:
    a = one(days(1, 2, 3))
    same = one(days("1.0", "2.00", "3e0"), "x.csv.tsv.csv")
    assert fingerprint([a]) == fingerprint([Series(**{**same.__dict__, "id": "x"})])
    assert (
        len(
            {
                fingerprint([a]),
                fingerprint([one(days(1, 2, 4))]),
                fingerprint([one(days(1, 2, 3, head="date,b"))]),
            }
        )
        == 3
    )
