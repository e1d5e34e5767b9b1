"""Norms of a zero-mean stream: what a layer norm is where there is no mean to take off.

Pre-RMSNorm and Pre-CRMSNorm Transformers (Jiang et al. 2023, arXiv 2305.14858), section 3. They keep LayerNorm's ε, and
its factor and offset only where no linear map behind them can take these in.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _constant(value: float) -> Tensor:
    """A scalar on CPU in double precision, which torch uses in the precision of what it meets."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _rate(mean: Tensor, length: Tensor, dim: int) -> Tensor:
    """1 / √(mean + length² / dim), in two steps where a step costs as much as its work."""
    return torch.addcmul(mean, length, length, value=1 / dim).rsqrt()


class Rms(nn.Module):
    """x / √(mean x² + ε) [· w + b] over the last axis."""

    per_token: ClassVar[bool] = True

    def __init__(
        self, dim: int, eps: float, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.dim, self.eps, self._eps = dim, eps, _constant(eps)
        self.weight = None if weight is None else nn.Parameter(weight.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        eager = not torch.compiler.is_compiling()  # a compiler fuses the plain form itself
        if eager and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
            # One pass for the length and one for the product: on CPU torch's own rms_norm makes four.
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            out = x * _rate(self._eps, length, self.dim)
            out = out if self.weight is None else out * self.weight
        else:
            out = F.rms_norm(x, (self.dim,), self.weight, self.eps)
        return out if self.bias is None else out + self.bias


class Crms(nn.Module):
    """The same of a stream that leaves out its last channel, x_C = −Σ x_i: mean x² = (Σ x_i² + (Σ x_i)²) / C.

    (…, C − 1) → (…, C − 1), or with `restore` (…, C), the last channel made again.
    """

    per_token: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        eps: float,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        restore: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.eps, self.restore = dim, eps, restore
        self.weight = None if weight is None else nn.Parameter(weight.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        total = wide.sum(-1, keepdim=True)
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        rate = _rate(total.square() / self.dim + self.eps, length, self.dim)
        out = torch.cat([wide, -total], -1) if self.restore else wide
        out = (out * rate).to(x.dtype)
        out = out if self.weight is None else out * self.weight
        return out if self.bias is None else out + self.bias


class DropLast(nn.Module):
    """(…, C) → (…, C − 1): a branch that is made of C channels joins a stream that keeps C − 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :-1]


class CentredPosition(nn.Module):
    """A position code that is computed at run time, without its mean (and its last channel) over the channels."""

    def __init__(self, inner: nn.Module, dim: int, drop: int) -> None:
        super().__init__()
        self.inner, self.dim, self.drop = inner, dim, drop

    @property
    def per_token(self) -> bool:
        return bool(self.inner.per_token)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        code = self.inner(x.new_zeros(1, *x.shape[1:-1], self.dim), offset=offset)
        code = code - code.mean(-1, keepdim=True)
        return x + code[..., : self.dim - self.drop]


class Centred(nn.Module):
    """Parametrisation of a tensor: times a factor a channel, minus the mean over the channels along `axis`."""

    def __init__(self, axis: int, gamma: nn.Parameter | None = None) -> None:
        super().__init__()
        self.axis, self.gamma = axis, gamma

    def forward(self, value: Tensor) -> Tensor:
        if self.gamma is not None:
            value = value * self.gamma.view(-1, *[1] * (value.ndim - 1))
        return value - value.mean(self.axis, keepdim=True)
