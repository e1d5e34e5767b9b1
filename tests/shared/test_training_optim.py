"""Learning-rate curves against the values of the published code."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from shared.config import TrainConfig
from shared.training.optim import decay_groups, epoch_factor, optimizer_config, step_factor


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [
        (0, 0.0),
        (1, 2.04e-6),
        (25, 5.10e-5),
        (49, 1e-4),
        (50, 1e-4),
        (100, 9.045e-5),
        (175, 5e-5),
        (250, 9.55e-6),
        (299, 3.9e-9),
    ],
)
def test_official_curve(epoch: int, lr: float) -> None:
    """Learning rate 1e-4, 50 of 300 epochs warm-up (Project-MONAI/research-contributions, SwinUNETR/BRATS21)."""
    assert 1e-4 * epoch_factor(epoch, 50, 300) == pytest.approx(lr, rel=2e-2)


def test_curve_by_steps_has_no_dead_start_and_meets_the_official_one() -> None:
    factors = [step_factor(step, 50, 300) for step in range(300)]
    assert factors[0] == 1 / 50 and factors[49] == 1.0
    assert factors[:50] == sorted(factors[:50]) and factors[50:] == sorted(factors[50:], reverse=True)
    assert factors[100:] == [epoch_factor(step, 50, 300) for step in range(100, 300)]
    assert step_factor(0, 0, 10) == 1.0


def test_halving_keeps_the_full_rate_for_two_epochs() -> None:
    """The Informer family's type1: 1, 1, 1/2, 1/4 … (spec of the published code, two epochs at full rate)."""
    module = SimpleNamespace(trainer=SimpleNamespace(estimated_stepping_batches=20), modules=list)
    train = TrainConfig(epochs=5, lr=0.01, schedule="halving", optimizer="adam", weight_decay=0)
    made = optimizer_config(module, train, [torch.nn.Parameter(torch.zeros(1))])  # type: ignore[arg-type]
    assert type(made["optimizer"]) is torch.optim.Adam
    rates = []
    for _ in range(20):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates[::4] == pytest.approx([0.01, 0.01, 0.005, 0.0025, 0.00125])


def test_parameters_that_their_part_spares_get_no_weight_decay() -> None:
    class Rates(torch.nn.Linear):
        no_decay = frozenset({"bias"})

    net = torch.nn.Sequential(torch.nn.Linear(2, 2), Rates(2, 2))
    plain, spared = decay_groups(net, list(net.parameters()))
    assert [id(p) for p in spared["params"]] == [id(net[1].bias)] and spared["weight_decay"] == 0
    assert len(plain["params"]) == 3 and "weight_decay" not in plain
    untouched = list(net[0].parameters())
    assert decay_groups(net, untouched) is untouched
