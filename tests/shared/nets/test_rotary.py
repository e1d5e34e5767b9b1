"""Rotary attention: scores depend on differences of positions, and by the paper's angles. SwiGLU by its formula."""

from __future__ import annotations

import pytest
import torch

from shared.errors import UsageError
from shared.nets.feedforward.swiglu import SwiGLU
from shared.nets.mixers.rotary import RotaryAttention
from shared.nets.registry import make


def test_scores_turn_by_the_papers_angles() -> None:
    """As complex numbers, the pair i of q and of k contributes Re(q k̄ e^{i (s − t) θ_i})."""
    torch.manual_seed(0)
    mixer = RotaryAttention(8, 1, heads=1, causal=True).double()
    x = torch.randn(1, 11, 8, dtype=torch.float64)
    q, k, _ = super(RotaryAttention, mixer)._qkv(x)
    q, k = (torch.complex(*part[0, 0].chunk(2, -1)) for part in (q, k))
    theta = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    away = torch.arange(11, dtype=torch.float64)[:, None, None] - torch.arange(11)[:, None]
    scores = (q[:, None] * k.conj() * torch.polar(torch.ones(11, 11, 4).double(), away * theta)).sum(-1).real
    late = torch.ones(11, 11, dtype=torch.bool).triu(1)
    wanted = (scores * 8**-0.5).masked_fill(late, float("-inf")).softmax(-1)
    torch.testing.assert_close(mixer.matrix(x)[0, 0], wanted, rtol=1e-9, atol=1e-9)


def test_only_differences_of_positions_count() -> None:
    mixer = RotaryAttention(16, 1, heads=2, causal=True)
    x = torch.randn(2, 6, 16)
    near, far = (mixer._qkv(x, start) for start in (0, 1000))
    scores = [q @ k.transpose(-1, -2) for q, k, _ in (near, far)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-4)


def test_prefill_then_steps_equal_the_whole_pass() -> None:
    torch.manual_seed(0)
    mixer = RotaryAttention(16, 1, heads=4, causal=True).eval()
    x = torch.randn(3, 90, 16)
    with torch.no_grad():
        whole = mixer(x)
        out, state = mixer.prefill(x[:, :70])
        outs = [out]
        for at in range(70, 90):
            one, state = mixer.step(x[:, at], state)
            outs.append(one[:, None])
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=1e-5, atol=1e-5)


def test_odd_heads_are_refused() -> None:
    with pytest.raises(UsageError, match="4 heads of 3 channels; an even number"):
        make("mixer", {"name": "rotary", "heads": 4}, 12, 1, causal=True)


def test_swiglu_by_its_formula() -> None:
    part, x = SwiGLU(6, 1, ratio=2).double(), torch.randn(4, 6, dtype=torch.float64)
    gate = x @ part.gate.weight.T
    wanted = (gate / (1 + torch.exp(-gate)) * (x @ part.value.weight.T)) @ part.out.weight.T
    torch.testing.assert_close(part(x), wanted)
    assert sum(p.numel() for p in part.parameters()) == 3 * 6 * 12
