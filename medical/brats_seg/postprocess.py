"""Region masks with the published clean-up rules applied; every rule says how many voxels it changed.

Masks are bool (3, D, H, W) in order tc, wt, et on the case's own grid, and are changed in place.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medical.brats_seg.config import BratsPredictConfig

Masks = NDArray[np.bool_]
TC, WT, ET = 0, 1, 2
_NEIGHBOURS: Literal[26] = 26
_CORE_SHARE = 0.01
"""Of a component's voxels: less is no core, but a few voxels of doubt in a false oedema."""


def nest(masks: Masks) -> int:
    """Voxels added so that ET ⊆ TC ⊆ WT: what decoding to labels and back does anyway."""
    before = int(masks.sum())
    masks[TC] |= masks[ET]
    masks[WT] |= masks[TC]
    return int(masks.sum()) - before


def drop_small_et(masks: Masks, minimum: int) -> int:
    """Voxels turned from enhancing tumour to necrosis: all of them when the case has fewer than `minimum`.

    nnU-Net's rule for BraTS: on the case's total, not per component; tc keeps the voxels.
    """
    found = int(masks[ET].sum())
    if found == 0 or found >= minimum:
        return 0
    masks[TC] |= masks[ET]
    masks[ET] = False
    return found


def drop_small_components(masks: Masks, minimum: int) -> int:
    """Whole-tumour voxels removed from all regions: 26-connected components of fewer than `minimum` voxels."""
    import cc3d

    if minimum <= 1 or not masks[WT].any():
        return 0
    kept = cc3d.dust(masks[WT], threshold=minimum, connectivity=_NEIGHBOURS).astype(bool)
    removed = int(masks[WT].sum()) - int(kept.sum())
    masks &= kept
    return removed


def drop_coreless_components(masks: Masks) -> int:
    """Whole-tumour voxels removed from all regions: 26-connected components without core, where another one has some.

    Oedema surrounds a core; bright FLAIR far from it is rarely tumour. Of 261 label maps of BraTS 2020 the rule would
    change 6.9 % by more than 1 % of their voxels, and cost 0.005 of mean Dice if all else were right.
    """
    import cc3d

    if not masks[TC].any():
        return 0
    components, count = cc3d.connected_components(masks[WT], connectivity=_NEIGHBOURS, return_N=True)
    size, core = (np.bincount(components[mask], minlength=int(count) + 1) for mask in (masks[WT], masks[TC]))
    has_core = core > _CORE_SHARE * size
    if not has_core.any():
        return 0
    kept = has_core[components]
    removed = int(masks[WT].sum()) - int(kept.sum())
    masks &= kept
    return removed


def count_components(mask: Masks) -> int:
    """26-connected components of one region (D, H, W)."""
    import cc3d

    return (
        int(cc3d.connected_components(mask, connectivity=_NEIGHBOURS, return_N=True)[1]) if mask.any() else 0
    )


def clean(masks: Masks, config: BratsPredictConfig) -> dict[str, int]:
    """Apply the rules of `config` in order; rule → voxels changed."""
    return {
        "nested_regions": nest(masks),
        "components_without_core": drop_coreless_components(masks) if config.drop_coreless_components else 0,
        "small_components": drop_small_components(masks, config.min_component_voxels),
        "small_enhancing_tumour": drop_small_et(masks, config.et_min_voxels),
    }
