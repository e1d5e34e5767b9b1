"""The block: norm, token mixer, norm, channel mixer, and how residuals join them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from shared.nets.layout import Conv
from shared.nets.mixers.base import ChannelMixer, State, TokenMixer

Order = Literal["preln", "parallel", "convnext", "renorm", "postnorm", "addnorm"]


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): a whole branch is dropped for a sample."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)


class Scale(nn.Module):
    """A learned factor a channel (LayerScale, Touvron et al. 2021, arXiv 2103.17239)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """(B, *S, C) → the same shape.

    preln: x += s₁ Mix(N₁ x); x += s₂ FFN(N₂ x).   parallel: x += s₁ Mix(N₁ x) + s₂ FFN(N₂ x).
    convnext: x += s FFN(N Mix(x)), one residual.   renorm (CCT): x += Mix(N₁ x); x = N₂ x; x += FFN(x).
    postnorm (Swin V2): x += s₁ N₁(Mix(x)); x += s₂ N₂(FFN(x)), the norms' factors 0 at the start.
    addnorm (Vaswani et al. 2017, section 3.1): x = N₁(x + s₁ Mix(x)); x = N₂(x + s₂ FFN(x)).
    `position` adds a depthwise convolution of x before all (RMT).
    """

    def __init__(
        self,
        mixer: TokenMixer,
        ffn: ChannelMixer | None,
        norms: tuple[Any, Any],
        *,
        order: Order = "preln",
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        position: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.mixer, self.ffn, self.order = mixer, ffn, order
        self.norm1, self.norm2 = norms[0], norms[1] if ffn is not None and order != "convnext" else None
        path = DropPath(drop_path)
        self.drop_path = nn.Sequential(nn.Dropout(dropout), path) if dropout else path
        scaled = layer_scale is not None
        self.scale1 = Scale(mixer.dim, layer_scale or 0.0) if scaled else nn.Identity()
        second = scaled and self.norm2 is not None
        self.scale2 = Scale(mixer.dim, layer_scale or 0.0) if second else nn.Identity()
        self.position = (
            Conv(mixer.dim, mixer.dim, position, mixer.ndim, groups=mixer.dim) if position else None
        )
        if order == "postnorm":
            for norm in (self.norm1, self.norm2):
                weight = getattr(norm, "weight", None)
                if weight is not None:
                    nn.init.zeros_(weight)

    @property
    def looks_ahead(self) -> bool:
        """Whether a part beside the mixer lets a token depend on later ones."""
        parts = (self.norm1, self.norm2, self.ffn)
        return self.position is not None or any(getattr(p, "looks_ahead", False) for p in parts)

    @property
    def per_token(self) -> bool:
        """Whether everything but the mixer sees one token at a time."""
        parts = (self.norm1, self.norm2, self.ffn)
        return self.position is None and all(p is None or p.per_token for p in parts)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.position is not None:
            x = x + self.position(x if mask is None else x * mask[..., None])
        if self.order == "convnext":
            mixed = self.norm1(self.mixer(x, mask), mask)
            out = mixed if self.ffn is None else self.ffn(mixed, mask)
            return x + self.drop_path(self.scale1(out))  # type: ignore[no-any-return]
        if self.order == "postnorm":
            return self._join(x, self.drop_path(self.scale1(self.norm1(self.mixer(x, mask), mask))), mask)
        if self.order == "addnorm":
            return self._join(x, self.drop_path(self.scale1(self.mixer(x, mask))), mask)
        mixed = self.drop_path(self.scale1(self.mixer(self.norm1(x, mask), mask)))
        return self._join(x, mixed, mask)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token (B, C) of a causal block."""
        if self.order == "convnext":
            mixed, state = self.mixer.step(x, state)
            mixed = self.norm1(mixed)
            return x + self.scale1(mixed if self.ffn is None else self.ffn(mixed)), state
        if self.order == "postnorm":
            mixed, state = self.mixer.step(x, state)
            return self._join(x, self.scale1(self.norm1(mixed)), None), state
        if self.order == "addnorm":
            mixed, state = self.mixer.step(x, state)
            return self._join(x, self.scale1(mixed), None), state
        mixed, state = self.mixer.step(self.norm1(x), state)
        return self._join(x, self.scale1(mixed), None), state

    def prefill(self, x: Tensor) -> tuple[Tensor, State]:
        """Many tokens (B, L, C) of a causal preln block at once, in evaluation: their outputs, and the state after the
        last. Only where the mixer has `prefill`."""
        if self.order != "preln":
            raise NotImplementedError(f"order {self.order}; preln wanted")
        mixed, state = self.mixer.prefill(self.norm1(x))  # type: ignore[operator]
        return self._join(x, self.scale1(mixed), None), state

    def _join(self, x: Tensor, mixed: Tensor, mask: Tensor | None) -> Tensor:
        if self.order == "addnorm":
            x = self.norm1(x + mixed, mask)
            if self.ffn is None or self.norm2 is None:
                return x
            return self.norm2(x + self.drop_path(self.scale2(self.ffn(x, mask))), mask)  # type: ignore[no-any-return]
        if self.ffn is None or self.norm2 is None:
            return x + mixed
        if self.order == "parallel":
            return x + mixed + self.drop_path(self.scale2(self.ffn(self.norm2(x, mask), mask)))  # type: ignore[no-any-return]
        x = x + mixed
        if self.order == "postnorm":
            return x + self.drop_path(self.scale2(self.norm2(self.ffn(x, mask), mask)))  # type: ignore[no-any-return]
        inner = self.norm2(x, mask)
        if self.order == "renorm":
            x = inner
        return x + self.drop_path(self.scale2(self.ffn(inner, mask)))  # type: ignore[no-any-return]
