"""Altered copies of training curves: what they may differ in, and what they may not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astro.transients.augment import FAINTEST, altered
from astro.transients.lightcurve import MIN_POINTS, LightCurve
from astro.transients.points import DETECTED_SNR
from astro.transients.sample import simulate

PARTS = ("time", "band", "flux", "error", "detected")
FIRST = 60_010.0
"""Of the detections of `made`."""


def made(error: float = 1.0, bright: float = 400.0, n: int = 240) -> LightCurve:
    """Four points a day for 60 days, nothing for ten days and then a slow decline, every tenth point negative."""
    time = 60_000 + np.arange(n) / 4
    flux = np.where(time < FIRST, 0.0, bright * np.exp(-(time - FIRST) / 40))
    flux[9::10] *= -1
    errors = np.full(n, error)
    seen = np.abs(flux) > DETECTED_SNR * errors
    return LightCurve(
        *("one", time, np.array(list("ugrizy"))[np.arange(n) % 6], flux, errors, seen),
        redshift=0.3,
        redshift_error=0.01,
        label="Ia",
        source="here",
    )


def alerts_only(error: float = 1.0, bright: float = 400.0, n: int = 60) -> LightCurve:
    curve = made(error, bright, n)
    return replace(curve, flux=np.linspace(bright, bright / 2, n), detected=np.ones(n, bool))


def rows_of(copy: LightCurve, curve: LightCurve) -> Any:
    """Which points of `curve` those of `copy` are: no time occurs twice."""
    rows = np.searchsorted(curve.time, copy.time)
    np.testing.assert_array_equal(curve.time[rows], copy.time)
    np.testing.assert_array_equal(curve.band[rows], copy.band)
    return rows


def copies(curve: LightCurve, number: int, **over: float) -> list[LightCurve]:
    random = np.random.default_rng(0)
    return [altered(curve, random, **over) for _ in range(number)]


def assert_equal(one: LightCurve, two: LightCurve) -> None:
    for part in PARTS:
        np.testing.assert_array_equal(getattr(one, part), getattr(two, part))


# ---------------------------------------------------------------- brightness and precision


@given(st.integers(0, 10_000))
def test_never_more_precise(seed: int) -> None:
    curve = made(error=20.0)
    copy = altered(curve, np.random.default_rng(seed))
    rows = rows_of(copy, curve)
    assert (copy.error >= curve.error[rows]).all()
    assert (copy.error <= np.sqrt(2) * curve.error[rows] * (1 + 1e-12)).all()


@given(st.integers(0, 10_000))
def test_never_brighter(seed: int) -> None:
    """Shown where noise is nothing: every flux shrinks by one and the same factor."""
    curve = made(error=1e-9)
    copy = altered(curve, np.random.default_rng(seed))
    rows = rows_of(copy, curve)
    own = curve.flux[rows]
    assert (np.abs(copy.flux) <= np.abs(own) + 1e-7).all()
    factor = copy.flux[own != 0] / own[own != 0]
    assert np.ptp(factor) < 1e-9 and 0.2 < factor.mean() <= 1


def test_errors_never_say_less_than_the_scatter() -> None:
    """Pure noise of 1 σ: a copy's is at most its own, larger error. Its old noise fades with the object."""
    random = np.random.default_rng(1)
    curve = made(error=2.0, n=4000)
    noise = replace(curve, flux=2 * random.normal(size=4000), detected=np.zeros(4000, bool))
    pulls = [np.std(copy.flux / copy.error) for copy in copies(noise, 50, cut=0.0)]
    assert np.median(pulls) > 0.85 and max(pulls) < 1.03


def test_detections_are_those_of_the_new_signal_to_noise() -> None:
    curve = made(error=20.0)
    for copy in copies(curve, 50):
        np.testing.assert_array_equal(copy.detected, np.abs(copy.flux) > DETECTED_SNR * copy.error)
    assert np.mean([copy.detected.mean() for copy in copies(curve, 50, cut=0.0)]) < curve.detected.mean()


# ---------------------------------------------------------------- which points are kept


def test_at_most_two_fifths_are_dropped_and_the_rest_is_in_order() -> None:
    curve = made(n=4000)
    share = [len(copy) / len(curve) for copy in copies(curve, 60, cut=0.0)]
    assert 0.57 < min(share) < 0.7 and 0.95 < max(share) <= 1


@given(st.integers(0, 10_000), st.integers(MIN_POINTS, 8), st.floats(0, 1), st.floats(0, 40))
def test_three_points_are_kept(seed: int, n: int, cut: float, days: float) -> None:
    for curve in (made(n=n), made(error=500.0, n=n), alerts_only(n=n), alerts_only(bright=0.1, n=n)):
        copy = altered(curve, np.random.default_rng(seed), cut, days)
        assert MIN_POINTS <= len(copy) <= n


def test_what_would_not_have_sent_an_alert_vanishes() -> None:
    """Where each point is a detection, a copy's are, and fainter ones are gone: no forced photometry appears."""
    curve, lengths = alerts_only(error=50.0), []
    for copy in copies(curve, 80, cut=0.0):
        assert copy.detected.all()
        lengths.append(len(copy))
        if len(copy) < len(curve):
            assert (copy.flux > FAINTEST * copy.error).all()
    assert min(lengths) < 0.4 * len(curve)
    bright = copies(alerts_only(error=0.1), 80, cut=0.0)
    assert min(len(copy) for copy in bright) > 0.4 * len(curve)


# ---------------------------------------------------------------- cut ones


def test_a_cut_copy_ends_at_the_first_detection_and_days() -> None:
    """With a mean of no days, the two that are always added remain; what was there before the detection stays."""
    for copy in copies(made(), 60, cut=1.0, days=0.0):
        assert copy.time[copy.detected].min() < FIRST + 1.5
        assert copy.time[-1] <= copy.time[copy.detected].min() + 2
        assert copy.time[0] < FIRST - 5


def test_half_are_cut_and_by_an_exponential() -> None:
    curve = alerts_only(error=0.01, n=2000)
    ends = np.array([copy.time[-1] - copy.time[0] for copy in copies(curve, 400, days=20.0)])
    cut = ends < 450
    assert 0.42 < cut.mean() < 0.58
    assert 18 < ends[cut].mean() < 25 and ends[cut].max() > 50
    none = [copy.time[-1] - copy.time[0] for copy in copies(curve, 50, cut=0.0)]
    assert min(none) > 490


def test_nothing_detected_is_cut_from_the_first_point_on() -> None:
    curve = made(error=1e4)
    for copy in copies(curve, 20, cut=1.0, days=0.0):
        assert not copy.detected.any() and copy.time[-1] <= copy.time[0] + 2


# ---------------------------------------------------------------- the same again


def test_the_generator_decides_and_the_curve_is_left_alone() -> None:
    curve = simulate(6, 3)[0]
    before = replace(curve, **{part: getattr(curve, part).copy() for part in PARTS})
    one, two, other = (altered(curve, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert_equal(one, two)
    assert len(one) != len(other) or not np.array_equal(one.flux, other.flux)
    assert_equal(curve, before)


def test_the_rest_of_the_object_is_kept() -> None:
    curve = made()
    for copy in copies(curve, 5):
        for name in ("id", "label", "survey", "redshift", "redshift_error", "source", "status"):
            assert getattr(copy, name) == getattr(curve, name)
    with pytest.raises(AttributeError):
        curve.label = "II"  # type: ignore[misc]
