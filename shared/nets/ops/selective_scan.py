"""The selective scan of Mamba (Gu and Dao 2023, arXiv 2312.00752, section 3.2, algorithm 2), in plain torch.

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_t,   y_t = C_t · h_t,   for every channel e with its own N states.

`selective_recurrence` is that line by line: the reference. `selective_scan` is the same, faster and leaner:

- Chunks of tokens that fit the cache: decays, inputs, states and read-out of a chunk are made in two buffers and used
  while they are near; no (B, L, E, N) tensor exists. A doubling scan over all of L does log₂ L passes over such tensors
  in main memory; the masked matrix form of a chunk costs its length times more, as A differs by channel and state.
- Inside a chunk one fused multiply-add a token over all (B, N, E). Where that is too little work for one call (few
  channels, or a GPU), a chunk is cut into segments that advance together and are joined afterwards by their total
  decays. All factors are exp of something ≤ 0: nothing overflows, whatever Δ is; there is no division by a decay.
- Backward makes the states of a chunk again from the state at its start, which is all that is kept.

Inside, tokens come first and channels last: (L, B, N, E), so that every operation runs along contiguous channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

CHUNK_VALUES = 2**19
"""States of one chunk on a CPU: 2 MiB in float32, about one core's share of cache."""
DEVICE_VALUES = 2**25
"""The same on other devices, where launches cost and memory is fast: 128 MiB."""
STEP_VALUES = 4096
"""With fewer states a token than this, a call costs more than its work: several tokens advance at once."""


def selective_recurrence(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token after token, by autograd. Arguments and results as `selective_scan`."""
    x, delta, a, b, c, state = _prepared(x, delta, a, b, c, state)
    outs = []
    for t in range(x.shape[1]):
        d, u = delta[:, t, :, None], (delta[:, t] * x[:, t])[..., None]
        state = torch.exp(d * a) * state + u * b[:, t, None]
        outs.append((state * c[:, t, None]).sum(-1))
    return torch.stack(outs, 1), state


def selective_scan(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x, delta ≥ 0 (B, L, E); a ≤ 0 (E, N), or (B, E, N) where sequences differ; b, c (B, L, N); state before the first
    token (B, E, N), zero by default → y (B, L, E) and the state after the last token.

    Computed in float32 at least. Differentiable once, in every argument.
    """
    x, delta, a, b, c, state = _prepared(x, delta, a, b, c, state)
    first = [v.transpose(0, 1).contiguous() for v in (delta * x, delta, b, c)]
    last_axis = [v.transpose(-1, -2).contiguous() for v in (a, state)]
    y, final, _ = _scan(*first, *last_axis)
    return y.transpose(0, 1), final.transpose(-1, -2)


def _prepared(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    if state is None:
        state = x.new_zeros(x.shape[0], x.shape[2], b.shape[-1])
    a = a if a.ndim == 3 else a[None]
    return x.to(dtype), delta.to(dtype), a.to(dtype), b.to(dtype), c.to(dtype), state.to(dtype)


# ---------------------------------------------------------------- plan


def _plan(length: int, values: int, device: str) -> tuple[int, int]:
    """Tokens a chunk and segments a chunk, for `values` states a token."""
    if device == "cpu":
        segments = 1 if values >= STEP_VALUES else 8
        tokens = min(max(CHUNK_VALUES // values, 8), 256)
    else:
        tokens = min(max(DEVICE_VALUES // values, 64), length)
        segments = max(int(tokens**0.5), 1)
    return max(tokens // segments, 1) * segments, segments


def _chunks(length: int, tokens: int, segments: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, segments) of each chunk, every one divisible by its number of segments."""
    start = 0
    while start < length:
        size = min(tokens, length - start)
        cut = segments if size >= segments else 1
        size -= size % cut
        yield start, start + size, cut
        start += size


# ---------------------------------------------------------------- one chunk


def _decays(delta: Tensor, a: Tensor, out: Tensor) -> Tensor:
    """exp(Δ_t A): (T, B, E), (1 or B, N, E) → (T, B, N, E)."""
    return torch.mul(delta[:, :, None], a, out=out).exp_()


def _advance(decay: Tensor, h: Tensor, segments: int, *, backwards: bool = False) -> None:
    """In place over the first axis: h_t += decay_t h_{t−1}; backwards, h_t += decay_t h_{t+1}.

    More than one segment: all of them advance together from zero, while `decay` becomes the product since the
    segment's start; then segment after segment receives the end of the one before it.
    """
    if segments == 1:
        steps = list(zip(decay.unbind(0), h.unbind(0)))
        for (_, before), (factor, now) in pairwise(reversed(steps) if backwards else steps):
            now.addcmul_(factor, before)
        return
    decay = decay.view(segments, -1, *decay.shape[1:])
    h = h.view(segments, -1, *h.shape[1:])
    steps, joints = list(zip(decay.unbind(1), h.unbind(1))), list(range(segments))
    if backwards:
        steps.reverse()
        joints.reverse()
    for (product, before), (factor, now) in pairwise(steps):
        now.addcmul_(factor, before)
        factor.mul_(product)
    product, end = steps[-1]
    for before_at, at in pairwise(joints):
        end[at].addcmul_(product[at], end[before_at])
    if backwards:
        h[:-1, 1:].addcmul_(decay[:-1, 1:], h[1:, :1])
    else:
        h[1:, :-1].addcmul_(decay[1:, :-1], h[:-1, -1:])


# ---------------------------------------------------------------- the whole, as two operators


def _forward(
    u: Tensor, delta: Tensor, b: Tensor, c: Tensor, a: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """u = Δ x and Δ (L, B, E), b and c (L, B, N), a (1 or B, N, E), state (B, N, E) → y (L, B, E), the last state, and
    the state before each chunk (chunks, B, N, E)."""
    length, values = len(u), state.numel()
    tokens, segments = _plan(length, values, u.device.type)
    buffers = u.new_empty(2, min(tokens, length), *state.shape)
    y, starts, h = torch.empty_like(u), [], state
    for start, end, cut in _chunks(length, tokens, segments):
        starts.append(h)
        at = slice(start, end)
        decay, states = buffers[:, : end - start].unbind(0)
        _decays(delta[at], a, decay)
        torch.mul(u[at, :, None], b[at, :, :, None], out=states)
        states[0].addcmul_(decay[0], h)
        _advance(decay, states, cut)
        h = states[-1].clone()
        torch.sum(states.mul_(c[at, :, :, None]), 2, out=y[at])
    return y, h.clone(), torch.stack(starts)


def _backward(
    grad_y: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    b: Tensor,
    c: Tensor,
    a: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, delta, b, c, a, state. With g_t = ∂loss/∂h_t = C_t ∂y_t + exp(Δ_{t+1} A) g_{t+1}:
    ∂u_t = Σ_n g B, ∂B_t = Σ_e g u, ∂C_t = Σ_e ∂y h, and through the decay q = g h_{t−1} exp(Δ_t A):
    ∂Δ_t = Σ_n q A, ∂A = Σ_t q Δ."""
    length, values = len(u), starts[0].numel()
    tokens, segments = _plan(length, values, u.device.type)
    du, ddelta, db, dc = (torch.empty_like(v) for v in (u, delta, b, c))
    da = torch.zeros_like(starts[0])
    size = min(tokens, length)
    decays, buffers = u.new_zeros(size + 1, *starts.shape[1:]), u.new_empty(2, size, *starts.shape[1:])
    carry = grad_last.clone()
    chunks = list(_chunks(length, tokens, segments))
    for (start, end, cut), before in zip(reversed(chunks), reversed(starts.unbind(0))):
        at, n = slice(start, end), end - start
        h, g = buffers[:, :n].unbind(0)
        decay, later = decays[:n], decays[1 : n + 1]
        _decays(delta[at], a, decay)
        torch.mul(u[at, :, None], b[at, :, :, None], out=h)
        h[0].addcmul_(decay[0], before)
        _advance(decay if cut == 1 else decay.clone(), h, cut)
        torch.sum(h * grad_y[at, :, None], 3, out=dc[at])
        torch.mul(grad_y[at, :, None], c[at, :, :, None], out=g)
        g[-1].add_(carry)
        _advance(later if cut == 1 else later.clone(), g, cut, backwards=True)
        torch.sum(g * b[at, :, :, None], 2, out=du[at])
        torch.sum(g * u[at, :, None], 3, out=db[at])
        q = g.mul_(decay)
        carry = q[0].clone()
        q[1:].mul_(h[:-1])
        q[0].mul_(before)
        torch.sum(torch.mul(q, a, out=h), 2, out=ddelta[at])
        da += q.mul_(delta[at, :, None]).sum(0)
    return du, ddelta, db, dc, da if len(a) > 1 else da.sum(0, keepdim=True), carry


# Operators of their own, so that the work inside is one node to autograd, to shape propagation on the meta device and
# to the counter of multiply-accumulates (which leaves scans out). Autocast would change nothing inside.

_scan = torch.library.custom_op("shared::selective_scan", _forward, mutates_args=())
_scan_backward = torch.library.custom_op("shared::selective_scan_backward", _backward, mutates_args=())


@_scan.register_fake
def _(
    u: Tensor, delta: Tensor, b: Tensor, c: Tensor, a: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tokens, segments = _plan(len(u), state.numel(), u.device.type)
    chunks = sum(1 for _ in _chunks(len(u), tokens, segments))
    return torch.empty_like(u), torch.empty_like(state), state.new_empty(chunks, *state.shape)


@_scan_backward.register_fake
def _(
    grad_y: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    b: Tensor,
    c: Tensor,
    a: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    of = torch.empty_like
    return of(u), of(delta), of(b), of(c), of(a), of(starts[0])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, b, c, a, _ = inputs
    ctx.save_for_backward(u, delta, b, c, a, output[2])


def _gradients(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    out: tuple[Tensor, ...] = _scan_backward(grad_y.contiguous(), grad_last, *ctx.saved_tensors)
    return out


_scan.register_autograd(_gradients, setup_context=_keep)
