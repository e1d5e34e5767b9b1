"""From light curves to what the network reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from astro.transients import gp
from astro.transients.lightcurve import WAVELENGTHS, LightCurve
from astro.transients.t2 import Inputs
from astro.transients.threads import in_threads
from shared.progress import Progress

CHUNK = 1024
"""Light curves fitted at once, by one thread."""


def inputs_of(curves: Sequence[LightCurve], survey: str, times: int, shown: bool = False) -> Inputs:
    """The Gaussian process's grid of every curve in all bands of `survey`, after trimming; float32.

    `shown`: progress is, where there is more than one chunk of them.
    """
    places, parts, done = [], [], 0
    with Progress(shown=shown and len(curves) > CHUNK) as progress:
        task = progress.task("light curves to grids", len(curves))
        for rows, part in in_threads(lambda some: fitted(some, survey, times)[0], curves, CHUNK):
            places.append(rows)
            parts.append(part)
            done += len(rows)
            task.update(done)
    return Inputs(*(torch.cat(each) for each in zip(*parts))).take(np.argsort(np.concatenate(places)))


def fitted(curves: Sequence[LightCurve], survey: str, times: int) -> tuple[Inputs, list[str]]:
    """The same, of all at once, and what `gp.fit` says of each."""
    trimmed = [gp.trim(curve) for curve in curves]
    fits = gp.fit(trimmed)
    grid = gp.grid(trimmed, fits, times, WAVELENGTHS[survey])
    redshift = np.array([(curve.redshift, curve.redshift_error) for curve in curves], np.float32)
    inputs = Inputs(
        torch.from_numpy(grid.mean).float(),
        torch.from_numpy(grid.std).float(),
        torch.from_numpy(grid.present),
        torch.from_numpy(grid.times[:, -1] - grid.times[:, 0]).float(),
        torch.from_numpy(redshift.reshape(-1, 2)),
    )
    return inputs, [each.status for each in fits]


def until(curve: LightCurve, days: float) -> LightCurve:
    """What was known `days` after the first detection (after the first point, where nothing is detected)."""
    if not len(curve):
        return curve
    first = curve.time[curve.detected].min() if curve.detected.any() else curve.time.min()
    return curve.taken(curve.time <= first + days)
