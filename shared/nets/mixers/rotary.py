"""Attention with rotary positions: scores depend on how far apart two tokens are (Su et al. 2021, arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.nets.layout import tokens
from shared.nets.mixers.attention import Attention
from shared.nets.options import Positive
from shared.nets.registry import register


@register(
    "mixer",
    "rotary",
    paper="RoFormer: Enhanced Transformer with Rotary Position Embedding, Su et al. 2021, arXiv 2104.09864",
    cost="L² C",
)
class RotaryAttention(Attention):
    """Attention with queries and keys turned by their position: channels i and i + d/2 of a head, as a pair, by the
    angle t · base^(−2i/d) (section 3.2.2; pairs of halves as in GPT-NeoX and Llama, the whole head). Scores then depend
    on differences of positions alone. Along one axis. Its state is the cache of turned keys and of values.
    """

    ndims: ClassVar[frozenset[int]] = frozenset({1})

    def __init__(self, dim: int, ndim: int, *, base: Positive = 10000.0, **options: Any) -> None:
        super().__init__(dim, ndim, **options)
        width = dim // self.heads
        if width % 2:
            raise ValueError(f"{self.heads} heads of {width} channels; an even number of channels wanted")
        self.base = base
        self._turns: tuple[Tensor, Tensor] | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._turns = None  # made again where the weights go
        return super()._apply(fn, recurse)

    def turns(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines (length, d/2) of the positions from `start` on; kept, for every token asks for them."""
        end, like = start + length, self.proj.weight
        if self._turns is None or len(self._turns[0]) < end:
            width = self.dim // self.heads
            rate = self.base ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float64) / width)
            places = torch.arange(max(2 * start, end, 64), device=like.device, dtype=torch.float64)
            angle = places[:, None] * rate
            kind = torch.promote_types(like.dtype, torch.float32)
            self._turns = angle.cos().to(kind), angle.sin().to(kind)
        return self._turns[0][start:end], self._turns[1][start:end]

    def _qkv(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super()._qkv(x)
        turns = self.turns(start, tokens(x).shape[1])
        return _turned(q, *turns), _turned(k, *turns), v

    def prefill(self, x: Tensor) -> tuple[Tensor, Any]:
        """`forward` of a causal one without a mask, and the state after its last token."""
        q, k, v = self._qkv(x)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(seen, x), (k, v)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        q, k, v = self._qkv(x[:, None], state[0].shape[2])
        keys, values = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        seen = F.scaled_dot_product_attention(q, keys, values)
        return self.output(seen, x[:, None])[:, 0], (keys, values)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(B, H, L, d), each pair (i, i + d/2) turned by its angle."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
