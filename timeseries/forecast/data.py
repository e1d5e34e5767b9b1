"""Training and validation windows of a user's series, or of the embedded one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl

from shared.errors import DataInvalid
from shared.pipeline import DataFacts
from shared.training.loader import Draw, ExactLoader, make_loader
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.scores.score import eval_batch
from timeseries.forecast.series import Series
from timeseries.forecast.tables.read import fingerprint, match_columns, read_dataset
from timeseries.forecast.windows import (
    PARTS,
    Batch,
    Part,
    Prepared,
    Scale,
    Windows,
    borders,
    division,
    require_windows,
)


class WindowItems:
    """`Windows` as a dataset whose batches are gathered at once."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return len(self._windows)

    def name(self, index: int) -> str:
        number, start = self._windows.index[index]
        series = self._windows.prepared[number].series
        return f"{series.id} from {series.times[start]}"

    def batch(self, draws: Sequence[Draw]) -> Batch:
        return self._windows.batch(np.array([draw.index for draw in draws]))


def load(config: ForecastConfig) -> list[Series]:
    """The series of a completed configuration, columns as it names them. Raises `DataInvalid`, `ItemError`."""
    if config.data.path is None:
        from timeseries.forecast.sample import embedded

        return [match_columns(embedded(), config)]
    return [match_columns(series, config) for series in read_dataset(Path(config.data.path), config.data)]


def prepare(series: Series, config: ForecastConfig, scale: Scale | None = None) -> Prepared:
    """`series` with its borders, scaled by `scale` or by its own training rows."""
    ends = borders(series, config.data)
    return Prepared(series, scale or Scale.fit(series, ends.train), ends)


class ForecastData(pl.LightningDataModule):
    """Loaders over all series; scalers see the training rows only."""

    def __init__(self, config: ForecastConfig) -> None:
        super().__init__()
        self.config = config

    @cached_property
    def prepared(self) -> list[Prepared]:
        """Raises `DataInvalid` when nothing or too little is there."""
        data = self.config.data
        found = [prepare(series, self.config) for series in load(self.config)]
        require_windows(found, data.input_length, data.horizon)
        return found

    def windows(self, part: Part) -> Windows:
        data = self.config.data
        calendar = self.config.model.name in ("autoformer", "backbone")  # others read no marks
        return Windows(self.prepared, part, data.input_length, data.horizon, calendar)

    def setup(self, stage: str = "fit") -> None:
        """Read and split. Raises `DataInvalid`."""
        if not self.prepared:
            raise DataInvalid([])

    def facts(self) -> DataFacts:
        config, series = self.config, [one.series for one in self.prepared]
        rows = sum(map(len, series))
        missing = sum(int((~one.mask).sum()) for one in self.prepared)
        ends = self.prepared[0].borders
        notes = list(dict.fromkeys(note for each in series for note in each.notes))
        notes.append(
            f"{len(series)} series of {len(config.data.targets)} channels, {rows:,} rows"
            + (f", {missing:,} values missing, which weigh nothing" if missing else ", none missing")
        )
        counted = ", ".join(f"{len(self.windows(part)):,} {part}" for part in PARTS)
        by = division(series[0], config.data)
        notes.append(
            f"first series, by {by}: training rows 1–{ends.train}, validation to {ends.val}, test to {ends.test}; "
            f"windows: {counted}"
        )
        for part in PARTS:
            without = len(series) - len(np.unique(self.windows(part).index[:, 0]))
            if without:
                notes.append(
                    f"{without} of {len(series)} series are too short for a window of the {part} part"
                )
        source = "embedded sample" if config.data.path is None else str(config.data.path)
        return DataFacts(source, fingerprint(series), len(self.windows("train")), tuple(notes))

    def schema(self) -> dict[str, Any]:
        """For the bundle: the scale of every series, and how its rows were divided."""
        return {
            one.series.id: {
                "scale": one.scale.plain(),
                "rows": len(one.series),
                "train": one.borders.train,
                "val": one.borders.val,
                "test": one.borders.test,
                "last": str(one.series.times[-1]),
            }
            for one in self.prepared
        }

    def train_dataloader(self) -> ExactLoader:
        return make_loader(
            WindowItems(self.windows("train")),
            self.config.train.batch_size,
            self.config.seed,
            workers=self.config.data.workers,
        )

    def val_dataloader(self) -> ExactLoader:
        return make_loader(
            WindowItems(self.windows("val")), eval_batch(self.config), self.config.seed, shuffle=False
        )
