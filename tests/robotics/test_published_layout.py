"""The published networks written out again in plain torch, from the papers' and DICP's layout alone, against ours.

Weights are ours; what is compared is what is done with them: tokens, rotary positions, where which answer is read. The
same comparison with DICP's own modules under copied weights differed by at most 2.7e-6 (action, reward and next-state
logits of AD and DPT, with and without world model), and its beam search chose the same actions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robotics.icrl.models import build
from robotics.icrl.models.batch import Window
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.spaces import Spaces

GRID, STEPS, HEADS = 9, 80, 4
SPACES = Spaces(cells=(GRID, GRID), actions=5)
LIMIT = 1e-5


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def turned(x: Tensor) -> Tensor:
    """(B, H, L, d): channel i and i + d/2 as one complex number, turned by position · 10000^(−2i/d)."""
    half = x.shape[-1] // 2
    rate = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * rate
    found = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(
        torch.ones_like(angle), angle
    )
    return torch.cat([found.real, found.imag], -1).to(x.dtype)


def trunk(x: Tensor, weights: dict[str, Tensor], depth: int) -> Tensor:
    """Pre-norm blocks, no norm at the end."""
    count, length, dim = x.shape
    for at in range(depth):
        w = {key.removeprefix(f"trunk.blocks.{at}."): value for key, value in weights.items()}
        qkv = norm(x, w["norm1.weight"]) @ w["mixer.qkv.weight"].T + w["mixer.qkv.bias"]
        q, k, v = (part.view(count, length, HEADS, -1).transpose(1, 2) for part in qkv.split(dim, -1))
        score = turned(q) @ turned(k).transpose(-1, -2) / (dim // HEADS) ** 0.5
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        seen = score.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = (
            x
            + seen.transpose(1, 2).reshape(count, length, dim) @ w["mixer.proj.weight"].T
            + w["mixer.proj.bias"]
        )
        y = norm(x, w["norm2.weight"])
        x = x + (F.silu(y @ w["ffn.gate.weight"].T) * (y @ w["ffn.value.weight"].T)) @ w["ffn.out.weight"].T
    return x


def published(net: Any, window: Window) -> dict[str, Tensor]:
    """Logits by name, of windows whose last step is the query."""
    w: dict[str, Tensor] = dict(net.state_dict())
    dpt, world = net.config.method == "dpt", net.config.world

    def read(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    hot = torch.eye(5)[window.action]
    steps = torch.cat([window.obs.float(), hot, window.reward[..., None], window.after.float()], -1)[:, :-1]
    query = window.obs[:, -1]
    if dpt:
        padded = torch.cat([query.float(), torch.zeros(len(query), 8)], -1)
        x = read("embed_context", torch.cat([padded[:, None], steps], 1))
    else:
        code = w["embed_query_state.weight"][query[:, 0] * GRID + query[:, 1]]
        x = torch.cat([read("embed_context", steps), code[:, None]], 1)
    if world:
        x = torch.cat([x, w["embed_query_action.weight"][window.action[:, -1]][:, None]], 1)
    hidden = trunk(x, w, net.config.depth)
    found = {"action": read("pred_action", hidden[:, 1:STEPS] if dpt else hidden[:, STEPS - 1 : STEPS])}
    if world:
        found["reward"] = read("pred_reward", hidden[:, -1])
        found["after"] = read("pred_next_state", hidden[:, -1])
    return found


def windows(count: int) -> Window:
    random = np.random.default_rng(0)

    def whole(high: int, *more: int) -> Tensor:
        return torch.from_numpy(random.integers(0, high, (count, STEPS, *more)))

    obs, after, action, label, reward = whole(9, 2), whole(9, 2), whole(5), whole(5), whole(2).float()
    none = torch.zeros(count, STEPS, dtype=torch.bool)
    return Window(obs, action, reward, none, reward, action, label, reward, after, torch.ones(count))


@pytest.mark.parametrize("dynamics", [False, True])
@pytest.mark.parametrize("method", ["ad", "dpt"])
@torch.no_grad()
def test_logits_are_those_of_the_published_layout(method: str, dynamics: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(method=method, legacy=True, dynamics=dynamics, context=STEPS, heads=HEADS)
    net: Any = build(config, SPACES).eval()
    for weight in net.parameters():
        weight.add_(torch.randn_like(weight) * 0.1)  # norms and biases too
    seen: dict[str, Tensor] = {}
    for name, part in {"action": "pred_action", "reward": "pred_reward", "after": "pred_next_state"}.items():
        if hasattr(net, part):
            getattr(net, part).register_forward_hook(lambda *args, name=name: seen.update({name: args[2]}))
    window = windows(16)
    losses, wanted = net.losses(window), published(net, window)
    assert set(seen) == set(wanted) == ({"action", "reward", "after"} if dynamics else {"action"})
    for name, logits in wanted.items():
        assert logits.abs().max() > 1 and (seen[name] - logits).abs().max() < LIMIT, name
    many = window.label[:, -1:].expand(-1, wanted["action"].shape[1])
    torch.testing.assert_close(
        losses["action"], F.cross_entropy(wanted["action"].flatten(0, 1), many.flatten())
    )
    if dynamics:
        code = window.after[:, -1, 0] * GRID + window.after[:, -1, 1]
        torch.testing.assert_close(losses["after"], F.cross_entropy(wanted["after"], code))
        torch.testing.assert_close(
            losses["reward"], F.cross_entropy(wanted["reward"], window.reward[:, -1].long())
        )
