"""Training in two processes is training in one: same loss curve, same metrics, for the real pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.contract.conftest import call

TOLERANCE = 1e-5
"""Gradients are summed in another order, and Adam carries the rounding on: 2.5e-6 after twelve steps."""


def trained(cwd: Path, devices: int) -> tuple[list[float], dict[str, float]]:
    """Training loss by step, and the scores, of a smoke run in `devices` processes.

    Instance norm and Dice per crop: batch norm and Dice over a batch see the crops of one process only.
    """
    from mlflow import MlflowClient

    cwd.mkdir()
    sets = (
        "threads=1",
        "model.norm=instance",
        "train.batch_dice=false",
        f"train.devices={devices}",
        "train.strategy=ddp",
    )
    done = call(cwd, "run", "brats-seg", "--preset", "smoke", "--json", *(f"--set={text}" for text in sets))
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    client = MlflowClient(f"sqlite:///{cwd}/mlflow.db")
    history = client.get_metric_history(result["run_id"], "train/loss")
    (run,) = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.run_id == result["run_id"]  # the second process opens no run of its own
    return [point.value for point in sorted(history, key=lambda point: point.step)], result["metrics"]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    one, scores = trained(tmp_path / "one", 1)
    two, again = trained(tmp_path / "two", 2)
    assert len(one) == 12
    assert two == pytest.approx(one, abs=TOLERANCE)
    assert again["val/dice_mean"] == pytest.approx(scores["val/dice_mean"], abs=1e-3)
