"""Moments by recurrence against those of windows that are really made."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from timeseries.forecast.models import moments as module
from timeseries.forecast.models.moments import Moments, cross_products
from timeseries.forecast.series import Floats

LENGTH, HORIZON, CHANNELS = 12, 5, 3
DEPTH = LENGTH + HORIZON


def rows(count: int = 300, missing: float = 0.0, seed: int = 0) -> Floats:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(count, CHANNELS)).cumsum(0) * 0.3 + 1.0
    x[draw.random(x.shape) < missing] = np.nan
    return x


def close(found: Floats, wanted: Floats, rtol: float = 1e-9) -> bool:
    """Within `rtol` of the largest number."""
    return bool(np.abs(found - wanted).max() <= rtol * max(np.abs(wanted).max(), 1e-300))


def direct(x: Floats, individual: bool) -> dict[str, Floats]:
    """The same sums from the windows themselves."""
    there = np.isfinite(x).astype(float)
    w = sliding_window_view(np.nan_to_num(x), DEPTH, axis=0)  # (N, C, D)
    m = sliding_window_view(there, DEPTH, axis=0)

    def pool(values: Floats) -> Floats:
        return values if individual else values.sum(0, keepdims=True)

    return {
        "products": pool(np.einsum("nci,ncj->cij", w[:, :, :LENGTH], w)),
        "pairs": pool(np.einsum("nci,ncj->cij", m[:, :, :LENGTH], m)),
        "sums": pool(w.sum(0)),
        "squares": pool((w**2).sum(0)),
        "seen": pool(m.sum(0)),
    }


def same(found: Moments, wanted: Moments | dict[str, Floats]) -> None:
    for name in ("products", "pairs", "sums", "squares", "seen", "cross", "extra_products", "extra_sums"):
        want = wanted.get(name) if isinstance(wanted, dict) else getattr(wanted, name)
        have = getattr(found, name)
        if want is None or have is None:
            continue
        assert have.shape == want.shape and close(have, want) if want.size else have.size == 0, name


@pytest.mark.parametrize("individual", [False, True])
@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_recurrence_equals_the_windows_own_products(individual: bool, missing: float) -> None:
    found = Moments(LENGTH, HORIZON, CHANNELS, individual=individual)
    found.add(x := rows(missing=missing))
    assert found.windows == 300 - DEPTH + 1
    same(found, direct(x, individual))
    assert (found.pairs is None) == (missing == 0)


@pytest.mark.parametrize("individual", [False, True])
def test_channels_in_chunks_give_the_same(individual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows()
    x[7, 2] = np.nan  # the last chunk alone has a gap
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    found = Moments(LENGTH, HORIZON, CHANNELS, individual=individual)
    found.add(x)
    same(found, direct(x, individual))


@pytest.mark.parametrize("individual", [False, True])
def test_exogenous_columns(individual: bool) -> None:
    x, extra = rows(), np.random.default_rng(1).normal(size=(300, 3)) + 0.5
    found = Moments(LENGTH, HORIZON, CHANNELS, past=2, future=1, individual=individual)
    found.add(x, extra)
    w, e = sliding_window_view(x, DEPTH, axis=0), sliding_window_view(extra, DEPTH, axis=0)
    features = np.concatenate([e[:, 0, :LENGTH], e[:, 1, :LENGTH], e[:, 2]], 1)
    cross = np.einsum("ne,ncj->cej", features, w)
    assert close(found.cross, cross if individual else cross.sum(0, keepdims=True))
    assert close(found.extra_products, features.T @ features)
    assert close(found.extra_sums, features.sum(0))


@pytest.mark.parametrize("windows", [1, module.DIRECT_WINDOWS, module.DIRECT_WINDOWS + 1, 60])
def test_products_of_two_different_series(windows: int) -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(2, 4, windows + 19))
    for pooled in (False, True):
        found = cross_products(a, b, windows, 9, 20, pooled)
        pairs = [(a[:, s : s + 9], b[:, s : s + 20]) for s in range(windows)]
        wanted = sum(np.einsum("ci,cj->cij", left, right) for left, right in pairs)
        assert close(found, wanted.sum(0, keepdims=True) if pooled else wanted)


@pytest.mark.parametrize("individual", [False, True])
@pytest.mark.parametrize("missing", [0.0, 0.1])
@pytest.mark.parametrize("sizes", [(1,) * 20, (3, 40, 1, 100), (0, 200)])
def test_rows_that_come_give_what_all_rows_at_once_give(
    individual: bool, missing: float, sizes: tuple[int, ...]
) -> None:
    x, extra = rows(400, missing), rows(400, seed=5)[:, :2]
    shape = (LENGTH, HORIZON, CHANNELS, 1, 1, individual)
    online, at = Moments(*shape), 400 - sum(sizes)
    online.add(x[:at], extra[:at])
    for size in sizes:
        online.update(x[at : at + size], extra[at : at + size])
        at += size
    whole = Moments(*shape)
    whole.add(x, extra)
    assert online.windows == whole.windows
    same(online, whole)


@pytest.mark.parametrize("missing", [0.0, 0.1])
def test_rows_that_go_leave_what_the_rest_gives(missing: float) -> None:
    x = rows(400, missing)
    sliding, rest = Moments(LENGTH, HORIZON, CHANNELS), Moments(LENGTH, HORIZON, CHANNELS)
    sliding.add(x[:350])
    for at in range(350, 400, 5):
        sliding.update(x[at : at + 5])
        sliding.downdate(7)
    rest.add(x[70:])
    assert sliding.windows == rest.windows
    same(sliding, rest)


def test_a_gap_that_comes_later_and_several_series() -> None:
    first, second = rows(100), rows(80, 0.1, seed=3)
    found = Moments(LENGTH, HORIZON, CHANNELS)
    found.add(first)
    number = found.add(second[:60])
    found.update(second[60:], series=number)
    one, two = direct(first, False), direct(second, False)
    assert found.windows == 100 + 80 - 2 * (DEPTH - 1)
    same(found, {name: one[name] + two[name] for name in one})


def test_short_series_count_nothing_until_they_are_long_enough() -> None:
    x = rows(DEPTH + 2)
    found, whole = Moments(LENGTH, HORIZON, CHANNELS), Moments(LENGTH, HORIZON, CHANNELS)
    found.add(x[:4])
    assert found.windows == 0 and not found.products.any()
    found.update(x[4:-1])
    found.update(x[-1:])
    whole.add(x)
    assert found.windows == 3
    same(found, whole)


def test_wrong_shapes_and_too_many_rows_to_forget_are_refused() -> None:
    found = Moments(LENGTH, HORIZON, CHANNELS, past=1)
    with pytest.raises(
        ValueError, match=r"rows of shape \(300, 3\) and \(300, 0\); \(rows, 3\) and \(rows, 1\) wanted"
    ):
        found.add(rows())
    found.add(rows(), rows()[:, :1])
    with pytest.raises(ValueError, match="301 rows to forget; series 0 has 300"):
        found.downdate(301)
