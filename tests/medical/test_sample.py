"""Synthetic heads: repeatable, on the right grid, and with the contrasts that real examinations have."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from medical.brats_seg.cases import discover, read_case
from medical.brats_seg.config import BratsConfig
from medical.brats_seg.grid import normalise
from medical.brats_seg.labels import encode
from medical.brats_seg.sample import SampleCase, make_case, write_cases
from medical.brats_seg.simulator.anatomy import ASSET, FIELD_MM, MAPS, Head, pick, template
from medical.brats_seg.simulator.contrast import FLAIR, T1, T1CE, T2, draw_means

CUBE = (1.875, 1.875, 1.2109375)


@cache
def case(seed: int, spacing: float = 2.5, lesions: bool = True) -> SampleCase:
    return make_case(seed, spacing_mm=(spacing,) * 3, lesions=lesions)


def _scored(one: SampleCase) -> np.ndarray:
    return np.stack([normalise(channel.copy()) for channel in one.images])


def test_a_seed_is_a_case() -> None:
    first, again, other = (make_case(seed, spacing_mm=(3, 3, 3)) for seed in (4, 4, 5))
    assert first.images.tobytes() == again.images.tobytes()
    assert first.label.tobytes() == again.label.tobytes()
    assert first.images.tobytes() != other.images.tobytes()


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [((3.0, 3.0, 3.0), (80, 80, 52)), (CUBE, (128, 128, 128)), ((2.0, 2.5, 5.0), (120, 96, 31))],
)
def test_grid_and_values(spacing: tuple[float, float, float], shape: tuple[int, int, int]) -> None:
    one = make_case(2, spacing_mm=spacing)
    assert one.images.shape == (4, *shape) and one.images.dtype == np.float32
    assert one.label.shape == shape and one.label.dtype == np.uint8
    assert set(np.unique(one.label)) <= {0, 1, 2, 4} and one.label.any()
    assert np.array_equal(
        one.affine, [[-spacing[0], 0, 0, 0], [0, -spacing[1], 0, 239], [0, 0, spacing[2], 0], [0, 0, 0, 1]]
    )
    inside = (one.images != 0).all(axis=0)
    assert np.array_equal(inside, (one.images != 0).any(axis=0)), "one brain mask for all modalities"
    assert not one.label[~inside].any()
    assert one.images.min() == 0 and 100 < one.images[:, inside].mean() < 2000
    litres = inside.sum() * np.prod(spacing) / 1e6
    assert 1.0 < litres < 2.0
    border = np.ones(shape, bool)
    border[2:-2, 2:-2, 1:] = False
    assert not inside[border].any()


def test_one_head_at_every_voxel_size() -> None:
    coarse, fine = case(6, 4.0), case(6, 2.0)
    volumes = [(c.images[0] != 0).sum() * s**3 for c, s in ((coarse, 4.0), (fine, 2.0))]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.05)
    tumours = [(c.label > 0).sum() * s**3 for c, s in ((coarse, 4.0), (fine, 2.0))]
    assert tumours[0] == pytest.approx(tumours[1], rel=0.25)


def test_regions_nest() -> None:
    core, whole, enhancing = encode(case(1).label, "brats2021")
    assert not (core & ~whole).any() and not (enhancing & ~core).any()
    assert 0 < enhancing.sum() < core.sum() < whole.sum()


def test_no_lesions() -> None:
    one = case(3, lesions=False)
    assert not one.label.any() and one.images.any()


def test_normal_tissue_has_the_contrast_of_its_modality() -> None:
    for seed in range(3):
        z = _scored(case(seed, lesions=False))
        # The same head without noise tells which voxel is which tissue.
        axes = tuple((np.arange(n) + 0.5) * 2.5 - 0.5 for n in z.shape[1:])
        head = Head.draw(np.random.default_rng(seed).spawn(4)[0])
        places = head.places(axes)  # type: ignore[arg-type]
        brain = (z[0] != 0) & (pick("brain", places) > 0.95)
        grey, white, fluid = (
            pick(name, places) > level for name, level in (("gm", 0.9), ("wm", 0.95), ("ventricle", 0.8))
        )
        g, w, f = (z[:, part & brain].mean(axis=1) for part in (grey, white, fluid))
        assert f[T1] < g[T1] < w[T1] and f[T1CE] < w[T1CE]
        assert f[T2] > g[T2] > w[T2]
        assert f[FLAIR] < min(g[FLAIR], w[FLAIR]) - 0.5


def test_tumour_has_the_contrast_of_its_parts() -> None:
    for seed in (0, 1, 4):
        one = case(seed)
        z, label = _scored(one), one.label
        normal = (label == 0) & (z[0] != 0)
        if (label == 4).sum() > 30:
            assert z[T1CE][label == 4].mean() > z[T1CE][label == 2].mean() + 0.4
        assert z[FLAIR][label == 2].mean() > z[FLAIR][normal].mean() + 0.7
        assert z[T2][label == 2].mean() > z[T2][normal].mean()


def test_z_scores_are_those_of_patients() -> None:
    """Means over patients (224 cubes around tumours): 2.1, 2.0 for FLAIR in 4 and 2, 2.1 for T1ce in 4."""
    seen: dict[int, list[np.ndarray]] = {0: [], 1: [], 2: [], 4: []}
    for seed in range(20, 29):
        one = case(seed, 3.0)
        z = _scored(one)
        for value, means in seen.items():
            part = (one.label == value) & (z[0] != 0)
            if part.sum() > 40:
                means.append(z[:, part].mean(axis=1))
    found = {value: np.mean(means, axis=0) for value, means in seen.items()}
    assert np.abs(found[0]).max() < 0.3
    assert found[2][FLAIR] == pytest.approx(1.9, abs=0.6)
    assert found[4][T1CE] == pytest.approx(2.1, abs=0.7)
    assert found[1][T1CE] == pytest.approx(-0.35, abs=0.6)


def test_drawn_means_keep_their_order_and_spread() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([draw_means(rng)[0] for _ in range(400)])
    assert (drawn[:, 1, T1] > drawn[:, 0, T1]).all() and (drawn[:, 1, T2] < drawn[:, 0, T2]).all()
    assert drawn[:, 2, FLAIR].std() == pytest.approx(1.0, abs=0.15)
    assert np.corrcoef(drawn[:, 2, T1], drawn[:, 2, T1CE])[0, 1] == pytest.approx(0.54, abs=0.12)


def test_a_label_map_is_painted_where_it_was() -> None:
    given = np.zeros((128, 128, 128), np.uint8)
    given[40:56, 60:76, 70:90] = 2
    given[44:52, 64:72, 75:85] = 4
    given[46:50, 66:70, 78:82] = 1
    one = make_case(9, spacing_mm=(2.5, 2.5, 2.5), label_map=given)
    assert set(np.unique(one.label)) == {0, 1, 2, 4}
    millilitres = (one.label > 0).sum() * 2.5**3 / 1000
    assert millilitres == pytest.approx((given > 0).sum() * np.prod(CUBE) / 1000, rel=0.45)
    middle = np.argwhere(one.label).mean(axis=0) * 2.5
    wanted = np.array([47.5, 67.5, 79.5]) * CUBE
    mirrored = np.array([240 - wanted[0], *wanted[1:]])
    assert min(np.linalg.norm(middle - wanted), np.linalg.norm(middle - mirrored)) < 15
    empty = make_case(9, spacing_mm=(4, 4, 4), label_map=np.zeros((128, 128, 128), np.uint8))
    assert not empty.label.any()


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="spacing"):
        make_case(0, spacing_mm=(0.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="three axes"):
        make_case(0, spacing_mm=(4, 4, 4), label_map=np.zeros((4, 4), np.uint8))


def test_written_cases_are_read_without_fault(tmp_path: Path) -> None:
    paths = write_cases(tmp_path / "a", 2, seed=7)
    again = write_cases(tmp_path / "b", 2, seed=7)
    assert [p.name for p in paths] == [p.name for p in again] and paths[0].name.startswith("BraTS2021_9")
    for one, other in zip(
        sorted((tmp_path / "a").rglob("*.gz")), sorted((tmp_path / "b").rglob("*.gz")), strict=True
    ):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size < 1 << 20
    found = discover([tmp_path / "a"])
    assert len(found) == 2
    for files in found:
        read = read_case(files, BratsConfig(), with_label=True)
        assert not read.warnings and read.convention == "brats2021"
        assert read.label is not None and read.label.any()
        assert read.reference.header["qform_code"] == 1 and read.reference.header["sform_code"] == 1
        assert read.reference.header.get_data_dtype() == np.int16


def test_the_template_is_small_and_whole() -> None:
    assert ASSET.stat().st_size < 1_500_000
    notice = (ASSET.parent / "LICENSE-icbm152.txt").read_text(encoding="utf-8")
    assert "McGill University. Permission to use, copy, modify" in " ".join(notice.split())
    maps = template()
    assert set(MAPS) <= set(maps)
    litres = {name: float(maps[name].sum()) * 1.5**3 / 1e6 for name in MAPS}
    assert 1.7 < litres["brain"] < 2.1 and 0.01 < litres["ventricle"] < 0.06 < litres["wm"] < litres["gm"]
    assert all(n * 1.5 < size for n, size in zip(maps["gm"].shape, (*FIELD_MM[:2], 165), strict=True))
