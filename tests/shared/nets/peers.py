"""Copying the weights of another library's network into ours, name by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import nn


def randomise(module: nn.Module, seed: int = 0, std: float = 0.05) -> nn.Module:
    """In evaluation mode, no weight at a special starting value that would hide a part (0, 1, 1e-6)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def copy_weights(peer: nn.Module, ours: nn.Module, names: Sequence[tuple[str, str]]) -> None:
    """`names` are regular expressions and replacements, applied in order to the peer's names. Every weight must find
    its place; kernels of one position become linear maps."""
    wanted, found = ours.state_dict(), {}
    for name, value in peer.state_dict().items():
        for old, new in names:
            name = re.sub(old, new, name)
        found[name] = value.reshape(wanted[name].shape) if value.numel() == wanted[name].numel() else value
    ours.load_state_dict(found, strict=True)
    ours.eval()
