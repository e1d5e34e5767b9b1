"""A small made series and configuration that tests of the pipeline share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.config import resolve
from shared.training.fit import FitContext
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.data import ForecastData, prepare
from timeseries.forecast.series import Series


def made_series(rows: int = 600, channels: int = 2, seed: int = 0, **more: Any) -> Series:
    """Hourly: a day's rhythm, a drifting level, noise."""
    draw = np.random.default_rng(seed)
    hours = np.arange(rows)[:, None]
    phase, level = np.arange(channels), 10.0 * np.arange(1, channels + 1)
    values = level + 3 * np.sin(2 * np.pi * hours / 24 + phase) + draw.normal(0, 0.3, (rows, channels))
    values += draw.normal(0, 0.05, (rows, channels)).cumsum(0)
    names = tuple(f"c{i}" for i in range(channels))
    return Series("made", pd.date_range("2024-01-01", periods=rows, freq="h"), "h", values, names, **more)


def made_config(series: Series, *sets: str, **layers: Any) -> ForecastConfig:
    """Complete for `series`: 48 rows in, 12 out."""
    data = {"targets": list(series.channels), "freq": series.freq, "input_length": 48, "horizon": 12}
    base = {"threads": 1, "data": data, "train": {"epochs": 3, "checkpoint_seconds": 0}}
    return resolve(ForecastConfig, [("made", base), ("layers", layers)], sets)


def made_data(config: ForecastConfig, *series: Series) -> ForecastData:
    """The module over `series`, without files."""
    module = ForecastData(config)
    module.__dict__["prepared"] = [prepare(each, config) for each in series]
    return module


def context(work: Path, resume: bool = False, said: list[str] | None = None) -> FitContext:
    return FitContext(work, None, resume, (said if said is not None else []).append, "val/mse", "min", "same")
