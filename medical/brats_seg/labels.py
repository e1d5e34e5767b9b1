"""Label conventions of the BraTS releases and the three regions every one of them is scored on.

Regions (channel order of the network): TC tumour core, WT whole tumour, ET enhancing tumour.

| convention | 1 | 2 | 3 | 4 |
|---|---|---|---|---|
| brats2021 (2017–2022) | necrotic and non-enhancing core | oedema | – | enhancing |
| brats2023 | necrotic and non-enhancing core | oedema | enhancing | – |
| brats2024 (glioma after treatment) | non-enhancing core | oedema | enhancing | resection cavity |
| msd (Task01) | oedema | non-enhancing core | enhancing | – |
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import UsageError


@dataclass(frozen=True)
class Convention:
    """Value of each tissue; `cavity` is outside every region."""

    core: int
    oedema: int
    enhancing: int
    cavity: int | None = None

    @property
    def values(self) -> frozenset[int]:
        known = {0, self.core, self.oedema, self.enhancing}
        return frozenset(known if self.cavity is None else known | {self.cavity})


CONVENTIONS = {
    "brats2021": Convention(core=1, oedema=2, enhancing=4),
    "brats2023": Convention(core=1, oedema=2, enhancing=3),
    "brats2024": Convention(core=1, oedema=2, enhancing=3, cavity=4),
    "msd": Convention(core=2, oedema=1, enhancing=3),
}


def convention(name: str) -> Convention:
    """The table called `name`. Raises `UsageError`."""
    if name not in CONVENTIONS:
        raise UsageError(f"labels: found {name}; one of {', '.join(CONVENTIONS)} wanted; set data.labels")
    return CONVENTIONS[name]


def encode(labels: NDArray[np.generic], name: str) -> NDArray[np.bool_]:
    """Label map (D, H, W) → regions (3, D, H, W) in the order tc, wt, et."""
    table = convention(name)
    enhancing = labels == table.enhancing
    core = enhancing | (labels == table.core)
    whole = core | (labels == table.oedema)
    return np.stack([core, whole, enhancing])


def decode(regions: NDArray[np.bool_], name: str) -> NDArray[np.uint8]:
    """Regions (3, D, H, W) in the order tc, wt, et → label map (D, H, W).

    Painted WT, then TC, then ET, as the official test script does: ET wins even outside TC and WT.
    """
    table = convention(name)
    core, whole, enhancing = regions
    labels = np.zeros(whole.shape, np.uint8)
    labels[whole] = table.oedema
    labels[core] = table.core
    labels[enhancing] = table.enhancing
    return labels


def convert(labels: NDArray[np.generic], source: str, target: str) -> NDArray[np.uint8]:
    """`labels` of one convention in another; a resection cavity becomes background where unknown."""
    old, new = convention(source), convention(target)
    out = np.zeros(labels.shape, np.uint8)
    for tissue in ("core", "oedema", "enhancing", "cavity"):
        before, after = getattr(old, tissue), getattr(new, tissue)
        if before is not None and after is not None:
            out[labels == before] = after
    return out
