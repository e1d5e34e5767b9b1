"""Norms of channels-last maps (B, *S, C) by name. Those with `per_token` see one token at a time (streaming). A
causal network refuses those with `looks_ahead`: they see later tokens, when predicting too."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets.options import Positive, Share
from shared.nets.registry import register


@register("norm", "layernorm", paper="Layer Normalization, Ba et al. 2016, arXiv 1607.06450", cost="L C")
class LayerNorm(nn.LayerNorm):
    """Over the channels of each token."""

    per_token: ClassVar[bool] = True

    def __init__(self, dim: int, *, eps: Positive = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


@register("norm", "rmsnorm", paper="RMSNorm, Zhang and Sennrich 2019, arXiv 1910.07467", cost="L C")
class RMSNorm(nn.RMSNorm):
    """x / √(mean x² + ε) · w, over the channels of each token."""

    per_token: ClassVar[bool] = True

    def __init__(self, dim: int, *, eps: Positive = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x)


@register("norm", "groupnorm1", paper="Group Normalization, Wu and He 2018, arXiv 1803.08494", cost="L C")
class GroupNorm1(nn.Module):
    """One group: over all channels and tokens of an image. Masked: statistics of the valid tokens."""

    per_token: ClassVar[bool] = False
    looks_ahead: ClassVar[bool] = True

    def __init__(self, dim: int, *, eps: Positive = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim)), eps

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        axes = tuple(range(1, x.ndim))
        if mask is None:
            variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        else:
            valid = mask[..., None].to(x.dtype)
            values = (valid.sum(axes, keepdim=True) * x.shape[-1]).clamp(min=1)
            mean = (x * valid).sum(axes, keepdim=True) / values
            variance = ((x - mean).square() * valid).sum(axes, keepdim=True) / values
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


@register(
    "norm", "batchnorm", paper="Batch Normalization, Ioffe and Szegedy 2015, arXiv 1502.03167", cost="L C"
)
class BatchNorm(nn.BatchNorm1d):
    """Over batch and tokens of each channel. Masked: statistics of the valid tokens; kept ones when predicting."""

    per_token: ClassVar[bool] = False

    def __init__(self, dim: int, *, eps: Positive = 1e-5, momentum: Share = 0.1) -> None:
        super().__init__(dim, eps=eps, momentum=momentum)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        if mask is None or not self.training:
            return super().forward(flat).view(x.shape)
        chosen = super().forward(flat[mask.reshape(-1)])
        out = torch.zeros_like(flat)
        out[mask.reshape(-1)] = chosen.to(out.dtype)
        return out.view(x.shape)


@register("norm", "none", paper="–", cost="0")
class NoNorm(nn.Identity):
    per_token: ClassVar[bool] = True

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, *S, C) → (B, C): mean over the valid tokens."""
    if mask is None:
        return x.flatten(1, -2).mean(1)
    valid = mask.flatten(1)[..., None].to(x.dtype)
    return (x.flatten(1, -2) * valid).sum(1) / valid.sum(1).clamp(min=1)


ACTIVATIONS: dict[str, Any] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
