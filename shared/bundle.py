"""A model on disk: five plain files, no pickle, loaded only through the pipeline named inside.

``config.yaml`` the resolved configuration · ``weights.safetensors`` · ``card.md`` for people ·
``metrics.json`` what was measured · ``schema.json`` what a program must know (pipeline, format, sha256 of the
weights, parameter count, and the pipeline's own facts).
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.config import Config, read_yaml, resolve, to_yaml
from shared.errors import ModelUnusable, UsageError
from shared.io.atomic import atomic_write_text, sync_folder
from shared.io.hashes import sha256_file
from shared.io.strict_json import plain

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
FILES = ("config.yaml", "weights.safetensors", "card.md", "metrics.json", "schema.json")


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle. Weights are read on `state_dict()` only."""

    path: Path
    schema: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """The bundle in folder `path`. Raises `ModelUnusable` if it is incomplete or damaged."""
        path = Path(path)
        absent = [name for name in FILES if not (path / name).is_file()]
        if absent:
            raise ModelUnusable(
                f"{path}: no {', '.join(absent)}; a bundle folder wanted; "
                "give a folder that `pipelines run` wrote, or `builtin`"
            )
        try:
            schema = json.loads((path / "schema.json").read_text(encoding="utf-8"))
            format_, digest = int(schema["format"]), str(schema["weights_sha256"])
        except (ValueError, KeyError, TypeError):
            raise ModelUnusable(f"{path / 'schema.json'}: not a bundle's schema; restore the file") from None
        if format_ != FORMAT:
            raise ModelUnusable(
                f"{path / 'schema.json'}:format: found {format_}; {FORMAT} wanted; "
                "use the version of this suite that wrote it"
            )
        if sha256_file(path / "weights.safetensors") != digest:
            raise ModelUnusable(
                f"{path / 'weights.safetensors'}: content differs from schema.json:weights_sha256; "
                "the written weights wanted; copy the bundle again"
            )
        return cls(path, schema)

    @property
    def pipeline(self) -> str:
        return str(self.schema["pipeline"])

    @cached_property
    def hash(self) -> str:
        """16 hex digits over weights and configuration: two bundles that predict alike share it."""
        text = f"{self.schema['weights_sha256']}{sha256_file(self.path / 'config.yaml')}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """What was measured; NaN, which JSON does not know, comes back from null."""
        stored = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
        return {key: float("nan") if value is None else value for key, value in stored.items()}

    @property
    def card(self) -> str:
        return (self.path / "card.md").read_text(encoding="utf-8")

    def config(self, config_type: type[Config], over: Mapping[str, Any] | None = None) -> Any:
        """The configuration it was trained with, `over` (nested mapping) laid on top. Raises `UsageError`."""
        layers = [(str(self.path / "config.yaml"), read_yaml(self.path / "config.yaml"))]
        if over:
            layers.append(("--set", dict(over)))
        return resolve(config_type, layers)

    def state_dict(self) -> dict[str, Tensor]:
        """Name → tensor. Raises `ModelUnusable`."""
        from safetensors.torch import load_file

        try:
            state: dict[str, Tensor] = load_file(self.path / "weights.safetensors")
        except Exception as err:
            raise ModelUnusable(f"{self.path / 'weights.safetensors'}: {err}; safetensors wanted") from err
        return state

    def load_into(self, network: Any) -> Any:
        """`network` with the bundle's weights, in evaluation mode. Raises `ModelUnusable` naming the keys.

        A network of which parts (trees) are as large as training made them has ``make_room(state)``, called first; it
        raises `ValueError` for a state that it cannot take.
        """
        from torch import float32

        state = {k: v.to(float32) if v.is_floating_point() else v for k, v in self.state_dict().items()}
        if hasattr(network, "make_room"):
            try:
                network.make_room(state)
            except ValueError as err:
                raise ModelUnusable(f"{self.path}: {err}") from None
        wanted = network.state_dict()
        odd = [
            key
            for key in sorted(wanted.keys() | state.keys())
            if key not in state or key not in wanted or state[key].shape != wanted[key].shape
        ]
        if odd:
            shown = ", ".join(f"{key} {_shape(state, key)} not {_shape(wanted, key)}" for key in odd[:3])
            raise ModelUnusable(
                f"{self.path}: weights do not fit config.yaml; first differing keys {shown} "
                f"({len(odd)} in all); use the configuration they were trained with"
            )
        network.load_state_dict(state)
        return network.eval()

    @classmethod
    def save(
        cls,
        path: Path,
        *,
        pipeline: str,
        config: Config,
        state_dict: Mapping[str, Tensor],
        schema: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        card: str = "",
        overwrite: bool = False,
    ) -> Bundle:
        """Write all five files into a temporary folder, then rename it to `path`. Complete or absent.

        ``schema["params_count"]`` is what training counted; without it, all floating-point values of the state.
        """
        from safetensors.torch import save_file

        path = Path(path)
        if path.exists() and not overwrite:
            raise UsageError(f"{path}: exists; a new folder wanted; remove it or choose another")
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        draft.mkdir()
        try:
            tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state_dict.items()}
            save_file(tensors, draft / "weights.safetensors")
            facts = {
                "format": FORMAT,
                "pipeline": pipeline,
                "weights_sha256": sha256_file(draft / "weights.safetensors"),
                "params_count": sum(v.numel() for v in tensors.values() if v.is_floating_point()),
                **(schema or {}),
            }
            atomic_write_text(draft / "config.yaml", to_yaml(config))
            atomic_write_text(draft / "card.md", card)
            atomic_write_text(draft / "metrics.json", _metrics_text(metrics or {}))
            atomic_write_text(draft / "schema.json", json.dumps(facts, indent=2))
            # safetensors makes files that only their owner may read; a bundle is as readable as the user's files.
            shutil.copymode(draft / "schema.json", draft / "weights.safetensors")
            if path.exists():
                shutil.rmtree(path)
            draft.rename(path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return cls.open(path)

    def annotate(self, *, metrics: Mapping[str, float], card: str) -> Bundle:
        """The same bundle with measured `metrics` and its `card`, each replaced atomically."""
        atomic_write_text(self.path / "metrics.json", _metrics_text(metrics))
        atomic_write_text(self.path / "card.md", card)
        return Bundle.open(self.path)


def _metrics_text(metrics: Mapping[str, float]) -> str:
    return json.dumps(plain(metrics), indent=2, sort_keys=True, allow_nan=False)


def _shape(state: Mapping[str, Tensor], key: str) -> str:
    return str(list(state[key].shape)) if key in state else "absent"
