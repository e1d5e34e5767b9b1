"""What an agent sees and does, as the networks need to know it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, model_validator

from shared.config import Config
from shared.errors import UsageError


class Spaces(Config):
    """Observations: whole numbers, one factor each (`cells`: how many values each has), or `numbers` reals. Actions:
    one of `actions`, or `action_numbers` reals in [−action_limit, action_limit]."""

    cells: tuple[int, ...] = Field((), description="values of each whole-number coordinate, such as (9, 9)")
    numbers: int = Field(0, ge=0, description="reals of an observation; 0 where it has cells")
    actions: int = Field(0, ge=0, description="discrete actions; 0 where they are reals")
    action_numbers: int = Field(0, ge=0, description="reals of an action; 0 where they are discrete")
    action_limit: float = Field(1.0, gt=0, description="largest absolute value of a real action")

    @model_validator(mode="after")
    def _one_of_each(self) -> Spaces:
        if bool(self.cells) == bool(self.numbers) or any(n < 1 for n in self.cells):
            raise ValueError(f"cells {self.cells}, numbers {self.numbers}; exactly one of both wanted")
        if bool(self.actions) == bool(self.action_numbers):
            raise ValueError(
                f"actions {self.actions}, action_numbers {self.action_numbers}; exactly one wanted"
            )
        return self

    def __str__(self) -> str:
        see = f"cells {list(self.cells)}" if self.cells else f"{self.numbers} reals"
        if self.actions:
            return f"{see} and {self.actions} actions"
        return f"{see} and {self.action_numbers} real actions up to {self.action_limit:g}"

    @property
    def obs_width(self) -> int:
        """Numbers of an observation."""
        return len(self.cells) or self.numbers

    @property
    def codes(self) -> int:
        """Different observations of a grid."""
        return math.prod(self.cells)

    @classmethod
    def of(cls, observation: Mapping[str, Any], action: Mapping[str, Any]) -> Spaces:
        """From a store's descriptions ({"kind": "box", …} | {"kind": "discrete", "n"}). Raises `UsageError`."""
        values: dict[str, Any] = {}
        if observation.get("kind") == "discrete":
            values["cells"] = (int(observation["n"]),)
        elif observation.get("kind") == "box" and "int" in str(observation["dtype"]):
            width = math.prod(observation["shape"])
            low, high = ((_flat(observation[side]) * width)[:width] for side in ("low", "high"))
            if any(value != 0 for value in low):
                raise UsageError(
                    f"observation space: lowest values {low}; 0 wanted for whole numbers; shift them"
                )
            values["cells"] = tuple(int(value) + 1 for value in high)
        elif observation.get("kind") == "box":
            values["numbers"] = math.prod(observation["shape"])
        else:
            raise UsageError(f"observation space: found {dict(observation)}; a box or discrete one wanted")
        if action.get("kind") == "discrete":
            values["actions"] = int(action["n"])
        elif action.get("kind") == "box":
            values["action_numbers"] = math.prod(action["shape"])
            low, high = _flat(action["low"]), _flat(action["high"])
            values["action_limit"] = high[0]
            if high[0] <= 0 or {*high} != {high[0]} or {*low} != {-high[0]}:
                raise UsageError(
                    f"action space: from {low[:4]} to {high[:4]}; the same limit up and down for all numbers wanted; "
                    "rescale them (gymnasium.wrappers.RescaleAction)"
                )
        else:
            raise UsageError(f"action space: found {dict(action)}; a box or discrete one wanted")
        return cls(**values)


def _flat(value: Any) -> list[float]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [number for each in value for number in _flat(each)]
    return [float(value)]
