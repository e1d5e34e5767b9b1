"""What a network costs: parameters, and multiply-accumulates of one forward pass (matrix products, convolutions and
attention; element-wise work, FFTs and scans are not counted, as in the papers' tables)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_params(model: nn.Module) -> int:
    """Learned values; buffers are none."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, in_chans: int, size: Sequence[int]) -> int:
    """Of one input (1, in_chans, *size) in evaluation mode. On the meta device nothing is computed."""
    return _count(model, (1, in_chans, *size))


def count_mixer_macs(mixer: nn.Module, dim: int, size: Sequence[int]) -> int:
    """Of one channels-last map (1, *size, dim)."""
    return _count(mixer, (1, *size, dim))


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)  # type: ignore[no-any-return]


# torch's counter knows attention of every device but this kernel of the CPU.
_UNKNOWN = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def _count(model: nn.Module, shape: Sequence[int]) -> int:
    first = next(model.parameters(), None)
    device = torch.device("meta") if first is None else first.device
    was = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_UNKNOWN) as counter:
            model(torch.zeros(*shape, device=device))
    finally:
        model.train(was)
    return counter.get_total_flops() // 2
