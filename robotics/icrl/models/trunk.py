"""The causal network all models share: blocks of `shared/nets`, run over whole windows or one token at a time."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robotics.icrl.models.config import ModelConfig
from shared.errors import UsageError
from shared.nets.blocks.block import Block
from shared.nets.mixers.base import TokenMixer
from shared.nets.norms.layers import RMSNorm
from shared.nets.registry import accepts, make, split

State = Any
"""What one token hands on to the next: of every block its mixer's, first axis the batch."""


class LeakyNorm(RMSNorm):
    """RMSNorm whose input is dropped out in training: the second dropout of TinyLlama's fused norm, which does not
    touch the stream itself."""

    per_token: ClassVar[bool] = True

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__(dim, eps=1e-5)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(self.drop(x))


class Trunk(nn.Module):
    """(B, L, d) → (B, L, d): pre-norm blocks of a causal mixer and SwiGLU as in TinyLlama; a norm at the end but in
    `legacy`. Raises `UsageError` for mixers without causal form."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_block(config, at) for at in range(config.depth))
        self.norm = nn.Identity() if config.legacy else RMSNorm(config.dim, eps=1e-5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(
                    module.weight, std=0.02 if not config.legacy else module.in_features**-0.5
                )
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def streams(self) -> bool:
        """Whether `step` exists."""
        return all(block.mixer.stateful for block in self.blocks)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)  # type: ignore[no-any-return]

    def init_state(self, batch: int) -> State:
        return tuple(block.mixer.init_state(batch) for block in self.blocks)  # type: ignore[union-attr, operator]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token (B, d) → (B, d) as in `forward`, and the next state."""
        after = []
        for block, one in zip(self.blocks, state):
            x, new = block.step(x, one)  # type: ignore[operator]
            after.append(new)
        return self.norm(x), tuple(after)

    def prefill(self, x: Tensor) -> State:
        """The state after the tokens (B, L, d): at once where every mixer can, else token by token."""
        if not all(hasattr(block.mixer, "prefill") for block in self.blocks):
            state = self.init_state(len(x))
            for at in range(x.shape[1]):
                _, state = self.step(x[:, at], state)
            return state
        after = []
        for block in self.blocks:
            x, one = block.prefill(x)  # type: ignore[operator]
            after.append(one)
        return tuple(after)


def choose(state: State, rows: Tensor) -> State:
    """The state of these rows of the batch, repeated where a row is named again."""
    if isinstance(state, Tensor):
        return state.index_select(0, rows)
    return tuple(choose(each, rows) for each in state)


def _block(config: ModelConfig, index: int) -> Block:
    name, options = split(config.mixer)
    if accepts("mixer", name, "heads"):
        options.setdefault("heads", config.heads)
    if accepts("mixer", name, "dropout"):
        options.setdefault("dropout", config.attention_dropout)
    size = (config.context,)
    mixer: TokenMixer = make(
        "mixer", {"name": name, **options}, config.dim, 1, size=size, causal=True, index=index
    )
    if not mixer.stateful:
        raise UsageError(
            f"model.mixer: {name} has no state for single steps; one that has wanted, such as rotary or mamba"
        )
    ffn = make("feedforward", {"name": "swiglu", "ratio": config.inner / config.dim}, config.dim, 1)
    leak = config.dropout if config.legacy else 0.0
    norms = (LeakyNorm(config.dim, leak), LeakyNorm(config.dim, leak))
    return Block(mixer, ffn, norms, dropout=0.0 if config.legacy else config.dropout)


@torch.no_grad()
def count(module: nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in module.parameters())
