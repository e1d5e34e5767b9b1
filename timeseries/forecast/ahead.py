"""The steps after a series' last row, with dates, in the units of its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.errors import ItemError
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.series import Floats, Series, time_features
from timeseries.forecast.windows import Inputs, Scale, bridged, carried

ODD_SPREADS = 10.0
"""A window whose mean lies further from the scale's mean, in its standard deviations, is worth a warning."""
NAMED = 3
"""Dates a message names before it counts the rest."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """What comes after the last row of `series`."""

    series: Series
    times: pd.DatetimeIndex | pd.RangeIndex
    """(N,) stamps of the steps."""
    values: Floats
    """(N, C) original units, all finite."""
    bounds: Floats
    """(K, 2, N, C) lower and upper, one pair a level; NaN where nothing is known of the error (rolled steps)."""
    levels: tuple[float, ...]
    missing: int
    """Values that the input window lacks."""
    warnings: tuple[str, ...] = ()


def forecast_ahead(network: ForecastNetwork, series: Series, scale: Scale, steps: int = 0) -> Forecast:
    """`steps` (0 = the trained horizon) after the last row; more than the horizon by feeding forecasts back.

    Raises `ItemError`: too few rows, a channel without any value in the window, known-future columns that do not
    reach far enough, dates beyond what the calendar can hold.
    """
    data = network.config.data
    length, horizon = data.input_length, data.horizon
    steps = steps or horizon
    rounds = -(-steps // horizon)
    _require_rows(series, length)
    stamps = _stamps(series, rounds * horizon)
    window = slice(len(series) - length, None)
    values = series.values[window]
    _require_values(series, values)
    inputs = Inputs(
        _scaled(values, scale.values),
        torch.from_numpy(np.isfinite(values))[None],
        _scaled(_columns(carried(series.past), window, length), scale.past),
        _future(series, scale, stamps, length, rounds * horizon),
        torch.from_numpy(time_features(stamps[window], series.freq))[None],
    )
    found, pairs = rolled(network, inputs, rounds)
    point, bounds = found[0], pairs[0]
    answer = scale.undo(point.numpy())[:steps]
    if not np.isfinite(answer).all():
        raise ItemError(_where(series), "the forecast is not finite", "finite values", "check the last rows")
    margins = np.full((bounds.shape[0], 2, steps, answer.shape[1]), np.nan)
    known = min(steps, horizon)
    margins[:, :, :known] = scale.undo(bounds.numpy())[:, :, :known]
    return Forecast(
        series,
        stamps[len(series) : len(series) + steps],
        answer,
        margins,
        network.config.intervals.levels[: len(margins)],
        int((~np.isfinite(values)).sum()),
        tuple(_oddities(series, window, scale, steps, horizon, len(margins))),
    )


@torch.no_grad()
def rolled(network: ForecastNetwork, inputs: Inputs, rounds: int) -> tuple[Tensor, Tensor]:
    """(B, rounds · H, C) forecasts, each round reading those before it, and the bounds (B, K, 2, H, C) of the first.

    `inputs` have L + rounds · H rows of `future` and `marks`.
    """
    network.eval()
    data = network.config.data
    length, total = data.input_length, data.input_length + data.horizon
    x, mask, parts, bounds = inputs.x, inputs.mask, [], torch.empty(0)
    for number in range(rounds):
        at = number * data.horizon
        middle, pairs = network.interval(
            Inputs(
                x[:, -length:],
                mask[:, -length:],
                inputs.past,
                inputs.future[:, at : at + total],
                inputs.marks[:, at : at + total],
            )
        )
        if not number:
            bounds = pairs
        parts.append(middle)
        x = torch.cat([x, middle], 1)
        mask = torch.cat([mask, torch.ones_like(middle, dtype=torch.bool)], 1)
    return torch.cat(parts, 1).float(), bounds.float()


# ---------------------------------------------------------------- the window


def _scaled(values: Floats, scale: tuple[Floats, Floats]) -> Tensor:
    """(1, rows, ·) float32; missing values 0, the mean."""
    scaled = (values - scale[0]) / scale[1]
    return torch.from_numpy(np.where(np.isfinite(scaled), scaled, 0).astype(np.float32))[None]


def _columns(values: Floats, rows: slice, count: int) -> Floats:
    return values[rows] if values.size else np.empty((count, 0))


def _future(series: Series, scale: Scale, stamps: Any, length: int, ahead: int) -> Tensor:
    """(1, L + ahead, F), all there after the last row."""
    rows = len(series)
    if not series.future_columns:
        return torch.empty(1, length + ahead, 0)
    values = np.full((rows + ahead, len(series.future_columns)), np.nan)
    given = series.future[: rows + ahead]
    values[: len(given)] = given
    for name, column in zip(series.future_columns, values[rows:].T):
        absent = np.flatnonzero(~np.isfinite(column))
        if len(absent):
            raise ItemError(
                _where(series),
                f"no value at {_named([stamps[rows + i] for i in absent])}",
                f"values for the {ahead} steps after the last row of the targets",
                "add them",
                name,
            )
    return _scaled(bridged(values)[rows - length :], scale.future)


def _stamps(series: Series, ahead: int) -> Any:
    try:
        return series.stamps(ahead)
    except (OverflowError, ValueError) as err:  # OutOfBoundsDatetime is a ValueError
        raise ItemError(
            _where(series), f"no calendar {ahead} steps after {series.times[-1]} ({str(err)[:60]})"
        ) from None


def _require_rows(series: Series, length: int) -> None:
    if len(series) < length:
        raise ItemError(
            _where(series),
            f"{len(series)} rows",
            f"at least {length} (data.input_length)",
            f"give {length - len(series)} more rows, or a model of a shorter data.input_length",
        )


def _require_values(series: Series, values: NDArray[Any]) -> None:
    empty = np.flatnonzero(~np.isfinite(values).any(0))
    if len(empty):
        raise ItemError(
            _where(series),
            f"no value in the last {len(values)} rows",
            "at least one",
            "give newer rows, or leave the channel out in training",
            series.channels[empty[0]],
        )


def _oddities(
    series: Series, window: slice, scale: Scale, steps: int, horizon: int, levels: int
) -> list[str]:
    """What the reader of the forecast should know."""
    out, values = [], series.values[window]
    for part, names, how in (
        (values, series.channels, "masked"),
        (series.past[window], series.past_columns, "the last value before taken"),
        (series.future[: len(series)][window], series.future_columns, "bridged"),
    ):
        if names and not np.isfinite(part).all():
            columns = [f"{name} {n}" for name, n in zip(names, (~np.isfinite(part)).sum(0)) if n]
            out.append(f"missing in the last {len(values)} rows and {how}: {_listed(columns)}")
    away = np.abs(np.nanmean(values, 0) - scale.values[0]) / scale.values[1]
    if (away > ODD_SPREADS).any():
        worst = int(away.argmax())
        out.append(
            f"{series.channels[worst]} lies {away[worst]:,.0f} standard deviations from what it is scaled by; "
            "is it the channel the model knows? (predict.scale=own scales by its own rows)"
        )
    if steps > horizon and levels:
        out.append(f"steps after the first {horizon} are rolled: their intervals are unknown and left empty")
    return out


def _named(stamps: Sequence[Any]) -> str:
    shown = ", ".join(str(stamp) for stamp in stamps[:NAMED])
    return shown if len(stamps) <= NAMED else f"{shown} and {len(stamps) - NAMED} more steps"


def _listed(texts: Sequence[str], most: int = 6) -> str:
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def _where(series: Series) -> str:
    """File, and the series where the file's name does not say which."""
    name = series.source.replace("\\", "/").rsplit("/", 1)[-1]
    return (
        series.source
        if name.split(".")[0] == series.id
        else ":".join(filter(None, (series.source, series.id)))
    )
