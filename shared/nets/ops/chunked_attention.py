"""Exact softmax attention in blocks: no score matrix is ever held, forward or backward.

Query blocks outside, key blocks inside (Rabe and Staats 2021, arXiv 2112.05682; Dao 2023, arXiv 2307.08691). For one
query block, with S the next tile of scores, the running maximum m, sum s and output o become

    m' = max(m, rowmax S),   P = exp(S − m'),   s' = s e^(m−m') + rowsum P,   o' = o e^(m−m') + P V,

and at the end o / s is softmax(S) V, with log-sum-exp λ = m + log s. The backward pass makes each tile again from λ:
P = exp(S − λ), dV += Pᵀ dO, dS = P ∘ (dO Vᵀ − rowsum(dO ∘ O) + dλ). What is held beyond inputs and outputs is a few
tiles (B, H, block, block) in either pass. A ring of ranks (Liu et al. 2023, arXiv 2310.01889) is the same recurrence, a
rank's keys taking the place of a block: partial results are joined by their λ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from shared.nets.layout import without_autocast

Bias = Callable[..., Tensor]
"""bias(queries, keys, *parameters) → what is added to the scores of these places, broadcastable to (B, H, queries,
keys); −∞ forbids. `queries` and `keys` are ranges of places in the whole sequence. No gradient reaches tensors that it
uses without being among its parameters."""


def chunked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    bias: Bias | None = None,
    bias_parameters: Sequence[Tensor] = (),
    scale: float | None = None,
    block: int = 256,
    start: tuple[int, int] = (0, 0),
) -> Tensor:
    """softmax(q kᵀ · scale + bias) v; q (B, H, Lq, d), k (B, H, Lk, d), v (B, H, Lk, e) → (B, H, Lq, e).

    As `torch.nn.functional.scaled_dot_product_attention` (scale 1/√d), with gradients to q, k, v and to
    `bias_parameters`, the tensors `bias` is made of. `start` is the place of the first query and of the first key;
    causal: a query sees keys up to its own place. A row that sees nothing is 0. Raises ValueError.
    """
    return attention_with_lse(
        q, k, v, causal=causal, bias=bias, bias_parameters=bias_parameters, scale=scale, block=block, start=start
    )[0]  # fmt: skip


def attention_with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    bias: Bias | None = None,
    bias_parameters: Sequence[Tensor] = (),
    scale: float | None = None,
    block: int = 256,
    start: tuple[int, int] = (0, 0),
) -> tuple[Tensor, Tensor]:
    """`chunked_attention` and the log-sum-exp of each row's scores, (B, H, Lq), −∞ where a row sees nothing.

    The output has the inputs' type; the log-sum-exp is float32 or better. Both are differentiable.
    """
    if block < 1:
        raise ValueError(f"block {block}; 1 or more wanted")
    if q.ndim != 4 or k.shape[:-2] != q.shape[:-2] or k.shape[:3] != v.shape[:3] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}; (B, H, L, d) of the same B, H, d wanted"
        )
    if torch.is_autocast_enabled(q.device.type):  # what torch's own attention does there
        low = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(low), k.to(low), v.to(low)
    plan = _Plan(causal, bias, q.shape[-1] ** -0.5 if scale is None else scale, block, start)
    with without_autocast(q):
        out, lse = _Chunked.apply(plan, q, k, v, *bias_parameters)  # type: ignore[no-untyped-call]
    return out, lse


def join(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention over all keys from (output, log-sum-exp) over disjoint sets of them: the recurrence between ranks."""
    out, lse = parts[0]
    kind = out.dtype
    out = out.to(lse.dtype)
    for more, other in parts[1:]:
        top = _finite(torch.maximum(lse, other)).detach()
        old, new = (lse - top).exp()[..., None], (other - top).exp()[..., None]
        total = (old + new).clamp(min=torch.finfo(old.dtype).tiny)
        out = (out * old + more.to(out.dtype) * new) / total
        lse = torch.where(((old + new) > 0)[..., 0], top + total[..., 0].log(), float("-inf"))
    return out.to(kind), lse


def ring_attention(
    q: Sequence[Tensor],
    k: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    causal: bool = False,
    bias: Bias | None = None,
    bias_parameters: Sequence[Tensor] = (),
    scale: float | None = None,
    block: int = 256,
) -> list[Tensor]:
    """Attention of a sequence cut over ranks, all of them played in this process; one output a rank.

    At step t rank r holds the keys and values that rank r − t owns, attends to them, joins the result to what it has
    and hands them to rank r + 1. A real ring replaces the indexing by a send and a receive. Keys that a causal rank may
    not see are passed on untouched.
    """
    ranks = len(q)
    places = [sum(part.shape[2] for part in k[:rank]) for rank in range(ranks)]
    rows = [sum(part.shape[2] for part in q[:rank]) for rank in range(ranks)]
    held: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(ranks)]
    for step in range(ranks):
        for rank in range(ranks):
            owner = (rank - step) % ranks
            if causal and held[rank] and places[owner] >= rows[rank] + q[rank].shape[2]:
                continue
            part = attention_with_lse(
                q[rank], k[owner], v[owner], causal=causal, bias=bias, bias_parameters=bias_parameters, scale=scale,
                block=block, start=(rows[rank], places[owner]),
            )  # fmt: skip
            held[rank] = [join([*held[rank], part])]
    return [parts[0][0] for parts in held]


# ---------------------------------------------------------------- the two passes


class _Plan:
    """Which tiles there are, and how one is made; the same in both passes."""

    def __init__(
        self, causal: bool, bias: Bias | None, scale: float, block: int, start: tuple[int, int]
    ) -> None:
        self.causal, self.bias, self.scale, self.block, self.start = causal, bias, scale, block, start

    def blocks(self, length: int) -> Iterator[slice]:
        for at in range(0, length, self.block):
            yield slice(at, min(at + self.block, length))

    def keys(self, rows: slice, length: int) -> Iterator[slice]:
        """The key blocks that a query block sees any of."""
        last = rows.stop - 1 + self.start[0] - self.start[1]
        for columns in self.blocks(length):
            if not self.causal or columns.start <= last:
                yield columns

    def tile(self, rows: slice, columns: slice, parameters: Sequence[Tensor]) -> Tensor | None:
        if self.bias is None:
            return None
        queries = range(rows.start + self.start[0], rows.stop + self.start[0])
        keys = range(columns.start + self.start[1], columns.stop + self.start[1])
        return self.bias(queries, keys, *parameters)

    def scores(self, q: Tensor, k: Tensor, rows: slice, columns: slice, tile: Tensor | None) -> Tensor:
        """(B, H, rows, columns), float32 or better; `q` and `k` are the blocks, q already scaled."""
        scores = (q @ k.transpose(-1, -2)).to(_wide(q.dtype))
        if tile is not None:
            scores += tile.to(scores.dtype)
        shift = rows.start + self.start[0] - columns.start - self.start[1]
        if self.causal and shift < columns.stop - columns.start - 1:  # the diagonal runs through this tile
            late = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(shift + 1)
            scores.masked_fill_(late, float("-inf"))
        return scores


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plan: _Plan, q: Tensor, k: Tensor, v: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        lse = q.new_empty(q.shape[:-1], dtype=_wide(q.dtype))
        for rows in plan.blocks(q.shape[2]):
            out[:, :, rows], lse[:, :, rows] = _row_of_blocks(plan, q, k, v, rows, parameters)
        ctx.plan = plan
        ctx.save_for_backward(q, k, v, out, lse, *parameters)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Any, ...]:
        q, k, v, out, lse, *parameters = ctx.saved_tensors
        plan: _Plan = ctx.plan
        wide = lse.dtype
        dq, dk, dv = (torch.zeros_like(part, dtype=wide) for part in (q, k, v))
        slope = _BiasSlope(plan, parameters, ctx.needs_input_grad[4:])
        for rows in plan.blocks(q.shape[2]):
            queries, d_rows = q[:, :, rows] * plan.scale, d_out[:, :, rows]
            # A row that saw nothing has λ = −∞: with +∞ in its place all its weights are 0.
            norm = lse[:, :, rows, None]
            norm = norm.masked_fill(norm.isinf(), float("inf"))
            inner = (d_rows.to(wide) * out[:, :, rows]).sum(-1, keepdim=True) - d_lse[:, :, rows, None]
            for columns in plan.keys(rows, k.shape[2]):
                keys, values, tile = k[:, :, columns], v[:, :, columns], slope.tile(rows, columns)
                scores = plan.scores(queries, keys, rows, columns, None if tile is None else tile.detach())
                weights = scores.sub_(norm).exp_()
                dv[:, :, columns] += weights.to(q.dtype).transpose(-1, -2) @ d_rows
                d_scores = weights.mul_((d_rows @ values.transpose(-1, -2)).to(wide).sub_(inner))
                slope.add(tile, d_scores)
                d_scores = d_scores.to(q.dtype)
                dq[:, :, rows] += d_scores @ keys
                dk[:, :, columns] += d_scores.transpose(-1, -2) @ queries
        dq *= plan.scale
        return None, dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), *slope.total


class _BiasSlope:
    """Gradients to the tensors a bias is made of, summed tile by tile."""

    def __init__(self, plan: _Plan, parameters: Sequence[Tensor], needed: Sequence[bool]) -> None:
        self.plan, self.needed = plan, list(needed)
        self.leaves = [p.detach().requires_grad_(need) for p, need in zip(parameters, needed)]
        self.total = [torch.zeros_like(p) if need else None for p, need in zip(parameters, needed)]

    def tile(self, rows: slice, columns: slice) -> Tensor | None:
        with torch.set_grad_enabled(any(self.needed)):
            return self.plan.tile(rows, columns, self.leaves)

    def add(self, tile: Tensor | None, d_scores: Tensor) -> None:
        if tile is None or not tile.requires_grad:
            return
        leaves = [leaf for leaf, need in zip(self.leaves, self.needed) if need]
        slopes = iter(
            torch.autograd.grad(
                tile, leaves, d_scores.sum_to_size(tile.shape).to(tile.dtype), allow_unused=True
            )
        )
        for total in self.total:
            slope = None if total is None else next(slopes)
            if total is not None and slope is not None:
                total += slope


def _row_of_blocks(
    plan: _Plan, q: Tensor, k: Tensor, v: Tensor, rows: slice, parameters: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of one query block."""
    queries = q[:, :, rows] * plan.scale
    wide = _wide(q.dtype)
    top = q.new_full((*queries.shape[:-1], 1), float("-inf"), dtype=wide)
    total = torch.zeros_like(top)
    out = q.new_zeros(*queries.shape[:-1], v.shape[-1], dtype=wide)
    for columns in plan.keys(rows, k.shape[2]):
        scores = plan.scores(queries, k[:, :, columns], rows, columns, plan.tile(rows, columns, parameters))
        higher = torch.maximum(top, scores.amax(-1, keepdim=True))
        shift = _finite(higher)
        weights = scores.sub_(shift).exp_()
        keep = (top - shift).exp()
        total = total * keep + weights.sum(-1, keepdim=True)
        out = out.mul_(keep).add_((weights.to(v.dtype) @ v[:, :, columns]).to(wide))
        top = higher
    seen = total > 0
    out = torch.where(seen, out / total.clamp(min=torch.finfo(wide).tiny), 0)
    lse = torch.where(seen, _finite(top) + total.log(), float("-inf"))
    return out.to(q.dtype), lse[..., 0]


def _finite(top: Tensor) -> Tensor:
    """A row that has seen nothing yet has the maximum −∞; 0 in its place keeps −∞ − −∞ out."""
    return torch.where(top.isinf(), 0, top)


def _wide(kind: torch.dtype) -> torch.dtype:
    """Sums are kept in float32 or better."""
    return torch.promote_types(kind, torch.float32)
