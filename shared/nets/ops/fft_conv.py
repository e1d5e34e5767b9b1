"""Long depthwise convolution by FFT on one, two or three axes: y[p] = Σ_j h[j] x[p + origin − j].

`origin` is the tap at offset 0 along each axis: 0 for a causal filter, S − 1 for a centred one of 2S − 1 taps, S − 1
for a causal one turned round. Outputs have the input's size; the input is zero outside.

How it is quick (3-D 32³ × 48 channels: about a quarter of ``irfftn(rfftn(x) * rfftn(h))``'s time):
axes are transformed one after the other, so that the zeros of axes not yet padded are never transformed, and outputs
are cropped between the inverse transforms; a few channels at a time, so that the padded spectra stay in the cache and
are multiplied in place; sides are padded to a length with small factors just large enough that wrapped values fall
outside the crop; the backward pass keeps inputs and filters, not spectra. Tensors are (…, C, *S) of any strides: the
copy into the padded buffer is the only one, so channels-last maps are given as views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.nets.layout import Size, per_axis, positions, without_autocast

CHUNK_BYTES = {"cpu": 8 << 20}
"""Spectra worked on at once. Elsewhere (accelerators) `CHUNK_ELSEWHERE`: few large calls are better there."""
CHUNK_ELSEWHERE = 1 << 30


@cache
def fast_size(length: int) -> int:
    """The least even number ≥ `length` without prime factors above 5 (odd real transforms are far slower)."""
    best = 1 << max(length - 1, 1).bit_length()
    for fives in range(8):
        for threes in range(12):
            odd = 5**fives * 3**threes
            if 2 * odd < best:
                best = min(best, odd << max(-(-length // odd) - 1, 1).bit_length())
    return best


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of one convolution, by axis."""

    size: Size
    """S, of input and output."""
    taps: Size
    """K, of the filter."""
    origin: Size
    """The tap at offset 0, 0 ≤ origin < K."""
    padded: Size
    """N, of the transforms."""

    @property
    def macs(self) -> tuple[float, float, float]:
        """Multiply-accumulates a channel: transform of the input, product of spectra, inverse transform. A complex
        transform of N numbers takes 5 N log₂ N operations, a real one half of that."""
        half = self.padded[-1] // 2 + 1
        rows, total = math.prod(self.size[:-1]), 0.0
        total = rows * 1.25 * self.padded[-1] * math.log2(self.padded[-1])
        for axis in range(len(self.size) - 2, -1, -1):
            rows = math.prod(self.size[:axis]) * math.prod(self.padded[axis + 1 : -1]) * half
            total += rows * 2.5 * self.padded[axis] * math.log2(self.padded[axis])
        return total, 4.0 * math.prod(self.padded[:-1]) * half, total


def plan(size: Sequence[int], taps: Sequence[int], origin: int | Sequence[int]) -> Plan:
    """Raises ValueError for an origin outside the filter."""
    at = per_axis(origin, len(size))
    if len(taps) != len(size) or not all(0 <= o < k for o, k in zip(at, taps)):
        raise ValueError(f"origin {list(at)} in a filter of {list(taps)} taps for {len(size)} axes")
    # A full convolution has S + K − 1 values; kept are S from `origin` on. Wrapped ones may fall anywhere else.
    least = [max(s + k - 1 - o, o + s, k) for s, k, o in zip(size, taps, at)]
    return Plan(tuple(size), tuple(taps), at, tuple(fast_size(n) for n in least))


def fft_conv(x: Tensor, h: Tensor, origin: int | Sequence[int] = 0) -> Tensor:
    """x (B, C, *S), h (C, *K) → (B, C, *S). Differentiable once in both.

    Half precision is computed in float32 (autocast does not reach in) and returned as it came. Raises ValueError for
    an origin outside the filter.
    """
    return fft_conv_groups(x[:, None], h[None], origin)[:, 0]


def fft_conv_groups(x: Tensor, h: Tensor, origin: int | Sequence[int] = 0) -> Tensor:
    """G filters a channel: x (B, 1 or G, C, *S), h (G, C, *K) → (B, G, C, *S). A shared x is transformed once."""
    made, dtype = plan(x.shape[3:], h.shape[2:], origin), working_dtype(x)
    with without_autocast(x):
        y: Tensor = _Convolution.apply(x.to(dtype), h.to(dtype), made)  # type: ignore[no-untyped-call]
    return y.to(x.dtype)


def working_dtype(x: Tensor) -> torch.dtype:
    """float64 stays, all else is computed in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# ---------------------------------------------------------------- filters that stay: transformed once


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A filter made ready for maps of one size; for prediction only (no gradient reaches the filter)."""

    values: Tensor
    """(G, C, *N'), complex."""
    plan: Plan

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, 1 or G, C, *S) → (B, G, C, *S)."""
        with without_autocast(x):
            wide = x.to(self.values.real.dtype)
            return _over_channels(wide, self.plan, lambda at: self.values[:, at]).to(x.dtype)


def spectrum(h: Tensor, size: Sequence[int], origin: int | Sequence[int] = 0) -> Spectrum:
    """h (G, C, *K) for maps of `size`."""
    made = plan(size, h.shape[2:], origin)
    with torch.no_grad(), without_autocast(h):
        return Spectrum(_transform(h.to(working_dtype(h)), made.padded), made)


# ---------------------------------------------------------------- the same as a matrix


def toeplitz(h: Tensor, size: Sequence[int], origin: int | Sequence[int] = 0) -> Tensor:
    """h (…, *K) → (…, L, L), entry [p, q] = h[p − q + origin], zero outside the filter; L the tokens of `size`."""
    n = len(size)
    made = plan(size, h.shape[h.ndim - n :], origin)
    if n == 1:  # rows are windows on the taps turned round; far quicker than an index, backward above all
        side, first = made.size[0], made.origin[0]
        band = F.pad(h, (side - 1 - first, side + first - made.taps[0]))
        return band.flip(-1).unfold(-1, side, 1).flip(-2)
    at = positions(size, h.device)
    tap = at[:, None] - at[None] + torch.tensor(made.origin, device=h.device)
    sides = torch.tensor(made.taps, device=h.device)
    inside = ((tap >= 0) & (tap < sides)).all(-1)
    steps = torch.tensor([math.prod(made.taps[a + 1 :]) for a in range(n)], device=h.device)
    index = (tap.clamp(min=0).minimum(sides - 1) * steps).sum(-1)
    return h.flatten(-n)[..., index] * inside


def axis_conv(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """x (B, 1 or G, C, *S), matrix (G, C, s, s) by `toeplitz` → (B, G, C, *S): along axis number `axis` of S. A dense
    product: on short axes, of 64 at most, it beats the transform."""
    lines = x.movedim(3 + axis, -1).movedim(0, 2)  # (G, C, B, the others, s)
    with without_autocast(x):
        y = lines.flatten(2, -2).to(matrix.dtype) @ matrix.transpose(-1, -2)
    return y.to(x.dtype).unflatten(2, lines.shape[2:-1]).movedim(2, 0).movedim(-1, 3 + axis)


def along_axis(conv: Callable[[Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
    """`conv` of one axis, (B, 1 or G, C, s) → (B, G, C, s), applied to x (B, 1 or G, C, *S) along axis `axis` of S."""
    lines = x.movedim(3 + axis, -1)  # (B, G, C, the others, s)
    others = lines.shape[3:-1]
    y = conv(lines.flatten(3, -2).movedim(3, 1).flatten(0, 1))
    y = y.unflatten(0, (len(x), -1)).movedim(1, 3).unflatten(3, others)
    return y.movedim(-1, 3 + axis)


# ---------------------------------------------------------------- transforms


def _transform(x: Tensor, padded: Sequence[int], start: Sequence[int] | None = None) -> Tensor:
    """(…, *S) real → (…, *N') complex: x placed at `start` in zeros. Last axis first, so that a transform meets
    padding in its own axis only."""
    n = len(padded)
    at = start or (0,) * n
    x = torch.fft.rfft(_placed(x, -1, at[-1], padded[-1]))
    for axis in range(-2, -n - 1, -1):
        placed = _placed(x, axis, at[axis], padded[axis]) if at[axis] else x
        x = torch.fft.fft(placed, n=padded[axis], dim=axis)
    return x


def _inverse(y: Tensor, padded: Sequence[int], start: Sequence[int], size: Sequence[int]) -> Tensor:
    """(…, *N') complex → (…, *size) real: `size` values from `start` on. Cropped as soon as an axis is done."""
    for axis in range(-len(padded), -1):
        y = torch.fft.ifft(y, dim=axis).narrow(axis, start[axis], size[axis])
    return torch.fft.irfft(y, n=padded[-1]).narrow(-1, start[-1], size[-1])


def _placed(x: Tensor, axis: int, left: int, length: int) -> Tensor:
    """Zeros of `length` along `axis` with x from `left` on; contiguous whatever x was."""
    shape = list(x.shape)
    shape[axis] = length
    out = torch.zeros(shape, dtype=x.dtype, device=x.device)
    out.narrow(axis, left, x.shape[axis]).copy_(x)
    return out


def _chunks(channels: int, maps: int, padded: Sequence[int], device: torch.device) -> list[slice]:
    """Channels to work on at once, where `maps` spectra a channel are alive."""
    room = CHUNK_BYTES.get(device.type, CHUNK_ELSEWHERE)
    step = max(room // max(8 * maps * math.prod(padded[:-1]) * (padded[-1] // 2 + 1), 1), 1)
    return [slice(c, min(c + step, channels)) for c in range(0, channels, step)]


def _over_channels(x: Tensor, made: Plan, spectra: Any) -> Tensor:
    """The convolution without gradients: x (B, 1 or G, C, *S); `spectra(channels)` gives (G, c, *N')."""
    parts = _chunks(x.shape[2], len(x) * x.shape[1], made.padded, x.device)
    out: Tensor | None = None
    for at in parts:
        v, h = _transform(x[:, :, at], made.padded), spectra(at)
        v = v.mul_(h) if v.shape[1] == h.shape[0] else v * h
        y = _inverse(v, made.padded, made.origin, made.size)
        if out is None:  # with x's strides, which the caller's gates have
            same = y.shape[1] == x.shape[1]
            out = torch.empty_like(x) if same else y.new_empty(*y.shape[:2], x.shape[2], *made.size)
        out[:, :, at] = y
    if out is None:
        raise ValueError("a map without channels")
    return out


class _Convolution(torch.autograd.Function):
    """Forward y = Crop_origin F⁻¹ diag(F h) F Place₀ x; backward its two transposes, transformed anew. Kept for
    the backward pass are x and h alone: in 3-D the padded spectra would be eight times the map."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: Tensor, made: Plan) -> Tensor:
        ctx.save_for_backward(x, h)
        ctx.made = made
        return _over_channels(x, made, lambda at: _transform(h[:, at], made.padded))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, h = ctx.saved_tensors
        made: Plan = ctx.made
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        to_h = torch.empty_like(h) if ctx.needs_input_grad[1] else None
        zero = (0,) * len(made.size)
        for at in _chunks(x.shape[2], 2 * len(x) * h.shape[0], made.padded, x.device):
            g = _transform(grad[:, :, at], made.padded, made.origin)
            if to_h is not None:
                v = _transform(x[:, :, at], made.padded)
                pair = (v.conj() * g).sum(0)
                to_h[:, at] = _inverse(pair, made.padded, zero, made.taps)
            if to_x is not None:
                g.mul_(_transform(h[:, at], made.padded).conj_physical_())
                shared = g.sum(1, keepdim=True) if x.shape[1] < g.shape[1] else g
                to_x[:, :, at] = _inverse(shared, made.padded, zero, made.size)
        return to_x, to_h, None
