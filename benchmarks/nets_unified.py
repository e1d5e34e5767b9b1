"""Chunked attention against torch's fused attention: time and peak memory at L tokens, 4 heads of 64, one thread.

Torch's attention is itself a flash kernel on CPU: without a bias neither side holds the scores. A bias it can only take
as a whole matrix; ours takes a function and makes it tile by tile. Memory is the growth of a fresh process.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.bench.memory import peak_growth
from shared.nets.ops.chunked_attention import chunked_attention

Say = Callable[[str], None]
ROOT = Path(__file__).resolve().parents[1]
HEADS, WIDTH = 4, 64
PEER = "torch scaled_dot_product_attention"
WAYS = ("plain", "causal", "bias")


def relative(queries: range, keys: range) -> Tensor:
    """ALiBi's linear distance penalty (Press et al. 2022, arXiv 2108.12409), (H, queries, keys)."""
    slopes = torch.tensor([-(2.0 ** -(head + 1)) for head in range(HEADS)])
    rows, columns = (torch.arange(r.start, r.stop, dtype=torch.float32) for r in (queries, keys))
    return slopes[:, None, None] * (rows[:, None] - columns).abs_()


def attend(side: str, way: str, given: list[Tensor], backward: bool) -> Tensor:
    """One call of one side; the whole bias is made inside, as a caller would."""
    q, k, v = given
    if side == "ours":
        bias = relative if way == "bias" else None
        out = chunked_attention(q, k, v, causal=way == "causal", bias=bias)
    else:
        whole = range(q.shape[2])
        mask = relative(whole, whole)[None] if way == "bias" else None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=way == "causal")
    if backward:
        out.backward(torch.ones_like(out))
    return out


def inputs(length: int, backward: bool) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(1, HEADS, length, WIDTH, generator=draw).requires_grad_(backward) for _ in range(3)]


def child(side: str, way: str, length: int, backward: bool) -> float:
    """Bytes that one call needs, in a process of its own."""
    command = (
        f"from benchmarks.nets_unified import grow; print(grow({side!r}, {way!r}, {length}, {backward}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def grow(side: str, way: str, length: int, backward: bool) -> float:
    """The body of `child`: a small call first, for code and thread pools are loaded once a process."""
    torch.set_num_threads(1)
    attend(side, way, inputs(512, backward), backward)
    given = inputs(length, backward)
    return peak_growth(lambda: attend(side, way, given, backward))


def seconds(side: str, way: str, given: list[Tensor], backward: bool) -> float:
    started = time.perf_counter()
    attend(side, way, given, backward)
    return time.perf_counter() - started


def compare(length: int, repeats: int, say: Say) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    scores = HEADS * length**2 * 4
    for backward in (False, True):
        given = inputs(length, backward)
        for way in WAYS:
            times: dict[str, list[float]] = {"ours": [], "peer": []}
            for _ in range(repeats):  # in turn, so that a busy moment meets both
                for side, kept in times.items():
                    kept.append(seconds(side, way, given, backward))
            ratio = statistics.median(b / a for a, b in zip(times["ours"], times["peer"]))
            a, b = (statistics.median(kept) for kept in times.values())
            case = f"L = {length:,}, {way}{', with gradients' if backward else ''}"
            rows.append(row(case, "time", "s", a, b, ratio))
            own, other = (child(side, way, length, backward) for side in times)
            rows.append(row(case, "peak memory", "MiB", own / 2**20, other / 2**20, other / own))
            rows.append(row(case, "peak memory / scores", "", own / scores, other / scores, None))
            say(f"{case}: {a:.2f} s against {b:.2f}, {own / 2**20:.0f} MiB against {other / 2**20:.0f}")
    return rows


def row(case: str, what: str, unit: str, ours: float, peer: float, ratio: float | None) -> dict[str, Any]:
    return {
        "case": case,
        "model": f"{HEADS} heads of {WIDTH}, float32",
        "quantity": what,
        "unit": unit,
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "peer_name": PEER,
        "ratio": None if ratio is None or math.isnan(ratio) else round(ratio, 2),
    }


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    "short": lambda say: compare(2048, 5, say),
    "long": lambda say: compare(16_384, 1, say),
}
QUICK = ("short",)
