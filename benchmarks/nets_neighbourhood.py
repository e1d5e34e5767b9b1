"""Neighbourhood attention against torch's attention under the same mask: equal numbers, one process, turn by turn.

Peer: `scaled_dot_product_attention` over all tokens, −∞ outside a token's window; the mask is made here, by the
published rule (a window of k^n, clamped inside the map), not by the mixer. Without relative bias, in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.nets.mixers.na import NeighbourhoodAttention

Say = Callable[[str], None]


def compare(size: Sequence[int], kernel: int, turns: int, say: Say) -> list[dict[str, Any]]:
    """Seconds of the whole mixer (projections among that) at C = 64, H = 2, forward; medians."""
    torch.manual_seed(0)
    mixer = NeighbourhoodAttention(64, len(size), heads=2, kernel=kernel, bias=False).eval()
    x, allowed = torch.randn(1, *size, 64), _allowed(size, kernel)
    ways: list[Callable[[], Tensor]] = [lambda: mixer(x), lambda: _masked(mixer, x, allowed)]
    with torch.inference_mode():
        apart = float((ways[0]() - ways[1]()).abs().max())
        took = [[_milliseconds(way) for way in ways] for _ in range(turns)]
    ours, peer = np.median(np.array(took), 0).tolist()
    case = "×".join(map(str, size)) + f", k = {kernel}"
    say(f"{case}: {ours:.1f} ms, masked attention {peer:.1f} ms, largest difference {apart:.1e}")
    return [
        {
            "case": case,
            "model": "neighbourhood",
            "quantity": "forward",
            "unit": "ms",
            "ours": round(ours, 2),
            "peer": round(peer, 2),
            "peer_name": "torch scaled_dot_product_attention, masked",
            "ratio": round(peer / ours, 2),
            "difference": apart,
        }
    ]


def _allowed(size: Sequence[int], kernel: int) -> Tensor:
    """(L, L): which keys each query sees."""
    seen = torch.ones(1, 1, dtype=torch.bool)
    for n in size:
        first = (torch.arange(n) - kernel // 2).clamp(0, n - kernel)[:, None]
        axis = (torch.arange(n) >= first) & (torch.arange(n) < first + kernel)
        seen = (seen[:, None, :, None] & axis[None, :, None]).reshape(len(seen) * n, -1)
    return seen


def _masked(mixer: NeighbourhoodAttention, x: Tensor, allowed: Tensor) -> Tensor:
    """The mixer's own projections around full attention under a mask."""
    q, k, v = mixer.qkv(x.flatten(1, -2)).unflatten(-1, (3, mixer.heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    return mixer.proj(mixed.transpose(1, 2).flatten(2)).view(x.shape)  # type: ignore[no-any-return]


def _milliseconds(way: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    way()
    return 1000 * (time.perf_counter() - started)


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    "image": partial(compare, (56, 56), 7, 15),
    "volume": partial(compare, (24, 24, 24), 5, 3),
}
QUICK = ("image",)
