"""The Legendre memory: parallel form, recurrence, and that it holds the last θ tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.polynomial.legendre import legval

from shared.nets.mixers.lmu import Lmu, legendre


def test_the_convolution_is_the_recurrence() -> None:
    a, b = legendre(16, 64.0)
    mixer = Lmu(8, 1, order=16, theta=64.0, causal=True).double()
    u = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    m, steps = torch.zeros(2, 16, dtype=torch.float64), []
    for t in range(50):
        m = m @ a.T + u[:, t, None] * b
        steps.append(m)
    torch.testing.assert_close(mixer.memory(u), torch.stack(steps, 1), rtol=0, atol=1e-13)


def test_the_memory_holds_the_last_theta_tokens() -> None:
    """Two slow tones come back from m by shifted Legendre polynomials, if the hold's half step is counted."""
    theta, length = 64, 400
    t = np.arange(length)

    def signal(at: np.ndarray) -> np.ndarray:
        return np.sin(2 * np.pi * at / 60) + 0.5 * np.cos(2 * np.pi * at / 33)

    mixer = Lmu(8, 1, order=16, theta=float(theta), causal=True).double()
    m = mixer.memory(torch.from_numpy(signal(t))[None])[0, -1].detach().numpy()
    ago = np.linspace(0, theta, 65)
    found = legval(2 * ago / theta - 1, m)

    def error(delay: float) -> float:
        wanted = signal(length - 1 - ago + delay)
        return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))

    assert error(0.5) < 0.012 < 0.05 < error(0)


def test_unstable_settings_are_refused() -> None:
    a, _ = legendre(32, 100.0)
    assert torch.linalg.eigvals(a).abs().max() < 1
    with pytest.raises(ValueError, match="not stable"):
        legendre(16, -8.0)
