"""Networks that repeat the last value (NLinear with zero weights), their bundles, and small tables for them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from shared.bundle import Bundle
from shared.config import resolve
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.windows import Scale

LENGTH, HORIZON = 24, 6
MEAN, SPREAD = (10.0, -100.0), (2.0, 40.0)
OFFSETS = {0.8: (-0.5, 0.75), 0.95: (-1.0, 1.5)}
"""Level → lower and upper offset, scaled units."""


def scale(channels: int = 2, past: int = 0, future: int = 0) -> Scale:
    one = (np.zeros(0), np.ones(0))
    return Scale(
        (np.array(MEAN[:channels]), np.array(SPREAD[:channels])),
        (np.full(past, 5.0), np.full(past, 2.0)) if past else one,
        (np.full(future, 5.0), np.full(future, 2.0)) if future else one,
    )


def make_config(**data: Any) -> ForecastConfig:
    given = {
        "input_length": LENGTH, "horizon": HORIZON, "targets": ["a", "b"], "freq": "h", "date_column": "date",
        "layout": "wide", **data,
    }  # fmt: skip
    config: ForecastConfig = resolve(
        ForecastConfig, [("test", {"data": given, "model": {"name": "nlinear"}})]
    )
    return config


def repeating(config: ForecastConfig) -> ForecastNetwork:
    """NLinear whose weights are zero: the last value, and `OFFSETS` around it that grow with the step."""
    network = ForecastNetwork(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        grow = torch.arange(1, config.data.horizon + 1)[:, None]
        for k, (low, high) in enumerate(OFFSETS.values()):
            network.offsets[k, 0], network.offsets[k, 1] = low * grow, high * grow
    return network


def save(
    path: Path, config: ForecastConfig, network: ForecastNetwork, scales: Mapping[str, Scale] | None = None
) -> Bundle:
    data = config.data
    known = scales or {"train": scale(len(data.targets), len(data.past_columns), len(data.future_columns))}
    return Bundle.save(
        path,
        pipeline="forecast",
        config=config,
        state_dict=network.state_dict(),
        schema={"forecast": {name: {"scale": one.plain()} for name, one in known.items()}},
    )


def frame(
    rows: int = 30, freq: str = "h", start: str = "2024-01-01", seed: int = 0, tz: Any = None
) -> pd.DataFrame:
    noise = np.random.default_rng(seed).normal(size=(rows, 2))
    return pd.DataFrame(
        {
            "date": pd.date_range(start, periods=rows, freq=freq, tz=tz),
            "a": MEAN[0] + SPREAD[0] * noise[:, 0],
            "b": MEAN[1] + SPREAD[1] * noise[:, 1],
        }
    )


def written(path: Path, table: pd.DataFrame) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(table.to_csv(index=False).encode(), mtime=0))
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path
