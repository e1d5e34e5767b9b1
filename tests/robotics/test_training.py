"""Training on arrays: it learns, the same seed gives the same weights, and what cannot be is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from robotics.icrl.models.batch import Arrays, arrays
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.training import FitConfig, train
from shared.errors import DataInvalid, Diverged

SPACES = Spaces(cells=(3, 2), actions=3)
SMALL: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 2, "inner": 32, "context": 12}
SMALL |= {"dropout": 0.0, "embed_dropout": 0.0, "attention_dropout": 0.0}


def repeaters(n: int = 32, steps: int = 24, seed: int = 0) -> Arrays:
    """Histories in which the action of each step is the first coordinate just seen."""
    random = np.random.default_rng(seed)
    obs = random.integers(0, (3, 2), (n, steps, 2))
    starts = np.tile(np.arange(steps) % 6 == 0, (n, 1))
    after = np.roll(obs, -1, 1)
    return arrays(obs, obs[..., 0], (obs[..., 1] == 1).astype(int), starts, after, SPACES)


def test_it_learns() -> None:
    said: list[str] = []
    fit = FitConfig(steps=200, batch=16, lr=1e-2)
    found = train(repeaters(), SPACES, ModelConfig(**SMALL), fit, say=said.append)
    assert found.steps == 200 and found.curve[-1]["step"] == 200 and said[-1].startswith("step 200: loss")
    assert found.curve[-1]["accuracy"] > 0.95


def test_a_seed_gives_the_same_weights() -> None:
    one, two, other = (
        train(repeaters(), SPACES, ModelConfig(**SMALL), FitConfig(steps=5, batch=4, seed=seed)).state_dict
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["policy.weight"], other["policy.weight"])


@pytest.mark.parametrize("keys", [{"method": "dicp"}, {"legacy": True}, {"legacy": True, "method": "dpt"}])
def test_all_kinds_train(keys: dict[str, Any]) -> None:
    found = train(repeaters(), SPACES, ModelConfig(**SMALL, **keys), FitConfig(steps=2, batch=4))
    assert np.isfinite(found.curve[-1]["loss"])


def test_the_callers_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    train(repeaters(), SPACES, ModelConfig(**SMALL), FitConfig(steps=1, batch=2))
    assert torch.equal(torch.rand(3), wanted)


def test_a_context_longer_than_the_histories() -> None:
    said: list[str] = []
    long = ModelConfig(**(SMALL | {"context": 100}))
    train(repeaters(), SPACES, long, FitConfig(steps=1, batch=2), say=said.append)
    assert said[0] == "context 100 is longer than the histories: windows of 24 steps"
    with pytest.raises(DataInvalid, match=r"24 steps; model\.context 100 or more"):
        train(
            repeaters(), SPACES, ModelConfig(**(SMALL | {"context": 100, "legacy": True})), FitConfig(steps=1)
        )


def test_a_loss_that_is_not_finite_stops() -> None:
    with pytest.raises(Diverged, match="loss nan in steps to 5"):
        train(repeaters(), SPACES, ModelConfig(**SMALL), FitConfig(steps=5, batch=2, lr=1e30, rise=0))


def test_time_can_be_the_limit() -> None:
    found = train(repeaters(), SPACES, ModelConfig(**SMALL), FitConfig(steps=10**6, batch=2, seconds=0.2))
    assert 0 < found.steps < 10**6
