"""What tells a network without convolutions where a token lies: added once, after the stem. An `additive` code does not
depend on the input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets.layout import Conv, count, positions
from shared.nets.options import Count, Positive
from shared.nets.registry import register


@register("position", "none", paper="–", cost="0")
class NoPosition(nn.Module):
    per_token = True
    additive = True

    def __init__(self, dim: int, ndim: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        return x


@register(
    "position", "sine", paper="Attention Is All You Need, Vaswani et al. 2017, arXiv 1706.03762", cost="L C"
)
class SinePosition(nn.Module):
    """Sine and cosine of each coordinate at geometric frequencies, C / n channels an axis; any size. `interleaved`:
    each frequency's sine and cosine beside each other, as the paper writes it; else all sines, then all cosines."""

    per_token = True
    additive = True

    def __init__(self, dim: int, ndim: int, *, interleaved: bool = False) -> None:
        super().__init__()
        if dim < 2 * ndim:
            raise ValueError(f"{dim} channels are too few for {ndim} axes")
        self.dim, self.ndim, self.interleaved = dim, ndim, interleaved

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        half = self.dim // self.ndim // 2
        rates = torch.exp(torch.arange(half, device=x.device) * (-math.log(10_000) / half))
        angles = (positions(x.shape[1:-1], x.device) + offset)[..., None] * rates  # (L, n, half)
        code = torch.stack([angles.sin(), angles.cos()], -1 if self.interleaved else -2).flatten(1)
        code = nn.functional.pad(code, (0, self.dim - code.shape[-1]))
        return x + code.view(*x.shape[1:]).to(x.dtype)


@register(
    "position",
    "learned",
    paper="An Image is Worth 16x16 Words, Dosovitskiy et al. 2021, arXiv 2010.11929",
    cost="L C",
)
class LearnedPosition(nn.Module):
    """One vector a token, truncated normal of 0.2; belongs to one input size."""

    per_token = True
    additive = True

    def __init__(
        self, dim: int, ndim: int, *, size: Sequence[int] | None = None, std: Positive = 0.2
    ) -> None:
        super().__init__()
        if size is None:
            raise ValueError("needs the input size; give img_size")
        self.size = tuple(size)
        self.code = nn.Parameter(torch.empty(count(self.size), dim))
        nn.init.trunc_normal_(self.code, std=std)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        size = tuple(x.shape[1:-1])
        if size == self.size:
            return x + self.code.view(x.shape[1:])
        if len(size) > 1 or offset + size[0] > self.size[0]:
            raise UsageError(
                f"backbone: position 'learned': a map of {list(size)} tokens; {list(self.size)} wanted, "
                "the size it was built with; give inputs of that size, or another position"
            )
        return x + self.code[offset : offset + size[0]]


@register(
    "position",
    "conv",
    paper="Conditional Positional Encodings, Chu et al. 2021, arXiv 2102.10882",
    cost="L k^n C",
)
class ConvPosition(nn.Module):
    """x + depthwise convolution of x: zero padding at the borders tells where they are."""

    per_token = False
    additive = False
    looks_ahead = True

    def __init__(self, dim: int, ndim: int, *, kernel: Count = 3) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel {kernel} is even; an odd one wanted")
        self.conv = Conv(dim, dim, kernel, ndim, groups=dim)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        return x + self.conv(x)  # type: ignore[no-any-return]
