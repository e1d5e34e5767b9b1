"""Logits or region masks of a whole volume, from a network that sees one window at a time, in bounded memory.

The volume is cropped to its foreground, windows are spread evenly (nnU-Net's placement: same overlap, same count or
fewer than MONAI's), windows without foreground are skipped, and sums are kept only for the rows that later windows
still touch: a finished slab is handed on at once. Memory grows with one window's depth times the slice, not with the
volume. Blending: MONAI's importance map, fp32 sums. Shapes: volume (C, D, H, W), windows (B, C, D, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medical.brats_seg.config import REGIONS
from shared.errors import ResourcesExhausted, UsageError
from shared.pipeline import Tick

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Triple = tuple[int, int, int]
BACKGROUND_LOGIT = -20.0
"""What a voxel gets that no window saw: probability 2e-9, and harmless in a linear interpolation."""
SLAB_ROWS = 8
"""Rows of a slice stack handed on at a time."""
_FLIPS: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4))
# Peak activations of one forward pass in full-resolution feature maps of the last layer's width, measured at 128³ and
# rounded up: SegResNet 7.1, Swin UNETR in MONAI's blocks 8.6, in lean blocks 2.9 (fp32) to 3.6 (bf16).
_FEATURE_MAPS, _LEAN_FEATURE_MAPS = 10, 5


@dataclass(frozen=True, slots=True)
class Sliding:
    """How windows slide. The defaults are those of `BratsPredictConfig`."""

    window: Triple = (128, 128, 128)
    overlap: float = 0.5
    blend: Literal["gaussian", "constant"] = "gaussian"
    tta: Literal["none", "flip8"] = "none"
    margin: int | None = 8
    """Voxels kept around the foreground where they cost no extra window; None = no crop at all."""
    skip_empty: bool = True
    batch: int = 1
    """Windows per forward pass. More than one gains nothing on a CPU and costs memory."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1 or min(self.window) < 1 or self.batch < 1:
            raise UsageError(
                f"sliding window: found window {self.window}, overlap {self.overlap}, batch {self.batch}; "
                "positive sizes and an overlap in [0, 1) wanted; mend predict.window and predict.overlap"
            )


# ------------------------------------------------------------------------------- where windows go


def window_starts(length: int, window: int, overlap: float) -> tuple[int, ...]:
    """First voxel of every window along one axis of `length` ≥ `window` voxels, spread evenly from end to end."""
    if length <= window:
        return (0,)
    # The small number keeps 0.7 * 128 = 38.4 from becoming one window more by a rounding error.
    steps = math.ceil((length - window) / (window * (1 - overlap)) - 1e-9)
    steps = min(steps, length - window)  # a window never moves by less than a voxel
    return tuple(round(i * (length - window) / steps) for i in range(steps + 1))


def rounded_window(window: Triple, step: int) -> Triple:
    """`window` rounded up to multiples of `step`, which is what the network's strides divide."""
    a, b, c = (-(-n // step) * step for n in window)
    return a, b, c


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Where the windows of one volume go; `windows` holds only those that will run, in streaming order."""

    shape: Triple
    """Of the whole volume."""
    low: Triple
    """First voxel of the covered box; negative where the volume is smaller than a window and gets padded."""
    size: Triple
    """Of the covered box, at least one window."""
    window: Triple
    rows: tuple[int, ...]
    """First-axis starts, relative to `low`."""
    windows: tuple[tuple[Triple, ...], ...] = field(repr=False)
    """One tuple per row: starts relative to `low`."""
    placed: int
    """Windows before the empty ones were dropped."""

    @property
    def count(self) -> int:
        return sum(len(row) for row in self.windows)

    @property
    def inside(self) -> tuple[slice, slice, slice]:
        """The part of the volume that is covered."""
        bounds = zip(self.low, self.size, self.shape)
        a, b, c = (slice(max(low, 0), min(low + size, full)) for low, size, full in bounds)
        return a, b, c


def foreground_box(image: NDArray[Any], rows_at_once: int = 32) -> tuple[slice, slice, slice] | None:
    """Bounding box of voxels that are not 0 in every channel; None when there are none. Reads slab by slab."""
    seen: list[NDArray[np.bool_]] = [np.zeros(n, bool) for n in image.shape[1:]]
    for row in range(0, image.shape[1], rows_at_once):
        slab = np.any(np.asarray(image[:, row : row + rows_at_once]) != 0, axis=0)
        seen[0][row : row + rows_at_once] = slab.any(axis=(1, 2))
        seen[1] |= slab.any(axis=(0, 2))
        seen[2] |= slab.any(axis=(0, 1))
    if not seen[0].any():
        return None
    a, b, c = (slice(int(np.argmax(line)), int(len(line) - np.argmax(line[::-1]))) for line in seen)
    return a, b, c


def plan_windows(image: NDArray[Any], sliding: Sliding) -> WindowPlan:
    """Where windows go in `image` (C, D, H, W), which may be a memory map. An all-zero volume gets no window."""
    shape: Triple = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
    whole = tuple(slice(0, n) for n in shape)
    wanted = sliding.skip_empty or sliding.margin is not None
    box = foreground_box(image) if wanted else whole
    empty = box is None
    crop = whole if box is None or sliding.margin is None else box
    margin = sliding.margin or 0
    spans = [
        _span(part.start, part.stop, full, size, sliding.overlap, margin)
        for part, full, size in zip(crop, shape, sliding.window)
    ]
    low: Triple = (spans[0][0], spans[1][0], spans[2][0])
    size: Triple = (spans[0][1], spans[1][1], spans[2][1])
    starts = [window_starts(n, w, sliding.overlap) for n, w in zip(size, sliding.window)]
    plan = WindowPlan(shape, low, size, sliding.window, starts[0], (), math.prod(map(len, starts)))
    rows = tuple(
        tuple(
            (d, h, w)
            for h in starts[1]
            for w in starts[2]
            if not (sliding.skip_empty and (empty or not _has_foreground(image, plan, (d, h, w))))
        )
        for d in starts[0]
    )
    return WindowPlan(shape, low, size, sliding.window, starts[0], rows, plan.placed)


def _span(start: int, stop: int, full: int, window: int, overlap: float, margin: int) -> tuple[int, int]:
    """(first voxel, length ≥ window) of the part of one axis to cover: the foreground, and margin where it is free."""
    if full < window:
        return -((window - full) // 2), window  # padded on both sides, as MONAI's inferer does
    found = stop - start
    if found <= window:
        length = window  # real surroundings rather than padding, as the network saw them in training
    else:
        gaps = len(window_starts(found, window, overlap)) - 1
        longest = math.floor(window + gaps * window * (1 - overlap) + 1e-9)
        length = min(max(longest, found), found + 2 * margin, full)
    return min(max(start - (length - found) // 2, 0), full - length), length


def _clip(plan: WindowPlan, start: Triple) -> tuple[tuple[slice, ...], list[int]]:
    """The window's part of the volume, and torch's padding list (last axis first) for what sticks out."""
    parts: list[slice] = []
    padding: list[int] = []
    for s, low, w, full in zip(start, plan.low, plan.window, plan.shape):
        first, last = s + low, s + low + w
        parts.append(slice(max(first, 0), min(last, full)))
        padding = [max(-first, 0), max(last - full, 0), *padding]
    return tuple(parts), padding


def _has_foreground(image: NDArray[Any], plan: WindowPlan, start: Triple) -> bool:
    parts, _ = _clip(plan, start)
    middle = tuple(slice((p.start + p.stop) // 2, (p.start + p.stop) // 2 + 1) for p in parts)
    # Nearly always the centre voxel already tells; only doubtful windows are read whole.
    return bool(np.any(image[(slice(None), *middle)])) or bool(np.any(image[(slice(None), *parts)]))


# ------------------------------------------------------------------------------- networks


def prepare(network: nn.Module, precision: Literal["float32", "bfloat16"] = "float32") -> nn.Module:
    """`network` itself, made ready for prediction in place: evaluation mode, lean blocks, `precision`.

    bfloat16 converts the weights too: a tenth faster than autocast, same result, less memory (measured at 128³).
    """
    import torch

    from medical.brats_seg.lean import make_lean

    network.eval().requires_grad_(False)
    module: Any
    for module in network.modules():
        if hasattr(module, "use_flash_attention"):
            module.use_flash_attention = True  # MONAI's own fused path; differs by 1e-6
    make_lean(network)
    return network.to(torch.bfloat16) if precision == "bfloat16" else network


def _parameter(network: nn.Module) -> tuple[torch.dtype, torch.device]:
    import torch

    first = next((p for p in network.parameters() if p.is_floating_point()), None)
    return (torch.float32, torch.device("cpu")) if first is None else (first.dtype, first.device)


def window_logits(networks: Sequence[nn.Module], windows: Tensor, tta: str) -> Tensor:
    """Mean logits (B, C, D, H, W) fp32 on the CPU over `networks` and flips; each network in its own precision."""
    total: Tensor | None = None
    flips = _FLIPS if tta == "flip8" else _FLIPS[:1]
    for network in networks:
        dtype, device = _parameter(network)
        ready = windows.to(device, dtype)
        for axes in flips:
            out = network(ready.flip(axes)).flip(axes) if axes else network(ready)
            out = out.float().cpu()
            # The first sum is a copy: a network may return its input, which is a view of the volume.
            total = out.clone() if total is None else total.add_(out)
    if total is None:
        raise UsageError("prediction: no network; at least one wanted; give a model")
    return total.div_(len(networks) * len(flips))


# ------------------------------------------------------------------------------- streaming


def stream_logits(
    networks: nn.Module | Sequence[nn.Module],
    image: NDArray[Any],
    sliding: Sliding,
    plan: WindowPlan | None = None,
    tick: Tick | None = None,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Finished slabs, in order: (first row in the volume, logits (C, rows, H, W) over the whole slice).

    Rows outside the covered box are not yielded; voxels of a slab that no window saw hold `BACKGROUND_LOGIT`.
    `image` (C, D, H, W) is not changed and may be a memory map. `tick` counts windows.
    """
    import torch
    from monai.data.utils import compute_importance_map

    members = [networks] if isinstance(networks, torch.nn.Module) else list(networks)
    plan = plan or plan_windows(image, sliding)
    weight = compute_importance_map(plan.window, mode=sliding.blend, sigma_scale=0.125).float()
    sums: Tensor | None = (
        None  # (C + 1, window depth, H, W) of the covered box; the last channel counts weights
    )
    done = 0
    for at, row in enumerate(plan.rows):
        for first in range(0, len(plan.windows[at]), sliding.batch):
            starts = plan.windows[at][first : first + sliding.batch]
            with torch.inference_mode():
                out = window_logits(members, _cut(image, plan, starts), sliding.tta)
            if sums is None:
                sums = torch.zeros(out.shape[1] + 1, plan.window[0], *plan.size[1:])
            for start, logits in zip(starts, out):
                spans = (slice(s, s + w) for s, w in zip(start[1:], plan.window[1:]))
                here = sums[(slice(None), slice(None), *spans)]
                here[:-1].addcmul_(logits, weight)
                here[-1] += weight
            del out
            done += len(starts)
            if tick is not None:
                tick(done, plan.count)
        last = at + 1 == len(plan.rows)
        finished = plan.window[0] if last else plan.rows[at + 1] - row
        if sums is not None:
            yield from _slabs(sums, plan, row, finished)
            if not last:
                _shift(sums, finished)


def _cut(image: NDArray[Any], plan: WindowPlan, starts: Sequence[Triple]) -> Tensor:
    """Windows (B, C, *window) fp32, zero outside the volume; always a copy, so no network can touch the volume."""
    import torch

    out = torch.zeros(len(starts), image.shape[0], *plan.window)
    for window, start in zip(out, starts):
        parts, padding = _clip(plan, start)
        inside = tuple(
            slice(padding[2 * (2 - a)], padding[2 * (2 - a)] + p.stop - p.start) for a, p in enumerate(parts)
        )
        window[(slice(None), *inside)] = torch.as_tensor(np.ascontiguousarray(image[(slice(None), *parts)]))
    return out


def _slabs(sums: Tensor, plan: WindowPlan, row: int, rows: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The first `rows` rows of `sums` divided by their weights, as slices of the whole volume, a few at a time."""
    import torch

    _, height, width = plan.inside
    here = tuple(slice(p.start - low, p.stop - low) for p, low in zip((height, width), plan.low[1:]))
    first, last = max(row + plan.low[0], 0), min(row + rows + plan.low[0], plan.shape[0])
    for at in range(first, last, SLAB_ROWS):
        count = min(SLAB_ROWS, last - at)
        part = sums[(slice(None), slice(at - plan.low[0] - row, at - plan.low[0] - row + count), *here)]
        slab = torch.full((sums.shape[0] - 1, count, *plan.shape[1:]), BACKGROUND_LOGIT)
        inside = slab[:, :, height, width]
        inside.copy_(torch.where(part[-1:] > 0, part[:-1] / part[-1:], inside))
        yield at, slab.numpy()


def _shift(sums: Tensor, rows: int) -> None:
    """Drop the first `rows` rows of `sums`, move the others up, clear the rest; in place, without a second buffer."""
    kept = sums.shape[1] - rows
    for row in range(max(kept, 0)):
        sums[:, row] = sums[:, row + rows]
    sums[:, max(kept, 0) :] = 0


def predict_logits(
    networks: nn.Module | Sequence[nn.Module],
    image: NDArray[Any],
    sliding: Sliding,
    tick: Tick | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[np.float32]:
    """Logits (C, D, H, W) of `image` (C, D, H, W), in `out` if given (a memory map, say, already of that shape)."""
    plan = plan_windows(image, sliding)
    for row, slab in stream_logits(networks, image, sliding, plan, tick):
        if out is None:
            out = np.empty((slab.shape[0], *plan.shape), np.float32)
        if row == plan.inside[0].start:
            out[:, :row] = BACKGROUND_LOGIT
            out[:, plan.inside[0].stop :] = BACKGROUND_LOGIT
        out[:, row : row + slab.shape[1]] = slab
    if out is None or plan.count == 0:
        out = np.empty((len(REGIONS), *plan.shape), np.float32) if out is None else out
        out[...] = BACKGROUND_LOGIT
    return out


def predict_masks(
    networks: nn.Module | Sequence[nn.Module],
    image: NDArray[Any],
    sliding: Sliding,
    threshold: float = 0.5,
    tick: Tick | None = None,
) -> NDArray[np.bool_]:
    """Region masks (3, D, H, W): probability above `threshold`. Each slab is decoded as soon as it is finished."""
    level = logit(threshold)
    masks = np.zeros((len(REGIONS), *image.shape[1:]), bool)
    for row, slab in stream_logits(networks, image, sliding, tick=tick):
        np.greater(slab, level, out=masks[:, row : row + slab.shape[1]])
    return masks


def logit(probability: float) -> float:
    """`sigmoid(x) > probability` is `x > logit(probability)`: no sigmoid over the volume is needed."""
    return math.log(probability / (1 - probability))


# ------------------------------------------------------------------------------- memory


def estimate_bytes(
    networks: nn.Module | Sequence[nn.Module], sliding: Sliding, shape: Sequence[int], channels: int = 4
) -> int:
    """Bytes a prediction of a volume of `shape` (D, H, W) needs beside the weights, in the worst case (no crop).

    Image, masks and labels grow with the volume; sums with its slice; activations with the window alone.
    """
    import torch

    from medical.brats_seg.lean import LeanUpBlock

    members = [networks] if isinstance(networks, torch.nn.Module) else list(networks)
    voxels = math.prod(shape)
    covered = [max(n, w) for n, w in zip(shape, sliding.window)]
    sums = 4 * (len(REGIONS) + 1) * min(sliding.window[0], covered[0]) * covered[1] * covered[2]
    slab = 3 * 4 * len(REGIONS) * SLAB_ROWS * shape[1] * shape[2]
    forward = 0
    for network in members:
        convs = [m for m in network.modules() if isinstance(m, torch.nn.Conv3d)]
        width = convs[-1].in_channels if convs else 1
        lean = any(isinstance(m, LeanUpBlock) for m in network.modules())
        maps = _LEAN_FEATURE_MAPS if lean else _FEATURE_MAPS
        values = width * math.prod(sliding.window) * sliding.batch
        forward = max(forward, maps * values * _parameter(network)[0].itemsize)
    # Image fp32, three masks and one label volume of a byte a voxel.
    return voxels * (4 * channels + len(REGIONS) + 1) + sums + slab + forward


def available_bytes() -> int:
    """Memory that can still be had: the machine's, or what a container's limit leaves."""
    from pathlib import Path

    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no container, or no limit ("max")
    return max(free, 0)


def require_memory(source: object, shape: Sequence[int], needed: int, available: int | None = None) -> None:
    """Raise `ResourcesExhausted` before any work if `needed` bytes cannot be had."""
    free = available_bytes() if available is None else available
    if needed > free:
        raise ResourcesExhausted(
            f"{source}: a volume of {'×'.join(map(str, shape))} voxels needs about {needed / 2**30:.1f} GiB; "
            f"{free / 2**30:.1f} GiB free; close other programs, crop the volume, "
            "or set a smaller predict.window"
        )
