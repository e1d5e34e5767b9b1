"""The explorer: every move follows from what it saw, and it gets to the optimum."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("h5py", reason="the robotics extra is not installed")

from robotics.icrl.collect.explorer import ExplorerOptions, explore
from robotics.icrl.envs.families import tasks
from robotics.icrl.models.batch import of_histories
from robotics.icrl.models.spaces import Spaces
from shared.errors import DataInvalid, UsageError

STEADY = ExplorerOptions(aimless=0)


def test_it_finds_the_goal_and_stays() -> None:
    chosen = tasks("darkroom", "test")
    found = explore(chosen, 5, 15, options=STEADY)
    returns = found.returns().reshape(len(chosen), 5, 15)
    optimum = np.array([task.optimum for task in chosen])
    assert (returns[:, :, -1] == optimum[:, None]).all()
    assert returns[:, :, 0].mean() < 0.4 * optimum.mean()
    again = explore(chosen, 5, 15, options=STEADY)
    assert np.array_equal(found.actions, again.actions)
    assert not np.array_equal(found.actions, explore(chosen, 5, 15, 1, STEADY).actions)


def test_aimless_moves_are_uniform_until_a_reward() -> None:
    wandering = explore(tasks("darkroom")[:1], 200, 1, options=ExplorerOptions(aimless=1))
    before = wandering.rewards.cumsum(1) - wandering.rewards == 0
    assert np.bincount(wandering.actions[before], minlength=5) / before.sum() == pytest.approx(0.2, abs=0.03)


def test_careless_moves_come_after_the_first_reward() -> None:
    chosen = tasks("darkroom")[40:41]
    steady, careless = (
        explore(chosen, 50, 20, options=ExplorerOptions(aimless=0, careless=share)) for share in (0, 0.25)
    )
    known = careless.rewards.cumsum(1) - careless.rewards > 0
    there = (careless.obs == np.array(chosen[0].places[0])).all(-1) & known
    moved = (careless.actions[there] != 4).mean()
    assert moved == pytest.approx(0.25 * 4 / 5, abs=0.02)
    assert not (steady.actions[(steady.obs == np.array(chosen[0].places[0])).all(-1)] != 4).any()


def test_it_looks_for_new_cells() -> None:
    found = explore(
        tasks("darkroom")[:1], 20, 1, options=STEADY
    )  # the goal is a corner, out of reach of a first search mostly
    cells = [len({tuple(place) for place in row}) for row in found.obs]
    assert np.mean(cells) > 17


def test_its_histories_are_what_models_read() -> None:
    found = explore(tasks("darkroom", "train")[:3], 2, 2)
    spaces = Spaces(cells=(9, 9), actions=5)
    data = of_histories(found, spaces, method="dpt")
    assert data.obs.shape == (6, 40, 2) and data.start[:, ::20].all()
    assert (data.after[:, 19] == data.obs[:, 19]).all(-1).float().mean() < 1
    assert (of_histories(found, spaces, method="dpt", legacy=True).after[:, 19] == 4).all()
    found.optimal_actions = None
    with pytest.raises(DataInvalid, match="no optimal_actions, which method dpt predicts"):
        of_histories(found, spaces, method="dpt")


def test_rooms_it_does_not_know() -> None:
    with pytest.raises(UsageError, match="collector explorer in dark-key-to-door"):
        explore(tasks("dark-key-to-door")[:1], 1, 1)
