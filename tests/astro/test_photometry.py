"""Units, zero points, magnitudes, dust and time scales."""

from __future__ import annotations

import numpy as np
import pytest

from astro.transients import photometry
from astro.transients.lightcurve import WAVELENGTHS


def test_a_thousand_nanojansky() -> None:
    assert 1000 * photometry.factor(31.4) == pytest.approx(27.5423, abs=5e-5)


@pytest.mark.parametrize("unit, nanojansky", [("nJy", 1), ("uJy", 1e3), ("mJy", 1e6), ("Jy", 1e9)])
def test_units_are_multiples_of_each_other(unit: str, nanojansky: float) -> None:
    ratio = photometry.factor(photometry.UNIT_ZERO_POINTS[unit]) / photometry.factor(31.4)
    assert ratio == pytest.approx(nanojansky, rel=1e-12)


def test_magnitudes() -> None:
    flux, error = photometry.from_magnitudes(
        np.array([27.5, 25.0, 20.0, 99.0, -99.0, 0.0, np.nan]), np.full(7, 0.1)
    )
    np.testing.assert_allclose(flux[:3], [1, 10, 1000])
    np.testing.assert_allclose(error[:3] / flux[:3], 0.0921034, rtol=1e-6)
    assert np.isnan(flux[3:]).all()


def test_magnitudes_given_as_fluxes_are_seen() -> None:
    good = np.array([18.2, 19.0, 20.5])
    assert photometry.look_like_magnitudes(good, np.full(3, 0.1))
    assert not photometry.look_like_magnitudes(good * 10, np.full(3, 0.1))
    assert not photometry.look_like_magnitudes(good, np.full(3, 2.0))
    assert not photometry.look_like_magnitudes(good[:2], np.full(2, 0.1))


def test_dust() -> None:
    names = tuple(WAVELENGTHS["lsst"])
    table = photometry.dust_factor("lsst", names, np.array([0.1, np.nan]))
    magnitudes = 2.5 * np.log10(table[0])
    np.testing.assert_allclose(magnitudes, [0.4145, 0.3237, 0.2273, 0.1684, 0.1323, 0.1088], rtol=1e-9)
    assert (table[1] == 1).all()
    # Schlafly & Finkbeiner 2011, table 6, R_V 3.1: Pan-STARRS 1 and DES.
    assert dict(photometry.EXTINCTION["ztf"]) == {"g": 3.172, "r": 2.271, "i": 1.682}
    assert dict(photometry.EXTINCTION["des"]) == {"g": 3.237, "r": 2.176, "i": 1.595, "z": 1.217}


def test_wavelengths() -> None:
    """Å, effective; astronet's for LSST and ZTF, NOIRLab's pivots of DECam."""
    assert dict(WAVELENGTHS["des"]) == {"g": 4827.0, "r": 6432.0, "i": 7827.0, "z": 9179.0}
    assert dict(WAVELENGTHS["ztf"]) == {"g": 4804.79, "r": 6436.92, "i": 7968.22}


@pytest.mark.parametrize("survey", list(WAVELENGTHS))
def test_every_band_has_an_extinction_and_blue_has_more(survey: str) -> None:
    table = photometry.EXTINCTION[survey]
    assert list(table) == list(WAVELENGTHS[survey])
    assert list(table.values()) == sorted(table.values(), reverse=True)


def test_absent_redshifts() -> None:
    z = np.array([0.3, -9.0, -99.0, np.nan, 0.0, -0.1])
    clean, error, bad = photometry.clean_redshift(z, np.array([0.1, 0.1, 0.1, 0.1, 0.1, -1]), False)
    assert clean[0] == 0.3 and error[0] == 0.1 and np.isnan(clean[1:]).all() and np.isnan(error[1:]).all()
    assert bad.tolist() == [False, True, True, False, True, True]
    assert photometry.clean_redshift(z, z, True)[0][4] == 0.0


@pytest.mark.parametrize(
    "values, kind",
    [
        ([59580.0, 60675.0], "mjd"),
        ([0.0, 120.0], "mjd"),
        ([2459580.5, 2460000.0], "jd"),
        ([59580.0, 2460000.0], "mixed"),
        ([59580.0 * 86400, 60000 * 86400], "mjd_seconds"),
        ([1.64e9, 1.7e9], "unix"),
        ([1.64e18, 1.7e18], "nanoseconds"),
        ([1e30], None),
        ([np.nan], "mjd"),
    ],
)
def test_guess_of_times(values: list[float], kind: str | None) -> None:
    assert photometry.guess_time(np.array(values)) == kind


@pytest.mark.parametrize(
    "value, kind",
    [
        (2459580.5, "jd"),
        (59580.0 * 86400, "mjd_seconds"),
        (18993.0 * 86400, "unix"),
        (18993.0 * 86400e9, "nanoseconds"),
    ],
)
def test_times_become_mjd(value: float, kind: str) -> None:
    assert photometry.to_mjd(np.array([value]), kind)[0] == pytest.approx(59580.0, abs=1e-6)
