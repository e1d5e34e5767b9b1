"""Any one-dimensional network of `shared.nets` as forecaster, beside a linear map of the window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets import create_backbone
from timeseries.forecast.windows import Inputs


class BackboneForecaster(nn.Module):
    """`Inputs` → (B, Q, H, C) by a network of `shared.nets` in one dimension.

    Every window is centred and scaled by the mean and deviation of its own valid values, channel by channel, and the
    forecast is given them back (Kim et al. 2022, "Reversible Instance Normalization", without its affine map): a series
    whose level or spread has moved since training is forecast where it is now.

    The network reads, row by row, the C values (0 where missing), C flags of what was there, past and future columns
    and calendar marks. Its last map (B, W, L') is taken to H steps by one linear map along time, columns and marks that
    are known for a step are added to it, and a linear map gives its C · Q values. To all quantiles is added one linear
    map of the window along time, the same for all channels (Zeng et al. 2022, arXiv 2205.13504, "Linear"), so that the
    network has only to learn what that cannot.

    Raises `UsageError` in one line where the network cannot be built for such series.
    """

    def __init__(
        self,
        backbone: str | Mapping[str, Any],
        length: int,
        horizon: int,
        channels: int,
        *,
        past: int = 0,
        future: int = 0,
        quantiles: int = 1,
        marks: int = 0,
    ) -> None:
        super().__init__()
        self.length, self.channels, self.quantiles = length, channels, quantiles
        columns = 2 * channels + past + future + marks
        self.backbone = create_backbone(backbone, ndim=1, in_chans=columns, img_size=(length,))
        width, steps = _map_size(self.backbone, columns, length)
        self.direct, self.time = nn.Linear(length, horizon), nn.Linear(steps, horizon)
        self.known = nn.Linear(future + marks, width) if future + marks else None
        self.out = nn.Linear(width, quantiles * channels)

    def forward(self, inputs: Inputs) -> Tensor:
        """(B, Q, H, C), scaled units."""
        x, mean, spread = normalise(inputs.x, inputs.mask)
        ahead = torch.cat([inputs.future, inputs.marks], -1)
        rows = torch.cat([x, inputs.mask.to(x.dtype), inputs.past, ahead[:, : self.length]], -1)
        steps = self.time(self.backbone(rows.transpose(1, 2))).transpose(1, 2)
        if self.known is not None:
            steps = steps + self.known(ahead[:, self.length :])
        y = self.out(steps).unflatten(-1, (self.quantiles, self.channels)).transpose(1, 2)
        y = y + self.direct(x.transpose(1, 2)).transpose(1, 2)[:, None]
        return y * spread[:, None] + mean[:, None]  # type: ignore[no-any-return]


def normalise(x: Tensor, mask: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, L, C), 0 where missing → centred and scaled by its valid values, and their mean and deviation (B, 1, C).
    A window without any has mean 0; one that never moves is divided by √eps."""
    valid = mask.to(x.dtype)
    there = valid.sum(1, keepdim=True).clamp(min=1)
    mean = (x * valid).sum(1, keepdim=True) / there
    centred = (x - mean) * valid
    spread = (centred.square().sum(1, keepdim=True) / there + eps).sqrt()
    return centred / spread, mean, spread


def _map_size(backbone: nn.Module, columns: int, length: int) -> tuple[int, int]:
    """Width and steps of the network's last map."""
    training = backbone.training
    with torch.no_grad():
        out = backbone.eval()(torch.zeros(1, columns, length))
    backbone.train(training)
    if not isinstance(out, Tensor) or out.ndim != 3:
        found = f"{list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise UsageError(
            f"model.backbone: its last map is {found}; (batch, channels, steps) wanted; choose a network of "
            "`pipelines zoo --for forecast`"
        )
    return out.shape[1], out.shape[2]
