"""Speed of the linear family: a training epoch beside the authors' code, exact least squares, a Traffic-sized table.

One process, one thread, the same windows of ETTh1 (336 rows in, 96 out, batches of 32), turn by turn. The peer is a
checkout of github.com/cure-lab/LTSF-Linear whose folder is named by the environment variable PIPELINES_LTSF; without
it that case is skipped. Its loop is that of ``exp_main.py``: data set, loader, copies, forward, loss, backward, Adam.
"""

from __future__ import annotations

import gzip
import importlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch

from shared.bench.memory import peak_growth
from shared.bench.peer import checkout
from shared.bench.real_data import data_folder
from shared.config import resolve
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.data import ForecastData, prepare
from timeseries.forecast.models.closed_form import estimate, fit_closed_form, shape_of
from timeseries.forecast.pipeline import PIPELINE
from timeseries.forecast.scores.score import score
from timeseries.forecast.series import Series
from timeseries.forecast.steps import Steps
from timeseries.forecast.task import ForecastTask
from timeseries.forecast.windows import Windows

Say = Callable[[str], None]
VARIABLE = "PIPELINES_LTSF"
PEER = "github.com/cure-lab/LTSF-Linear"
LENGTH, HORIZON, BATCH, LR, TURNS = 336, 96, 32, 5e-3, 5
WORKERS = (0, 10)
"""Of the peer's loader: none, which is faster here, and its default."""
TRAFFIC_ROWS, TRAFFIC_CHANNELS = 17_544, 862


def _etth1(*sets: str) -> tuple[ForecastConfig, ForecastData]:
    path = str(data_folder("timeseries") / "ETTh1.csv.gz")
    base = {"data": {"path": path}, "intervals": {"method": "none"}, "threads": 1}
    config: ForecastConfig = PIPELINE.complete(resolve(ForecastConfig, [("bench", base)], sets))
    return config, ForecastData(config)


# ---------------------------------------------------------------- an epoch by gradient steps


def _official_epoch(folder: Path, kind: str, workers: int) -> Callable[[], float]:
    """A call that trains a fresh official model for one epoch and gives its mean loss."""
    table = Path(tempfile.mkdtemp())
    with (
        gzip.open(data_folder("timeseries") / "ETTh1.csv.gz") as packed,
        (table / "ETTh1.csv").open("wb") as file,
    ):
        shutil.copyfileobj(packed, file)
    with checkout(folder, ("models", "data_provider", "utils")):
        make: Any = importlib.import_module("data_provider.data_loader").Dataset_ETT_hour
        model: Any = importlib.import_module(f"models.{kind}").Model
    windows = make(str(table), "train", (LENGTH, 48, HORIZON), "M", "ETTh1.csv", timeenc=1, freq="h")
    sizes = SimpleNamespace(seq_len=LENGTH, pred_len=HORIZON, individual=False, enc_in=7)

    def epoch() -> float:
        loader = torch.utils.data.DataLoader(
            windows, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True
        )
        network, criterion, losses = model(sizes), torch.nn.MSELoss(), []
        adam = torch.optim.Adam(network.parameters(), lr=LR)
        for x, y, x_marks, y_marks in loader:
            adam.zero_grad()
            x, y, x_marks, y_marks = x.float(), y.float(), x_marks.float(), y_marks.float()
            blank = torch.zeros_like(y[:, -HORIZON:]).float()
            blank = torch.cat([y[:, :48], blank], dim=1).float()
            loss = criterion(network(x)[:, -HORIZON:], y[:, -HORIZON:])
            losses.append(loss.item())
            loss.backward()
            adam.step()
        return float(np.mean(losses))

    return epoch


def epoch_case(say: Say) -> list[dict[str, Any]]:
    """DLinear and NLinear, one epoch of ETTh1-96."""
    named = os.environ.get(VARIABLE)
    if not named:
        say(f"{VARIABLE} is not set to a checkout of {PEER}; skipped")
        return []
    torch.set_num_threads(1)
    rows = []
    for kind in ("DLinear", "NLinear"):
        config, data = _etth1(f"model.name={kind.lower()}", "model.solver=sgd", f"train.lr={LR}")
        windows = data.windows("train")

        def ours(config: ForecastConfig = config, windows: Windows = windows) -> float:
            return Steps(ForecastTask(config), windows).epoch(0)

        sides = [_official_epoch(Path(named), kind, workers) for workers in WORKERS]
        seconds, losses = _turns((ours, *sides))
        for number, workers in enumerate(WORKERS, 1):
            say(
                f"{kind}: an epoch takes {seconds[0]:.2f} s, the official loader ({workers} workers) and loop "
                f"{seconds[number]:.2f} s, mean loss {losses[0]:.4f} and {losses[number]:.4f}"
            )
            rows.append(
                {
                    "case": "epoch",
                    "model": kind,
                    "quantity": "training epoch of ETTh1-96",
                    "unit": "s",
                    "ours": round(seconds[0], 3),
                    "peer": round(seconds[number], 3),
                    "peer_name": f"{PEER}, {workers} loader workers",
                    "ratio": round(seconds[number] / seconds[0], 2),
                    "loss": losses[0],
                    "loss_peer": losses[number],
                }
            )
    return rows


def _turns(sides: tuple[Callable[[], float], ...]) -> tuple[list[float], list[float]]:
    """Least seconds and last value of each side; they take turns, and the first turn is not timed."""
    taken: list[list[float]] = [[] for _ in sides]
    values = [0.0 for _ in sides]
    for turn in range(1 + TURNS):
        for number, side in enumerate(sides):
            started = time.perf_counter()
            values[number] = side()
            if turn:
                taken[number].append(time.perf_counter() - started)
    return [min(each) for each in taken], values


# ---------------------------------------------------------------- exact least squares


def exact_case(say: Say) -> list[dict[str, Any]]:
    """Fit of ETTh1-96 from scaled rows to weights, beside scikit-learn's Ridge on the same windows laid out."""
    from sklearn.linear_model import Ridge

    torch.set_num_threads(1)
    config, data = _etth1("model.name=nlinear")
    task = ForecastTask(config)
    model: Any = task.network.model
    prepared, windows = data.prepared, data.windows("train")

    def ours() -> float:
        fit_closed_form(model, prepared, config, lambda text: None)
        return 0.0

    def theirs() -> float:
        batch = windows.batch(slice(None))
        last = batch.inputs.x[:, -1:]
        x = (batch.inputs.x - last).mT.reshape(-1, LENGTH).double().numpy()
        y = (batch.y - last).mT.reshape(-1, HORIZON).double().numpy()
        Ridge(alpha=config.model.ridge).fit(x, y)
        return 0.0

    seconds, _ = _turns((ours, theirs))
    mse = score(task.network, data.windows("test")).mse
    say(
        f"exact fit {seconds[0]:.3f} s, Ridge on {len(windows):,} windows {seconds[1]:.2f} s, test MSE {mse:.4f}"
    )
    return [
        {
            "case": "exact",
            "model": "nlinear",
            "quantity": "fit of ETTh1-96",
            "unit": "s",
            "ours": round(seconds[0], 4),
            "peer": round(seconds[1], 3),
            "peer_name": "scikit-learn Ridge",
            "ratio": round(seconds[1] / seconds[0], 1),
            "test_mse": mse,
        }
    ]


def traffic_case(say: Say) -> list[dict[str, Any]]:
    """17,544 hours of 862 made channels, days and weeks with noise: memory and time beside the estimate said before."""
    draw, hours = np.random.default_rng(0), np.arange(TRAFFIC_ROWS)[:, None]
    values = np.sin(2 * np.pi * (hours / 24 + draw.random(TRAFFIC_CHANNELS)))
    values += 0.5 * np.sin(2 * np.pi * (hours / 168 + draw.random(TRAFFIC_CHANNELS)))
    values += 0.3 * draw.standard_normal(values.shape)
    names = tuple(f"sensor {i}" for i in range(TRAFFIC_CHANNELS))
    series = Series(
        "traffic", pd.date_range("2015-01-01", periods=TRAFFIC_ROWS, freq="h"), "h", values, names
    )
    rows = []
    for horizon in (96, 720):
        data = {"targets": list(names), "freq": "h", "input_length": LENGTH, "horizon": horizon}
        config = resolve(ForecastConfig, [("bench", {"data": data, "intervals": {"method": "none"}})])
        prepared = [prepare(series, config)]
        assert prepared[0].x.size and prepared[0].mask.size  # made before the memory is measured
        model: Any = ForecastTask(config).network.model
        foreseen = estimate(shape_of(model, prepared))[0]
        started = time.perf_counter()
        grown = peak_growth(lambda: fit_closed_form(model, prepared, config, say))  # noqa: B023
        seconds = time.perf_counter() - started
        say(f"horizon {horizon}: {seconds:.1f} s, {grown / 2**20:.0f} MiB, {foreseen / 2**20:.0f} foreseen")
        common = {"case": "traffic", "model": f"nlinear, horizon {horizon}"}
        rows += [
            {**common, "quantity": "fit", "unit": "s", "ours": round(seconds, 1)},
            {
                **common,
                "quantity": "memory beyond the table",
                "unit": "MiB",
                "ours": round(grown / 2**20),
                "foreseen": round(foreseen / 2**20),
            },
        ]
    return rows


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    "epoch": epoch_case,
    "exact": exact_case,
    "traffic": traffic_case,
}
QUICK = ("exact",)
