"""Rollouts: the cache changes nothing, episodes are counted right, plans find reward."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robotics.icrl.config import PlayConfig
from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.families import family, tasks
from robotics.icrl.envs.grid import MOVES
from robotics.icrl.models import build
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.incontext import Policy, World
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.pipeline import PIPELINE
from robotics.icrl.planning import Plan, plan
from robotics.icrl.play import Played, play
from robotics.icrl.rollout import _Player, rollout
from robotics.icrl.video import _strips, context_lengths
from shared.errors import UsageError
from shared.nets.zoo import zoo

GRID = Spaces(cells=(9, 9), actions=5)


def network(spaces: Spaces = GRID, **keys: Any) -> Any:
    torch.manual_seed(0)
    small = {"dim": 16, "depth": 2, "heads": 2, "inner": 32, "context": 30, "keep": 11}
    net = build(ModelConfig(**(small | keys)), spaces).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2.0)  # so that actions depend on the context
    return net


def rooms(streams: int = 3) -> GridBatch:
    return GridBatch(tasks("darkroom", "test")[:2], streams)


OFFERED = [row["name"] for row in zoo(PIPELINE.network)]


def test_the_zoo_offers_mixers_only() -> None:
    assert {"rotary", "attention", "mamba"} <= set(OFFERED) and "pool" not in OFFERED
    assert {row["kind"] for row in zoo(PIPELINE.network)} == {"mixer"}


@pytest.mark.parametrize("mixer", [*OFFERED, {"name": "mamba", "states": 4}])
def test_the_cache_equals_the_whole_context(mixer: Any) -> None:
    """Four episodes of 20 steps: the context of 30 fills, is cut to 11, and grows again."""
    net = network(mixer=mixer)
    hidden: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    real, runs = net.act_on, []
    for cached in (True, False):
        net.act_on = lambda h, kept=hidden[cached]: (kept.append(h), real(h))[1]
        runs.append(rollout(net, rooms(), 4, seed=1, cached=cached))
    assert np.array_equal(runs[0].actions, runs[1].actions)
    assert np.array_equal(runs[0].returns, runs[1].returns)
    torch.testing.assert_close(torch.stack(hidden[True]), torch.stack(hidden[False]), rtol=1e-4, atol=1e-4)
    assert len(set(runs[0].actions.ravel())) > 1


def test_returns_are_sums_of_rewards_and_seeds_are_kept() -> None:
    net = network()
    one, two, other = (rollout(net, rooms(), 3, seed=s) for s in (0, 0, 1))
    assert one.returns.shape == (6, 3) and one.actions.shape == (6, 60)
    assert np.array_equal(one.returns, one.rewards.reshape(6, 3, 20).sum(-1))
    assert np.array_equal(one.actions, two.actions) and not np.array_equal(one.actions, other.actions)
    assert one.ends[:, 19::20].all() and one.ends.sum() == 18
    assert (one.obs[:, ::20] == 4).all()


def test_greedy_copies_of_a_task_agree() -> None:
    found = rollout(network(), rooms(), 2, greedy=True)
    assert (found.actions[:3] == found.actions[0]).all()


def test_a_decision_transformer_needs_a_wish() -> None:
    net = network(method="dt")
    with pytest.raises(UsageError, match="target: absent"):
        rollout(net, rooms(), 1)
    runs = [rollout(net, rooms(), 2, target=15.0, cached=c) for c in (True, False)]
    assert np.array_equal(runs[0].actions, runs[1].actions)


@pytest.mark.parametrize("method", ["ad", "dpt", "dicp"])
def test_published_deployment(method: str) -> None:
    net = network(legacy=True, method=method, context=8, keep=0)
    found = rollout(net, rooms(), 1, plan=Plan(width=3, depth=3) if method == "dicp" else None, horizon=20)
    assert found.returns.shape == (6, 1) and found.actions.max() < 5


def test_planning_in_the_room() -> None:
    net = network(method="dicp")
    one, two = (rollout(net, rooms(), 2, seed=3, plan=Plan(width=4, depth=3), horizon=20) for _ in range(2))
    assert np.array_equal(one.actions, two.actions)
    for wrong, said in (
        ({"plan": Plan()}, "episodes' length is not known"),
        ({"plan": Plan(), "horizon": 20, "cached": False}, "branch off the cache"),
    ):
        with pytest.raises(UsageError, match=said):
            rollout(net, rooms(), 1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no world model"):
        rollout(network(), rooms(), 1, plan=Plan(), horizon=20)


LEFTWARD = [5.0, 0.0, 0.0]


class _Corridor:
    """Cells 0 … 6, actions left, right, stay; reward in cell 5 alone: a world model that is right."""

    spaces, reward_scale = Spaces(cells=(7,), actions=3), 1.0

    def __init__(self, doubt: float = 0.0) -> None:
        self.steps, self.doubt = 0, doubt
        self.trunk = SimpleNamespace(step=self._step)

    def embed(self, obs: Any, action: Any, reward: Any, start: Any, to_go: Any) -> Any:
        return obs.float()

    def _step(self, token: Any, state: Any) -> Any:
        self.steps += 1
        return token, state

    def act_on(self, hidden: Any) -> Policy:
        return Policy(torch.tensor(LEFTWARD).expand(len(hidden), -1))

    def imagine(self, hidden: Any, action: Any) -> World:
        after = (hidden[..., 0].long() + torch.tensor([-1, 1, 0])[action]).clamp(0, 6)
        reward = (after == 5).float() + self.doubt * after
        return World(reward, (torch.nn.functional.one_hot(after, 7).float(),))


def _planned(at: list[int], how: Plan, left: int, doubt: float = 0.0) -> list[int]:
    world, hidden = _Corridor(doubt), torch.tensor(at)[:, None].float()
    policy = world.act_on(hidden)
    return plan(world, hidden, (hidden,), policy, how, torch.Generator().manual_seed(0), left=left).tolist()


def test_a_plan_looks_as_far_as_it_may() -> None:
    deep = Plan(width=27, depth=3)
    assert _planned([2, 3, 4, 5, 6], deep, 20) == [1, 1, 1, 2, 0]
    assert _planned([2, 4], deep, 1)[1] == 1
    # out of reach all are equal, and the policy decides: mostly its favourite
    assert np.mean(np.array(_planned([0] * 200, deep, 20)) == 0) > 0.95
    assert np.mean(np.array(_planned([2] * 200, deep, 2)) == 0) > 0.95
    # also where what is predicted for no reward is not quite 0
    assert np.mean(np.array(_planned([0] * 200, deep, 20, doubt=0.01)) == 0) > 0.95


def test_where_no_plan_is_better_the_first_action_is_a_draw_from_the_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "LEFTWARD", [0.5, 1.0, 0.0])
    share = torch.tensor(LEFTWARD).softmax(0).numpy()
    found = np.bincount(_planned([0] * 4000, Plan(width=3, depth=4), 20), minlength=3) / 4000
    assert found == pytest.approx(share, abs=0.03)


def test_equal_beams_do_not_all_begin_alike() -> None:
    """The reward is three steps away, where the beam is too narrow for every sequence; the policy knows no way."""
    found = [_planned([2] * 100, Plan(width=width, depth=3), 20).count(1) / 100 for width in (1, 9)]
    assert found[0] < 0.2 and found[1] > 0.4


def test_a_narrow_beam_and_too_wide_a_one() -> None:
    assert _planned([4, 5], Plan(width=1, depth=4), 20) == [1, 2]
    with pytest.warns(UserWarning, match="3\\^2 sequences only"):
        assert _planned([4], Plan(width=10, depth=2), 20) == [1]


def test_real_actions_are_sampled_and_kept_in_bounds() -> None:
    spaces = Spaces(numbers=3, action_numbers=2, action_limit=0.5)

    class Points:
        shape = (2, 2)

        def __init__(self) -> None:
            self.sent: list[Any] = []

        def reset(self) -> Any:
            return np.zeros((2, 2, 3), np.float32)

        def step(self, actions: Any) -> Any:
            self.sent.append(actions)
            over = np.full((2, 2), len(self.sent) % 5 == 0)
            obs, no = np.ones((2, 2, 3), np.float32), np.zeros((2, 2), bool)
            return SimpleNamespace(
                obs=obs,
                rewards=actions.sum(-1),
                terminations=over,
                truncations=no,
                final_obs=obs if over.any() else None,
            )

    for how in (None, Plan(samples=4)):
        envs = Points()
        found = rollout(network(spaces, method="dicp"), envs, 2, plan=how, horizon=5)
        sent = np.stack(envs.sent)
        assert sent.shape == (10, 2, 2, 2) and np.abs(sent).max() <= 0.5
        assert found.returns == pytest.approx(sent.sum(-1).reshape(2, 5, 4).sum(1).T, abs=1e-4)


def test_films_show_the_context_that_the_network_has(monkeypatch: pytest.MonkeyPatch) -> None:
    net, seen = network(context=30, keep=12), list[int]()
    act = _Player.act

    def spy(self: Any, *args: Any, **more: Any) -> Any:
        found = act(self, *args, **more)
        seen.append(len(self.tokens))
        return found

    monkeypatch.setattr(_Player, "act", spy)
    rollout(net, rooms(), 4)
    assert seen == context_lengths(80, net.config) and max(seen) == 30 and seen[30] == 13


def test_a_strip_has_a_column_a_step_and_ends_now() -> None:
    chosen = tasks("darkroom", "test")[:2]
    net = network(context=30)
    played = Played(chosen, 1, rollout(net, GridBatch(chosen, 1), 3))
    strips = list(_strips(played, net.config, 1, [0, 2]))
    assert len(strips) == 40 and {strip.shape for strip in strips} == {(1, 30, 3)}
    assert (strips[0][0, :-1] == 250).all() and (strips[0][0, -1] == 70).all()
    rewards = played.episode("rewards", 1, 0, 2)
    last = strips[-1][0, -19:] == (220, 120, 0)
    assert (last.all(-1) == (rewards[1:] > 0)).all()


@pytest.mark.parametrize("legacy", [False, True])
def test_plans_know_how_much_of_the_episode_is_left(legacy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published models plan only with a full context: here from the 8th step on."""
    lefts: list[int] = []

    def spy(*args: Any, left: int) -> torch.Tensor:
        lefts.append(left)
        assert not legacy or args[1].shape[1] == 7
        return torch.full((6,), len(lefts) % 5)

    monkeypatch.setattr("robotics.icrl.rollout.legacy_plan" if legacy else "robotics.icrl.rollout.plan", spy)
    net = network(method="dicp", legacy=legacy, context=8, keep=0)
    rollout(net, rooms(), 2, plan=Plan(), horizon=20)
    assert lefts == [*range(20, 0, -1), *range(20, 0, -1)][7 if legacy else 0 :]


def test_published_deployment_sees_where_an_episode_ended_not_where_the_next_begins() -> None:
    net, after = network(legacy=True, context=8, keep=0), []
    real = net.transitions
    net.transitions = lambda *args: (after.append(args[3].numpy()), real(*args))[1]
    found = rollout(net, rooms(), 2)
    moved = (found.obs + MOVES[found.actions]).clip(0, 8)
    assert np.array_equal(np.stack(after, 1), moved) and (moved[:, 19] != 4).any()


def test_a_decision_transformer_is_told_what_is_left_of_the_best_return() -> None:
    net, told = network(method="dt"), []
    chosen = [family("darkroom").find({"goal": goal}) for goal in ((4, 4), (4, 6), (7, 3))]
    real = net.embed
    net.embed = lambda *args: (told.append(args[4].numpy()), real(*args))[1]
    found = play(net, chosen, 2, 30, 0, PlayConfig())
    rewards = found.rollout.rewards.reshape(3, 30, 2, 20)
    gained = rewards.cumsum(-1) - rewards
    best = np.array([task.optimum for task in chosen])[:, None, None, None]
    assert np.array_equal(np.stack(told, 1).reshape(gained.shape), best - gained)
    assert len(set(best.ravel())) == 3 and gained.any()


@pytest.mark.parametrize(
    ("method", "wish", "planned"),
    [
        ("dicp", "auto", True),
        ("dicp", "never", False),
        ("ad", "auto", False),
        ("dpt", "auto", False),
        ("ad", "always", True),
    ],
)
def test_dicp_plans_unless_told_otherwise(
    method: str, wish: Any, planned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Plan] = []
    monkeypatch.setattr(
        "robotics.icrl.rollout.plan",
        lambda *args, **_: (made.append(args[4]), torch.zeros(1, dtype=torch.long))[1],
    )
    how, net = PlayConfig(plan=wish, beam=Plan(width=2, depth=3)), network(method=method, dynamics=True)
    play(net, tasks("darkroom", "test")[:1], 1, 1, 0, how)
    assert made == [how.beam] * 20 * planned
