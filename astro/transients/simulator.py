"""What six kinds of objects send: difference fluxes over time and wavelength, by published equations.

Every function takes random numbers, times (n, T) in MJD and wavelengths (n, T) in Å of n objects, and gives a `Sky`.
Fluxes are at `lightcurve.ZERO_POINT`, above a template image; supernovae and active nuclei are stretched and dimmed by
their redshift. Nothing is reddened by the Milky Way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.special import expit, ndtri

from astro.transients.lightcurve import WAVELENGTHS, ZERO_POINT, Floats

V, R = 5500.0, WAVELENGTHS["lsst"]["r"]
_HC_OVER_K = 1.438776877e8
"""Å K"""
FLARES = 64
"""At most so many of one star in the survey."""


class Draws:
    """One row of uniform numbers an object, handed out column after column: objects do not depend on each other."""

    def __init__(self, numbers: Floats) -> None:
        self.numbers, self.used = numbers, 0

    def uniform(self, low: float = 0.0, high: float = 1.0, count: int = 1) -> Floats:
        """(n, count)"""
        block = self.numbers[:, self.used : self.used + count]
        if block.shape[1] < count:
            raise IndexError(f"{self.numbers.shape[1]} numbers an object are too few")
        self.used += count
        return low + (high - low) * block

    def log_uniform(self, low: float, high: float, count: int = 1) -> Floats:
        return np.exp(self.uniform(np.log(low), np.log(high), count))

    def normal(self, mean: float = 0.0, deviation: float = 1.0, count: int = 1) -> Floats:
        return mean + deviation * ndtri(np.clip(self.uniform(count=count), 1e-12, 1 - 1e-12))


@dataclass(frozen=True, eq=False)
class Sky:
    """What a perfect telescope would measure of n objects at T times."""

    change: Floats
    """(n, T) flux minus the template's"""
    steady: Floats
    """(n, T) the template's own flux at that place: it adds noise"""
    redshift: Floats
    """(n,) NaN = Galactic"""


# ---------------------------------------------------------------- light


def flux_of(magnitude: Floats) -> Floats:
    """AB magnitudes to flux."""
    return 10 ** (0.4 * (ZERO_POINT - magnitude))


def black_body(wavelength: Floats, temperature: Floats, reference: float = V) -> Floats:
    """B_ν(λ, T) / B_ν(reference, T), wavelengths in Å, T in K."""
    x, x0 = _HC_OVER_K / (wavelength * temperature), _HC_OVER_K / (reference * temperature)
    return (reference / wavelength) ** 3 * np.expm1(x0) / np.expm1(x)


@cache
def _cosmology() -> Any:
    from astropy.cosmology import FlatLambdaCDM

    return FlatLambdaCDM(H0=70, Om0=0.3)


def dimmed(magnitude: Floats, z: Floats) -> Floats:
    """Flux of absolute AB magnitudes at rest wavelengths: F_ν = (1 + z) L_ν(1+z) / 4π d_L² (Hogg 1999, eq. 22)."""
    return flux_of(magnitude + _cosmology().distmod(z).value) * (1 + z)


def dust(draws: Draws, rest: Floats) -> Floats:
    """Transmission of the host: A_V exponential with mean 0.2, A_λ ∝ λ^−1.3 (da Cunha et al. 2008, birth clouds)."""
    a_v = -0.2 * np.log1p(-draws.uniform())
    return 10 ** (-0.4 * a_v * (rest / V) ** -1.3)


def blanketed(rest: Floats, power: float) -> Floats:
    """Below 4000 Å lines of metals take (λ / 4000 Å)^power: the form of Nicholl et al. 2017 (there power 1)."""
    return np.minimum(rest / 4000.0, 1.0) ** power


def some_time(draws: Draws, time: Floats, before: float = 0.0) -> Floats:
    """(n, 1) any time from `before` days before the survey to its end."""
    first, last = time.min(1, keepdims=True) - before, time.max(1, keepdims=True)
    return first + (last - first) * draws.uniform()


# ---------------------------------------------------------------- shapes


def bazin(t: Floats, rise: Floats, fall: Floats) -> Floats:
    """e^(−t/fall) / (1 + e^(−t/rise)), 1 at its peak (Bazin et al. 2009, eq. 1); `t` from t₀, rise < fall."""
    peak = rise * np.log(fall / rise - 1)
    log = -t / fall - np.logaddexp(0, -t / rise)
    return np.exp(log - (-peak / fall - np.logaddexp(0, -peak / rise)))


def plateau_magnitude(t: Floats, length: Floats, drop: Floats, width: Floats, slope: Floats) -> Floats:
    """−drop / (1 + e^((t − length)/width)) + slope (t − length), less its value at half the length; `t` from the
    explosion (Valenti et al. 2016, eq. 1)."""

    def fall(t: Floats) -> Floats:
        return -drop * expit((length - t) / width) + slope * (t - length)

    return fall(t) - fall(length / 2)


def paczynski(t: Floats, closest: Floats, crossing: Floats) -> Floats:
    """Magnification (u² + 2) / (u √(u² + 4)), u² = closest² + (t/crossing)² (Paczyński 1986); `t` from peak."""
    u = np.sqrt(closest**2 + (t / crossing) ** 2)
    return (u**2 + 2) / (u * np.sqrt(u**2 + 4))


def flare_shape(t: Floats) -> Floats:
    """White-light flare, 1 at its peak, `t` in widths at half maximum (Davenport et al. 2014, eqs. 1 and 4)."""
    rise = 1 + t * (1.941 + t * (-0.175 + t * (-2.246 - 1.125 * t)))
    late = np.maximum(t, 0)
    fall = 0.6890 * np.exp(-1.600 * late) + 0.3030 * np.exp(-0.2783 * late)
    return np.where(t > 0, fall, np.where(t > -1, rise, 0.0))


def fourier(phase: Floats, ratios: Floats, phases: Floats) -> Floats:
    """cos 2πφ + Σ_k R_k1 cos(2πkφ + φ_k1), k = 2, 3, … (Simon & Lee 1981)."""
    out = np.cos(2 * np.pi * phase)
    for k in range(ratios.shape[1]):
        out = out + ratios[:, [k]] * np.cos(2 * np.pi * (k + 2) * phase + phases[:, [k]])
    return out


def damped_walk(time: Floats, scale: Floats, normal: Floats) -> Floats:
    """Ornstein–Uhlenbeck process of variance 1 and time scale `scale` at ascending times, one (n, T) draw a step
    (Kelly, Bechtold & Siemiginowska 2009; MacLeod et al. 2010)."""
    kept = np.exp(-np.diff(time, axis=1) / scale)
    fresh = np.sqrt(1 - kept**2)
    out = np.empty_like(normal)
    out[:, 0] = normal[:, 0]
    for k in range(1, out.shape[1]):
        out[:, k] = kept[:, k - 1] * out[:, k - 1] + fresh[:, k - 1] * normal[:, k]
    return out


# ---------------------------------------------------------------- classes


def supernova(draws: Draws, time: Floats, wavelength: Floats) -> Sky:
    """Type I like: Bazin's shape at 5500 Å, M_V −18.8 ± 0.7, times a black body whose temperature falls as a logistic
    (Russeil et al. 2024, Rainbow), with blanketing and host dust; z ≤ 0.8, density ∝ z."""
    z = 0.02 + 0.78 * np.sqrt(draws.uniform())
    t = (time - some_time(draws, time, 60)) / (1 + z)
    rest = wavelength / (1 + z)
    shape = bazin(t, draws.log_uniform(2.5, 6), draws.uniform(15, 40))
    low, high = draws.uniform(4200, 6000), draws.uniform(9000, 13000)
    temperature = low + (high - low) * expit((draws.uniform(8, 18) - t) / draws.uniform(4, 9))
    colour = black_body(rest, temperature) * blanketed(rest, 3) * dust(draws, rest)
    change = dimmed(draws.normal(-18.8, 0.7), z) * shape * colour
    return Sky(change, np.zeros_like(change), z[:, 0])


def plateau(draws: Draws, time: Floats, wavelength: Floats) -> Sky:
    """Type II-P like: a rise of days, a plateau at 5500 Å of 100 ± 13 d with M_V −16.7 ± 0.9 (Anderson et al. 2014),
    a drop and a tail; black body cooling e-fold in 12 to 20 d to 5000 K (Faran et al. 2018); z ≤ 0.3, density ∝ z."""
    z = 0.005 + 0.295 * np.sqrt(draws.uniform())
    t = (time - some_time(draws, time, 150)) / (1 + z)
    rest, late = wavelength / (1 + z), np.maximum(t, 0)
    shape = plateau_magnitude(
        late,
        np.clip(draws.normal(100, 13), 60, 140),
        draws.uniform(1.4, 2.6),
        draws.uniform(2, 6),
        draws.uniform(0.002, 0.012),
    )
    rise = -np.expm1(-late / draws.uniform(2, 5))
    temperature = 5000 + draws.uniform(6000, 14000) * np.exp(-late / draws.uniform(12, 20))
    colour = black_body(rest, temperature) * blanketed(rest, 2) * dust(draws, rest)
    change = dimmed(draws.normal(-16.7, 0.9), z) * flux_of(ZERO_POINT + shape) * rise * colour
    return Sky(change, np.zeros_like(change), z[:, 0])


def periodic(draws: Draws, time: Floats, wavelength: Floats) -> Sky:
    """Pulsating star: four harmonics in magnitude, period 0.25 to 300 d, the longer the cooler; amplitude ∝ λ^−1.2 (as
    RR Lyrae and Cepheids from V to I). The template is the mean magnitude."""
    period = draws.log_uniform(0.25, 300)
    decay = draws.uniform(0.15, 0.5)
    ratios = np.concatenate([decay, decay**2 * 1.3, decay**3 * 1.5], 1)
    # Phase differences of RRab stars (Simon & Lee's measure, cosine): a steep rise, a slow fall.
    phases = np.array([4.0, 2.0, 6.1]) + draws.normal(0, 0.3, 3)
    swing = draws.log_uniform(0.15, 0.7) * (wavelength / V) ** -1.2
    shift = swing * fourier(time / period + draws.uniform(), ratios, phases)
    star = black_body(wavelength, 6900 - 1200 * np.log10(period / 0.5), R)
    steady = flux_of(draws.uniform(17, 23)) * star
    return Sky(steady * (10 ** (-0.4 * shift) - 1), steady, _galactic(time))


def flare(draws: Draws, time: Floats, wavelength: Floats) -> Sky:
    """M dwarf of 2900 to 3600 K with up to 64 flares of 9000 to 11000 K (Kowalski et al. 2013), each covering a share X
    of the disc, 0.1 to 5 %, N(> X) ∝ 1/X (Lacy, Moffett & Evans 1976), half-widths of half an hour to five hours."""
    steady = flux_of(draws.uniform(17, 23)) * np.ones_like(time)
    cool, hot = draws.uniform(2900, 3600), draws.uniform(9000, 11000)
    steady = steady * black_body(wavelength, cool, R)
    number = draws.uniform(10, FLARES)
    covered = np.zeros_like(time)
    for k in range(FLARES):
        share = np.minimum(1e-3 / draws.uniform(1e-3, 1), 0.05) * (k < number)
        width = draws.log_uniform(0.02, 0.2)
        covered += share * flare_shape((time - some_time(draws, time)) / width)
    ratio = np.expm1(_HC_OVER_K / (wavelength * cool)) / np.expm1(_HC_OVER_K / (wavelength * hot))
    return Sky(steady * covered * ratio, steady, _galactic(time))


def microlensing(draws: Draws, time: Floats, wavelength: Floats) -> Sky:
    """A point lens before a star of 3500 to 8000 K: Paczyński's magnification in every band alike; crossing times about
    25 d (Mróz et al. 2019), closest approach uniform to 1; 30 to 100 % of the light is the lensed star's."""
    steady = flux_of(draws.uniform(18, 24)) * black_body(wavelength, draws.uniform(3500, 8000), R)
    crossing = np.exp(draws.normal(np.log(25), 0.8))
    t = time - some_time(draws, time)
    gain = paczynski(t, draws.uniform(0.01, 1), crossing) - 1
    return Sky(draws.uniform(0.3, 1) * steady * gain, steady, _galactic(time))


def agn(draws: Draws, time: Floats, wavelength: Floats) -> Sky:
    """Quasar: one damped random walk in magnitude, with the time scale and the amplitude per wavelength of MacLeod et
    al. 2010 (eq. 7, table 1) for its M_i and mass; F_ν ∝ ν^−0.44 (Vanden Berk et al. 2001). The template is the state
    a year before the first visit; 0.1 ≤ z ≤ 2.5, i = 18 to 22."""
    z, i = draws.uniform(0.1, 2.5), draws.uniform(18, 22)
    absolute = i - _cosmology().distmod(z).value
    mass = 2.0 - 0.27 * absolute + (0.58 + 0.011 * absolute) * draws.normal()  # log₁₀, Sun
    rest, bright, heavy = wavelength / (1 + z) / 4000, absolute + 23, mass - 9
    structure = 10 ** (-0.51 - 0.479 * np.log10(rest) + 0.131 * bright + 0.18 * heavy)
    days = 10 ** (2.4 + 0.17 * np.log10(R / (1 + z) / 4000) + 0.03 * bright + 0.21 * heavy) * (1 + z)
    times = np.concatenate([time[:, :1] - 365, time], 1)
    walk = damped_walk(times, days, draws.normal(count=times.shape[1]))
    mean = flux_of(i) * (wavelength / WAVELENGTHS["lsst"]["i"]) ** 0.44
    now, steady = (mean * 10 ** (-0.4 * structure / np.sqrt(2) * x) for x in (walk[:, 1:], walk[:, :1]))
    return Sky(now - steady, steady, z[:, 0])


def _galactic(time: Floats) -> Floats:
    return np.full(len(time), np.nan)


MODELS: Mapping[str, Callable[[Draws, Floats, Floats], Sky]] = {
    model.__name__: model for model in (agn, flare, microlensing, periodic, plateau, supernova)
}
