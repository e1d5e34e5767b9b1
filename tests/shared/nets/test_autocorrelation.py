"""Auto-Correlation: circular correlation, delays of training and of prediction, the merged maps, cross form, masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from shared.nets.measure import count_params
from shared.nets.mixers.autocorrelation import AutoCorrelation, TopDelays, _placed, _spectrum


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plain(dim: int, factor: float = 3) -> AutoCorrelation:
    """All maps the identity."""
    mixer = AutoCorrelation(dim, factor=factor).double().eval()
    with torch.no_grad():
        for part in (mixer.query, mixer.key, mixer.value, mixer.out):
            part.weight.copy_(torch.eye(dim))
            if part.bias is not None:
                part.bias.zero_()
    return mixer


def correlation(mixer: AutoCorrelation, x: Tensor, y: Tensor) -> Tensor:
    length = x.shape[1]
    present = _spectrum(y.new_ones(1, y.shape[1]), length)
    return mixer._correlation(x, _spectrum(y, length), present, None)


def published(mixer: AutoCorrelation, x: Tensor, y: Tensor, training: bool) -> Tensor:
    """Equations 5 to 7 word by word: projections, direct sums, shifted copies."""
    length, steps = x.shape[1], min(x.shape[1], y.shape[1])
    q, k, v = mixer.query(x), *(x.new_zeros(len(x), length, x.shape[2]) for _ in range(2))
    k[:, :steps], v[:, :steps] = mixer.key(y)[:, :steps], mixer.value(y)[:, :steps]
    r = torch.stack([(q.roll(-t, 1) * k).sum(1).mean(-1) for t in range(length)], 1)
    n = int(mixer.choose.factor * math.log(length))
    chosen = r.mean(0, keepdim=True).expand_as(r) if training else r
    delays = chosen.topk(n, 1).indices
    weights = r.gather(1, delays).softmax(1)
    rows = [sum(w * one.roll(-int(d), 0) for w, d in zip(ws, ds)) for one, ws, ds in zip(v, weights, delays)]
    return mixer.out(torch.stack(rows))  # type: ignore[no-any-return, arg-type]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(24, 24), (24, 17), (24, 31)])
@pytest.mark.parametrize("dim", [4, 64])  # maps merged, and one after the other
def test_it_is_what_the_paper_says(training: bool, queries: int, keys: int, dim: int) -> None:
    torch.manual_seed(0)
    mixer = AutoCorrelation(dim, factor=2, key_bias=True).double().train(training)
    x, y = drawn(3, queries, dim), drawn(3, keys, dim, seed=1)
    found, wanted = (f.requires_grad_() for f in (x.clone(), x.clone()))
    out, right = mixer.between(found, y), published(mixer, wanted, y, training)
    torch.testing.assert_close(out, right, rtol=0, atol=1e-11)
    out.square().sum().backward()
    right.square().sum().backward()
    torch.testing.assert_close(found.grad, wanted.grad, rtol=0, atol=1e-9)


def test_correlation_of_one_with_an_impulse() -> None:
    r = correlation(
        plain(1), torch.tensor([[[1.0], [2], [3], [4]]]).double(), torch.eye(4).double()[None, :, :1]
    )
    torch.testing.assert_close(r, torch.tensor([[1.0, 2, 3, 4]]).double())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_correlation_is_the_direct_sum(dtype: torch.dtype, tolerance: float) -> None:
    x, y = drawn(2, 96, 6, dtype=dtype), drawn(2, 96, 6, dtype=dtype, seed=1)
    direct = torch.stack([(x.roll(-t, 1) * y).sum((1, 2)) for t in range(96)], 1)
    found = 6 * correlation(plain(6).to(dtype), x, y)
    torch.testing.assert_close(found, direct, rtol=0, atol=tolerance)


def test_a_sine_resembles_itself_a_period_later() -> None:
    x = torch.sin(torch.arange(96).double() * (2 * math.pi / 24)).view(1, 96, 1)
    mixer = plain(1, factor=1)
    r = correlation(mixer, x, x)[0]
    torch.testing.assert_close(r[[0, 24, 48, 72]], torch.full((4,), 48.0).double())
    assert sorted(mixer.choose(r[None])[0][0].tolist()) == [0, 24, 48, 72]
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), x, rtol=0, atol=1e-12)
        torch.testing.assert_close(mixer.float()(x.float()), x.float(), rtol=0, atol=2e-6)


def test_training_takes_the_delays_of_the_batch() -> None:
    torch.manual_seed(0)
    mixer, x = AutoCorrelation(8).double(), drawn(2, 30, 8)
    with torch.no_grad():
        torch.testing.assert_close(mixer.train()(x[:1]), mixer.eval()(x[:1]), rtol=0, atol=0)
        assert (mixer.train()(x) - mixer.eval()(x)).abs().max() > 1e-3
    delays, weights = mixer.choose.train()(drawn(2, 30))
    assert (delays[0] == delays[1]).all() and (weights[0] != weights[1]).any()


@pytest.mark.parametrize(
    ("length", "factor", "wanted"), [(96, 3, 13), (96, 1, 4), (144, 3, 14), (36, 3, 10), (1, 3, 1), (2, 9, 2)]
)
def test_number_of_delays(length: int, factor: float, wanted: int) -> None:
    assert TopDelays(factor).number(length) == wanted


def test_masked_sums_are_over_valid_tokens() -> None:
    """A constant series stays constant, whatever is missing of it."""
    x, mask = torch.ones(1, 20, 1).double(), torch.arange(20)[None] % 3 > 0
    with torch.no_grad():
        out = plain(1)(x * mask[..., None], mask)
    torch.testing.assert_close(out, x)


def test_numbers_of_parameters() -> None:
    with torch.device("meta"):
        assert count_params(AutoCorrelation(512, key_bias=True)) == 1_050_624
        assert count_params(AutoCorrelation(512)) == 1_050_624 - 512


def test_weights_stand_at_their_delays() -> None:
    placed = _placed(torch.tensor([[2, 0]]), torch.tensor([[0.7, 0.3]]), 4)
    torch.testing.assert_close(placed, torch.tensor([[0.3, 0, 0.7, 0]]))
