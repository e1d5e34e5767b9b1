"""What works on this machine, each row with the one-line mend where it does not."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path

from pipelines import _guard, registry

Row = dict[str, str]
FREE_GB = 5
FORBIDDEN = ("torchaudio", "albumentationsx", "lightning")
"""torchaudio's default wheel breaks beside a CPU torch; the other two shadow what we use."""


def row(name: str, state: str, detail: str, mend: str = "") -> Row:
    return {"name": name, "state": state, "detail": detail, "mend": mend}


def diagnose() -> list[Row]:
    """One row per finding; state is ok, warn or fail."""
    rows: list[Row] = []
    for probe in (_python, _packages, _torch, _pipelines, _folder, _store, _pins, _strays):
        try:
            rows.extend(probe())
        except Exception as err:  # noqa: BLE001 - a broken probe is itself the finding
            rows.append(
                row(probe.__name__.strip("_"), "fail", f"{type(err).__name__}: {err}", "see the message")
            )
    return rows


def _python() -> Iterator[Row]:
    good = sys.version_info >= (3, 11)
    yield row(
        "python",
        "ok" if good else "fail",
        sys.version.split()[0],
        "" if good else "install Python 3.11 or newer",
    )


def _packages() -> Iterator[Row]:
    for name, where in _guard.strangers().items():
        yield row(f"package {name}", "fail", where, "use a fresh .venv: make setup")


def _torch() -> Iterator[Row]:
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU only"
    yield row(
        "torch", "ok", f"{torch.__version__}, {device}, {torch.get_num_threads()} of {os.cpu_count()} threads"
    )


def _pipelines() -> Iterator[Row]:
    if not registry.names():
        yield row("pipelines", "fail", "none registered", "make setup")
    for name in registry.names():
        pipeline = registry.load(name)
        if pipeline.missing:
            mend = f"make setup EXTRAS={pipeline.extra}"
            yield row(name, "warn", f"missing {', '.join(pipeline.missing)}", mend)
        else:
            yield row(
                name, "ok", "ready" + (", weights shipped" if pipeline.builtin else ", no shipped weights")
            )


def _folder() -> Iterator[Row]:
    from shared.io.atomic import probe_writable

    here = Path.cwd()
    try:
        probe_writable(here)
        yield row("working folder", "ok", "writable")
    except Exception as err:  # noqa: BLE001 - any reason it cannot be written is the finding
        yield row("working folder", "fail", str(err), "change to a folder you may write")
    free = shutil.disk_usage(here).free / 2**30
    yield row(
        "free disk",
        "ok" if free > FREE_GB else "warn",
        f"{free:.0f} GB",
        "" if free > FREE_GB else "free some",
    )


def _store() -> Iterator[Row]:
    from shared.tracking.store import connect

    yield row("MLflow store", "ok", connect().uri)


def _pins() -> Iterator[Row]:
    """Installed versions against constraints.txt, where a clone has it."""
    path = Path(__file__).resolve().parent.parent / "constraints.txt"
    if not path.is_file():
        return
    off = []
    for line in path.read_text().splitlines():
        name, equals, wanted = line.split("#")[0].strip().partition("==")
        if not equals:
            continue
        try:
            found = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
        if found != wanted:
            off.append(f"{name} {found} (pinned {wanted})")
    detail = "as pinned" if not off else f"{len(off)} differ: {', '.join(off[:4])}"
    yield row("versions", "warn" if off else "ok", detail, "make setup" if off else "")


def _strays() -> Iterator[Row]:
    names = {str(dist.metadata["Name"]).lower() for dist in distributions()}
    for name in FORBIDDEN:
        if name in names:
            yield row(name, "warn", "installed", f"pip uninstall {name}")
