"""The models as sktime forecasters, of the same networks, windows, least squares and scaling as the pipeline.

For those who work with sktime (the extra ``timeseries``); nothing of the pipeline imports this module.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from sklearn.utils import check_random_state
from sktime.forecasting.base import BaseForecaster
from sktime.utils.warnings import warn

from shared.config import resolve
from shared.errors import as_value_errors
from timeseries.forecast.ahead import forecast_ahead
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.estimators.frames import Plan, merged, odd_at_most, plan, series_of, step_of
from timeseries.forecast.estimators.learner import Learner
from timeseries.forecast.fit import conformal_offsets
from timeseries.forecast.series import Floats, Series

DEFAULT_HORIZON = 24
"""Steps forecast at once where neither `horizon` nor `fh` says how many."""
NAMED = 3
"""Stamps a message names before it counts the rest."""


class _NetworkForecaster(BaseForecaster):
    """What both estimators share: all but the model's part of the configuration."""

    _tags = {
        "authors": ["domain-pipelines"],
        "maintainers": ["domain-pipelines"],
        "python_dependencies": ["torch", "pytorch-lightning", "scipy"],
        "y_inner_mtype": "pd.DataFrame",
        "X_inner_mtype": "pd.DataFrame",
        "capability:multivariate": True,
        "capability:exogenous": True,
        "capability:categorical_in_X": False,
        "capability:missing_values": True,
        "capability:insample": False,
        "capability:pred_int": True,
        "capability:pred_int:insample": False,
        "capability:update": True,
        "capability:random_state": True,
        "property:randomness": "derandomized",
        "capability:unequal_length": True,
        "requires-fh-in-fit": False,
        "X-y-must-have-same-index": True,
    }
    # The rows are kept here, in `_cur_y` and `_cur_X`: sktime stops keeping them in 1.3.
    _config: ClassVar[dict[str, Any]] = {"remember_data": False}
    _y: Any = None
    _X: Any = None

    def __post_init__(self) -> None:
        if self.intervals == "none":
            self.set_tags(**{"capability:pred_int": False})

    def _model(self, length: int) -> dict[str, Any]:
        """The part ``model`` of the configuration, for inputs of `length` rows."""
        raise NotImplementedError

    def _held_back(self) -> float:
        """Share of the rows that is."""
        raise NotImplementedError

    # ------------------------------------------------------------ fit

    def _fit(self, y: pd.DataFrame, X: pd.DataFrame | None, fh: Any) -> _NetworkForecaster:
        self._check_parameters()
        self._cur_y, self._cur_X = y, X
        with as_value_errors():
            self._step = step_of(y.index)
            self._date_cutoff()
            given = DEFAULT_HORIZON if fh is None else int(fh.to_indexer(self.cutoff).max()) + 1
            self._asked = self.horizon or given
            self._learn()
        return self

    def _date_cutoff(self) -> None:
        """Rows with gaps leave sktime without the step that its horizons need."""
        if isinstance(self.cutoff, pd.DatetimeIndex) and self.cutoff.freq is None:
            self._set_cutoff(pd.DatetimeIndex(self.cutoff, freq=str(self._step)))

    def _check_parameters(self) -> None:
        """Those that the configuration does not check."""
        if self.intervals not in ("conformal", "none"):
            raise ValueError(f"intervals {self.intervals!r}; 'conformal' or 'none' wanted")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout {self.holdout}; a share of at least 0 and below 1 wanted")
        for name in ("input_length", "horizon"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}; at least 1 wanted")

    def _learn(self) -> None:
        series, _ = series_of(self._cur_y, self._cur_X, self.cutoff[0], self._step)
        lengths = plan(len(series), self.input_length, self._asked, self._held_back())
        if lengths.notes:
            warn(f"{len(series)} rows allow only {', and '.join(lengths.notes)}", UserWarning, self)
        self._shortened = bool(lengths.notes)
        device = self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self._learner = Learner(self._settings(series, lengths), self._held_back(), self.scale, device)
        self._learner.learn(series)
        self._learned()

    def _learned(self) -> None:
        self.network_, self.input_length_ = self._learner.network, self._learner.length
        self.horizon_ = self._learner.horizon
        self._errors = None if self.intervals == "none" else self._learner.errors(self.horizon_)

    def _settings(self, series: Series, lengths: Plan) -> ForecastConfig:
        layer = {
            "seed": int(check_random_state(self.random_state).randint(2**31 - 1)),
            "data": {
                "input_length": lengths.length,
                "horizon": lengths.horizon,
                "targets": list(series.channels),
                "future_columns": list(series.future_columns),
                "freq": series.freq,
            },
            "model": self._model(lengths.length),
            "train": {
                "epochs": self.max_epochs,
                "lr": self.lr,
                "batch_size": self.batch_size,
                "patience": self.patience,
                "schedule": "halving",
                "weight_decay": 0.0,
            },
            "intervals": {
                "method": "none"
            },  # the errors themselves are kept: sktime asks for any level, later
        }
        return resolve(ForecastConfig, [(type(self).__name__, layer)])

    def _update(
        self, y: pd.DataFrame, X: pd.DataFrame | None = None, update_params: bool = True
    ) -> _NetworkForecaster:
        with as_value_errors():
            known = merged(self._cur_y, y, "y")
            assert known is not None
            self._cur_y = known
            self._date_cutoff()
            if self._learner.config.data.future_columns:
                self._cur_X = merged(self._cur_X, X, "X")
            if not update_params:
                return self
            series, _ = series_of(self._cur_y, self._cur_X, self.cutoff[0], self._step)
            if self._shortened and len(series) > self._learner.rows:
                self._learn()
            else:
                self._learner.go_on(series)
                self._learned()
        return self

    # ------------------------------------------------------------ predict

    def _predict(self, fh: Any, X: pd.DataFrame | None) -> pd.DataFrame:
        steps = fh.to_indexer(self.cutoff).to_numpy()
        found = self._ahead(int(steps.max()) + 1, X)[steps]
        return pd.DataFrame(found, fh.to_absolute_index(self.cutoff), self._cur_y.columns)

    def _predict_quantiles(self, fh: Any, X: pd.DataFrame | None, alpha: list[float]) -> pd.DataFrame:
        steps = fh.to_indexer(self.cutoff).to_numpy()
        count = int(steps.max()) + 1
        middle = self._ahead(count, X)
        errors = (
            self._learner.errors(count) if self._errors is None or count > self.horizon_ else self._errors
        )
        offsets = self._offsets(errors[:, :count], alpha)
        found = middle[:, :, None] + offsets * self._learner.scale.values[1][:, None]
        columns = pd.MultiIndex.from_product([self._get_varnames(), alpha])
        return pd.DataFrame(found[steps].reshape(len(steps), -1), fh.to_absolute_index(self.cutoff), columns)

    def _offsets(self, errors: torch.Tensor, alpha: list[float]) -> Floats:
        """(steps, C, alphas) scaled."""
        known = errors.isfinite().sum(0)
        fewest = int(known[known > 0].min()) if known.any() else 0
        widest = max(1 - 2 / (fewest + 1), 0)
        levels = [abs(2 * a - 1) for a in alpha]
        if not self._learner.holds_back:
            warn(
                "no rows were held back: intervals are of errors in training, and too narrow",
                UserWarning,
                self,
            )
        elif max(levels) > widest + 1e-9:
            said = f"{fewest} errors of a step were held back, enough for intervals of {widest:.0%}"
            warn(f"{said}; wider ones get their largest errors", UserWarning, self)
        pairs = conformal_offsets(errors, levels)
        sides = [pair.mean(0) if a == 0.5 else pair[int(a > 0.5)] for a, pair in zip(alpha, pairs)]
        return torch.stack(sides, -1).masked_fill((known == 0)[:, :, None], torch.nan).double().numpy()

    def _ahead(self, steps: int, X: pd.DataFrame | None) -> Floats:
        """(steps, C) forecasts after the cutoff."""
        learner = self._learner
        reach = -(-steps // learner.horizon) * learner.horizon
        with as_value_errors():
            known = merged(self._cur_X, X, "X") if learner.config.data.future_columns else None
            series, calendar = series_of(
                self._cur_y, known, self.cutoff[0], self._step, reach, learner.length
            )
            if known is not None:
                self._check_known(series.future[-reach:][:steps], calendar.index[len(series) :], X is None)
                unknown = ~np.isfinite(series.future)
                series.future[unknown] = np.broadcast_to(learner.scale.future[0], unknown.shape)[unknown]
            return forecast_ahead(learner.network, series, learner.scale, steps).values

    def _check_known(self, future: Floats, stamps: Any, nothing_given: bool) -> None:
        """Say which steps lack exogenous values; they get the mean of their column."""
        absent = [str(stamps[i]) for i in np.flatnonzero(~np.isfinite(future).all(1))]
        if not absent:
            return
        said = ", ".join(absent[:NAMED]) + (f" and {len(absent) - NAMED} more" if len(absent) > NAMED else "")
        if nothing_given and len(absent) == len(future):
            raise ValueError(
                f"X: no values at {said}; the columns of fit wanted for all steps; give X to predict"
            )
        warn(f"X: values are missing at {said}; the mean of the column stands in for each", UserWarning, self)


class LTSFLinearForecaster(_NetworkForecaster):
    """Linear, NLinear or DLinear, by exact least squares or by gradient steps.

    One matrix maps the last `input_length` rows to the next `horizon`, the same for every channel or one for each
    (Zeng et al. [1]_). Exogenous columns enter with their values in the input and in the horizon. Missing values are
    left out of least squares and losses, and interpolated inside inputs; a missing exogenous value counts as the mean
    of its column. Series too short for the lengths asked get shorter ones, with a warning; steps beyond the horizon
    are forecast from forecasts.

    Parameters
    ----------
    kind : "linear", "nlinear" or "dlinear", default="nlinear"
        NLinear subtracts the last value first; DLinear has maps for the moving average and for the rest.
    input_length : int, default=336
        Rows the model looks back on.
    horizon : int, optional
        Steps forecast at once; none = as far as the `fh` of `fit` reaches, or 24 where it is not given.
    solver : "closed-form" or "sgd", default="closed-form"
        Exact ridge least squares, which `update` continues exactly; or Adam with the rate halved after two epochs.
    ridge : float, default=1e-3
        Closed form: weight of the squared norm.
    individual : bool, default=False
        A matrix for every channel.
    kernel : int, default=25
        DLinear: steps of the moving average, odd.
    scale : bool, default=True
        Standardise every column by the rows that are not held back.
    intervals : "conformal" or "none", default="conformal"
        Split-conformal intervals of any level, from the errors on rows held back. With least squares the forecast
        itself still uses all rows.
    holdout : float, default=0.2
        Share of the rows, the last ones, held back for intervals and, with "sgd", to choose the best weights.
    max_epochs, batch_size, patience : int, default=10, 32, 3
        With "sgd": passes over the windows, windows a step, and epochs without a better one on the rows held back
        after which it ends (0 = never).
    lr : float, default=5e-3
        With "sgd": learning rate.
    device : str, default="auto"
        Where gradient steps run: a torch device; "auto" = a GPU if there is one.
    random_state : int, RandomState instance or None, default=None
        With "sgd": first weights and order of the windows.

    Attributes
    ----------
    network_ : torch module that forecasts; ``network_.model.effective_weight()`` is the matrix
    input_length_, horizon_ : the lengths used

    References
    ----------
    .. [1] Zeng A, Chen M, Zhang L, Xu Q. Are transformers effective for time series forecasting? AAAI 2023,
       arXiv 2205.13504.

    Examples
    --------
    >>> from sktime.datasets import load_airline
    >>> from timeseries.forecast.estimators.forecasters import LTSFLinearForecaster
    >>> forecaster = LTSFLinearForecaster(input_length=36).fit(load_airline(), fh=range(1, 13))
    >>> y_pred = forecaster.predict()
    >>> intervals = forecaster.predict_interval(coverage=0.8)
    """

    def __init__(
        self,
        kind: str = "nlinear",
        input_length: int = 336,
        horizon: int | None = None,
        *,
        solver: str = "closed-form",
        ridge: float = 1e-3,
        individual: bool = False,
        kernel: int = 25,
        scale: bool = True,
        intervals: str = "conformal",
        holdout: float = 0.2,
        max_epochs: int = 10,
        lr: float = 5e-3,
        batch_size: int = 32,
        patience: int = 3,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.kind = kind
        self.input_length = input_length
        self.horizon = horizon
        self.solver = solver
        self.ridge = ridge
        self.individual = individual
        self.kernel = kernel
        self.scale = scale
        self.intervals = intervals
        self.holdout = holdout
        self.max_epochs = max_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.patience = patience
        self.device = device
        self.random_state = random_state
        super().__init__()

    def _model(self, length: int) -> dict[str, Any]:
        return {
            "name": self.kind,
            "solver": self.solver,
            "ridge": self.ridge,
            "individual": self.individual,
            "kernel": odd_at_most(self.kernel, length) if length < self.input_length else self.kernel,
        }

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if self.kind not in ("linear", "nlinear", "dlinear"):
            raise ValueError(f"kind {self.kind!r}; 'linear', 'nlinear' or 'dlinear' wanted")

    def _held_back(self) -> float:
        chooses = self.solver == "sgd" and self.patience
        return self.holdout if chooses or self.intervals != "none" else 0

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Settings for sktime's tests.

        Parameters
        ----------
        parameter_set : str, default="default"
            There is one set of settings only.

        Returns
        -------
        list of dict
        """
        return [
            {"input_length": 8},
            {
                "kind": "dlinear",
                "input_length": 6,
                "horizon": 3,
                "solver": "sgd",
                "kernel": 3,
                "individual": True,
                "max_epochs": 1,
                "batch_size": 64,
                "device": "cpu",
                "random_state": 0,
            },
        ]


class AutoformerForecaster(_NetworkForecaster):
    """Autoformer: a transformer of series decomposition and Auto-Correlation (Wu et al. [1]_).

    Calendar features of dated rows enter as published; rows that are only numbered have none. Missing values, exogenous
    columns, short series and steps beyond the horizon are treated as by `LTSFLinearForecaster`. The rows held back
    choose the best weights and measure the errors for intervals. `update` trains one more epoch.

    Parameters
    ----------
    input_length : int, default=96
        Rows the model looks back on.
    horizon : int, optional
        Steps forecast at once; none = as far as the `fh` of `fit` reaches, or 24 where it is not given.
    width, heads, feedforward : int, default=512, 8, 2048
        d_model, attention heads, d_ff.
    encoder_layers, decoder_layers : int, default=2, 1
    label_length : int, default=48
        Known rows the decoder starts with.
    kernel : int, default=25
        Steps of the moving average, odd.
    factor : float, default=3.0
        floor(factor · ln length) delays are aggregated.
    dropout : float, default=0.05
    scale : bool, default=True
        Standardise every column by the rows that are not held back.
    intervals : "conformal" or "none", default="conformal"
        Split-conformal intervals of any level, from the errors on the rows held back.
    holdout : float, default=0.2
        Share of the rows, the last ones, held back.
    max_epochs, batch_size, patience : int, default=10, 32, 3
        Passes over the windows, windows a step, and epochs without a better one on the rows held back after which it
        ends (0 = never).
    lr : float, default=1e-4
        Learning rate, halved after every epoch from the third.
    device : str, default="auto"
        Where it is trained: a torch device; "auto" = a GPU if there is one.
    random_state : int, RandomState instance or None, default=None
        First weights, dropout and order of the windows.

    Attributes
    ----------
    network_ : torch module that forecasts
    input_length_, horizon_ : the lengths used

    References
    ----------
    .. [1] Wu H, Xu J, Wang J, Long M. Autoformer: decomposition transformers with auto-correlation for long-term series
       forecasting. NeurIPS 2021, arXiv 2106.13008.

    Examples
    --------
    >>> from sktime.datasets import load_airline
    >>> from timeseries.forecast.estimators.forecasters import AutoformerForecaster
    >>> small = {"width": 8, "heads": 2, "feedforward": 16, "label_length": 6, "kernel": 5, "max_epochs": 1}
    >>> forecaster = AutoformerForecaster(24, **small, random_state=0).fit(load_airline(), fh=[1, 2, 3])
    >>> y_pred = forecaster.predict()
    """

    def __init__(
        self,
        input_length: int = 96,
        horizon: int | None = None,
        *,
        width: int = 512,
        heads: int = 8,
        feedforward: int = 2048,
        encoder_layers: int = 2,
        decoder_layers: int = 1,
        label_length: int = 48,
        kernel: int = 25,
        factor: float = 3.0,
        dropout: float = 0.05,
        scale: bool = True,
        intervals: str = "conformal",
        holdout: float = 0.2,
        max_epochs: int = 10,
        lr: float = 1e-4,
        batch_size: int = 32,
        patience: int = 3,
        device: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.input_length = input_length
        self.horizon = horizon
        self.width = width
        self.heads = heads
        self.feedforward = feedforward
        self.encoder_layers = encoder_layers
        self.decoder_layers = decoder_layers
        self.label_length = label_length
        self.kernel = kernel
        self.factor = factor
        self.dropout = dropout
        self.scale = scale
        self.intervals = intervals
        self.holdout = holdout
        self.max_epochs = max_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.patience = patience
        self.device = device
        self.random_state = random_state
        super().__init__()

    def _model(self, length: int) -> dict[str, Any]:
        shortened = length < self.input_length
        return {
            "name": "autoformer",
            "width": self.width,
            "heads": self.heads,
            "feedforward": self.feedforward,
            "encoder_layers": self.encoder_layers,
            "decoder_layers": self.decoder_layers,
            "label_length": min(self.label_length, length) if shortened else self.label_length,
            "kernel": odd_at_most(self.kernel, length) if shortened else self.kernel,
            "factor": self.factor,
            "dropout": self.dropout,
        }

    def _held_back(self) -> float:
        return self.holdout if self.patience or self.intervals != "none" else 0

    @classmethod
    def get_test_params(cls, parameter_set: str = "default") -> list[dict[str, Any]]:
        """Settings for sktime's tests.

        Parameters
        ----------
        parameter_set : str, default="default"
            There is one set of settings only.

        Returns
        -------
        list of dict
        """
        small = {
            "width": 4,
            "heads": 1,
            "feedforward": 4,
            "label_length": 2,
            "kernel": 3,
            "batch_size": 64,
            "max_epochs": 1,
            "device": "cpu",
            "random_state": 0,
        }
        return [
            {"input_length": 6, "encoder_layers": 1, **small},
            {
                "input_length": 8,
                "horizon": 3,
                "factor": 1.0,
                "dropout": 0.0,
                "scale": False,
                **small,
                "max_epochs": 2,
            },
        ]
