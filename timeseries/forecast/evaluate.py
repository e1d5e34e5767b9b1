"""Scores of a model on series it has not seen, with the pictures and sentences that belong beside them.

Every window counts once; batches are summed as they come, so memory does not grow with the data set.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from shared.bundle import Bundle
from shared.errors import UsageError
from shared.io.atomic import atomic_write_text
from shared.pipeline import Evaluation
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.plots.pictures import draw_all
from timeseries.forecast.scores.backtest import forecasts, origins_of
from timeseries.forecast.scores.held_out import HeldOut, held_out
from timeseries.forecast.scores.metrics import Naive, Tally, season_of
from timeseries.forecast.scores.score import batches, eval_batch, on_device
from timeseries.forecast.scores.summary import (
    Reference,
    metrics_of,
    notes_of,
    shown_steps,
    steps_of,
    table_of,
)
from timeseries.forecast.windows import Windows

BACKTEST_ROWS = 100_000
"""Rows of the written back-test; longer ones keep evenly spaced origins (`scores.backtest` gives all)."""


@dataclass(slots=True)
class ForecastEvaluation(Evaluation):
    """With the errors by step that the report shows."""

    by_step: list[dict[str, Any]] = field(default_factory=list)


def evaluate(bundle: Bundle, config: ForecastConfig, out: Path) -> ForecastEvaluation:
    """Scores of `bundle`: on the test part of its own data, on everything it has not seen of other data.

    Into `out` go the pictures, ``by_step.csv``, ``by_step_and_channel.csv`` and ``backtest.csv``. Raises `DataInvalid`
    when there is nothing to score, `UsageError` when rows of the training would be scored.
    """
    from shared.training.hardware import on_gpu

    trained: ForecastConfig = bundle.config(ForecastConfig)
    _refuse_other_model(trained, config)
    held = held_out(bundle, config)
    network: ForecastNetwork = bundle.load_into(ForecastNetwork(trained))
    network.to("cuda" if on_gpu(config.train) and torch.cuda.is_available() else "cpu")
    return evaluate_network(network, held, config, out)


def _refuse_other_model(trained: ForecastConfig, asked: ForecastConfig) -> None:
    """Raise `UsageError` for an override of what the weights belong to."""
    pairs = [(name, getattr(trained, name), getattr(asked, name)) for name in ("model", "intervals")]
    names = ("input_length", "horizon", "targets", "past_columns", "future_columns")
    pairs += [(f"data.{name}", getattr(trained.data, name), getattr(asked.data, name)) for name in names]
    for name, had, wanted in pairs:
        if had != wanted:
            raise UsageError(f"{name}: part of the trained model; it stays as it was trained; leave it out")


def evaluate_network(
    network: ForecastNetwork, held: HeldOut, config: ForecastConfig, out: Path
) -> ForecastEvaluation:
    """Scores of a network in memory on the windows of `held`."""
    windows, asked = held.windows, config.evaluate
    longest = max(part.stop - part.start for part in held.known_rows)
    season = asked.season or season_of(windows.prepared[0].series.freq, longest)
    tally = tally_of(network, windows, season)
    against = Reference.of(tally, held.known_rows, season)
    metrics = metrics_of(tally, against, asked.legacy_drop_last)
    notes = [*held.notes, *notes_of(tally, against, metrics, asked.legacy_drop_last)]
    if season > 1 and "seasonal_mse" not in metrics:
        notes.append(
            f"seasonal_* left out: the first window has fewer than {season} rows before its horizon."
        )
    by_step = steps_of(tally)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / "by_step.csv", csv_text(by_step))
    atomic_write_text(out / "by_step_and_channel.csv", csv_text(_by_channel(tally)))
    rolled, said = _backtest(network, windows, asked.backtest_origins)
    atomic_write_text(out / "backtest.csv", rolled.to_csv(index=False, float_format="%.7g"))
    figures = draw_all(network, tally, season, out, asked.backtest_origins)
    return ForecastEvaluation(metrics, table_of(tally, against), figures, notes + said, by_step)


@torch.no_grad()
def tally_of(network: ForecastNetwork, windows: Windows, season: int = 1) -> Tally:
    """Sums of the errors of `network` and of the naive forecasts over all windows."""
    network.eval()
    levels = network.config.intervals.levels if network.config.intervals.method != "none" else ()
    tally = Tally(windows, len(network.config.data.targets), levels)
    naive = {"naive": Naive(windows.prepared, 1, windows.horizon)}
    if 1 < season <= int(windows.index[:, 1].min()) + windows.length:
        naive["seasonal"] = Naive(windows.prepared, season, windows.horizon)
    for chosen, batch in batches(windows, eval_batch(network.config)):
        point, bounds = network.interval(on_device(network, batch.inputs))
        tally.add(chosen, batch, point.cpu(), bounds.cpu(), naive)
    return tally


def _by_channel(tally: Tally) -> list[dict[str, Any]]:
    """Rows of `steps_of` for every channel, at the steps a person looks at."""
    steps = shown_steps(tally.windows.horizon)
    channels = enumerate(tally.windows.prepared[0].series.channels)
    return [{"channel": name} | row for number, name in channels for row in steps_of(tally, number, steps)]


def _backtest(network: ForecastNetwork, windows: Windows, limit: int) -> tuple[pd.DataFrame, list[str]]:
    """The rolling back-test over the scored windows; what must be said of it."""
    chosen = origins_of(windows, limit)
    stride = -(-len(chosen) * windows.horizon * len(network.config.data.targets) // BACKTEST_ROWS)
    kept = chosen if limit else chosen[:: max(stride, 1)]
    note = (
        f"backtest.csv holds {len(kept)} of {len(chosen)} origins; evaluate.backtest_origins asks for more."
    )
    return forecasts(network, windows, kept), [] if len(kept) == len(chosen) else [note]


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows` with the keys of the first as header; numbers to six digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if rows:
        writer.writerow(rows[0])
    for row in rows:
        writer.writerow([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()])
    return buffer.getvalue()
