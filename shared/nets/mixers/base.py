"""The contract of the parts that move information between tokens, and of those that do not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

State = Any
"""What a stateful mixer carries from one step to the next: a tensor or a tuple of tensors, first axis the batch."""


class TokenMixer(nn.Module, ABC):
    """(B, *S, C) → the same shape, on n = 1, 2 or 3 axes. `mask` (B, *S) is True where a token is valid.

    The factory gives every mixer its `dim` C, `ndim` n, the map's `size` where it is known, whether the network must
    be `causal`, and the block's `index` in its stage (windows shift and dilations alternate by it); own options follow.
    """

    ndims: ClassVar[frozenset[int]] = frozenset({1, 2, 3})
    causal_forms: ClassVar[frozenset[bool]] = frozenset({False})
    """Which values of `causal` it can be built with. Causal: token t never depends on a later one (n = 1)."""
    fixed_size: ClassVar[bool] = False
    """Weights belong to one map size, which must then be known at build time."""
    stateful: ClassVar[bool] = False
    """Its causal form has `init_state` and `step`."""
    masks: ClassVar[bool] = False
    """Invalid tokens change nothing valid."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Options that suit maps of a few tokens a side; the contract tests build the mixer with them."""

    def __init__(
        self, dim: int, ndim: int, *, size: Sequence[int] | None = None, causal: bool = False, index: int = 0
    ) -> None:
        super().__init__()
        if ndim not in self.ndims:
            raise ValueError(f"works in {_listed(self.ndims)} dimensions, {ndim} wanted")
        if causal not in self.causal_forms:
            raise ValueError("has no causal form" if causal else "has only a causal form; set causal: true")
        if causal and ndim != 1:
            raise ValueError(f"is causal along one axis only, {ndim} found")
        if self.fixed_size and size is None:
            raise ValueError("needs the input size; give img_size")
        self.dim, self.ndim, self.causal, self.index = dim, ndim, causal, index
        self.size = None if size is None else tuple(size)

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, *S, C) → (B, *S, C)."""

    # The unified view of sequence models: forward(x) = output(matrix(x) @ values(x), x). Optional, for small L.

    def matrix(self, x: Tensor) -> Tensor:
        """The mixing matrix (B, H, L, L)."""
        raise NotImplementedError

    def values(self, x: Tensor) -> Tensor:
        """What the matrix mixes, (B, H, L, d)."""
        raise NotImplementedError

    def output(self, mixed: Tensor, x: Tensor) -> Tensor:
        """(B, H, L, d) → (B, *S, C): everything after the mixing."""
        raise NotImplementedError

    @property
    def has_matrix(self) -> bool:
        return type(self).matrix is not TokenMixer.matrix

    # Streaming: only where `stateful`.

    def init_state(self, batch: int) -> State:
        """The state before the first token."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One token (B, C) → (B, C), and the next state."""
        raise NotImplementedError

    def fuse(self) -> nn.Module:
        """The cheaper form for deployment that computes the same; itself where there is none."""
        return self

    # Where it meets the norm before it and the stream behind it; what rewriting needs to know.

    def readers(self) -> Sequence[nn.Linear]:
        """The linear maps that see the input, unpadded, if nothing else sees it and its width is free; else none."""
        return ()

    def writers(self) -> Sequence[nn.Module]:
        """The linear maps whose sum, unchanged, is the output; none where it is made otherwise."""
        return ()

    def extra_macs(self, size: Sequence[int]) -> int:
        """Multiply-accumulates of one image that are neither matrix product nor convolution (FFT, scans)."""
        return 0


class ChannelMixer(nn.Module, ABC):
    """(B, *S, C) → the same shape; a feed-forward part. Those that look at neighbours say so by `per_token`."""

    ndims: ClassVar[frozenset[int]] = frozenset({1, 2, 3})
    per_token: ClassVar[bool] = True
    looks_ahead: ClassVar[bool] = False
    """A token may depend on later ones; causal networks refuse it."""
    example: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, dim: int, ndim: int) -> None:
        super().__init__()
        if ndim not in self.ndims:
            raise ValueError(f"works in {_listed(self.ndims)} dimensions, {ndim} wanted")
        self.dim, self.ndim = dim, ndim

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (B, *S, C) → (B, *S, C)."""

    def fuse(self) -> nn.Module:
        return self

    def readers(self) -> Sequence[nn.Linear]:
        """As for mixers."""
        return ()

    def writers(self) -> Sequence[nn.Module]:
        """As for mixers."""
        return ()


def heads_of(dim: int, heads: int | None, head_dim: int) -> int:
    """Number of heads: as given, else as many of `head_dim` channels as fit. Raises ValueError."""
    found = heads if heads is not None else max(dim // max(head_dim, 1), 1)
    if found < 1 or dim % found:
        raise ValueError(f"{found} heads do not divide {dim} channels")
    return found


def _listed(numbers: frozenset[int]) -> str:
    return " or ".join(str(n) for n in sorted(numbers))
