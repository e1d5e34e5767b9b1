"""Points of a sweep, and a sweep that goes on where it stopped."""

from __future__ import annotations

import pytest

from pipelines.sweep import points
from shared.errors import UsageError


def test_grid_is_every_combination() -> None:
    grid = points(["train.lr=1e-3,1e-4", "model.norm=batch,instance", "train.crop=[32,32,32]"], 0)
    assert len(grid) == 4
    assert grid[0] == ["train.lr=1e-3", "model.norm=batch", "train.crop=[32,32,32]"]


def test_random_draw_is_a_seeded_subset() -> None:
    grid = points(["a=1,2,3,4", "b=1,2,3"], 0)
    drawn = points(["a=1,2,3,4", "b=1,2,3"], 5)
    assert drawn == points(["a=1,2,3,4", "b=1,2,3"], 5)
    assert len(drawn) == 5
    assert all(point in grid for point in drawn)


def test_axis_without_value_is_refused() -> None:
    with pytest.raises(UsageError, match="no '='"):
        points(["train.lr"], 0)
