"""One self-contained HTML page: text, tables and pictures inside, nothing loaded from anywhere.

Every value is escaped, there is no script, and the Content-Security-Policy forbids the browser to fetch anything, so a
report made from hostile file names or headers stays a page. Looks (light, dark, print): `shared/report/css.py`.
"""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.io.atomic import atomic_write_text
from shared.report.css import PAGE_CSS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PAGE_BYTES = 5_000_000
MAX_CARDS = 15
MAX_ROWS = 500  # a browser stays fluent; the whole table is in the run's CSV
# Pictures are re-coded as JPEG in these steps until the page fits: (longest side in pixels, quality).
_SHRINK = ((2400, 90), (1600, 85), (1200, 80), (800, 70), (500, 50))
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Report:
    """A page under construction. Calls add blocks in reading order; `write` makes the file."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        self._blocks: list[str | _Picture] = []
        self._contents: list[tuple[int, str, str]] = []

    def heading(self, text: str, level: int = 2) -> None:
        """A section (level 2) or subsection (3); both appear in the contents."""
        level = min(max(level, 2), 3)
        anchor = f"s{len(self._contents) + 1}-{re.sub(r'[^a-z0-9]+', '-', text.lower()).strip('-')[:40]}"
        self._contents.append((level, text, anchor))
        self._blocks.append(f'<h{level} id="{anchor}">{_safe(text)}</h{level}>')

    def text(self, text: str) -> None:
        """Paragraphs, parted by blank lines."""
        self._blocks += [f"<p>{_safe(part)}</p>" for part in re.split(r"\n\s*\n", text.strip()) if part]

    def items(self, texts: Iterable[str]) -> None:
        """A list of sentences."""
        inner = "".join(f"<li>{_safe(text)}</li>" for text in texts)
        if inner:
            self._blocks.append(f"<ul>{inner}</ul>")

    def warning(self, text: str) -> None:
        """A sentence the reader must not miss."""
        self._blocks.append(f'<p class="warning" role="note"><b>Note</b> {_safe(text)}</p>')

    def keyvalues(self, pairs: Mapping[str, Any]) -> None:
        """Names and values side by side: cards, or a dense list when there are many."""
        inner = "".join(
            f"<div><dt>{_safe(k)}</dt><dd>{_safe(_shown(v))}</dd></div>" for k, v in pairs.items()
        )
        if inner:
            look = ' class="many"' if len(pairs) > MAX_CARDS else ""
            self._blocks.append(f"<dl{look}>{inner}</dl>")

    def code(self, text: str) -> None:
        """Text as it is, in a fixed-width block."""
        self._blocks.append(f"<pre><code>{_safe(text.rstrip())}</code></pre>")

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        columns: Sequence[str] | Mapping[str, str] | None = None,
        caption: str = "",
    ) -> None:
        """A table; `columns` picks and orders keys (a mapping also names them). Numbers are right-aligned."""
        if columns is None:
            columns = list(dict.fromkeys(key for row in rows for key in row))
        named = columns if isinstance(columns, Mapping) else {key: key for key in columns}
        numeric = {key for key in named if _is_numeric([row.get(key) for row in rows])}
        decimals = {
            key: _decimals([row.get(key) for row in rows]) if key in numeric else None for key in named
        }
        head = "".join(f'<th scope="col"{_class(key in numeric)}>{_safe(n)}</th>' for key, n in named.items())
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{_class(key in numeric)}>{_safe(_shown(row.get(key), decimals[key]))}</td>"
                for key in named
            )
            + "</tr>"
            for row in rows[:MAX_ROWS]
        )
        if len(rows) > MAX_ROWS:
            caption = f"{caption} First {MAX_ROWS} of {len(rows)} rows.".strip()
        title = f"<caption>{_safe(caption)}</caption>" if caption else ""
        self._blocks.append(
            f'<div class="scroll" tabindex="0"><table>{title}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def figure(self, figure: Path | bytes | Figure, caption: str = "", width_px: int | None = None) -> None:
        """A picture: a PNG, JPEG or GIF file, its bytes, or a matplotlib figure.

        A file that is gone or no picture leaves a line saying so: a report must not fail for a thumbnail.
        """
        try:
            if isinstance(figure, bytes):
                data = figure
            elif isinstance(figure, str | Path):
                data = Path(figure).read_bytes()
            else:
                from shared.plots.style import png_bytes

                data = png_bytes(figure)
            self._blocks.append(_Picture(data, caption, width_px))
        except (OSError, ValueError) as err:
            self.warning(f"picture left out ({caption or 'no caption'}): {err}")

    # ------------------------------------------------------------ output

    def html(self, longest: int = 0, quality: int = 0) -> str:
        """The page; pictures no longer than `longest` pixels and as JPEG of `quality` (0: as they are)."""
        blocks = [b if isinstance(b, str) else b.html(longest, quality) for b in self._blocks]
        subtitle = f'<p class="subtitle">{_safe(self.subtitle)}</p>' if self.subtitle else ""
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
            f"<title>{_safe(self.title)}</title>\n<style>\n{PAGE_CSS}</style>\n</head>\n<body>\n"
            f"<header><h1>{_safe(self.title)}</h1>{subtitle}</header>\n{self._nav()}<main>\n"
            + "\n".join(blocks)
            + "\n</main>\n</body>\n</html>\n"
        )

    def _nav(self) -> str:
        if len(self._contents) < 2:
            return ""
        links = "".join(
            f'<li class="l{level}"><a href="#{anchor}">{_safe(text)}</a></li>'
            for level, text, anchor in self._contents
        )
        return f'<nav aria-label="Contents"><ol>{links}</ol></nav>\n'

    def write(self, path: Path) -> Path:
        """Write the page, at most 5 MB, whole or not at all. Pictures are made smaller if they must be."""
        page = self.html()
        for longest, quality in _SHRINK:
            if len(page.encode()) <= MAX_PAGE_BYTES:
                break
            page = self.html(longest, quality)
        atomic_write_text(Path(path), page)
        return Path(path)


class _Picture:
    """Image bytes checked on entry, inlined on output."""

    def __init__(self, data: bytes, caption: str, width_px: int | None) -> None:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:  # raises OSError when it is no picture
            self.size = image.size
            self.kind = str(image.format).lower()
        if self.kind not in ("png", "jpeg", "gif"):
            raise ValueError(f"a {self.kind} picture; PNG, JPEG or GIF wanted")
        self.data, self.caption, self.width_px = data, caption, width_px

    def html(self, longest: int, quality: int) -> str:
        data, kind = self._shrunk(longest, quality) if longest else (self.data, self.kind)
        text = base64.b64encode(data).decode("ascii")
        width = f' style="max-width:{int(self.width_px)}px"' if self.width_px else ""
        caption = f"<figcaption>{_safe(self.caption)}</figcaption>" if self.caption else ""
        return (
            f'<figure><img alt="{_safe(self.caption or "figure")}" width="{self.size[0]}" height="{self.size[1]}"'
            f'{width} src="data:image/{kind};base64,{text}">{caption}</figure>'
        )

    def _shrunk(self, longest: int, quality: int) -> tuple[bytes, str]:
        """The smaller of the picture as it is and re-coded within the limits."""
        from PIL import Image

        buffer = io.BytesIO()
        with Image.open(io.BytesIO(self.data)) as image:
            small = image.convert("RGB")
            small.thumbnail((longest, longest))
            small.save(buffer, "jpeg", quality=quality)
        smaller = buffer.getvalue()
        return (smaller, "jpeg") if len(smaller) < len(self.data) else (self.data, self.kind)


def _safe(text: Any) -> str:
    # Control characters (a header may hold any byte) are not allowed in HTML at all.
    return html.escape(
        re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", str(text)), quote=True
    )


def _shown(value: Any, decimals: int | None = None) -> str:
    """A value as a person writes it: four digits (or `decimals`), thousands parted, a dash for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        if decimals is not None:
            return f"{value:,.{decimals}f}"
        if value == int(value) and abs(value) < 1e15:
            return _shown(int(value))
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def _is_numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)


def _decimals(values: Sequence[Any]) -> int | None:
    """Decimals that give a column's largest number four digits; None where one count does not suit the column."""
    known = [abs(value) for value in values if value is not None and math.isfinite(value)]
    if not known or max(known) == 0 or all(value == int(value) for value in known):
        return None
    decimals = 3 - math.floor(math.log10(max(known)))
    return max(decimals, 0) if decimals <= 5 else None


def _class(numeric: bool) -> str:
    return ' class="n"' if numeric else ""
