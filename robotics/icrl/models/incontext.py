"""The model of all methods in the layout of ours [R]: one token a step, a loss at every position.

    token t = obs s_t + action a_{t−1} + reward r_{t−1} + whether an episode starts (+ return to go: dt)
    policy  π(a_t | tokens ≤ t)         ad, dicp, dt: the action taken; dpt: the best action
    world   r_t, s_{t+1} | tokens ≤ t, a_t          dicp, or any with `dynamics`

The published layouts put s, a, r, s' into one token and train a single action a window; here a window of L steps has L
losses, the first of them from an empty context, as at a rollout's start. Coordinates have an embedding each, so that
cells that no training task rewards are not unknown codes. Whether anything came before is told by a code of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robotics.icrl.models.batch import Arrays, Window
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.models.trunk import Trunk


class Policy(NamedTuple):
    """Discrete: logits (…, actions). Reals: mean (…, A) and logarithm of the variance (…, A)."""

    logits: Tensor | None
    mean: Tensor | None = None
    log_variance: Tensor | None = None

    def loss(self, action: Tensor) -> Tensor:
        """(…) − ln π(a): cross-entropy, or the Gaussian's whole negative log-likelihood."""
        if self.logits is not None:
            return F.cross_entropy(self.logits.flatten(0, -2), action.flatten(), reduction="none").view(
                action.shape
            )
        assert self.mean is not None and self.log_variance is not None
        variance = self.log_variance.exp()
        return F.gaussian_nll_loss(self.mean, action, variance, full=True, reduction="none").sum(-1)

    def sample(self, generator: torch.Generator | None, greedy: bool = False) -> Tensor:
        """An action each, drawn on the CPU so that a seed means the same everywhere; or the likeliest."""
        if self.logits is not None:
            if greedy:
                return self.logits.argmax(-1)
            share = self.logits.double().softmax(-1).cpu()
            return torch.multinomial(share, 1, generator=generator)[:, 0].to(self.logits.device)
        assert self.mean is not None and self.log_variance is not None
        if greedy:
            return self.mean
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + noise * (self.log_variance / 2).exp()


class World(NamedTuple):
    """Predictions after an action: expected reward (…); of a grid each coordinate's logits, else the reals (…, O)."""

    reward: Tensor
    logits: tuple[Tensor, ...]
    reals: Tensor | None = None

    def observation(self) -> Tensor:
        """(…, O) the likeliest."""
        return (
            torch.stack([each.argmax(-1) for each in self.logits], -1) if self.reals is None else self.reals
        )


class Context(NamedTuple):
    """What a model has seen of B copies up to L steps, fields as `Window`'s; `to_go` for dt alone. `action`: what the
    world model is asked about, where there is one."""

    obs: Tensor
    before_action: Tensor
    before_reward: Tensor
    start: Tensor
    to_go: Tensor | None
    action: Tensor | None

    @classmethod
    def example(cls, config: ModelConfig, spaces: Spaces, batch: int = 3) -> Context:
        """Random ones as long as the context."""
        draw, shape = torch.Generator().manual_seed(0), (batch, config.context)

        def whole(top: int) -> Tensor:
            return torch.randint(top, shape, generator=draw)

        def reals(*width: int) -> Tensor:
            return torch.randn(*shape, *width, generator=draw)

        obs = torch.stack([whole(n) for n in spaces.cells], -1) if spaces.cells else reals(spaces.numbers)
        action = whole(spaces.actions) if spaces.actions else reals(spaces.action_numbers)
        before = action.roll(1, 1)
        before[:, 0] = spaces.actions or torch.nan
        start = torch.arange(config.context).expand(shape) % 20 == 0
        to_go = reals() if config.method == "dt" else None
        return cls(obs, before, reals(), start, to_go, action if config.world else None)


class Steps(NamedTuple):
    """At each step, the ones before it known: of discrete actions (B, L, actions) logits, of reals (B, L, A) means and
    logarithms of variances. After `Context.action`, where given, the reward (B, L) and the observation: reals
    (B, L, O), or its coordinates' logits side by side (B, L, values)."""

    logits: Tensor | None
    mean: Tensor | None
    log_variance: Tensor | None
    reward: Tensor | None = None
    observation: Tensor | None = None


class InContext(nn.Module):
    """See the module. `spaces` and `config` say everything about its shape."""

    obs_centre: Tensor
    obs_scale: Tensor
    reward_scale: Tensor

    def __init__(self, config: ModelConfig, spaces: Spaces) -> None:
        super().__init__()
        self.config, self.spaces = config, spaces
        dim = config.dim
        if spaces.cells:
            self.see = nn.ModuleList(nn.Embedding(n, dim) for n in spaces.cells)
        else:
            self.see = nn.ModuleList([nn.Linear(spaces.numbers, dim)])
        acts = spaces.actions or spaces.action_numbers
        self.act = nn.Embedding(acts + 1, dim) if spaces.actions else nn.Linear(acts, dim, bias=False)
        self.gain = nn.Linear(1, dim, bias=False)
        self.mark = nn.Embedding(3, dim)  # inside an episode, at its start, at the very beginning
        self.to_go = nn.Linear(1, dim, bias=False) if config.method == "dt" else None
        self.drop = nn.Dropout(config.embed_dropout)
        self.trunk = Trunk(config)
        self.policy = nn.Linear(dim, acts if spaces.actions else 2 * acts)
        if config.world:
            self.act_query = nn.Embedding(acts, dim) if spaces.actions else nn.Linear(acts, dim)
            self.world_hidden = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU())
            self.world_reward = nn.Linear(2 * dim, 1)
            self.world_after = nn.Linear(2 * dim, sum(spaces.cells) or spaces.numbers)
        self.register_buffer("obs_centre", torch.zeros(spaces.numbers))
        self.register_buffer("obs_scale", torch.ones(spaces.numbers))
        self.register_buffer("reward_scale", torch.ones(()))

    @torch.no_grad()
    def fit_scaling(self, arrays: Arrays) -> None:
        """Mean and deviation of real observations, the largest size of a reward: of the training histories. A spread
        of 0 counts as 1."""
        largest = arrays.reward.abs().max()
        self.reward_scale.copy_(largest.where(largest > 0, torch.ones_like(largest)))
        if self.spaces.numbers:
            flat = arrays.obs.flatten(0, 1)
            spread = flat.std(0, correction=0)
            self.obs_centre.copy_(flat.mean(0))
            self.obs_scale.copy_(spread.where(spread > 0, torch.ones_like(spread)))

    # ------------------------------------------------------------ tokens

    def embed(
        self, obs: Tensor, before_action: Tensor, before_reward: Tensor, start: Tensor, to_go: Tensor | None
    ) -> Tensor:
        """(…, O), (…[, A]), (…), (…), (…) → (…, d)."""
        if self.spaces.cells:
            seen = [table(obs[..., i]) for i, table in enumerate(self.see)]
        else:
            seen = [self.see[0]((obs - self.obs_centre) / self.obs_scale)]
        if self.spaces.actions:
            none, acted = before_action == self.spaces.actions, before_action
        else:
            none = before_action[..., 0].isnan()
            acted = before_action.nan_to_num() / self.spaces.action_limit
        token = (
            torch.stack(seen).sum(0)
            + self.act(acted)
            + self.gain((before_reward / self.reward_scale)[..., None])
        )
        token = token + self.mark(start.long() + (start & none).long())
        if self.to_go is not None and to_go is not None:
            token = token + self.to_go((to_go / self.reward_scale)[..., None])
        return self.drop(token)  # type: ignore[no-any-return]

    def tokens(self, window: Window) -> Tensor:
        return self.embed(window.obs, window.before_action, window.before_reward, window.start, window.to_go)

    # ------------------------------------------------------------ what comes out

    def forward(self, context: Context) -> Steps:
        """Everything at once, without a state: what is exported. A step's answer does not change with what follows."""
        hidden = self.trunk(self.embed(*context[:5]))
        policy = self.act_on(hidden)
        if context.action is None:
            return Steps(*policy)
        world = self.imagine(hidden, context.action)
        return Steps(
            *policy, world.reward, torch.cat(world.logits, -1) if world.reals is None else world.reals
        )

    def act_on(self, hidden: Tensor) -> Policy:
        """(…, d) → the policy there."""
        out = self.policy(hidden)
        if self.spaces.actions:
            return Policy(out.float())
        mean, spread = out.float().chunk(2, -1)
        limit = self.spaces.action_limit
        return Policy(None, mean * limit, spread.clamp(-10, 4) + 2 * torch.tensor(limit).log().to(spread))

    def imagine(self, hidden: Tensor, action: Tensor) -> World:
        """(…, d) and actions (…[, A]) → what follows; rewards in their own unit."""
        query = action if self.spaces.actions else action / self.spaces.action_limit
        deep = self.world_hidden(hidden + self.act_query(query))
        reward = self.world_reward(deep)[..., 0].float() * self.reward_scale
        after = self.world_after(deep).float()
        if self.spaces.cells:
            return World(reward, after.split(list(self.spaces.cells), -1))
        return World(reward, (), after * self.obs_scale + self.obs_centre)

    def losses(self, window: Window) -> Mapping[str, Tensor]:
        """`loss` and its parts, each a mean over all positions, histories weighted; `accuracy` for discrete actions."""
        hidden = self.trunk(self.tokens(window))
        policy, weight = self.act_on(hidden), window.weight[:, None]
        found = {"action": (policy.loss(window.label) * weight).mean()}
        total = found["action"]
        if policy.logits is not None:
            found["accuracy"] = (policy.logits.argmax(-1) == window.label).float().mean()
        if self.config.world:
            world = self.imagine(hidden, window.action)
            miss = (world.reward - window.reward) / self.reward_scale
            found["reward"] = (miss.square() * weight).mean()
            found["after"] = (self._surprise(world, window.after) * weight).mean()
            total = total + self.config.dynamics_strength * (found["reward"] + found["after"])
        return {"loss": total, **found}

    def _surprise(self, world: World, after: Tensor) -> Tensor:
        """(B, L): cross-entropy summed over coordinates, or mean square over reals in units of their spread."""
        if world.reals is not None:
            return ((world.reals - after) / self.obs_scale).square().mean(-1)
        parts = [
            F.cross_entropy(logits.flatten(0, -2), after[..., i].flatten(), reduction="none")
            for i, logits in enumerate(world.logits)
        ]
        return torch.stack(parts).sum(0).view(after.shape[:-1])
