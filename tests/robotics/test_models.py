"""The in-context models: published sizes and tokens, losses, causality, spaces, and the arrays they read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from robotics.icrl.models import build
from robotics.icrl.models.batch import Arrays, arrays, returns_to_go
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.incontext import InContext, Policy
from robotics.icrl.models.legacy import Legacy
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.models.trunk import count
from shared.errors import DataInvalid, UsageError

GRID = Spaces(cells=(9, 9), actions=5)
REALS = Spaces(numbers=3, action_numbers=2, action_limit=2.0)


def histories(spaces: Spaces, n: int = 4, steps: int = 30, **more: Any) -> Arrays:
    random = np.random.default_rng(0)
    if spaces.cells:
        obs, after = (random.integers(0, spaces.cells, (n, steps, 2)) for _ in range(2))
    else:
        obs, after = (random.normal(size=(n, steps, 3)) * 5 + 1 for _ in range(2))
    acts = random.integers(0, 5, (n, steps)) if spaces.actions else random.normal(size=(n, steps, 2))
    starts = np.tile(np.arange(steps) % 10 == 0, (n, 1))
    rewards = random.integers(0, 2, (n, steps))
    return arrays(obs, acts, rewards, starts, after, spaces, **more)


def network(spaces: Spaces = GRID, **keys: Any) -> Any:
    torch.manual_seed(0)
    return build(
        ModelConfig(**({"dim": 16, "depth": 2, "heads": 2, "inner": 32, "context": 30} | keys)), spaces
    ).eval()


@pytest.mark.parametrize(
    ("keys", "published"),
    [
        ({"method": "ad"}, 69_413),
        ({"method": "dicp"}, 72_312),
        ({"method": "dpt"}, 67_077),
        ({"method": "dpt", "dynamics": True}, 69_816),
        ({"method": "ad", "dim": 16, "depth": 2, "heads": 2, "inner": 64}, 9_941),
    ],
)
def test_published_sizes(keys: dict[str, Any], published: int) -> None:
    assert count(build(ModelConfig(legacy=True, context=80, **keys), GRID)) == published


# ---------------------------------------------------------------- the published tokens


def test_legacy_ad_reads_the_action_at_the_query_behind_the_transitions() -> None:
    net = network(legacy=True, context=6)
    window = histories(GRID).window(torch.tensor([0, 2]), torch.tensor([3, 7]), 6, GRID)
    hot = F.one_hot(window.action, 5)
    parts = [window.obs.float(), hot.float(), window.reward[..., None], window.after.float()]
    context = net.embed_context(torch.cat(parts, -1))[:, :5]
    query = net.embed_query_state(window.obs[:, 5, 0] * 9 + window.obs[:, 5, 1])
    hidden = net.trunk(torch.cat([context, query[:, None]], 1))
    wanted = F.cross_entropy(net.pred_action(hidden[:, -1]), window.label[:, -1])
    torch.testing.assert_close(net.losses(window)["loss"], wanted)


def test_legacy_dpt_has_the_query_first_and_a_loss_at_every_transition() -> None:
    net = network(legacy=True, context=6, method="dpt", dynamics=True)
    window = histories(GRID).window(torch.tensor([1]), torch.tensor([4]), 6, GRID)
    found = net.losses(window)
    hot = F.one_hot(window.action, 5).float()
    tokens = torch.cat([window.obs.float(), hot, window.reward[..., None], window.after.float()], -1)[:, :5]
    query = torch.cat([window.obs[:, 5].float(), torch.zeros(1, 8)], -1)
    x = net.embed_context(torch.cat([query[:, None], tokens], 1))
    hidden = net.trunk(torch.cat([x, net.embed_query_action(window.action[:, 5:6])], 1))
    label = window.label[0, 5].expand(5)
    torch.testing.assert_close(found["action"], F.cross_entropy(net.pred_action(hidden[0, 1:6]), label))
    code = window.after[:, 5, 0] * 9 + window.after[:, 5, 1]
    torch.testing.assert_close(found["after"], F.cross_entropy(net.pred_next_state(hidden[:, -1]), code))
    torch.testing.assert_close(
        found["reward"], F.cross_entropy(net.pred_reward(hidden[:, -1]), window.reward[:, 5].long())
    )


def test_legacy_codes_and_refusals() -> None:
    net = network(legacy=True)
    cells = torch.tensor([[0, 8], [8, 0], [4, 5]])
    assert net.code(cells).tolist() == [8, 72, 41]
    assert torch.equal(net.cell(net.code(cells)), cells)
    with pytest.raises(UsageError, match="a grid and discrete actions wanted"):
        network(REALS, legacy=True)
    with pytest.raises(ValueError, match="method dt has none"):
        ModelConfig(method="dt", legacy=True)
    planner = network(legacy=True, method="dicp")
    planner.fit_scaling(histories(GRID))
    with pytest.raises(UsageError, match="rewards other than 0 and 1"):
        planner.fit_scaling(histories(GRID)._replace(reward=torch.full((4, 30), 0.5)))


def test_legacy_dropout_acts_on_the_norms_input_only() -> None:
    net = network(legacy=True, dropout=0.5, attention_dropout=0.0, depth=1)
    block = net.trunk.blocks[0]
    assert block.norm1.drop.p == 0.5 and not any(
        m.p for m in block.drop_path.modules() if isinstance(m, torch.nn.Dropout)
    )


# ---------------------------------------------------------------- ours


@pytest.mark.parametrize("mixer", ["rotary", "attention", {"name": "mamba", "states": 4}])
@pytest.mark.parametrize("method", ["ad", "dpt", "dicp", "dt"])
def test_nothing_depends_on_what_comes_later(method: str, mixer: Any) -> None:
    net, data = network(method=method, mixer=mixer), histories(GRID)
    window = data.window(torch.tensor([0]), torch.tensor([0]), 20, GRID)
    other = data.window(torch.tensor([1]), torch.tensor([0]), 20, GRID)
    mixed = type(window)(
        *(torch.cat([a[:, :12], b[:, 12:]], 1) if a.ndim > 1 else a for a, b in zip(window, other))
    )
    with torch.no_grad():
        before, after = (net.act_on(net.trunk(net.tokens(w))).logits for w in (window, mixed))
    torch.testing.assert_close(before[:, :12], after[:, :12], rtol=1e-4, atol=1e-5)
    assert (before[:, 12:] - after[:, 12:]).abs().max() > 1e-4


def test_every_position_has_a_loss_and_histories_are_weighted() -> None:
    net, data = network(method="dicp"), histories(GRID)
    window = data.window(torch.tensor([0, 1]), torch.tensor([0, 5]), 20, GRID)
    hidden = net.trunk(net.tokens(window))
    each = net.act_on(hidden).loss(window.label)
    assert each.shape == (2, 20)
    torch.testing.assert_close(net.losses(window)["action"], each.mean())
    heavy = net.losses(window._replace(weight=torch.tensor([2.0, 0.0])))
    torch.testing.assert_close(heavy["action"], each[0].mean())
    alone = net.losses(data.window(torch.tensor([0]), torch.tensor([0]), 20, GRID))
    torch.testing.assert_close(heavy["loss"], alone["loss"])


def test_the_beginning_has_a_code_of_its_own() -> None:
    data = histories(GRID)
    window = data.window(torch.tensor([0, 0]), torch.tensor([0, 10]), 3, GRID)
    assert window.before_action[0, 0] == 5 and window.before_reward[0, 0] == 0
    assert window.before_action[1, 0] == data.action[0, 9] and window.before_reward[1, 0] == data.reward[0, 9]
    assert window.start[:, 0].all() and not window.start[:, 1:].any()
    net = network()
    same = window._replace(obs=window.obs[:1].expand(2, -1, -1))
    with torch.no_grad():
        first, later = net.tokens(same)[:, 0]
    assert (first - later).abs().max() > 0.1


def test_a_decision_transformer_listens_to_the_wish() -> None:
    net = network(method="dt")
    window = histories(GRID).window(torch.tensor([0]), torch.tensor([0]), 5, GRID)
    with torch.no_grad():
        low, high = (
            net.act_on(net.trunk(net.tokens(window._replace(to_go=window.to_go + w)))).logits for w in (0, 9)
        )
    assert (low - high).abs().max() > 1e-3


def test_returns_to_go_by_hand() -> None:
    rewards = np.array([[1.0, 0, 2, 1, 1]])
    starts = np.array([[True, False, False, True, False]])
    assert returns_to_go(rewards, starts).tolist() == [[3, 2, 2, 2, 1]]


def test_real_observations_and_actions() -> None:
    net, data = network(REALS, method="dicp"), histories(REALS)
    net.fit_scaling(data)
    torch.testing.assert_close(net.obs_centre, data.obs.flatten(0, 1).mean(0))
    window = data.window(torch.tensor([0, 3]), torch.tensor([0, 4]), 12, REALS)
    assert window.before_action[0, 0].isnan().all() and window.before_action[1].isfinite().all()
    found = net.losses(window)
    assert all(value.isfinite() for value in found.values()) and "accuracy" not in found
    found["loss"].backward()
    policy = net.act_on(net.trunk(net.tokens(window)))
    normal = torch.distributions.Normal(policy.mean, (policy.log_variance / 2).exp())
    torch.testing.assert_close(
        policy.loss(window.label), -normal.log_prob(window.label).sum(-1), rtol=1e-4, atol=1e-4
    )


def test_samples_follow_the_policy() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log().expand(4000, -1)
    drawn = Policy(logits).sample(torch.Generator().manual_seed(0))
    assert np.bincount(drawn.numpy()) / 4000 == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    assert Policy(logits[:2]).sample(None, greedy=True).tolist() == [0, 0]
    mean = torch.full((4000, 1), 3.0)
    drawn = Policy(None, mean, torch.full((4000, 1), np.log(4.0))).sample(torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(3, abs=0.1) and float(drawn.std()) == pytest.approx(
        2, abs=0.1
    )


def test_mixers_that_cannot_are_refused() -> None:
    with pytest.raises(UsageError, match="causal"):
        network(mixer="pool")
    with pytest.raises(UsageError, match="nearest is 'rotary'"):
        network(mixer="rotory")
    with pytest.raises(ValueError, match="keep 30 of a context of 30"):
        network(keep=30)


# ---------------------------------------------------------------- spaces and arrays


def test_spaces_of_a_store() -> None:
    box = {"kind": "box", "shape": [2], "dtype": "int32", "low": 0, "high": 8}
    assert Spaces.of(box, {"kind": "discrete", "n": 5}) == GRID
    listed = box | {"low": [0, 0], "high": [8, 4]}
    assert Spaces.of(listed, {"kind": "discrete", "n": 5}).cells == (9, 5)
    reals = {"kind": "box", "shape": [3], "dtype": "float32", "low": [-9.0] * 3, "high": [9.0] * 3}
    acts = {"kind": "box", "shape": [2], "dtype": "float32", "low": -2.0, "high": 2.0}
    assert Spaces.of(reals, acts) == REALS
    with pytest.raises(UsageError, match="observation space: found"):
        Spaces.of({"kind": "text"}, acts)
    with pytest.raises(UsageError, match="0 wanted for whole numbers"):
        Spaces.of(box | {"low": 1}, acts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rewards": np.array([[0, 1], [0, np.nan]])}, "history 1: rewards nan at step 1; finite numbers"),
        ({"rewards": np.zeros((2, 0))}, r"rewards \[2, 0\]; \(histories, steps\)"),
        ({"obs": np.zeros((2, 3, 2))}, r"obs \[2, 3, 2\]; \[2, 2, 2\] wanted"),
        (
            {"obs": np.full((2, 2, 2), 9)},
            r"history 0: obs 9 at step 0; whole numbers from 0 to below \[9, 9\]",
        ),
        (
            {"actions": np.array([[0, 1], [2, 5]])},
            "history 1: actions 5 at step 1; whole numbers from 0 to below 5",
        ),
        ({"optimal": np.array([[0, -1], [2, 4]])}, "history 0: optimal_actions -1 at step 1"),
        ({"weight": [0.0, 0.0]}, "weights; 2 of 0 or more, not all 0"),
    ],
)
def test_bad_arrays_are_named(change: dict[str, Any], said: str) -> None:
    good = {"obs": np.zeros((2, 2, 2)), "actions": np.zeros((2, 2)), "rewards": np.zeros((2, 2))}
    good |= {"starts": np.ones((2, 2), bool), "next_obs": np.zeros((2, 2, 2))}
    with pytest.raises(DataInvalid, match=said):
        arrays(**(good | change), spaces=GRID)  # type: ignore[arg-type]


@pytest.mark.parametrize("keys", [{"method": "ad"}, {"method": "dicp"}, {"method": "dt"}])
def test_a_rule_is_learned(keys: dict[str, Any]) -> None:
    """The action of each step is the first coordinate just seen."""
    rooms, random = Spaces(cells=(3, 2), actions=3), np.random.default_rng(0)
    obs = random.integers(0, (3, 2), (32, 24, 2))
    starts = np.tile(np.arange(24) % 6 == 0, (32, 1))
    seen = arrays(obs, obs[..., 0], (obs[..., 1] == 1).astype(int), starts, np.roll(obs, -1, 1), rooms)
    still = dict.fromkeys(("dropout", "embed_dropout", "attention_dropout"), 0.0)
    net = network(rooms, depth=1, context=12, **still, **keys)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(150):
        rows, first = torch.randint(32, (16,)), torch.randint(13, (16,))
        found = net.losses(seen.window(rows, first, 12, rooms))
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
    assert found["accuracy"] > 0.95


def test_build_gives_the_right_kind() -> None:
    assert isinstance(network(), InContext) and isinstance(network(legacy=True), Legacy)
