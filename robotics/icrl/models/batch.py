"""Learning histories as tensors, and the windows cut from them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from robotics.icrl.models.spaces import Spaces
from shared.errors import DataInvalid, Fault


class Window(NamedTuple):
    """B windows of L steps. Observations (B, L, O), actions (B, L) or (B, L, A), the others (B, L)."""

    obs: Tensor
    before_action: Tensor
    """the action before; where nothing came before: the number of actions, or NaN for reals"""
    before_reward: Tensor
    start: Tensor
    """true at an episode's first step"""
    to_go: Tensor
    """the episode's return from here on"""
    action: Tensor
    label: Tensor
    """the action to predict: the one taken (ad, dicp, dt) or the best one (dpt)"""
    reward: Tensor
    after: Tensor
    """(B, L, O) the observation after the action"""
    weight: Tensor
    """(B,) factor of the history's loss"""


class Arrays(NamedTuple):
    """N histories of T steps as `Window` has them, on one device; `label` and `weight` likewise."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    start: Tensor
    to_go: Tensor
    label: Tensor
    after: Tensor
    weight: Tensor

    @property
    def steps(self) -> int:
        return int(self.reward.shape[1])

    def to(self, device: torch.device | str) -> Arrays:
        return Arrays(*(each.to(device) for each in self))

    def window(self, rows: Tensor, first: Tensor, length: int, spaces: Spaces) -> Window:
        """Steps `first` … `first` + `length` − 1 of `rows`, both (B,)."""
        row, at = rows[:, None], first[:, None] + torch.arange(length, device=rows.device)
        before, none = (at - 1).clamp(min=0), at == 0
        action = self.action[row, before]
        if spaces.actions:
            action = action.masked_fill(none, spaces.actions)
        else:
            action = action.masked_fill(none[..., None], torch.nan)
        reward = self.reward[row, before].masked_fill(none, 0.0)
        rest = (self.start, self.to_go, self.action, self.label, self.reward, self.after)
        start, to_go, acted, label, gained, after = (each[row, at] for each in rest)
        return Window(
            self.obs[row, at], action, reward, start, to_go, acted, label, gained, after, self.weight[rows]
        )


def arrays(
    obs: Any,
    actions: Any,
    rewards: Any,
    starts: Any,
    next_obs: Any,
    spaces: Spaces,
    *,
    optimal: Any = None,
    weight: Any = None,
) -> Arrays:
    """Histories (N, T, …) given as arrays, checked. `optimal`: the labels where the best actions are wanted, not those
    taken. `weight` (N,): each history's factor in the loss, with mean 1. Raises `DataInvalid` naming the history.
    """
    r = np.asarray(rewards, np.float32)
    count = r.shape[0] if r.ndim == 2 else 0
    if not count or not r.shape[1]:
        raise _invalid("histories", f"rewards {list(r.shape)}", "(histories, steps), none of them 0")
    shapes = {"obs": (obs, spaces.obs_width), "next_obs": (next_obs, spaces.obs_width)}
    shapes |= {"actions": (actions, spaces.action_numbers), "starts": (starts, 0)}
    if optimal is not None:
        shapes["optimal_actions"] = (optimal, spaces.action_numbers)
    for name, (values, width) in shapes.items():
        wanted = (*r.shape, width) if width else r.shape
        if np.shape(values) != wanted:
            raise _invalid("histories", f"{name} {list(np.shape(values))}", f"{list(wanted)}")
    named = {
        "obs": _checked("obs", obs, spaces.cells),
        "next_obs": _checked("next_obs", next_obs, spaces.cells),
    }
    named |= {"actions": _checked("actions", actions, spaces.actions), "rewards": _checked("rewards", r)}
    named["optimal_actions"] = (
        named["actions"] if optimal is None else _checked("optimal_actions", optimal, spaces.actions)
    )
    factor = np.ones(count, np.float32) if weight is None else np.asarray(weight, np.float32)
    if factor.shape != (count,) or not np.isfinite(factor).all() or (factor < 0).any() or not factor.any():
        raise _invalid("histories", "weights", f"{count} of 0 or more, not all 0")
    first = np.asarray(starts, bool)
    kept: list[Any] = [named["obs"], named["actions"], r, first, returns_to_go(r, first)]
    kept += [named["optimal_actions"], named["next_obs"], factor]
    return Arrays(*(torch.from_numpy(np.ascontiguousarray(each)) for each in kept))


def of_histories(
    histories: Any, spaces: Spaces, *, method: str = "ad", legacy: bool = False, weight: Any = None
) -> Arrays:
    """`arrays` of a store's `Histories`. dpt's labels are the best actions; the published tokens show the reset state
    after an episode's last step, ours the true one. Raises `DataInvalid`, also where dpt finds no best actions.
    """
    if method == "dpt" and histories.optimal_actions is None:
        raise _invalid(
            "histories", "no optimal_actions, which method dpt predicts", "histories that have them"
        )
    return arrays(
        histories.obs,
        histories.actions,
        histories.rewards,
        histories.starts(),
        histories.next_obs("reset" if legacy else "terminal"),
        spaces,
        optimal=histories.optimal_actions if method == "dpt" else None,
        weight=weight,
    )


def returns_to_go(rewards: Any, starts: Any) -> Any:
    """(N, T) → (N, T) float32: rewards from each step to its episode's end, the history's end for the last one."""
    found = np.zeros(rewards.shape, np.float32)
    total = np.zeros(len(rewards), np.float32)
    for at in range(rewards.shape[1] - 1, -1, -1):
        total = total + rewards[:, at]
        found[:, at] = total
        total = np.where(starts[:, at], 0, total)
    return found


def _checked(name: str, values: Any, below: int | tuple[int, ...] = 0) -> Any:
    """Whole numbers below `below`, finite reals without it. Raises `DataInvalid` for others, which a cast would cut."""
    given: Any = np.asarray(values)
    with np.errstate(invalid="ignore"):  # of NaN to whole numbers, found below
        array: Any = given.astype(np.int64 if below else np.float32)
    if below:
        top = np.asarray(below)
        wrong = (array != given) | (array < 0) | (array >= top)
        wanted = f"whole numbers from 0 to below {top.tolist()}"
    else:
        wrong, wanted = ~np.isfinite(array), "finite numbers"
    if wrong.any():
        at = np.argwhere(wrong)[0]
        raise _invalid(f"history {at[0]}", f"{name} {given[tuple(at)]} at step {at[1]}", wanted)
    return array


def _invalid(source: str, found: str, wanted: str) -> DataInvalid:
    return DataInvalid([Fault(source, found, f"{wanted} wanted", "collect them again or leave it out")])
