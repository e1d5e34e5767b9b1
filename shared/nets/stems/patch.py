"""Stems and downsampling by convolution: disjoint patches, overlapping convolutions, Swin's patch merging."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shared.nets.config import Part
from shared.nets.layout import Conv, Size, channels_last, pad_to_multiple, per_axis
from shared.nets.norms.layers import ACTIVATIONS, NoNorm
from shared.nets.options import Count, Positive, Whole
from shared.nets.registry import make, register
from shared.nets.stems.base import Down, Stem

VIT = "An Image is Worth 16x16 Words, Dosovitskiy et al. 2021, arXiv 2010.11929"
SWIN = "Swin Transformer, Liu et al. 2021, arXiv 2103.14030"


@register("stem", "patch", paper=VIT, cost="L p^n Cin C")
class PatchStem(Stem):
    """Disjoint patches of p^n positions, each one token; the input is padded with zeros at the end until it divides.
    p = 1 is a linear map of every position."""

    looks_ahead = False

    def __init__(
        self, in_chans: int, dim: int, ndim: int, *, patch: Count | Sequence[Count] = 4, norm: Part = "none"
    ) -> None:
        super().__init__()
        self.stride = per_axis(patch, ndim)
        self.proj = Conv(in_chans, dim, self.stride, ndim, stride=self.stride, padding=0)
        self.norm = make("norm", norm, dim)
        self.per_token = all(p == 1 for p in self.stride) and self.norm.per_token

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(
            self.proj.conv(pad_to_multiple(channels_last(x), self.stride).movedim(-1, 1)).movedim(1, -1)
        )  # type: ignore[no-any-return]

    def out_size(self, size: Sequence[int]) -> Size:
        return tuple(-(-n // p) for n, p in zip(size, self.stride))

    def writers(self) -> Sequence[nn.Module]:
        return (self.proj.conv,) if isinstance(self.norm, NoNorm) else ()


@register(
    "stem",
    "conv",
    paper="Early Convolutions Help Transformers See Better, Xiao et al. 2021, arXiv 2106.14881",
    cost="L k^n Cin C",
)
class ConvStem(Stem):
    """Overlapping convolutions in a row, by default one. `widths` are shares of C; norm and activation stand between
    the layers, `last_norm` and `last_activation` after the last. `bias` is by default left out where batch norm would
    undo it."""

    def __init__(
        self,
        in_chans: int,
        dim: int,
        ndim: int,
        *,
        kernels: Sequence[Count] = (7,),
        strides: Sequence[Count] = (4,),
        padding: Sequence[Whole] | None = None,
        widths: Sequence[Positive] | None = None,
        norm: str = "none",
        activation: str | None = None,
        last_norm: str | Mapping[str, Any] = "none",
        last_activation: str | None = None,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        shares = list(widths or [1.0] * len(kernels))
        self.kernels, self.strides = list(kernels), list(strides)
        self.padding = [k // 2 for k in kernels] if padding is None else list(padding)
        same = len(kernels) == len(strides) == len(shares) == len(self.padding)
        if not kernels or not same or shares[-1] != 1:
            raise ValueError(
                "kernels, strides, padding and widths (the last one 1) of the same number wanted"
            )
        for one in (activation, last_activation):
            if one is not None and one not in ACTIVATIONS:
                raise ValueError(f"activation {one!r}; one of {', '.join(ACTIVATIONS)} wanted")
        if min(round(dim * share) for share in shares) < 1:
            raise ValueError(f"widths {shares} of {dim} channels; 1 channel or more wanted")
        self.looks_ahead = any(k - p > s for k, s, p in zip(self.kernels, self.strides, self.padding))
        self.stride = (math.prod(self.strides),) * ndim
        sizes = [in_chans, *(round(dim * share) for share in shares)]
        bias = norm != "batchnorm" if bias is None else bias
        self.convs = nn.ModuleList(
            Conv(a, b, k, ndim, stride=s, padding=p, bias=bias)
            for a, b, k, s, p in zip(sizes, sizes[1:], self.kernels, self.strides, self.padding)
        )
        names = [*[norm] * (len(kernels) - 1), last_norm]
        self.norms = nn.ModuleList(make("norm", name, width) for name, width in zip(names, sizes[1:]))
        self.activation = ACTIVATIONS[activation] if activation else None
        self.last_activation = ACTIVATIONS[last_activation] if last_activation else None
        alone = all(k == 1 for k in (*self.kernels, *self.strides)) and not any(self.padding)
        self.per_token = alone and all(norm.per_token for norm in self.norms)

    def forward(self, x: Tensor) -> Tensor:
        x = channels_last(x)
        for at, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = norm(conv(x))
            if self.activation is not None and at + 1 < len(self.convs):
                x = self.activation(x)
        return x if self.last_activation is None else self.last_activation(x)

    def out_size(self, size: Sequence[int]) -> Size:
        for k, s, p in zip(self.kernels, self.strides, self.padding):
            size = [(n + 2 * p - k) // s + 1 for n in size]
        return tuple(size)

    def writers(self) -> Sequence[nn.Module]:
        last: Any = self.convs[-1]
        plain = isinstance(self.norms[-1], NoNorm) and self.last_activation is None
        return (last.conv,) if plain else ()


@register("down", "conv", paper="MetaFormer, ConvNeXt and others", cost="L k^n C C'")
class ConvDown(Down):
    """A strided convolution, with a norm before or after it. Kernel = stride: disjoint, padded at the end."""

    reads: ClassVar[str | None] = "before"

    def __init__(
        self,
        dim: int,
        out: int,
        ndim: int,
        *,
        kernel: Count = 3,
        stride: Count = 2,
        norm_before: str | Mapping[str, Any] = "none",
        norm_after: str | Mapping[str, Any] = "none",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if kernel != stride and kernel % 2 == 0:
            raise ValueError(
                f"kernel {kernel}, stride {stride}; an odd kernel wanted, or one equal to the stride"
            )
        self.kernel, self.stride, self.padding = kernel, stride, 0 if kernel == stride else kernel // 2
        self.looks_ahead = kernel - self.padding > stride
        self.before, self.after = make("norm", norm_before, dim), make("norm", norm_after, out)
        self.conv = Conv(dim, out, kernel, ndim, stride=stride, padding=self.padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        if self.kernel == self.stride:
            x = pad_to_multiple(x, (self.stride,) * (x.ndim - 2))
        return self.after(self.conv(x))  # type: ignore[no-any-return]

    def out_size(self, size: Sequence[int]) -> Size:
        return tuple(-(-n // self.stride) for n in size)

    def writers(self) -> Sequence[nn.Module]:
        return (self.conv.conv,) if isinstance(self.after, NoNorm) else ()


@register("down", "merge", paper=SWIN, cost="L C²")
class PatchMerging(Down):
    """The 2^n neighbours joined, layer norm, linear map without bias (section 3.1). `norm_after`: the norm comes last
    (Swin V2)."""

    looks_ahead = False

    def __init__(self, dim: int, out: int, ndim: int, *, norm_after: bool = False) -> None:
        super().__init__()
        self.stride = 2
        # timm's and the official order in 2-D: first axis fastest.
        self.corners = [corner[::-1] for corner in product((0, 1), repeat=ndim)]
        self.norm_after = norm_after
        self.norm: Any = make(
            "norm", {"name": "layernorm", "eps": 1e-5}, out if norm_after else dim * 2**ndim
        )
        self.reduction = nn.Linear(dim * 2**ndim, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, (2,) * (x.ndim - 2))
        parts = [x[(slice(None), *(slice(c, None, 2) for c in corner))] for corner in self.corners]
        joined = torch.cat(parts, -1)
        if self.norm_after:
            return self.norm(self.reduction(joined))  # type: ignore[no-any-return]
        return self.reduction(self.norm(joined))  # type: ignore[no-any-return]

    def out_size(self, size: Sequence[int]) -> Size:
        return tuple(-(-n // 2) for n in size)
