"""Softmax attention over all tokens (Vaswani et al. 2017, arXiv 1706.03762): every mixer's reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets.layout import tokens
from shared.nets.mixers.base import TokenMixer, heads_of
from shared.nets.ops.chunked_attention import Bias, chunked_attention
from shared.nets.options import Count, Share
from shared.nets.registry import register


@register(
    "mixer",
    "attention",
    paper="Attention Is All You Need, Vaswani et al. 2017, arXiv 1706.03762",
    cost="L² C",
)
class Attention(TokenMixer):
    """softmax(q kᵀ / √d) v with H heads of d channels. Causal form: keys up to the query; its state is the key-value
    cache. Masked: invalid tokens are no keys. With `chunk` the scores are made in tiles of that side (exact, memory
    linear in L, masked and in training too); without, torch's fused attention, which is linear where nothing is masked.
    """

    causal_forms: ClassVar[frozenset[bool]] = frozenset({False, True})
    masks: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        ndim: int,
        *,
        heads: Count | None = None,
        head_dim: Count = 32,
        qkv_bias: bool = True,
        dropout: Share = 0.0,
        chunk: Count | None = None,
        **place: Any,
    ) -> None:
        super().__init__(dim, ndim, **place)
        self.heads = heads_of(dim, heads, head_dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        if chunk is not None and (chunk < 1 or dropout):
            raise ValueError(f"chunk {chunk} with dropout {dropout}; 1 or more, and dropout 0, wanted")
        self.dropout, self.chunk = dropout, chunk

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each (B, H, L, d)."""
        flat = tokens(x)
        qkv = self.qkv(flat).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return qkv[0], qkv[1], qkv[2]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self._qkv(x)
        drop = self.dropout if self.training else 0.0
        if self.chunk is not None:
            bias = None if mask is None else _validity(mask.flatten(1))
            seen = chunked_attention(q, k, v, causal=self.causal, bias=bias, block=self.chunk)
        elif mask is None:
            seen = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=self.causal)
        else:
            allowed = self._allowed(mask.flatten(1), q.shape[2])
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=drop)
        return self.output(seen, x)

    def _allowed(self, mask: Tensor, length: int) -> Tensor:
        """(B, 1, L, L); a token always sees itself, so that no row is empty."""
        allowed = mask[:, None, None] | torch.eye(length, dtype=torch.bool, device=mask.device)
        return allowed.tril() if self.causal else allowed

    def matrix(self, x: Tensor) -> Tensor:
        q, k, _ = self._qkv(x)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if self.causal:
            late = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(late, float("-inf"))
        return scores.softmax(-1)

    def values(self, x: Tensor) -> Tensor:
        return self._qkv(x)[2]

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.proj(mixed.transpose(1, 2).flatten(2)).view(x.shape)  # type: ignore[no-any-return]

    def readers(self) -> Sequence[nn.Linear]:
        return (self.qkv,)

    def writers(self) -> Sequence[nn.Module]:
        return (self.proj,)

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        empty = self.proj.weight.new_zeros(batch, self.heads, 0, self.dim // self.heads)
        return empty, empty

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        q, k, v = self._qkv(x[:, None])
        keys, values = torch.cat([state[0], k], 2), torch.cat([state[1], v], 2)
        seen = F.scaled_dot_product_attention(q, keys, values)
        return self.output(seen, x[:, None])[:, 0], (keys, values)


def _validity(mask: Tensor) -> Bias:
    """The tiles of `_allowed` for a mask (B, L): 0 where a key is valid or the token itself, −∞ elsewhere."""

    def bias(queries: range, keys: range) -> Tensor:
        rows, columns = (torch.arange(r.start, r.stop, device=mask.device) for r in (queries, keys))
        allowed = mask[:, None, None, keys.start : keys.stop] | (rows[:, None] == columns)
        return torch.zeros(allowed.shape, device=mask.device).masked_fill_(~allowed, float("-inf"))

    return bias
