"""Files that are complete or absent: a temporary name in the same folder, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.errors import ResourcesExhausted, UsageError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def temporary_name(path: Path) -> Path:
    """``.<name>.<pid>.<random>.tmp`` beside `path`; hidden, and swept when stale."""
    stem = path.name.encode("utf-8", "surrogateescape")[:180].decode(
        "utf-8", "ignore"
    )  # names end at 255 bytes
    return path.parent / f".{stem}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; renamed to `path` on success, removed on any error.

    Keeps the suffixes at the end (``x.nii.gz`` → ``.x.….tmp.nii.gz``) for writers that look at them, and the mode bits
    of a file it replaces. Raises `ResourcesExhausted` on a full disk, with the old file intact.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    temp = temporary_name(path)
    temp = temp.with_name(temp.name + suffix)
    try:
        yield temp
        with open(temp, "rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temp)
        os.replace(temp, path)
        sync_folder(path.parent)
    except OSError as err:
        if err.errno in _NO_SPACE:
            raise no_space(path, err) from err
        raise
    finally:
        temp.unlink(missing_ok=True)


def no_space(path: Path, err: OSError) -> ResourcesExhausted:
    """The error of a full disk while writing `path`, with what is free."""
    free = shutil.disk_usage(path.parent).free / 2**20
    return ResourcesExhausted(
        f"{path}: {os.strerror(err.errno or 0)}; {free:.0f} MB free there; free some and repeat the command"
    )


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write_bytes(path: Path, content: bytes) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temp:
        temp.write_bytes(content)
    return path


def atomic_write_text(path: Path, text: str) -> Path:
    return atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path, value: Any) -> Path:
    return atomic_write_text(path, json.dumps(value, indent=2, sort_keys=False, default=str) + "\n")


def sweep_temporaries(folder: Path) -> int:
    """Remove what killed processes left half written below `folder`, which only the caller may use; how many."""
    left = [
        path for path in folder.rglob(".*.tmp*") if re.search(r"\.\d+\.[0-9a-f]{8}\.tmp(\.|$)", path.name)
    ]
    for path in left:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return len(left)


def probe_writable(folder: Path) -> None:
    """Prove that `folder` takes files by writing one. Raises `UsageError` or `ResourcesExhausted`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_name(folder / "probe")
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as err:
        if err.errno in _NO_SPACE:
            raise no_space(folder, err) from err
        raise UsageError(
            f"{folder}: cannot be written ({err.strerror or err}); a writable folder wanted; choose another"
        ) from None
