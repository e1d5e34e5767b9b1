"""Random crops and MONAI's random transforms, all drawn from one seed per item."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from numpy.typing import NDArray
from torch import Tensor

from medical.brats_seg.config import BratsTrainConfig

IMAGE, LABEL = "image", "label"


def augmentation(train: BratsTrainConfig) -> Compose:
    """Flips, scale and shift of intensities as published; deformation and degradation where the configuration asks.

    Intensities change channel by channel: modalities vary independently between scanners.
    """
    both = [IMAGE, LABEL]
    steps: list[Any] = [RandFlipd(both, prob=train.flip, spatial_axis=axis) for axis in range(3)]
    if train.deform:
        tilt = math.radians(15)
        steps.append(
            RandAffined(
                both,
                prob=train.deform,
                rotate_range=(tilt,) * 3,
                scale_range=(0.12,) * 3,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            )
        )
    if train.degrade:
        steps += [
            RandGaussianSmoothd(IMAGE, (0.3, 0.9), (0.3, 0.9), (0.3, 0.9), prob=train.degrade),
            RandAdjustContrastd(IMAGE, prob=train.degrade, gamma=(0.75, 1.35), retain_stats=True),
            RandGaussianNoised(IMAGE, prob=train.degrade, std=0.12),
        ]
    steps += [
        RandScaleIntensityd(IMAGE, factors=train.scale_intensity, prob=1.0, channel_wise=True),
        RandShiftIntensityd(IMAGE, offsets=train.shift_intensity, prob=1.0, channel_wise=True),
    ]
    return Compose(steps)


def augmented(steps: Compose, item: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """`item` after `steps`, as plain tensors."""
    steps.set_random_state(seed=seed)
    out = steps(dict(item))
    return {key: value.as_tensor().contiguous() for key, value in out.items()}


def crop_start(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    tumour: NDArray[np.intp],
    share: float,
    rng: np.random.Generator,
) -> tuple[int, ...]:
    """First voxel of a random crop: centred on one of the flat indices `tumour` with probability `share`, else uniform.

    MONAI's balanced crops keep an index of every background voxel of every case; this keeps tumour voxels only.
    """
    room = [n - s for n, s in zip(shape, size)]
    if len(tumour) and rng.random() < share:
        centre = np.unravel_index(int(tumour[rng.integers(len(tumour))]), shape)
        return tuple(min(max(int(c) - s // 2, 0), r) for c, s, r in zip(centre, size, room))
    return tuple(int(rng.integers(r + 1)) for r in room)
