"""Points of a sweep, and a sweep that goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines import sweep as module
from pipelines.run import Request
from pipelines.sweep import points, sweep
from shared.errors import Interrupted, UsageError
from shared.tracking.store import connect


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


Trained = list[tuple[str, ...]]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, workdir: Path) -> Trained:
    """Points in the order they are trained; the run itself is left out, and goes wrong where a test says so."""
    seen: Trained = []

    def run(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
        seen.append(tuple(request.sets))
        lr = float(request.sets[0].partition("=")[2])
        if lr == 3 and len(seen) < 4:
            raise UsageError("three is not to be had")
        if lr == 4 and len(seen) < 5:
            raise Interrupted("stopped")
        return {"run_id": f"run{lr}", "metrics": {"dice_mean": lr / 10}}

    monkeypatch.setattr(module, "run", run)
    return seen


def search(lr: str, config: Path | None = None) -> dict[str, Any]:
    return sweep(
        "brats-seg",
        [f"train.lr={lr}", "seed=5"],
        preset="smoke",
        config_file=config,
        data=None,
        random=0,
        say=str,
    )


def test_a_sweep_goes_on_where_it_stopped(trained: Trained) -> None:
    with pytest.raises(Interrupted):
        search("1,2,3,4")
    assert len(trained) == 4
    result = search("1,2,3,4")
    assert [sets[0][-1] for sets in trained[4:]] == ["3", "4"]  # the failed one and the one not finished
    assert [row["value"] for row in result["rows"]] == [0.4, 0.3, 0.2, 0.1]
    assert [row["point"] for row in result["rows"]] == [f"train.lr={lr}" for lr in (4, 3, 2, 1)]
    client = connect().client
    (parent,) = client.search_runs([client.get_experiment_by_name("brats-seg").experiment_id])
    assert (parent.info.run_id, parent.info.status) == (result["run_id"], "FINISHED")

    search("1,2,3,4")
    assert len(trained) == 6
    client.delete_run(parent.info.run_id)  # in MLflow's interface, say: then nothing is done
    search("1,2,3,4")
    assert len(trained) == 10


def test_an_edited_config_file_is_another_sweep(trained: Trained, workdir: Path) -> None:
    config = workdir / "mine.yaml"
    for seed in (1, 1, 2):
        config.write_text(f"threads: {seed}\n")
        search("1", config)
    assert len(trained) == 2


def test_a_misspelt_key_fails_before_the_first_point(trained: Trained) -> None:
    with pytest.raises(UsageError, match=r"did you mean train\.epochs"):
        sweep("brats-seg", ["train.lr=1", "train.epoch=1"], preset="smoke", config_file=None, data=None,
              random=0, say=str)  # fmt: skip
    assert trained == []
