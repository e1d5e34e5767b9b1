"""The linear family against the paper's two-branch form, its counts and its limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from timeseries.forecast.models.linear import Kind, LinearFamily, interpolate, moving_average
from timeseries.forecast.windows import Inputs

KINDS: tuple[Kind, ...] = ("linear", "nlinear", "dlinear")


def windows(batch: int, length: int, horizon: int, channels: int, past: int = 0, future: int = 0) -> Inputs:
    torch.manual_seed(0)
    x = torch.randn(batch, length, channels)
    total = length + horizon
    return Inputs(
        x,
        torch.ones_like(x, dtype=torch.bool),
        torch.randn(batch, length, past),
        torch.randn(batch, total, future),
        torch.empty(batch, total, 0),
    )


def official_average(x: Tensor, kernel: int) -> Tensor:
    """``moving_avg`` of LTSF-Linear's models/DLinear.py on (B, L, C)."""
    side = (kernel - 1) // 2
    padded = torch.cat([x[:, :1].repeat(1, side, 1), x, x[:, -1:].repeat(1, side, 1)], 1)
    return F.avg_pool1d(padded.mT, kernel, 1).mT


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_moving_average_has_the_published_values() -> None:
    short = moving_average(torch.arange(1.0, 11)[:, None], 5).flatten()
    assert short.tolist() == pytest.approx([1.6, 2.2, 3, 4, 5, 6, 7, 8, 8.8, 9.4], abs=1e-5)
    long = moving_average(torch.arange(30.0)[:, None], 25).flatten()
    assert long[:4].tolist() == pytest.approx([3.12, 3.64, 4.2, 4.8], abs=1e-5)
    assert long[-4:].tolist() == pytest.approx([24.2, 24.8, 25.36, 25.88], abs=1e-5)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 25, 47])
def test_moving_average_is_the_official_one(kernel: int) -> None:
    x = torch.randn(2, 48, 3)
    assert torch.allclose(moving_average(x, kernel), official_average(x, kernel), atol=1e-6)


def test_parameter_counts_are_the_published_ones() -> None:
    for horizon, one in ((96, 32_352), (720, 242_640)):
        for kind in KINDS:
            assert count(LinearFamily(kind, 336, horizon, 7)) == one * (2 if kind == "dlinear" else 1)
    assert count(LinearFamily("dlinear", 96, 720, 7)) == 139_680
    assert count(LinearFamily("nlinear", 336, 96, 7, individual=True)) == 7 * 32_352
    assert count(LinearFamily("nlinear", 48, 12, 7, quantiles=3)) == 3 * 12 * 49
    exogenous = LinearFamily("linear", 48, 12, 7, past=2, future=1)
    assert count(exogenous) == 12 * 49 + 12 * 2 * 48 + 12 * 60


def test_weights_are_drawn_as_torchs_linear_layer_draws_them() -> None:
    model = LinearFamily("dlinear", 100, 96, 7)
    for p in model.parameters():
        assert p.abs().max() <= 0.1 and p.abs().max() > 0.09
        assert p.mean().abs() < 0.02


@pytest.mark.parametrize("individual", [False, True])
@pytest.mark.parametrize("kernel", [1, 5, 25])
def test_dlinear_equals_its_two_branches_and_so_do_its_gradients(individual: bool, kernel: int) -> None:
    model = LinearFamily("dlinear", 48, 12, 3, individual=individual, kernel=kernel).train()
    inputs = windows(4, 48, 12, 3)
    inputs.x.requires_grad_()
    assert model.seasonal is not None and model.trend is not None
    maps: list[Any] = [model.seasonal.weight, model.trend.weight, model.seasonal.bias, model.trend.bias]

    def branches() -> Tensor:
        trend = official_average(inputs.x, kernel)
        seasonal = inputs.x - trend
        w_s, w_t, b_s, b_t = (m.expand(3, *m.shape[1:]) for m in maps)
        out = torch.einsum("blc,chl->bhc", seasonal, w_s) + torch.einsum("blc,chl->bhc", trend, w_t)
        return out + (b_s + b_t).mT

    ours, theirs = model(inputs)[:, 0], branches()
    assert torch.allclose(ours, theirs, atol=1e-5)
    target = torch.randn_like(ours)
    mine = torch.autograd.grad((ours - target).square().mean(), [*maps, inputs.x])
    other = torch.autograd.grad((theirs - target).square().mean(), [*maps, inputs.x])
    for a, b in zip(mine, other):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("individual", [False, True])
def test_step_leaves_the_gradients_of_backward(kind: Kind, individual: bool) -> None:
    model = LinearFamily(kind, 48, 12, 3, individual=individual)
    x, y = windows(4, 48, 12, 3).x, torch.randn(4, 12, 3)
    wanted = (model(windows(4, 48, 12, 3)) - y[:, None]).square().mean()
    wanted.backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    assert model.plain and torch.allclose(model.squared_error_step(x, y), wanted, rtol=1e-6)
    for p, gradient in zip(model.parameters(), gradients):
        assert gradient is not None and p.grad is not None and p.grad.shape == p.shape
        assert torch.allclose(p.grad, gradient, rtol=1e-5, atol=1e-8)
    assert (
        not LinearFamily("linear", 48, 12, 3, future=1).plain
        and not LinearFamily(kind, 48, 12, 3, quantiles=3).plain
    )


def test_dlinear_of_even_weights_gives_the_mean() -> None:
    model = LinearFamily("dlinear", 30, 4, 1)
    for name, p in model.named_parameters():
        torch.nn.init.constant_(p, 1 / 30 if name.endswith("weight") else 0.0)
    x = torch.arange(30.0)[None, :, None]
    inputs = windows(1, 30, 4, 1)._replace(x=x)
    assert model(inputs).flatten().tolist() == pytest.approx([14.5] * 4, abs=1e-4)


def test_nlinear_of_no_weights_repeats_the_last_value() -> None:
    model = LinearFamily("nlinear", 48, 12, 3)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    inputs = windows(4, 48, 12, 3)
    assert torch.equal(model(inputs), inputs.x[:, None, -1:].expand(4, 1, 12, 3))


def test_nlinear_repeats_the_last_value_that_is_there() -> None:
    model = LinearFamily("nlinear", 8, 2, 2)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    inputs = windows(1, 8, 2, 2)
    mask = inputs.mask.clone()
    mask[0, 6:, 1] = False
    out = model(inputs._replace(x=inputs.x.where(mask, 0), mask=mask))
    assert torch.equal(out[0, 0], torch.stack([inputs.x[0, 7, 0], inputs.x[0, 5, 1]]).expand(2, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("individual", [False, True])
def test_effective_weight_is_what_the_model_does(kind: Kind, individual: bool) -> None:
    model = LinearFamily(kind, 48, 12, 3, individual=individual).eval()
    inputs = windows(4, 48, 12, 3)
    weight = model.effective_weight()
    assert weight.shape == (3 if individual else 1, 12, 48)
    with torch.no_grad():
        straight = torch.einsum("blc,chl->bhc", inputs.x, weight.expand(3, -1, -1)) + model.maps()[1].mT
        assert torch.allclose(model(inputs)[:, 0], straight, atol=1e-5)
    if kind == "nlinear":
        assert torch.allclose(weight.sum(2), torch.ones(()), atol=1e-5)


def test_merged_map_is_kept_until_weights_change() -> None:
    model = LinearFamily("dlinear", 48, 12, 3).eval()
    inputs = windows(4, 48, 12, 3)
    torch.manual_seed(1)
    other = LinearFamily("dlinear", 48, 12, 3).eval()
    with torch.no_grad():
        first = model(inputs)
        assert model.maps()[0] is model.maps()[0]
        model.load_state_dict(other.state_dict())
        assert torch.equal(model(inputs), other(inputs)) and not torch.equal(model(inputs), first)
        assert model.seasonal is not None
        model.seasonal.weight.mul_(2)
        assert not torch.equal(model(inputs), other(inputs))
        assert model.double().maps()[0].dtype == torch.float64


def test_exogenous_columns_and_quantiles_add_linear_terms() -> None:
    for individual in (False, True):
        model = LinearFamily(
            "dlinear", 24, 6, 3, past=2, future=1, quantiles=3, individual=individual, kernel=5
        )
        inputs = windows(4, 24, 6, 3, past=2, future=1)
        out = model(inputs)
        assert out.shape == (4, 3, 6, 3)
        assert model.past is not None and model.future is not None
        without = model(inputs._replace(past=inputs.past * 0, future=inputs.future * 0))
        past = model.past.weight.view(-1, 3, 6, 2, 24)  # group, quantile, step, column, offset
        future = model.future.weight.view(-1, 3, 6, 1, 30)
        added = torch.einsum("blp,gqhpl->bqhg", inputs.past, past)
        added = added + torch.einsum("blf,gqhfl->bqhg", inputs.future, future)
        assert torch.allclose(out - without, added.expand_as(out), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_layout_in_memory_does_not_matter(kind: Kind) -> None:
    model = LinearFamily(kind, 48, 12, 3)
    inputs = windows(4, 48, 12, 3)
    turned = inputs._replace(x=inputs.x.mT.contiguous().mT)
    assert torch.allclose(model(inputs), model(turned), atol=1e-6)


def test_missing_values_lie_on_the_line_between_neighbours() -> None:
    x = torch.tensor([0, 1, 0, 0, 7, 0.0]).view(1, 6, 1).repeat(1, 1, 2)
    mask = x != 0
    mask[:, :, 1] = False
    filled = interpolate(x.where(mask, 0), mask)
    assert filled[0, :, 0].tolist() == pytest.approx([1, 1, 3, 5, 7, 7])
    assert filled[0, :, 1].tolist() == [0] * 6
    assert interpolate(x, torch.ones((), dtype=torch.bool).expand(x.shape)) is x
    assert interpolate(x, torch.ones_like(mask)) is x
    assert not interpolate(x * 0, torch.zeros((), dtype=torch.bool).expand(x.shape)).any()


def test_exported_program_interpolates_and_takes_any_batch() -> None:
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = LinearFamily("dlinear", 30, 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            mask = x == x
            nothing = x.new_empty(x.shape[0], 34, 0)
            return self.model(Inputs(x.where(mask, 0), mask, nothing[:, :30], nothing, nothing))

    net = Bare().eval()
    axes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    with torch.no_grad():
        program = torch.export.export(net, (torch.randn(2, 30, 2),), dynamic_shapes=axes).module()
        x = torch.randn(5, 30, 2)
        x[1, 7:11, 0] = torch.nan
        assert torch.allclose(program(x), net(x), atol=1e-6) and net(x).isfinite().all()


def test_kernels_that_cannot_be_are_refused() -> None:
    for kernel in (24, 49):
        with pytest.raises(ValueError, match=f"kernel {kernel}; an odd one of at most 48 steps wanted"):
            LinearFamily("dlinear", 48, 12, 3, kernel=kernel)
