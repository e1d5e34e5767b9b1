"""The original encoder block and t2's configuration of it, against the equations written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.nets import create_backbone
from shared.nets.backbones.t2 import t2
from shared.nets.measure import count_params


def published(classes: int = 14, bands: int = 6, **over: Any) -> Any:
    torch.manual_seed(0)
    return create_backbone(t2(**over), ndim=1, in_chans=bands, num_classes=classes).eval()


def norm(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


def by_hand(w: dict[str, np.ndarray], x: np.ndarray, heads: int) -> np.ndarray:
    """astronet.t2's `T2Model.call` without dropout, up to the logits, for x (T, bands); in float64."""
    x = np.maximum(x @ w["stem.convs.0.conv.weight"][:, :, 0].T + w["stem.convs.0.conv.bias"], 0)
    steps, dim = x.shape
    for p in range(steps):
        for i in range(dim // 2):
            x[p, 2 * i] += np.sin(p / 10_000 ** (2 * i / dim))
            x[p, 2 * i + 1] += np.cos(p / 10_000 ** (2 * i / dim))
    b = "stages.0.blocks.0."
    q, k, v = np.split(x @ w[b + "mixer.qkv.weight"].T + w[b + "mixer.qkv.bias"], 3, axis=1)
    d, seen = dim // heads, np.empty_like(x)
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        score = q[:, part] @ k[:, part].T / np.sqrt(d)
        weight = np.exp(score - score.max(1, keepdims=True))
        seen[:, part] = weight / weight.sum(1, keepdims=True) @ v[:, part]
    x = x + seen @ w[b + "mixer.proj.weight"].T + w[b + "mixer.proj.bias"]
    x = norm(x) * w[b + "norm1.weight"] + w[b + "norm1.bias"]
    hidden = np.maximum(x @ w[b + "ffn.fc1.weight"].T + w[b + "ffn.fc1.bias"], 0)
    x = x + hidden @ w[b + "ffn.fc2.weight"].T + w[b + "ffn.fc2.bias"]
    x = norm(x) * w[b + "norm2.weight"] + w[b + "norm2.bias"]
    return x.mean(0) @ w["head.fc.weight"].T + w["head.fc.bias"]


def test_parameters_are_the_papers() -> None:
    assert count_params(published()) == 13_390
    assert count_params(published(bands=2)) == 13_262
    assert count_params(published(layers=2)) == 13_390 + 12_704


def test_equals_the_equations() -> None:
    model = published()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    x: Tensor = torch.randn(3, 6, 100, generator=generator)
    wanted = [by_hand(arrays(model), one.T.double().numpy(), 16) for one in x]
    np.testing.assert_allclose(model(x).detach().numpy(), wanted, rtol=0, atol=2e-5)


def test_streams_as_it_reads_whole() -> None:
    model = create_backbone(t2(layers=2) | {"causal": True}, ndim=1, in_chans=6).eval()
    x, state = torch.randn(2, 6, 9), model.init_state(2)
    for at in range(9):
        out, state = model.step(x[:, :, at], state)
        torch.testing.assert_close(out, model.forward_features(x)[:, :, at], rtol=0, atol=1e-5)


def test_branches_drop_values_only_in_training() -> None:
    model = published(dropout=0.5)
    x = torch.randn(2, 6, 20)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))
