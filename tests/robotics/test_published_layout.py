"""The published networks written out again in plain torch, from the papers' and DICP's layout alone, against ours.

Weights are ours; what is compared is what is done with them: tokens, rotary positions, where which answer is read. The
same comparison with DICP's own modules under copied weights differed by at most 2.7e-6 (action, reward and next-state
logits of AD and DPT, with and without world model), and its beam search chose the same actions; the rules of that
search are written out below as well.
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
from robotics.icrl.models.config import ModelConfig, Plan
from robotics.icrl.models.incontext import Policy
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.planning import legacy_plan

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
    dpt, world, last = net.config.method == "dpt", net.config.world, window.obs.shape[1]

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
    found = {"action": read("pred_action", hidden[:, 1:last] if dpt else hidden[:, last - 1 : last])}
    if world:
        found["reward"] = read("pred_reward", hidden[:, -1])
        found["after"] = read("pred_next_state", hidden[:, -1])
    return found


def windows(count: int, steps: int = STEPS, seed: int = 0) -> Window:
    random = np.random.default_rng(seed)

    def whole(high: int, *more: int) -> Tensor:
        return torch.from_numpy(random.integers(0, high, (count, steps, *more)))

    obs, after, action, label, reward = whole(9, 2), whole(9, 2), whole(5), whole(5), whole(2).float()
    none = torch.zeros(count, steps, dtype=torch.bool)
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


Step = tuple[list[int], int, int, list[int]]
Ask = tuple[list[Step], list[int], int]


def imagined(net: Any, asked: list[Ask]) -> list[tuple[int, list[int]]]:
    """The likeliest reward and next cell after (context, cell, action)."""
    steps = [list(zip(*past, (at, action, 0, at))) for past, at, action in asked]
    obs, acts, gains, after = (torch.tensor(each) for each in zip(*steps))
    none = torch.zeros(len(asked))
    found = published(net, Window(obs, acts, gains, gains, gains, acts, acts, gains, after, none))
    cells = [list(divmod(code, GRID)) for code in found["after"].argmax(-1).tolist()]
    return list(zip(found["reward"].argmax(-1).tolist(), cells))


def published_beam(net: Any, past: list[Step], at: list[int], order: list[int], how: Plan, left: int) -> int:
    """First action of the beam with the highest sum of rewards; of equals, the one that came first."""
    beams: list[tuple[int, list[int], list[Step], list[int]]] = [(0, [], past, at)]
    for level in range(min(how.depth, left)):
        grown = [(beam, action) for beam in beams for action in (range(5) if level else order)]
        found = imagined(net, [(past, at, action) for (_, _, past, at), action in grown])
        beams = [
            (total + reward, [*acts, action], [*past[1:], (at, action, reward, after)], after)
            for ((total, acts, past, at), action), (reward, after) in zip(grown, found)
        ]
        beams = sorted(beams, key=lambda beam: -beam[0])[: how.width]
    return beams[0][1][0]


@pytest.mark.parametrize("method", ["dicp", "dpt"])
@pytest.mark.parametrize(("seed", "left"), [(0, 20), (1, 20), (2, 2)])
@torch.no_grad()
def test_plans_are_those_of_the_published_beam(method: str, seed: int, left: int) -> None:
    torch.manual_seed(seed)
    how, steps = Plan(width=3, depth=4), 6
    keys: dict[str, Any] = {"dim": 16, "depth": 1, "inner": 32, "dynamics": True}
    net: Any = build(
        ModelConfig(method=method, legacy=True, context=steps, heads=HEADS, **keys), SPACES
    ).eval()
    for weight in net.parameters():
        weight.add_(torch.randn_like(weight))
    window, logits, again = windows(40, steps, seed), torch.randn(40, 5), torch.Generator().manual_seed(seed)
    parts, query = (window.obs, window.action, window.reward, window.after), window.obs[:, -1]
    # All actions, drawn from the policy one after another: the order in which equals stand.
    order = torch.multinomial(logits.double().softmax(-1), 5, generator=again).tolist()
    past, again = net.transitions(*parts)[:, :-1], again.manual_seed(seed)
    found = legacy_plan(net, past, query, Policy(logits), how, again, left=left).tolist()
    rows = [list(zip(*(part[row, :-1].long().tolist() for part in parts))) for row in range(40)]
    wanted = [published_beam(net, *each, how, left) for each in zip(rows, query.tolist(), order)]
    assert found == wanted != [each[0] for each in order]
