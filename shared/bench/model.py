"""The one network of all tasks, and the rule that makes mixers comparable (Long Range Arena's: equal sizes).

Two pre-norm blocks of 64 channels, learned positions, a mixer, a feed-forward part of ratio 2, mean pool. A mixer whose
network leaves ±10 % of attention's number of parameters gets another feed-forward width, as near to it as that can be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.bench.tasks import Task
from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.measure import count_params
from shared.nets.registry import Card, accepts, cards

DIM, DEPTH, HEADS, RATIO = 64, 2, 4, 2.0
TOLERANCE = 0.10
REFERENCE = "attention"


@dataclass(frozen=True)
class Plan:
    """How a mixer enters the bench on one task."""

    part: dict[str, Any]
    """Its specification: name and, where it has heads, their number."""
    ratio: float
    """Width of the feed-forward part over `DIM`; 0: none."""
    params: int
    fair: bool
    """Within `TOLERANCE` of attention."""


class BenchNet(nn.Module):
    """Samples as (B, L) tokens or values, (B, 2, L) for pairs → scores (B, classes), or (B, classes, L)."""

    def __init__(self, task: Task, part: dict[str, Any], ratio: float) -> None:
        super().__init__()
        self.vocabulary, self.form = task.vocabulary, task.form
        config = {
            "stem": {"name": "patch", "patch": 1},
            "position": "learned",
            "dims": [DIM],
            "depths": [DEPTH],
            "mixers": [part],
            "ffn": {"name": "mlp", "ratio": ratio} if ratio else None,
        }
        self.backbone = create_backbone(
            config,
            ndim=1,
            in_chans=task.vocabulary or 1,
            num_classes=task.classes if task.form == "class" else 0,
            img_size=task.length,
        )
        self.head: nn.Module = nn.Identity()
        if task.form == "position":
            self.head = nn.Conv1d(DIM, task.classes, 1)
        elif task.form == "pair":
            self.head = nn.Sequential(nn.Linear(4 * DIM, DIM), nn.GELU(), nn.Linear(DIM, task.classes))

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "pair":
            means = self.backbone(self._channels(x.flatten(0, 1))).mean(-1).unflatten(0, (-1, 2))
            u, v = means[:, 0], means[:, 1]
            return self.head(torch.cat([u, v, u - v, u * v], 1))  # type: ignore[no-any-return]
        return self.head(self.backbone(self._channels(x)))  # type: ignore[no-any-return]

    def _channels(self, x: Tensor) -> Tensor:
        """(B, channels, L): one channel a token, whose map by the stem is its embedding; or the value."""
        if not self.vocabulary:
            return x[:, None]
        return F.one_hot(x, self.vocabulary).transpose(1, 2).to(torch.float32)


def specification(name: str, heads: int = HEADS) -> dict[str, Any]:
    """A mixer as the benches build it: its own defaults, with `heads` where it has heads."""
    return {"name": name, **({"heads": heads} if accepts("mixer", name, "heads") else {})}


def bench_mixers(ndim: int = 1) -> list[Card]:
    """The registry's mixers of `ndim` dimensions that see both ways."""
    return [card for card in cards("mixer") if ndim in card.make.ndims and False in card.make.causal_forms]


def plan(task: Task, name: str) -> Plan:
    """The fairness rule for one mixer. Raises `UsageError` when it cannot be built for the task.

    Where even a network without feed-forward part is too large, a mixer that widens its channels inside does not
    (``expand: 1``).
    """
    target = _params(task, specification(REFERENCE), RATIO)
    found = _fitted(task, specification(name), target)
    if not found.fair and accepts("mixer", name, "expand"):
        slim = _fitted(task, {**specification(name), "expand": 1}, target)
        return slim if slim.fair else found
    return found


def _fitted(task: Task, part: dict[str, Any], target: int) -> Plan:
    ratio, found = RATIO, _params(task, part, RATIO)
    if not _near(found, target):
        unit = DEPTH * (2 * DIM + 1)  # parameters of one hidden channel more
        hidden = round(RATIO * DIM) + round((target - found) / unit)
        ratio = max(hidden, 0) / DIM
        found = _params(task, part, ratio)
    return Plan(part, ratio, found, _near(found, target))


def _near(found: int, target: int) -> bool:
    return abs(found - target) <= TOLERANCE * target


def _params(task: Task, part: dict[str, Any], ratio: float) -> int:
    with torch.device("meta"):
        return count_params(BenchNet(task, part, ratio))


def usable(task: Task, name: str) -> str:
    """Empty, or why the mixer cannot take part in the task."""
    try:
        plan(task, name)
    except UsageError as err:
        return str(err)
    return ""
