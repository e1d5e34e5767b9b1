"""Planning with the model's own world model (DICP, arXiv 2502.19009): a beam over actions, best predicted reward first.

Every beam is an imagined continuation of the context: the world model says reward and next observation of each action,
the `width` beams with the highest sum go on, to the episode's end or `depth` steps, and the best beam's first action is
played. The policy decides between equals. In `legacy_plan`, as published, by the order of the first actions alone, so
that all beams soon begin with the same one where no reward is in sight. In `plan` by the keys of stochastic beam search
(Kool et al. 2019, arXiv 1903.06059): equals that go on are sequences drawn from the policy without replacement, and the
first action is a draw from the policy where no plan is better than another.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from robotics.icrl.models.config import Plan
from robotics.icrl.models.trunk import choose


@torch.no_grad()
def plan(
    network: Any,
    hidden: Tensor,
    state: Any,
    policy: Any,
    how: Plan,
    random: torch.Generator | None,
    *,
    left: int,
) -> Tensor:
    """An action for each of B contexts: `hidden` (B, d) at their last token, `state` after it, `left` steps of the
    episode (one number for all: episodes in step with each other). Without `random` equals go by their likelihood."""
    if not network.spaces.actions:
        return _best_sample(network, hidden, policy, how, random)
    count, acts = len(hidden), network.spaces.actions
    depth, width = min(how.depth, left), _width(how, acts, min(how.depth, left))
    every = torch.arange(acts, device=hidden.device)
    share = policy.logits.double().log_softmax(-1)  # (B, A) ln π of the sequences so far
    key = share + _gumbel(share, random)
    world = network.imagine(hidden[:, None].expand(-1, acts, -1), every.expand(count, -1))
    reward = total = _gain(network, world)
    seen, first = world.observation(), every.expand(count, -1)
    action, beams = first, torch.arange(count, device=every.device)[:, None].expand(-1, acts)
    for _ in range(1, depth):
        at = _best(total, width, key)[1]
        total, key, share, first, beams, action, reward = (
            each.gather(1, at) for each in (total, key, share, first, beams, action, reward)
        )
        seen = seen.gather(1, at[..., None].expand(-1, -1, seen.shape[-1]))
        wide, calm = at.shape[1], torch.zeros(at.numel(), dtype=torch.bool, device=at.device)
        token = network.embed(seen.flatten(0, 1), action.flatten(), reward.flatten(), calm, None)
        # `beams`: whose state each beam goes on from.
        deep, state = network.trunk.step(token, choose(state, beams.flatten()))
        share = share[..., None] + network.act_on(deep).logits.double().log_softmax(-1).view(
            count, wide, acts
        )
        key = _below(key, share + _gumbel(share, random)).flatten(1)
        action, share = every.repeat(wide).expand(count, -1), share.flatten(1)  # (B, wide · A)
        world = network.imagine(deep.view(count, wide, -1).repeat_interleave(acts, 1), action)
        reward, seen = _gain(network, world), world.observation()
        total, first = total.repeat_interleave(acts, 1) + reward, first.repeat_interleave(acts, 1)
        beams = torch.arange(count * wide, device=at.device).view(count, wide).repeat_interleave(acts, 1)
    return first.gather(1, _best(total, 1, key)[1])[:, 0]


def _gumbel(like: Tensor, random: torch.Generator | None) -> Tensor:
    """Drawn on the CPU, so that a seed means the same everywhere; 0 without `random`."""
    if random is None:
        return torch.zeros_like(like)
    return -torch.empty(like.shape, dtype=torch.float64).exponential_(generator=random).log().to(like.device)


def _below(parent: Tensor, key: Tensor) -> Tensor:
    """(B, W) keys of beams and (B, W, A) perturbed ln π of their children → the children's keys, the largest of which
    is the parent's (Kool et al., appendix B.3)."""
    top = key.max(-1, keepdim=True).values
    v = parent[..., None] - key + torch.log1p(-(key - top).exp())
    return parent[..., None] - v.clamp(min=0) - torch.log1p((-v.abs()).exp())


@torch.no_grad()
def legacy_plan(
    network: Any,
    context: Tensor,
    obs: Tensor,
    policy: Any,
    how: Plan,
    random: torch.Generator | None,
    *,
    left: int,
) -> Tensor:
    """The same with the published tokens: `context` (B, n − 1, d), the query's observation (B, O). Rewards and next
    states are the likeliest class; the window slides over the imagined steps."""
    count, acts = len(obs), network.spaces.actions
    first = _order(policy.logits, random)
    depth, width = min(how.depth, left), _width(how, acts, min(how.depth, left))
    query = obs[:, None]  # (B, beams, O)
    past = context[:, None]  # (B, beams, n − 1, d)
    tried, total = first, torch.zeros(count, 1, dtype=torch.long, device=obs.device)
    for level in range(depth):
        wide = query.shape[1]
        if level:
            tried = torch.arange(acts, device=obs.device).repeat(wide)[None].expand(count, -1)
            first = first.repeat_interleave(acts, 1)
        past, query = past.repeat_interleave(acts, 1), query.repeat_interleave(acts, 1)
        flat = network.sequence(past.flatten(0, 1), network.query(query.flatten(0, 1)))
        asked = network.embed_query_action(tried.flatten())[:, None]
        hidden = network.trunk(torch.cat([flat, asked], 1))[:, -1].view(count, wide * acts, -1)
        reward = network.pred_reward(hidden).argmax(-1)
        after = network.cell(network.pred_next_state(hidden).argmax(-1))
        total, at = _best(total.repeat_interleave(acts, 1) + reward, width)
        first, tried, reward = (each.gather(1, at) for each in (first, tried, reward))
        query, after = (
            each.gather(1, at[..., None].expand(-1, -1, each.shape[-1])) for each in (query, after)
        )
        past = past.gather(1, at[..., None, None].expand(-1, -1, *past.shape[2:]))
        past = torch.cat([past[:, :, 1:], network.transitions(query, tried, reward, after)[:, :, None]], 2)
        query = after
    return first[:, 0]


def _gain(network: Any, world: Any) -> Tensor:
    """Predicted rewards; of grids the nearest multiple of the largest one, as the published likeliest class: sums of
    near zeros would differ by chance, and never leave the choice to the policy."""
    if not network.spaces.cells:
        return world.reward  # type: ignore[no-any-return]
    return (world.reward / network.reward_scale).round() * network.reward_scale  # type: ignore[no-any-return]


def _order(logits: Tensor, random: torch.Generator | None) -> Tensor:
    """(B, A) all actions, in an order drawn from the policy without replacement; without `random` by likelihood."""
    if random is None:
        return logits.sort(dim=-1, descending=True, stable=True).indices
    share = logits.double().softmax(-1).clamp(min=1e-12).cpu()
    return torch.multinomial(share, share.shape[1], generator=random).to(logits.device)


def _best(total: Tensor, width: int, key: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Highest first, equals by `key` or in their order: values and places (B, at most `width`)."""
    order = None if key is None else key.sort(dim=-1, descending=True).indices
    values, at = (total if order is None else total.gather(1, order)).sort(
        stable=True, dim=-1, descending=True
    )
    return values[:, :width], (at if order is None else order.gather(1, at))[:, :width]


def _width(how: Plan, acts: int, depth: int) -> int:
    """No more beams than there are sequences of actions."""
    if how.width > acts**how.depth:
        warnings.warn(
            f"plan.width {how.width}: {acts}^{how.depth} sequences only; that many are kept", stacklevel=3
        )
    return min(how.width, acts**depth)


def _best_sample(
    network: Any, hidden: Tensor, policy: Any, how: Plan, random: torch.Generator | None
) -> Tensor:
    draws = 0 if random is None else how.samples - 1
    tried = [policy.mean, *(policy.sample(random) for _ in range(draws))]
    limit = network.spaces.action_limit
    actions = torch.stack(tried, 1).clamp(-limit, limit)  # (B, samples, A)
    world = network.imagine(hidden[:, None].expand(-1, actions.shape[1], -1), actions)
    best = world.reward.argmax(1)
    return actions[torch.arange(len(actions), device=actions.device), best]
