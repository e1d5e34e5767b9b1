"""Configuration: typed, frozen, closed; YAML presets and dotted overrides; errors name the nearest key.

Layers, later ones win: field defaults < preset < ``--config`` file < ``--set key=value``.
YAML is read strictly: no duplicate keys, no aliases, no tags, at most 1 MB and 20 levels; ``1e-3`` is a number.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import UsageError

C = TypeVar("C", bound="Config")
MAX_YAML_BYTES = 1_000_000
MAX_YAML_DEPTH = 20


class Config(BaseModel):
    """Base of every configuration node: immutable, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )


class DataConfig(Config):
    """What every pipeline can say about its data; pipelines add their own keys."""

    path: Path | None = Field(None, description="data set to use; none = the embedded sample")
    workers: int = Field(0, ge=0, description="loader processes; 0 reads in the training process")


class TrainConfig(Config):
    """Optimisation and hardware; what `shared.training` reads."""

    epochs: int = Field(10, ge=1, description="passes over the training items")
    batch_size: int = Field(2, ge=1, description="items per optimiser step, summed over all devices")
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    optimizer: Literal["adamw", "adam"] = Field(
        "adamw", description="adam: weight decay is a term of the loss"
    )
    weight_decay: float = Field(1e-5, ge=0)
    warmup_epochs: float = Field(0.0, ge=0, description="linear warm-up, in epochs")
    schedule: Literal["cosine", "cosine-epochs", "halving", "constant"] = Field(
        "cosine",
        description="after warm-up; cosine-epochs steps once per epoch, from 0, as the Swin UNETR code does; "
        "halving: two epochs at full rate, then half of the last epoch's, as the Informer family does",
    )
    accumulate: int = Field(1, ge=1, description="batches per optimiser step")
    clip_norm: float = Field(0.0, ge=0, description="gradient norm limit; 0 = off")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="weights averaged over steps; 0 = off")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true")
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto")
    devices: int = Field(1, ge=1, description="processes (CPU) or GPUs per node")
    num_nodes: int = Field(1, ge=1)
    strategy: Literal["auto", "ddp", "fsdp"] = Field("auto")
    validate_every: int = Field(1, ge=1, description="epochs between validations")
    patience: int = Field(
        0, ge=0, description="stop after so many validations without a better one; 0 = never"
    )
    checkpoint_seconds: float = Field(30.0, ge=0, description="most work a kill may cost; 0 = every step")


class RunConfig(Config):
    """Root of every pipeline's configuration."""

    seed: int = Field(0, ge=0, lt=2**31, description="every random draw flows from it")
    threads: int = Field(
        0, ge=0, description="CPU threads; 0 = all cores. Part of bit-exactness: 1 and 2 threads differ"
    )
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()


# ---------------------------------------------------------------- reading


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases and duplicate keys, where ``1e-3`` is a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):
                text = f"a {type(key).__name__} as key"
                raise yaml.constructor.ConstructorError(None, None, text, key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, source: str | Path) -> Any:
    """Plain data from YAML text. Raises `UsageError` naming `source` and the line."""
    if len(text.encode()) > MAX_YAML_BYTES:
        raise UsageError(f"{source}: {len(text.encode()):,} bytes; at most 1 MB; shorten the file")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        line = f":line {mark.line + 1}" if mark else ""
        problem = str(getattr(err, "problem", None) or "not YAML").replace("\n", " ")
        raise UsageError(f"{source}{line}: {problem[:100]}; plain YAML wanted; mend that line") from None
    except RecursionError:
        raise _too_deep(source) from None
    except ValueError as err:  # a date or number that is none, such as 2026-13-01
        raise UsageError(f"{source}: {str(err)[:100]}; plain YAML wanted; quote the value") from None
    _refuse_deep(value, source, 0)
    return value


def _too_deep(source: str | Path) -> UsageError:
    return UsageError(f"{source}: more than {MAX_YAML_DEPTH} levels; a flat mapping wanted; unnest it")


def _refuse_deep(value: Any, source: str | Path, depth: int) -> None:
    if depth > MAX_YAML_DEPTH:
        raise _too_deep(source)
    children = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for child in children:
        _refuse_deep(child, source, depth + 1)


def read_yaml(path: Path) -> dict[str, Any]:
    """Mapping in a YAML file. Raises `UsageError`."""
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise UsageError(f"{path}: {path.stat().st_size:,} bytes; at most 1 MB; shorten the file")
        if not path.is_file():
            what = "a folder" if path.is_dir() else "not a regular file"
            raise UsageError(f"{path}: {what}; a readable YAML file wanted; check the path")
        text = path.read_text(encoding="utf-8")
    except OSError as err:
        raise UsageError(
            f"{path}: {err.strerror or err}; a readable YAML file wanted; check the path"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text; a YAML file wanted; check the path") from None
    value = parse_yaml(text, path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{path}: a {type(value).__name__}; a mapping wanted; write `key: value` lines")
    return value


def parse_set(text: str) -> tuple[tuple[str, ...], Any]:
    """``a.b=value`` → (("a", "b"), value); the value is YAML. Raises `UsageError`."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text}: no '='; key=value wanted; for example train.epochs=5")
    found = parse_yaml(value, f"--set {key}")
    for name, inner in found.items() if isinstance(found, dict) else ():
        if inner is None and ":" in str(name):
            raise UsageError(
                f"--set {text}: no blank after the colon; {str(name).replace(':', ': ', 1)} wanted"
            )
    return tuple(key.strip().split(".")), found


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; neither is changed."""
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), Mapping):
            out[key] = merge(out[key], value)
        else:
            out[key] = value
    return out


def nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    """``("a", "b"), v`` → ``{"a": {"b": v}}``."""
    out: Any = value
    for key in reversed(keys):
        out = {key: out}
    return dict(out)


def resolve(
    config_type: type[C],
    layers: Iterable[tuple[str, Mapping[str, Any]]] = (),
    sets: Sequence[str] = (),
) -> C:
    """The configuration after all layers: (source name, mapping) pairs, then ``key=value`` texts.

    Raises `UsageError` with the source, the key, and the nearest valid key or the allowed range.
    """
    layers = list(layers)
    for text in sets:
        keys, value = parse_set(text)
        layers.append((f"--set {_short(text)}", nested(keys, value)))
    merged: dict[str, Any] = {}
    for source, layer in layers:
        _refuse_unknown(config_type, layer, source)
        merged = merge(merged, layer)
    try:
        return config_type.model_validate(merged)
    except ValidationError as err:
        first = err.errors()[0]
        keys = _keys(first["loc"], merged)
        if not keys:  # several keys together; the message names them
            said = first["msg"].removeprefix("Value error, ")
            raise UsageError(f"{_origin(layers, keys)}: {said}; correct it") from None
        name, found = ".".join(keys), _short(repr(first.get("input")))
        mend = f"set it with -s {name}=VALUE"
        raise UsageError(f"{_origin(layers, keys)}:{name}: found {found}; {first['msg']}; {mend}") from None


def _keys(loc: Sequence[int | str], merged: Any) -> tuple[str, ...]:
    """The dotted key of an error, without what pydantic adds below a plain value: which of several types it tried."""
    keys: list[str] = []
    for part in loc:
        if not isinstance(merged, Mapping | list):
            break
        keys.append(str(part))
        if isinstance(merged, Mapping):
            if part not in merged:
                return tuple(str(p) for p in loc)
            merged = merged[part]
        elif isinstance(part, int) and part < len(merged):
            merged = merged[part]
        else:
            keys.pop()
            break
    return tuple(keys)


def _short(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


def _origin(layers: Sequence[tuple[str, Mapping[str, Any]]], keys: Sequence[str]) -> str:
    """The last layer that says something about the dotted key, and the line if it is a file."""
    for source, layer in reversed(layers):
        value: Any = layer
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                break
            value = value[key]
        else:
            return _with_line(source, keys)
        if not isinstance(value, Mapping) and value is not layer:  # a list or scalar further up
            return _with_line(source, keys)
    return "configuration"


def _with_line(source: str, keys: Sequence[str]) -> str:
    """``source:line n`` of the innermost of `keys` that stands there, if `source` is a file."""
    try:
        text = Path(source).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_StrictLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return source
    line = 0
    for key in keys:
        for key_node, value_node in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.value == key:
                line, node = key_node.start_mark.line + 1, value_node
                break
        else:
            break
    return f"{source}:line {line}" if line else source


def _refuse_unknown(config_type: type[Config], given: Mapping[str, Any], source: str, at: str = "") -> None:
    fields = config_type.model_fields
    for key, value in given.items():
        if key not in fields:
            valid = keys_of(config_type, at)
            near = difflib.get_close_matches(f"{at}{key}", valid, n=1, cutoff=0.4)
            # A leaf typed without its section (`epochs` for `train.epochs`) is the commonest slip.
            near = [name for name in valid if name.rsplit(".", 1)[-1] == key] or near
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(list(fields)[:12])}"
            where = _with_line(source, [*at.split(".")[:-1], str(key)])
            raise UsageError(
                f"{where}: unknown key {_short(f'{at}{key}')!s}; a key of the configuration wanted; {hint}"
            )
        child = config_child(fields[key].annotation)
        if child is not None and isinstance(value, Mapping):
            _refuse_unknown(child, value, source, f"{at}{key}.")


def config_child(annotation: Any) -> type[Config] | None:
    """The `Config` class inside a field annotation, if there is one."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Config):
            return candidate
    return None


def keys_of(config_type: type[Config], prefix: str = "") -> list[str]:
    """Every dotted leaf key."""
    out: list[str] = []
    for name, field in config_type.model_fields.items():
        child = config_child(field.annotation)
        out.extend(keys_of(child, f"{prefix}{name}.") if child else [f"{prefix}{name}"])
    return out


# ---------------------------------------------------------------- writing


def to_yaml(config: Config) -> str:
    """The resolved configuration, every default visible."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key → plain value."""

    def walk(value: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, item in value.items():
            if isinstance(item, Mapping) and item:
                out |= walk(item, f"{prefix}{key}.")
            else:
                out[f"{prefix}{key}"] = item
        return out

    return walk(config.model_dump(mode="json"), "")


def config_hash(config: Config) -> str:
    """16 hex digits over the resolved configuration."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
