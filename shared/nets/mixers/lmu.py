"""Legendre memory (LMUFormer, Liu et al. 2024, arXiv 2402.04882; Voelker et al. 2019): the last θ tokens of one signal,
held as q Legendre coefficients.

    u_t = ReLU(w · x_t)                        one number a token
    m_t = A m_{t−1} + B u_t                    A, B fixed: zero-order hold, dt = 1, of
        θ ṁ = Ȧ m + Ḃ u,  Ȧ_ij = (2i+1) (−1 if i < j else (−1)^{i−j+1}),  Ḃ_i = (2i+1) (−1)^i
    h_t = ReLU(W_h [m_t; x_t])

Parallel form: m is u convolved with the impulse response A^t B, by FFT over the whole sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shared.nets.mixers.base import TokenMixer
from shared.nets.ops.fft_conv import fft_conv_groups, working_dtype
from shared.nets.options import Count, Positive
from shared.nets.registry import register


@lru_cache(maxsize=32)
def legendre(order: int, theta: float) -> tuple[Tensor, Tensor]:
    """A (q, q) and B (q,) in float64. Raises ValueError where the discrete system is not stable."""
    j = torch.arange(order, device="cpu")  # whatever device the network is built on
    i = j[:, None]
    scale = (2 * i + 1).double() / theta
    a = scale * torch.where(i < j, -1.0, (-1.0) ** (i - j + 1))
    b = scale * (-1.0) ** i
    held = torch.linalg.matrix_exp(torch.cat([torch.cat([a, b], 1), a.new_zeros(1, order + 1)]))
    a, b = held[:order, :order], held[:order, order]
    if torch.linalg.eigvals(a).abs().max() >= 1:
        raise ValueError(f"order {order} with theta {theta} is not stable; theta > 0 wanted")
    return a, b


@register(
    "mixer", "lmu", paper="LMUFormer, Liu et al. 2024, arXiv 2402.04882", cost="L log L q + L C (q + C)"
)
class Lmu(TokenMixer):
    """Causal. Masked: invalid tokens enter nothing, time goes on. State: the memory (B, q)."""

    ndims: ClassVar[frozenset[int]] = frozenset({1})
    causal_forms: ClassVar[frozenset[bool]] = frozenset({True})
    masks: ClassVar[bool] = True
    stateful: ClassVar[bool] = True

    def __init__(
        self, dim: int, ndim: int, *, order: Count | None = None, theta: Positive = 128, **place: Any
    ) -> None:
        super().__init__(dim, ndim, **place)
        order = dim if order is None else order
        self.enter = nn.Linear(dim, 1)
        self.leave = nn.Linear(order + dim, dim)
        a, b = legendre(order, theta)
        self.theta, self.order = theta, order
        self.register_buffer("A", a.to(self.enter.weight), persistent=False)
        self.register_buffer("B", b.to(self.enter.weight), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        u = torch.relu(self.enter(x))[..., 0]
        u = u if mask is None else u * mask
        return self._read(self.memory(u), x)

    def memory(self, u: Tensor) -> Tensor:
        """u (B, L) → m (B, L, q), the recurrence as one convolution."""
        response = self._response(u.shape[1]).to(u.device, working_dtype(u))
        return fft_conv_groups(u[:, None, None], response.t()[:, None])[:, :, 0].transpose(1, 2)

    def _response(self, length: int) -> Tensor:
        """A^t B for t < length, (length, q), by doubling."""
        a, b = legendre(self.order, self.theta)
        rows, power = b[None], a
        while len(rows) < length:
            rows, power = torch.cat([rows, rows @ power.T]), power @ power
        return rows[:length]

    def _read(self, m: Tensor, x: Tensor) -> Tensor:
        return torch.relu(self.leave(torch.cat([m, x], -1)))

    def init_state(self, batch: int) -> Tensor:
        return self.enter.weight.new_zeros(batch, self.order)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        m = state @ self.A.T + torch.relu(self.enter(x)) * self.B  # type: ignore[operator]
        return self._read(m, x), m

    def extra_macs(self, size: Sequence[int]) -> int:
        """Of the recurrence, which the FFT stands for."""
        return size[0] * self.order * (self.order + 1)
