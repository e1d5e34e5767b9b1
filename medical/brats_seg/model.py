"""Swin UNETR for three overlapping tumour regions (Hatamizadeh et al. 2022, arXiv 2201.01266), and SegResNet beside it.

The network is MONAI's. Ours are two things it does not have: the patch merging that weights trained before MONAI 1.5
were made with, and a version with fewer stages, whose deepest map of a 32³ crop is still larger than one voxel.
Input (B, C, D, H, W), output logits (B, 3, D, H, W) in the order tc, wt, et.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks.unetr_block import UnetrBasicBlock
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import PatchMerging, PatchMergingV2, SwinUNETR
from torch import Tensor, nn
from torch.nn import functional as F

from medical.brats_seg.config import BratsModelConfig
from shared.errors import UsageError

_ALL_STAGES = 4
_GROUPS = 6  # feature sizes are multiples of 12
_OCTANTS = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class LegacyPatchMerging(PatchMergingV2):
    """The merging of MONAI before 1.5: octants 010 and 001 twice, 110 and 011 never (MONAI pull request 8285).

    x (B, D, H, W, C) → (B, D/2, H/2, W/2, 2C).
    """

    def forward(self, x: Tensor) -> Tensor:
        _, d, h, w, _ = x.shape
        if d % 2 or h % 2 or w % 2:
            x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2, 0, d % 2))
        parts = [x[:, i::2, j::2, k::2, :] for i, j, k in _OCTANTS]
        merged: Tensor = self.reduction(self.norm(torch.cat(parts, -1)))
        return merged


MERGINGS = {"merging": PatchMerging, "legacy": LegacyPatchMerging, "mergingv2": PatchMergingV2}


class ShallowSwinUNETR(SwinUNETR):
    """Swin UNETR cut to its first `stages` (2 or 3): sizes must be divisible by 2^(stages + 1).

    As in the published network the map above the bottleneck is used raw as the deepest skip.
    """

    def __init__(self, stages: int, feature_size: int, norm_name: Any, **kwargs: Any) -> None:
        super().__init__(feature_size=feature_size, norm_name=norm_name, **kwargs)
        self.stages = stages
        bottom = feature_size * 2**stages
        block: dict[str, Any] = {
            "spatial_dims": 3,
            "kernel_size": 3,
            "norm_name": norm_name,
            "res_block": True,
        }
        self.encoder10 = UnetrBasicBlock(in_channels=bottom, out_channels=bottom, stride=1, **block)
        unused = {2: ("encoder3", "encoder4", "decoder5", "decoder4"), 3: ("encoder4", "decoder5")}
        for name in unused[stages]:
            delattr(self, name)

    def _hidden(self, x: Tensor) -> list[Tensor]:
        """Maps after the patch embedding and after each stage, each normalised over channels."""
        swin = self.swinViT
        x = swin.pos_drop(swin.patch_embed(x))
        out = [swin.proj_out(x, self.normalize)]
        for name in ("layers1", "layers2", "layers3")[: self.stages]:
            x = getattr(swin, name)[0](x.contiguous())
            out.append(swin.proj_out(x, self.normalize))
        return out

    def forward(self, x_in: Tensor) -> Tensor:
        self._check_input_size(x_in.shape[2:])
        hidden = self._hidden(x_in)
        x = self.encoder10(hidden[-1])
        if self.stages == 3:
            x = self.decoder4(x, hidden[2])
        x = self.decoder3(x, self.encoder3(hidden[1]) if self.stages == 3 else hidden[1])
        x = self.decoder2(x, self.encoder2(hidden[0]))
        x = self.decoder1(x, self.encoder1(x_in))
        logits: Tensor = self.out(x)
        return logits

    def _check_input_size(self, spatial_shape: Any) -> None:
        step = 2 ** (self.stages + 1)
        if any(int(n) % step for n in spatial_shape):
            raise ValueError(
                f"input of {tuple(spatial_shape)} voxels: sizes must be divisible by 2**{self.stages + 1}"
            )


def stride(model: BratsModelConfig) -> int:
    """What every side of an input should be divisible by."""
    if model.name == "unet":
        return 16  # U-Net pads what its backbone's strides do not divide
    return int(2 ** (model.stages + 1)) if model.name == "swin-unetr" else 8


def build_network(model: BratsModelConfig, in_channels: int, out_channels: int) -> nn.Module:
    """The network of `model` with fresh weights. Raises `UsageError` for sizes that do not fit together."""
    if model.name == "segresnet":
        return SegResNet(
            spatial_dims=3,
            init_filters=model.feature_size,
            in_channels=in_channels,
            out_channels=out_channels,
            dropout_prob=0.2,
            norm=_norm(model),
            blocks_down=(1, 2, 2, 4),
            blocks_up=(1, 1, 1),
        )
    if model.name == "unet":
        return _unet(model, in_channels, out_channels)
    if min(len(model.depths), len(model.heads)) < model.stages:
        raise UsageError(
            f"configuration:model.depths: found {len(model.depths)} depths and {len(model.heads)} heads; "
            f"one each for {model.stages} stages wanted; set model.depths and model.heads"
        )
    common: dict[str, Any] = {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "feature_size": model.feature_size,
        "depths": model.depths[: model.stages],
        "num_heads": model.heads[: model.stages],
        "window_size": model.window_size,
        "norm_name": _norm(model),
        "use_checkpoint": model.gradient_checkpointing,
        "downsample": MERGINGS[model.merging],
    }
    if model.stages == _ALL_STAGES:
        return SwinUNETR(use_v2=model.use_v2, **common)
    if model.use_v2:
        raise UsageError(
            "configuration:model.use_v2: needs all 4 stages; set model.stages=4 or model.use_v2=false"
        )
    return ShallowSwinUNETR(model.stages, **common)


def _unet(model: BratsModelConfig, in_channels: int, out_channels: int) -> nn.Module:
    from medical.brats_seg.unet import PyramidUNet
    from shared.nets import create_backbone

    if model.backbone is None:
        raise UsageError(
            "configuration:model.backbone: nothing given; a name of `pipelines zoo --for brats-seg`, a YAML file "
            "or its keys wanted; set model.backbone"
        )
    pyramid = create_backbone(model.backbone, ndim=3, in_chans=in_channels, features_only=True)
    return PyramidUNet(pyramid, in_channels, out_channels, model.feature_size, _norm(model))


def _norm(model: BratsModelConfig) -> Any:
    if model.norm == "group":
        return ("group", {"num_groups": _GROUPS, "affine": True})
    return model.norm
