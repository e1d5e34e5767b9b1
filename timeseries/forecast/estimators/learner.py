"""A network fitted to one series that may grow, and its errors on rows it has not seen: what the estimators share.

The last rows are held back (`frames.tail`). Least squares: a first network of the other rows is the witness
whose errors there make the intervals; the one that forecasts has all rows. Gradient steps: one network, whose weights
the rows held back choose.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.training.seed import isolated_rng
from timeseries.forecast.ahead import rolled
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.estimators.frames import ERRORS_WANTED, tail
from timeseries.forecast.fit import by_steps
from timeseries.forecast.models.closed_form import fit_closed_form, refit
from timeseries.forecast.models.moments import Moments, rows_of
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.scores.score import errors_of
from timeseries.forecast.series import Series
from timeseries.forecast.steps import train_network
from timeseries.forecast.windows import Borders, Inputs, Part, Prepared, Scale, Windows

ERROR_VALUES = 4_000_000
"""Errors kept (numbers); of more, those of evenly spaced windows."""
AT_ONCE = 256
"""Windows rolled on together."""


class Learner:
    """`config` is complete; `held_back` is the share of rows that are."""

    def __init__(self, config: ForecastConfig, held_back: float, scale: bool, device: str) -> None:
        self.config = config
        self._held_back, self._scaled, self._device = held_back, scale, device
        self.network: ForecastNetwork
        """Forecasts; on the CPU."""
        self.scale: Scale
        self._witness: ForecastNetwork
        self._prepared: Prepared
        self._moments: tuple[Moments, ...] = ()
        """Of the rows not held back, and of all."""

    @property
    def length(self) -> int:
        return self.config.data.input_length

    @property
    def horizon(self) -> int:
        return self.config.data.horizon

    @property
    def rows(self) -> int:
        """Rows learned or held back."""
        return len(self._prepared.series)

    @property
    def holds_back(self) -> bool:
        """Whether `errors` are of rows the witness has not seen."""
        return self._part(1) == "val"

    # ------------------------------------------------------------ learning

    def learn(self, series: Series) -> None:
        """From nothing. Raises `Diverged`, `ResourcesExhausted`."""
        self.scale = _scale(series, len(series) - self._tail(series), self._scaled)
        prepared = self._prepare(series)
        if not len(self._windows(prepared, "train")):
            raise ValueError(
                "y: no window has a value to forecast; some wanted; give rows that are not missing"
            )
        if by_steps(self.config):
            self.network = self._witness = self._steps(prepared, self.config, None)
        else:
            self._exact(prepared)
        self._prepared = prepared

    def go_on(self, series: Series) -> None:
        """With more rows of the series it has: exactly what least squares of all of them give, with the first scale; or
        one more epoch. Rows that were learned before and have changed mean learning anew."""
        if len(series) <= self.rows:
            return
        prepared = self._prepare(series)
        if by_steps(self.config):
            settings = self.config.train.model_copy(update={"epochs": 1})
            once = self.config.model_copy(update={"train": settings})
            self.network = self._witness = self._steps(prepared, once, self.network)
        elif self._continues(prepared):
            networks = (self._witness, self.network)[-len(self._moments) :]
            for network, moments, span in zip(networks, self._moments, self._spans(prepared)):
                moments.update(*rows_of(prepared, *span))
                self._solve(network, moments)
        else:
            return self.learn(series)
        self._prepared = prepared
        return None

    def _tail(self, series: Series) -> int:
        return tail(len(series), self.horizon, self._held_back)

    def _prepare(self, series: Series) -> Prepared:
        rows = len(series)
        return Prepared(series, self.scale, Borders(rows - self._tail(series), rows, rows))

    def _windows(self, prepared: Prepared, part: Part) -> Windows:
        return Windows([prepared], part, self.length, self.horizon)

    def _steps(
        self, prepared: Prepared, config: ForecastConfig, start: ForecastNetwork | None
    ) -> ForecastNetwork:
        train, val = self._windows(prepared, "train"), self._windows(prepared, "val")
        return train_network(config, train, val if len(val) else None, start, self._device)

    def _exact(self, prepared: Prepared) -> None:
        with isolated_rng(self.config.seed):  # first weights, which are overwritten
            self._witness = ForecastNetwork(self.config).eval()
        model: Any = self._witness.model
        known = fit_closed_form(model, [prepared], self.config, lambda text: None)
        self._moments, self.network = (known,), self._witness
        if prepared.borders.train < prepared.borders.val:
            whole, self.network = copy.deepcopy(known), copy.deepcopy(self._witness)
            whole.update(*rows_of(prepared, prepared.borders.train, prepared.borders.val))
            self._moments = (known, whole)
            self._solve(self.network, whole)

    def _solve(self, network: ForecastNetwork, moments: Moments) -> None:
        model: Any = network.model
        refit(model, moments, self.config.model.ridge)

    def _spans(self, new: Prepared) -> list[tuple[int, int]]:
        """Rows that the moments lack."""
        old = self._prepared.borders
        return [(old.train, new.borders.train), (old.val, new.borders.val)][-len(self._moments) :]

    def _continues(self, new: Prepared) -> bool:
        """Whether the moments can take the new rows as they are."""
        old, rows = self._prepared, self.rows
        if len(self._moments) == 1 and new.borders.train < new.borders.val:
            return False
        same = all(
            np.array_equal(getattr(old, name)[:rows], getattr(new, name)[:rows])
            for name in ("x", "mask", "future")
        )
        return same and all(first <= last for first, last in self._spans(new))

    # ------------------------------------------------------------ errors

    @torch.no_grad()
    def errors(self, steps: int) -> Tensor:
        """(N, steps, C) truth minus forecast, scaled, NaN where unknown; of the rows held back, or of the training rows
        where there are none. Rolled steps with fewer than `ERRORS_WANTED` have those of the last one that has more."""
        first, last = self._prepared.borders.span(self._part(1), self.length)
        reach, parts = min(steps, last - first - self.length), []
        for known in range(0, reach, self.horizon):
            until = min(known + self.horizon, reach)
            windows = Windows([self._prepared], self._part(until), self.length, until)
            if known and len(windows) < ERRORS_WANTED:
                reach = known
                break
            parts.append(self._errors(windows)[:, known:])
        most = max(map(len, parts))
        found = torch.cat(
            [F.pad(part, (0, 0, 0, 0, 0, most - len(part)), value=torch.nan) for part in parts], 1
        )
        return torch.cat([found, found[:, -1:].expand(-1, steps - reach, -1)], 1)

    def _part(self, horizon: int) -> Part:
        """Where errors are measured."""
        return "val" if len(Windows([self._prepared], "val", self.length, horizon)) else "train"

    def _errors(self, windows: Windows) -> Tensor:
        """Of horizons of any length."""
        if not len(windows):
            return torch.full((1, windows.horizon, len(self.config.data.targets)), torch.nan)
        if windows.horizon == self.horizon:
            return errors_of(self._witness, windows, ERROR_VALUES)
        rounds = -(-windows.horizon // self.horizon)
        more = rounds * self.horizon - windows.horizon
        stride = -(-len(windows) * windows.horizon * len(self.config.data.targets) // ERROR_VALUES)
        chosen, parts = np.arange(0, len(windows), stride), []
        for at in range(0, len(chosen), AT_ONCE):
            (x, mask, past, future, marks), y, known = windows.batch(chosen[at : at + AT_ONCE])
            future, marks = F.pad(future, (0, 0, 0, more)), F.pad(marks, (0, 0, 0, more))
            found, _ = rolled(self._witness, Inputs(x, mask, past, future, marks), rounds)
            parts.append((y - found[:, : windows.horizon]).masked_fill(~known, torch.nan))
        return torch.cat(parts)


def _scale(series: Series, rows: int, wanted: bool) -> Scale:
    scale = Scale.fit(series, rows)
    if wanted:
        return scale
    return Scale(*((np.zeros_like(m), np.ones_like(s)) for m, s in (scale.values, scale.past, scale.future)))
