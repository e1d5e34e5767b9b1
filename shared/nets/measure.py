"""What a network costs: parameters, and multiply-accumulates of one forward pass (matrix products, convolutions and
attention; element-wise work, FFTs and scans are not counted, as in the papers' tables)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_params(model: nn.Module) -> int:
    """Learned values; buffers are none."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, in_chans: int, size: Sequence[int]) -> int:
    """Of one input (1, in_chans, *size) in evaluation mode. On the meta device nothing is computed."""
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    was = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, in_chans, *size, device=device))
    finally:
        model.train(was)
    return counter.get_total_flops() // 2
