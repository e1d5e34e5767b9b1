"""Simulated light curves: repeatable, shaped as their equations say, measured as the survey would, read back whole."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from astro.transients import sample, simulator
from astro.transients.lightcurve import OK, WAVELENGTHS, Floats, LightCurve
from astro.transients.points import DETECTED_SNR
from astro.transients.read import read_path
from astro.transients.sample import BANDS, CLASSES, DEPTHS, classes_of, observed, simulate, write_sample
from astro.transients.simulator import MODELS, Draws, Sky

PARTS = ("time", "band", "flux", "error", "detected")
LSST = WAVELENGTHS["lsst"]


def same(one: LightCurve, other: LightCurve) -> None:
    for part in PARTS:
        assert_array_equal(getattr(one, part), getattr(other, part))
    assert_array_equal([one.redshift, one.redshift_error], [other.redshift, other.redshift_error])
    assert (one.id, one.label, one.survey, one.status) == (other.id, other.label, other.survey, other.status)


@pytest.fixture(scope="module")
def curves() -> list[LightCurve]:
    return simulate(300, seed=4)


def dense(
    name: str, band: str = "r", n: int = 8, days: float = 1000.0, step: float = 1.0, seed: int = 0
) -> Sky:
    """Noiseless objects at equal steps in one band; equal seeds are equal objects."""
    time = np.tile(61_000 + np.arange(0, days, step), (n, 1))
    numbers = np.random.default_rng((seed, len(name))).random((n, time.shape[1] + 300))
    return MODELS[name](Draws(numbers), time, np.full_like(time, LSST[band]))


# ---------------------------------------------------------------- which objects


def test_equal_seeds_give_equal_objects_and_a_longer_list_begins_with_the_shorter(
    curves: list[LightCurve],
) -> None:
    for one, other in zip(simulate(40, seed=4), curves):
        same(one, other)
    assert not np.array_equal(simulate(1, seed=5)[0].time, curves[0].time)
    assert len({curve.id for curve in curves}) == 300 and simulate(0, seed=4) == []


def test_classes_are_equally_frequent_or_as_told(curves: list[LightCurve]) -> None:
    assert Counter(curve.label for curve in curves) == dict.fromkeys(CLASSES, 50)
    mixed = classes_of(1000, {"agn": 7, "flare": 2, "plateau": 1, "periodic": 0})
    assert Counter(mixed) == {"agn": 700, "flare": 200, "plateau": 100}
    assert mixed[:50] == classes_of(50, {"agn": 0.7, "flare": 0.2, "plateau": 0.1})
    assert {curve.label for curve in simulate(5, 0, {"periodic": 1})} == {"periodic"}


@pytest.mark.parametrize("shares", [{}, {"agn": 0}, {"agn": -1, "flare": 2}, {"nova": 1}, {"agn": np.nan}])
def test_shares_that_cannot_be_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="numbers of agn, flare, microlensing, periodic, plateau, supernova"):
        classes_of(3, shares)


def test_objects_are_made_by_the_hundred_not_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(name: str, numbers: Floats, real: Callable[..., sample.Seen] = observed) -> sample.Seen:
        sizes.append(len(numbers))
        return real(name, numbers)

    monkeypatch.setattr(sample, "observed", counted)
    simulate(600, seed=1)
    assert len(sizes) <= 80  # rounds of six classes
    assert 600 <= sum(sizes) <= 1200  # few are drawn again


# ---------------------------------------------------------------- how they are measured


def test_every_object_is_detected_twice_by_the_rule_of_the_readers(curves: list[LightCurve]) -> None:
    for curve in curves:
        assert_array_equal(curve.detected, np.abs(curve.flux) > DETECTED_SNR * curve.error)
        assert curve.detected.sum() >= 2 and curve.status == OK
        assert np.isfinite(curve.flux).all() and (curve.error > 0).all()


def test_visits_are_those_of_a_wide_survey(curves: list[LightCurve]) -> None:
    gaps = np.concatenate([np.diff(curve.time) for curve in curves])
    assert gaps.min() > 0.6  # at most one visit a night
    assert np.mean(gaps[gaps < 60]) == pytest.approx(sample.GAP, abs=0.1)
    for curve in curves:
        season = np.split(curve.time, np.flatnonzero(np.diff(curve.time) > 60) + 1)
        assert len(season) == 3 and all(np.ptp(part) <= sample.SEASON for part in season)
        assert 110 <= len(curve) <= 200
    number = Counter(np.concatenate([curve.band for curve in curves]).tolist())
    shares = np.array([number[band] for band in BANDS]) / number.total()
    assert_allclose(shares, sample.VISITS / sample.VISITS.sum(), atol=0.01)


def test_errors_of_the_faint_are_the_depths_and_of_the_bright_photons_and_calibration() -> None:
    limit = simulator.flux_of(DEPTHS)
    for flux, wanted in ((np.zeros(6), np.sqrt(sample.GAMMA) * limit), (limit, limit / 5)):
        sky = Sky(flux[None], np.zeros((1, 6)), np.full(1, np.nan))
        found = sample.errors(sky, np.arange(6), DEPTHS)[0]
        assert_allclose(found, wanted, rtol=0.02 if flux.any() else 1e-3)
    sky = Sky(np.full((1, 1), 1e7), np.zeros((1, 1)), np.full(1, np.nan))
    assert sample.errors(sky, np.array([2]), DEPTHS[[2]])[0, 0] == pytest.approx(0.005 * 1e7, rel=0.01)
    star = replace(sky, change=-sky.change / 2, steady=sky.change)  # half as bright as its template
    assert sample.errors(star, np.array([2]), DEPTHS[[2]])[0, 0] == pytest.approx(0.0025 * 1e7, rel=0.01)


def test_noise_has_the_size_its_errors_say() -> None:
    seen = observed("flare", np.random.default_rng(0).random((200, sample._NUMBERS)))
    pull = (seen.flux / seen.error)[seen.made]
    assert np.median(np.abs(pull)) == pytest.approx(0.6745, abs=0.02)  # quiet most of the time


def test_only_extragalactic_objects_have_a_host_redshift(curves: list[LightCurve]) -> None:
    far = {"agn", "plateau", "supernova"}
    for curve in curves:
        assert np.isfinite(curve.redshift) == np.isfinite(curve.redshift_error) == (curve.label in far)
    z = np.full(20_000, 0.4)
    found, error = sample.photometric(z, np.random.default_rng(0).standard_normal((len(z), 4))).T
    off = np.abs(found - z) / 1.4
    assert np.median(off) == pytest.approx(0.022, abs=0.004)
    assert 0.03 < np.mean(off > 0.15) < 0.12
    assert np.median(np.abs(found - z) / error) == pytest.approx(0.6745, abs=0.03)


# ---------------------------------------------------------------- shapes


def test_bazin_peaks_at_one_and_rises_faster_than_it_falls() -> None:
    t = np.linspace(-100, 200, 30_001)
    shape = simulator.bazin(t, np.array(4.0), np.array(25.0))
    assert shape.max() == pytest.approx(1, abs=1e-6)
    peak = t[shape.argmax()]
    assert np.interp(0.5, shape[t < peak], t[t < peak]) - peak == pytest.approx(-10.49, abs=0.01)
    assert shape[-1] / np.interp(175, t, shape) == pytest.approx(np.exp(-1), rel=1e-3)


def test_plateau_is_flat_then_drops_by_what_it_was_told() -> None:
    t = np.arange(0.0, 300.0)
    value = simulator.plateau_magnitude(t, *(np.array(v) for v in (100.0, 2.0, 4.0, 0.005)))
    assert value[50] == pytest.approx(0, abs=1e-9)
    assert np.ptp(value[10:80]) < 0.4 and value[140] - value[60] == pytest.approx(2.0 + 80 * 0.005, abs=0.01)
    assert np.diff(value[200:]) == pytest.approx(0.005, abs=1e-6)


def test_supernovae_redden_are_stretched_and_dimmed() -> None:
    g, r = dense("supernova", "g").change, dense("supernova", "r").change
    for one, other in zip(g, r):
        peak = int(other.argmax())
        if 30 < peak < 900:
            assert one[peak + 30] / other[peak + 30] < one[peak] / other[peak]
    magnitude = np.full((2, 1), -19.0)
    near, far = simulator.dimmed(magnitude, np.array([[0.1], [0.5]]))[:, 0]
    # distance moduli 38.315 and 42.270 of H₀ = 70, Ω_m = 0.3
    assert 2.5 * np.log10(near / far) == pytest.approx(42.270 - 38.315 - 2.5 * np.log10(1.5 / 1.1), abs=0.01)

    def width(z: float) -> float:
        """Days above half the peak, in the band that sees 5500 Å."""
        time = np.arange(60_940, 62_000, 0.25)[None]
        numbers = np.full((1, 300), 0.5)
        numbers[0, 0] = ((z - 0.02) / 0.78) ** 2
        seen = MODELS["supernova"](Draws(numbers), time, np.full_like(time, 5500 * (1 + z))).change[0]
        return float((seen > seen.max() / 2).sum() / 4)

    assert width(0.6) / width(0.1) == pytest.approx(1.6 / 1.1, rel=0.02)


def test_plateaus_last_longer_than_supernovae() -> None:
    def days(name: str) -> float:
        flux = dense(name, "i", n=60).change
        return float(np.median((flux > flux.max(1, keepdims=True) / 2).sum(1)))

    assert days("plateau") > 1.8 * days("supernova")


def test_periodic_objects_repeat_with_four_harmonics() -> None:
    numbers = np.tile(np.random.default_rng(3).random(300), (2, 1))
    period = 0.25 * 1200 ** numbers[0, 0]
    time = np.stack([61_000 + np.linspace(0, period, 64, endpoint=False)] * 2)
    time[1] += 7 * period
    sky = simulator.periodic(Draws(numbers), time, np.full_like(time, LSST["g"]))
    assert_allclose(sky.change[0], sky.change[1], rtol=1e-6, atol=1e-6 * np.abs(sky.change).max())
    power = np.abs(np.fft.rfft(np.log(sky.change[0] / sky.steady[0] + 1)))
    assert power[1:5].min() > 1e-3 * power[1] and power[5:].max() < 1e-6 * power[1]


def test_microlensing_is_symmetric_and_the_same_in_every_band() -> None:
    shape = simulator.paczynski(np.linspace(-50, 50, 101), np.array(0.5), np.array(20.0))
    assert_allclose(shape, shape[::-1], rtol=1e-12)
    assert shape.max() == pytest.approx(2.25 / (0.5 * np.sqrt(4.25)))
    gain = [dense("microlensing", band) for band in BANDS]
    for sky in gain[1:]:
        assert_allclose(sky.change / sky.steady, gain[0].change / gain[0].steady, rtol=1e-9)
    assert not np.allclose(gain[0].steady, gain[3].steady)


def test_flares_are_short_blue_and_positive() -> None:
    shape = simulator.flare_shape(np.linspace(-3, 30, 3301))
    assert shape.max() == pytest.approx(1, abs=0.01) and shape[:190].max() == 0
    assert (shape > 0.5).sum() / 100 == pytest.approx(1, abs=0.15)  # its width at half maximum
    u, y = (dense("flare", band, n=4, days=300, step=0.05) for band in "uy")
    assert u.change.min() >= 0 and u.change.max() > 0
    on = u.change > 0
    assert ((u.change / u.steady)[on] > 100 * (y.change / y.steady)[on]).all()
    assert np.mean(u.change > 0.2 * u.change.max(1, keepdims=True)) < 0.01


def test_random_walks_have_the_variance_and_memory_they_were_told() -> None:
    time = np.tile(np.cumsum(np.tile([1.0, 4.0, 10.0], 40)), (4000, 1))
    walk = simulator.damped_walk(
        time, np.full((4000, 1), 30.0), np.random.default_rng(0).standard_normal(time.shape)
    )
    assert_allclose(walk.std(0), 1, atol=0.05)
    lag = time[0, 40] - time[0, 37]
    assert np.corrcoef(walk[:, 37], walk[:, 40])[0, 1] == pytest.approx(np.exp(-lag / 30), abs=0.04)


def test_active_nuclei_vary_most_in_the_blue() -> None:
    u, y = (dense("agn", band) for band in "uy")
    swing = [np.ptp(2.5 * np.log10(sky.change / sky.steady + 1), axis=1) for sky in (u, y)]
    assert_allclose(swing[0] / swing[1], (LSST["u"] / LSST["y"]) ** -0.479, rtol=1e-6)
    assert 0.1 < np.median(swing[0]) < 2


# ---------------------------------------------------------------- files


def test_files_are_read_back_as_they_were_made(tmp_path: Path) -> None:
    paths = write_sample(tmp_path, 4, seed=2)
    assert [path.name for path in paths] == [f"objects-{k:03d}.csv.gz" for k in range(4)]
    back = [read_path(path) for path in paths]
    assert all(3 <= len(part) <= 6 for part in back)
    whole = [curve for part in back for curve in part]
    for one, other in zip(whole, simulate(len(whole), seed=2), strict=True):
        same(one, other)
        assert not any("dropped" in note or "absent" in note for note in one.notes)
    for one, other in zip(whole, read_path(tmp_path), strict=True):  # the folder is the files
        same(one, other)


def test_equal_seeds_write_equal_bytes_and_more_files_begin_with_the_fewer(tmp_path: Path) -> None:
    few, many = (write_sample(tmp_path / name, n, seed=9) for name, n in (("few", 2), ("many", 3)))
    assert [path.read_bytes() for path in few] == [path.read_bytes() for path in many[:2]]
    assert write_sample(tmp_path, 0, seed=9) == []
    head = gzip.decompress(few[0].read_bytes()).decode().splitlines()[0]
    assert head == "object_id,mjd,band,flux,flux_err,detected,zero_point,redshift,redshift_err,label"


def test_a_file_of_galactic_objects_alone_is_read(tmp_path: Path) -> None:
    curves = simulate(3, 0, {"flare": 1})
    path = tmp_path / "stars.csv"
    sample.to_frame(curves).to_csv(path, index=False)
    for one, other in zip(read_path(path), curves, strict=True):
        same(one, other)


def test_the_card_says_what_it_is_and_is_not() -> None:
    assert "none is real" in sample.ABOUT and all(name in sample.ABOUT for name in CLASSES)
