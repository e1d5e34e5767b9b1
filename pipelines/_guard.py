"""Our seven packages have everyday names; refuse to run when a foreign one shadows any of them."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("pipelines", "medical", "timeseries", "robotics", "vision", "astro", "shared")


def strangers() -> dict[str, str]:
    """Package → where it was found, for each that does not lie beside `pipelines`; {} when all is well."""
    home = Path(__file__).resolve().parent.parent
    out: dict[str, str] = {}
    for name in PACKAGES:
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        if found != home:
            out[name] = str(spec.origin) if spec and spec.origin else "not found"
    return out


def check() -> None:
    """Exit 2 with both paths and the cure if a package is shadowed."""
    odd = strangers()
    if odd:
        name, where = next(iter(odd.items()))
        home = Path(__file__).resolve().parent.parent
        print(
            f"{name}: found at {where}; {home / name} wanted; another distribution or the current folder shadows it: "
            "install into a fresh .venv (make setup) and use the `pipelines` command",
            file=sys.stderr,
        )
        raise SystemExit(2)
