"""The residual streams of a network: which modules write them, which read them through which norm.

A stream starts with linear maps (`sources`) and constants (`codes`), grows by branches, each a norm, maps that read
what it gives and maps that write back, and ends in the norm `exit`. Our networks say so by `readers()` and `writers()`
of their parts; other libraries' are told apart here by their classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import nn
from torch.nn.utils import parametrize

from shared.errors import UsageError
from shared.nets.backbones.pyramid import Backbone
from shared.nets.backbones.wrap_timm import TimmBackbone
from shared.nets.blocks.block import Block
from shared.nets.stems.position import LearnedPosition, NoPosition
from shared.rewrite.norms import CentredPosition


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a module or parameter hangs, so that another can take its place."""

    owner: nn.Module
    attribute: str
    name: str

    def get(self) -> Any:
        return getattr(self.owner, self.attribute)

    def set(self, value: Any) -> None:
        setattr(self.owner, self.attribute, value)


@dataclass(frozen=True, slots=True)
class Branch:
    """stream += scale(… writers(… readers(norm(stream)))). No readers: not known, nothing can be folded into them."""

    norm: Slot
    readers: Sequence[nn.Module]
    writers: Sequence[nn.Module]
    scale: Slot


@dataclass(frozen=True, slots=True)
class Stream:
    dim: int
    sources: Sequence[nn.Module]
    branches: Sequence[Branch]
    exit: Slot
    codes: Sequence[Slot] = ()
    """Parameters (…, C) that are added to the stream or joined to it as tokens."""
    position: Slot | None = None
    """A module that adds a code made at run time."""
    names: dict[int, str] = field(default_factory=dict)

    def name(self, module: nn.Module) -> str:
        return self.names.get(id(module), type(module).__name__)


def streams_of(model: nn.Module) -> list[Stream]:
    """Raises `UsageError` with the layer that makes `model` something else than pre-norm branches on a stream."""
    if isinstance(model, Backbone):
        return _ours(model)
    if isinstance(model, TimmBackbone):
        normed = not isinstance(getattr(model.net, "norm", None), nn.Identity)
        if model.features_only or not (model.num_classes or normed):
            refuse(model.name, "maps that no norm has seen as the output", "class scores or the last map")
        return streams_of(model.net)
    kind = parametrize.type_before_parametrizations(model)
    if kind.__module__.startswith("timm."):
        if kind.__name__ in ("VisionTransformer", "VisionTransformerDistilled"):
            return [_timm_vit(model)]
        refuse(kind.__name__, "a timm network", "timm's VisionTransformer")
    refuse(
        type(model).__name__, "an unknown network", "a Backbone of this library or timm's VisionTransformer"
    )


def refuse(layer: str, found: str, wanted: str, mend: str = "leave the rewrite out") -> NoReturn:
    raise UsageError(f"rewrite prermsnorm: {layer}: found {found}; {wanted} wanted; {mend}")


# ---------------------------------------------------------------- ours


def _ours(model: Backbone) -> list[Stream]:
    names = {id(module): name for name, module in model.named_modules()}
    _check_ends(model)
    sources: Any = model.stem.writers()
    if not sources:
        refuse("stem", "no linear map that writes the stream", "a stem that ends in one, without a norm")
    codes, position = [], None
    if isinstance(model.position, LearnedPosition):
        codes = [Slot(model.position, "code", "position.code")]
    elif not isinstance(model.position, NoPosition):
        position = Slot(model, "position", "position")
    streams = []
    for at, (stage, dim) in enumerate(zip(model.stages, model.config.dims)):
        branches = [part for block in stage.blocks for part in _branches(block, names)]  # type: ignore[union-attr]
        last = at + 1 == len(model.stages)
        leave, later = (
            (Slot(model.head, "norm", "head.norm"), ()) if last else _down(model.stages[at + 1], names)
        )
        streams.append(Stream(dim, sources, branches, leave, codes, position, names))
        sources, codes, position = later, [], None
    return streams


def _down(stage: Any, names: dict[int, str]) -> tuple[Slot, Sequence[nn.Module]]:
    """The norm that ends one stage's stream, and the maps that start the next one's."""
    down, name = stage.down, names[id(stage.down)]
    if down.reads is None or not down.writers():
        refuse(
            name,
            type(down).__name__,
            "one norm, then one linear map",
            "set down: {name: conv, norm_before: layernorm}",
        )
    return Slot(down, down.reads, f"{name}.{down.reads}"), down.writers()


def _check_ends(model: Backbone) -> None:
    if model.features_only:
        refuse("features_only", "a pyramid of maps that no norm has seen", "class scores or the last map")
    if not isinstance(model.position, CentredPosition) and not getattr(model.position, "additive", False):
        refuse("position", type(model.position).__name__, "a code that does not depend on the input")
    head: Any = model.head
    if head.after and not head.linear:
        refuse("head", f"a norm after {type(head).__name__}'s pooling", "a mean before it, or the norm first")
    if head.after and not model.num_classes:
        refuse("head", "a map that no norm has seen as the output", "a norm before pooling, or classes")


def _branches(block: Block, names: dict[int, str]) -> list[Branch]:
    name = names[id(block)]
    if block.order not in ("preln", "parallel"):
        refuse(
            name, f"order {block.order}, whose stream is normed or read as it is", "order preln or parallel"
        )
    if block.position is not None:
        refuse(f"{name}.position", "a convolution of the stream itself", "block_position: 0")
    parts: list[tuple[Any, str, str]] = [(block.mixer, "norm1", "scale1")]
    if block.ffn is not None:
        parts.append((block.ffn, "norm2", "scale2"))
    found = []
    for part, norm, scale in parts:
        if not part.writers():
            refuse(
                names[id(part)],
                f"{type(part).__name__}, which names no writers()",
                "a mixer that ends in a linear map",
            )
        found.append(
            Branch(
                Slot(block, norm, f"{name}.{norm}"),
                part.readers(),
                part.writers(),
                Slot(block, scale, f"{name}.{scale}"),
            )
        )
    return found


# ---------------------------------------------------------------- timm


def _timm_vit(model: Any) -> Stream:
    """timm 1.x's VisionTransformer with its plain Block, Attention and two-layer feed-forward parts."""
    names = {id(module): name for name, module in model.named_modules()}
    for name, module in (
        ("norm_pre", model.norm_pre),
        ("patch_embed.norm", getattr(model.patch_embed, "norm", None)),
    ):
        if module is not None and not isinstance(module, nn.Identity):
            refuse(name, "a norm of the stream itself", "none there")
    if not isinstance(getattr(model.patch_embed, "proj", None), nn.Linear | nn.Conv2d):
        refuse("patch_embed", type(model.patch_embed).__name__, "timm's PatchEmbed")
    leave = "norm" if not isinstance(model.norm, nn.Identity) else "fc_norm"
    if leave == "fc_norm" and model.global_pool not in ("avg", "token"):
        refuse(
            "fc_norm", f"a norm after pooling by {model.global_pool!r}", "a mean before it, or the norm first"
        )
    branches = []
    for block in model.blocks:
        name = names[id(block)]
        if type(block).__name__ != "Block":
            refuse(name, type(block).__name__, "timm's plain pre-norm Block")
        if type(block.attn).__name__ != "Attention":
            refuse(f"{name}.attn", type(block.attn).__name__, "timm's Attention")
        gate = [block.attn.gate] if getattr(block.attn, "gate", None) is not None else []
        first = [getattr(block.mlp, key) for key in ("fc1", "fc1_g", "fc1_x") if hasattr(block.mlp, key)]
        if not first or not hasattr(block.mlp, "fc2"):
            refuse(f"{name}.mlp", type(block.mlp).__name__, "a part of fc1 and fc2")
        halves = [(1, [block.attn.qkv, *gate], block.attn.proj), (2, first, block.mlp.fc2)]
        for at, readers, writer in halves:
            norm, scale = f"norm{at}", f"ls{at}"
            branches.append(
                Branch(
                    Slot(block, norm, f"{name}.{norm}"),
                    readers,
                    [writer],
                    Slot(block, scale, f"{name}.{scale}"),
                )
            )
    keys = [
        key
        for key in ("cls_token", "reg_token", "dist_token", "pos_embed")
        if getattr(model, key, None) is not None
    ]
    codes = [Slot(model, key, key) for key in keys]
    return Stream(
        model.embed_dim, [model.patch_embed.proj], branches, Slot(model, leave, leave), codes, None, names
    )
