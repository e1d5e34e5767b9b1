"""What is wrong with a data set, all in one pass, and what its tables tell that a configuration left open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import DataInvalid, Fault, ItemError
from shared.pipeline import error_faults
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.series import Series
from timeseries.forecast.tables.read import completed, match_columns, read_all
from timeseries.forecast.tables.reader import Reading
from timeseries.forecast.windows import Prepared, Scale, borders, require_windows


def check(config: ForecastConfig) -> list[Fault]:
    """Every fault of the data set, errors first, then warnings."""
    reading = _read(config)
    faults = list(reading.faults)
    if not error_faults(faults) and reading.series:
        faults += _too_short(reading.series, config)
    return sorted(faults, key=lambda fault: fault.severity)


def infer(config: ForecastConfig) -> dict[str, Any]:
    """The completed keys of ``data``: layout, date_column, id_column, freq, targets. Raises `DataInvalid`."""
    reading = _read(config)
    reading.checked()
    return completed(reading)


def _read(config: ForecastConfig) -> Reading:
    if config.data.path is not None:
        return read_all(Path(config.data.path), config.data)
    from timeseries.forecast.sample import embedded

    try:
        series = match_columns(embedded(), config)
    except ItemError as err:
        return Reading(faults=[err.fault])
    return Reading([series], [], "wide", "date", None, series.freq)


def _too_short(series: list[Series], config: ForecastConfig) -> list[Fault]:
    """Faults of the division: dates outside a series, and parts without a single window."""
    data = config.data
    try:
        parts = [(each, borders(each, data)) for each in series]
        prepared = [Prepared(each, Scale.fit(each, ends.train), ends) for each, ends in parts]
        require_windows(prepared, data.input_length, data.horizon)
    except DataInvalid as err:
        return err.faults
    return [fault for one in prepared for fault in _flat(one)]


def _flat(one: Prepared) -> list[Fault]:
    """Warnings of channels that training sees as constant or empty, though they are not."""
    values, rows = one.series.values, one.borders.train
    faults = []
    for name, column in zip(one.series.channels, values.T):
        known, seen = column[np.isfinite(column)], column[:rows][np.isfinite(column[:rows])]
        if len(known) and known.min() < known.max() and (not len(seen) or seen.min() == seen.max()):
            found = f"{'constant' if len(seen) else 'empty'} in the training rows 1–{rows:,}, but not after"
            how = "its scale is kept at 1, so its errors outweigh all others"
            faults.append(Fault(one.series.source or one.series.id, found, "", how, name, "warning"))
    return faults
