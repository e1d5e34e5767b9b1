"""Prediction of one full-size case against MONAI's plain sliding window: same weights, window and overlap, one process.

Peer: `monai.inferers.sliding_window_inference` over the whole volume with MONAI's own blocks in float32, as its
tutorials do. Ours: what `pipelines predict` does (foreground crop, even placement, empty windows skipped, lean blocks,
streaming), in float32 and in bfloat16, and for the effect of the crop alone in float32 without it. All start from the
same standardised volume on the network's grid and end with region masks on the case's own, by the same interpolation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray

from medical.brats_seg.cases import Case, discover, read_case
from medical.brats_seg.config import REGIONS, BratsConfig, BratsPredictConfig
from medical.brats_seg.data import made_case, to_network_grid
from medical.brats_seg.grid import AxisMap, Grid, axis_maps, resample, to_target_axes
from medical.brats_seg.inference import Sliding, plan_windows, prepare, window_logits
from medical.brats_seg.labels import encode
from medical.brats_seg.metrics import dice
from medical.brats_seg.model import build_network
from medical.brats_seg.pipeline import PIPELINE
from medical.brats_seg.postprocess import clean
from medical.brats_seg.predict import region_masks
from shared.bench.memory import peak_growth
from shared.bench.real_data import data_root
from shared.bundle import Bundle

Say = Callable[[str], None]
PEER = "monai sliding_window_inference, float32"
REAL_CASES = Path("brats/cases")
"""Below the data folder; where it is absent, a simulated head of the same size takes their place."""


@dataclass(frozen=True)
class Measured:
    masks: NDArray[np.bool_]
    seconds: float
    peak_mib: float
    """Memory beyond what was held before, volume and weights among that."""


def run_shipped(say: Say) -> list[dict[str, Any]]:
    """The shipped weights on their own grid, scored against the reference."""
    folder = PIPELINE.builtin
    if folder is None:
        say("shipped: no weights in this package; skipped")
        return []
    bundle = Bundle.open(folder)
    config: BratsConfig = bundle.config(BratsConfig)
    rows: list[dict[str, Any]] = []
    for case in _cases(config):
        rows += _compare("shipped", case, config, lambda: bundle.load_into(_network(config)), say, repeats=2)
    return rows + _over_cases(rows)


def _over_cases(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a way: the mean Dice of its cases."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["quantity"] == "Dice mean":
            groups.setdefault(row["model"], []).append(row)
    means = {
        key: {side: np.mean([r[side] for r in group]) for side in ("ours", "peer")}
        for key, group in groups.items()
    }
    return [
        {
            **groups[key][0],
            "case": "shipped, all cases",
            **{side: round(float(v), 4) for side, v in mean.items()},
        }
        for key, mean in means.items()
    ]


def run_published(say: Say) -> list[dict[str, Any]]:
    """The published network at its own size, for time and memory: weights are random, so masks mean nothing."""
    config = PIPELINE.resolve("paper", sets=["predict.overlap=0.5"])
    assert isinstance(config, BratsConfig)

    def fresh() -> torch.nn.Module:
        torch.manual_seed(0)
        return _network(config)

    return _compare("published", _cases(config)[0], config, fresh, say, repeats=1, trained=False)


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {"shipped": run_shipped, "published": run_published}
QUICK = ("shipped",)


# ---------------------------------------------------------------- one comparison


def _compare(
    name: str,
    case: Case,
    config: BratsConfig,
    network: Callable[[], torch.nn.Module],
    say: Say,
    *,
    repeats: int,
    trained: bool = True,
) -> list[dict[str, Any]]:
    image, grid = to_network_grid(case, config.data)
    image = np.ascontiguousarray(image, np.float32)
    maps = axis_maps(grid, Grid(case.images.shape[1:], case.affine))
    truth = None
    if trained:
        assert case.label is not None and case.convention is not None
        truth = encode(case.label, case.convention)
    sliding = Sliding(config.predict.window, config.predict.overlap, config.predict.blend)
    whole = replace(sliding, margin=None, skip_empty=False)
    say(f"{name}: {case.id}, {image.shape[1:]} voxels, {torch.get_num_threads()} threads")
    stock = _warm(network().eval().requires_grad_(False), image, sliding)
    peer = _measure(lambda: _plain(stock, image, sliding, maps), repeats)
    say(f"{name}: peer {peer.seconds:.1f} s, {peer.peak_mib:.0f} MiB")
    ways: list[tuple[str, Literal["float32", "bfloat16"], Sliding]] = [
        ("float32", "float32", sliding),
        ("bfloat16", "bfloat16", sliding),
    ]
    if trained:
        ways.append(("float32 without crop", "float32", whole))
    rows: list[dict[str, Any]] = []
    for way, precision, how in ways:
        ready = _warm(prepare(network(), precision), image, sliding)
        ours = _measure(lambda net=ready, how=how: region_masks([net], image, how, maps, 0.0), repeats)  # type: ignore[misc]
        count = plan_windows(image, how).count
        say(f"{name}: {way} {ours.seconds:.1f} s, {ours.peak_mib:.0f} MiB, {count} windows")
        rows += _rows(f"{name} {case.id}", f"{config.model.name}, {way}", config.predict, ours, peer, truth)
    return rows


def _warm(network: torch.nn.Module, image: NDArray[np.float32], sliding: Sliding) -> torch.nn.Module:
    """`network` after one window of zeros: the libraries' code and kernels, loaded once a process, are not a case's."""
    with torch.inference_mode():
        window_logits([network], torch.zeros(1, len(image), *sliding.window), "none")
    return network


def _plain(
    network: torch.nn.Module, image: NDArray[np.float32], sliding: Sliding, maps: Sequence[AxisMap]
) -> NDArray[np.bool_]:
    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(image)[None], sliding.window, 1, network, sliding.overlap, mode=sliding.blend
        )
    assert isinstance(logits, torch.Tensor)
    masks = np.stack([resample(channel, maps) > 0 for channel in logits[0].numpy()])
    return np.ascontiguousarray(to_target_axes(masks, maps), bool)


def _rows(
    case: str,
    model: str,
    settings: BratsPredictConfig,
    ours: Measured,
    peer: Measured,
    truth: NDArray[np.bool_] | None,
) -> list[dict[str, Any]]:
    def row(quantity: str, unit: str, a: float, b: float, ratio: float | None = None) -> dict[str, Any]:
        return {
            "case": case,
            "model": model,
            "quantity": quantity,
            "unit": unit,
            "ours": round(a, 4),
            "peer": round(b, 4),
            "peer_name": PEER,
            "ratio": None if ratio is None else round(ratio, 2),
        }

    rows = [
        row("time a case", "s", ours.seconds, peer.seconds, peer.seconds / ours.seconds),
        row("peak memory", "MiB", ours.peak_mib, peer.peak_mib, peer.peak_mib / max(ours.peak_mib, 1e-9)),
    ]
    if truth is not None:
        # Scored is what a user gets: both sides after the bundle's clean-up rules, which take no part in the times.
        for masks in (ours.masks, peer.masks):
            clean(masks, settings)  # cleaning twice changes nothing
        scores = [(dice(a, t), dice(b, t)) for a, b, t in zip(ours.masks, peer.masks, truth)]
        rows += [row(f"Dice {region}", "", a, b) for region, (a, b) in zip(REGIONS, scores)]
        rows.append(row("Dice mean", "", *np.mean(scores, axis=0).tolist()))
    return rows


# ---------------------------------------------------------------- material


def _network(config: BratsConfig) -> torch.nn.Module:
    model = config.model.model_copy(update={"pretrained": None})
    return build_network(model, len(config.data.modalities), len(REGIONS))


def _cases(config: BratsConfig) -> list[Case]:
    """Real cases of 240 × 240 × 155 voxels where the data lie beside the project, else a simulated one."""
    root = data_root()
    if (root / REAL_CASES).is_dir():
        return [read_case(files, config, with_label=True) for files in discover([root / REAL_CASES])]
    full = config.model_copy(update={"data": config.data.model_copy(update={"spacing_mm": (1.0, 1.0, 1.0)})})
    return [made_case(full, 0)]


# ---------------------------------------------------------------- time and memory


def _measure(work: Callable[[], NDArray[np.bool_]], repeats: int) -> Measured:
    """Median seconds of `repeats` calls, and the most memory that the first one needed."""
    results: list[NDArray[np.bool_]] = []
    seconds: list[float] = []

    def once() -> None:
        started = time.perf_counter()
        results[:] = [work()]
        seconds.append(time.perf_counter() - started)

    peak = peak_growth(once) / 2**20
    for _ in range(repeats - 1):
        once()
    return Measured(results[0], float(np.median(seconds)), peak)
