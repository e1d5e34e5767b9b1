"""The selective scan and the Mamba mixer against what else plain torch offers: same numbers, one process, turn by turn.

Peers: the doubling scan over the whole length (Hillis and Steele 1986), mambapy's parallel scan (Blelloch), the masked
matrix form of a chunk, and the recurrence itself. Times are the least of several turns, in which ours and the peer
alternate, so that a busy machine harms both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.nets.mixers.mamba import Mamba
from shared.nets.ops.selective_scan import selective_recurrence, selective_scan

Say = Callable[[str], None]
Scan = Callable[..., Tensor]
STATES_AT_ONCE = 4
"""The doubling scan's backward keeps about 70 tensors of all states: a group of states after the other."""


@dataclass(frozen=True)
class Peer:
    name: str
    scan: Scan
    turns: int
    backward: bool = True


# ---------------------------------------------------------------- peers


def ours(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return selective_scan(x, delta, a, b, c)[0]


def recurrence(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return selective_recurrence(x, delta, a, b, c)[0]


def doubling(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """log₂ L passes over all states: (decay, h)_t ∘ (decay, h)_{t−k} for k = 1, 2, 4, …"""
    y = torch.zeros_like(x)
    for at in range(0, a.shape[-1], STATES_AT_ONCE):
        group = slice(at, at + STATES_AT_ONCE)
        decay = torch.exp(delta[..., None] * a[:, group])
        h = (delta * x)[..., None] * b[:, :, None, group]
        k = 1
        while k < x.shape[1]:
            h = torch.cat([h[:, :k], decay[:, k:] * h[:, :-k] + h[:, k:]], 1)
            decay = torch.cat([decay[:, :k], decay[:, k:] * decay[:, :-k]], 1)
            k *= 2
        y = y + (h @ c[:, :, group, None])[..., 0]
    return y


def mambapy_scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """As `mambapy.mamba.MambaBlock.selective_scan` does."""
    from mambapy.pscan import pscan

    h = pscan(torch.exp(delta[..., None] * a), delta[..., None] * b[:, :, None] * x[..., None])
    return (h @ c[..., None])[..., 0]


def matrix_form(chunk: int) -> Scan:
    """Σ_s exp(A Σ Δ) over a chunk's pairs of tokens; `chunk` times the exponentials of the recurrence."""

    def scan(x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        h, outs = x.new_zeros(x.shape[0], *a.shape), []
        for start in range(0, x.shape[1], chunk):
            at = slice(start, start + chunk)
            total = delta[:, at].cumsum(1)
            entered = (delta * x)[:, at, :, None] * b[:, at, None]
            since = total[:, :, None] - total[:, None]
            late = torch.ones(since.shape[1:3], dtype=torch.bool).triu(1)[..., None]
            since = since.masked_fill(late, float("inf"))
            states = (torch.exp(since[..., None] * a) * entered[:, None]).sum(2)
            states = states + torch.exp(total[..., None] * a) * h[:, None]
            outs.append((states @ c[:, at, :, None])[..., 0])
            h = states[:, -1]
        return torch.cat(outs, 1)

    return scan


PEERS = (
    Peer("doubling scan", doubling, 2),
    Peer("mambapy pscan", mambapy_scan, 3),
    Peer("recurrence by autograd", recurrence, 1),
    Peer("masked matrix form, chunks of 16", matrix_form(16), 1, backward=False),
    Peer("masked matrix form, chunks of 64", matrix_form(64), 1, backward=False),
)

# ---------------------------------------------------------------- cases


def scan_rows(length: int, width: int, states: int, say: Say) -> list[dict[str, Any]]:
    """One sequence of `length` tokens with `width` channels of `states` states."""
    torch.manual_seed(0)
    delta = F.softplus(torch.randn(1, length, width) - 3)
    a = -torch.arange(1.0, states + 1).repeat(width, 1)
    x, b, c = (torch.randn(1, length, n) for n in (width, states, states))
    given = [v.requires_grad_() for v in (x, delta, a, b, c)]
    case, rows = f"L {length}, {width} channels × {states} states", []
    say(f"{case}: {torch.get_num_threads()} threads")
    for peer in PEERS:
        if peer.name.startswith("mambapy") and not _has_mambapy(say):
            continue
        with torch.no_grad():
            wanted = peer.scan(*given)
            away = ((ours(*given) - wanted).abs().max() / wanted.abs().max()).item()
        say(f"{case}: {peer.name} differs by {away:.1e} of the largest value")
        for quantity, backward in (("forward", False), ("forward and backward", True)):
            if backward and not peer.backward:
                continue
            pair = [_call(scan, given, backward) for scan in (ours, peer.scan)]
            rows.append(_row(case, "selective_scan", quantity, *_alternate(pair, peer.turns), peer.name))
            say(f"{case}: {quantity}, {peer.name}: {rows[-1]['ratio']} ×")
    return rows


def mixer_rows(length: int, dim: int, say: Say) -> list[dict[str, Any]]:
    """The whole mixer beside mambapy's block with the same options."""
    if not _has_mambapy(say):
        return []
    from mambapy.mamba import MambaBlock, MambaConfig

    torch.manual_seed(0)
    nets = [Mamba(dim, 1, causal=True), MambaBlock(MambaConfig(d_model=dim, n_layers=1))]
    x, rows = torch.randn(1, length, dim, requires_grad=True), []
    for quantity, backward in (("forward", False), ("forward and backward", True)):
        pair = [_call(net, [x, *net.parameters()], backward, inputs=1) for net in nets]
        rows.append(
            _row(f"L {length}, C {dim}", "mamba", quantity, *_alternate(pair, 3), "mambapy MambaBlock, pscan")
        )
        say(f"L {length}, C {dim}: {quantity}: {rows[-1]['ratio']} × mambapy")
    return rows


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    "scan-4096": lambda say: scan_rows(4096, 512, 16, say),
    "scan-4096-narrow": lambda say: scan_rows(4096, 256, 4, say),
    "mixer-4096": lambda say: mixer_rows(4096, 256, say),
}
QUICK = ("scan-4096-narrow",)

# ---------------------------------------------------------------- time


def _call(
    function: Callable[..., Tensor], given: list[Tensor], backward: bool, inputs: int | None = None
) -> Callable[[], Any]:
    """One call; with `backward`, and the gradients of all `given`. The first `inputs` are arguments."""
    arguments = given[:inputs]

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*arguments)

    def both() -> Any:
        return torch.autograd.grad(function(*arguments).sum(), given)

    return both if backward else forward


def _alternate(pair: list[Callable[[], Any]], turns: int) -> tuple[float, float]:
    """Least seconds of each of two calls that take turns, after a first one of each that is not timed when there are
    several turns."""
    seconds: list[list[float]] = [[], []]
    for _ in range(turns + (turns > 1)):
        for side, call in zip(seconds, pair):
            started = time.perf_counter()
            call()
            side.append(time.perf_counter() - started)
    return min(seconds[0][turns > 1 :]), min(seconds[1][turns > 1 :])


def _row(case: str, model: str, quantity: str, mine: float, peers: float, name: str) -> dict[str, Any]:
    return {
        "case": case,
        "model": model,
        "quantity": quantity,
        "unit": "ms",
        "ours": round(mine * 1e3, 2),
        "peer": round(peers * 1e3, 2),
        "peer_name": name,
        "ratio": round(peers / mine, 2),
    }


def _has_mambapy(say: Say) -> bool:
    try:
        import mambapy  # noqa: F401
    except ImportError:
        say("mambapy is not installed; skipped")
        return False
    return True
