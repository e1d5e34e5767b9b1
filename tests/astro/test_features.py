"""Summary numbers of light curves and the boosted trees on them: what they say, and what may not change them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.ensemble import HistGradientBoostingClassifier

from astro.transients.features import (
    feature_names,
    features,
    grid_feature_names,
    grid_features,
    number_names,
    numbers,
)
from astro.transients.grids import inputs_of
from astro.transients.lightcurve import Floats, LightCurve
from astro.transients.metrics import summary
from astro.transients.read import read_path
from astro.transients.t2 import Inputs
from astro.transients.trees import Trees

BANDS = ("g", "r", "i", "z")


def curve(bands: str = "griz", points: int = 30, scale: float = 1.0, **over: float) -> LightCurve:
    """A Bazin curve in each band, redder ones fainter and slower, peaks near MJD 56300."""
    random = np.random.default_rng(0)
    parts = []
    for k, band in enumerate(bands):
        time = np.sort(random.uniform(56240, 56400, points))
        late = time - 56290
        flux = 200 / (k + 1) * np.exp(-late / (25 + 5 * k)) / (1 + np.exp(-late / 4))
        parts.append((time, np.full(points, band), flux + random.normal(0, 2, points)))
    time, band, flux = (np.concatenate(part) for part in zip(*parts))
    order = np.argsort(time, kind="stable")
    flux, error = scale * flux[order], np.full(len(time), 2.0 * scale)
    return LightCurve("a", time[order], band[order], flux, error, flux > 5 * error, "des", **over)


def value(one: LightCurve, name: str, bands: tuple[str, ...] = BANDS) -> float:
    return float(features([one], bands)[0, feature_names(bands).index(name)])


def table(rows: int = 600) -> tuple[Floats, Floats]:
    """Three classes that four of six columns tell, a fifth of the values missing, one column empty."""
    random = np.random.default_rng(1)
    y = random.choice(3, rows, p=[0.7, 0.2, 0.1])
    x = random.normal(size=(rows, 6)) + y[:, None] * [1.0, 0.5, -1.0, 0.8, 0.0, 0.0]
    x[random.random(x.shape) < 0.2] = np.nan
    x[:, 5] = np.nan
    return x, y


# ---------------------------------------------------------------- features


def test_numbers_of_a_known_curve() -> None:
    one = curve()
    values, names = features([one], BANDS), feature_names(BANDS)
    assert values.shape == (1, len(names)) and values.dtype == np.float32
    assert len(set(names)) == len(names)
    assert value(one, "points") == 120 and value(one, "points_r") == 30
    assert value(one, "span") == pytest.approx(np.ptp(one.time))
    assert value(one, "log_flux") == pytest.approx(np.log(one.flux.max()))
    assert value(one, "bazin_fit_fall_time_g") == pytest.approx(25, rel=0.1)
    assert value(one, "bazin_fit_rise_time_g") == pytest.approx(4, rel=0.2)
    # The blue band is the brightest one and fades first.
    assert value(one, "gr_peak") < 0 and value(one, "ri_day+0") < 0
    assert value(one, "decline_g") < value(one, "decline_z")
    assert value(one, "rise_g") < value(one, "decline_g")


def test_brightness_is_one_number_and_time_has_no_zero() -> None:
    names = feature_names(BANDS)
    one, bright = features([curve()], BANDS)[0], features([curve(scale=8.0)], BANDS)[0]
    same = [n != "log_flux" for n in names]
    # A least-squares fit stops where rounding lets it.
    np.testing.assert_allclose(one[same], bright[same], rtol=2e-2, atol=1e-3)
    assert bright[0] - one[0] == pytest.approx(np.log(8), abs=1e-5)
    late = replace(curve(), time=curve().time + 1000)
    np.testing.assert_allclose(one, features([late], BANDS)[0], rtol=2e-2, atol=1e-3)


def test_order_of_points_and_of_curves_changes_nothing() -> None:
    one, random = curve(), np.random.default_rng(2)
    # Two points at the same time in the same band have no order of their own.
    one = replace(one, time=np.round(one.time))
    mixed = random.permutation(len(one))
    parts = {name: getattr(one, name)[mixed] for name in ("time", "band", "flux", "error", "detected")}
    np.testing.assert_array_equal(features([one], BANDS), features([replace(one, **parts)], BANDS))
    few = curve("gr", 9)
    both, swapped = features([one, few], BANDS), features([few, one], BANDS)
    np.testing.assert_array_equal(both, swapped[::-1])
    np.testing.assert_array_equal(both[:1], features([one], BANDS))


def test_what_a_band_lacks_is_nan() -> None:
    names, values = feature_names(BANDS), features([curve("gr")], BANDS)[0]
    for name, x in zip(names, values):
        if name.endswith(("_i", "_z")) or name.startswith(("ri_", "iz_")):
            assert np.isnan(x), name
    assert np.isfinite(values[names.index("gr_peak")])


@pytest.mark.parametrize("points", [0, 1, 2, 5])
def test_few_points(points: int) -> None:
    one = curve("g", 30)
    some = replace(
        one, **{n: getattr(one, n)[:points] for n in ("time", "band", "flux", "error", "detected")}
    )
    values, names = features([some], BANDS)[0], feature_names(BANDS)
    assert not np.isinf(values).any()
    assert np.isnan(values[names.index("peak_g")])
    assert np.isnan(values).all() if points == 0 else values[names.index("points_g")] == points


def test_faint_and_negative_curves_have_numbers() -> None:
    one = curve()
    for flux in (-np.abs(one.flux), np.zeros(len(one)), one.flux * 1e-30):
        values = features([replace(one, flux=flux, detected=np.zeros(len(one), bool))], BANDS)
        assert np.isfinite(values[0, feature_names(BANDS).index("points_g")])
        assert not np.isinf(values).any()


def test_redshift_only_where_wanted() -> None:
    one = curve(redshift=0.3, redshift_error=0.05)
    with_z = features([one, curve()], BANDS, redshift=True)
    names = ["redshift", "redshift_error", "log_luminosity", "rest_span"]
    assert feature_names(BANDS, redshift=True)[-4:] == names
    # 1,600 Mpc at z = 0.3 (Planck 2018), and a third as many days again stretched out of what it lasted.
    bright = np.log(one.flux.max()) + 2 * np.log(1600)
    np.testing.assert_allclose(with_z[0, -4:], [0.3, 0.05, bright, np.ptp(one.time) / 1.3], rtol=2e-3)
    assert np.isnan(with_z[1, -4:]).all()
    assert np.isnan(features([curve(redshift=0.0)], BANDS, redshift=True)[0, -2])
    np.testing.assert_array_equal(with_z[:, :-4], features([one, curve()], BANDS))
    assert features([], BANDS, redshift=True).shape == (0, with_z.shape[1])


# ---------------------------------------------------------------- trees


@pytest.mark.parametrize("classes", [2, 3])
def test_evaluator_is_sklearns(classes: int) -> None:
    x, y = table()
    x[:, 5], y = x[:, 0], np.minimum(y, classes - 1)
    x = x.astype(np.float32)
    grown = HistGradientBoostingClassifier(max_iter=30, random_state=0).fit(x, y)
    trees = Trees.from_sklearn(grown, classes)
    # Values the trees were not grown on, of one row or many, missing or at a threshold itself; features are of single
    # precision, and so are the trees' numbers, for a bundle keeps no others.
    fresh = np.concatenate([x, table()[0][:, ::-1], np.full((1, 6), np.nan)])
    fresh = np.concatenate([fresh, np.resize(trees.threshold, (50, 6))]).astype(np.float32)
    np.testing.assert_allclose(trees.probabilities(fresh), grown.predict_proba(fresh), atol=1e-6)
    for array in (trees.threshold, trees.value, trees.baseline):
        np.testing.assert_array_equal(array, array.astype(np.float32))
    np.testing.assert_allclose(trees.probabilities(fresh[:1]), trees.probabilities(fresh)[:1], atol=1e-12)


def test_state_is_tensors_and_comes_back(tmp_path: Path) -> None:
    x, y = table()
    trees = Trees.fit(x, y, 4, 0, rounds=20)
    save_file(trees.state(), tmp_path / "trees.safetensors")
    again = Trees.of(load_file(tmp_path / "trees.safetensors"))
    np.testing.assert_array_equal(trees.probabilities(x), again.probabilities(x))
    assert trees.probabilities(x).shape == (600, 4)
    assert (trees.probabilities(x)[:, 3] == 0).all(), "no object of the fourth class was seen"
    with pytest.raises(ValueError, match="wanted"):
        Trees.of({"value": trees.state()["value"]})


def test_same_seed_same_trees_and_missing_columns() -> None:
    x, y = table()
    one, two = (Trees.fit(x, y, 3, 5, rounds=20) for _ in range(2))
    np.testing.assert_array_equal(one.probabilities(x), two.probabilities(x))
    # A column that training never saw says nothing.
    np.testing.assert_array_equal(one.probabilities(x), one.probabilities(np.nan_to_num(x[:, [5]]) * 0 + x))
    filled = x.copy()
    filled[:, 5] = 3.0
    np.testing.assert_array_equal(one.probabilities(x), one.probabilities(filled))


def test_every_class_counts_alike() -> None:
    x, y = table(1500)
    plain = HistGradientBoostingClassifier(max_iter=30, random_state=0).fit(x[:, :5], y)
    rare = plain.predict_proba(x[:, :5])[:, 2].mean()
    assert Trees.fit(x, y, 3, 0, rounds=30).probabilities(x)[:, 2].mean() > 1.3 * rare


def test_wrong_labels_and_shapes() -> None:
    x, y = table(60)
    with pytest.raises(ValueError, match="two or more"):
        Trees.fit(x, np.zeros(60, int), 3)
    with pytest.raises(ValueError, match="of 2 classes"):
        Trees.fit(x, y, 2)
    with pytest.raises(ValueError, match=r"\(N, 6\) wanted"):
        Trees.fit(x, y, 3, rounds=2).probabilities(x[:, :5])


# ---------------------------------------------------------------- of the grid


def gridded(days: float = 100.0) -> Inputs:
    """Two bumps over 101 times: g's of height 10 at day 40, 10 days wide at half its height, r's of 4 at day 50; the
    highest mean over both, of 5, is at day 40."""
    day = torch.linspace(0, days, 101)
    mean = torch.stack(
        [10 * torch.exp(-np.log(2) * ((day - 40) / 5.4) ** 2), 4.0 * ((day - 50).abs() < 3).float()], -1
    )
    sd = torch.stack([torch.full_like(day, 0.5), 0.01 * day], -1)
    return Inputs(
        mean[None],
        sd[None],
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([days]),
        torch.full((1, 2), torch.nan),
    )


def test_numbers_of_a_known_grid() -> None:
    names, values = grid_feature_names("gr"), grid_features(gridded())
    assert values.shape == (1, len(names)) and len(set(names)) == len(names) and values.dtype == np.float32
    found = dict(zip(names, map(float, values[0])))
    assert found["gp_log_top"] == pytest.approx(np.log(5))
    assert found["gp_before_top"] == pytest.approx(40) and found["gp_after_top"] == pytest.approx(60)
    assert found["gp_peak_g"] == pytest.approx(2) and found["gp_peak_r"] == pytest.approx(0.8)
    assert found["gp_time_of_peak_g"] == 0 and found["gp_time_of_peak_r"] == pytest.approx(8)
    assert (found["gp_rise_g"], found["gp_decline_g"]) == (pytest.approx(5), pytest.approx(5))
    assert (found["gp_rise_r"], found["gp_decline_r"]) == (0, pytest.approx(4))
    assert found["gp_mean_r"] == pytest.approx(4 * 5 / 101 / 5)
    assert found["gp_sd_g"] == pytest.approx(0.1) and found["gp_sd_r"] == pytest.approx(0.1)
    assert found["gp_mean+0_g"] == pytest.approx(2) and found["gp_mean+10_r"] == pytest.approx(0.8)
    assert found["gp_sd+20_r"] == pytest.approx(0.6 / 5) and found["gp_sd-40_r"] == 0
    assert found["gp_gr+0"] == pytest.approx(np.arcsinh(40)) and found["gp_gr+10"] < 0
    beyond = [name for name in names if np.isnan(found[name])]
    assert {name.split("+")[1].split("_")[0] for name in beyond} == {"90", "150"} and len(beyond) == 10


def test_phases_are_read_between_the_times_of_a_grid() -> None:
    """The same curve in grid steps of 3 days instead of 1: readings at days between are weighted."""
    names, some = grid_feature_names("gr"), gridded(300.0)
    found = dict(zip(names, map(float, grid_features(some)[0])))
    assert found["gp_before_top"] == pytest.approx(39) and found["gp_after_top"] == pytest.approx(261)
    left, right = (float(some.mean[0, k, 0]) for k in (14, 15))  # day 44 lies ⅔ from 42 to 45
    top = float(some.mean[0, 13].mean())
    assert found["gp_mean+5_g"] == pytest.approx((left + (right - left) * 2 / 3) / top)


def test_the_grids_brightness_is_one_number_and_a_moment_has_numbers() -> None:
    some = gridded()
    one, bright = grid_features(some), grid_features(some._replace(mean=8 * some.mean, sd=8 * some.sd))
    np.testing.assert_allclose(one[:, 1:], bright[:, 1:], rtol=1e-5, atol=1e-6)
    assert bright[0, 0] - one[0, 0] == pytest.approx(np.log(8))
    for odd in (some._replace(duration=torch.zeros(1)), some._replace(mean=-some.mean)):
        assert not np.isinf(grid_features(odd)).any()


def test_trees_read_points_and_grid() -> None:
    curves = [curve(), curve("gr", scale=2.0)]
    inputs = inputs_of(curves, "des", 30)
    values = numbers(curves, inputs, BANDS)
    np.testing.assert_array_equal(values, np.concatenate([features(curves, BANDS), grid_features(inputs)], 1))
    assert values.shape[1] == len(number_names(BANDS))


def test_real_curves(data_dir: Path) -> None:
    curves = [c for c in read_path(data_dir / "astro" / "ztf_bts_lightcurves.parquet") if c.label][::3]
    names = sorted({str(c.label) for c in curves})
    x, y = features(curves, ("g", "r")), np.array([names.index(str(c.label)) for c in curves])
    assert x.shape == (len(curves), len(feature_names(("g", "r")))) and not np.isinf(x).any()
    test = np.arange(len(y)) % 4 == 0
    trees = Trees.fit(x[~test], y[~test], len(names), 0, rounds=20)
    found = summary(y[test], trees.probabilities(x[test]), names)
    assert found["accuracy"] > (y[test] == names.index("Ia")).mean(), "better than the most frequent class"
    assert found["balanced_accuracy"] > 1.5 / len(names)
    assert found["auc_macro"] > 0.75
