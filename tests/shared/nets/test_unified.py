"""Chunked attention (shared/nets/ops/chunked_attention.py) is torch's attention, tile by tile."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.errors import UsageError
from shared.nets.ops.chunked_attention import (
    attention_with_lse,
    chunked_attention,
    join,
    ring_attention,
)
from shared.nets.registry import make

BATCH, HEADS, WIDTH, FAR = 2, 3, 8, 100
RAGGED = [(37, 53), (53, 37), (64, 64), (1, 9), (40, 3)]
"""Queries and keys; a block of 16 divides one pair only."""


def parts(queries: int, keys: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(queries + keys)
    sizes = ((queries, WIDTH), (keys, WIDTH), (keys, 5))
    made = [torch.randn(BATCH, HEADS, *size, generator=draw, dtype=dtype) for size in sizes]
    return made[0].requires_grad_(), made[1].requires_grad_(), made[2].requires_grad_()


def table(dtype: torch.dtype = torch.float64) -> Tensor:
    """A learned value a head and distance, −FAR to FAR."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(HEADS, 2 * FAR + 1, generator=draw, dtype=dtype).requires_grad_()


def relative(queries: range, keys: range, values: Tensor) -> Tensor:
    distance = torch.arange(queries.start, queries.stop)[:, None] - torch.arange(keys.start, keys.stop)
    return values[:, distance + FAR]


def whole(q: Tensor, k: Tensor, v: Tensor, causal: bool, values: Tensor | None) -> Tensor:
    rows, columns = q.shape[2], k.shape[2]
    mask = q.new_zeros(rows, columns) if values is None else relative(range(rows), range(columns), values)
    if causal:
        mask = mask.masked_fill(torch.ones(rows, columns, dtype=torch.bool).triu(1), float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(1, HEADS, rows, columns))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("queries", "keys"), RAGGED)
def test_it_is_attention_with_its_gradients(queries: int, keys: int, causal: bool, biased: bool) -> None:
    q, k, v = parts(queries, keys)
    values = table() if biased else None
    given: dict[str, Any] = {} if values is None else {"bias": relative, "bias_parameters": (values,)}
    wanted = whole(q, k, v, causal, values)
    found = chunked_attention(q, k, v, causal=causal, block=16, **given)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    slope = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2), dtype=wanted.dtype)
    leaves = (q, k, v) if values is None else (q, k, v, values)
    for a, b in zip(torch.autograd.grad(found, leaves, slope), torch.autograd.grad(wanted, leaves, slope)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_single_precision_and_half_precision() -> None:
    q, k, v = (part.detach() for part in parts(130, 97, torch.float32))
    wanted = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(chunked_attention(q, k, v, block=32), wanted, rtol=0, atol=1e-6)
    short = chunked_attention(*(part.bfloat16() for part in (q, k, v)), block=32)
    assert short.dtype == torch.bfloat16
    torch.testing.assert_close(short.float(), wanted, rtol=0, atol=0.03)
    with torch.autocast("cpu", torch.bfloat16):
        assert chunked_attention(q, k, v, block=32).dtype == torch.bfloat16


def test_the_log_sum_exp_and_both_gradients_by_differences() -> None:
    q, k, v = (part.detach()[:1, :1, :5, :2].clone().requires_grad_() for part in parts(5, 7))
    _, lse = attention_with_lse(q, k, v, block=3)
    torch.testing.assert_close(lse, (q @ k.transpose(-1, -2) / math.sqrt(2)).logsumexp(-1))
    values = table().detach()[:1].requires_grad_()

    def both(q: Tensor, k: Tensor, v: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return attention_with_lse(
            q, k, v, bias=relative, bias_parameters=(values,), causal=True, block=3, start=(2, 0)
        )

    assert torch.autograd.gradcheck(both, (q, k, v, values))


def test_a_row_that_sees_nothing_is_zero_and_spoils_no_gradient() -> None:
    q, k, v = parts(6, 9)

    def blind(queries: range, keys: range) -> Tensor:
        tile = torch.zeros(len(queries), len(keys))
        tile[[row - queries.start for row in (1, 4) if row in queries]] = float("-inf")
        return tile

    out, lse = attention_with_lse(q, k, v, bias=blind, block=4)
    assert out[:, :, [1, 4]].abs().max() == 0 and (lse[:, :, [1, 4]] == float("-inf")).all()
    keep = [0, 2, 3, 5]
    torch.testing.assert_close(out[:, :, keep], F.scaled_dot_product_attention(q[:, :, keep], k, v))
    joined, _ = join([(out, lse), attention_with_lse(q, k, v, bias=blind, block=4)])
    joined.sum().backward()
    for leaf in (q, k, v):
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all()
    assert q.grad is not None and q.grad[:, :, [1, 4]].abs().max() == 0


@pytest.mark.parametrize("causal", [False, True])
def test_a_ring_of_four_ranks_is_the_whole(causal: bool) -> None:
    """Shards of unequal length, a relative bias over the whole sequence, gradients to all of it."""
    cuts, values = [11, 16, 3, 20], table()
    q, k, v = parts(sum(cuts), sum(cuts))
    shards = [part.split(cuts, 2) for part in (q, k, v)]
    found = torch.cat(
        ring_attention(*shards, causal=causal, bias=relative, bias_parameters=(values,), block=8), 2
    )
    wanted = whole(q, k, v, causal, values)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    slope = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(2), dtype=wanted.dtype)
    leaves = (q, k, v, values)
    for a, b in zip(torch.autograd.grad(found, leaves, slope), torch.autograd.grad(wanted, leaves, slope)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_mixer_with_chunks_is_the_mixer(causal: bool, masked: bool) -> None:
    torch.manual_seed(0)
    plain = make("mixer", {"name": "attention", "heads": 2}, 16, 1, causal=causal).double()
    chunked = make("mixer", {"name": "attention", "heads": 2, "chunk": 5}, 16, 1, causal=causal).double()
    chunked.load_state_dict(plain.state_dict())
    x = torch.randn(2, 13, 16, dtype=torch.float64)
    mask = torch.rand(2, 13) > 0.5 if masked else None
    slope = torch.randn(x.shape, dtype=x.dtype)
    grads = []
    for module in (plain, chunked):
        out = module(x, mask)
        out.backward(slope)
        grads.append((out.detach(), *(p.grad for p in module.parameters())))
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_what_it_refuses() -> None:
    with pytest.raises(UsageError, match="dropout 0"):
        make("mixer", {"name": "attention", "chunk": 8, "dropout": 0.1}, 16, 1)
    q, k, v = parts(4, 5)
    with pytest.raises(ValueError, match="same B, H, d"):
        chunked_attention(q, k[..., :3], v)
    with pytest.raises(ValueError, match="block 0"):
        chunked_attention(q, k, v, block=0)


CHILD = """
import sys, torch
from shared.bench.memory import peak_growth
from shared.nets.ops.chunked_attention import chunked_attention
torch.set_num_threads(1)
length, backward = int(sys.argv[1]), sys.argv[2] == "True"
def parts(length):
    return [torch.ones(1, 4, length, 64).uniform_(-1, 1).requires_grad_(backward) for _ in range(3)]
def bias(queries, keys):
    return -0.01 * (torch.arange(queries.start, queries.stop)[:, None] - torch.arange(keys.start, keys.stop)).abs()
def work(parts):
    out = chunked_attention(*parts, bias=bias)
    if backward:
        out.backward(torch.ones_like(out))
    return out
work(parts(512))  # code and thread pools, loaded once a process
given = parts(length)
print(peak_growth(lambda: work(given)))
"""


def growth(length: int, backward: bool) -> float:
    """Bytes of resident memory that biased attention of 4 heads of 64 needs, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(length), str(backward)], capture_output=True, text=True, check=True
    )
    found = float(done.stdout)
    if math.isnan(found):
        pytest.skip("no /proc here")
    return found


def test_memory_is_linear() -> None:
    """Forward and backward at L = 3,072: output and gradients are 12 MiB, tiles a few; the scores would be 144 MiB."""
    scores = 4 * 3072**2 * 4
    assert 3072 * 4 * 64 * 4 < growth(3072, backward=True) < scores / 3


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True])
def test_sixteen_thousand_tokens_stay_below_an_eighth_of_the_scores(backward: bool) -> None:
    assert growth(16_384, backward) < 4 * 16_384**2 * 4 / 8
