"""Naive forecasts with gaps, and networks of the library as forecasters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shared.errors import UsageError
from timeseries.forecast.models.backbone import BackboneForecaster, normalise
from timeseries.forecast.models.naive import Naive
from timeseries.forecast.windows import Inputs

NET: dict[str, Any] = {
    "stem": {"name": "patch", "patch": 4},
    "position": "sine",
    "dims": [16],
    "depths": [2],
    "mixers": ["autocorrelation"],
}
L, H, C = 30, 7, 2


def rows(*values: float) -> Tensor:
    return torch.tensor(values)[None, :, None]


def inputs_of(
    x: Tensor, mask: Tensor | None = None, *, past: int = 0, future: int = 0, marks: int = 0
) -> Inputs:
    batch, length, _ = x.shape
    draw = torch.Generator().manual_seed(5)
    more = [
        torch.randn(batch, n, w, generator=draw)
        for n, w in ((length, past), (length + H, future), (length + H, marks))
    ]
    return Inputs(x, torch.ones_like(x, dtype=torch.bool) if mask is None else mask, *more)


def drawn(batch: int = 3) -> Tensor:
    return torch.randn(batch, L, C, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------- naive


def test_the_last_value_goes_on() -> None:
    out = Naive(3)(inputs_of(rows(1, 2, 3)))
    assert out.shape == (1, 1, 3, 1) and out.flatten().tolist() == [3, 3, 3]
    assert Naive(3, season=1)(inputs_of(rows(1, 2, 3))).flatten().tolist() == [3, 3, 3]


def test_the_last_season_goes_on() -> None:
    out = Naive(7, season=3)(inputs_of(rows(9, 9, 1, 2, 3)))
    assert out.flatten().tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_missing_values_fall_back() -> None:
    x = rows(1, 2, 3, 4, 0, 0)
    mask = rows(1, 1, 1, 1, 0, 0).bool()
    assert Naive(2)(inputs_of(x, mask)).flatten().tolist() == [4, 4]
    assert Naive(3, season=3)(inputs_of(x, mask)).flatten().tolist() == [4, 2, 3]  # a season before
    mask = rows(1, 0, 1, 1, 0, 0).bool()
    assert Naive(3, season=3)(inputs_of(x, mask)).flatten().tolist() == [4, 4, 3]  # the last valid one of all
    assert Naive(2, season=3)(inputs_of(x, torch.zeros_like(mask))).flatten().tolist() == [0, 0]


def test_a_season_longer_than_the_window_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"model.season: 4 steps; at most data.input_length, 3, wanted; lengthen"
    ):
        Naive(2, season=4)(inputs_of(rows(1, 2, 3)))


def test_channels_and_windows_have_their_own_gaps() -> None:
    x, mask = drawn(), torch.rand(3, L, C, generator=torch.Generator().manual_seed(1)) > 0.5
    out = Naive(H)(inputs_of(x, mask))
    for b in range(3):
        for c in range(C):
            assert (out[b, 0, :, c] == x[b, :, c][mask[b, :, c]][-1]).all()


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("mixer", ["autocorrelation", "attention", {"name": "dwconv", "kernel": 5}])
@pytest.mark.parametrize("quantiles", [1, 3])
def test_any_network_forecasts_and_trains(mixer: Any, quantiles: int) -> None:
    torch.manual_seed(0)
    model = BackboneForecaster(
        NET | {"mixers": [mixer]}, L, H, C, past=1, future=2, quantiles=quantiles, marks=4
    )
    out = model(inputs_of(drawn(), past=1, future=2, marks=4))
    assert out.shape == (3, quantiles, H, C) and torch.isfinite(out).all()
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_named_networks_and_files(tmp_path: Path) -> None:
    assert BackboneForecaster("hyena_xs", L, H, C)(inputs_of(drawn())).shape == (3, 1, H, C)
    file = tmp_path / "net.yaml"
    file.write_text("stem: {name: patch, patch: 1}\ndims: [8, 16]\ndepths: [1, 1]\nmixers: [pool]\n")
    assert BackboneForecaster(str(file), L, H, C)(inputs_of(drawn())).shape == (3, 1, H, C)
    with pytest.raises(UsageError, match="hyena_xs"):
        BackboneForecaster("hyena_sx", L, H, C)


@pytest.mark.parametrize("quantiles", [1, 3])
def test_level_and_spread_go_through(quantiles: int) -> None:
    """A window moved by 10 and stretched by 3 has its forecast moved and stretched."""
    torch.manual_seed(0)
    model = BackboneForecaster(NET, L, H, C, quantiles=quantiles).double().eval()
    x = drawn().double()
    with torch.no_grad():
        out = model(inputs_of(x))
        torch.testing.assert_close(model(inputs_of(3 * x + 10)), 3 * out + 10, rtol=0, atol=1e-3)
        torch.testing.assert_close(model(inputs_of(x + 10)), out + 10, rtol=0, atol=1e-9)


def test_missing_values_are_not_read_but_flagged() -> None:
    torch.manual_seed(0)
    model, x = BackboneForecaster(NET, L, H, C).eval(), drawn()
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[0, :, 1] = False
    with torch.no_grad():
        first, second = (model(inputs_of(torch.where(mask, x, value), mask)) for value in (0.0, 8.0))
    assert torch.isfinite(first).all()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    filled, mean, spread = normalise(x, mask)
    assert (filled[~mask] == 0).all() and mean[0, 0, 1] == 0
    torch.testing.assert_close((filled * spread + mean)[mask], x[mask])


def test_what_is_known_ahead_reaches_its_step() -> None:
    torch.manual_seed(0)
    model, inputs = BackboneForecaster(NET, L, H, C, future=1).eval(), inputs_of(drawn(), future=1)
    later = inputs.future.clone()
    later[:, L + 3] += 1
    with torch.no_grad():
        change = (model(inputs._replace(future=later)) - model(inputs)).abs().amax((0, 1, 3))
    assert change[3] > 1e-5 and change[[0, 1, 2, 4, 5, 6]].max() == 0
