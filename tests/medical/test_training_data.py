"""What a network is trained on: the grid, crops, patch sets, splits, and what a run says of its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medical.brats_seg.augment import augmentation, augmented, crop_start
from medical.brats_seg.cases import check_dataset, discover, read_case
from medical.brats_seg.config import BratsConfig
from medical.brats_seg.data import BratsData, Example, to_network_grid
from medical.brats_seg.held_out import held_out
from medical.brats_seg.patches import check_patch_set, is_patch_set, read_patch_set, split_patches
from medical.brats_seg.pipeline import PIPELINE
from medical.brats_seg.sample import write_cases
from medical.brats_seg.task import BratsTask, build_loss
from shared.config import resolve
from shared.errors import DataInvalid
from shared.training.loader import Draw

SMALL = [
    "data.spacing_mm=[5,5,5]",
    "train.crop=[16,16,16]",
    "predict.window=[32,32,32]",
    "model.window_size=4",
]


def small(*sets: str) -> BratsConfig:
    config = PIPELINE.resolve("smoke", sets=[*SMALL, *sets])
    assert isinstance(config, BratsConfig)
    return config


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    write_cases(folder, 4, seed=3)
    return folder


@pytest.fixture(scope="module")
def patch_set(tmp_path_factory: pytest.TempPathFactory, cases: Path) -> Path:
    """Six patches of six patients, with label maps of eight, and complete cases beside them."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    (root / "lesion_cubes").mkdir()
    (root / "label_maps").mkdir()
    (root / "cases").symlink_to(cases, target_is_directory=True)
    y = rng.choice(np.array([0, 1, 2, 4], np.uint8), (6, 16, 16, 16))
    x = np.stack([np.full((6, 16, 16, 16), 16 * (c + 1), np.int8) for c in range(4)], axis=1)
    patients = np.array([f"P{i}" for i in range(6)])
    scale = np.float32(1 / 16)
    np.savez(root / "lesion_cubes" / "cubes.npz", x=x, y=y, patient=patients, scale=scale)
    maps = {f"P{i}": np.zeros((16, 16, 16), np.uint8) for i in range(8)}
    for volume in maps.values():
        volume[6:10, 6:10, 6:10] = 2
    np.savez(root / "label_maps" / "set_labels_16.npz", **maps)
    return root


# ---------------------------------------------------------------- grid


def test_whole_head_is_standardised_before_the_grid_changes(cases: Path) -> None:
    config = small("data.spacing_mm=null", "data.orientation=RAS")
    case = read_case(discover([cases])[0], config, with_label=True)
    image, grid = to_network_grid(case, config.data)
    assert np.sign(np.diag(grid.affine)[:3]).tolist() == [1, 1, 1]
    np.testing.assert_array_equal(image[0][::-1, ::-1] != 0, case.images[0] != 0)  # LPS to RAS: two flips
    for channel in image:
        inside = channel[channel != 0]
        assert inside.mean() == pytest.approx(0, abs=1e-4)
        assert inside.std() == pytest.approx(1, abs=1e-3)


def test_example_is_padded_to_a_crop_and_keeps_its_labels(cases: Path) -> None:
    config = small("train.crop=[64,64,64]", "data.spacing_mm=[2.8,2.8,2.8]")
    case = read_case(discover([cases])[0], config, with_label=True)
    example = Example.of(case, config)
    assert example.label.shape == (86, 86, 64)
    assert case.label is not None
    for value in (1, 2, 4):
        assert (example.label == value).sum() == (case.label == value).sum()
    assert (example.label.reshape(-1)[example.tumour] > 0).all()


# ---------------------------------------------------------------- crops


def test_crops_follow_the_tumour_as_often_as_asked() -> None:
    label = np.zeros((40, 40, 40), np.uint8)
    label[30:32, 30:32, 30:32] = 2
    tumour, rng = np.flatnonzero(label), np.random.default_rng(0)
    starts = np.array([crop_start(label.shape, (16, 16, 16), tumour, 1.0, rng) for _ in range(50)])
    assert (np.abs(starts + 8 - 30) <= 7).all()
    assert starts.max() <= 24
    starts = np.array([crop_start(label.shape, (16, 16, 16), tumour, 0.0, rng) for _ in range(400)])
    assert starts.min() == 0 and starts.max() == 24
    assert starts.mean() == pytest.approx(12, abs=1.5)


def test_augmentation_is_a_function_of_the_seed_and_keeps_labels_whole() -> None:
    config = small("train.deform=1", "train.degrade=1")
    rng = np.random.default_rng(1)
    label = (rng.random((3, 16, 16, 16)) > 0.5).astype(np.float32)
    item = {"image": rng.normal(size=(4, 16, 16, 16)).astype(np.float32), "label": label}
    steps = augmentation(config.train)
    one, other, again = (augmented(steps, item, seed) for seed in (5, 6, 5))
    assert torch.equal(one["image"], again["image"]) and torch.equal(one["label"], again["label"])
    assert not torch.equal(one["image"], other["image"])
    assert set(one["label"].unique().tolist()) == {0.0, 1.0}


def test_flips_move_image_and_label_together() -> None:
    config = small("train.flip=1", "train.scale_intensity=0", "train.shift_intensity=0")
    field = np.arange(4 * 8**3, dtype=np.float32).reshape(4, 8, 8, 8)
    out = augmented(augmentation(config.train), {"image": field, "label": field[:3]}, 0)
    np.testing.assert_array_equal(out["image"], field[:, ::-1, ::-1, ::-1])
    np.testing.assert_array_equal(out["label"], field[:3, ::-1, ::-1, ::-1])


# ---------------------------------------------------------------- the three kinds of data set


def test_embedded_sample_is_the_same_twice_and_says_so() -> None:
    config = small()
    one, other = BratsData(config), BratsData(config)
    one.setup("fit")
    other.setup("fit")
    assert one.facts() == other.facts()
    assert one.facts().items == 5
    first, second = next(iter(one.train_dataloader())), next(iter(other.train_dataloader()))
    assert torch.equal(first["image"], second["image"])
    assert first["image"].shape == (2, 4, 16, 16, 16)
    assert first["label"].shape == (2, 3, 16, 16, 16)
    moved = BratsData(small("seed=1"))
    moved.setup("fit")
    assert moved.facts().fingerprint != one.facts().fingerprint


def test_cases_are_split_and_facts_change_with_content(cases: Path) -> None:
    config = small(f"data.path={cases}", "data.folds=2")
    data = BratsData(config)
    data.setup("fit")
    scored, patches = held_out(config)
    assert patches is None
    assert len(scored) == 2 and len(held_out(config, everything=True)[0]) == 4
    assert sum(1 for _ in data.val_dataloader()) == 2
    assert data.facts().items == 4
    assert any("split by patient" in note for note in data.facts().notes)
    uncached = BratsData(config.model_copy(update={"data": config.data.model_copy(update={"cache": False})}))
    uncached.setup("fit")
    assert torch.equal(
        next(iter(data.train_dataloader()))["image"], next(iter(uncached.train_dataloader()))["image"]
    )


def test_a_fold_without_cases_is_refused(cases: Path) -> None:
    config = small(f"data.path={cases}", "data.folds=9", "data.fold=8")
    with pytest.raises(DataInvalid, match="fold 8 of 9 leaves 4 cases"):
        BratsData(config).setup("fit")


def patches_config(path: Path, *sets: str) -> BratsConfig:
    return small(f"data.path={path}", "data.synthetic_cases=2", "data.exclude_patients=[P0]", *sets)


def test_patch_set_has_modalities_in_the_asked_order_and_disjoint_patients(patch_set: Path) -> None:
    assert is_patch_set(patch_set)
    whole = read_patch_set(patch_set, ("flair", "t1ce", "t1", "t2"))
    assert [float(channel.mean()) for channel in whole.image(0)] == [4.0, 2.0, 1.0, 3.0]
    train, val = split_patches(whole, 3, 1, ["P0"])
    known = [set(side.patient) | set(side.maps) for side in (train, val)]
    assert not known[0] & known[1]
    assert known[0] | known[1] == {f"P{i}" for i in range(1, 8)}


def test_patch_set_mixes_real_and_made_in_the_asked_share(patch_set: Path) -> None:
    data = BratsData(patches_config(patch_set, "data.real_fraction=0.25", "train.crops_per_epoch=40"))
    data.setup("fit")
    dataset = data._train
    names = [dataset.name(index) for index in range(len(dataset))]
    assert sum(name.startswith("patch") for name in names) == 10
    assert len(names) == 40
    item = dataset[Draw(39, 7)]
    assert item["image"].shape == (4, 16, 16, 16)
    assert "complete cases, only scored" in " ".join(data.facts().notes)


def test_patch_set_of_another_size_or_orientation_is_refused(patch_set: Path) -> None:
    with pytest.raises(DataInvalid, match=r"train\.crop"):
        BratsData(patches_config(patch_set, "train.crop=[32,32,32]")).setup("fit")
    with pytest.raises(DataInvalid, match="LPS"):
        BratsData(patches_config(patch_set, "data.orientation=RAS")).setup("fit")


def test_every_fault_of_a_patch_set_is_listed_at_once(tmp_path: Path) -> None:
    (tmp_path / "lesion_cubes").mkdir()
    y = np.full((1, 4, 4, 4), 3, np.uint8)
    x = np.zeros((1, 4, 4, 4, 4), np.int8)
    common = {"x": x, "patient": np.array(["A"]), "scale": np.float32(0.1)}
    np.savez(tmp_path / "lesion_cubes" / "a.npz", y=y, **common)
    np.savez(tmp_path / "lesion_cubes" / "b.npz", y=y[:, :2], **common)
    np.savez(tmp_path / "lesion_cubes" / "c.npz", x=x)
    (tmp_path / "lesion_cubes" / "d.npz").write_bytes(b"PK\x03\x04 cut")
    np.savez(tmp_path / "lesion_cubes" / "e.npz", y=0 * y, modalities=["t1", "t2", "flair", "pd"], **common)
    np.savez(tmp_path / "lesion_cubes" / "f.npz", y=0 * y, **(common | {"scale": np.array([0.1, 0.2])}))
    np.savez(tmp_path / "lesion_cubes" / "g.npz", y=0 * y, **(common | {"x": x.astype(np.float32)}))
    np.savez(tmp_path / "lesion_cubes" / "h.npz", y=0 * y, **common)
    small_patches = common | {"x": x[:, :, :2, :2, :2]}
    np.savez(tmp_path / "lesion_cubes" / "i.npz", y=0 * y[:, :2, :2, :2], **small_patches)
    np.savez_compressed(tmp_path / "lesion_cubes" / "j.npz", y=0 * y, **common)
    damaged = bytearray((tmp_path / "lesion_cubes" / "j.npz").read_bytes())
    damaged[40:60] = b"\xff" * 20
    (tmp_path / "lesion_cubes" / "j.npz").write_bytes(damaged)
    faults = {Path(fault.source).name: str(fault) for fault in check_patch_set(tmp_path)}
    assert set(faults) == {*(f"{letter}.npz" for letter in "abcdefgj"), "lesion_cubes"}
    assert "3 (64 voxels)" in faults["a.npz"]
    assert "no y, patient, scale" in faults["c.npz"]
    assert "modalities t1, t2, flair, pd" in faults["e.npz"]
    assert "one size" in faults["lesion_cubes"]


def test_the_cases_beside_patches_are_checked_too(patch_set: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    for name in ("lesion_cubes", "label_maps"):
        (root / name).symlink_to(patch_set / name, target_is_directory=True)
    (root / "cases" / "one").mkdir(parents=True)
    (root / "cases" / "one" / "one_flair.nii.gz").write_bytes(b"")
    (fault,) = check_dataset(small(f"data.path={root}"))
    assert "no t1ce, t1, t2" in fault.found


def test_a_patch_set_of_one_side_only_is_refused(patch_set: Path) -> None:
    with pytest.raises(DataInvalid, match="leaves 5 patches to train on and 0 held out"):
        BratsData(patches_config(patch_set, "data.fold=9")).setup("fit")


def test_real_patches_have_the_documented_numbers(data_dir: Path) -> None:
    whole = read_patch_set(data_dir / "brats", ("flair", "t1ce", "t1", "t2"))
    assert (len(whole), len(set(whole.patient)), len(whole.maps)) == (225, 224, 261)
    assert [int((whole.y == value).sum()) for value in (0, 1, 2, 4)] == [3566891, 1007107, 1893843, 904959]
    train, val = split_patches(whole, 5, 0, ["BraTS20_Training_133"])
    assert "BraTS20_Training_133" not in (*train.patient, *val.patient, *train.maps, *val.maps)
    assert (len(train), len(val)) == (179, 45)


# ---------------------------------------------------------------- the task


def test_losses_have_the_documented_values() -> None:
    """Zero logits against a half-full target; an empty target; a perfect answer."""
    loss = build_loss(BratsConfig().train)
    half = torch.zeros(1, 3, 8, 8, 8)
    half[:, :, :4] = 1
    empty = torch.zeros_like(half)
    assert loss(torch.zeros_like(half), half).item() == pytest.approx(0.5, abs=1e-4)
    assert loss(torch.zeros_like(half), empty).item() == pytest.approx(1.0, abs=1e-4)
    assert loss(torch.full_like(half, -50.0), empty).item() == pytest.approx(0.0, abs=1e-4)
    assert loss((half * 2 - 1) * 50, half).item() == pytest.approx(0.0, abs=1e-4)
    squared = build_loss(resolve(BratsConfig, [], ["train.squared_dice=true"]).train)
    assert squared(torch.zeros_like(half), half).item() == pytest.approx(1 / 3, abs=1e-4)


def test_validation_scores_patches_and_whole_heads_apart() -> None:
    task = BratsTask(small())

    class Known(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return (image[:, :3] > 0).float() * 20 - 10

    task.network = Known()
    logged: dict[str, float] = {}
    task.log_dict = lambda metrics, **_: logged.update(metrics)  # type: ignore[method-assign]
    for size, right in ((16, True), (40, False)):
        image = torch.zeros(1, 4, size, size, size)
        image[:, :, 4:8, 4:8, 4:8] = 1.0
        label = image[:, :3].clone()
        if not right:
            label[:, :, 4:6] = 0  # half of what the network says
        task.validation_step({"image": image, "label": label}, 0)
    task.on_validation_epoch_end()
    assert logged["val/patch_dice_wt"] == 1.0
    assert logged["val/head_dice_wt"] == pytest.approx(2 / 3)
    assert logged["val/dice_mean"] == pytest.approx(5 / 6)


def test_the_network_learns_from_the_channels_not_from_their_order() -> None:
    """A few steps on one crop lower the loss; swapped channels raise it again (guards against channel mistakes)."""
    torch.manual_seed(0)
    config = small("train.lr=0.01", "train.flip=0")
    data = BratsData(config)
    data.setup("fit")
    task = BratsTask(config)
    batch = next(iter(data.train_dataloader()))
    optimiser = torch.optim.AdamW(task.network.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = task.loss(task.network(batch["image"]), batch["label"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    with torch.no_grad():
        swapped = task.loss(task.network(batch["image"].flip(1)), batch["label"]).item()
    assert swapped > 1.1 * losses[-1], (swapped, losses[-1])


@pytest.mark.slow
def test_the_paper_preset_takes_two_real_steps_at_96() -> None:
    """The published network, loss and optimiser on a made head of 1 mm; only the crop and the precision are a CPU's."""
    import pytorch_lightning as pl

    sets = [
        "train.crop=[96,96,96]",
        "train.batch_size=1",
        "train.precision=32-true",
        "data.synthetic_cases=2",
    ]
    config = PIPELINE.resolve("paper", sets=[*sets, "data.folds=2", "data.workers=0", "train.tumour_crops=1"])
    assert isinstance(config, BratsConfig)
    task, data = BratsTask(config), BratsData(config)
    before = {name: value.clone() for name, value in task.network.named_parameters()}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, data)
    assert trainer.global_step == 2
    moved = [name for name, value in task.network.named_parameters() if not torch.equal(value, before[name])]
    assert len(moved) == len(before)
    assert all(bool(torch.isfinite(value).all()) for value in task.network.parameters())
