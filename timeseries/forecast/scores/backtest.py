"""Rolling back-test: forecasts from successive origins over the test part, dated, in original units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from shared.bundle import Bundle
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.scores.score import eval_batch, on_device
from timeseries.forecast.scores.summary import percent
from timeseries.forecast.series import Series
from timeseries.forecast.windows import Prepared, Scale, Windows, borders


def backtest(
    model: Bundle | ForecastNetwork, series: Series | Sequence[Series], config: ForecastConfig | None = None
) -> pd.DataFrame:
    """Forecasts of the test part of `series`, from an origin every H rows.

    `config` (by default the model's own) gives the split and ``evaluate.backtest_origins``. A bundle scales a series
    it was trained on as then, any other by its training rows. Columns: series, origin (stamp of the last row known),
    ds, channel, y (NaN where missing), yhat, and ``lo-80``, ``hi-80`` … for every level.
    """
    network, stored = _opened(model)
    config = config or network.config
    prepared = []
    for one in [series] if isinstance(series, Series) else series:
        ends = borders(one, config.data)
        kept = stored.get(one.id)
        scale = Scale.of(kept["scale"]) if kept else Scale.fit(one, ends.train)
        prepared.append(Prepared(one, scale, ends))
    windows = Windows(prepared, "test", network.config.data.input_length, network.config.data.horizon)
    return forecasts(network, windows, origins_of(windows, config.evaluate.backtest_origins))


def _opened(
    model: Bundle | ForecastNetwork,
) -> tuple[ForecastNetwork, dict[str, dict[str, dict[str, list[list[float]]]]]]:
    if isinstance(model, ForecastNetwork):
        return model.eval(), {}
    network: ForecastNetwork = model.load_into(ForecastNetwork(model.config(ForecastConfig)))
    return network, dict(model.schema.get("forecast") or {})


def origins_of(windows: Windows, limit: int = 0) -> NDArray[np.int64]:
    """Numbers of the windows to forecast: of every series one every H rows, at most `limit` of them (0 = all), evenly
    spread."""
    numbers = []
    for series in range(len(windows.prepared)):
        mine = np.flatnonzero(windows.index[:, 0] == series)
        starts = windows.index[mine, 1]
        if len(mine):
            mine = mine[(starts - starts[0]) % windows.horizon == 0]
        if 0 < limit < len(mine):
            mine = mine[np.linspace(0, len(mine) - 1, limit).round().astype(int)]
        numbers.append(mine)
    return np.concatenate(numbers) if numbers else np.empty(0, np.int64)


@torch.no_grad()
def forecasts(network: ForecastNetwork, windows: Windows, chosen: NDArray[np.int64]) -> pd.DataFrame:
    """The windows numbered `chosen` as the frame that `backtest` describes."""
    network.eval()
    size = eval_batch(network.config)
    frames = []
    for start in range(0, len(chosen), size):
        part = chosen[start : start + size]
        inputs = on_device(network, windows.batch(part).inputs)
        point, bounds = (each.cpu().numpy() for each in network.interval(inputs))
        for number in np.unique(windows.index[part, 0]):
            mine = windows.index[part, 0] == number
            origins = windows.index[part[mine], 1] + windows.length
            frames.append(_frame(network, windows.prepared[number], origins, point[mine], bounds[mine]))
    columns = ["series", "origin", "ds", "channel", "y", "yhat"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


def _frame(
    network: ForecastNetwork,
    one: Prepared,
    origins: NDArray[np.int64],
    point: NDArray[np.float32],
    bounds: NDArray[np.float32],
) -> pd.DataFrame:
    """Rows in the order origin, channel, step, of one series; `origins` are the first rows forecast."""
    series, scale = one.series, one.scale
    count, horizon, channels = point.shape
    rows = origins[:, None] + np.arange(horizon)

    def flat(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values.transpose(0, 2, 1).reshape(-1)

    def each_channel(stamps: pd.Index) -> pd.Index:
        return stamps.take(
            np.tile(np.arange(len(stamps)).reshape(count, 1, -1), (1, channels, 1)).reshape(-1)
        )

    frame = pd.DataFrame(
        {
            "series": series.id,
            "origin": series.times.take(np.repeat(origins - 1, channels * horizon)),
            "ds": each_channel(series.times.take(rows.reshape(-1))),
            "channel": np.tile(np.repeat(np.array(series.channels, dtype=object), horizon), count),
            "y": flat(series.values[rows]),
            "yhat": flat(scale.undo(point)),
        }
    )
    for number, level in enumerate(network.config.intervals.levels if bounds.shape[1] else ()):
        for side, name in enumerate(("lo", "hi")):
            frame[f"{name}-{percent(level)}"] = flat(scale.undo(bounds[:, number, side]))
    return frame
