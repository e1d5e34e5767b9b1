"""From sums of errors (`metrics.Tally`) to the numbers, tables and sentences of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from timeseries.forecast.scores.metrics import Tally, naive_error
from timeseries.forecast.series import Floats

OFF_LEVEL = 0.05
"""A coverage further from its level than this is said."""
NEAR_ZERO = 0.01
"""A value smaller than this share of its channel's standard deviation counts as near zero."""


@dataclass(frozen=True)
class Reference:
    """What errors are held against: MASE's denominators (S, C), their season, and the channels' spreads (S, C)."""

    season: int
    naive: Floats
    spread: Floats

    @classmethod
    def of(cls, tally: Tally, rows: Sequence[slice], season: int) -> Reference:
        """From the rows of every series that its model may know."""
        series = tally.windows.prepared
        naive = [naive_error(one.series.values[part], season) for one, part in zip(series, rows)]
        return cls(season, np.stack(naive), np.stack([one.scale.values[1] for one in series]))


def metrics_of(tally: Tally, against: Reference, legacy: int = 0) -> dict[str, float]:
    """The flat metrics: every known value of every window weighs the same.

    `legacy`: also the errors over whole batches of that many windows, as the published code counted them.
    """
    count = tally.by_series["count"].numpy()
    sums = {name: each.numpy() for name, each in tally.by_series.items()}
    names = ["", *(name for name in ("naive_", "seasonal_") if f"{name}square" in sums)]
    found = {"windows": float(len(tally.windows))}
    for name in names:
        found[f"{name}mse"] = _mean(sums[f"{name}square"], count)
        found[f"{name}mae"] = _mean(sums[f"{name}absolute"], count)
        found[f"{name}mae_orig"] = _mean(sums[f"{name}absolute"] * against.spread, count)
        found[f"{name}mase"] = _mean(sums[f"{name}absolute"] * against.spread / against.naive, count)
    found["rmse_orig"] = float(np.sqrt(_mean(sums["square"] * against.spread**2, count)))
    found["smape"] = _mean(sums["smape"], count)
    found |= _intervals(tally.levels, sums, count)
    if legacy:
        found |= _legacy(tally, names, legacy)
    return found


def _mean(sums: NDArray[Any], count: NDArray[Any]) -> float:
    """Sum over the cells with a sum, by their number of values; NaN of none."""
    known = np.isfinite(sums) & (count > 0)
    return float(sums[known].sum() / count[known].sum()) if known.any() else float("nan")


def _intervals(
    levels: Sequence[float], sums: Mapping[str, NDArray[Any]], count: NDArray[Any]
) -> dict[str, float]:
    """Coverage and scaled width of each level; mean pinball loss over the bounds of all levels and the median.

    Both bounds of a level 1 − α together lose α/2 · width + distance outside (half of α times Winkler's score).
    """
    found, loss = {}, sums["absolute"] / 2
    for number, level in enumerate(levels):
        found[f"coverage_{percent(level)}"] = _mean(sums[f"inside {number}"], count)
        found[f"width_{percent(level)}"] = _mean(sums[f"width {number}"], count)
        loss = loss + (1 - level) / 2 * sums[f"width {number}"] + sums[f"outside {number}"]
    if levels:
        found["pinball"] = _mean(loss, count) / (2 * len(levels) + 1)
    return found


def _legacy(tally: Tally, names: Sequence[str], size: int) -> dict[str, float]:
    kept = len(tally.windows) // size * size
    count = tally.by_window["count"][:kept].sum()
    found = {"windows_legacy": float(kept)}
    for name in names:
        for short, long in (("mse", "square"), ("mae", "absolute")):
            total = tally.by_window[f"{name}{long}"][:kept].sum()
            found[f"{name}{short}_legacy"] = float(total / count) if count else float("nan")
    return found


def percent(level: float) -> str:
    """``0.8`` → ``80``, ``0.995`` → ``99.5``."""
    return f"{100 * level:.10g}"


def window_errors(tally: Tally) -> Floats:
    """(N,) MSE of every window, scaled; NaN where nothing was known."""
    count = tally.by_window["count"]
    return np.where(count > 0, tally.by_window["square"], np.nan) / np.maximum(count, 1)


def step_errors(tally: Tally, name: str = "square") -> Floats:
    """(H, C) means of what was summed under `name`; NaN where nothing was known."""
    return _ratio(tally.by_step[name], tally.by_step["count"])


def _ratio(sums: Tensor, count: Tensor) -> Floats:
    return np.where(count.numpy() > 0, sums.numpy(), np.nan) / np.maximum(count.numpy(), 1)


# ---------------------------------------------------------------- tables


def table_of(tally: Tally, against: Reference) -> list[dict[str, Any]]:
    """A row per series and channel."""
    means = {name: _ratio(sums, tally.by_series["count"]) for name, sums in tally.by_series.items()}
    windows = np.bincount(tally.windows.index[:, 0], minlength=len(tally.windows.prepared))
    rows = []
    for s, one in enumerate(tally.windows.prepared):
        for c, channel in enumerate(one.series.channels):
            at, spread = (s, c), against.spread[s, c]
            row = {"series": one.series.id, "channel": channel, "windows": int(windows[s])}
            row |= {"mse": means["square"][at], "mae": means["absolute"][at]}
            row |= {"naive_mse": means["naive_square"][at]}
            if "seasonal_square" in means:
                row["seasonal_mse"] = means["seasonal_square"][at]
            row |= {
                "mae_orig": means["absolute"][at] * spread,
                "rmse_orig": np.sqrt(means["square"][at]) * spread,
                "mase": means["absolute"][at] * spread / against.naive[at],
                "smape": means["smape"][at],
            }
            for number, level in enumerate(tally.levels):
                row[f"coverage_{percent(level)}"] = means[f"inside {number}"][at]
                row[f"width_orig_{percent(level)}"] = means[f"width {number}"][at] * spread
            rows.append({k: float(v) if isinstance(v, np.floating) else v for k, v in row.items()})
    return rows


def steps_of(
    tally: Tally, channel: int | None = None, steps: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """A row per step ahead (those of `steps`, from 1; all by default), over all channels or of one: errors, those of
    the naive forecasts, coverage and width."""
    rows = slice(None) if steps is None else np.array(steps) - 1
    sums = {
        name: (each.sum(1) if channel is None else each[:, channel])[rows]
        for name, each in tally.by_step.items()
    }
    means = {name: _ratio(each, sums["count"]) for name, each in sums.items()}
    columns = {"mse": means["square"], "mae": means["absolute"], "naive_mse": means["naive_square"]}
    if "seasonal_square" in means:
        columns["seasonal_mse"] = means["seasonal_square"]
    for number, level in enumerate(tally.levels):
        columns[f"coverage_{percent(level)}"] = means[f"inside {number}"]
        columns[f"width_{percent(level)}"] = means[f"width {number}"]
    return [
        {"step": step, **{name: float(values[at]) for name, values in columns.items()}}
        for at, step in enumerate(steps or range(1, tally.windows.horizon + 1))
    ]


def shown_steps(horizon: int) -> list[int]:
    """1, 2, 4 … and the last."""
    return [*(2**k for k in range(horizon.bit_length()) if 2**k < horizon), horizon]


# ---------------------------------------------------------------- sentences


def notes_of(tally: Tally, against: Reference, metrics: Mapping[str, float], legacy: int) -> list[str]:
    """What a reader must know to compare the numbers."""
    windows = len(tally.windows)
    season = "the last value" if against.season == 1 else f"the value {against.season} steps back"
    notes = [
        f"mse and mae are means over every step and channel of all {windows:,} windows, on values scaled with the "
        "training rows' mean and deviation, as in the papers; *_orig are in the units of the columns.",
        f"mase: against repeating {season} over the training rows; below 1 is better than that.",
        _about_percentages(tally),
    ]
    if not np.isfinite(against.naive).all():
        cells = int((~np.isfinite(against.naive)).sum())
        notes.append(
            f"mase leaves out {cells} channels that never change, or too few rows, in the training part."
        )
    if legacy:
        notes.append(
            f"*_legacy drop the last {windows - int(metrics['windows_legacy'])} windows, which do not fill a batch of "
            f"{legacy}, as the published tables did; compare those with the tables, and mse with the truth."
        )
    rows = steps_of(tally)
    for level in tally.levels:
        name = f"coverage_{percent(level)}"
        listed = ", ".join(f"{h}: {rows[h - 1][name]:.2f}" for h in shown_steps(tally.windows.horizon))
        notes.append(f"Coverage of the {percent(level)} % interval by step: {listed}.")
        if abs(gap := metrics[name] - level) > OFF_LEVEL:
            notes.append(
                f"The {percent(level)} % interval is too {'narrow' if gap < 0 else 'wide'}: it held "
                f"{100 * metrics[name]:.0f} % of the truths; the rows scored differ from those it was "
                "calibrated on, or those were few."
            )
    return notes


def _about_percentages(tally: Tally) -> str:
    """Why there is no MAPE, with this data set's channels."""
    text = (
        "smape is 2|e| / (|y| + |forecast|), 0 to 2. MAPE is not given: it divides by the truth and favours low "
        "forecasts; use mase"
    )
    near = [channel for channel, share in near_zero(tally).items() if share > 0.001]
    if not near:
        return f"{text}."
    listed = ", ".join(near[:5]) + (f" and {len(near) - 5} more" if len(near) > 5 else "")
    return f"{text}. Here it would be meaningless: values near zero in {listed}, where smape is unsteady as well."


def near_zero(tally: Tally) -> dict[str, float]:
    """Channel → largest share, over the series, of known values near zero."""
    found: dict[str, float] = {}
    for one in tally.windows.prepared:
        small = np.abs(one.series.values) < NEAR_ZERO * one.scale.values[1]
        share = small.sum(0) / np.maximum(one.mask.sum(0), 1)
        for channel, value in zip(one.series.channels, share):
            found[channel] = max(found.get(channel, 0.0), float(value))
    return found
