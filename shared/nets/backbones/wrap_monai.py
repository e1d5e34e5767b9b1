"""MONAI's networks as backbones: ``monai:SwinUNETR(feature_size=24)``.

With `num_classes` it is MONAI's whole network, which scores every position: (B, num_classes, *S). With `features_only`,
or without classes, it is the encoder alone; the decoder is not built into the module. What the encoder's maps are:

- SwinUNETR: the five maps of its Swin transformer, strides 2 to 32 for the usual patch of 2, layer-normalised unless
  ``normalize=False``. The convolutions that refine them for the decoder are no part of it.
- UNETR: its convolution of the input (stride 1), the tokens of layers 3, 6 and 9 brought to strides 2, 4 and 8, and the
  last layer's tokens (stride 16). Belongs to one `img_size`.
- MedNeXt (with all options) and MedNeXtS, B, M, L (the paper's sizes): each stage before its downsampling, strides 1 to
  8, and the bottleneck.
- SegResNet: each level, strides 1 to 8.

Names of parameters are MONAI's, so that its checkpoints load.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from shared.errors import UsageError, first_line, need
from shared.nets.backbones.pyramid import FeatureInfo
from shared.nets.layout import Size
from shared.nets.registry import nearest

Scales = tuple[list[int], list[int]]


def _swin_unetr(net: Any, x: Tensor) -> list[Tensor]:
    return list(net.swinViT(x, net.normalize))


def _swin_unetr_scales(net: Any) -> Scales:
    widths = [net.swinViT.embed_dim * 2**i for i in range(net.swinViT.num_layers + 1)]
    return widths, [net.patch_size * 2**i for i in range(len(widths))]


def _unetr(net: Any, x: Tensor) -> list[Tensor]:
    last, hidden = net.vit(x)
    deeper = zip((net.encoder2, net.encoder3, net.encoder4), (hidden[3], hidden[6], hidden[9]))
    return [net.encoder1(x), *(encode(net.proj_feat(h)) for encode, h in deeper), net.proj_feat(last)]


def _unetr_scales(net: Any) -> Scales:
    width = net.encoder1.layer.conv1.conv.out_channels
    return [width, 2 * width, 4 * width, 8 * width, net.hidden_size], [1, 2, 4, 8, 16]


def _mednext(net: Any, x: Tensor) -> list[Tensor]:
    maps, x = [], net.stem(x)
    for stage, down in zip(net.enc_stages, net.down_blocks):
        maps.append(stage(x))
        x = down(maps[-1])
    return [*maps, net.bottleneck(x)]


def _mednext_scales(net: Any) -> Scales:
    powers = [2**i for i in range(len(net.enc_stages) + 1)]
    return [net.stem.out_channels * p for p in powers], powers


def _segresnet(net: Any, x: Tensor) -> list[Tensor]:
    return list(net.encode(x)[1])


def _segresnet_scales(net: Any) -> Scales:
    powers = [2**i for i in range(len(net.down_layers))]
    return [net.init_filters * p for p in powers], powers


@dataclass(frozen=True, slots=True)
class _Net:
    module: str
    """Below ``monai.networks.nets``."""
    make: str
    features: Callable[[Any, Tensor], list[Tensor]]
    scales: Callable[[Any], Scales]
    """Channels and strides of the features."""
    decoder: tuple[str, ...]
    """Attributes that the features do without."""
    preset: tuple[tuple[str, Any], ...] = ()
    fixed_size: bool = False


_MEDNEXT = ("up_blocks", "dec_stages", "out_0", "out_blocks")
NETS: dict[str, _Net] = {
    "SwinUNETR": _Net(
        "swin_unetr",
        "SwinUNETR",
        _swin_unetr,
        _swin_unetr_scales,
        (*(f"encoder{i}" for i in (1, 2, 3, 4, 10)), *(f"decoder{i}" for i in range(1, 6)), "out"),
    ),
    "UNETR": _Net(
        "unetr",
        "UNETR",
        _unetr,
        _unetr_scales,
        (*(f"decoder{i}" for i in range(2, 6)), "out"),
        fixed_size=True,
    ),
    "SegResNet": _Net(
        "segresnet", "SegResNet", _segresnet, _segresnet_scales, ("up_layers", "up_samples", "conv_final")
    ),
    "MedNeXt": _Net("mednext", "MedNeXt", _mednext, _mednext_scales, _MEDNEXT),
    **{
        f"MedNeXt{size}": _Net(
            "mednext", "create_mednext", _mednext, _mednext_scales, _MEDNEXT, (("variant", size),)
        )
        for size in "SBML"
    },
}


class MonaiBackbone(nn.Module):
    """A network of `NETS` with the interface of `create_backbone`."""

    def __init__(self, entry: _Net, net: Any, *, num_classes: int, features_only: bool) -> None:
        super().__init__()
        self.net, self.num_classes, self.features_only = net, num_classes, features_only
        self._features = entry.features
        self.feature_info = FeatureInfo(*entry.scales(net))
        if features_only or not num_classes:
            for name in entry.decoder:
                if hasattr(net, name):
                    delattr(net, name)

    def features(self, x: Tensor) -> list[Tensor]:
        """The encoder's maps, (B, C_i, *S_i)."""
        maps: list[Tensor] = self._call(partial(self._features, self.net), x)
        return maps

    def _call(self, function: Callable[[Tensor], Any], x: Tensor) -> Any:
        try:
            return function(x)
        except ValueError as err:  # what MONAI says of sizes that it cannot halve often enough
            reason = first_line(err)
            raise UsageError(
                f"backbone: monai:{type(self.net).__name__}: {reason}; give such inputs"
            ) from err

    forward_intermediates = features

    def forward_features(self, x: Tensor) -> Tensor:
        """The deepest map."""
        return self.features(x)[-1]

    def forward(self, x: Tensor) -> Any:
        if self.features_only:
            return self.features(x)
        return self._call(self.net, x) if self.num_classes else self.forward_features(x)


def monai_backbone(
    text: str,
    *,
    ndim: int,
    in_chans: int,
    num_classes: int = 0,
    features_only: bool = False,
    img_size: Size | None = None,
) -> MonaiBackbone:
    """`text` is NAME or NAME(key=value, …) with plain values, as in MONAI. Raises `UsageError` for what it does not
    know, `EnvironmentUnfit` without MONAI."""
    name, options = parse_call(text)
    where = f"backbone: monai:{name}"
    if name not in NETS:
        raise UsageError(f"{where}: no network of that name is wrapped; {nearest(name, list(NETS))}")
    if ndim == 1:
        raise UsageError(f"{where}: 1 dimension found; 2 or 3 wanted; choose another network")
    entry = NETS[name]
    need("medical", "monai")
    make = getattr(importlib.import_module(f"monai.networks.nets.{entry.module}"), entry.make)
    given: dict[str, Any] = {"in_channels": in_chans, "out_channels": num_classes or 1, "spatial_dims": ndim}
    given |= dict(entry.preset)
    if entry.fixed_size:
        given["img_size"] = _divided(where, img_size)
    known = set(inspect.signature(make).parameters)
    for key in options:
        if key in given or key not in known:
            said = (
                "is set by the pipeline; leave it out"
                if key in given
                else nearest(key, sorted(known - set(given)))
            )
            raise UsageError(f"{where}: found option {key!r}; {said}")
    net = _built(where, make, given | options)
    return MonaiBackbone(entry, net, num_classes=num_classes, features_only=features_only)


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """``NAME(key=value, …)`` → name and options. Values are literals; nothing is evaluated. Raises `UsageError`."""
    wrong = UsageError(
        f"backbone: found monai:{text}; NAME or NAME(key=value, …) with numbers, strings, tuples wanted; correct it"
    )
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            return call.id, {}
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise wrong
        if any(word.arg is None for word in call.keywords):
            raise wrong
        return call.func.id, {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        raise wrong from err


def _divided(where: str, img_size: Size | None) -> Size:
    if img_size is None:
        raise UsageError(f"{where}: belongs to one input size; give img_size")
    if any(n % 16 for n in img_size):
        raise UsageError(f"{where}: found img_size {list(img_size)}; multiples of 16 wanted; choose others")
    return img_size


def _built(where: str, make: Any, options: dict[str, Any]) -> Any:
    try:
        return make(**options)
    except (TypeError, ValueError, AssertionError, ImportError, RuntimeError) as err:
        raise UsageError(f"{where}: {first_line(err)}; mend its options {options}") from err
