"""Files and folders that a user names, as items with names of their own; nothing is read."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

from shared.errors import Fault
from timeseries.forecast.tables.table import FORECAST, SUFFIXES, is_table, stem


def find_files(root: Path) -> list[tuple[Path, Path]]:
    """(where the search began, file), sorted; hidden files and forecasts of ours are passed over."""
    if not root.is_dir():
        return [(root.parent, root)]
    found = (path for path in root.rglob("*") if is_table(path) and not path.is_dir())
    return [
        (root, path)
        for path in sorted(found)
        if not (_hidden(path.relative_to(root)) or stem(path).endswith(FORECAST))
    ]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def fault_of(path: Path) -> Fault | None:
    """What can be known without reading: a link to nowhere, an empty file, not a table."""
    try:
        if not path.name.lower().endswith(SUFFIXES):
            return Fault(
                path, f"suffix {path.suffix or 'none'}", f"one of {', '.join(SUFFIXES)}", "export it as CSV"
            )
        if path.stat().st_size == 0 and path.is_file():
            return Fault(path, "empty file", "a table", "write it again")
    except OSError as err:
        what = "a link to a file that is not there" if path.is_symlink() else str(err.strerror)
        return Fault(path, what, "a readable table", "check the path")
    return None


def tame(name: str) -> str:
    """A file's name for any text: itself if harmless, else a tame form with 8 digits of its sha256."""
    clean = re.sub(r"[^\w.+=@ -]", "_", name).strip()
    if clean == name and not name.startswith((".", "-")) and 0 < len(name.encode("utf-8", "replace")) <= 120:
        return name
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.+-]', '_', name).lstrip('.-')[:80] or 'series'}-{digest}"
