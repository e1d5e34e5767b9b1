"""Why a class: where along the curve (activation maps), and which band or epoch the answer hangs on (occlusion)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from astro.transients.lightcurve import LightCurve, around
from astro.transients.t2 import Inputs, TransientNetwork

Predict = Callable[[Sequence[LightCurve]], NDArray[np.float64]]
"""N light curves → (N, K) probabilities"""


@torch.no_grad()
def activation_maps(network: TransientNetwork, inputs: Inputs) -> Tensor:
    """(B, L, K): features before pooling times the head's weights, of each object and class scaled to [0, 1] and
    divided by their sum over the L positions (Allam and McEwen 2024, section 3.5). A map that is flat is 0."""
    network.eval()
    maps = network.features(inputs).transpose(1, 2) @ network.head.weight.T
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    maps = (maps - low) / (high - low).where(high > low, 1)
    total = maps.sum(1, keepdim=True)
    return maps / total.where(total > 0, 1)


@dataclass(frozen=True)
class Occlusion:
    """What each part of one curve does for class `of`: its probability with everything minus without that part."""

    of: int
    probability: float
    bands: dict[str, float]
    epochs: list[tuple[float, float, float]]
    """(first MJD, last MJD, change)"""


def occlusion(curve: LightCurve, predict: Predict, *, of: int | None = None, epochs: int = 10) -> Occlusion:
    """Points are taken away from the light curve itself, not from its grid, so that what fills the gap is what would
    have been there without them. All versions are predicted in one call. `of` = the most probable class.

    `epochs`: windows of about as many points each, in order of time, of the points `around` the detections. A part
    without which nothing is left, or nothing that can be classified (a row of NaN), has NaN.
    """
    names = list(dict.fromkeys(map(str, curve.band)))
    places = np.flatnonzero(around(curve.time, curve.detected))
    windows = np.array_split(places, min(epochs, len(places)))
    kept = [curve.band != name for name in names]
    kept += [~np.isin(np.arange(len(curve)), window) for window in windows]
    versions = [curve] + [curve.taken(mask) for mask in kept if mask.any()]
    probability = predict(versions)
    of = int(probability[0].argmax()) if of is None else of
    changes = iter(probability[0, of] - probability[1:, of])
    change = [float(next(changes)) if mask.any() else np.nan for mask in kept]
    spans = [(float(curve.time[w[0]]), float(curve.time[w[-1]])) for w in windows]
    return Occlusion(
        of,
        float(probability[0, of]),
        dict(zip(names, change)),
        [(*span, value) for span, value in zip(spans, change[len(names) :])],
    )


WHY = ("id", "class", "probability", "part", "first_mjd", "last_mjd", "change")


def why(curves: Sequence[LightCurve], predict: Predict, classes: Sequence[str]) -> list[dict[str, Any]]:
    """`occlusion` of each curve's answer, a row of `WHY` a part: a band by its name, or "epoch"; MJD of its first and
    last point; how much less probable the class is without it, NaN where nothing is left."""
    rows: list[dict[str, Any]] = []
    for curve in curves:
        found = occlusion(curve, predict)
        answer = (curve.id, classes[found.of], found.probability)
        for band, change in found.bands.items():
            seen = curve.time[curve.band == band]
            rows.append(dict(zip(WHY, (*answer, band, float(seen.min()), float(seen.max()), change))))
        rows += [dict(zip(WHY, (*answer, "epoch", *each))) for each in found.epochs]
    return rows
