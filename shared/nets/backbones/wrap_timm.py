"""timm's image models behind `create_backbone("timm:NAME", …)`: the interface of our own networks, two dimensions."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets.backbones.pyramid import FeatureInfo
from shared.nets.compat import import_timm
from shared.nets.layout import Size, channels_first
from shared.nets.registry import IMAGENET, register_backbone


class TimmBackbone(nn.Module):
    """Images (B, Cin, H, W) → class scores (B, classes), the last map (B, C, h, w), or with `features_only` a list of
    maps: each as timm's `forward_intermediates` gives it, without class tokens. The model itself is `net`."""

    streams = False

    def __init__(self, name: str, net: Any, num_classes: int, features_only: bool, pyramid: Any) -> None:
        """`pyramid` is timm's feature extractor of the same model (on any device): it knows which maps are levels."""
        super().__init__()
        self.name, self.net, self.num_classes, self.features_only = name, net, num_classes, features_only
        info = pyramid.feature_info
        self.feature_info = FeatureInfo(info.channels(), info.reduction())
        self.indices = list(getattr(pyramid, "out_indices", info.out_indices))
        # Some lists (Swin's) are channels-last.
        self.channels_last = str(getattr(pyramid, "output_fmt", "")).endswith("NHWC")

    def features(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The maps that `feature_info` tells of, (B, C_i, h_i, w_i), not normalised."""
        self._refuse(mask)
        if self.features_only:
            maps = self._call(self.net, x)
            return [channels_first(m) if self.channels_last else m for m in maps]
        return self._intermediates(x, self.indices, norm=False)

    forward_intermediates = features

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last map (B, C, h, w); after the final norm where timm's model has one for it."""
        self._refuse(mask)
        if self.features_only:
            return self.features(x)[-1]
        try:
            return self._intermediates(x, [-1], norm=True)[-1]
        except AssertionError as err:
            if "norm" not in str(err):  # some models have none for maps
                raise
            return self._intermediates(x, [-1], norm=False)[-1]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        if self.features_only:
            return self.features(x, mask)
        if not self.num_classes:
            return self.forward_features(x, mask)
        self._refuse(mask)
        return self._call(self.net, x)

    def _intermediates(self, x: Tensor, indices: list[int], *, norm: bool) -> list[Tensor]:
        how = {"indices": indices, "norm": norm, "output_fmt": "NCHW", "intermediates_only": True}
        return list(self._call(self.net.forward_intermediates, x, **how))

    def _call(self, function: Any, x: Tensor, **how: Any) -> Any:
        try:
            return function(x, **how)
        except AssertionError as err:
            if "match" not in str(err) and "size" not in str(err):
                raise
            raise UsageError(
                f"backbone: timm:{self.name}: {err}; built for one input size; give it as img_size"
            ) from err

    def _refuse(self, mask: Tensor | None) -> None:
        if mask is not None:
            raise UsageError(
                f"backbone: a mask given, but timm:{self.name} knows none; choose a network of `pipelines zoo`"
            )


def timm_backbone(
    name: str,
    *,
    ndim: int,
    in_chans: int,
    num_classes: int = 0,
    features_only: bool = False,
    img_size: Size | None = None,
) -> TimmBackbone:
    """timm's model `name` with random weights; nothing is downloaded.

    `num_classes` is always passed on: timm's own default follows the model's first pretrained file (TinyViT: 21,841).
    `img_size` reaches the models that belong to one size; the others take any. Raises `UsageError` for unknown names
    (with the nearest) and other dimensions, `EnvironmentUnfit` without timm.
    """
    if ndim != 2:
        raise UsageError(f"backbone: timm:{name} works in 2 dimensions, {ndim} found; choose another network")
    timm = import_timm()
    known = timm.list_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f"nearest is 'timm:{near[0]}'" if near else f"one of timm's {len(known)} models wanted"
        raise UsageError(f"backbone: found 'timm:{name}'; {hint}; correct it")
    wanted: dict[str, Any] = {"pretrained": False, "in_chans": in_chans, "num_classes": num_classes}
    if features_only:
        net = pyramid = _create(timm, name, wanted | {"features_only": True}, img_size)
    else:
        net = _create(timm, name, wanted, img_size)
        with torch.device("meta"):
            pyramid = _create(timm, name, wanted | {"features_only": True}, img_size)
    return TimmBackbone(name, net, num_classes, features_only, pyramid)


def _create(timm: Any, name: str, wanted: dict[str, Any], img_size: Size | None) -> nn.Module:
    try:
        if img_size is None:
            return timm.create_model(name, **wanted)  # type: ignore[no-any-return]
        try:
            return timm.create_model(name, **wanted, img_size=img_size)  # type: ignore[no-any-return]
        except TypeError as err:
            if "img_size" not in str(err):
                raise
            return timm.create_model(name, **wanted)  # type: ignore[no-any-return]
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as err:
        asked = {key: value for key, value in wanted.items() if key != "pretrained"} | {"img_size": img_size}
        raise UsageError(f"backbone: timm:{name} refuses {asked}: {err}; choose others") from err


_CROSSVIT = "CrossViT, Chen et al. 2021, arXiv 2103.14899"
_TNT = "Transformer in Transformer, Han et al. 2021, arXiv 2103.00112"
_TINYVIT = "TinyViT, Wu et al. 2022, arXiv 2207.10666"
_METAFORMER = "MetaFormer Baselines for Vision, Yu et al. 2022, arXiv 2210.13452"
_POOLFORMER = "MetaFormer Is Actually What You Need for Vision, Yu et al. 2022, arXiv 2111.11418"
_SWIN = "Swin Transformer, Liu et al. 2021, arXiv 2103.14030"
_SWIN2 = "Swin Transformer V2, Liu et al. 2022, arXiv 2111.09883"
_CONVNEXT = "A ConvNet for the 2020s, Liu et al. 2022, arXiv 2201.03545"
_CONVNEXT2 = "ConvNeXt V2, Woo et al. 2023, arXiv 2301.00808"
FAMILIES: tuple[tuple[str, str, int, int, float | None], ...] = (
    # name, paper, side of the input, parameters and multiply-accumulates with 1,000 classes
    ("crossvit_9_240", _CROSSVIT, 240, 8_553_296, 1.841e9),
    ("crossvit_15_240", _CROSSVIT, 240, 27_528_464, 5.791e9),
    ("crossvit_15_dagger_240", _CROSSVIT, 240, 28_209_008, None),
    ("tnt_s_patch16_224", _TNT, 224, 23_768_584, 5.217e9),
    ("tnt_s_legacy_patch16_224", _TNT, 224, 23_755_336, None),
    ("tnt_b_patch16_224", _TNT, 224, 65_428_680, None),
    ("tiny_vit_5m_224", _TINYVIT, 224, 5_392_764, 1.255e9),
    ("tiny_vit_11m_224", _TINYVIT, 224, 10_996_972, None),
    ("tiny_vit_21m_224", _TINYVIT, 224, 21_198_568, 4.250e9),
    ("poolformer_s12", _POOLFORMER, 224, 11_915_176, 1.812e9),
    ("poolformerv2_s12", _METAFORMER, 224, 11_891_712, None),
    ("convformer_s18", _METAFORMER, 224, 26_774_448, None),
    ("caformer_s18", _METAFORMER, 224, 26_341_656, 4.107e9),
    ("swin_tiny_patch4_window7_224", _SWIN, 224, 28_288_354, 4.491e9),
    ("swinv2_tiny_window8_256", _SWIN2, 256, 28_347_154, None),
    ("convnext_atto", _CONVNEXT, 224, 3_695_520, 0.547e9),
    ("convnext_tiny", _CONVNEXT, 224, 28_589_128, 4.456e9),
    ("convnextv2_atto", _CONVNEXT2, 224, 3_708_400, None),
    ("nextvit_small", "Next-ViT, Li et al. 2022, arXiv 2207.05501", 224, 31_763_368, None),
    ("gmlp_s16_224", "Pay Attention to MLPs, Liu et al. 2021, arXiv 2105.08050", 224, 19_422_656, None),
)
for _name, _paper, _side, _params, _macs in FAMILIES:
    _published = {**IMAGENET, "img_size": (_side, _side), "params": _params}
    if _macs is not None:
        _published["macs"] = _macs
    register_backbone(f"timm:{_name}", {}, paper=_paper, published=_published, source="timm")
