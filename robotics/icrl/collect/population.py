"""Tabular PPO on all tasks at once: one-hot linear policy and value, as Stable-Baselines3 on a discrete observation.

Every update sees one episode of every stream. As policy and value are tables, PPO's loss over the whole batch needs no
sample but four sums per (state, action): how often, the positive and the negative advantages, the returns. So an
epoch costs the size of the tables, whatever the number of streams, and its gradient is exact.

Loss, clipping, advantages, Adam and gradient norm as in Stable-Baselines3 (clip .2, value weight .5, norm .5, Adam's
epsilon 1e-5, advantages scaled within the batch); no minibatches. An episode's end counts as terminal, since DICP's
environments say so. The policy sees (x, y) as DICP's does; `sees_key` adds what it holds in the key-to-door room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from robotics.icrl.collect.recording import Recording
from robotics.icrl.envs.batch import GridBatch
from robotics.icrl.envs.grid import ACTIONS, GridTask
from shared.config import Config

Floats = NDArray[np.float64]
_VALUE_WEIGHT, _MAX_NORM = 0.5, 0.5
_ADAM = (0.9, 0.999, 1e-5)


class PopulationOptions(Config):
    """Tabular PPO."""

    agents: Literal["streams", "independent"] = Field(
        "streams",
        description="streams: one agent learns from all streams of a task (DICP's data); independent: one per stream",
    )
    lr: float = Field(0.05, gt=0)
    epochs: int = Field(4, ge=1, description="passes over each batch")
    entropy: float = Field(0.01, ge=0, description="weight of the entropy in the loss")
    gamma: float = Field(0.99, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    clip: float = Field(0.2, gt=0, lt=1)
    sees_key: bool = Field(False, description="the source agent knows how far it is in the key-to-door room")


def play(
    chosen: Sequence[GridTask], streams: int, steps: int, seed: int, options: PopulationOptions
) -> Recording:
    """What the agents do while they learn. A task's draws depend on `seed` and its index alone."""
    batch = GridBatch(chosen, streams)
    recording = Recording.empty(steps, batch)
    horizon = batch.family.horizon
    generators = [np.random.default_rng([seed, task.index, 1]) for task in chosen]
    single = options.agents == "independent"
    agents = batch.shape[0] * streams if single else batch.shape[0]
    group = np.arange(agents).reshape(batch.shape[0], -1)
    per_state = 3 if options.sees_key else 1
    states = per_state * batch.family.cells
    learner = TabularPPO(agents, states, options)
    for begin in range(0, steps, horizon):
        length = min(horizon, steps - begin)
        draws = np.stack([rng.random((length, streams), np.float32) for rng in generators], axis=1)
        seen = np.empty((length, *batch.shape), np.intp)
        border = learner.borders()
        batch.reset()
        for t in range(length):
            state = batch.cells if per_state == 1 else batch.stages * batch.family.cells + batch.cells
            seen[t] = state + group * states
            actions = (draws[t][..., None] >= border.take(seen[t], axis=0)).sum(axis=-1, dtype=np.uint8)
            recording.act(begin + t, batch, actions)
        if length == horizon and begin + length < steps:
            part = slice(begin, begin + length)
            learner.learn(seen, recording.actions[part], recording.rewarded[part])
    return recording


class TabularPPO:
    """`agents` separate learners of `states` states; tables side by side in one array, so that Adam is one step."""

    def __init__(self, agents: int, states: int, options: PopulationOptions) -> None:
        self.options, self.agents, self.states = options, agents, states
        self.weights = np.zeros((agents, states * ACTIONS + ACTIONS + states + 1))
        self._first, self._second = np.zeros_like(self.weights), np.zeros_like(self.weights)
        self._updates = 0

    def _split(self, array: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Views: policy (agents, states, 5), its bias (agents, 5), value (agents, states), its bias (agents, 1)."""
        cut = self.states * ACTIONS
        policy = array[:, :cut].reshape(self.agents, self.states, ACTIONS)
        return policy, array[:, cut : cut + ACTIONS], array[:, cut + ACTIONS : -1], array[:, -1:]

    def log_probabilities(self) -> Floats:
        """(agents, states, 5)"""
        policy, bias, _, _ = self._split(self.weights)
        logits = policy + bias[:, None]
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    def borders(self) -> NDArray[np.float32]:
        """(agents · states, 4) a uniform draw's action is the number of borders it reaches."""
        reached = np.cumsum(np.exp(self.log_probabilities()), axis=-1)[..., :-1]
        return reached.reshape(-1, ACTIONS - 1).astype(np.float32)

    def learn(self, seen: NDArray[np.intp], actions: NDArray[np.uint8], rewarded: NDArray[np.bool_]) -> None:
        """Update from one episode: (horizon, tasks, streams) of agent · states + state, actions, rewards."""
        size = self.agents * self.states
        advantages, targets = self._advantages(seen, rewarded)
        samples = advantages.size / self.agents
        per_agent = np.moveaxis(advantages, 0, -1).reshape(self.agents, -1)
        centre, spread = per_agent.mean(axis=1), per_agent.std(axis=1, ddof=1)
        owner = seen // self.states
        scaled = (advantages - centre[owner]) / (spread[owner] + 1e-8)
        at = (seen * ACTIONS + actions).ravel()

        def total(weights: Floats) -> Floats:
            sums = np.bincount(at, weights.ravel(), size * ACTIONS)
            return sums.reshape(self.agents, self.states, ACTIONS) / samples

        gains, losses = total(np.maximum(scaled, 0)), total(np.minimum(scaled, 0))
        visits = (np.bincount(seen.ravel(), minlength=size) / samples).reshape(self.agents, self.states)
        goal = (np.bincount(seen.ravel(), targets.ravel(), size) / samples).reshape(self.agents, self.states)
        before = self.log_probabilities()
        for _ in range(self.options.epochs):
            self._step(self._gradient(before, gains, losses, visits, goal))

    def _advantages(self, seen: NDArray[np.intp], rewarded: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        _, _, value, bias = self._split(self.weights)
        values = (value + bias).ravel()[seen]
        advantages, after = np.empty_like(values), np.zeros(values.shape[1:])
        running = np.zeros_like(after)
        for t in range(len(values) - 1, -1, -1):
            error = rewarded[t] + self.options.gamma * after - values[t]
            running = error + self.options.gamma * self.options.gae_lambda * running
            advantages[t], after = running, values[t]
        return advantages, advantages + values

    def _gradient(
        self, before: Floats, gains: Floats, losses: Floats, visits: Floats, goal: Floats
    ) -> Floats:
        """Of clipped objective, entropy and squared error of the value, means over the batch."""
        logs = self.log_probabilities()
        now, ratio = np.exp(logs), np.exp(np.minimum(logs - before, 50.0))
        gradient = np.empty_like(self.weights)
        policy, policy_bias, value, value_bias = self._split(gradient)
        # Clipped: gains pull no further above 1 + clip, losses none below 1 − clip.
        pull = gains * (ratio <= 1 + self.options.clip) + losses * (ratio >= 1 - self.options.clip)
        pull *= ratio
        negative_entropy = (now * logs).sum(axis=-1, keepdims=True)
        policy[:] = now * pull.sum(axis=-1, keepdims=True) - pull
        policy += self.options.entropy * visits[..., None] * now * (logs - negative_entropy)
        policy_bias[:] = policy.sum(axis=1)
        _, _, weights, bias = self._split(self.weights)
        value[:] = 2 * _VALUE_WEIGHT * (visits * (weights + bias) - goal)
        value_bias[:] = value.sum(axis=1, keepdims=True)
        return gradient

    def _step(self, gradient: Floats) -> None:
        """Adam, on gradients whose norm (of each agent) is at most .5."""
        norm = np.sqrt(np.einsum("ij,ij->i", gradient, gradient))
        gradient *= np.minimum(1, _MAX_NORM / (norm + 1e-6))[:, None]
        one, two, epsilon = _ADAM
        self._updates += 1
        self._first += (1 - one) * (gradient - self._first)
        self._second += (1 - two) * (gradient**2 - self._second)
        scale = np.sqrt(self._second / (1 - two**self._updates)) + epsilon
        self.weights -= self.options.lr / (1 - one**self._updates) * self._first / scale
