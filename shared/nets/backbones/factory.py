"""`create_backbone`: one door to every network, ours, timm's and MONAI's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from shared.config import resolve
from shared.errors import UsageError
from shared.nets.backbones.pyramid import Backbone, init_weights
from shared.nets.config import BackboneConfig, unwrapped
from shared.nets.layout import Size
from shared.nets.registry import find


def create_backbone(
    source: str | Path | Mapping[str, Any],
    *,
    ndim: int,
    in_chans: int,
    num_classes: int = 0,
    features_only: bool = False,
    img_size: int | Sequence[int] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """A network for images (B, in_chans, *S) with `ndim` axes S.

    `source`: a name of `pipelines zoo` (``cct_2_3x2``), ``timm:NAME``, ``monai:NAME(key=value, …)``, a YAML file, or a
    mapping of `BackboneConfig`'s keys. Returned is a module with timm's interface: class scores (B, num_classes), the
    last map (B, C, *S) without classes, or with `features_only` a list of maps, `feature_info.channels()` and
    `.reduction()`. `img_size` is needed by parts that belong to one size. Raises `UsageError` in one line.
    """
    if pretrained:
        raise UsageError(
            "backbone: pretrained=True; nothing is downloaded at run time; load a file with model.pretrained instead"
        )
    if not _whole(ndim, 1) or ndim > 3:
        raise UsageError(f"backbone: ndim {ndim!r}; 1, 2 or 3 wanted")
    if not _whole(in_chans, 1) or not _whole(num_classes, 0):
        raise UsageError(
            f"backbone: in_chans {in_chans!r}, num_classes {num_classes!r}; whole numbers wanted, at least 1 and 0"
        )
    wanted: dict[str, Any] = {
        "ndim": ndim,
        "in_chans": in_chans,
        "num_classes": num_classes,
        "features_only": features_only,
    }
    wanted["img_size"] = None if img_size is None else _sides(img_size, ndim)
    named = unwrapped(source)
    if isinstance(named, str) and ":" in named:
        library, _, name = named.partition(":")
        return _wrapper(library)(name, **wanted)
    config = backbone_config(source)
    model = Backbone(config, **wanted)
    init_weights(model)
    if not config.rewrite:
        return model
    from shared.rewrite import apply_all  # which knows the networks, and so cannot be imported before them

    return apply_all(model, config.rewrite)[0]


def backbone_config(source: str | Path | Mapping[str, Any]) -> BackboneConfig:
    """The configuration behind a name, a YAML file or a mapping. Raises `UsageError` with the nearest key."""
    values = unwrapped(source)
    if isinstance(values, str):
        card = find("backbone", values)
        if card.source != "ours":
            raise UsageError(
                f"backbone: {values} is {card.source}'s network; it has no configuration of ours"
            )
        values = card.make
    if not isinstance(values, Mapping):
        raise UsageError(
            f"backbone: found {values!r}; a name, a YAML file or a mapping wanted; see `pipelines zoo`"
        )
    return resolve(BackboneConfig, [("backbone" if isinstance(source, Mapping) else str(source), values)])


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _sides(img_size: Any, ndim: int) -> Size:
    sides = [img_size] * ndim if isinstance(img_size, int) else img_size
    listed = isinstance(sides, Sequence) and not isinstance(sides, str) and len(sides) == ndim
    if not listed or not all(_whole(side, 1) for side in sides):
        raise UsageError(
            f"backbone: img_size {img_size!r}; {ndim} whole numbers above 0, or one for all, wanted"
        )
    return tuple(sides)


def _wrapper(library: str) -> Callable[..., nn.Module]:
    if library == "timm":
        from shared.nets.backbones.wrap_timm import timm_backbone

        return timm_backbone
    if library == "monai":
        from shared.nets.backbones.wrap_monai import monai_backbone

        return monai_backbone
    raise UsageError(f"backbone: found library {library!r}; timm or monai wanted; correct it")
