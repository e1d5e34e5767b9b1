"""The folder of a batch's results: one owner, a manifest, files that are complete or absent and never someone else's.

An item's manifest line is on the disk before its files are moved to their place. A process killed between the two
leaves a line whose files are missing, and the next run makes them; the other order leaves files nobody vouches for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared.errors import ItemError, UsageError
from shared.io.atomic import no_space, probe_writable, sync_folder, temporary_name
from shared.io.hashes import sha256_file
from shared.io.strict_json import as_line

MANIFEST = "manifest.jsonl"
LOCK = ".pipelines.lock"
_MAX_NAME = 120
"""Bytes of a made-up name; a file system takes 255, suffixes come on top."""
_BEGUN = re.compile(rb'\{"item": ("(?:[^"\\]|\\.)*")')
_OURS = re.compile(r"^\.(item|replaced)\.\d+\.[0-9a-f]{8}\.tmp$")


@dataclass(slots=True)
class Owned:
    """A path below the output folder that a manifest line names."""

    item: str
    hashes: set[str] = field(default_factory=set)


def safe_name(item_id: str) -> str:
    """A folder name for any id: the id itself if harmless, else a tame form with 8 digits of its sha256."""
    tame = re.sub(r"[^\w.+=@ -]", "_", item_id).strip()
    if (
        tame == item_id
        and item_id not in ("", MANIFEST)
        and not item_id.startswith((".", "-"))
        and len(item_id.encode("utf-8", "surrogatepass")) <= _MAX_NAME
    ):
        return item_id
    digest = hashlib.sha256(item_id.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    short = re.sub(r"[^A-Za-z0-9_.+-]", "_", item_id).lstrip(".-")[:80]
    return f"{short or 'item'}-{digest}"


class OutputFolder:
    """Enter it to own it. Raises `UsageError` when another process does, or nothing can be written there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.layout = "folder"
        self.done: dict[str, dict[str, Any]] = {}
        """Item → the line of its last success."""
        self.owned: dict[str, Owned] = {}
        self._begun: set[str] = set()
        """Items whose line is cut: what lies in their place is ours, though nothing says which."""
        self._placed: dict[str, str] = {}
        """Path → item, of this run; folders cannot collide, files can."""

    # ------------------------------------------------------------ owning it

    def __enter__(self) -> OutputFolder:
        from filelock import FileLock, Timeout

        probe_writable(self.path)
        lock_file = self.path / LOCK
        self._lock = FileLock(lock_file, timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            try:
                owner = lock_file.read_text().strip()
            except OSError:
                owner = ""
            raise UsageError(
                f"{self.path}: in use by {owner or 'another process'}; a folder of its own wanted; "
                "wait for it, or choose another --output"
            ) from None
        try:
            lock_file.write_text(f"pid {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            self._sweep()
            self._read()
            self._file = os.open(self.manifest, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self._sweep()
        self._lock.release()

    @property
    def manifest(self) -> Path:
        return self.path / MANIFEST

    def draft(self) -> Path:
        """Where an item's files may be made: same file system, hidden, swept if it is left over."""
        return temporary_name(self.path / "item")

    def _sweep(self) -> None:
        """Clear what a killed process left. The lock is ours, so whatever there is has no owner any more."""
        for temp in self.path.glob(".*.tmp"):
            match = _OURS.match(temp.name)
            if not match:
                continue
            if match.group(1) == "replaced":  # killed between moving the old away and the new in: put it back
                for old in temp.iterdir():
                    if not os.path.lexists(self.path / old.name):
                        old.rename(self.path / old.name)
            shutil.rmtree(temp, ignore_errors=True)

    # ------------------------------------------------------------ the manifest

    def _read(self) -> None:
        if not self.manifest.exists():
            return
        with open(self.manifest, "rb") as file:
            for raw in file:
                try:
                    line = json.loads(raw)
                    item, status, outputs = str(line["item"]), line["status"], line["outputs"]
                    if status in ("ok", "skipped"):
                        self.done[item] = line
                        for output in outputs:
                            self._own(output["path"], item, output["sha256"])
                except (ValueError, KeyError, TypeError):  # the last line of a killed process, cut
                    begun = _BEGUN.match(raw)
                    if begun:
                        self._begun.add(str(json.loads(begun.group(1))))
            cut = file.tell() > 0 and not raw.endswith(b"\n")
        if cut:
            with open(self.manifest, "ab") as file:
                file.write(b"\n")

    def _own(self, path: str, item: str, digest: str) -> None:
        owner = self.owned.get(path)
        if owner is None or owner.item != item:
            owner = self.owned[path] = Owned(item)
        owner.hashes.add(digest)

    def append(self, line: Mapping[str, Any], *, durable: bool = True) -> None:
        """Add one line, on the disk when this returns. Raises `ResourcesExhausted`."""
        try:
            os.write(self._file, (as_line(line) + "\n").encode("ascii"))
            if durable:
                os.fsync(self._file)
        except OSError as err:
            raise no_space(self.manifest, err) from err

    # ------------------------------------------------------------ what is there already

    def finished(self, item: str, like: Mapping[str, Any]) -> dict[str, Any] | None:
        """The line of `item`'s last success if it equals `like` in every key and its files are unchanged."""
        line = self.done.get(item)
        if line is None or any(line.get(key) != value for key, value in like.items()):
            return None
        return line if all(self._intact(output) for output in line["outputs"]) else None

    def _intact(self, output: Mapping[str, str]) -> bool:
        path = self.path / output["path"]
        return path.is_file() and sha256_file(path) == output["sha256"]

    def is_result(self, source: Path) -> bool:
        """Whether `source` is one of our own files, or lies in the folder of one."""
        try:
            inside = source.resolve().relative_to(self.path.resolve())
        except (ValueError, OSError, RuntimeError):
            return False
        return inside.as_posix() in self.owned or inside.name == MANIFEST

    def guard(self, item: str, name: str) -> None:
        """Raise `ItemError` before any work if the item's place is taken by files that are not ours."""
        ours = [output["path"] for output in self.done.get(item, {"outputs": []})["outputs"]]
        for path in ours:
            if os.path.lexists(self.path / path) and self._foreign(path, item):
                raise _changed(self.path / path)
        place = self.path / name
        if self.layout == "flat" or ours or item in self._begun or not os.path.lexists(place):
            return
        if place.is_symlink() or not place.is_dir() or any(place.iterdir()):
            raise _taken(place)

    def _foreign(self, path: str, item: str) -> bool:
        """Whether the existing `path` holds something this item did not write."""
        if item in self._begun:
            return False
        owner, full = self.owned.get(path), self.path / path
        if owner is None or owner.item != item or full.is_symlink() or not full.is_file():
            return True
        return sha256_file(full) not in owner.hashes

    # ------------------------------------------------------------ moving in

    def place(self, line: Mapping[str, Any], name: str, draft: Path, *, overwrite: bool) -> None:
        """Write the item's `line` and move the files in `draft` to where its ``outputs`` say.

        Raises `ItemError`, with nothing changed, if something foreign is in the way and not to be overwritten.
        """
        item, outputs = str(line["item"]), list(line["outputs"])
        for output in outputs:
            path = output["path"]
            twin = self._placed.get(path, item)
            if twin != item:
                raise ItemError(
                    self.path / path, f"written by {twin} already", "one name a result", "rename an input"
                )
            if path in (MANIFEST, LOCK) or (
                os.path.lexists(self.path / path) and self._foreign(path, item) and not overwrite
            ):
                raise _taken(self.path / path)
        before = self.done.get(item, {"outputs": []})["outputs"]
        self.append(line)
        if self.layout == "folder":
            self._move_folder(draft, name)
        else:
            self._move_files(draft, [output["path"] for output in outputs], before)
            self._placed |= {output["path"]: item for output in outputs}

    def _move_folder(self, draft: Path, name: str) -> None:
        target = self.path / name
        if os.path.lexists(target):
            if target.is_dir() and not target.is_symlink():
                self._carry(target, draft, name)
            old = temporary_name(self.path / "replaced")
            old.mkdir()
            target.rename(old / name)
            draft.rename(target)
            shutil.rmtree(old)
        else:
            draft.rename(target)
        sync_folder(self.path)

    def _carry(self, target: Path, draft: Path, name: str) -> None:
        """Keep what people put beside our files: link it into the new folder unless a new file has its name."""
        for path in sorted(target.rglob("*")):
            inside = path.relative_to(target)
            if path.is_dir() and not path.is_symlink():
                continue
            if f"{name}/{inside.as_posix()}" in self.owned or os.path.lexists(draft / inside):
                continue
            (draft / inside).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, draft / inside, follow_symlinks=False)
            except OSError:  # a file system without hard links
                shutil.copy2(path, draft / inside, follow_symlinks=False)

    def _move_files(self, draft: Path, paths: Sequence[str], before: Iterable[Mapping[str, str]]) -> None:
        for path in paths:
            (self.path / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(draft / path, self.path / path)
        for output in before:  # of an earlier run with other options
            if output["path"] not in paths and self._intact(output):
                (self.path / output["path"]).unlink()
        for folder in {(self.path / path).parent for path in paths}:
            sync_folder(folder)
        shutil.rmtree(draft, ignore_errors=True)


def _taken(path: Path) -> ItemError:
    return ItemError(
        path, "exists and was not written by this command", "a free place", "move it, or give --overwrite"
    )


def _changed(path: Path) -> ItemError:
    return ItemError(
        path,
        "was changed since it was written",
        "the written result",
        "move it to keep it, or give --overwrite",
    )
