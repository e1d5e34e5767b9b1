"""Autoformer: the authors' outputs, its number of parameters, and what is ours: further columns, quantiles, gaps."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets.blocks.decomposition import SeriesDecomposition, moving_average
from shared.nets.measure import count_params
from timeseries.forecast.models.autoformer import Autoformer, CircularConv, complete, top_delays
from timeseries.forecast.windows import Inputs

GOLDEN = Path(__file__).parent / "golden" / "autoformer.json"
CASES: dict[str, dict[str, Any]] = {
    "keys shorter": {"length": 36, "label_length": 18, "horizon": 24, "factor": 1, "encoder_layers": 2},
    "keys longer": {"length": 48, "label_length": 12, "horizon": 16, "factor": 3, "decoder_layers": 2},
}
SMALL: dict[str, Any] = {"width": 16, "heads": 4, "feedforward": 32, "kernel": 5, "dropout": 0.0}
B, C = 3, 2


def ruled(module: nn.Module) -> nn.Module:
    """Weights by a rule that knows nothing but their names."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            start = zlib.crc32(name.encode()) % 97
            p.copy_(0.5 * torch.sin(torch.arange(p.numel()) * 1.7 + start).view(p.shape))
    return module


def place_values(*shape: int) -> Tensor:
    """Inputs by a rule: no draw, no rhythm that two delays would share."""
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (torch.sin(n * 0.83) + torch.sin(n * n * 0.0137)).view(shape).float()


def given(
    length: int, horizon: int, *, batch: int = B, past: int = 0, future: int = 0, marks: int = 4
) -> Inputs:
    there = torch.ones(batch, length, C, dtype=torch.bool)
    return Inputs(
        place_values(batch, length, C),
        there,
        place_values(batch, length, past),
        place_values(batch, length + horizon, future),
        place_values(batch, length + horizon, marks) / 4,
    )


def small(length: int = 24, horizon: int = 12, label_length: int = 12, **options: Any) -> Autoformer:
    torch.manual_seed(0)
    model = Autoformer(length, horizon, C, label_length=label_length, **SMALL | options)
    return ruled(model).eval()  # type: ignore[return-value]


# ---------------------------------------------------------------- the published network


@pytest.mark.parametrize("form", ["train", "eval"])
@pytest.mark.parametrize("case", CASES)
def test_the_authors_outputs(case: str, form: str) -> None:
    """Outputs of github.com/thuml/Autoformer, models/Autoformer.py, in float64 with `ruled` weights under our names
    (table in benchmarks/forecast_autoformer.py), inputs `given`, every fourth row of what it forecasts."""
    options = CASES[case]
    model, inputs = small(**options).train(form == "train"), given(options["length"], options["horizon"])
    with torch.no_grad():
        single = model(inputs)[:, 0, ::4]
        inputs = Inputs(*(v if v.dtype == torch.bool else v.double() for v in inputs))
        found = model.double()(inputs)[:, 0, ::4]
    wanted = torch.tensor(json.loads(GOLDEN.read_text())[case][form], dtype=torch.float64).view(found.shape)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(single.double(), wanted, rtol=0, atol=2e-5)


def test_the_forms_differ_between_training_and_prediction() -> None:
    one, several = given(24, 12, batch=1), given(24, 12)
    model = small()
    with torch.no_grad():
        torch.testing.assert_close(model.train()(one), model.eval()(one), rtol=0, atol=0)
        assert (model.train()(several) - model.eval()(several)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("channels", "marks", "wanted"),
    [
        (7, 4, 10_535_943),
        (8, 4, 10_541_064),
        (21, 4, 10_607_637),
        (321, 4, 12_143_937),
        (862, 4, 14_914_398),
        (7, 5, 10_536_967),
    ],
)
def test_published_numbers_of_parameters(channels: int, marks: int, wanted: int) -> None:
    with torch.device("meta"):
        model = Autoformer(96, 96, channels, marks=marks)
    assert count_params(model) == wanted == 10_500_096 + 5_121 * channels + 1_024 * (marks - 4)


def test_parameters_by_part_and_of_the_reduced_network() -> None:
    with torch.device("meta"):
        model = Autoformer(96, 96, 7)
        reduced = Autoformer(96, 96, 7, width=64, feedforward=256)
    assert count_params(model.encoder[0].mixer) == 1_050_624  # type: ignore[arg-type]
    assert count_params(model.encoder[0].ffn) == 2_097_152  # type: ignore[arg-type]
    assert count_params(model.encoder) == 6_295_552
    assert count_params(model.decoder) == 4_198_400 + 1_536 * 7
    assert count_params(model.encoder_norm) + count_params(model.decoder_norm) == 2_048
    assert count_params(reduced) == 170_119


def test_columns_and_quantiles_cost_parameters_only_when_there() -> None:
    with torch.device("meta"):
        plain, more = (Autoformer(96, 96, 7, **extra) for extra in ({}, {"past": 2, "future": 3}))
        wide, bare = Autoformer(96, 96, 7, quantiles=3), Autoformer(96, 96, 7, marks=0)
    assert count_params(more) - count_params(plain) == 3 * 512 * (2 + 3 + 3)
    assert count_params(wide) - count_params(plain) == 2 * 7 * (3 * 512 + 512 + 1)
    assert count_params(plain) - count_params(bare) == 2 * 4 * 512


def test_refusals() -> None:
    with pytest.raises(ValueError, match="label_length 48; 1 to the input length, 24, wanted"):
        Autoformer(24, 12, 2)
    with pytest.raises(ValueError, match="3 heads do not divide width 512"):
        Autoformer(96, 12, 2, heads=3)
    with pytest.raises(ValueError, match="kernel 24; an odd one wanted"):
        Autoformer(96, 12, 2, kernel=24)


# ---------------------------------------------------------------- its parts


def test_moving_averages_of_a_ramp() -> None:
    short = moving_average(torch.arange(1.0, 11)[None, :, None], 5).flatten()
    torch.testing.assert_close(short, torch.tensor([1.6, 2.2, 3, 4, 5, 6, 7, 8, 8.8, 9.4]), rtol=0, atol=1e-5)
    long = moving_average(torch.arange(30.0)[None, :, None], 25).flatten()
    torch.testing.assert_close(long[:4], torch.tensor([3.12, 3.64, 4.2, 4.8]), rtol=0, atol=1e-5)
    torch.testing.assert_close(long[-4:], torch.tensor([24.2, 24.8, 25.36, 25.88]), rtol=0, atol=1e-5)


def test_decomposition_sums_to_the_series() -> None:
    x = place_values(2, 40, 3)
    seasonal, trend = SeriesDecomposition(25)(x)
    torch.testing.assert_close(seasonal + trend, x, rtol=0, atol=1e-6)
    assert SeriesDecomposition(1)(x)[0].abs().max() == 0


@pytest.mark.parametrize(("channels", "out"), [(3, 8), (8, 3)])
def test_circular_convolution_is_torchs(channels: int, out: int) -> None:
    conv, x = CircularConv(channels, out).double(), place_values(2, 9, channels).double()
    padded = F.pad(x.transpose(1, 2), (1, 1), mode="circular")
    torch.testing.assert_close(conv(x), F.conv1d(padded, conv.weight).transpose(1, 2))


# ---------------------------------------------------------------- missing values, columns, quantiles


def test_missing_values_are_not_read() -> None:
    """Whatever stands where the mask is False; gaps wider than the kernel and channels without a value, too."""
    inputs, model = given(24, 12), small()
    mask = torch.rand(inputs.mask.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    mask[0, 5:17, 0] = False
    mask[1, :, 1] = False
    with torch.no_grad():
        first, second = (
            model(inputs._replace(x=torch.where(mask, inputs.x, value), mask=mask)) for value in (0.0, 9.0)
        )
    assert torch.isfinite(first).all()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    x = inputs.x.requires_grad_()
    model(inputs._replace(x=x, mask=mask)).square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and (x.grad[~mask] == 0).all()


def test_a_missing_value_is_the_mean_of_those_around_it() -> None:
    x = torch.tensor([1.0, 2, 99, 4, 6, 99, 99, 99])[None, :, None]
    mask = torch.tensor([1, 1, 0, 1, 1, 0, 0, 0]).bool()[None, :, None]
    filled, mean = complete(x, mask, 3)
    torch.testing.assert_close(mean.flatten(), torch.tensor([3.25]))
    torch.testing.assert_close(filled.flatten(), torch.tensor([1, 2, 3, 4, 6, 6, 3.25, 3.25]))


def test_future_columns_and_quantiles_reach_the_forecast() -> None:
    model = small(past=1, future=2, quantiles=3)
    inputs = given(24, 12, past=1, future=2)
    moved = inputs._replace(future=inputs.future + (torch.arange(36) >= 30)[:, None])
    with torch.no_grad():
        out, other = model(inputs), model(moved)
    assert out.shape == (B, 3, 12, C)
    assert (out - other).abs().amax((0, 2, 3)).min() > 1e-3
    assert (out[:, 0] - out[:, 2]).abs().max() > 1e-3


def test_parts_sum_to_the_forecast_without_marks() -> None:
    model, inputs = small(marks=0), given(24, 12, marks=0)
    with torch.no_grad():
        seasonal, trend = model.parts(inputs)
        torch.testing.assert_close(seasonal + trend, model(inputs))
    assert seasonal.shape == trend.shape == (B, 1, 12, C)


def test_top_delays_of_every_layer() -> None:
    model, inputs = small(length=48, label_length=24, factor=1).train(), given(48, 12)
    found = top_delays(model, inputs)
    assert list(found) == ["encoder.0.mixer", "encoder.1.mixer", "decoder.0.mixer", "decoder.0.cross"]
    delays, weights = found["encoder.0.mixer"]
    assert delays.shape == weights.shape == (B, 3)  # floor(ln 48)
    assert (weights.diff(dim=1) <= 0).all() and (delays < 48).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(B))
    assert model.training and model.encoder[0].mixer.choose.training  # type: ignore[union-attr]
    assert not model.encoder[0].mixer.choose._forward_hooks  # type: ignore[union-attr]
