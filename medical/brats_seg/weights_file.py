"""Weights that a user brings: read without running anything in them, with what they say about their origin.

``.safetensors``, ``.pt``/``.pth``/``.ckpt`` (``weights_only=True``, plus numpy's scalars, which the published
checkpoints hold as ``best_acc``), or a bundle of this suite. A card beside the file, ``NAME.json``, may state
``merging``, ``monai_version`` and ``sha256``; so may the metadata of a safetensors file and the top level of a
checkpoint. Every refusal is a `ModelUnusable`.
"""

from __future__ import annotations

import json
import pickletools
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.bundle import Bundle
from shared.errors import ModelUnusable
from shared.io.hashes import sha256_file

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_HOLDERS = ("state_dict", "model_state_dict", "model", "network", "net", "student", "teacher")
"""Keys under which training scripts keep the weights; the official code uses the first."""
_STATED = ("merging", "monai_version", "sha256")
_MERGINGS = ("merging", "legacy", "mergingv2")
_NEW_DEFAULT = (1, 5)
"""MONAI version that corrected the default merging."""
_PUBLISHED = re.compile(
    r"fold[0-4]_f48_ep300_4gpu_dice0_\d+|model_swinvit|ssl_pretrained_weights|swin_unetr_btcv", re.I
)
"""Names of the published Swin UNETR weights (research-contributions releases of 2022), all older than MONAI 1.5."""


@dataclass(frozen=True)
class WeightsFile:
    """`state`: name → tensor, as stored. `merging`: the patch merging it was trained with, None if nobody says."""

    path: Path
    state: Mapping[str, Tensor]
    merging: str | None
    origin: str
    """Why that merging, in a few words."""
    explicit: bool
    """Whether the merging itself was stated, not only a version or name that implies MONAI's default."""


def read_weights(path: Path) -> WeightsFile:
    """The file's tensors and provenance. Raises `ModelUnusable`."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if (folder / "schema.json").is_file() and (path.is_dir() or path.name == "weights.safetensors"):
        return _from_bundle(folder)
    start = _start(path)
    card = _card(path)
    if "sha256" in card and sha256_file(path) != card["sha256"].lower():
        raise ModelUnusable(f"{path}: content differs from the sha256 in its card; copy the file again")
    if start.startswith(_ZIP) or start.startswith(_PICKLE):
        state, stated = _from_torch(path, start.startswith(_ZIP))
    elif path.suffix.lower() == ".safetensors":
        state, stated = _from_safetensors(path)
    else:
        raise _not_a_checkpoint(path, "neither a torch file nor safetensors")
    if not state:
        raise _not_a_checkpoint(path, "no tensors in it")
    return WeightsFile(path, state, *_provenance(path, stated | card))


def _not_a_checkpoint(path: Path, why: str) -> ModelUnusable:
    return ModelUnusable(
        f"{path}: not a checkpoint ({why}); .safetensors, .pt or a bundle wanted; copy it again"
    )


def _start(path: Path) -> bytes:
    try:
        if not path.is_file():
            what = "not a regular file" if path.exists() else "not found"
            raise ModelUnusable(f"{path}: {what}; a weights file wanted; correct model.pretrained")
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as err:
        raise ModelUnusable(
            f"{path}: {err.strerror or err}; a readable file wanted; check the path"
        ) from None
    if not start:
        raise _not_a_checkpoint(path, "empty file")
    return start


# ---------------------------------------------------------------- formats


def _from_bundle(folder: Path) -> WeightsFile:
    from medical.brats_seg.config import BratsConfig

    bundle = Bundle.open(folder)
    if bundle.pipeline != "brats-seg":
        raise ModelUnusable(
            f"{folder}: a bundle of {bundle.pipeline}; one of brats-seg wanted; choose another"
        )
    merging = bundle.config(BratsConfig).model.merging
    return WeightsFile(folder, bundle.state_dict(), merging, "its bundle", True)


def _from_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, _stated(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, OverflowError) as err:
        raise _not_a_checkpoint(path, " ".join(str(err).split())[:80]) from None


def _numpy_scalars() -> list[Any]:
    """What a pickled numpy number needs, under the names of numpy 1 and 2: rebuilding it runs no foreign code."""
    from numpy._core.multiarray import scalar

    kinds = (np.float16, np.float32, np.float64, np.int32, np.int64, np.bool_)
    return [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in kinds),
    ]


def _from_torch(path: Path, zipped: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    if zipped:
        _verify_zip(path)
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as err:
        named = re.search(r"GLOBAL ([\w.]+)", str(err))
        code = [named.group(1)] if named else _globals(path, zipped)
        if not code:
            raise _not_a_checkpoint(path, "damaged pickle") from None
        raise ModelUnusable(
            f"{path}: contains code ({code[0]}), which is never run; tensors only wanted; if you trust it, load it "
            "where it was made and write `safetensors.torch.save_file(state_dict, 'weights.safetensors')`"
        ) from None
    except Exception as err:  # noqa: BLE001 - a cut or foreign file makes the reader raise anything
        raise _not_a_checkpoint(path, type(err).__name__) from None
    return _tensors(content), _stated(content if isinstance(content, Mapping) else {})


def _verify_zip(path: Path) -> None:
    """Read every member once, so that its checksum counts: torch does not look at it."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as err:
        raise _not_a_checkpoint(path, f"cut or damaged: {type(err).__name__}") from None
    if damaged is not None:
        raise ModelUnusable(f"{path}: content differs from its checksum in {damaged}; copy the file again")


def _globals(path: Path, zipped: bool) -> list[str]:
    """Importable names that the file's pickle mentions; nothing is imported or run."""
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                content = archive.read(name)
        else:
            content = path.read_bytes()
        words: list[str] = []
        for code, argument, _ in pickletools.genops(content):
            if code.name == "GLOBAL":
                return [str(argument).replace(" ", ".")]
            if code.name == "STACK_GLOBAL":
                return [".".join(words[-2:])]
            if isinstance(argument, str):
                words.append(argument)
    except (ValueError, OSError, StopIteration, zipfile.BadZipFile, UnicodeDecodeError):
        pass  # what cannot be read names nothing
    return []


def _tensors(content: Any) -> dict[str, Tensor]:
    """The weights inside whatever a training script saved."""
    for key in _HOLDERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        return {}
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


# ---------------------------------------------------------------- provenance


def _stated(content: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(content[key]) for key in _STATED if isinstance(content.get(key), str)}


def _card(path: Path) -> dict[str, str]:
    card = path.with_suffix(".json")
    if not card.is_file():
        return {}
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ModelUnusable(f"{card}: not JSON; a card wanted; mend or remove it") from None
    return _stated(content) if isinstance(content, Mapping) else {}


def _provenance(path: Path, stated: Mapping[str, str]) -> tuple[str | None, str, bool]:
    merging, version = stated.get("merging"), stated.get("monai_version")
    if merging is not None:
        if merging not in _MERGINGS:
            raise ModelUnusable(
                f"{path}:merging: found {merging!r}; one of {', '.join(_MERGINGS)} wanted; correct it"
            )
        return merging, "stated with the weights", True
    if version is not None:
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers is None:
            raise ModelUnusable(f"{path}:monai_version: found {version!r}; such as 1.3.2 wanted; correct it")
        old = (int(numbers[1]), int(numbers[2])) < _NEW_DEFAULT
        return ("legacy" if old else "merging"), f"made with MONAI {version}", False
    published = _PUBLISHED.search(f"{path.parent.name}/{path.name}")
    if published:
        return "legacy", f"published as {published.group()}", False
    return None, "unknown", False
