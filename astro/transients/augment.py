"""Altered copies of training curves, so that a model does not learn the few there are by heart and knows young ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from astro.transients.grids import until
from astro.transients.lightcurve import MIN_POINTS, LightCurve
from astro.transients.points import DETECTED_SNR

DROPPED, DIMMER, FAINTEST = 0.4, 0.3, 4.0
"""Largest share of points dropped; scatter of ln(flux) downwards; S/N below which an alert would not have been sent."""


def altered(
    curve: LightCurve, random: np.random.Generator, cut: float = 0.5, days: float = 30.0
) -> LightCurve:
    """`curve` as it could have been measured: fainter, noisier, less often, and in `cut` of all cases only up to a day
    after the first detection, drawn from an exponential of mean `days` and 2 days more.

    Brighter or more precise than it was, it cannot be made. Where every point is a detection (alerts without forced
    photometry) what falls below `FAINTEST` vanishes. At least three points are kept.
    """
    n = len(curve)
    keep = random.random(n) > random.uniform(0, DROPPED)
    faint = np.exp(-abs(random.normal(0, DIMMER)))
    more = curve.error * random.uniform()
    flux = curve.flux * faint + more * random.normal(size=n)
    error = np.hypot(curve.error, more)
    alerts_only = bool(curve.detected.all())
    if alerts_only:
        keep &= flux > FAINTEST * error
    if keep.sum() < MIN_POINTS:
        keep[:] = True
    detected = np.ones(n, bool) if alerts_only else np.abs(flux) > DETECTED_SNR * error
    made = replace(
        curve,
        time=curve.time[keep],
        band=curve.band[keep],
        flux=flux[keep],
        error=error[keep],
        detected=detected[keep],
    )
    if random.random() < cut:
        young = until(made, float(random.exponential(days)) + 2.0)
        return young if len(young) >= MIN_POINTS else made
    return made
