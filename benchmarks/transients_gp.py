"""The Gaussian process of the light curves beside george's, as astronet and avocado call it, and scikit-learn's.

One process, one thread, turn by turn on the same trimmed curves. The peer, whose time an object does not depend on
their number, gets every fourth. Times are the least of the turns, so that a busy machine harms both. The peer's fit is
theirs: L-BFGS-B of scipy with the gradient, from the same start within the same bounds. Its grid is computed with the
mean alone (all that the paper uses) and with the variance that ours always gives.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from astro.transients.gp import OK, Fit, fit, grid, trim
from astro.transients.gp_optimum import (
    AMPLITUDE_ROOM,
    LONGEST,
    START_TIMESCALE,
    WAVELENGTH_SCALE,
    pad,
    start_values,
)
from astro.transients.grids import until
from astro.transients.lightcurve import MIN_POINTS, WAVELENGTHS, LightCurve
from astro.transients.read import read_frame
from shared.bench.real_data import data_folder

Say = Callable[[str], None]
Floats = NDArray[np.float64]
TURNS = 4
SHARE = 4
"""The peer gets one in so many curves, if there are enough."""
SLOW = 40
"""About so many curves for scikit-learn"""
TIMES = 100


class Source(NamedTuple):
    """Which real light curves."""

    table: str
    metadata: str
    column: str
    """Of the objects' ids, in both"""
    objects: int
    """At most, evenly from the list"""
    days: float = np.inf
    """Of each curve, since its first detection: what an alert stream knows early."""
    points: tuple[int, int] = (MIN_POINTS, 1 << 30)
    """Of the trimmed curve, least and most"""


SOURCES = {
    "snpcc-60": Source("snpcc_lightcurves", "snpcc_metadata", "SNID", 8000, points=(56, 64)),
    "snpcc": Source("snpcc_lightcurves", "snpcc_metadata", "SNID", 2400),
    "snpcc-early": Source("snpcc_lightcurves", "snpcc_metadata", "SNID", 2400, days=10),
    "plasticc-deep": Source("plasticc_full_lightcurves", "plasticc_train_metadata", "object_id", 64),
}


def compare(name: str, say: Say) -> list[dict[str, Any]]:
    """Speed and likelihood on the curves of one survey; no rows without george.

    Raises `UsageError` where the data are absent.
    """
    if not _has_george(say):
        return []
    curves = _curves(SOURCES[name])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _compare(f"{name}, {len(curves)} objects", curves, say)
    finally:
        torch.set_num_threads(threads)


def _compare(case: str, curves: list[LightCurve], say: Say) -> list[dict[str, Any]]:
    points = np.array([len(curve) for curve in curves])
    say(f"{case}: {int(np.median(points))} points in the middle, {points.max()} at most")
    fits, part = fit(curves), slice(None, None, SHARE if len(curves) > 100 * SHARE else 1)
    some, found = curves[part], fits[part]
    begins = [start_values(pad([curve], len(curve)))[0].tolist() for curve in some]
    process, peers = [_process(curve) for curve in some], list[Floats]()
    few = some[:: max(1, len(some) // SLOW)]
    seconds: dict[str, list[float]] = {}
    for _ in range(TURNS):
        _timed(seconds, len(curves), "fit", lambda: fit(curves))
        _timed(seconds, len(curves), "grid", lambda: grid(curves, fits, TIMES))
        peers = _timed(
            seconds, len(some), "george fit", lambda: [_optimum(*each) for each in zip(process, some, begins)]
        )
        for what, variance in (("george mean", False), ("george grid", True)):
            _timed(seconds, len(some), what, partial(_grids, process, some, found, variance))
        _timed(seconds, len(few), "sklearn", lambda: list(map(_sklearn_all, few)))
    least = {name: min(turns) for name, turns in seconds.items()}
    both, whole = least["fit"] + least["grid"], "fit, mean and std on the grid"
    rows = [_speed(case, "fit", least["fit"], least["george fit"], "george, L-BFGS-B")]
    for what, name in (("george grid", "with variance"), ("george mean", "mean alone")):
        peer = least["george fit"] + least[what]
        rows.append(_speed(case, whole, both, peer, f"george, L-BFGS-B, {name}"))
    rows.append(_speed(case, whole, both, least["sklearn"], f"scikit-learn, {len(few)} objects"))
    rows += _agreement(case, some, found, process, peers)
    for row in rows:
        say(f"{case}: {row['quantity']}: {row['ours']} {row['unit']}; {row['peer_name']}: {row['peer']}")
    return rows


def _agreement(
    case: str, curves: list[LightCurve], fits: list[Fit], process: list[Any], peers: list[Floats]
) -> list[dict[str, Any]]:
    """How far likelihoods at the same values and optima are from each other, and how many objects ours left."""
    ours = np.array([one.log_likelihood for one in fits])
    george = np.array([_value(each, curve, one) for each, curve, one in zip(process, curves, fits)])
    some = range(0, len(curves), max(1, len(curves) // 50))
    sklearn = np.array([_sklearn(curves[i], fits[i]) for i in some])
    ahead = ours - np.array([found[2] for found in peers])
    differ = "largest difference of ln L at our optimum"
    rows = [
        _figure(case, differ, float(np.abs(ours - george).max()), "george"),
        _figure(
            case,
            f"{differ}, {len(some)} objects",
            float(np.abs(ours[list(some)] - sklearn).max()),
            "scikit-learn",
        ),
        _figure(case, "our optimum's ln L less george's, lowest", float(ahead.min()), "george"),
        _figure(case, "objects where ours is lower by 0.01", int((ahead < -0.01).sum()), "george"),
        _figure(case, "objects where ours is higher by 0.01", int((ahead > 0.01).sum()), "george"),
        _figure(case, "objects at a bound or left", sum(one.status != OK for one in fits), "none"),
    ]
    return rows


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {name: partial(compare, name) for name in SOURCES}
QUICK = ("snpcc-60",)

# ---------------------------------------------------------------- data


def _curves(source: Source) -> list[LightCurve]:
    """Trimmed, of one survey, with as many points as wanted."""
    folder = data_folder("astro")
    table, metadata = (
        pd.read_parquet(folder / f"{name}.parquet") for name in (source.table, source.metadata)
    )
    ids = np.unique(table[source.column])
    chosen = ids[:: max(1, len(ids) // source.objects)][: source.objects]
    rows, there = table[table[source.column].isin(chosen)], metadata[source.column].isin(chosen)
    found = read_frame(rows, metadata=metadata[there])
    trimmed = [trim(until(curve, source.days)) for curve in found if curve.status == "ok"]
    least, most = source.points
    return [curve for curve in trimmed if least <= len(curve) <= most]


# ---------------------------------------------------------------- peers


def _has_george(say: Say) -> bool:
    try:
        import george  # noqa: F401
    except ImportError:
        say("george is not installed; skipped")
        return False
    return True


def _process(curve: LightCurve) -> Any:
    import george

    kernel = george.kernels.Matern32Kernel([START_TIMESCALE**2, WAVELENGTH_SCALE**2], ndim=2)
    process = george.GP(np.var(curve.flux) * kernel)
    process.freeze_parameter("kernel:k2:metric:log_M_1_1")
    process.compute(_where(curve), curve.error)
    return process


def _where(curve: LightCurve) -> Floats:
    return np.stack([curve.time, curve.wavelength], 1)


def _vector(ln_amplitude: float, ln_timescale: float) -> Floats:
    """george's parameters: ln (A / dimensions), ln τ²."""
    return np.array([ln_amplitude - np.log(2), 2 * ln_timescale])


def _optimum(process: Any, curve: LightCurve, start: Sequence[float]) -> Floats:
    """ln A, ln τ and ln L of the peer's optimiser."""
    from scipy.optimize import minimize

    def loss(vector: Floats) -> float:
        process.set_parameter_vector(vector)
        return -float(process.log_likelihood(curve.flux, quiet=True))

    def slope(vector: Floats) -> Floats:
        process.set_parameter_vector(vector)
        return -np.asarray(process.grad_log_likelihood(curve.flux, quiet=True))

    begin = _vector(*start)
    bounds = [(begin[0] - AMPLITUDE_ROOM, begin[0] + AMPLITUDE_ROOM), (0, 2 * np.log(LONGEST))]
    found = minimize(loss, begin, jac=slope, bounds=bounds, tol=1e-6)
    return np.array([found.x[0] + np.log(2), found.x[1] / 2, -found.fun])


def _grids(process: list[Any], curves: list[LightCurve], fits: list[Fit], variance: bool) -> None:
    for one, curve, found in zip(process, curves, fits):
        one.set_parameter_vector(_vector(*found[:2]))
        one.predict(curve.flux, _asked(curve), return_cov=False, return_var=variance)


def _asked(curve: LightCurve) -> Floats:
    """The grid's times and wavelengths."""
    waves = np.array(list(WAVELENGTHS[curve.survey].values()))
    when = np.linspace(curve.time.min(), curve.time.max(), TIMES)
    return np.stack([np.repeat(when, len(waves)), np.tile(waves, TIMES)], 1)


def _value(process: Any, curve: LightCurve, found: Fit) -> float:
    process.set_parameter_vector(_vector(*found[:2]))
    return float(process.log_likelihood(curve.flux))


def _sklearn(curve: LightCurve, found: Fit) -> float:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    amplitude, timescale = np.exp(found[:2])
    kernel = ConstantKernel(amplitude, "fixed") * Matern([timescale, WAVELENGTH_SCALE], "fixed", nu=1.5)
    model = GaussianProcessRegressor(kernel, alpha=curve.error**2, optimizer=None)
    return float(model.fit(_where(curve), curve.flux).log_marginal_likelihood_value_)


def _sklearn_all(curve: LightCurve) -> None:
    """Fit from the paper's start within its bounds, mean and standard deviation on the grid."""
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern

    begin = start_values(pad([curve], len(curve)))[0, 0].item()
    bounds = np.exp([begin - AMPLITUDE_ROOM, begin + AMPLITUDE_ROOM])
    scales = [(1.0, LONGEST), (WAVELENGTH_SCALE, WAVELENGTH_SCALE * (1 + 1e-9))]
    kernel = ConstantKernel(np.exp(begin), bounds) * Matern(
        [START_TIMESCALE, WAVELENGTH_SCALE], scales, nu=1.5
    )
    model = GaussianProcessRegressor(kernel, alpha=curve.error**2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wavelength's scale is at its bounds, as meant
        model.fit(_where(curve), curve.flux)
    model.predict(_asked(curve), return_std=True)


# ---------------------------------------------------------------- rows


def _timed(seconds: dict[str, list[float]], count: int, name: str, call: Callable[[], Any]) -> Any:
    """What `call` gives; its seconds for each of `count` objects go into `seconds[name]`."""
    started = time.perf_counter()
    found = call()
    seconds.setdefault(name, []).append((time.perf_counter() - started) / count)
    return found


def _speed(case: str, quantity: str, mine: float, peers: float, name: str) -> dict[str, Any]:
    return {
        "case": case,
        "model": "gp",
        "quantity": quantity,
        "unit": "objects/s",
        "ours": round(1 / mine, 1),
        "peer": round(1 / peers, 1),
        "peer_name": name,
        "ratio": round(peers / mine, 2),
    }


def _figure(case: str, quantity: str, value: float, name: str) -> dict[str, Any]:
    return {
        "case": case,
        "model": "gp",
        "quantity": quantity,
        "unit": "",
        "ours": float(f"{value:.3g}"),
        "peer": None,
        "peer_name": name,
        "ratio": None,
    }
