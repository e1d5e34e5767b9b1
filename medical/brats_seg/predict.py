"""A case's files in, its segmentation out: label NIfTI in the case's own space and convention, picture, JSON.

Per case: read and check → network grid → streamed windows (one or several networks) → back to the case's grid slab by
slab → clean-up rules → labels. Serving goes the same way, through files in a temporary folder.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medical.brats_seg.config import REGIONS, BratsConfig, BratsDataConfig, BratsPredictConfig
from medical.brats_seg.inference import (
    BACKGROUND_LOGIT,
    Sliding,
    estimate_bytes,
    logit,
    prepare,
    require_memory,
    rounded_window,
    stream_logits,
)
from shared.bundle import Bundle
from shared.config import merge, nested
from shared.errors import ItemError, ModelUnusable
from shared.pipeline import Item, Predictor, Tick

if TYPE_CHECKING:
    from medical.brats_seg.cases import Case
    from medical.brats_seg.grid import AxisMap, Grid

MAX_REQUEST_BYTES = 64 * 2**20
"""Largest file of a serving request, as sent (compressed)."""
_LARGEST_SHARE = 0.4
"""Of the head, more than any tumour fills: the largest of 261 label maps of BraTS 2020 has 360 mL, about a quarter."""
_IN_MEMORY_BYTES = 512 * 2**20
"""Larger probability maps go to an unnamed temporary file."""


@dataclass(slots=True)
class Prediction:
    """Everything `write` needs; arrays lie on the case's own grid (D, H, W)."""

    case: Case
    labels: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    """(3, D, H, W): tc, wt, et after clean-up."""
    probabilities: NDArray[np.float32] | None
    facts: dict[str, Any] = field(default_factory=dict)
    """What goes into the JSON."""


class BratsPredictor(Predictor):
    """Several bundles of the same configuration (folds, say) may predict together: their logits are averaged."""

    record_inputs: ClassVar[Mapping[str, str]] = {name: "string" for name in ("flair", "t1ce", "t1", "t2")}
    record_outputs: ClassVar[Mapping[str, str]] = {
        "seg": "string",
        **{f"volume_ml_{region}": "double" for region in REGIONS},
        "warnings": "string",
    }

    def __init__(self, bundle: Bundle, options: Mapping[str, Any]) -> None:
        from medical.brats_seg.model import stride

        config: BratsConfig = bundle.config(BratsConfig, {"predict": _nest(options)} if options else None)
        self.settings: BratsPredictConfig = config.predict
        # How the training files lay and what their labels meant says nothing of the files that come now.
        self.config = _with_data(config, labels="auto", nan=self._nan(config.data))
        self.bundles = [bundle, *(Bundle.open(path) for path in self.settings.ensemble)]
        _refuse_mixed(self.bundles)
        self.sliding = Sliding(
            rounded_window(self.settings.window, stride(self.config.model)),
            self.settings.overlap,
            self.settings.blend,
            self.settings.tta,
        )
        self.networks = [self._network(member) for member in self.bundles]
        self.reads_labels = False

    def read_labels(self, data: BratsDataConfig) -> None:
        """Read each case's reference too from now on, as `data` says of labels, and refuse a case without."""
        self.reads_labels = True
        self.config = _with_data(self.config, labels=data.labels, nan=self._nan(data))

    def _nan(self, data: BratsDataConfig) -> str:
        return data.nan if self.settings.nan == "auto" else self.settings.nan

    def _network(self, bundle: Bundle) -> Any:
        import torch

        from medical.brats_seg.model import build_network

        model = bundle.config(BratsConfig).model.model_copy(update={"pretrained": None})
        network = build_network(model, len(self.config.data.modalities), len(REGIONS))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return prepare(bundle.load_into(network), chosen_precision(self.settings, bundle, device)).to(device)

    # ------------------------------------------------------------ one case

    def discover(self, paths: Sequence[Path]) -> list[Item]:
        from medical.brats_seg.cases import discover, fillable

        return [
            Item(files.id, tuple(files.sources), files, None if fillable(files, self.config) else files.fault)
            for files in discover([Path(p) for p in paths])
        ]

    def predict(self, item: Item, tick: Tick | None = None) -> Prediction:
        from medical.brats_seg.cases import read_case
        from medical.brats_seg.data import to_network_grid

        started = time.monotonic()
        case = read_case(item.payload, self.config, with_label=self.reads_labels)
        self._require_memory(case)
        image, grid = to_network_grid(case, self.config.data)
        masks, probabilities = self._regions(case, np.asarray(image), grid, tick)
        prediction = self._finish(case, masks, probabilities)
        prediction.facts["seconds"] = round(time.monotonic() - started, 2)
        return prediction

    def _require_memory(self, case: Case) -> None:
        """Raise `ResourcesExhausted` if the case's volume on the network's grid would not fit."""
        from medical.brats_seg.grid import Grid, network_grid

        data, (channels, *shape) = self.config.data, case.images.shape
        grid = network_grid(
            Grid((shape[0], shape[1], shape[2]), case.affine), data.orientation, data.spacing_mm
        )
        needed = estimate_bytes(self.networks, self.sliding, grid.shape, channels)
        # Besides: masks in the case's own grid, once more while their axes are turned, and labels; a byte each.
        needed += math.prod(shape) * (2 * len(REGIONS) + 1)
        require_memory(case.id, grid.shape, needed)

    def _regions(
        self, case: Case, image: NDArray[np.float32], grid: Grid, tick: Tick | None
    ) -> tuple[NDArray[np.bool_], NDArray[np.float32] | None]:
        """Region masks, and probabilities if asked, on the case's grid: filled slab by slab from the stream."""
        from medical.brats_seg.grid import Grid, axis_maps, to_target_axes

        maps = axis_maps(grid, Grid(case.images.shape[1:], case.affine))
        turned = tuple(len(line.low) for line in maps)
        probabilities = _big_array((len(REGIONS), *turned)) if self.settings.save_probabilities else None
        level = logit(self.settings.threshold)
        masks = region_masks(self.networks, image, self.sliding, maps, level, probabilities, tick)
        turned_maps: Any = None if probabilities is None else to_target_axes(probabilities, maps)
        return masks, turned_maps

    def _finish(
        self, case: Case, masks: NDArray[np.bool_], probabilities: NDArray[np.float32] | None
    ) -> Prediction:
        from medical.brats_seg.labels import decode
        from medical.brats_seg.postprocess import clean

        changed = clean(masks, self.settings)
        convention: str = self.settings.labels
        if convention == "auto":
            convention = case.convention or "brats2021"
        labels = decode(masks, convention)
        facts = {
            "id": case.id,
            "convention": convention,
            "modalities": case.matched,
            "shape": list(labels.shape),
            "spacing_mm": [round(float(mm), 6) for mm in np.linalg.norm(case.affine[:3, :3], axis=0)],
            "regions": region_facts(masks, case.affine),
            "voxels_changed": changed,
            "warnings": [*case.warnings, *_warnings(masks, case.images)],
            "model": [{"pipeline": b.pipeline, "hash": b.hash} for b in self.bundles],
            # Members of an ensemble are named under `model`, by hash: folders move.
            "settings": self.settings.model_dump(mode="json", exclude={"ensemble"})
            | {"precision": str(next(self.networks[0].parameters()).dtype).removeprefix("torch.")},
        }
        return Prediction(case, labels, masks, probabilities, facts)

    # ------------------------------------------------------------ files

    def write(self, result: Prediction, folder: Path) -> dict[str, Any]:
        from medical.nifti import write_float, write_labels

        name, facts = result.facts["id"], result.facts
        write_labels(folder / f"{name}_seg.nii.gz", result.labels, like=result.case.reference)
        if result.probabilities is not None:
            for region, volume in zip(REGIONS, result.probabilities):
                write_float(folder / f"{name}_prob_{region}.nii.gz", volume, like=result.case.reference)
        volumes = {region: facts["regions"][region]["volume_ml"] for region in REGIONS}
        if self.settings.picture:
            from medical.brats_seg.figures import qc_picture

            qc_picture(
                dict(zip(self.config.data.modalities, result.case.images)),
                result.masks,
                result.case.affine,
                folder / f"{name}_qc.png",
                title=name,
                volumes_ml=volumes,
                warnings=facts["warnings"],
            )
        # The time is in the manifest; here it would make equal results differ.
        lasting = {key: value for key, value in facts.items() if key != "seconds"}
        (folder / f"{name}.json").write_text(json.dumps(lasting, indent=2) + "\n", encoding="utf-8")
        return {"volumes_ml": volumes, "convention": facts["convention"], "warnings": facts["warnings"]}

    # ------------------------------------------------------------ serving

    def predict_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """One case as base64 NIfTI text per modality → the mask as base64 NIfTI and its volumes."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "request"
            folder.mkdir()
            for modality in self.config.data.modalities:
                data = _decoded(record, modality)
                suffix = ".nii.gz" if data[:2] == b"\x1f\x8b" else ".nii"
                (folder / f"request_{modality}{suffix}").write_bytes(data)
            items = self.discover([folder])
            if len(items) != 1 or items[0].fault is not None:
                fault = items[0].fault if items else None
                raise ItemError("request", fault.found if fault else "no case", "one NIfTI per modality")
            try:
                result = self.predict(items[0])
            except ItemError as err:  # the caller knows columns, not our temporary files
                column = Path(str(err.fault.source)).name.removeprefix("request_").split(".")[0]
                where = f"request:{column}" if column in self.config.data.modalities else "request"
                fault = err.fault
                raise ItemError(where, fault.found, fault.wanted, fault.mend, fault.field) from None
            out = Path(name) / "seg.nii.gz"
            from medical.nifti import write_labels

            write_labels(out, result.labels, like=result.case.reference)
            seg = base64.b64encode(out.read_bytes()).decode("ascii")
        regions = result.facts["regions"]
        return {
            "seg": seg,
            **{f"volume_ml_{region}": float(regions[region]["volume_ml"]) for region in REGIONS},
            "warnings": "; ".join(result.facts["warnings"]),
        }

    def example_record(self) -> dict[str, Any]:
        """A made head of 24 × 28 × 20 voxels with a bright ball in it, a few kB of text per modality."""
        import gzip

        import nibabel as nib

        d, h, w = np.ogrid[-1:1:24j, -1:1:28j, -1:1:20j]
        head = d**2 + h**2 + w**2 < 0.8
        ball = (d - 0.2) ** 2 + h**2 + w**2 < 0.08
        affine = np.diag([-1.0, -1.0, 1.0, 1.0])
        record: dict[str, Any] = {}
        for modality, bright in zip(self.config.data.modalities, (300, 250, -40, 280)):
            volume = (head * 200 + (head & ball) * bright + head * np.round(20 * d)).astype(np.int16)
            # No time stamp in the gzip header: the same example every time.
            packed = gzip.compress(nib.Nifti1Image(volume, affine).to_bytes(), mtime=0)
            record[modality] = base64.b64encode(packed).decode("ascii")
        return record


# ---------------------------------------------------------------- parts


def chosen_precision(settings: BratsPredictConfig, bundle: Bundle, device: str) -> Any:
    """What `predict.precision` means here: auto is what ``schema.json:safe_precision`` says for the device.

    A CPU without bfloat16 arithmetic only emulates it, slower than float32: auto stays with float32 there.
    """
    if settings.precision != "auto":
        return settings.precision
    safe = dict(bundle.schema.get("safe_precision") or {}).get(device, "float32")
    return "float32" if device == "cpu" and not cpu_has_bfloat16() else safe


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has AVX-512 bfloat16 products (or AMX, which implies them)."""
    import torch

    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def region_masks(
    networks: Sequence[Any],
    image: NDArray[np.float32],
    sliding: Sliding,
    maps: Sequence[AxisMap],
    level: float,
    probabilities: NDArray[np.float32] | None = None,
    tick: Tick | None = None,
) -> NDArray[np.bool_]:
    """Masks (3, D, H, W) on the grid that `maps` lead to, of logits above `level`: filled slab by slab from the stream.

    `image` (C, D, H, W) lies on the networks' grid. `probabilities`, of the target's size in the image's axis order,
    are filled on the way.
    """
    from medical.brats_seg.grid import stream_back, to_target_axes

    masks = np.zeros((len(REGIONS), *(len(line.low) for line in maps)), bool)
    stream = stream_logits(networks, image, sliding, tick=tick)
    for rows, logits in stream_back(stream, maps, BACKGROUND_LOGIT):
        masks[:, rows] = logits > level
        if probabilities is not None:
            probabilities[:, rows] = 1 / (1 + np.exp(-logits))
    turned: Any = np.ascontiguousarray(to_target_axes(masks, maps))
    return turned  # type: ignore[no-any-return]


def region_facts(masks: NDArray[np.bool_], affine: NDArray[np.float64]) -> dict[str, dict[str, Any]]:
    """Region → volume in mL, voxels, 26-connected components, bounding box [[first, last + 1], …] or null."""
    from medical.brats_seg.metrics import bounding_box
    from medical.brats_seg.postprocess import count_components

    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    facts: dict[str, dict[str, Any]] = {}
    for region, mask in zip(REGIONS, masks):
        voxels = int(mask.sum())
        facts[region] = {
            "volume_ml": round(voxels * voxel_ml, 4),
            "voxels": voxels,
            "components": count_components(mask),
            "box": [[s.start, s.stop] for s in bounding_box(mask)] if voxels else None,
        }
    return facts


def _warnings(masks: NDArray[np.bool_], images: NDArray[np.float32]) -> list[str]:
    if not masks.any():
        return ["no tumour found"]
    share = int(masks[REGIONS.index("wt")].sum()) / max(int(images.any(axis=0).sum()), 1)
    if share > _LARGEST_SHARE:
        return [f"{share:.0%} of the head is called tumour; the input is probably not what the model knows"]
    return []


def _with_data(config: BratsConfig, **changes: Any) -> BratsConfig:
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def _refuse_mixed(bundles: Sequence[Bundle]) -> None:
    """Networks that see different inputs cannot be averaged."""
    first = bundles[0].config(BratsConfig).data
    for other in bundles[1:]:
        data = other.config(BratsConfig).data
        for key in ("modalities", "orientation", "spacing_mm"):
            if getattr(data, key) != getattr(first, key):
                raise ModelUnusable(
                    f"{other.path / 'config.yaml'}:data.{key}: found {getattr(data, key)}; "
                    f"{getattr(first, key)} wanted, as in {bundles[0].path}; average models of one recipe only"
                )


def _nest(options: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": v}`` → ``{"a": {"b": v}}``."""
    out: dict[str, Any] = {}
    for key, value in options.items():
        out = merge(out, nested(key.split("."), value))
    return out


def _big_array(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros; on disk without a name when large, gone with the last reference."""
    if int(np.prod(shape)) * 4 <= _IN_MEMORY_BYTES:
        return np.zeros(shape, np.float32)
    return np.memmap(tempfile.TemporaryFile(), np.float32, "w+", shape=shape)


def _decoded(record: Mapping[str, Any], modality: str) -> bytes:
    text = record.get(modality)
    if not isinstance(text, str) or not text:
        raise ItemError("request", "nothing", "base64 text of a NIfTI file", "send it", modality)
    if len(text) > MAX_REQUEST_BYTES * 4 // 3 + 4:
        raise ItemError(
            "request",
            f"{len(text):,} characters",
            f"at most {MAX_REQUEST_BYTES / 2**20:.0f} MiB a file",
            "predict large cases from files: `pipelines predict brats-seg`",
            modality,
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ItemError(
            "request", "not base64 text", "base64 of a .nii or .nii.gz", "encode it", modality
        ) from None
