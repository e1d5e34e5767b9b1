"""The report page: safe with hostile values, self-contained, bounded, whole or absent."""

from __future__ import annotations

import base64
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.plots.style import new_figure
from shared.report.html import MAX_PAGE_BYTES, MAX_ROWS, Report

HOSTILE = '<script>alert("x")</script>"\'&\x00\x1b[31m'


def png(width: int = 8, height: int = 6, noise: bool = False) -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    if noise:
        pixels = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order or left open."""

    void = {"meta", "img", "br", "link"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def everything(text: str) -> str:
    report = Report(text, text)
    report.heading(text)
    report.text(f"{text}\n\nsecond paragraph")
    report.items([text])
    report.warning(text)
    report.keyvalues({text: text})
    report.code(text)
    report.table([{text: text, "n": 1.0}], caption=text)
    report.figure(png(), text)
    report.heading("Last", level=3)
    return report.html()


def test_hostile_values_stay_text() -> None:
    page = everything(HOSTILE)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "script" not in parser.seen
    assert "\x00" not in page and "\x1b" not in page
    assert page.count("&lt;script&gt;alert(&quot;x&quot;)") >= 11


def test_page_fetches_nothing() -> None:
    page = everything("plain")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and policy[1].startswith("default-src 'none'; img-src data:;")
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', page)
    assert "url(" not in page and "@import" not in page


def test_contents_link_to_headings() -> None:
    report = Report("t")
    for text in ("First result", "First result", "Größe μ"):
        report.heading(text)
    page = report.html()
    targets = re.findall(r'href="#([^"]+)"', page)
    assert len(targets) == len(set(targets)) == 3
    assert all(f'id="{target}"' in page for target in targets)


def test_numbers_are_written_for_people() -> None:
    report = Report("t")
    values = {
        "none": None, "nan": math.nan, "inf": math.inf, "flag": True, "count": 62191941, "share": 0.123456,
        "mm": 12345.678, "whole": 3.0,
    }  # fmt: skip
    report.keyvalues(values)
    shown = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", report.html()))
    assert shown == {
        "none": "–", "nan": "–", "inf": "∞", "flag": "yes", "count": "62,191,941", "share": "0.1235",
        "mm": "12,345.7", "whole": "3",
    }  # fmt: skip


def test_table_orders_names_and_aligns() -> None:
    report = Report("t")
    report.table([{"a": 1.0, "b": "x"}, {"b": "y", "c": 3}], {"b": "Name", "a": "Score"}, caption="Cases.")
    page = report.html()
    assert re.findall(r"<th [^>]*>(.*?)</th>", page) == ["Name", "Score"]
    assert re.findall(r"<td([^>]*)>(.*?)</td>", page) == [
        ("", "x"), (' class="n"', "1"), ("", "y"), (' class="n"', "–"),
    ]  # fmt: skip
    assert "<caption>Cases.</caption>" in page


def test_a_column_has_one_number_of_decimals() -> None:
    report = Report("t")
    report.table(
        [{"dice": 0.9, "mm": 373.12866, "n": 3}, {"dice": 0.00912, "mm": 2.5, "n": 12}, {"dice": math.nan}]
    )
    cells = re.findall(r"<td[^>]*>(.*?)</td>", report.html())
    assert cells == ["0.9000", "373.1", "3", "0.0091", "2.5", "12", "–", "–", "–"]


def test_long_tables_are_cut_and_say_so() -> None:
    report = Report("t")
    report.table([{"i": i} for i in range(MAX_ROWS + 100)])
    page = report.html()
    assert page.count("<tr>") == MAX_ROWS + 1
    assert f"First {MAX_ROWS} of {MAX_ROWS + 100} rows." in page


def test_figures_from_path_bytes_and_matplotlib(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png())
    report = Report("t")
    report.figure(path, "from a file")
    report.figure(png(), "from bytes")
    report.figure(new_figure(2, 1), "drawn")
    sources = re.findall(r'src="data:image/png;base64,([^"]+)"', report.html())
    assert base64.b64decode(sources[0]) == base64.b64decode(sources[1]) == png()
    assert Image.open(io.BytesIO(base64.b64decode(sources[2]))).size == (288, 144)


@pytest.mark.parametrize("content", [None, b"", b"<svg onload=alert(1)>", png()[:40]])
def test_missing_or_broken_picture_leaves_a_note(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    report = Report("t")
    report.figure(path, "the picture")
    page = report.html()
    assert "<img" not in page
    assert "picture left out (the picture)" in page


def test_page_stays_under_five_megabytes(tmp_path: Path) -> None:
    report = Report("t")
    for _ in range(4):
        report.figure(png(1500, 1000, noise=True), "noise compresses badly")
    assert len(report.html()) > 3 * MAX_PAGE_BYTES
    page = report.write(tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) <= MAX_PAGE_BYTES
    assert page.count("<img") == 4


def test_write_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    Report("first").write(path)
    Report("second").write(path)
    assert "<h1>second</h1>" in path.read_text(encoding="utf-8")
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]
