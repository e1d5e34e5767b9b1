"""Filters that are functions of the place: as long as the map, with parameters that do not grow with it.

h(t) = MLP(pe(t)) · Π_axis exp(−|D_c t_axis|) (Poli et al. 2023, arXiv 2302.10866, section 3.3; N-D: Zimerman and Wolf
2024, arXiv 2309.13600, section 4), the MLP with sines for activation, pe = (t, cos 2πft, −sin 2πft) by axis, the decay
D_c rising over the channels from ln 100 / 1.5 to ln 100 / 0.3 (at t = 1 a filter is down to 5 % in the first channel,
gone in the last).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FilterMlp(nn.Module):
    """pe (…, inputs) → (…, out). No `nn.Linear`: a network's common start (small normal weights, no biases) would make
    every filter zero."""

    def __init__(self, inputs: int, width: int, layers: int, out: int, omega: float) -> None:
        super().__init__()
        sides = [inputs, *[width] * layers, out]
        self.weights = nn.ParameterList(torch.empty(b, a) for a, b in pairwise(sides))
        self.biases = nn.ParameterList(torch.empty(width) for _ in range(layers))
        self.frequency = nn.Parameter(torch.full((width,), float(omega)))
        # Sitzmann et al. 2020 (arXiv 2006.09661, section 3.2): angles, and what comes out, of variance 1 at every
        # depth. With linear layers' common start filters would begin at a tenth of that, products at its n-th power.
        for at, weight in enumerate(self.weights):
            bound = (6 / weight.shape[1]) ** 0.5 / (omega if 0 < at < layers else 1)
            nn.init.uniform_(weight, -bound, bound)
        for bias in self.biases:
            nn.init.uniform_(bias, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        frequency = self.frequency.to(x.dtype)[:, None]
        for weight, bias in zip(
            self.weights, self.biases
        ):  # sin(frequency · (W x + b)), multiplied where it is small
            angle = F.linear(x, frequency * weight.to(x.dtype), frequency[:, 0] * bias.to(x.dtype))
            x = angle.sin() if torch.is_grad_enabled() else angle.sin_()
        return F.linear(x, self.weights[-1].to(x.dtype))


class ImplicitFilter(nn.Module):
    """`count` filters of C channels as functions of the place, sampled on any grid.

    `form` "joint": one function of all axes; "product": one of each axis, multiplied. `normalise`: the decaying window
    is divided by the root of its squares' sum ("energy": noise comes out as high as it went in, whatever the size; so
    networks train from the start), by its sum ("mass": smooth maps do, at every resolution), or is left at 1 in place
    0 ("none", as published: heights grow with the map).
    """

    def __init__(
        self, dim: int, ndim: int, count: int, *, form: str, width: int, layers: int, omega: float, bands: int,
        normalise: str, legacy: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        if form not in ("joint", "product"):
            raise ValueError(f"filter {form!r}; joint or product wanted")
        if normalise not in ("mass", "energy", "none"):
            raise ValueError(f"normalise {normalise!r}; mass, energy or none wanted")
        self.dim, self.count, self.bands, self.normalise, self.legacy = dim, count, bands, normalise, legacy
        axes = [ndim] if form == "joint" else [1] * ndim
        inputs = 1 + 2 * bands
        self.parts = nn.ModuleList(FilterMlp(n * inputs, width, layers, count * dim, omega) for n in axes)

    def forward(
        self, taps: Sequence[int], unit: Sequence[int], both: bool, dtype: torch.dtype
    ) -> list[Tensor]:
        """Taps from place 0 to `taps` − 1 (from −(taps − 1) where `both`), t = 1 at place `unit` − 1, by axis.
        Joint: one (count, C, *K); product: one (count, C, K) an axis."""
        device = next(self.parameters()).device
        places = [torch.arange(1 - k if both else 0, k, device=device, dtype=dtype) for k in taps]
        codes = [self._code(p, u) for p, u in zip(places, unit)]
        decays = [self._decay(p, u, len(taps)) for p, u in zip(places, unit)]
        if len(self.parts) == len(taps):
            found = [part(code) * decay for part, code, decay in zip(self.parts, codes, decays)]
        else:
            sides = [len(p) for p in places]
            grid = [
                code.view(_along(a, len(sides), len(code))).expand(*sides, -1) for a, code in enumerate(codes)
            ]
            window = [decay.view(_along(a, len(sides), len(decay))) for a, decay in enumerate(decays)]
            found = [self.parts[0](torch.cat(grid, -1)) * reduce(torch.mul, window)]
        return [h.movedim(-1, 0).unflatten(0, (self.count, self.dim)) for h in found]

    def _code(self, place: Tensor, unit: int) -> Tensor:
        """(K, 1 + 2 bands). The public code's frequencies start at 10⁻⁴, its angles at 1 / unit."""
        t = place / max(unit - 1, 1)
        f = torch.arange(1, self.bands + 1, device=t.device, dtype=t.dtype)
        angle = 2 * math.pi * t[:, None] * f
        if self.legacy:
            f = torch.linspace(1e-4, self.bands - 1, self.bands, device=t.device, dtype=t.dtype)
            angle = 2 * math.pi * place[:, None] / unit * f
        return torch.cat([t[:, None], angle.cos(), -angle.sin()], -1)

    def _decay(self, place: Tensor, unit: int, ndim: int) -> Tensor:
        """(K, count · C), one of the window's `ndim` factors. The public code divides the whole filter by 2 unit: once
        by the transform's size too often, though not once an axis."""
        t = place.abs() / max(unit - 1, 1)
        slow, fast = math.log(100) / 1.5, math.log(100) / 0.3
        rate = torch.linspace(slow, fast, self.count * self.dim, device=t.device, dtype=t.dtype)
        window = torch.exp(-t[:, None] * rate)
        if self.legacy:
            return window / (2 * unit) ** (1 / ndim)
        if self.normalise == "mass":
            return window / window.sum(0)
        return window / window.square().sum(0).sqrt() if self.normalise == "energy" else window


def _along(axis: int, n: int, length: int) -> list[int]:
    return [*(length if a == axis else 1 for a in range(n)), -1]
