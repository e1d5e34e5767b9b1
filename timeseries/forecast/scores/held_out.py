"""Which windows a model may be scored on: those whose horizons hold no row it was trained, tuned or scaled on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from shared.bundle import Bundle
from shared.errors import DataInvalid, Fault, UsageError
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.data import load
from timeseries.forecast.series import Series
from timeseries.forecast.tables.read import fingerprint
from timeseries.forecast.windows import Borders, Prepared, Scale, Windows, borders

MAX_COMPARED = 20
"""Stored series that one of another name is compared with (is it the same table, renamed and grown?)."""


@dataclass
class HeldOut:
    """What may be scored."""

    windows: Windows
    known_rows: list[slice] = field(default_factory=list)
    """Of every series, the rows that MASE's naive forecast is measured on."""
    notes: list[str] = field(default_factory=list)


def held_out(bundle: Bundle, config: ForecastConfig) -> HeldOut:
    """The test part of the model's own data; of other data every window whose horizon the model has not seen.

    Raises `UsageError` for a split that puts training rows into the test part, `DataInvalid` when nothing is left.
    """
    series = load(config)
    stored: Mapping[str, Any] = bundle.schema.get("forecast") or {}
    own = bundle.schema.get("data_fingerprint") == fingerprint(series)
    if own and all(one.id in stored for one in series):
        found = _own(series, stored, config, bundle)
    else:
        found = _foreign(series, stored, config)
    if not len(found.windows):
        longest = max(series, key=len)
        need = config.data.input_length + config.data.horizon
        raise DataInvalid(
            [
                Fault(
                    longest.source or longest.id,
                    f"{len(longest)} rows, of which none can be scored",
                    f"{need} rows (input_length + horizon) with a horizon the model has not seen",
                    "give a longer series, or one it was not trained on",
                )
            ]
        )
    return found


def _own(series: list[Series], stored: Mapping[str, Any], config: ForecastConfig, bundle: Bundle) -> HeldOut:
    prepared = []
    for one in series:
        ends, kept = borders(one, config.data), stored[one.id]
        if ends.val < kept["val"]:
            raise UsageError(
                f"configuration:data.split: test part from row {ends.val + 1} of {one.id}; {kept['val'] + 1} or later "
                f"wanted: {bundle.path} was trained and tuned on the rows before; leave the split as it was"
            )
        prepared.append(Prepared(one, Scale.of(kept["scale"]), ends))
    windows = Windows(prepared, "test", config.data.input_length, config.data.horizon)
    note = f"Scored: the test part, {len(windows):,} windows, none left out; scaled by the training rows."
    return HeldOut(windows, [slice(0, stored[one.id]["train"]) for one in series], [note])


def _foreign(series: list[Series], stored: Mapping[str, Any], config: ForecastConfig) -> HeldOut:
    """Windows of whole series, except the rows a stored series was trained on and those a new scale was taken from."""
    prepared, used, known = [], [], []
    fresh, overlapping, doubtful = 0, 0, 0
    for one in series:
        entry, seen = _recognise(one, stored)
        if entry is not None:
            scale, spent = Scale.of(entry["scale"]), seen
            overlapping += seen.stop > seen.start
            known.append(seen if seen.stop > seen.start else slice(0, len(one)))
        else:
            rows = borders(one, config.data).train
            scale, spent = Scale.fit(one, rows), slice(0, rows)
            known.append(spent)
            fresh += 1
            doubtful += _shares_dates(one, stored)
        prepared.append(Prepared(one, scale, Borders(0, 0, len(one))))
        used.append(spent)
    windows = Windows(prepared, "test", config.data.input_length, config.data.horizon)
    windows.index = windows.index[_unseen(windows, used)]
    notes = [f"Scored: {len(windows):,} windows of data the model was not trained on."]
    if fresh:
        notes.append(
            f"{fresh} of {len(series)} series are new to the model: each is scaled by its own training rows, and only "
            "rows after those are scored."
        )
    if overlapping:
        notes.append(
            f"{overlapping} series hold rows that the model was trained or tuned on: no horizon touches them."
        )
    if doubtful:
        notes.append(
            f"{doubtful} of the new series have dates of the training data: if they are parts of it under another "
            "name, these scores are too good."
        )
    return HeldOut(windows, known, notes)


def _shares_dates(series: Series, stored: Mapping[str, Any]) -> bool:
    """Whether some but not all training rows of a stored series have the dates of `series`: too few to tell by their
    mean whether they are the same."""
    if not isinstance(series.times, pd.DatetimeIndex):
        return False
    for entry in list(stored.values())[:MAX_COMPARED]:
        rows = _rows_between(series, entry, entry["train"])
        if rows is not None and 0 < rows.stop - rows.start < entry["train"]:
            return True
    return False


def _unseen(windows: Windows, used: list[slice]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(N,) whether the horizon of a window lies outside the used rows of its series."""
    spans = np.array([(part.start, part.stop) for part in used]).reshape(-1, 2)[windows.index[:, 0]]
    first = windows.index[:, 1] + windows.length
    free = (first >= spans[:, 1]) | (first + windows.horizon <= spans[:, 0])
    return np.asarray(free | (spans[:, 0] == spans[:, 1]))


def _recognise(series: Series, stored: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, slice]:
    """The stored series that this one continues, and which of its rows trained or tuned the model; (None, –) if new.

    The dates say where the training rows would be, their mean and deviation whether they are those; where the table
    does not hold all of them, the name has to do.
    """
    names = [series.id] if series.id in stored else []
    if len(stored) <= MAX_COMPARED:
        names += [name for name in stored if name != series.id]
    for name in names:
        entry = stored[name]
        train, tuned = (
            _rows_between(series, entry, entry["train"]),
            _rows_between(series, entry, entry["val"]),
        )
        whole = train is not None and train.stop - train.start == entry["train"]
        if train is None or tuned is None:
            continue
        if whole and _same(Scale.fit(_cut(series, train), entry["train"]), Scale.of(entry["scale"])):
            return entry, tuned
        if not whole and name == series.id and isinstance(series.times, pd.DatetimeIndex):
            return entry, tuned
    return None, slice(0, 0)


def _rows_between(series: Series, entry: Mapping[str, Any], rows: int) -> slice | None:
    """Rows of `series` whose stamps are those of the first `rows` rows of a stored series; None if not comparable."""
    times = series.times
    if isinstance(times, pd.RangeIndex):
        try:
            first = int(entry["last"]) - entry["rows"] + 1
        except ValueError:
            return None
        start, stop = first - times[0], first + rows - times[0]
        return slice(*np.clip([start, stop], 0, len(series)).tolist())
    try:
        back = pd.date_range(end=pd.Timestamp(entry["last"]), periods=entry["rows"] + 1, freq=series.freq)
        edges = back[[1, min(rows + 1, entry["rows"])]]
        start, stop = (int(times.searchsorted(edge)) for edge in edges)
    except (ValueError, TypeError, IndexError):  # numbered rows, another time zone
        return None
    return slice(start, stop if rows < entry["rows"] else len(times[times <= back[-1]]))


def _cut(series: Series, rows: slice) -> Series:
    return replace(
        series,
        times=series.times[rows],  # type: ignore[arg-type]
        values=series.values[rows],
        past=series.past[rows] if series.past.size else series.past,
        future=series.future[rows] if series.future.size else series.future,
    )


def _same(found: Scale, kept: Scale) -> bool:
    """Whether both describe the same rows, a few corrected values aside."""
    if len(found.values[0]) != len(kept.values[0]):
        return False
    shift = np.abs(found.values[0] - kept.values[0]) / kept.values[1]
    stretch = np.abs(found.values[1] / kept.values[1] - 1)
    return bool((shift < 0.01).all() and (stretch < 0.01).all())
