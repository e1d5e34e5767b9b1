"""The same network in less memory on a CPU: MONAI's blocks computed piece by piece where their tensors are largest.

Attention runs over groups of windows, so that the bias of all windows (1.4 GB at 128³, feature size 48) never exists
and a group stays in cache. Residual blocks convolve slabs of rows with one row of surroundings, normalise channel
groups in place, and read the two halves of a skip connection without joining them. Weights, names and arithmetic are
the parent classes'; results differ by the order of sums only (1e-6 in fp32).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.unetr_block import UnetrUpBlock
from monai.networks.nets.swin_unetr import WindowAttention
from torch import Tensor, nn

ATTENTION_BYTES = 24 * 2**20
"""Bias of one group of attention windows; more leaves the cache, less calls too often."""
LARGE = 2**22
"""Values of a feature map from which pieces pay; below, the parent's forward runs."""
SLABS = 8
CHANNELS = 8
"""Channels normalised at once."""


def make_lean(network: nn.Module) -> nn.Module:
    """`network` with its MONAI blocks turned into their lean subclasses, in place; others stay as they are."""
    for module in network.modules():
        lean = _LEAN.get(type(module))
        if lean is not None:
            module.__class__ = lean
    return network


def _pieces(x: Tensor) -> bool:
    """Whether piecewise computation is wanted: prediction on a CPU. Training and GPUs keep the parent's way."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


class LeanAttention(WindowAttention):
    """x (windows, tokens, channels), mask (windows of one image, tokens, tokens) or None → like x."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if not _pieces(x):
            return super().forward(x, mask)
        windows, n, channels = x.shape
        index = self.relative_position_index[:n, :n].reshape(-1)
        bias = self.relative_position_bias_table[index].reshape(n, n, -1).permute(2, 0, 1)
        bias = bias.to(x.dtype).contiguous()[None]
        group = max(ATTENTION_BYTES // (bias.numel() * bias.element_size()), 1)
        out = torch.empty_like(x)
        for first in range(0, windows, group):
            part = x[first : first + group]
            qkv = self.qkv(part).reshape(len(part), n, 3, self.num_heads, channels // self.num_heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            extra = bias
            if mask is not None:
                here = mask[torch.arange(first, first + len(part)) % len(mask)]
                if here.any():  # only windows that wrap around an edge have one
                    extra = bias + here[:, None].to(x.dtype)
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=extra, scale=self.scale)
            out[first : first + group] = self.proj(seen.transpose(1, 2).reshape(part.shape))
        return out


class LeanResBlock(UnetResBlock):
    """Two 3³ convolutions with a shortcut, (B, C, D, H, W) → (B, C', D, H, W)."""

    def forward(self, inp: Tensor) -> Tensor:
        if not _pieces(inp) or inp.numel() < LARGE or not _plain(self):
            return super().forward(inp)
        return _residual(self, (inp,))


class LeanUpBlock(UnetrUpBlock):
    """Transposed convolution, then a residual block over (up, skip), which are never joined as a whole."""

    def forward(self, inp: Tensor, skip: Tensor) -> Tensor:
        block = self.conv_block
        if (
            not _pieces(inp)
            or skip.numel() < LARGE
            or not isinstance(block, UnetResBlock)
            or not _plain(block)
        ):
            return super().forward(inp, skip)
        return _residual(block, (self.transp_conv(inp), skip))


_LEAN: dict[type, type] = {
    WindowAttention: LeanAttention,
    UnetResBlock: LeanResBlock,
    UnetrUpBlock: LeanUpBlock,
}


def _plain(block: UnetResBlock) -> bool:
    """Whether the block is what `_residual` computes: stride 1 and no dropout."""
    return all(
        isinstance(conv.conv, nn.Conv3d) and conv.conv.stride == (1, 1, 1) and len(conv) == 1
        for conv in (block.conv1, block.conv2)
    )


def _residual(block: UnetResBlock, parts: Sequence[Tensor]) -> Tensor:
    """`UnetResBlock.forward` of the channel-wise joined `parts`, with two feature maps beside them."""
    out = _slabwise(block.conv1.conv, parts)
    out = block.lrelu(_normalised(block.norm1, out))
    out = _slabwise(block.conv2.conv, (out,))
    out = _normalised(block.norm2, out)
    if block.downsample:
        out += _normalised(block.norm3, _slabwise(block.conv3.conv, parts))
    else:
        out += parts[0]
    return block.lrelu(out)


def _slabwise(conv: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> Tensor:
    """`conv` (3-D, stride 1, same size) of the joined `parts`, a few rows of D at a time."""
    assert isinstance(conv, nn.Conv3d)  # `_plain` has checked
    reach = conv.kernel_size[0] // 2
    first = parts[0]
    depth = first.shape[2]
    out = first.new_empty(first.shape[0], conv.out_channels, *first.shape[2:])
    rows = -(-depth // SLABS)
    padding = (conv.padding[1], conv.padding[2]) if isinstance(conv.padding, tuple) else (0, 0)
    for start in range(0, depth, rows):
        stop = min(start + rows, depth)
        low, high = max(start - reach, 0), min(stop + reach, depth)
        slab = torch.cat([part[:, :, low:high] for part in parts], dim=1)
        done = F.conv3d(slab, conv.weight, conv.bias, padding=(reach, *padding))
        out[:, :, start:stop] = done[:, :, start - low : start - low + stop - start]
    return out


def _normalised(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`, written over `x` where channels are independent (instance norm)."""
    if not isinstance(norm, nn.InstanceNorm3d) or norm.track_running_stats:
        return norm(x)
    for c in range(0, x.shape[1], CHANNELS):
        some = slice(c, c + CHANNELS)
        weight = norm.weight[some] if norm.weight is not None else None
        bias = norm.bias[some] if norm.bias is not None else None
        x[:, some] = F.instance_norm(x[:, some], weight=weight, bias=bias, eps=norm.eps)
    return x
