"""From the last map to class scores."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from shared.nets.norms.layers import masked_mean
from shared.nets.registry import make, register


class Head(nn.Module):
    """(B, *S, C) → (B, classes). `norm` is the network's final norm; `after` applies it to the pooled vector."""

    linear: ClassVar[bool] = False
    """Pooling is a weighted sum of the tokens, with weights that do not depend on them."""

    def __init__(self, dim: int, num_classes: int, *, norm: str = "none", after: bool = False) -> None:
        super().__init__()
        self.norm, self.after = make("norm", norm, dim), after
        self.fc = nn.Linear(dim, num_classes) if num_classes else nn.Identity()

    def normalised(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last map as the network's features: after the final norm, where that comes before pooling."""
        return x if self.after else self.norm(x, mask)

    def pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        pooled = self.pool(x, mask)
        return self.fc(self.norm(pooled) if self.after else pooled)  # type: ignore[no-any-return]


@register("head", "mean", paper="Network In Network, Lin et al. 2013, arXiv 1312.4400", cost="L C")
class MeanHead(Head):
    """Mean over the (valid) tokens."""

    linear: ClassVar[bool] = True

    def pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return masked_mean(x, mask)


@register("head", "max", paper="–", cost="L C")
class MaxHead(Head):
    """Maximum over the (valid) tokens."""

    def pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        flat = x.flatten(1, -2)
        if mask is not None:
            valid = mask.flatten(1)[..., None]
            # Nothing valid: 0, as the mean gives.
            return flat.masked_fill(~valid, float("-inf")).amax(1).masked_fill(~valid.any(1), 0.0)
        return flat.amax(1)


@register("head", "last", paper="–", cost="C")
class LastHead(Head):
    """The last (valid) token: what a causal network has read to the end."""

    linear: ClassVar[bool] = True

    def pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        flat = x.flatten(1, -2)
        if mask is None:
            return flat[:, -1]
        place = torch.arange(1, flat.shape[1] + 1, device=flat.device)
        last = (mask.flatten(1) * place).argmax(1)
        return flat[torch.arange(len(flat), device=flat.device), last]
