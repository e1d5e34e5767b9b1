"""A user's tables in, forecasts past their last rows out: CSV or Parquet, a picture, facts for the manifest.

An item is a file; a long table's item holds several series, and one that cannot be forecast does not stop the others.
Everything is computed on the CPU, one series at a time: equal files give equal bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from shared.bundle import Bundle
from shared.errors import DataInvalid, Fault, ItemError, ModelUnusable, UsageError
from shared.io.names import unique_names
from shared.pipeline import Item, Predictor, Tick, error_faults
from timeseries.forecast.ahead import Forecast, forecast_ahead
from timeseries.forecast.config import ForecastConfig, ForecastDataConfig
from timeseries.forecast.discover import fault_of, find_files, tame
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.scores.summary import percent
from timeseries.forecast.series import Series
from timeseries.forecast.tables.read import match_columns
from timeseries.forecast.tables.reader import Reader, Reading
from timeseries.forecast.tables.table import (
    FORECAST,
    ID_COLUMN,
    Table,
    load,
    of_frame,
    parse_csv,
    require_length,
    require_names,
    stem,
)
from timeseries.forecast.windows import Scale

MAX_REQUEST_CHARACTERS = 64 * 2**20
SHOWN = 20
"""Series that a manifest line describes one by one."""
READING = (
    "date_column", "date_format", "sep", "decimal", "encoding", "missing", "gaps", "duplicates", "unsorted", "max_rows",
)  # fmt: skip
"""Keys of ``data.`` that prediction takes too."""
STEP = "step"
"""Name of the stamps' column where the table has none."""
UTC_NOTE = "UTC is used"
"""What the reader says of stamps with a time zone."""


@dataclass(frozen=True)
class Result:
    """Of one item: `forecasts` in the table's order, and what was wrong with its other series."""

    item: str
    forecasts: list[Forecast]
    scaled_by: list[str]
    """``training`` or ``own``, one a forecast."""
    failed: dict[str, Fault]
    notes: list[str]
    time_column: str
    """Name of the stamps' column."""
    id_column: str | None
    """Of the series' names; None where the table was wide."""


class ForecastPredictor(Predictor):
    """Forecasts of one bundle.

    Which scale (``predict.scale``): ``training`` is that of the training series of the same id, or of the only one;
    ``own`` is mean and standard deviation of all rows given; ``auto`` takes the first where there is one. The manifest
    says which was taken.
    """

    layout = "flat"
    record_inputs: ClassVar[Mapping[str, str]] = {"csv": "string"}
    record_outputs: ClassVar[Mapping[str, str]] = {"csv": "string", "warnings": "string"}

    def __init__(self, bundle: Bundle, options: Mapping[str, Any]) -> None:
        self.config: ForecastConfig = bundle.config(ForecastConfig, _over(options))
        self.settings = self.config.predict
        self.steps = _steps(self.config)
        _require_complete(self.config, bundle)
        self.network: ForecastNetwork = bundle.load_into(ForecastNetwork(self.config))
        self.scales = {
            name: Scale.of(facts["scale"])
            for name, facts in dict(bundle.schema.get("forecast") or {}).items()
        }

    # ------------------------------------------------------------ one file

    def discover(self, paths: Sequence[Path]) -> list[Item]:
        found = [pair for path in paths for pair in find_files(Path(path))]
        found = list({os.path.realpath(path): (root, path) for root, path in found}.values())
        names = unique_names(found, stem)
        return [Item(name, (path,), path, fault_of(path)) for name, (_, path) in zip(names, found)]

    def predict(self, item: Item, tick: Tick | None = None) -> Result:
        return self._result(item.id, item.sources[0], lambda: load(item.payload, self.config.data), tick)

    def _result(
        self, name: str, source: Path | str, given: Callable[[], Table], tick: Tick | None = None
    ) -> Result:
        """Raises `ItemError` if the table cannot be read, or none of its series be forecast."""
        try:
            reading = self._reading(given(), str(source))
        except DataInvalid as err:
            raise _item_error(err.faults) from None
        failed = _faults_by_series(reading, source)
        forecasts, scaled_by = [], []
        for number, one in enumerate(reading.series):
            try:
                if one.id not in failed:
                    forecast, by = self.forecast(one)
                    forecasts.append(forecast)
                    scaled_by.append(by)
            except ItemError as err:
                failed[one.id] = err.fault
            if tick:
                tick(number + 1, len(reading.series))
        if not forecasts:
            raise _item_error(list(failed.values()) or [Fault(source, "no series", "a table of numbers")])
        notes = list(dict.fromkeys(note for one in forecasts for note in one.series.notes))
        id_column = reading.id_column if reading.layout == "long" else None
        return Result(name, forecasts, scaled_by, failed, notes, reading.date_column or STEP, id_column)

    def _reading(self, given: Table, source: str) -> Reading:
        """The table, its columns found by name; its stamps may have another name than in training.

        A table of another step is read with that step, so that the message can name it.
        """
        known = self.config.data.date_column in (None, "", *map(str, given.frame.columns))
        data = self.config.data.model_copy(
            update={"layout": "auto"} if known else {"layout": "auto", "date_column": None}
        )
        reading = Reader(given, data, source).read()
        if not error_faults(reading.faults) or data.freq is None:
            return reading
        other = Reader(given, data.model_copy(update={"freq": None}), source).read()
        return reading if error_faults(other.faults) else other

    def forecast(self, series: Series) -> tuple[Forecast, str]:
        """The forecast of one series, whatever the order of its columns, and which scale it took.

        Raises `ItemError`.
        """
        try:
            series = match_columns(series, self.config)
        except DataInvalid as err:
            raise _item_error(err.faults) from None
        scale, by = self._scale(series)
        return forecast_ahead(self.network, series, scale, self.steps), by

    def _scale(self, series: Series) -> tuple[Scale, str]:
        wanted, known = self.settings.scale, self.scales.get(series.id)
        if known is None and series.source:  # a folder of long tables was trained on
            known = self.scales.get(f"{stem(series.source)}/{series.id}")
        if known is None and len(self.scales) == 1:
            known = next(iter(self.scales.values()))
        if wanted != "own" and known is not None:
            return known, "training"
        if wanted == "training":
            found = f"no training series of that name ({len(self.scales)} known)"
            raise ItemError(
                series.source or series.id, found, "one of them", "set predict.scale=own", series.id
            )
        return Scale.fit(series, len(series)), "own"

    # ------------------------------------------------------------ files

    def write(self, result: Result, folder: Path) -> dict[str, Any]:
        place, names = self._places(result, folder)
        for forecast, name in zip(result.forecasts, names):
            frame = table_of(forecast, result.time_column, result.id_column)
            path = place / f"{name}{FORECAST}.{self.settings.format}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.settings.format == "parquet":
                frame.to_parquet(path, index=False)
            else:
                path.write_text(csv_text(frame), encoding="utf-8")
            if self.settings.picture:
                from shared.plots.style import save_png
                from timeseries.forecast.plots.forecast import forecast_picture

                save_png(
                    forecast_picture(forecast, self.settings.context_shown), path.with_name(f"{name}.png")
                )
        return self._summary(result)

    def _places(self, result: Result, folder: Path) -> tuple[Path, list[str]]:
        """One series: the item's own name, in its folder. Several: a folder of that name, a file a series."""
        *parents, last = (tame(part) for part in result.item.split("/"))
        place = folder.joinpath(*parents)
        if len(result.forecasts) + len(result.failed) == 1:
            return place, [last]
        return place / last, [tame(forecast.series.id) for forecast in result.forecasts]

    def _summary(self, result: Result) -> dict[str, Any]:
        rows = [
            {
                "series": forecast.series.id,
                "rows": len(forecast.times),
                "first": str(forecast.times[0]),
                "last": str(forecast.times[-1]),
                "missing_inputs": forecast.missing,
                "scale": by,
                "warnings": list(forecast.warnings),
            }
            for forecast, by in zip(result.forecasts, result.scaled_by)
        ]
        summary: dict[str, Any] = dict(rows[0]) if len(rows) == 1 else {"series": rows[:SHOWN]}
        summary["count"] = len(rows)
        summary["missing_inputs"] = sum(forecast.missing for forecast in result.forecasts)
        summary["notes"] = result.notes
        if result.failed:
            summary["failed"] = {name: str(fault) for name, fault in list(result.failed.items())[:SHOWN]}
            summary["failed_count"] = len(result.failed)
        return summary

    # ------------------------------------------------------------ from Python

    def predict_frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The forecast of a frame laid out as the training table (wide, or long with several series).

        Raises `ItemError`, also where only one of several series cannot be forecast.
        """
        result = self._result("frame", "frame", lambda: _of_frame(frame, self.config.data))
        if result.failed:
            raise _item_error(list(result.failed.values()))
        return tables_of(result)

    # ------------------------------------------------------------ serving

    def predict_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A table as CSV text → its forecast as CSV text, and sentences about it, one a line."""
        text = record.get("csv")
        if not isinstance(text, str) or not text.strip():
            raise ItemError("request", "nothing", "the text of a CSV table", "send it", "csv")
        if len(text) > MAX_REQUEST_CHARACTERS:
            raise ItemError(
                "request", f"{len(text):,} characters", f"at most {MAX_REQUEST_CHARACTERS:,}", field="csv"
            )
        data = self.config.data.model_copy(update={"encoding": "utf-8"})
        content = text.encode("utf-8", "replace")
        result = self._result("request", "request", lambda: parse_csv(content, data, "request"))
        said = [
            f"{forecast.series.id}: {warning}"
            for forecast in result.forecasts
            for warning in forecast.warnings
        ]
        said += map(str, result.failed.values())
        return {"csv": csv_text(tables_of(result)), "warnings": "\n".join(said)}

    def example_record(self) -> dict[str, Any]:
        """The shortest table the model takes: a slow wave around each channel's mean."""
        data = self.config.data
        rows, ahead = data.input_length, -(-(self.steps or data.horizon) // data.horizon) * data.horizon
        total = rows + (ahead if data.future_columns else 0)
        wave = np.sin(np.arange(total) / 8)
        frame: dict[str, Any] = {}
        if data.layout == "long":
            frame[data.id_column or ID_COLUMN] = ["example"] * total
        if data.freq is not None:
            frame[data.date_column or "date"] = pd.date_range("2024-01-01", periods=total, freq=data.freq)
        scale = next(iter(self.scales.values()), None)
        for part, names in (
            ("values", data.targets),
            ("past", data.past_columns),
            ("future", data.future_columns),
        ):
            for number, name in enumerate(names):
                mean, spread = (side[number] for side in getattr(scale, part)) if scale else (0.0, 1.0)
                known = total if part == "future" else rows
                frame[name] = np.where(np.arange(total) < known, mean + spread * wave, np.nan).round(3)
        return {"csv": csv_text(pd.DataFrame(frame))}


def forecast_frame(bundle: Bundle, frame: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """`frame` laid out as the training table → the rows after its last; `options` are keys of ``predict.``.

    Raises `ItemError`, `UsageError`. For many frames, `ForecastPredictor` loads the model once.
    """
    return ForecastPredictor(bundle, options).predict_frame(frame)


# ---------------------------------------------------------------- tables out


def table_of(forecast: Forecast, time_column: str, id_column: str | None = None) -> pd.DataFrame:
    """(N rows) name of the series where the table was long, stamp, every channel and its bounds: ``y-lo-80``.

    Raises `ItemError` where two columns would have one name.
    """
    series, times = forecast.series, forecast.times
    if isinstance(times, pd.DatetimeIndex) and any(note.endswith(UTC_NOTE) for note in series.notes):
        times = times.tz_localize("UTC")  # say so in every stamp
    columns: list[tuple[str, Any]] = [(id_column, [series.id] * len(times))] if id_column else []
    columns.append((time_column, times))
    for number, name in enumerate(series.channels):
        columns.append((name, forecast.values[:, number]))
        for level, pair in zip(forecast.levels, forecast.bounds):
            for side, bound in zip(("lo", "hi"), pair):
                columns.append((f"{name}-{side}-{percent(level)}", bound[:, number]))
    names = [name for name, _ in columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ItemError(
            series.source or series.id,
            f"two columns of the forecast called {twice}",
            "names that differ",
            "rename the channel",
        )
    return pd.DataFrame(dict(columns))


def tables_of(result: Result) -> pd.DataFrame:
    """Of all its series, one below the other."""
    frames = [table_of(each, result.time_column, result.id_column) for each in result.forecasts]
    return pd.concat(frames, ignore_index=True)


def csv_text(frame: pd.DataFrame) -> str:
    """CSV whose numbers read back as they are; unknown is an empty cell."""
    return str(frame.to_csv(index=False, lineterminator="\n"))


# ---------------------------------------------------------------- tables in


def _of_frame(frame: pd.DataFrame, data: ForecastDataConfig) -> Table:
    require_names(map(str, frame.columns), "frame")
    require_length(len(frame), data, "frame")
    return of_frame(frame)


# ---------------------------------------------------------------- configuration


def _over(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of prediction, and those of ``data.`` that say how a table is written. Raises `UsageError`."""
    over: dict[str, Any] = {"predict": {}, "data": {}}
    for key, value in options.items():
        part, _, name = key.rpartition(".")
        if part == "data" and name not in READING:
            raise UsageError(
                f"data.{name}: part of the trained model; one of data.{', data.'.join(READING)} wanted; leave it out"
            )
        over["data" if part == "data" else "predict"][name if part == "data" else key] = value
    return {part: values for part, values in over.items() if values}


def _steps(config: ForecastConfig) -> int:
    """Steps to forecast. Raises `UsageError` for more than the model can give."""
    horizon, wanted = config.data.horizon, config.predict.horizon or config.data.horizon
    if wanted <= horizon:
        return wanted
    if not config.predict.roll:
        raise UsageError(
            f"predict.horizon: found {wanted}; at most {horizon}, as trained; set predict.roll=true to go on "
            "with own forecasts as input"
        )
    if config.data.past_columns:
        raise UsageError(
            f"predict.horizon: found {wanted}; at most {horizon}, for {', '.join(config.data.past_columns[:3])} "
            "is unknown after the last row; make it a future column, or train a longer horizon"
        )
    return wanted


def _item_error(faults: Sequence[Fault]) -> ItemError:
    """The one line of an item: its first error, and how many more there are."""
    errors = error_faults(faults) or list(faults)
    fault, more = errors[0], f" (and {len(errors) - 1} more faults)" if len(errors) > 1 else ""
    return ItemError.of(replace(fault, found=fault.found + more))


def _faults_by_series(reading: Reading, source: Path | str) -> dict[str, Fault]:
    """Series → its first fault. Raises `ItemError` for a fault of the whole table."""
    found: dict[str, Fault] = {}
    errors = error_faults(reading.faults)
    if errors and reading.layout != "long":
        raise _item_error(errors)
    for fault in errors:
        name = fault.field.rpartition(":")[0] or fault.field
        if not name or name.startswith("data") or name in (reading.id_column, reading.date_column):
            raise _item_error(errors)
        found.setdefault(name, fault)
    return found


def _require_complete(config: ForecastConfig, bundle: Bundle) -> None:
    if not config.data.targets:
        raise ModelUnusable(
            f"{bundle.path / 'config.yaml'}:data.targets: empty; the columns it was trained on wanted; "
            "use a bundle that `pipelines run forecast` wrote"
        )
