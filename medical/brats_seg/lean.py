"""The same network in less memory and time on a CPU: MONAI's blocks computed in pieces that stay near the cache.

Attention runs over groups of windows, so that neither the bias of all windows nor the mask of the shifted ones ever
exists (1.4 GB and 0.5 GB at 128³, feature size 48). Residual blocks convolve a few rows at a time, write the second
convolution and the shortcut over maps nobody needs any more, normalise channel groups in place, and read the two
halves of a skip connection without joining them; oneDNN convolves small float32 maps too. Weights, names and
arithmetic are the parent classes'; results differ by the order of sums only (1e-6 in fp32).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.unetr_block import UnetrUpBlock
from monai.networks.nets.swin_unetr import (
    BasicLayer,
    SwinTransformerBlock,
    WindowAttention,
    get_window_size,
    window_partition,
)
from torch import Tensor, nn

ATTENTION_BYTES = 6 * 2**20
"""Bias of one group of attention windows; more leaves the cache, less calls too often."""
PIECE_BYTES = 8 * 2**20
"""Input of one piece of a convolution or normalisation. Pieces this small are reused by the allocator: larger ones
go back to the system every time, and fetching fresh pages costs a quarter of a bf16 forward pass."""
LARGE = 2**22
"""Values of a feature map from which pieces pay; below, the parent's forward runs."""


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


# ------------------------------------------------------------------------------- attention


class LeanLayer(BasicLayer):
    """One Swin stage, (B, C, D, H, W) → (B, C', D', H', W'), whose shifted blocks get a mask's regions, not the mask.

    The mask keeps two voxels apart that the cyclic shift brought together: one number a voxel says it all.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not _pieces(x) or x.ndim != 5 or self.use_hyena:
            return super().forward(x)  # type: ignore[no-any-return]
        batch, _, *size = x.shape
        window, shift = get_window_size(size, self.window_size, self.shift_size)
        regions = _regions(size, window, shift)
        x = x.permute(0, 2, 3, 4, 1)
        for block in self.blocks:
            x = block(x, regions)
        x = x.view(batch, *size, -1)
        if self.downsample is not None:
            x = self.downsample(x)
        return x.permute(0, 4, 1, 2, 3)


def _regions(size: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Region of every voxel, (windows, tokens) uint8: those with different numbers must not see each other."""
    lines = []
    for n, w, s in zip(size, window, shift):
        line = torch.zeros(-(-n // w) * w, dtype=torch.uint8)
        line[-w:] = 1
        if s:
            line[-s:] = 2
        lines.append(line)
    ids = 9 * lines[0][:, None, None] + 3 * lines[1][:, None] + lines[2]
    windows: Tensor = window_partition(ids[None, ..., None], window)
    return windows.squeeze(-1)


class LeanAttention(WindowAttention):
    """x (windows, tokens, channels), regions (windows of one image, tokens) or None → like x."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if not _pieces(x) or (mask is not None and mask.ndim != 2):
            return super().forward(x, mask)  # type: ignore[no-any-return]
        windows, n, channels = x.shape
        table: Any = self.relative_position_index
        index = table[:n, :n].reshape(-1)
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
                if (here != here[:, :1]).any():  # only windows that wrap around an edge hold several regions
                    apart = here[:, None, :, None] != here[:, None, None, :]
                    extra = bias + apart.to(x.dtype).mul_(-100)
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=extra, scale=self.scale)
            out[first : first + group] = self.proj(seen.transpose(1, 2).reshape(part.shape))
        return out


class LeanBlock(SwinTransformerBlock):
    """One Swin block, (B, D, H, W, C) → the same, whose perceptron sees some voxels at a time: its hidden layer is
    four times as wide as the map."""

    def forward_part2(self, x: Tensor) -> Tensor:
        if not _pieces(x):
            return super().forward_part2(x)  # type: ignore[no-any-return]
        voxels = x.reshape(-1, x.shape[-1])
        out = torch.empty_like(voxels)
        count = max(PIECE_BYTES // (4 * x.shape[-1] * x.element_size()), 1)
        for some, into in zip(voxels.split(count), out.split(count)):
            into.copy_(self.drop_path(self.mlp(self.norm2(some))))
        return out.view(x.shape)


# ------------------------------------------------------------------------------- convolution


class LeanConvolution(nn.Conv3d):
    """x (B, C, D, H, W) → (B, C', D', H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        if not _pieces(x) or x.ndim != 5 or isinstance(self.padding, str) or self.padding_mode != "zeros":
            return super().forward(x)
        return _convolution(self, x, self.padding)


def _convolution(conv: Any, x: Tensor, padding: Any) -> Tensor:
    """`conv` of x with another `padding`, by the way that takes least time and memory."""
    if conv.kernel_size == conv.stride == (1, 1, 1) and not any(padding) and conv.groups == 1:
        # A matrix product is several times faster than oneDNN's or torch's convolution.
        product = torch.matmul(conv.weight.flatten(1), x.flatten(2))
        product = product if conv.bias is None else product.add_(conv.bias[:, None])
        return product.unflatten(2, x.shape[2:])
    stride, dilation, groups = conv.stride, conv.dilation, conv.groups
    if x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return F.conv3d(x, conv.weight, conv.bias, stride, padding, dilation, groups)
    # A single float32 image with C·D·H ≤ 20480 torch itself gives to an im2col loop, not to oneDNN: 27 times the
    # memory and, measured at 12 channels and 96 × 96, 8 times the time.
    x = x.contiguous()
    out: Tensor = torch.mkldnn_convolution(x, conv.weight, conv.bias, padding, stride, dilation, groups)
    return out


class LeanResBlock(UnetResBlock):
    """Two 3³ convolutions with a shortcut, (B, C, D, H, W) → (B, C', D, H, W)."""

    def forward(self, inp: Tensor) -> Tensor:
        if not _pieces(inp) or _outgoing(self, inp) < LARGE or not _plain(self):
            return super().forward(inp)
        return _residual(self, (inp,))


class LeanUpBlock(UnetrUpBlock):
    """Transposed convolution, then a residual block over (up, skip), of which neither `up` nor the pair ever exists.

    `skip` is written over: a U-Net reads it here for the last time.
    """

    def forward(self, inp: Tensor, skip: Tensor) -> Tensor:
        block = self.conv_block
        if (
            not _pieces(inp)
            or skip.numel() < LARGE
            or not isinstance(block, UnetResBlock)
            or not _plain(block)
        ):
            return super().forward(inp, skip)  # type: ignore[no-any-return]
        return _residual(block, (_upsample(self.transp_conv, inp), skip), spare=skip)


_LEAN: dict[type, type] = {
    BasicLayer: LeanLayer,
    SwinTransformerBlock: LeanBlock,
    WindowAttention: LeanAttention,
    UnetResBlock: LeanResBlock,
    UnetrUpBlock: LeanUpBlock,
    nn.Conv3d: LeanConvolution,
}


def _plain(block: Any) -> bool:
    """Whether the block is what `_residual` computes: convolutions that keep the size, and no dropout."""
    return all(len(layer) == 1 and _keeps_size(layer[0]) for layer in (block.conv1, block.conv2))


def _keeps_size(conv: Any) -> bool:
    return (
        isinstance(conv, nn.Conv3d)
        and conv.stride == (1, 1, 1)
        and tuple(conv.padding) == tuple(k // 2 for k in conv.kernel_size)
        and all(k % 2 for k in conv.kernel_size)
        and conv.padding_mode == "zeros"
    )


def _outgoing(block: Any, inp: Tensor) -> int:
    """Values of the block's largest map."""
    channels: int = max(inp.shape[1], block.conv1.conv.out_channels)
    return inp.numel() // inp.shape[1] * channels


class _Upsampled:
    """A transposed convolution whose kernel and stride are equal, (B, C, D, H, W) → (B, C', kD, kH, kW), of which only
    the wanted rows are computed, by a matrix product."""

    def __init__(self, conv: nn.ConvTranspose3d, x: Tensor) -> None:
        self._conv, self._x = conv, x
        self._weight = conv.weight.flatten(1).t().contiguous()
        self.shape = (len(x), conv.out_channels, *(n * k for n, k in zip(x.shape[2:], conv.stride)))

    def rows(self, low: int, high: int) -> Tensor:
        step = self._conv.stride[0]
        first = low // step
        part = self._x[:, :, first : -(-high // step)]
        product = torch.matmul(self._weight, part.flatten(2))
        # (B, C', k, k, k, D, H, W) → (B, C', D, k, H, k, W, k): every voxel becomes k³ of them.
        split = product.view(len(part), -1, *self._conv.stride, *part.shape[2:])
        out = split.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(*self.shape[:2], -1, *self.shape[3:])
        out = out if self._conv.bias is None else out.add_(self._conv.bias[:, None, None, None])
        return out[:, :, low - first * step : high - first * step]


def _upsample(layer: Any, x: Tensor) -> Tensor | _Upsampled:
    conv = layer[0]
    if isinstance(conv, nn.ConvTranspose3d) and conv.kernel_size == conv.stride and len(layer) == 1:
        return _Upsampled(conv, x)
    return layer(x)  # type: ignore[no-any-return]


def _rows(x: Tensor | _Upsampled, low: int, high: int) -> Tensor:
    return x.rows(low, high) if isinstance(x, _Upsampled) else x[:, :, low:high]


def _residual(block: Any, parts: Sequence[Tensor | _Upsampled], spare: Tensor | None = None) -> Tensor:
    """`UnetResBlock.forward` of the channel-wise joined `parts`. `spare`, one of them, may be written over."""
    like = parts[-1]
    assert isinstance(like, Tensor)
    out = _convolve(block.conv1.conv, parts, _map_like(like, block.conv1.conv))
    out = block.lrelu(_normalise(block.norm1, out))
    out = _normalise(block.norm2, _convolve(block.conv2.conv, (out,), out))
    if block.downsample:
        conv = block.conv3.conv
        fits = spare is not None and spare.shape[1] == conv.out_channels
        shortcut = spare if spare is not None and fits else _map_like(like, conv)
        out += _normalise(block.norm3, _convolve(conv, parts, shortcut))
    else:
        out += like
    return block.lrelu(out)  # type: ignore[no-any-return]


def _map_like(x: Tensor, conv: Any) -> Tensor:
    return x.new_empty(x.shape[0], conv.out_channels, *x.shape[2:])


def _convolve(conv: Any, parts: Sequence[Tensor | _Upsampled], out: Tensor) -> Tensor:
    """`conv` (stride 1, same size) of the joined `parts`, a few rows of D at a time, into `out`.

    `out` may be one of the parts: the row a later piece still needs is kept aside.
    """
    reach, depth = conv.padding[0], out.shape[2]
    channels = sum(part.shape[1] for part in parts)
    row = out[:, :1, :1].numel() * max(channels, out.shape[1]) * out.element_size()
    rows = min(max(PIECE_BYTES // row, reach, 1), depth)
    buffer = out.new_zeros(out.shape[0], channels, rows + 2 * reach, *out.shape[3:])
    before = None
    for start in range(0, depth, rows):
        stop = min(start + rows, depth)
        slab = buffer[:, :, : stop - start + 2 * reach]
        low, high = start if before is not None else max(start - reach, 0), min(stop + reach, depth)
        into = low - start + reach
        first = 0
        for part in parts:
            slab[:, first : first + part.shape[1], into : into + high - low] = _rows(part, low, high)
            first += part.shape[1]
        slab[:, :, into + high - low :] = 0
        if before is not None:
            slab[:, :, :reach] = before
        if reach:
            before = slab[:, :, -2 * reach : -reach].clone()
        out[:, :, start:stop] = _piece(conv, slab)
    return out


def _piece(conv: Any, slab: Tensor) -> Tensor:
    """`conv` of rows that already bring their surroundings along D."""
    return _convolution(conv, slab, (0, *conv.padding[1:]))


def _normalise(norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(x)`, over `x` where channels are independent: instance norm, batch norm with its kept statistics."""
    if isinstance(norm, nn.BatchNorm3d) and not norm.training and norm.running_var is not None:
        return _scale_and_shift(norm, x)
    if not isinstance(norm, nn.InstanceNorm3d) or norm.track_running_stats:
        return norm(x)  # type: ignore[no-any-return]
    count = max(PIECE_BYTES // (x[:, :1].numel() * x.element_size()), 1)
    for c in range(0, x.shape[1], count):
        some = slice(c, c + count)
        weight = norm.weight[some] if norm.weight is not None else None
        bias = norm.bias[some] if norm.bias is not None else None
        x[:, some] = F.instance_norm(x[:, some], weight=weight, bias=bias, eps=norm.eps)
    return x


def _scale_and_shift(norm: nn.BatchNorm3d, x: Tensor) -> Tensor:
    """Batch norm with its kept statistics, y = s x + (bias − s mean) with s = weight / √(variance + ε), over `x`."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.float() + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight.float()
    shift = -norm.running_mean.float() * scale
    shift = shift if norm.bias is None else shift + norm.bias.float()
    for channel, s, b in zip(x.unbind(1), scale.tolist(), shift.tolist()):
        channel.mul_(s).add_(b)
    return x
