"""Playing tasks with frozen weights: what a model learns, it learns from its own context.

The context is the last steps of the same task, all episodes in a row. When it is full, the latest `kept` of them
remain and it grows again: within such a stretch every earlier step keeps its place, so that keys and values (or a
mixer's state) of earlier steps are made once. `cached=False` computes the whole context anew in every step instead;
both give the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robotics.icrl.envs.base import Environments
from robotics.icrl.models.incontext import InContext, Policy
from robotics.icrl.models.legacy import Legacy
from robotics.icrl.models.trunk import State
from robotics.icrl.planning import Plan, legacy_plan, plan
from shared.errors import UsageError


@dataclass(frozen=True)
class Rollout:
    """B copies, T steps, K episodes; `returns` (B, K), the others (B, T, …). Copies whose episodes are shorter wait
    until all have K; what stands there then is in no return."""

    returns: NDArray[np.float64]
    obs: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    ends: NDArray[np.bool_]

    def keep(self, rows: NDArray[np.int64]) -> Rollout:
        """These copies only."""
        return Rollout(*(each[rows] for each in vars(self).values()))


class _Player:
    """Chooses actions for B copies, holding their contexts."""

    def __init__(self, network: InContext, *, cached: bool, target: Tensor | None, plan: Plan | None) -> None:
        self.network, self.cached, self.wish, self.plan = network, cached, target, plan
        self.context, self.kept = network.config.context, network.config.kept
        self.tokens: list[Tensor] = []
        self.state: State = None
        self.to_go = target

    def act(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        start: Tensor,
        random: torch.Generator,
        greedy: bool,
        left: int,
    ) -> Tensor:
        """Observation now, action and reward before it. `left`: steps to the episode's end, this one included."""
        net = self.network
        if self.wish is not None and self.to_go is not None:
            self.to_go = torch.where(start, self.wish, self.to_go - reward)
        token = net.embed(obs, action, reward, start, self.to_go)
        if len(self.tokens) == self.context:
            self.tokens = self.tokens[-self.kept :] if self.kept else []
            self.state = None
        if self.cached:
            if self.state is None:
                self.state = (
                    net.trunk.prefill(torch.stack(self.tokens, 1))
                    if self.tokens
                    else net.trunk.init_state(len(token))
                )
            hidden, self.state = net.trunk.step(token, self.state)
        else:
            hidden = net.trunk(torch.stack([*self.tokens, token], 1))[:, -1]
        self.tokens.append(token)
        policy = net.act_on(hidden)
        if self.plan is None:
            return policy.sample(random, greedy)
        return plan(net, hidden, self.state, policy, self.plan, None if greedy else random, left=left)


class _LegacyPlayer:
    """The published deployment: the last n − 1 transitions and the query, computed anew in every step."""

    def __init__(self, network: Legacy, plan: Plan | None) -> None:
        self.network, self.plan = network, plan
        self.past: Tensor | None = None

    def act(self, obs: Tensor, random: torch.Generator, greedy: bool, left: int) -> Tensor:
        net = self.network
        context = self.past if self.past is not None else net.query(obs)[:, None][:, :0]
        hidden = net.trunk(net.sequence(context, net.query(obs)))[:, -1]
        policy = Policy(net.pred_action(hidden).float())
        full = context.shape[1] == net.config.context - 1
        if self.plan is None or not full:
            return policy.sample(random, greedy)
        return legacy_plan(net, context, obs, policy, self.plan, None if greedy else random, left=left)

    def saw(self, obs: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> None:
        one = self.network.transitions(obs, action, reward, after)[:, None]
        past = one if self.past is None else torch.cat([self.past, one], 1)
        self.past = past[:, -(self.network.config.context - 1) :]


@torch.no_grad()
def rollout(
    network: InContext | Legacy,
    environments: Environments,
    episodes: int,
    *,
    seed: int = 0,
    greedy: bool = False,
    cached: bool = True,
    target: Any = None,
    plan: Plan | None = None,
    horizon: int | None = None,
) -> Rollout:
    """`episodes` of every copy, one after another in one context. `target`: dt's wished-for return, a number or one a
    copy. `plan` needs a world model and `horizon`, the episodes' length. Raises `UsageError`."""
    _check(network, target, plan, horizon, cached)
    network.eval()
    return _Run(network, environments, episodes, seed, greedy, cached, target, plan, horizon or 0).play()


def _check(
    network: InContext | Legacy, target: Any, plan: Plan | None, horizon: int | None, cached: bool
) -> None:
    if plan is not None and not network.config.world:
        raise UsageError("plan: the model has no world model; method dicp or dynamics: true wanted")
    if plan is not None and not cached and isinstance(network, InContext):
        raise UsageError("plan: its beams branch off the cache; cached wanted")
    if plan is not None and not horizon:
        raise UsageError("plan: the episodes' length is not known; give horizon")
    if network.config.method == "dt" and target is None:
        raise UsageError(
            "target: absent; method dt wants the return to aim at, such as the best possible one"
        )


class _Run:
    def __init__(
        self,
        network: Any,
        environments: Any,
        episodes: int,
        seed: int,
        greedy: bool,
        cached: bool,
        target: Any,
        plan: Plan | None,
        horizon: int,
    ) -> None:
        self.network, self.environments, self.episodes, self.greedy = network, environments, episodes, greedy
        self.horizon, self.random = horizon, torch.Generator().manual_seed(seed)
        self.device = next(network.parameters()).device
        self.batch = int(np.prod(environments.shape))
        self.legacy = isinstance(network, Legacy)
        wish = None
        if network.config.method == "dt":
            wish = torch.as_tensor(target, dtype=torch.float32, device=self.device).expand(self.batch)
        self.player: Any = (
            _LegacyPlayer(network, plan)
            if self.legacy
            else _Player(network, cached=cached, target=wish, plan=plan)
        )

    def _tensor(self, values: Any) -> Tensor:
        array = np.asarray(values)
        array = array.reshape(self.batch, *array.shape[len(self.environments.shape) :])
        if array.dtype.kind in "iu":
            array = array.astype(np.int64)
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _first_action(self) -> Tensor:
        spaces = self.network.spaces
        if spaces.actions:
            return torch.full((self.batch,), spaces.actions, device=self.device)
        return torch.full((self.batch, spaces.action_numbers), torch.nan, device=self.device)

    def _playing(self, number: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(B,) copies with episodes to play, `number` done; where theirs end apart, a plan looks as far as any has."""
        broken = list(getattr(self.environments, "broken", {}))
        task = np.arange(self.batch) // (self.batch // self.environments.shape[0])
        return (number < self.episodes) & ~np.isin(task, broken)

    def play(self) -> Rollout:
        spaces, shape = self.network.spaces, tuple(self.environments.shape)
        self.environments.episodes = self.episodes
        obs = self._tensor(self.environments.reset())
        action, reward = self._first_action(), torch.zeros(self.batch, device=self.device)
        start = torch.ones(self.batch, dtype=torch.bool, device=self.device)
        number, place = np.zeros(self.batch, np.int64), np.zeros(self.batch, np.int64)
        returns, logs = np.zeros((self.batch, self.episodes)), _Logs()
        while number.min() < self.episodes:
            left = max(self.horizon - int(place[self._playing(number)].min(initial=self.horizon)), 1)
            if self.legacy:
                action = self.player.act(obs, self.random, self.greedy, left)
            else:
                action = self.player.act(obs, action, reward, start, self.random, self.greedy, left)
            if not spaces.actions:
                action = action.clamp(-spaces.action_limit, spaces.action_limit)
            step = self.environments.step(action.cpu().numpy().reshape(*shape, *action.shape[1:]))
            seen, gained = self._tensor(step.obs), np.asarray(step.rewards, np.float32).reshape(-1)
            ended = (np.asarray(step.terminations) | np.asarray(step.truncations)).reshape(-1)
            counted = number < self.episodes
            returns[counted, number[counted]] += gained[counted]
            logs.add(obs, action, gained, ended)
            number, place = number + ended, np.where(ended, 0, place + 1)
            reward, start = torch.from_numpy(gained).to(self.device), torch.from_numpy(ended).to(self.device)
            if self.legacy:
                after = seen
                if step.final_obs is not None:
                    after = torch.where(start[:, None], self._tensor(step.final_obs), seen)
                self.player.saw(obs, action, reward, after)
            obs = seen
        return Rollout(returns, *logs.arrays())


class _Logs:
    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def add(self, obs: Tensor, action: Tensor, reward: Any, ended: Any) -> None:
        self.rows.append((obs.cpu().numpy(), action.cpu().numpy(), reward, ended))

    def arrays(self) -> tuple[Any, ...]:
        return tuple(np.stack(each, 1) for each in zip(*self.rows))
