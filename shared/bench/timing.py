"""Times of one mixer alone, and of torch's attention beside it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.bench.memory import MIB, live_peak, peak_growth
from shared.nets.mixers.base import TokenMixer
from shared.nets.registry import make

ENOUGH_SECONDS, REPEATS = 0.5, (3, 20)
LONG_SECONDS = 5.0
"""A first call longer than this is the measurement."""
STEPS = 32
WARM_TOKENS = {1: (64,), 2: (8, 8), 3: (4, 4, 4)}
CHILD_SECONDS = 600


def build(part: dict[str, Any], dim: int, size: Sequence[int], *, causal: bool = False) -> TokenMixer:
    """The mixer for maps of `size`, weights of seed 0. Raises `UsageError`."""
    torch.manual_seed(0)
    mixer: TokenMixer = make("mixer", part, dim, len(size), size=tuple(size), causal=causal)
    return mixer


def forward(mixer: TokenMixer, x: Tensor) -> Callable[[], object]:
    """One pass without gradients."""

    def work() -> None:
        with torch.no_grad():
            mixer(x)
        _wait(x)

    return work


def training(mixer: TokenMixer, x: Tensor) -> Callable[[], object]:
    """One pass and its gradients, those of the input among them."""
    x = x.detach().requires_grad_()

    def work() -> None:
        for tensor in (x, *mixer.parameters()):
            tensor.grad = None
        mixer(x).sum().backward()
        _wait(x)

    return work


def sdpa(length: int, dim: int, heads: int, device: str, *, gradients: bool) -> Callable[[], object]:
    """`scaled_dot_product_attention` alone, without the maps to queries, keys and values."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, length, dim // heads, generator=generator).to(device).requires_grad_(gradients)
        for _ in range(3)
    )

    def work() -> None:
        with torch.set_grad_enabled(gradients):
            out = F.scaled_dot_product_attention(q, k, v)
        if gradients:
            torch.autograd.grad(out.sum(), (q, k, v))
        _wait(q)

    return work


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object]) -> float:
    """Least of several calls after a first one: what others do on the machine only ever adds. A long first call
    counts alone."""
    first = _seconds(work)
    if first > LONG_SECONDS:
        return first * 1e3
    count = min(max(int(ENOUGH_SECONDS / max(first, 1e-9)), REPEATS[0]), REPEATS[1])
    return min(_seconds(work) for _ in range(count)) * 1e3


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def step_milliseconds(part: dict[str, Any], dim: int, length: int, device: str) -> tuple[float, bool]:
    """Time of one step at the end of `length` tokens, and whether the state grows with them.

    A state of constant size costs the same after every token: it is timed after the first few.
    """
    mixer = build(part, dim, (length,), causal=True).to(device).eval()
    token = torch.randn(1, dim, generator=torch.Generator().manual_seed(1)).to(device)
    times = []
    with torch.no_grad():
        state = mixer.init_state(1)
        sizes = []
        at, end = 0, length
        while at < end:
            started = time.perf_counter()
            _, state = mixer.step(token, state)
            _wait(token)
            times.append(time.perf_counter() - started)
            sizes.append(_state_bytes(state))
            at += 1
            if at == STEPS and sizes[0] == sizes[-1]:
                end = min(length, 3 * STEPS)
    return min(times[-STEPS:]) * 1e3, sizes[-1] > sizes[0]


def _state_bytes(state: Any) -> int:
    from torch.utils._pytree import tree_leaves

    return sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, Tensor))


# ---------------------------------------------------------------- memory


def peak_mib(part: dict[str, Any], dim: int, size: Sequence[int], device: str) -> dict[str, float]:
    """Most memory of one pass (``forward``) and of one with gradients (``training``), beyond weights and input.

    CPU: growth of a process of its own; GPU: the allocator's peak. NaN where that process died.
    """
    if device == "cuda":
        return _cuda_peaks(part, dim, size)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "shared.bench.timing", "shared.nets.backbones.factory"])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, part, dim, tuple(size)), daemon=True)
    child.start()
    sender.close()
    found = {"forward": float("nan"), "training": float("nan")}
    try:
        if receiver.poll(CHILD_SECONDS):
            found = receiver.recv()
    except EOFError:  # killed, as a rule for want of memory
        pass
    finally:
        child.kill()
        child.join()
    return found


def warm(part: dict[str, Any], dim: int, ndim: int, device: str) -> None:
    """Load library code and kernels by a small map: they are no cost of a point."""
    small = WARM_TOKENS[ndim]
    training(build(part, dim, small).to(device), torch.randn(1, *small, dim, device=device))()


def _child(sender: Any, part: dict[str, Any], dim: int, size: tuple[int, ...]) -> None:
    warm(part, dim, len(size), "cpu")
    mixer, x = build(part, dim, size), torch.randn(1, *size, dim)
    peaks = {"forward": max(peak_growth(forward(mixer, x)), 0) / MIB}
    peaks["training"] = max(peak_growth(training(mixer, x)) / MIB, peaks["forward"])
    sender.send(peaks)
    sender.close()


def _cuda_peaks(part: dict[str, Any], dim: int, size: Sequence[int]) -> dict[str, float]:
    mixer, x = build(part, dim, size).cuda(), torch.randn(1, *size, dim, device="cuda")
    found = {}
    for name, work in (("forward", forward(mixer, x)), ("training", training(mixer, x))):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        found[name] = (torch.cuda.max_memory_allocated() - before) / MIB
    return found


def live_mib(part: dict[str, Any], dim: int, size: Sequence[int]) -> float:
    """Live tensors' peak of one pass: counted, not measured; the same on every machine."""
    mixer, x = build(part, dim, size), torch.zeros(1, *size, dim)
    return live_peak(forward(mixer, x), [x, *mixer.parameters(), *mixer.buffers()]) / MIB
