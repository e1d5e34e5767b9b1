"""Five backbones in one pipeline: brats-seg's default preset on the embedded sample, one MLflow run each.

The published Swin UNETR (reduced, as the preset has it) and the U-Net over four pyramids of `shared.nets`
(``backbones/*.yaml``). Dice is that of the held-out simulated heads; time is one made case of 240 × 240 × 155 from the
standardised volume to masks on its own grid, float32, one thread. Costs are added to each run, so the MLflow page
compares all columns. `BACKBONES_PRESET` (default ``default``) chooses the preset.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medical.brats_seg.config import BratsConfig
from medical.brats_seg.data import made_case, to_network_grid
from medical.brats_seg.grid import Grid, axis_maps
from medical.brats_seg.inference import Sliding, prepare, rounded_window
from medical.brats_seg.model import stride
from medical.brats_seg.pipeline import PIPELINE
from medical.brats_seg.predict import region_masks
from pipelines.run import Request, run_once
from shared.bundle import Bundle
from shared.nets.measure import count_macs
from shared.tracking.store import connect

Say = Callable[[str], None]
FOLDER = Path(__file__).resolve().parent / "backbones"
SWIN = "swin-unetr"
HELD_OUT_CASE = 10_000
"""Seed of the timed head; far from those that are trained on."""


def compare(name: str, say: Say) -> list[dict[str, Any]]:
    """Train one of them (or resume), measure it, return its rows beside Swin UNETR's as peer."""
    sets = ["threads=1"]
    if name != SWIN:
        sets += ["model.name=unet", f"model.backbone={FOLDER / f'{name}.yaml'}"]
    preset = os.environ.get("BACKBONES_PRESET", "default")
    run_id, folder = run_once(Request(PIPELINE.name, preset, sets=sets), say)
    client, bundle = connect().client, Bundle.open(folder / "bundle")
    config: BratsConfig = bundle.config(BratsConfig)
    window = rounded_window(config.predict.window, stride(config.model))
    macs = count_macs(_network(config).to("meta"), len(config.data.modalities), window)
    found = {
        "params": float(bundle.schema["params_count"]),
        "gmacs_per_window": macs / 1e9,
        "seconds_per_case": _seconds(bundle, config, window),
    }
    for key, value in found.items():
        client.log_metric(run_id, key, value)
    dice = {key: bundle.metrics[key] for key in ("dice_mean", "dice_wt", "dice_tc", "dice_et")}
    return [
        {"case": f"{preset} preset", "model": name, "quantity": key, "unit": unit, "ours": round(value, 4)}
        for (key, value), unit in zip({**dice, **found}.items(), ("", "", "", "", "", "GMAC", "s"))
    ]


def _network(config: BratsConfig) -> torch.nn.Module:
    from medical.brats_seg.config import REGIONS
    from medical.brats_seg.model import build_network

    return build_network(config.model, len(config.data.modalities), len(REGIONS))


def _seconds(bundle: Bundle, config: BratsConfig, window: tuple[int, int, int], repeats: int = 3) -> float:
    full = config.model_copy(update={"data": config.data.model_copy(update={"spacing_mm": (1.0, 1.0, 1.0)})})
    case = made_case(full, HELD_OUT_CASE)
    image, grid = to_network_grid(case, config.data)
    maps = axis_maps(grid, Grid(case.images.shape[1:], case.affine))
    network = prepare(bundle.load_into(_network(config)), "float32")
    sliding, took = Sliding(window, config.predict.overlap, config.predict.blend), []
    for _ in range(repeats):
        started = time.perf_counter()
        region_masks([network], np.ascontiguousarray(image, np.float32), sliding, maps, 0.0)
        took.append(time.perf_counter() - started)
    return float(np.median(took))


NAMES = (SWIN, *sorted(path.stem for path in FOLDER.glob("*.yaml")))
CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {name: partial(compare, name) for name in NAMES}
QUICK = (SWIN,)
