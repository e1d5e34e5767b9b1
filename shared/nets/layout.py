"""Shapes. Inside the library tensors are channels-last, (B, *S, C); images enter and pyramids leave as (B, C, *S)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, ...]
CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX_POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def channels_last(x: Tensor) -> Tensor:
    """(B, C, *S) → (B, *S, C), a view."""
    return x.movedim(1, -1)


def channels_first(x: Tensor) -> Tensor:
    """(B, *S, C) → (B, C, *S), a view."""
    return x.movedim(-1, 1)


def tokens(x: Tensor) -> Tensor:
    """(B, *S, C) → (B, L, C), the last axis of S fastest."""
    return x.flatten(1, -2)


def per_axis(value: int | Sequence[int], ndim: int) -> Size:
    """One number for all axes, or one for each. Raises ValueError."""
    if isinstance(value, int):
        return (value,) * ndim
    if len(value) != ndim:
        raise ValueError(f"{list(value)} has {len(value)} numbers for {ndim} dimensions")
    return tuple(int(v) for v in value)


class Conv(nn.Module):
    """Convolution of channels-last maps, (B, *S, C) → (B, *S', C'). `padding` is on both sides, or (left, right)
    pairs by axis (a causal convolution pads left only)."""

    def __init__(
        self,
        dim: int,
        out: int,
        kernel: int | Sequence[int],
        ndim: int,
        *,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        groups: int = 1,
        dilation: int = 1,
        bias: bool = True,
        causal: bool = False,
    ) -> None:
        super().__init__()
        kernels = per_axis(kernel, ndim)
        same = tuple(dilation * (k - 1) // 2 for k in kernels) if padding is None else per_axis(padding, ndim)
        self.left = tuple(dilation * (k - 1) for k in kernels) if causal else None
        layer: Any = CONVS[ndim]
        self.conv = layer(
            dim, out, kernels, stride=per_axis(stride, ndim), padding=0 if causal else same, groups=groups,
            dilation=dilation, bias=bias,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.left is not None:  # while channels are last, so that they stay so
            x = F.pad(x, [0, 0, *(side for left in reversed(self.left) for side in (left, 0))])
        if isinstance(self.conv, nn.Conv1d) and self.conv.groups == x.shape[-1] > 1:
            return self._depthwise_1d(x)
        return channels_last(self.conv(channels_first(x)))

    def _depthwise_1d(self, x: Tensor) -> Tensor:
        """As one row of a map: torch has a kernel for channels-last maps there, for series it copies them to
        channels-first and back (8192 × 768, three taps, one core: 105 ms, and 7 this way)."""
        conv: Any = self.conv
        y = F.conv2d(
            channels_first(x)[:, :, None], conv.weight[:, :, None], conv.bias, (1, *conv.stride),
            (0, *conv.padding), (1, *conv.dilation), conv.groups,
        )  # fmt: skip
        return channels_last(y[:, :, 0])


def average_pool(
    x: Tensor, kernel: int, stride: int, padding: int = 0, *, count_padding: bool = True
) -> Tensor:
    """Mean over windows of channels-last maps."""
    pool = _POOLS[x.ndim - 2]
    if (
        x.ndim == 5 and min(x.shape[1:-1]) < kernel
    ):  # torch refuses these maps in three dimensions, padded or not
        edge = [0, 0, *[padding, padding] * 3]
        x, inside = F.pad(x, edge), F.pad(torch.ones_like(x[..., :1]), edge)
        mean, share = (channels_last(pool(channels_first(v), kernel, stride)) for v in (x, inside))
        return mean if count_padding else mean / share
    return channels_last(pool(channels_first(x), kernel, stride, padding, count_include_pad=count_padding))


def max_pool(x: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """Maximum over windows of channels-last maps."""
    return channels_last(_MAX_POOLS[x.ndim - 2](channels_first(x), kernel, stride, padding))


def pad_to_multiple(x: Tensor, multiple: Sequence[int]) -> Tensor:
    """Zeros after the end of each axis of (B, *S, C) until it divides."""
    extra = [-n % m for n, m in zip(x.shape[1:-1], multiple)]
    if not any(extra):
        return x
    return F.pad(x, [0, 0, *(side for e in reversed(extra) for side in (0, e))])


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first `size` positions along each axis of (B, *S, C)."""
    return x[(slice(None), *(slice(0, n) for n in size))]


def to_windows(x: Tensor, window: Sequence[int]) -> Tensor:
    """(B, *S, C) → (B · windows, *window, C); sides must divide. Windows in row order."""
    n = len(window)
    split = [v for size, w in zip(x.shape[1:-1], window) for v in (size // w, w)]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    order = [0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1]
    return x.permute(order).reshape(-1, *window, x.shape[-1])


def from_windows(x: Tensor, size: Sequence[int]) -> Tensor:
    """The inverse of `to_windows`: (B · windows, *window, C) → (B, *size, C)."""
    window, n = x.shape[1:-1], len(size)
    counts = [s // w for s, w in zip(size, window)]
    x = x.reshape(-1, *counts, *window, x.shape[-1])
    order = [0, *(v for a in range(1, n + 1) for v in (a, a + n)), 2 * n + 1]
    return x.permute(order).reshape(-1, *size, x.shape[-1])


def shrink_mask(mask: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """(B, *S) → (B, *size): a position is valid where any of the positions it stands for is."""
    if mask is None or tuple(mask.shape[1:]) == tuple(size):
        return mask
    pool: Any = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}[mask.ndim - 1]
    out: Tensor = pool(mask[:, None].float(), tuple(size))[:, 0] > 0
    return out


def positions(size: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Integer coordinates of every token, (L, n), the last axis fastest."""
    lines = [torch.arange(n, device=device) for n in size]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).reshape(-1, len(lines))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on x keep their own precision (FFTs, states)."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def count(size: Sequence[int]) -> int:
    """Tokens of a map of `size`."""
    return math.prod(size)
