"""The toy's data, apart from it: loader processes import no more than this."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.training.loader import Draw


class Points:
    """Item i is a point near the corner of its class; noise comes from the draw."""

    def __init__(self, items: int, noise: float) -> None:
        self.items, self.noise = items, noise

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        label = draw.index % 2
        x = torch.full((4,), float(2 * label - 1)) + torch.arange(4) * 0.1 * draw.index / self.items
        if self.noise:
            x = x + self.noise * torch.randn(4)  # the global generator, seeded by the loader
        return x, torch.tensor(float(label))

    def name(self, index: int) -> str:
        return f"point-{index:03d}"
