"""Swin UNETR's decoder (Hatamizadeh et al. 2022, arXiv 2201.01266, figure 1) over any pyramid of `shared.nets`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from shared.errors import UsageError


class PyramidUNet(nn.Module):
    """(B, Cin, D, H, W) → logits (B, Cout, D, H, W).

    Every map of the pyramid is normalised over its channels and refined by a residual block; from the deepest one up,
    transposed convolutions bring it to the next level's size, and a residual block reads both. The last level is the
    input itself. Inputs that the pyramid's strides do not divide are padded with zeros at the end.
    """

    def __init__(
        self, backbone: Any, in_channels: int, out_channels: int, feature_size: int, norm: Any = "instance"
    ) -> None:
        super().__init__()
        self.backbone = backbone
        widths: list[int] = backbone.feature_info.channels()
        strides: list[int] = backbone.feature_info.reduction()
        block: dict[str, Any] = {"spatial_dims": 3, "kernel_size": 3, "norm_name": norm, "res_block": True}
        self.total = strides[-1]
        self.encoder = UnetrBasicBlock(in_channels=in_channels, out_channels=feature_size, stride=1, **block)
        self.encoders = nn.ModuleList(
            UnetrBasicBlock(in_channels=width, out_channels=width, stride=1, **block) for width in widths
        )
        outer = [feature_size, *widths[:-1]]
        steps = [b // a for a, b in zip([1, *strides], strides)]
        self.decoders = nn.ModuleList(
            UnetrUpBlock(in_channels=width, out_channels=to, upsample_kernel_size=step, **block)
            for width, to, step in zip(widths, outer, steps)
        )
        self.out = UnetOutBlock(spatial_dims=3, in_channels=feature_size, out_channels=out_channels)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = F.pad(x, [side for n in reversed(size) for side in (0, -n % self.total)])
        maps = self.backbone(x)
        self._check(maps, x.shape[2:])
        maps = [F.layer_norm(m.movedim(1, -1), m.shape[1:2]).movedim(-1, 1) for m in maps]
        maps = [encode(m) for encode, m in zip(self.encoders, maps)]
        skips = [self.encoder(x), *maps[:-1]]
        y = maps[-1]
        for decode, skip in zip(reversed(self.decoders), reversed(skips)):
            y = decode(y, skip)
        logits: Tensor = self.out(y)
        return logits[:, :, : size[0], : size[1], : size[2]]

    def _check(self, maps: Sequence[Tensor], size: Sequence[int]) -> None:
        for m, stride in zip(maps, self.backbone.feature_info.reduction()):
            wanted = [n // stride for n in size]
            if list(m.shape[2:]) != wanted:
                raise UsageError(
                    f"model.backbone: a map of {list(m.shape[2:])} for an input of {list(size)}; {wanted} wanted, the "
                    f"same stride {stride} along every axis; choose odd kernels and one patch side"
                )
