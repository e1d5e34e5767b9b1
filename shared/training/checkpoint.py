"""Training state on disk: whole or absent, verified on reading, readable without unpickling code.

A checkpoint is two files in one folder: ``save-000007.ckpt`` and, written after it, ``save-000007.json`` with its
sha256. A file without a matching manifest does not count, so a kill at any moment leaves the one before in force.
The last two are kept, and every ``best-*.ckpt`` (weights only) that one of them refers to.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO

from shared.errors import ModelUnusable, ResourcesExhausted, UsageError, first_line
from shared.io.atomic import atomic_path, atomic_write_json
from shared.io.hashes import sha256_file
from shared.training.injector import crash_point

KEEP = 2
PREFIX, BEST = "save-", "best-"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DROPPED = ("hyper_parameters", "datamodule_hyper_parameters", "hparams_name", "datamodule_hparams_name")
"""What Lightning would pickle of constructor arguments; ours are rebuilt from the configuration."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A verified checkpoint and what its manifest says about it."""

    path: Path
    facts: dict[str, Any]


class VerifiedIO(CheckpointIO):
    """Lightning's way to disk: `write_verified` and `read_verified`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        write_verified(Path(path), checkpoint, storage_options or {})

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_verified(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        remove(Path(path))


# ---------------------------------------------------------------- writing


def write_verified(path: Path, content: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write `content` (plain data and tensors), then its manifest with `facts`.

    Raises `ResourcesExhausted` with the bytes needed and free on a full disk; what was there before stays valid.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {key: _plain(value, key) for key, value in content.items() if key not in _DROPPED}
    need = _tensor_bytes(plain)
    if shutil.disk_usage(path.parent).free < need:
        raise _no_space(path, need)
    try:
        with atomic_path(path) as temp, open(temp, "wb") as file:
            hashed = _HashingWriter(file)
            try:
                torch.save(plain, cast(BinaryIO, hashed))
            except (RuntimeError, OSError):
                # The writer inside torch turns our OSError into a RuntimeError that says nothing.
                if hashed.trouble is not None:
                    raise hashed.trouble from None
                raise
            file.flush()
            os.fsync(file.fileno())
        crash_point("after_save")
        manifest = {"sha256": hashed.digest.hexdigest(), "bytes": hashed.count, **facts}
        atomic_write_json(manifest_of(path), manifest)
    except (OSError, ResourcesExhausted) as err:
        cause = err.__cause__ if isinstance(err, ResourcesExhausted) else err
        if isinstance(err, ResourcesExhausted) or getattr(cause, "errno", None) in _NO_SPACE:
            remove(path)
            raise _no_space(path, need) from err
        raise
    crash_point("after_manifest")


class _HashingWriter:
    """A binary file that hashes and counts what is written, and remembers its first error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.count = 0
        self.trouble: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as err:
            self.trouble = self.trouble or err
            raise
        self.digest.update(data)
        self.count += written
        if self.count > 4096:  # well inside the file: the header is out, the tensors are not
            self._file.flush()
            self._crash_once()
        return written

    def _crash_once(self) -> None:
        if not hasattr(self, "_passed"):
            self._passed = True
            crash_point("mid_save")

    def flush(self) -> None:
        self._file.flush()


def _plain(value: Any, where: str) -> Any:
    """`value` with numpy numbers, arrays and paths made plain. Raises `TypeError` on what would be pickled as code."""
    if value is None or isinstance(value, bool | str | bytes) or type(value) in (int, float, complex):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else set(items) if isinstance(value, set) else items
    if isinstance(value, np.ndarray) and value.dtype != object:
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, torch.dtype | torch.device):
        return value
    if isinstance(value, int | float):  # subclasses such as enums
        return int(value) if isinstance(value, int) else float(value)
    raise TypeError(f"checkpoint key {where}: {type(value).__name__} is neither plain data nor a tensor")


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_tensor_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_tensor_bytes, value))
    return 0


def _no_space(path: Path, need: int) -> ResourcesExhausted:
    free = shutil.disk_usage(path.parent).free
    return ResourcesExhausted(
        f"{path.name}: no space left writing it: need {need / 1e6:.1f} MB, {free / 1e6:.1f} MB free in {path.parent}; "
        "the checkpoint before is intact; free some and repeat the command"
    )


# ---------------------------------------------------------------- reading


def read_verified(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The checkpoint's content. Raises `ModelUnusable` unless it is exactly the file its manifest describes."""
    verify(path)
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as err:
        raise ModelUnusable(f"{path}: not a checkpoint ({first_line(err)})") from err
    if not isinstance(content, dict):
        raise ModelUnusable(f"{path}: a {type(content).__name__}; a checkpoint wanted; use another file")
    return content


def verify(path: Path) -> dict[str, Any]:
    """The manifest, if file and manifest agree. Raises `ModelUnusable`."""
    try:
        facts = json.loads(manifest_of(path).read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError("not a mapping")
        size, digest = path.stat().st_size, sha256_file(path)
    except (OSError, ValueError) as err:
        raise ModelUnusable(f"{path.name}: no readable manifest or file ({err})") from None
    if size != facts.get("bytes"):
        raise ModelUnusable(f"{path.name}: {size:,} bytes; {facts.get('bytes'):,} wanted")
    if digest != facts.get("sha256"):
        raise ModelUnusable(f"{path.name}: content differs from its sha256")
    return facts


def manifest_of(path: Path) -> Path:
    return path.with_suffix(".json")


def serial_of(path: Path) -> int:
    """7 for ``save-000007.ckpt``; 0 for other names."""
    digits = path.stem.removeprefix(PREFIX)
    return int(digits) if digits.isdigit() else 0


def newest(folder: Path, say: Callable[[str], None]) -> Saved | None:
    """The last verified checkpoint, or None if none was ever finished; unusable ones are skipped with a sentence.

    Raises `UsageError` if there are checkpoints but none can be trusted.
    """
    candidates = sorted(folder.glob(f"{PREFIX}*.ckpt"), key=serial_of, reverse=True)
    finished = [path for path in candidates if manifest_of(path).exists()]  # others: killed in mid-save
    for i, path in enumerate(finished):
        try:
            facts = verify(path)
        except ModelUnusable as err:
            later = "trying the one before" if i + 1 < len(finished) else "there is none before"
            say(f"checkpoint {err}; {later}")
            continue
        return Saved(path, facts)
    if finished:
        raise UsageError(
            f"{folder}: {len(finished)} checkpoints, none usable; a verified one wanted; start anew with --resume no"
        )
    return None


# ---------------------------------------------------------------- keeping


def next_path(folder: Path) -> Path:
    """A name after every name ever used here, so that no save replaces another."""
    last = max((serial_of(path) for path in folder.glob(f"{PREFIX}*")), default=0)
    return folder / f"{PREFIX}{last + 1:06d}.ckpt"


def prune(folder: Path, keep: int = KEEP) -> None:
    """Remove all but the last `keep` finished checkpoints, unfinished ones, and best weights no kept one needs."""
    saves = sorted(folder.glob(f"{PREFIX}*.ckpt"), key=serial_of, reverse=True)
    finished = [path for path in saves if manifest_of(path).exists()]
    needed = set()
    for path in finished[:keep]:
        try:
            needed.add(json.loads(manifest_of(path).read_text(encoding="utf-8")).get("best"))
        except (OSError, ValueError):
            continue
    for path in saves:
        if path not in finished[:keep]:
            remove(path)
    for path in folder.glob(f"{BEST}*.ckpt"):
        if path.name not in needed:
            remove(path)


def remove(path: Path) -> None:
    """Both files; the manifest first, so that what is left never counts."""
    manifest_of(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
