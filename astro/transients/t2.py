"""The network over gridded light curves: t2 (Allam and McEwen 2024, arXiv 2105.06178) or any 1-D backbone instead.

It takes physical units; what scales them is fitted on the training part and kept with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.mixers.attention import Attention

Channel = Literal["mean", "sd", "bands", "duration", "peak"]
CHANNELS: tuple[Channel, ...] = ("mean", "sd", "bands", "duration", "peak")
Flux = Literal["robust", "arcsinh", "object"]
Redshift = Literal["none", "tokens", "channels"]


class Inputs(NamedTuple):
    """B objects, T grid times, M bands."""

    mean: Tensor
    """(B, T, M) flux, the Gaussian process's mean"""
    sd: Tensor
    """(B, T, M) its standard deviation"""
    bands: Tensor
    """(B, M) true where the object was observed in the band"""
    duration: Tensor
    """(B,) days between the grid's ends"""
    redshift: Tensor
    """(B, 2) redshift and its error; NaN = absent"""

    def to(self, device: torch.device | str) -> Inputs:
        return Inputs(*(each.to(device) for each in self))

    def take(self, rows: Any) -> Inputs:
        return Inputs(*(each[rows] for each in self))

    @classmethod
    def example(cls, length: int, bands: int) -> Inputs:
        """Two objects, one of unknown redshift."""
        flux, sd = torch.linspace(0, 9, length * bands).view(1, length, bands), torch.ones(1, length, bands)
        redshift = torch.tensor([[0.1, 0.01], [torch.nan, torch.nan]])
        whole = torch.ones(2, bands, dtype=torch.bool), torch.tensor([40.0, 90.0])
        return cls(flux.expand(2, -1, -1), sd.expand(2, -1, -1), *whole, redshift)


class TransientNetwork(nn.Module):
    """`Inputs` → logits (B, K): channels → backbone → mean over time → dropout → linear map.

    `channels`, in this order: the mean flux and its deviation (M each), which bands were observed (M, constant in
    time), log₁₀(1 + duration) and log₁₀ of the highest mean flux (1 each). The paper has the mean alone, which loses
    how long an event took, how bright it was, and what the process made up.

    `flux` scales the first two: ``robust`` as published, (f − median) / IQR a band over the training part; ``arcsinh``,
    the inverse hyperbolic sine of f / IQR, for fluxes over many decades; ``object``, by each object's highest |mean|.

    `redshift` ``tokens``: three steps more, all channels of which are the scaled redshift, its error, and whether there
    is one (±1); absent ones are 0. ``channels``: the same three beside every step's channels, for backbones that see
    neighbours. `legacy`: as published, without that flag: tile-then-reshape makes both rows [z, σ, z, σ, …] (option
    "L"), two channels z and σ (option "M").

    Raises `UsageError` where the backbone cannot be built for it.
    """

    flux_centre: Tensor
    flux_scale: Tensor
    z_centre: Tensor
    z_scale: Tensor

    def __init__(
        self,
        classes: int,
        bands: int,
        *,
        backbone: str | Mapping[str, Any] = "t2",
        length: int = 100,
        channels: Sequence[Channel] = ("mean",),
        flux: Flux = "robust",
        redshift: Redshift = "none",
        legacy: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        unknown = [name for name in channels if name not in CHANNELS]
        if unknown or "mean" not in channels:
            raise UsageError(
                f"model.channels: found {', '.join(channels) or 'none'}; mean and any of {', '.join(CHANNELS[1:])} "
                "wanted; correct it"
            )
        self.channels, self.flux, self.redshift, self.legacy = tuple(channels), flux, redshift, legacy
        self.bands, self.length = bands, length
        extra = 0 if redshift == "none" else 2 if legacy else 3
        width = bands * sum(name in channels for name in CHANNELS[:3])
        width += sum(name in channels for name in CHANNELS[3:])
        self.in_chans = width + (extra if redshift == "channels" else 0)
        self.tokens = length + (extra if redshift == "tokens" else 0)
        self.backbone = create_backbone(backbone, ndim=1, in_chans=self.in_chans, img_size=(self.tokens,))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(_width(self.backbone, self.in_chans, self.tokens), classes)
        _glorot(self.head)
        if getattr(getattr(self.backbone, "config", None), "order", "") == "addnorm":
            _glorot(self.backbone)
        for name, start, size in (("flux_centre", 0, bands), ("flux_scale", 1, bands)):
            self.register_buffer(name, torch.full((size,), float(start)))
        for name, start in (("z_centre", 0), ("z_scale", 1)):
            self.register_buffer(name, torch.full((2,), float(start)))

    @torch.no_grad()
    def fit_scaling(self, inputs: Inputs) -> None:
        """Medians and interquartile ranges of `inputs`, the training part: of a band over all rows, of redshifts and
        errors over those there are. A range of 0 counts as 1."""
        self.flux_centre, self.flux_scale = _robust(inputs.mean.flatten(0, 1))
        known = inputs.redshift[torch.isfinite(inputs.redshift[:, 0])]
        if len(known):
            self.z_centre, self.z_scale = _robust(known.nan_to_num())

    # ------------------------------------------------------------ from light curves to tokens

    def scaled(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Mean and deviation (B, T, M) as the network sees them."""
        mean, sd = inputs.mean, inputs.sd
        if self.flux == "object":
            top = mean.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(mean.dtype).tiny)
            return mean / top, sd / top
        if self.flux == "arcsinh":
            mean, sd = mean / self.flux_scale, sd / self.flux_scale
            return mean.asinh(), sd / (1 + mean.square()).sqrt()
        return (mean - self.flux_centre) / self.flux_scale, sd / self.flux_scale

    def assemble(self, inputs: Inputs) -> Tensor:
        """(B, tokens, channels), what the backbone reads."""
        mean, sd = self.scaled(inputs)
        steps = mean.shape[1]
        whole = {
            "bands": inputs.bands.to(mean.dtype),
            "duration": (1 + inputs.duration.clamp(min=0)).log10()[:, None],
            "peak": inputs.mean.amax((1, 2)).clamp(min=1e-3).log10()[:, None],
        }
        parts = {"mean": mean, "sd": sd}
        parts |= {name: value[:, None].expand(-1, steps, -1) for name, value in whole.items()}
        x = torch.cat([parts[name].to(mean.dtype) for name in CHANNELS if name in self.channels], -1)
        if self.redshift == "none":
            return x
        z = self.redshift_values(inputs.redshift).to(x.dtype)
        if self.redshift == "channels":
            return torch.cat([x, z[:, None].expand(-1, steps, -1)], -1)
        rows = z[:, :, None].expand(-1, -1, x.shape[-1])
        if self.legacy:  # tf.tile(z, [1, C]), then a reshape to (2, C)
            rows = z.repeat(1, x.shape[-1]).unflatten(1, (2, x.shape[-1]))
        return torch.cat([x, rows], 1)

    def redshift_values(self, redshift: Tensor) -> Tensor:
        """(B, 2) → (B, 3): scaled redshift and error, 0 where absent, and ±1; (B, 2) with `legacy`."""
        known = torch.isfinite(redshift[:, :1])
        z = ((redshift - self.z_centre) / self.z_scale).nan_to_num(0.0, 0.0, 0.0) * known
        return z if self.legacy else torch.cat([z, known.to(z.dtype) * 2 - 1], 1)

    # ------------------------------------------------------------ what comes out

    def features(self, inputs: Inputs) -> Tensor:
        """The last map (B, C, L)."""
        out: Tensor = self.backbone(self.assemble(inputs).transpose(1, 2))
        return out

    def pooled(self, inputs: Inputs) -> Tensor:
        """Its mean over time (B, C): where distances to the classes are measured."""
        return self.features(inputs).mean(-1)

    def forward(self, inputs: Inputs) -> Tensor:
        return self.logits(self.pooled(inputs))

    def logits(self, pooled: Tensor) -> Tensor:
        """(B, K) of pooled features (B, C)."""
        out: Tensor = self.head(self.dropout(pooled))
        return out


def redshift_dropout(inputs: Inputs, share: float, generator: torch.Generator | None = None) -> Inputs:
    """`inputs` in training, the redshift of a random `share` of the objects hidden, so that one network serves both."""
    draw = torch.rand(len(inputs.redshift), generator=generator).to(inputs.redshift.device)
    return inputs._replace(redshift=inputs.redshift.masked_fill((draw < share)[:, None], torch.nan))


def _robust(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Median and interquartile range of each column of (N, C); torch's own quantile refuses more than 2²⁴ numbers."""
    ordered, last = rows.double().sort(0).values, len(rows) - 1

    def at(share: float) -> Tensor:
        low = int(share * last)
        return ordered[low].lerp(ordered[min(low + 1, last)], share * last - low)

    spread = at(0.75) - at(0.25)
    return at(0.5).to(rows.dtype), spread.where(spread > 0, 1.0).to(rows.dtype)


def _glorot(model: nn.Module) -> None:
    """Keras's start, which the published networks had: every map uniform in ±√(6 / (in + out)), biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Attention):  # three maps in one
            for part in module.qkv.weight.data.chunk(3):
                nn.init.xavier_uniform_(part)


@torch.no_grad()
def _width(backbone: nn.Module, channels: int, length: int) -> int:
    training = backbone.training
    out = backbone.eval()(torch.zeros(1, channels, length))
    backbone.train(training)
    if not isinstance(out, Tensor) or out.ndim != 3:
        found = f"{list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise UsageError(
            f"model.backbone: its last map is {found}; (batch, channels, steps) wanted; choose a network of "
            "`pipelines zoo --for transients`"
        )
    return out.shape[1]
