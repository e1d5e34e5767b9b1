"""Autoformer (Wu et al. 2021, arXiv 2106.13008): decomposition at every step, Auto-Correlation in place of attention.

Figure 1, top to bottom, width D, L input rows, of which the decoder repeats the last `label_length`, H rows ahead:

    seasonal, trend = decompose(x)
    encoder   x W ─→ N × [ + Auto-Correlation, seasonal;  + feed-forward, seasonal ]                   eq. 3
    decoder   [last seasonal rows, zeros] W ─→ M × [ + Auto-Correlation, seasonal;
              + Auto-Correlation with the encoder's output, seasonal;  + feed-forward, seasonal ]      eq. 4
              what the three decompositions took away, to C channels, is added to
    trend     [last trend rows, the mean of x]                                                         eq. 2
    forecast  the last H rows of trend + seasonal to C channels
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets.blocks.decomposition import SeriesDecomposition, moving_average
from shared.nets.feedforward.mlp import Mlp
from shared.nets.mixers.autocorrelation import AutoCorrelation, TopDelays
from shared.nets.norms.seasonal import SeasonalNorm
from timeseries.forecast.windows import Inputs


class CircularConv(nn.Module):
    """Three taps around a circle, no bias: y[t] = Σ_k W_k x[t + k − 1], (B, T, in) → (B, T, out); weight (out, in, 3).

    As one matrix product on whichever side is narrower: shifted inputs joined, or shifted outputs summed.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, channels, 3))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # torch's own for convolutions

    def forward(self, x: Tensor) -> Tensor:
        out, channels, _ = self.weight.shape
        if channels <= out:
            near = torch.cat([x.roll(1, 1), x, x.roll(-1, 1)], -1)
            return F.linear(near, self.weight.transpose(1, 2).flatten(1))
        a, b, c = F.linear(x, self.weight.permute(2, 0, 1).flatten(0, 1)).split(out, -1)
        return a.roll(1, 1) + b + c.roll(-1, 1)


class Embedding(nn.Module):
    """Columns and calendar marks of each row, joined with its neighbours': (B, T, in), (B, T, M) → (B, T, D); no
    position, which Auto-Correlation does not need."""

    def __init__(self, columns: int, marks: int, width: int, dropout: float) -> None:
        super().__init__()
        self.columns = CircularConv(columns, width)
        nn.init.kaiming_normal_(self.columns.weight, nonlinearity="leaky_relu")
        self.marks = nn.Linear(marks, width, bias=False) if marks else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, marks: Tensor) -> Tensor:
        y = self.columns(x)
        return self.dropout(y if self.marks is None else y + self.marks(marks))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """(B, L, D) → the same."""

    def __init__(self, mixer: AutoCorrelation, ffn: Mlp, kernel: int, dropout: float) -> None:
        super().__init__()
        self.mixer, self.ffn = mixer, ffn
        self.decompose, self.dropout = SeriesDecomposition(kernel), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.decompose(x + self.dropout(self.mixer(x)))
        x, _ = self.decompose(x + self.ffn(x))
        return x


class DecoderLayer(nn.Module):
    """x (B, T, D), the encoder's output (B, L, D) → seasonal (B, T, D), and what it adds to the trend (B, T, out)."""

    def __init__(
        self, mixers: tuple[AutoCorrelation, AutoCorrelation], ffn: Mlp, kernel: int, dropout: float, out: int
    ) -> None:
        super().__init__()
        self.mixer, self.cross, self.ffn = *mixers, ffn
        self.decompose, self.dropout = SeriesDecomposition(kernel), nn.Dropout(dropout)
        self.trend = CircularConv(mixers[0].dim, out)

    def forward(self, x: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        x, first = self.decompose(x + self.dropout(self.mixer(x)))
        x, second = self.decompose(x + self.dropout(self.cross.between(x, encoded)))
        x, third = self.decompose(x + self.ffn(x))
        return x, self.trend(first + second + third)


class Autoformer(nn.Module):
    """`Inputs` → (B, Q, H, C).

    What the paper does not have: exogenous columns stand beside the series in the embeddings (past ones in the
    encoder's, future ones in both); Q quantiles come from the maps to seasonal and trend, which are then Q times as
    wide; a missing value is read as the mean of the valid ones around it, or of the window where there are none.
    Without them it is the published network, with its number of parameters. `heads` must divide `width`, as published,
    and has no other effect: the published layer averages its correlations over heads.

    Raises ValueError for parts that do not fit together.
    """

    def __init__(
        self,
        length: int,
        horizon: int,
        channels: int,
        *,
        past: int = 0,
        future: int = 0,
        quantiles: int = 1,
        marks: int = 4,
        label_length: int = 48,
        width: int = 512,
        heads: int = 8,
        feedforward: int = 2048,
        encoder_layers: int = 2,
        decoder_layers: int = 1,
        kernel: int = 25,
        factor: float = 3.0,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        if not 1 <= label_length <= length:
            raise ValueError(f"label_length {label_length}; 1 to the input length, {length}, wanted")
        if width % heads:
            raise ValueError(f"{heads} heads do not divide width {width}")
        self.length, self.horizon, self.channels = length, horizon, channels
        self.quantiles, self.label_length, self.kernel = quantiles, label_length, kernel
        out = quantiles * channels

        def mixer() -> AutoCorrelation:
            return AutoCorrelation(width, factor=factor, key_bias=True)

        def ffn() -> Mlp:
            return Mlp(width, 1, ratio=feedforward / width, dropout=dropout, bias=False)

        self.decompose = SeriesDecomposition(kernel)
        self.encoder_embedding = Embedding(channels + past + future, marks, width, dropout)
        self.decoder_embedding = Embedding(channels + future, marks, width, dropout)
        self.encoder = nn.ModuleList(
            EncoderLayer(mixer(), ffn(), kernel, dropout) for _ in range(encoder_layers)
        )
        self.encoder_norm = SeasonalNorm(width)
        self.decoder = nn.ModuleList(
            DecoderLayer((mixer(), mixer()), ffn(), kernel, dropout, out) for _ in range(decoder_layers)
        )
        self.decoder_norm = SeasonalNorm(width)
        self.seasonal = nn.Linear(width, out)

    def forward(self, inputs: Inputs) -> Tensor:
        """(B, Q, H, C), scaled units."""
        seasonal, trend = self.parts(inputs)
        return seasonal + trend

    def parts(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The forecast's seasonal and trend part, each (B, Q, H, C)."""
        known = self.length - self.label_length
        x, mean = complete(inputs.x, inputs.mask, self.kernel)
        seasonal, trend = self.decompose(x)
        seasonal = F.pad(seasonal[:, known:], (0, 0, 0, self.horizon))
        trend = torch.cat([trend[:, known:], mean.expand(-1, self.horizon, -1)], 1).repeat(
            1, 1, self.quantiles
        )
        columns = torch.cat([x, inputs.past, inputs.future[:, : self.length]], -1)
        encoded = self.encoder_embedding(columns, inputs.marks[:, : self.length])
        for layer in self.encoder:
            encoded = layer(encoded)
        encoded = self.encoder_norm(encoded)
        columns = torch.cat([seasonal, inputs.future[:, known:]], -1)
        y = self.decoder_embedding(columns, inputs.marks[:, known:])
        for layer in self.decoder:
            y, added = layer(y, encoded)
            trend = trend + added
        seasonal = self.seasonal(self.decoder_norm(y))
        return self._ahead(seasonal), self._ahead(trend)

    def _ahead(self, rows: Tensor) -> Tensor:
        """(B, T, Q · C) → (B, Q, H, C)"""
        return rows[:, -self.horizon :].unflatten(-1, (self.quantiles, self.channels)).transpose(1, 2)


def complete(x: Tensor, mask: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """x (B, L, C) with an estimate where `mask` is False, the mean of the valid values around it, and the mean over all
    rows (B, 1, C). Where nothing is missing x is as it was."""
    valid = mask.to(x.dtype)
    x = x * valid
    mean = x.sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
    there = moving_average(valid, kernel)
    near = torch.where(there > 0.5 / kernel, moving_average(x, kernel) / there.clamp(min=0.5 / kernel), mean)
    return torch.where(mask, x, near), mean


def top_delays(model: nn.Module, inputs: Inputs) -> dict[str, tuple[Tensor, Tensor]]:
    """Delays, steps, and their weights, (B, n) each, strongest first, of every Auto-Correlation by its name.

    The model is put to prediction for it and left as it was.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = []
    for name, part in model.named_modules():
        if isinstance(part, TopDelays):
            label = name.removesuffix(".choose")

            def keep(_: nn.Module, __: Any, out: tuple[Tensor, Tensor], label: str = label) -> None:
                found[label] = out

            hooks.append(part.register_forward_hook(keep))
    training = model.training
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found
