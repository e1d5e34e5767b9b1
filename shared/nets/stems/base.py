"""From the input (B, Cin, *S) to a map of tokens (B, *S', C), and from one stage's map to the next's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from shared.nets.layout import Size


class Stem(nn.Module, ABC):
    """(B, Cin, *S) → (B, *S', C)."""

    ndims: ClassVar[frozenset[int]] = frozenset({1, 2, 3})
    per_token: bool = False
    """Every token is made of one input position: what streaming needs."""
    looks_ahead: bool = True
    """A token may depend on positions behind its own `stride` ones; causal networks refuse it."""
    stride: Size
    """Input positions a token, by axis."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def out_size(self, size: Sequence[int]) -> Size:
        """S' for S."""

    def writers(self) -> Sequence[nn.Module]:
        """The linear map that makes the output, unchanged; none where something else does."""
        return ()


class Down(nn.Module, ABC):
    """(B, *S, C) → (B, *⌈S/stride⌉, C')."""

    stride: int
    looks_ahead: bool = True
    """As for stems."""
    reads: ClassVar[str | None] = None
    """The attribute that is the norm through which alone, token by token, it sees its input."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def out_size(self, size: Sequence[int]) -> Size: ...

    def writers(self) -> Sequence[nn.Module]:
        """As for stems."""
        return ()
