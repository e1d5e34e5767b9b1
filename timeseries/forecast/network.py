"""What a bundle holds: one of the models, and half-widths of its intervals.

Every model is a module ``forward(Inputs) -> (B, Q, H, C)`` in scaled units: Q = 1 the forecast, or the quantiles of
`quantile_levels` where it was trained for them, the median in the middle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.series import feature_names
from timeseries.forecast.windows import Inputs


def quantile_levels(config: ForecastConfig) -> tuple[float, ...]:
    """Quantiles the model itself gives, ascending, 0.5 among them; (0.5,) where it forecasts one value."""
    if config.intervals.method != "pinball":
        return (0.5,)
    tails = sorted((1 - level) / 2 for level in config.intervals.levels)
    return (*tails, 0.5, *(1 - tail for tail in reversed(tails)))


class ForecastNetwork(nn.Module):
    """The model and, for ``conformal``, offsets (K levels, 2, H, C): lower (negative) and upper, scaled units."""

    def __init__(self, config: ForecastConfig) -> None:
        super().__init__()
        self.config = config
        self.model = build_model(config)
        if config.intervals.method == "conformal":
            shape = (len(config.intervals.levels), 2, config.data.horizon, len(config.data.targets))
            self.register_buffer("offsets", torch.zeros(shape))

    def forward(self, inputs: Inputs | Tensor) -> Tensor:
        """(B, Q, H, C). A tensor (B, L, C), NaN where a value is missing, stands for inputs of nothing else."""
        out: Tensor = self.model(self.bare(inputs) if isinstance(inputs, Tensor) else inputs)
        return out

    def bare(self, x: Tensor) -> Inputs:
        """Inputs without other columns and without a calendar, of scaled windows (B, L, C)."""
        mask = x == x  # false for NaN; exporters know it everywhere
        nothing = x.new_empty(x.shape[0], self.config.data.input_length + self.config.data.horizon, 0)
        return Inputs(x.where(mask, 0), mask, nothing[:, : x.shape[1]], nothing, nothing)

    def point(self, inputs: Inputs) -> Tensor:
        """The forecast (B, H, C): the median of the quantiles."""
        out = self(inputs)
        return out[:, 0] if out.shape[1] == 1 else out.median(1).values

    def interval(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The forecast (B, H, C) and its bounds (B, K, 2, H, C), one pair a level of ``intervals.levels``."""
        out = self(inputs)
        middle = out[:, out.shape[1] // 2]
        levels = self.config.intervals.levels
        if self.config.intervals.method == "conformal":
            return middle, middle[:, None, None] + self.offsets
        if self.config.intervals.method == "none":
            return middle, middle.new_empty(len(middle), 0, 2, *middle.shape[1:])
        ordered = out.sort(1).values  # quantiles that cross are put in order
        given = quantile_levels(self.config)
        pairs = []
        for level in levels:
            low = min(range(len(given)), key=lambda i: abs(given[i] - (1 - level) / 2))
            pairs.append(torch.stack([ordered[:, low], ordered[:, len(given) - 1 - low]], 1))
        return ordered[:, len(given) // 2], torch.stack(pairs, 1)


def takes_bare_windows(config: ForecastConfig) -> bool:
    """Whether the targets alone are all that the model reads, so that it can be exported with one input."""
    alone = not (config.data.past_columns or config.data.future_columns)
    return alone and config.model.name in ("linear", "nlinear", "dlinear", "naive")


def build_model(config: ForecastConfig) -> nn.Module:
    """The model named in the configuration, for as many columns as it names."""
    data, model = config.data, config.model
    shape = {
        "length": data.input_length,
        "horizon": data.horizon,
        "channels": len(data.targets),
        "past": len(data.past_columns),
        "future": len(data.future_columns),
        "quantiles": len(quantile_levels(config)),
    }
    marks = len(feature_names(data.freq))
    if model.name == "naive":
        from timeseries.forecast.models.naive import Naive

        return Naive(data.horizon, model.season)
    if model.name in ("linear", "nlinear", "dlinear"):
        from timeseries.forecast.models.linear import LinearFamily

        return LinearFamily(model.name, **shape, individual=model.individual, kernel=model.kernel)
    if model.name == "autoformer":
        from timeseries.forecast.models.autoformer import Autoformer

        return Autoformer(
            **shape,
            marks=marks,
            label_length=model.label_length,
            width=model.width,
            heads=model.heads,
            feedforward=model.feedforward,
            encoder_layers=model.encoder_layers,
            decoder_layers=model.decoder_layers,
            kernel=model.kernel,
            factor=model.factor,
            dropout=model.dropout,
        )
    from timeseries.forecast.models.backbone import BackboneForecaster

    assert model.backbone is not None  # the configuration sees to it
    return BackboneForecaster(model.backbone, **shape, marks=marks)
