"""Collectors: they learn, their draws are their own, PPO's summed loss is PPO's loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py")

import torch

from robotics.icrl.collect.noise import NoiseOptions, schedule
from robotics.icrl.collect.population import PopulationOptions, TabularPPO
from robotics.icrl.collect.recording import histories
from robotics.icrl.collect.run import COLLECTORS, collect
from robotics.icrl.envs.families import family, tasks
from robotics.icrl.store import Histories, Store
from robotics.icrl.store_check import check
from shared.errors import UsageError
from tests.robotics.replay import assert_replays


def normalised(store: Store) -> np.ndarray[Any, Any]:
    """(tasks, episodes) mean over histories: 0 random, 1 optimal."""
    curves = []
    for task, block in store:
        assert task.r_max is not None and task.random_return is not None
        curves.append((block.returns().mean(axis=0) - task.random_return) / (task.r_max - task.random_return))
    return np.array(curves)


@pytest.mark.parametrize(
    ("algorithm", "options", "streams", "first", "last"),
    [
        ("population", {}, 100, 0.03, 0.97),
        ("q-learning", {"every": 6}, 10, 0.08, 0.9),
        ("noise-distillation", {}, 20, 0.1, 0.9),
    ],
)
def test_histories_begin_at_random_and_end_near_the_optimum(
    tmp_path: Path, algorithm: str, options: dict[str, Any], streams: int, first: float, last: float
) -> None:
    chosen = [task.index for task in tasks("darkroom", "test")[::2]]
    store = collect("darkroom", chosen, streams, 1000, 0, tmp_path / "s.h5", algorithm, options)
    curve = normalised(store)
    assert curve.shape == (4, 50) and abs(curve[:, 0].mean()) < first and curve[:, -1].mean() > last
    assert np.diff(curve.mean(axis=0).reshape(5, 10).mean(axis=1)).min() > 0
    assert not check(store.path)


def test_population_ppo_learns_every_room(tmp_path: Path) -> None:
    """All 81 tasks in seconds: within two hundredths of the optimum at the end (spec 13.9)."""
    store = collect("darkroom", range(81), 100, 1000, 0, tmp_path / "s.h5", "population")
    last = normalised(store)[:, -1]
    assert last.mean() > 0.98 and last.min() > 0.95


@pytest.mark.parametrize(("streams", "share", "learning"), [(10, 0.3, 7), (4, 0.99, 1), (1, 0.6, 1)])
def test_one_history_at_least_is_the_collectors(
    tmp_path: Path, streams: int, share: float, learning: int
) -> None:
    store = collect(
        "darkroom", [44], streams, 40, 0, tmp_path / "s.h5", "noise-distillation", random_share=share
    )
    sources = ["noise-distillation"] * learning + ["random"] * (streams - learning)
    assert store.read(44).source.tolist() == sources


def test_random_histories_take_their_share(tmp_path: Path) -> None:
    store = collect(
        "darkroom", [0, 44], 10, 100, 0, tmp_path / "s.h5", "noise-distillation", random_share=0.3
    )
    for _, block in store:
        assert block.source.tolist() == ["noise-distillation"] * 7 + ["random"] * 3
        chosen = (block.actions == block.optimal_actions)[:, 50:].mean(axis=1)
        assert chosen[:7].min() > 0.6 > chosen[7:].max()


def test_tasks_do_not_know_of_each_other(tmp_path: Path) -> None:
    """The same histories whatever else is collected beside them, and streams added later where agents are apart."""
    for name, collector in COLLECTORS.items():
        room, other = ("darkroom", 60) if name == "explorer" else ("dark-key-to-door", 900)
        whole = collect(room, [5, other, 17], 4, 110, 1, tmp_path / f"{name}-3.h5", name)
        alone = collect(room, [17], 4, 110, 1, tmp_path / f"{name}-1.h5", name)
        assert np.array_equal(whole.read(17).actions, alone.read(17).actions)
        if not collector.joint:
            collect(room, [5, other, 17], 6, 110, 1, whole.path, name)
            grown = Store(whole.path).read(17)
            assert len(grown) == 6 and np.array_equal(grown.actions[:4], alone.read(17).actions)


@pytest.mark.parametrize("name", ["darkroom-permuted", "dark-key-to-door"])
def test_recordings_become_the_histories_that_were_played(name: str) -> None:
    chosen = [family(name).task(7), family(name).task(61)]
    numbers = np.arange(3)
    recording = COLLECTORS["noise-distillation"].play(chosen, numbers, 120, 0, NoiseOptions())
    gym = pytest.importorskip("gymnasium")
    from robotics.icrl import envs

    envs.register()
    for task, block in zip(chosen, histories(chosen, recording, numbers, "x")):
        assert len(block) == 3 and block.steps == 120
        assert_replays(block, gym.make(task.family.env_id, task=task.index))
        assert block.episode[:, -1].tolist() == [2, 2, 2]


def test_gradient_from_sums_is_the_gradient_over_samples() -> None:
    """Against autograd on Stable-Baselines3's loss, sample by sample, at a policy that has left the old one's range."""
    rng, states, options = np.random.default_rng(0), 7, PopulationOptions(entropy=0.03)
    learner = TabularPPO(1, states, options)
    learner.weights[:] = rng.normal(0, 0.6, learner.weights.shape)
    old = TabularPPO(1, states, options).log_probabilities()
    state, action = rng.integers(0, states, 300), rng.integers(0, 5, 300)
    advantage, target = rng.normal(0, 1, 300), rng.normal(0, 1, 300)

    theta = torch.tensor(learner.weights[0], requires_grad=True)
    logits = theta[: states * 5].reshape(states, 5) + theta[states * 5 : states * 5 + 5]
    value = theta[states * 5 + 5 : -1] + theta[-1]
    logs = torch.log_softmax(logits, -1)
    ratio = torch.exp(logs[state, action] - torch.tensor(old[0])[state, action])
    gain = torch.tensor(advantage)
    clipped = torch.clamp(ratio, 1 - options.clip, 1 + options.clip)
    policy_loss = -torch.min(gain * ratio, gain * clipped).mean()
    entropy = -(logs.exp() * logs).sum(-1)[state].mean()
    loss = policy_loss - options.entropy * entropy + 0.5 * ((value[state] - torch.tensor(target)) ** 2).mean()
    loss.backward()

    at, count = state * 5 + action, states * 5

    def total(weights: Any) -> Any:
        return np.bincount(at, weights, count).reshape(1, states, 5) / 300

    gains, losses = total(np.maximum(advantage, 0)), total(np.minimum(advantage, 0))
    visits = np.bincount(state, minlength=states)[None] / 300
    goal = np.bincount(state, target, states)[None] / 300
    gradient = learner._gradient(old, gains, losses, visits, goal)
    assert theta.grad is not None
    np.testing.assert_allclose(gradient[0], theta.grad.numpy(), atol=1e-12)


def test_a_step_of_ppo_is_adam_with_a_clipped_norm() -> None:
    options, rng = PopulationOptions(), np.random.default_rng(0)
    learner = TabularPPO(2, 3, options)
    theta = torch.zeros(learner.weights.shape, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=options.lr, eps=1e-5)
    for scale in (0.01, 3.0, 0.2):
        gradient = rng.normal(0, scale, learner.weights.shape)
        rows = [torch.tensor(row) for row in gradient]
        theta.grad = torch.stack([row * min(1.0, 0.5 / (float(row.norm()) + 1e-6)) for row in rows])
        adam.step()
        learner._step(gradient)
    np.testing.assert_allclose(learner.weights, theta.detach().numpy(), atol=1e-12)


def test_noise_falls_from_one_to_none() -> None:
    assert schedule(5, NoiseOptions()).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert schedule(3, NoiseOptions(epsilon=0.8, epsilon_end=0.2, power=2)).tolist() == pytest.approx(
        [0.8, 0.35, 0.2]
    )


def test_progress_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robotics.icrl.collect.run._STEPS_AT_ONCE", 1)
    told: list[tuple[int, int]] = []
    collect("darkroom", [3, 4], 2, 20, 0, tmp_path / "s.h5", "random", tick=lambda *at: told.append(at))
    assert told == [(2, 4), (4, 4)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_name": "lightroom"}, "environment lightroom: unknown; one of darkroom"),
        ({"tasks": [81]}, "task 81 of darkroom: unknown; 0 to 80"),
        ({"tasks": []}, "nothing to collect"),
        ({"random_share": 1.0}, "random_share 1.0: nothing to collect"),
        (
            {"algorithm": "dqn"},
            "collector dqn: unknown; one of population, q-learning, noise-distillation, explorer, random",
        ),
        (
            {"options": {"rate": 1}},
            "collector random, rate: Extra inputs are not permitted; its options: none",
        ),
    ],
)
def test_what_cannot_be_collected_is_said_in_a_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    call: dict[str, Any] = {
        "env_name": "darkroom",
        "tasks": [0],
        "streams": 2,
        "steps": 40,
        "seed": 0,
        "algorithm": "random",
    }
    with pytest.raises(UsageError, match=message):
        collect(**(call | change), path=tmp_path / "s.h5")


def test_half_of_a_history_is_a_history(tmp_path: Path) -> None:
    store = collect("darkroom", [3], 3, 100, 0, tmp_path / "s.h5", "noise-distillation")
    whole, half = store.read(3), store.read(3).first(0.5)
    assert isinstance(half, Histories) and half.returns().shape == (3, 2)
    assert np.array_equal(half.returns(), whole.returns()[:, :2])
    assert np.array_equal(half.next_obs(), whole.next_obs()[:, :50])
