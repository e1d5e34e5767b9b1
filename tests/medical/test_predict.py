"""Files in, files out: the mask lies on the case's own grid in its own convention, whatever the network's grid is."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medical.brats_seg.config import BratsConfig
from medical.brats_seg.model import build_network
from medical.brats_seg.predict import BratsPredictor, Prediction, chosen_precision
from shared.bundle import Bundle
from shared.config import resolve
from shared.errors import ItemError, ModelUnusable, ResourcesExhausted, UsageError
from shared.pipeline import Item
from tests.samples import LPS, MODALITIES, head, write_case, write_nifti

BRIGHT = 1.5
SMALL = (
    "model.feature_size=12",
    "model.stages=2",
    "model.window_size=4",
    "model.norm=batch",
    "predict.window=[16,16,16]",
    "predict.picture=false",
)
TURNS = {
    "LPS": LPS,
    "RAS": np.diag([1.0, 1.0, 1.0, 1.0]),
    "SAR, permuted": np.array([[0, 0, 1, -9], [0, 1, 0, 4], [1, 0, 0, 7], [0, 0, 0, 1]], float),
    "oblique": np.array(
        [[-0.995, 0.0998, 0, 3], [-0.0998, -0.995, 0, 9], [0, 0, 1, -2], [0, 0, 0, 1]], float
    ),
}


class Threshold(nn.Module):
    """A network that can be predicted by hand: whole tumour where FLAIR is bright, enhancing where t1ce is."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(BRIGHT))

    def forward(self, x: Tensor) -> Tensor:
        flair, t1ce = x[:, :1] - 0.5, x[:, 1:2] - self.level
        return 20 * torch.cat([t1ce, flair, t1ce], dim=1)


def config(*sets: str) -> BratsConfig:
    return resolve(BratsConfig, [], [*SMALL, *sets])


def make_bundle(
    path: Path, network: nn.Module, *sets: str, schema: Mapping[str, Any] | None = None
) -> Bundle:
    return Bundle.save(
        path, pipeline="brats-seg", config=config(*sets), state_dict=network.state_dict(), schema=schema
    )


@pytest.fixture
def threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle of `Threshold`."""
    monkeypatch.setattr("medical.brats_seg.model.build_network", lambda *_: Threshold())
    return make_bundle(tmp_path / "threshold", Threshold())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small Swin UNETR with random weights."""
    torch.manual_seed(0)
    network = build_network(config().model, 4, 3)
    return make_bundle(tmp_path_factory.mktemp("bundles") / "tiny", network)


def predicted(predictor: BratsPredictor, folder: Path) -> Prediction:
    (item,) = predictor.discover([folder])
    assert item.fault is None
    return predictor.predict(item)


def written(predictor: BratsPredictor, folder: Path, out: Path) -> tuple[Any, dict[str, Any]]:
    """(the mask as nibabel reads it, the JSON facts) of one case."""
    result = predicted(predictor, folder)
    out.mkdir()
    predictor.write(result, out)
    name = result.facts["id"]
    return nib.load(out / f"{name}_seg.nii.gz"), json.loads((out / f"{name}.json").read_text())


def by_hand(images: Mapping[str, np.ndarray], enhancing: int) -> np.ndarray:
    """What `Threshold` must find: standardise over the head, compare, decode."""

    def standard(channel: np.ndarray) -> np.ndarray:
        inside = channel != 0
        return np.where(inside, (channel - channel[inside].mean()) / channel[inside].std(), 0)

    bright = standard(images["t1ce"].astype(float)) > BRIGHT
    labels = np.where(standard(images["flair"].astype(float)) > 0.5, 2, 0)
    labels[bright] = enhancing
    return labels


# ---------------------------------------------------------------- geometry and convention


@pytest.mark.parametrize("affine", list(TURNS.values()), ids=list(TURNS))
@pytest.mark.parametrize("orientation", ["RAS", "LPS"])
def test_the_mask_lies_where_the_case_does(
    threshold: Bundle, tmp_path: Path, affine: np.ndarray, orientation: str
) -> None:
    bundle = make_bundle(tmp_path / "turned", Threshold(), f"data.orientation={orientation}")
    folder = write_case(tmp_path / "in", affine=affine, label=False)
    mask, facts = written(BratsPredictor(bundle, {}), folder, tmp_path / "out")
    images, tissue = head(seed=1)
    data = np.asarray(mask.dataobj)
    np.testing.assert_array_equal(data, by_hand(images, 4))
    assert data.dtype == np.uint8 and set(np.unique(data)) == {0, 2, 4}
    assert (data[tissue == 3] == 4).mean() > 0.95  # it did find the rim
    np.testing.assert_allclose(mask.affine, affine, atol=1e-5)
    assert int(mask.header["sform_code"]) == 1
    assert facts["shape"] == list(tissue.shape)


@pytest.mark.parametrize(
    ("style", "option", "convention", "enhancing"),
    [
        ("brats2021", "auto", "brats2021", 4),
        ("brats2023", "auto", "brats2023", 3),
        ("brats2021", "brats2023", "brats2023", 3),
        ("brats2023", "brats2021", "brats2021", 4),
    ],
)
def test_labels_speak_the_cases_convention_or_the_asked_one(
    threshold: Bundle, tmp_path: Path, style: str, option: str, convention: str, enhancing: int
) -> None:
    folder = write_case(tmp_path / "in", style=style)
    mask, facts = written(BratsPredictor(threshold, {"labels": option}), folder, tmp_path / "out")
    assert set(np.unique(np.asarray(mask.dataobj))) == {0, 2, enhancing}
    assert facts["convention"] == convention


def test_anisotropic_voxels_go_through_one_millimetre_and_back(threshold: Bundle, tmp_path: Path) -> None:
    spacing = (2.0, 1.0, 3.0)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    shape = (16, 30, 10)
    folder = write_case(tmp_path / "in", shape=shape, affine=affine)
    mask, facts = written(BratsPredictor(threshold, {}), folder, tmp_path / "out")
    assert mask.shape == shape and facts["spacing_mm"] == list(spacing)
    np.testing.assert_allclose(mask.header.get_zooms(), spacing, atol=1e-6)
    images, _ = head(shape, 1)
    found, wanted = np.asarray(mask.dataobj) > 0, by_hand(images, 4) > 0
    assert 2 * (found & wanted).sum() / (found.sum() + wanted.sum()) > 0.9
    voxels = facts["regions"]["wt"]["voxels"]
    assert facts["regions"]["wt"]["volume_ml"] == pytest.approx(voxels * 6 / 1000, abs=1e-4)


def test_axes_of_a_real_network_do_not_matter(tiny: Bundle, tmp_path: Path) -> None:
    """One head stored in two orders of axes gives one mask."""
    images, _ = head(seed=3)
    straight = write_case(tmp_path / "a", 3, images=images, label=False)
    turned_affine = LPS[:, [2, 0, 1, 3]] @ np.diag([-1.0, 1, 1, 1])
    turned_affine[:3, 3] = LPS[:3, 3] + LPS[:3, 2] * (images["t1"].shape[2] - 1)
    turned_images = {name: data.transpose(2, 0, 1)[::-1] for name, data in images.items()}
    turned = write_case(tmp_path / "b", 3, images=turned_images, affine=turned_affine, label=False)
    predictor = BratsPredictor(tiny, {})
    first, second = (predicted(predictor, folder).labels for folder in (straight, turned))
    assert first.any()
    np.testing.assert_array_equal(second, first.transpose(2, 0, 1)[::-1])


# ---------------------------------------------------------------- what is written


def test_facts_say_what_was_found_and_with_what(threshold: Bundle, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "in")
    mask, facts = written(BratsPredictor(threshold, {}), folder, tmp_path / "out")
    data = np.asarray(mask.dataobj)
    for region, values in (("tc", (4,)), ("wt", (2, 4)), ("et", (4,))):
        inside = np.isin(data, values)
        found = facts["regions"][region]
        assert found["voxels"] == inside.sum()
        assert found["volume_ml"] == pytest.approx(inside.sum() / 1000, abs=1e-4)
        places = np.argwhere(inside)
        assert found["box"] == [[int(a), int(b) + 1] for a, b in zip(places.min(0), places.max(0))]
        assert found["components"] >= 1
    assert facts["id"] == folder.name
    assert set(facts["modalities"]) == set(MODALITIES)
    assert facts["model"] == [{"pipeline": "brats-seg", "hash": threshold.hash}]
    assert facts["settings"]["window"] == [16, 16, 16]


def test_a_case_without_tumour_says_so(threshold: Bundle, tmp_path: Path) -> None:
    """A threshold nothing passes: probability above 1 − 1e-9."""
    images, _ = head(seed=1)
    flat = {
        name: np.where(data != 0, images["t1"] * 0 + 400, 0).astype(np.int16) for name, data in images.items()
    }
    noise = np.random.default_rng(0).integers(-2, 3, flat["t1"].shape)
    healthy = {name: np.where(data, data + noise, 0).astype(np.int16) for name, data in flat.items()}
    healthy = {
        name: np.where(data, data + k, 0).astype(np.int16) for k, (name, data) in enumerate(healthy.items())
    }
    folder = write_case(tmp_path / "in", images=healthy, label=False)
    result = predicted(
        BratsPredictor(threshold, {"threshold": 1 - 1e-12, "min_component_voxels": 10**6}), folder
    )
    assert not result.labels.any()
    assert "no tumour found" in result.facts["warnings"]
    assert result.facts["regions"]["wt"] == {"volume_ml": 0.0, "voxels": 0, "components": 0, "box": None}


def test_probabilities_are_written_on_the_same_grid(threshold: Bundle, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "in", affine=TURNS["SAR, permuted"])
    predictor = BratsPredictor(threshold, {"save_probabilities": True})
    mask, facts = written(predictor, folder, tmp_path / "out")
    labels = np.asarray(mask.dataobj)
    for region, values in (("tc", (4,)), ("wt", (2, 4)), ("et", (4,))):
        image = nib.load(tmp_path / "out" / f"{facts['id']}_prob_{region}.nii.gz")
        map_ = np.asarray(image.dataobj)
        assert map_.dtype == np.float32 and map_.min() >= 0 and map_.max() <= 1
        np.testing.assert_allclose(image.affine, mask.affine, atol=1e-6)
        inside = map_ > 0.5
        assert (np.isin(labels, values)[inside]).all()  # nesting may add voxels, never take them away


def test_the_picture_is_a_png_and_can_be_left_out(threshold: Bundle, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "in")
    _, facts = written(BratsPredictor(threshold, {"picture": True}), folder, tmp_path / "out")
    picture = tmp_path / "out" / f"{facts['id']}_qc.png"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and picture.stat().st_size > 10_000
    written(BratsPredictor(threshold, {}), folder, tmp_path / "none")
    assert not list((tmp_path / "none").glob("*.png"))


def test_equal_runs_write_equal_bytes(tiny: Bundle, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "in")
    for run in ("a", "b"):
        written(BratsPredictor(tiny, {"picture": True}), folder, tmp_path / run)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_windows_tick(tiny: Bundle, tmp_path: Path) -> None:
    predictor = BratsPredictor(tiny, {})
    (item,) = predictor.discover([write_case(tmp_path, shape=(30, 18, 12))])
    ticks: list[tuple[int, int]] = []
    predictor.predict(item, lambda done, total: ticks.append((done, total)))
    assert ticks == [(n, ticks[-1][1]) for n in range(1, ticks[-1][1] + 1)] and len(ticks) > 1


# ---------------------------------------------------------------- bad and missing input


def test_a_missing_modality_is_refused_or_filled_and_said(threshold: Bundle, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "in", skip=("t2",), label=False)
    (item,) = BratsPredictor(threshold, {}).discover([folder])
    assert item.fault is not None and "t2" in str(item.fault)
    with pytest.raises(ItemError, match="t2"):
        BratsPredictor(threshold, {}).predict(item)
    result = predicted(BratsPredictor(threshold, {"allow_missing": True}), folder)
    assert result.labels.any()
    assert any("t2 missing" in text for text in result.facts["warnings"])


def test_too_large_a_volume_is_refused_before_the_network_runs(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Voxels of 10 mm become a thousand of 1 mm each: the network's grid counts, not the file's."""
    monkeypatch.setattr("medical.brats_seg.inference.available_bytes", lambda: 50 * 2**20)
    folder = write_case(tmp_path, affine=np.diag([-10.0, -10.0, 10.0, 1.0]), label=False)
    predictor = BratsPredictor(tiny, {})
    (item,) = predictor.discover([folder])
    with pytest.raises(ResourcesExhausted, match="160×180×120"):
        predictor.predict(item)


def test_a_wrong_option_is_a_usage_error(tiny: Bundle) -> None:
    with pytest.raises(UsageError, match="overlapp"):
        BratsPredictor(tiny, {"overlapp": 0.5})


# ---------------------------------------------------------------- several bundles, precision


def test_an_ensemble_averages_logits(threshold: Bundle, tmp_path: Path) -> None:
    """Levels −1 and 4 together act as level 1.5."""
    levels = []
    for level in (-1.0, 4.0):
        network = Threshold()
        network.level.data.fill_(level)
        levels.append(make_bundle(tmp_path / f"level-{level}", network))
    folder = write_case(tmp_path / "in")
    together = BratsPredictor(levels[0], {"ensemble": [str(levels[1].path)]})
    result = predicted(together, folder)
    np.testing.assert_array_equal(result.labels, predicted(BratsPredictor(threshold, {}), folder).labels)
    assert [model["hash"] for model in result.facts["model"]] == [bundle.hash for bundle in levels]
    assert not np.array_equal(result.labels, predicted(BratsPredictor(levels[0], {}), folder).labels)


@pytest.mark.parametrize(
    "other", ["data.orientation=LPS", "data.spacing_mm=[2,2,2]", "data.modalities=[t1,t1ce,flair,t2]"]
)
def test_models_of_different_recipes_are_not_averaged(threshold: Bundle, tmp_path: Path, other: str) -> None:
    strange = make_bundle(tmp_path / "strange", Threshold(), other)
    with pytest.raises(ModelUnusable, match=other.split("=")[0]):
        BratsPredictor(threshold, {"ensemble": [strange.path]})


@pytest.mark.parametrize(
    ("option", "safe", "wanted"),
    [
        ("auto", None, "float32"),
        ("auto", {"cpu": "bfloat16"}, "bfloat16"),
        ("auto", {"cuda": "bfloat16"}, "float32"),
        ("float32", {"cpu": "bfloat16"}, "float32"),
        ("bfloat16", None, "bfloat16"),
    ],
)
def test_bf16_only_where_measured_safe_or_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, safe: dict[str, str] | None, wanted: str
) -> None:
    monkeypatch.setattr("medical.brats_seg.predict.cpu_has_bfloat16", lambda: True)
    schema = {"safe_precision": safe} if safe else None
    bundle = make_bundle(tmp_path / "b", Threshold(), schema=schema)
    assert chosen_precision(config(f"predict.precision={option}").predict, bundle, "cpu") == wanted


def test_bf16_is_not_emulated_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medical.brats_seg.predict.cpu_has_bfloat16", lambda: False)
    bundle = make_bundle(tmp_path / "b", Threshold(), schema={"safe_precision": {"cpu": "bfloat16"}})
    assert chosen_precision(config().predict, bundle, "cpu") == "float32"
    assert chosen_precision(config("predict.precision=bfloat16").predict, bundle, "cpu") == "bfloat16"


def test_bf16_weights_run(tiny: Bundle, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "in")
    half = BratsPredictor(tiny, {"precision": "bfloat16"})
    assert {p.dtype for p in half.networks[0].parameters()} == {torch.bfloat16}
    full, low = predicted(BratsPredictor(tiny, {}), folder).masks, predicted(half, folder).masks
    assert (full == low).mean() > 0.97


# ---------------------------------------------------------------- serving


def test_the_example_record_is_answered(tiny: Bundle) -> None:
    predictor = BratsPredictor(tiny, {})
    record = predictor.example_record()
    assert set(record) == set(predictor.record_inputs) and record == predictor.example_record()
    assert sum(map(len, record.values())) < 200_000
    answer = predictor.predict_record(record)
    assert set(answer) == set(predictor.record_outputs)
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(answer["seg"])))
    given = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(record["t1"])))
    assert mask.shape == given.shape
    np.testing.assert_allclose(mask.affine, given.affine)
    for region, values in (("wt", (1, 2, 4)), ("tc", (1, 4)), ("et", (4,))):
        voxels = np.isin(np.asarray(mask.dataobj), values).sum()
        assert answer[f"volume_ml_{region}"] == pytest.approx(voxels / 1000, abs=1e-4)


def test_a_record_gives_the_mask_of_the_files(threshold: Bundle, tmp_path: Path) -> None:
    folder = write_case(tmp_path, suffix=".nii", label=False)
    (item,) = BratsPredictor(threshold, {}).discover([folder])
    record = {
        name: base64.b64encode(path.read_bytes()).decode() for name, path in item.payload.images.items()
    }
    predictor = BratsPredictor(threshold, {})
    answer = predictor.predict_record(record)
    mask = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(answer["seg"])))
    np.testing.assert_array_equal(np.asarray(mask.dataobj), predictor.predict(item).labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"t2": None}, "request:t2"),
        ({"t2": ""}, "request:t2"),
        ({"t2": "not base64!"}, "base64"),
        ({"t2": base64.b64encode(b"not an image").decode()}, "t2"),
    ],
    ids=["absent", "empty", "not base64", "not an image"],
)
def test_bad_records_are_item_errors(threshold: Bundle, change: dict[str, Any], said: str) -> None:
    predictor = BratsPredictor(threshold, {})
    record = predictor.example_record() | change
    with pytest.raises(ItemError, match=said):
        predictor.predict_record({key: value for key, value in record.items() if value is not None})


def test_too_long_a_record_is_refused(threshold: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medical.brats_seg.predict.MAX_REQUEST_BYTES", 100)
    predictor = BratsPredictor(threshold, {})
    with pytest.raises(ItemError, match="pipelines predict"):
        predictor.predict_record(predictor.example_record())


def test_items_carry_the_files_they_come_from(threshold: Bundle, tmp_path: Path) -> None:
    write_case(tmp_path, 1)
    write_case(tmp_path, 2, label=False)
    write_nifti(tmp_path / "BraTS2021_00003" / "BraTS2021_00003_t1.nii.gz", head()[0]["t1"])
    items: list[Item] = BratsPredictor(threshold, {}).discover([tmp_path])
    assert [item.id for item in items] == [f"BraTS2021_0000{n}" for n in (1, 2, 3)]
    assert [item.fault is None for item in items] == [True, True, False]
    assert all(path.is_file() for item in items for path in item.sources)


# ---------------------------------------------------------------- what the training data says, and what not


def test_training_labels_and_layout_do_not_bind_later_files(threshold: Bundle, tmp_path: Path) -> None:
    sets = ("data.labels=msd", "data.layout=msd", "data.nan=zero")
    predictor = BratsPredictor(make_bundle(tmp_path / "m", Threshold(), *sets), {})
    folder = write_case(tmp_path / "in", style="brats2023")
    assert predicted(predictor, folder).facts["convention"] == "brats2023"
    assert predictor.config.data.nan == "zero"  # the rule for NaN stays
    predictor.read_labels(config("data.labels=brats2024").data)
    result = predicted(predictor, folder)
    assert result.case.label is not None and result.case.convention == "brats2024"
    assert predictor.config.data.nan == "fail"


def test_nan_voxels_can_be_filled_when_predicting(threshold: Bundle, tmp_path: Path) -> None:
    folder = write_case(tmp_path / "in")
    path = folder / f"{folder.name}_t1.nii.gz"
    data = nib.load(path).get_fdata()
    data[8, 8, 6] = np.nan
    write_nifti(path, data.astype(np.float32))
    with pytest.raises(ItemError, match=r"1 NaN or infinite voxels.*set nan=zero"):
        predicted(BratsPredictor(threshold, {}), folder)
    result = predicted(BratsPredictor(threshold, {"nan": "zero"}), folder)
    assert any("set to 0" in warning for warning in result.facts["warnings"])


def test_a_head_that_is_mostly_tumour_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Threshold()
    monkeypatch.setattr("medical.brats_seg.model.build_network", lambda *_: network)
    monkeypatch.setattr(Threshold, "forward", lambda self, x: torch.full_like(x[:, :3], 5.0))
    predictor = BratsPredictor(make_bundle(tmp_path / "m", network), {})
    (text,) = predicted(predictor, write_case(tmp_path / "in")).facts["warnings"]
    assert "of the head is called tumour" in text


@pytest.mark.parametrize("value", ["[]", "[t1,t1]"])
def test_each_modality_is_asked_for_once(value: str) -> None:
    with pytest.raises(UsageError, match="each once"):
        config(f"data.modalities={value}")
