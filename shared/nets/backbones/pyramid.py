"""The network every paper of this library is a configuration of: stem → stages of blocks → head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets.blocks.block import Block
from shared.nets.config import BackboneConfig
from shared.nets.layout import Size, channels_first, shrink_mask
from shared.nets.mixers.base import State
from shared.nets.registry import make


class FeatureInfo:
    """Channels and strides of the pyramid, under timm's names."""

    def __init__(self, channels: Sequence[int], reduction: Sequence[int]) -> None:
        self._channels, self._reduction = list(channels), list(reduction)

    def channels(self) -> list[int]:
        return list(self._channels)

    def reduction(self) -> list[int]:
        """Input positions a token at each level (along the axis where that is most)."""
        return list(self._reduction)


class Stage(nn.Module):
    """Downsampling (but before the first stage), then blocks; (B, *S, C) → (B, *S', C')."""

    def __init__(self, down: Any, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.down, self.blocks = down, nn.ModuleList(blocks)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if self.down is not None:
            # In memory as in shape, for norms and linear maps would reorder it each time they read it.
            x = self.down(x if mask is None else x * mask[..., None]).contiguous()
            mask = shrink_mask(mask, x.shape[1:-1])
        for block in self.blocks:
            x = block(x, mask)
        return x, mask


class Backbone(nn.Module):
    """Images (B, Cin, *S) → class scores (B, classes), the last map, or a pyramid of maps (B, C_i, *S_i).

    `mask` (B, *S) is True where the input is valid. Raises `UsageError` at build time for parts that do not fit
    together, in one line.
    """

    def __init__(
        self,
        config: BackboneConfig,
        *,
        ndim: int,
        in_chans: int,
        num_classes: int = 0,
        features_only: bool = False,
        img_size: Size | None = None,
    ) -> None:
        super().__init__()
        self.config, self.ndim, self.features_only, self.num_classes = (
            config,
            ndim,
            features_only,
            num_classes,
        )
        self.stem = make("stem", config.stem, in_chans, config.dims[0], ndim)
        size = None if img_size is None else self.stem.out_size(img_size)
        self.position = make("position", config.position, config.dims[0], ndim, size=size)
        self.dropout = nn.Dropout(config.dropout)
        reduction, self.stages, total = [max(self.stem.stride)], nn.ModuleList(), sum(config.depths)
        for at, dim in enumerate(config.dims):
            down = make("down", config.at("down", at - 1), config.dims[at - 1], dim, ndim) if at else None
            if down is not None:
                size = None if size is None else down.out_size(size)
                reduction.append(reduction[-1] * down.stride)
            done = sum(config.depths[:at])
            rates = [config.drop_path * (done + i) / max(total - 1, 1) for i in range(config.depths[at])]
            self.stages.append(
                Stage(down, [_block(config, at, i, ndim, size, r) for i, r in enumerate(rates)])
            )
        self.feature_info = FeatureInfo(config.dims, reduction)
        final = "none" if features_only else config.final_norm
        self.head = make("head", config.head, config.dims[-1], num_classes, norm=final)
        self.in_chans = in_chans
        if config.causal:
            _refuse_looking_ahead(self)

    # ------------------------------------------------------------ whole inputs

    def _maps(self, x: Tensor, mask: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """The map after each stage, channels-last, and the last one's mask."""
        if x.ndim != self.ndim + 2:
            raise UsageError(
                f"backbone: an input of {x.ndim} axes; (batch, channels, {self.ndim} axes) wanted"
            )
        if x.shape[1] != self.in_chans or 0 in x.shape[2:] or not x.is_floating_point():
            raise UsageError(
                f"backbone: an input of {list(x.shape)} {x.dtype}; floating-point numbers of {self.in_chans} "
                "channels, no axis empty, wanted"
            )
        self._accept(mask, x)
        x = x if mask is None else x * mask[:, None]
        x = self.dropout(self.position(self.stem(x))).contiguous()
        mask = shrink_mask(mask, x.shape[1:-1])
        maps = []
        for stage in self.stages:
            x, mask = stage(x, mask)
            maps.append(x)
        return maps, mask

    def _accept(self, mask: Tensor | None, x: Tensor) -> None:
        if mask is None:
            return
        wanted = [len(x), *x.shape[2:]]
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or list(mask.shape) != wanted:
            found = f"{list(mask.shape)} {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
            raise UsageError(f"backbone: a mask of {found}; {wanted} torch.bool wanted, True where valid")
        blind = sorted({type(b.mixer).__name__ for s in self.stages for b in s.blocks if not b.mixer.masks})  # type: ignore[union-attr]
        if blind:
            raise UsageError(
                f"backbone: a mask given, but mixer {', '.join(blind)} knows none; choose another mixer"
            )

    def features(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The map of every stage, (B, C_i, *S_i), not normalised."""
        return [channels_first(m) for m in self._maps(x, mask)[0]]

    forward_intermediates = features

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The last map (B, C, *S), after the final norm."""
        maps, mask = self._maps(x, mask)
        return channels_first(self.head.normalised(maps[-1], mask))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        if self.features_only:
            return self.features(x, mask)
        maps, mask = self._maps(x, mask)
        if not self.num_classes:
            return channels_first(self.head.normalised(maps[-1], mask))
        return self.head(self.head.normalised(maps[-1], mask), mask)

    # ------------------------------------------------------------ one token at a time

    @property
    def streams(self) -> bool:
        """Whether `step` exists: causal, one token an input position, every part per token or stateful."""
        one_stage = len(self.stages) == 1
        blocks = [block for stage in self.stages for block in stage.blocks]  # type: ignore[union-attr]
        whole = self.config.causal and self.stem.per_token and self.position.per_token and one_stage
        norm = self.head.norm.per_token
        return bool(whole and norm and all(b.mixer.stateful and b.per_token for b in blocks))

    def init_state(self, batch: int) -> State:
        """Before the first token. Raises `UsageError` where the network cannot stream."""
        if not self.streams:
            raise UsageError(
                "backbone: cannot stream; a causal network of one stage with per-token parts wanted"
            )
        return 0, tuple(block.mixer.init_state(batch) for block in self.stages[0].blocks)  # type: ignore[union-attr]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One position (B, Cin) → its features (B, C) as in `forward_features`, and the next state."""
        at, states = state
        x = self.position(self.stem(x[:, :, None]), offset=at)[:, 0]
        after = []
        for block, one in zip(self.stages[0].blocks, states):  # type: ignore[arg-type]
            x, new = block.step(x, one)
            after.append(new)
        return self.head.normalised(x), (at + 1, tuple(after))


def _block(
    config: BackboneConfig, stage: int, index: int, ndim: int, size: Size | None, rate: float
) -> Block:
    dim, chosen = config.dims[stage], config.at("mixers", stage)
    mixer = chosen[index % len(chosen)] if isinstance(chosen, list) else chosen
    built = make("mixer", mixer, dim, ndim, size=size, causal=config.causal, index=index)
    ffn = config.at("ffn", stage)
    norm = config.at("norm", stage)
    return Block(
        built,
        None if ffn is None else make("feedforward", ffn, dim, ndim),
        (make("norm", norm, dim), make("norm", norm, dim) if ffn is not None else None),
        order=config.order,
        drop_path=rate,
        layer_scale=config.at("layer_scale", stage),
        position=config.block_position,
        dropout=config.branch_dropout,
    )


def _refuse_looking_ahead(model: Backbone) -> None:
    """Raises `UsageError` for parts beside the mixers (which know by themselves) that see later tokens."""
    if model.ndim != 1:
        raise UsageError(
            f"backbone: causal: true is along one axis only, {model.ndim} found; set it to false"
        )
    parts: dict[str, Any] = {"stem": model.stem, "position": model.position}
    if not model.head.after:  # else it sees one vector, not tokens
        parts["final_norm"] = model.head.norm
    for at, stage in enumerate(model.stages):
        parts |= {f"down of stage {at}": stage.down}
        parts |= {f"block {i} of stage {at}": block for i, block in enumerate(stage.blocks)}  # type: ignore[arg-type]
    for name, part in parts.items():
        inner = [] if part is None or isinstance(part, Block) else part.modules()
        if getattr(part, "looks_ahead", False) or any(getattr(m, "looks_ahead", False) for m in inner):
            raise UsageError(
                f"backbone: {name} ({type(part).__name__}) looks ahead in a causal network; a part that sees no later "
                "token wanted; choose another, or causal: false"
            )


def init_weights(model: nn.Module, std: float = 0.02) -> None:
    """Truncated normal for linear maps, zero biases, ones and zeros for norms: the vision papers' common start."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
