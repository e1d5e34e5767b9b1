"""Zip and tar archives, unpacked only if every member is harmless; nothing is written before the last one is judged.

Refused: paths that leave the folder, links, devices, doubles, encryption, too many members, more bytes than the limit
or than plain compression explains. Names, sizes and types are checked from the listing, sizes again while writing.
"""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from shared.errors import ItemError, ResourcesExhausted, SuiteError
from shared.io.atomic import no_space, sync_folder, temporary_name

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
MAX_RATIO = 300
"""Unpacked to packed size of the whole. A label map of zeros reaches this alone; whole data sets stay below 20."""
_FREE_OF_RATIO = 64 * 2**20
"""Small totals are harmless at any ratio."""
_MAX_NAME_BYTES, _MAX_TAR_HEADER = 1024, 1 << 20
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may come to."""

    unpacked_bytes: int = 8 * 2**30
    members: int = 100_000


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    kind: str
    """``file``, ``folder``, or what it is instead."""


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def unpack(path: Path, folder: Path, limits: Limits | None = None) -> Path:
    """The contents of archive `path` as the new folder `folder`; complete or absent.

    Raises `ItemError` naming the archive and the member, `ResourcesExhausted` on a full disk.
    """
    limits = limits or Limits()
    with _faults(path):
        members = _judge(path, _listed(path, limits), limits)
    total = sum(member.size for member in members.values())
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if total > free:
        raise ResourcesExhausted(
            f"{folder}: {total / 2**20:.0f} MB needed to unpack {path}, {free / 2**20:.0f} MB free; free some"
        )
    draft = temporary_name(folder)
    try:
        with _faults(path):
            draft.mkdir()
            for name, content in _contents(path, limits):
                _write(path, draft, members[name], content)
        os.rename(draft, folder)
        sync_folder(folder.parent)
    except OSError as err:
        raise no_space(folder, err) from err
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Whatever a hostile file makes the library raise becomes one `ItemError`; a disk's errors stay themselves."""
    try:
        yield
    except SuiteError:
        raise
    except (OSError, MemoryError) as err:
        # A damaged offset makes the library seek to nowhere: EINVAL is the file's fault, not the disk's.
        if isinstance(err, OSError) and err.errno not in (None, errno.EINVAL):
            if err.filename is not None and str(err.filename) == str(path):
                raise ItemError(
                    path, err.strerror or str(err), "a readable archive", "check the path"
                ) from None
            raise
        raise ItemError(path, f"damaged ({err or 'too large'})", "a whole archive", "copy it again") from None
    except Exception as err:  # noqa: BLE001 - the libraries raise a dozen kinds
        text = " ".join(str(err).split())[:80] or type(err).__name__
        raise ItemError(path, f"damaged ({text})", "a whole archive", "copy it again") from None


# ---------------------------------------------------------------- judging


def _judge(path: Path, listed: Iterator[_Member], limits: Limits) -> dict[str, _Member]:
    """Members by name. Raises `ItemError` at the first that must not be written."""
    members: dict[str, _Member] = {}
    packed, total = path.stat().st_size, 0
    for member in listed:
        name = _clean(path, member.name)
        if member.kind not in ("file", "folder"):
            raise ItemError(
                path, f"is {member.kind}", "plain files only", "pack it again without", member.name[:60]
            )
        if name in members and (member.kind, members[name].kind) != ("folder", "folder"):
            raise ItemError(path, "comes twice", "one of each name", "pack it again", name[:60])
        members[name] = _Member(name, member.size, member.kind)
        total += member.size
        if len(members) > limits.members:
            raise ItemError(
                path, f"over {limits.members:,} members", "fewer", "unpack it yourself, then give the folder"
            )
        _refuse_large(path, packed, total, limits)
    for name in members:
        for parent in PurePosixPath(name).parents:
            if str(parent) in members and members[str(parent)].kind == "file":
                raise ItemError(
                    path, f"lies below the file {parent}"[:80], "one of each name", "pack it again", name[:60]
                )
    return members


def _clean(path: Path, name: str) -> str:
    """The member's path without ``./``. Raises `ItemError` if it could end up elsewhere."""
    parts = name.rstrip("/").split("/")
    if (
        name.startswith("/")
        or ".." in parts
        or any(mark in name for mark in ("\\", "\0"))
        or (len(name) > 1 and name[1] == ":")
        or len(name.encode("utf-8", "surrogateescape")) > _MAX_NAME_BYTES
    ):
        raise ItemError(
            path, "leaves the folder", "relative names", "do not unpack it; ask its maker", repr(name[:60])
        )
    return str(PurePosixPath(*parts))


def _refuse_large(path: Path, packed: int, total: int, limits: Limits) -> None:
    if total > limits.unpacked_bytes:
        found, wanted = (
            f"over {total / 2**30:.1f} GiB unpacked",
            f"at most {limits.unpacked_bytes / 2**30:.1f} GiB",
        )
        raise ItemError(path, found, wanted, "unpack it yourself, then give the folder")
    if total > _FREE_OF_RATIO and total > MAX_RATIO * packed:
        found = f"unpacks to over {total // max(packed, 1):,} times its size"
        raise ItemError(path, found, f"at most {MAX_RATIO} times", "do not unpack it; ask its maker")


def _write(path: Path, draft: Path, member: _Member, content: IO[bytes] | None) -> None:
    target = draft / member.name
    if member.kind == "folder" or content is None:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.size
    with open(target, "xb") as file:
        while block := content.read(_BLOCK):
            left -= len(block)
            if left < 0:
                raise ItemError(
                    path,
                    "larger than the listing says",
                    f"{member.size:,} bytes",
                    "copy it again",
                    member.name[:60],
                )
            file.write(block)
    if left:
        raise ItemError(
            path, "shorter than the listing says", f"{member.size:,} bytes", "copy it again", member.name[:60]
        )


# ---------------------------------------------------------------- the formats


def _listed(path: Path, limits: Limits) -> Iterator[_Member]:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ItemError(path, "not a regular file", "a .zip, .tar or .tar.gz file", "give the file itself")
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as file:
            yield from map(_zip_member, file.infolist())
    else:
        with _tar(path, limits) as tar:
            yield from map(_tar_member, tar)


def _contents(path: Path, limits: Limits) -> Iterator[tuple[str, IO[bytes] | None]]:
    """(clean name, stream or None for a folder), checked again by the caller."""
    if path.name.lower().endswith(".zip"):
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if info.is_dir():
                    yield _clean(path, info.filename), None
                    continue
                with file.open(info) as stream:  # its end verifies the CRC
                    yield _clean(path, info.filename), stream
    else:
        with _tar(path, limits) as tar:
            for member in tar:
                yield _clean(path, member.name), tar.extractfile(member) if member.isreg() else None


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & 1:
        what = "encrypted"
    elif info.is_dir():
        what = "folder"
    elif kind in (0, stat.S_IFREG):
        what = "file"
    else:
        what = "a link" if kind == stat.S_IFLNK else "a special file"
    return _Member(info.filename, info.file_size, what)


def _tar_member(info: tarfile.TarInfo) -> _Member:
    if info.isdir():
        return _Member(info.name, 0, "folder")
    if info.issparse():
        return _Member(info.name, 0, "sparse")
    if info.isreg():
        return _Member(info.name, info.size, "file")
    return _Member(info.name, 0, "a link" if info.issym() or info.islnk() else "a special file")


class _TarInfo(tarfile.TarInfo):
    """Long names and extended headers are read into memory as a whole, so their size is judged first."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:
        special = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        names = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        if self.type in special + names and self.size > _MAX_TAR_HEADER:
            raise tarfile.ReadError(f"header of {self.size:,} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]


class _Bounded:
    """A stream that refuses to give more than a data set of the allowed size can need."""

    def __init__(self, path: Path, stream: IO[bytes], limits: Limits) -> None:
        self.path, self.stream, self.limits = path, stream, limits
        self.packed, self.total = path.stat().st_size, 0

    def read(self, size: int = -1) -> bytes:
        block = self.stream.read(size)
        self.total += len(block)
        # Headers and padding of a tar file: at most 1.5 kB a member beside the content.
        _refuse_large(self.path, self.packed, self.total - 1536 * self.limits.members, self.limits)
        return block


@contextmanager
def _tar(path: Path, limits: Limits) -> Iterator[tarfile.TarFile]:
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        bounded: Any = _Bounded(path, stream, limits)
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_TarInfo, errorlevel=1) as tar:
            yield tar
            while bounded.read(_BLOCK):  # to the end, where gzip keeps its checksum
                pass
