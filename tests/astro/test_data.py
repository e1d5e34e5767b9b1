"""Which objects are trained on, chosen with and tested; what is refused before any training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from astro.transients.config import TransientsConfig, TransientsDataConfig
from astro.transients.data import (
    TransientsData,
    check,
    infer,
    kept_classes,
    marks,
    reading_of,
    split,
    without_redshift,
)
from astro.transients.features import number_names, numbers
from astro.transients.grids import inputs_of
from astro.transients.lightcurve import TOO_FEW, WAVELENGTHS, LightCurve
from astro.transients.metrics import recalls
from astro.transients.pipeline import PIPELINE
from astro.transients.sample import CLASSES, simulate, to_frame
from astro.transients.task import grow
from shared.errors import DataInvalid, UsageError
from shared.training.loader import Draw

PARTS = ("time", "band", "flux", "error", "detected")


def objects(**number: int) -> list[LightCurve]:
    """So many objects of each class, four points each, class by class."""
    time, flux = np.arange(4.0), np.array([1.0, 50, 40, 30])
    return [
        LightCurve(f"{name}-{i}", time, np.array(list("grig")), flux, flux / 10, flux > 5, label=name)
        for name, count in number.items()
        for i in range(count)
    ]


def parts_of(curves: list[LightCurve], seed: int = 0, **over: Any) -> dict[str, str]:
    """Each object's part, by id."""
    found = split(curves, TransientsDataConfig(**over), seed)
    return {curves[i].id: part for part, rows in found.items() for i in rows}


def written(folder: Path, curves: list[LightCurve], drop: tuple[str, ...] = ()) -> Path:
    path = folder / "curves.csv"
    to_frame(curves).drop(columns=list(drop)).to_csv(path, index=False)
    return path


def config_of(path: Path | None, *sets: str, complete: bool = True) -> TransientsConfig:
    over = {} if path is None else {"data": {"path": str(path)}}
    config = PIPELINE.resolve("smoke", sets=sets, over=over)
    assert isinstance(config, TransientsConfig)
    return PIPELINE.complete(config) if complete else config


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve simulated objects of each of six classes."""
    return written(tmp_path_factory.mktemp("six"), simulate(72, 0))


def said(path: Path, *sets: str) -> list[str]:
    """The faults as a user reads them."""
    found = check(config_of(path, *sets, complete=False))
    return [
        f"{fault.severity}: {fault}".replace(str(path), "FILE").removeprefix("error: ") for fault in found
    ]


# ---------------------------------------------------------------- split


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1),
    st.integers(0, 4),
    st.integers(0, 99),
)
def test_every_object_is_in_exactly_one_part(number: dict[str, int], fold: int, seed: int) -> None:
    curves = objects(**number)
    found = split(curves, TransientsDataConfig(fold=fold), seed)
    rows = np.concatenate(list(found.values()))
    assert sorted(rows) == list(range(len(curves)))
    assert all((np.diff(part) > 0).all() for part in found.values())
    for name, count in number.items():
        has = {part: sum(curves[i].label == name for i in rows) for part, rows in found.items()}
        assert abs(has["test"] - 0.2 * count) <= 1 and abs(has["val"] - 0.1 * count) <= 1
        assert has["val"] >= 1 or count == has["test"]


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1),
    st.sampled_from([2, 3, 4, 5, 10]),
)
def test_folds_hold_every_object_out_once(number: dict[str, int], folds: int) -> None:
    curves = objects(**number)
    tests = [
        split(curves, TransientsDataConfig(test=1 / folds, validation=0.05, fold=fold), 7)["test"]
        for fold in range(folds)
    ]
    assert sorted(np.concatenate(tests)) == list(range(len(curves)))


def test_the_order_of_objects_and_other_classes_move_none() -> None:
    curves = objects(a=50, b=33)
    before = parts_of(curves)
    assert parts_of(curves[::-1]) == before
    with_more = parts_of([*objects(c=20, d=7), *curves])
    assert {name: with_more[name] for name in before} == before
    assert parts_of(curves[:50]) == {name: part for name, part in before.items() if name.startswith("a")}


@pytest.mark.parametrize("fold", [0, 1, 4])
def test_one_object_more_or_less_moves_only_those_at_the_borders(fold: int) -> None:
    """A part of a class ends at a place in the order of hashes; there are three such places when a fold begins."""
    every = objects(a=200)
    whole = parts_of(every, fold=fold)
    for left_out in range(0, 200, 20):
        fewer = parts_of(every[:left_out] + every[left_out + 1 :], fold=fold)
        moved = [name for name, part in fewer.items() if part != whole[name]]
        assert len(moved) <= 3


def test_an_object_in_two_files_is_in_one_part(tmp_path: Path) -> None:
    curves = simulate(60, 3)
    for name in ("one", "two"):
        to_frame(curves).to_csv(tmp_path / f"{name}.csv", index=False)
    config = PIPELINE.resolve("smoke", sets=[f"data.path={tmp_path}"])
    read = reading_of(config).curves
    assert len(read) == 120
    part = {read[i].id: name for name, rows in split(read, config.data, 0).items() for i in rows}
    assert all(part[curve.id] == part[f"two/{curve.id}"] for curve in curves)
    assert set(marks(read[:60]).ravel()) == set(marks(read[60:]).ravel())


def test_a_class_without_a_usable_curve(tmp_path: Path) -> None:
    short = [replace(c, **{name: getattr(c, name)[:2] for name in PARTS}) for c in simulate(60, 3)]
    curves = [each if each.label == "flare" else whole for each, whole in zip(short, simulate(60, 3))]
    to_frame(curves).to_csv(tmp_path / "a.csv", index=False)
    config = PIPELINE.resolve("smoke", sets=[f"data.path={tmp_path / 'a.csv'}"])
    assert any("flare: no object with a usable curve" in str(fault) for fault in check(config))


def test_the_seed_and_the_fold_decide() -> None:
    curves = objects(a=100)
    assert parts_of(curves) == parts_of(curves)
    assert parts_of(curves) != parts_of(curves, seed=1)
    one, two = (
        {name for name, part in parts_of(curves, fold=fold).items() if part == "test"} for fold in (0, 1)
    )
    assert len(one) == len(two) == 20 and not one & two


# ---------------------------------------------------------------- classes


def test_kept_classes() -> None:
    curves = objects(b=12, a=10, c=9)
    assert kept_classes(curves, TransientsDataConfig()) == ("a", "b")
    assert kept_classes(curves, TransientsDataConfig(smallest_class=9)) == ("a", "b", "c")
    assert kept_classes(curves, TransientsDataConfig(left_out=("a",))) == ("b",)


def test_classes_and_survey_are_the_datas_own_unless_given(table: Path) -> None:
    assert infer(config_of(table, complete=False)) == {"classes": tuple(sorted(CLASSES)), "survey": "lsst"}
    chosen = config_of(table, "data.classes=[plateau, agn]", "data.survey=lsst").data
    assert chosen.classes == ("plateau", "agn")
    data = TransientsData(config_of(table, "data.classes=[plateau, agn]"))
    assert {curve.label for curve in data.curves} == {"plateau", "agn"}
    assert set(data.labels(data.curves)[:2]) == {0, 1} and data.counts()[0] == data.counts()[1]


def test_left_out_classes_are_nowhere_but_among_the_unknown(table: Path) -> None:
    config = config_of(table, "data.left_out=[flare, agn]")
    data = TransientsData(config)
    assert config.data.classes == ("microlensing", "periodic", "plateau", "supernova")
    seen = [curve.label for part in ("train", "val", "test") for curve in data.part(part)]
    assert len(seen) == 48 and not {"flare", "agn"} & set(seen)
    assert (
        sorted({str(curve.label) for curve in data.unknown}) == ["agn", "flare"] and len(data.unknown) == 24
    )
    assert TransientsData(config_of(table)).unknown == []
    with pytest.raises(UsageError, match=r"data.left_out: 'agn' is among data.classes; it cannot be both"):
        config_of(table, "data.left_out=[agn]", "data.classes=[agn, flare]", complete=False)


# ---------------------------------------------------------------- copies


def test_first_copies_are_the_same_whatever_their_number(table: Path) -> None:
    data = TransientsData(config_of(table))
    own = data.part("train")
    assert data.copies(0) == own
    few, many = data.copies(1), data.copies(3)
    assert (len(few), len(many)) == (2 * len(own), 4 * len(own))
    for one, two in zip(few, many):
        assert one.id == two.id
        for part in PARTS:
            np.testing.assert_array_equal(getattr(one, part), getattr(two, part))
    assert [curve.label for curve in many] == [curve.label for curve in own] * 4
    again = TransientsData(config_of(table, "seed=1"))
    assert [len(c) for c in again.copies(1)] != [len(c) for c in few]


def test_trees_and_validation_see_objects_without_a_redshift_too() -> None:
    data = TransientsData(config_of(None, "data.simulated=240", "data.grid=8", "model.redshift=tokens"))
    bands = list(WAVELENGTHS["lsst"])
    names = number_names(bands, redshift=True)
    (x, y), own = data.for_trees(), data.part("train")
    z = x[:, names.index("redshift")]
    told = np.array([np.isfinite(curve.redshift) for curve in own * (len(x) // len(own))])
    assert not np.isfinite(z[~told]).any() and 0.6 < np.isfinite(z[told]).mean() < 0.8
    # All that is made of a redshift goes with it, and nothing else.
    row = int(np.flatnonzero(told & ~np.isfinite(z))[0])
    curve = replace(data.copies(4)[row], redshift=np.nan, redshift_error=np.nan)
    inputs = data.train_set.inputs.take(slice(row, row + 1))
    np.testing.assert_array_equal(x[row], numbers([curve], inputs, bands, True)[0])
    hidden = np.isnan([curve.redshift for curve in data.val_curves])
    assert hidden.sum() > np.isnan([curve.redshift for curve in data.part("val")]).sum()
    np.testing.assert_array_equal(hidden, data.val_set.inputs.redshift[:, 0].isnan().numpy())
    # So they know every class without one.
    new = [without_redshift(curve) for curve in simulate(120, 77)]
    inputs = inputs_of(new, "lsst", 8)
    given = grow(x, y, data.config).probabilities(numbers(new, inputs, bands, True)).argmax(1)
    assert recalls(data.labels(new), np.eye(6)[given]).min() > 0.3


def test_train_set_holds_objects_and_copies_in_that_order(table: Path) -> None:
    data = TransientsData(config_of(table, "train.copies=2", "data.grid=8"))
    data.setup()
    own = data.part("train")
    assert len(data.train_set) == 3 * len(own) == sum(data.counts()) == data.facts().items
    assert data.train_set.names == [curve.id for curve in own] * 3
    inputs, labels = data.train_set.batch([Draw(5, 0), Draw(0, 0)])
    assert labels.tolist() == data.labels([own[5], own[0]]).tolist()
    assert inputs.mean.shape == (2, 8, 6)
    np.testing.assert_array_equal(inputs.mean, data.train_set.inputs.mean[[5, 0]])
    assert len(data.val_set) == len(data.part("val")) == 6


def test_unusable_objects_are_tested_but_not_trained_on(tmp_path: Path) -> None:
    few = [replace(c, **{part: getattr(c, part)[:2] for part in PARTS}) for c in simulate(72, 1)[:36]]
    data = TransientsData(config_of(written(tmp_path, [*few, *simulate(72, 1)[36:]])))
    assert sum(curve.status == TOO_FEW for curve in data.curves) == 36
    assert all(len(curve) > 2 for part in ("train", "val") for curve in data.part(part))
    assert len(data.part("test")) == len(data.rows["test"])
    assert any(curve.status == TOO_FEW for curve in data.part("test"))


# ---------------------------------------------------------------- faults


def test_nothing_wrong(table: Path) -> None:
    assert said(table) == []
    assert check(config_of(None, complete=False)) == []


def test_no_labels(tmp_path: Path) -> None:
    path = written(tmp_path, simulate(6, 0), drop=("label",))
    assert said(path) == ["FILE: no object has a label; labelled objects; set data.read.label_column"]


def test_small_classes(table: Path) -> None:
    wanted = "two or more; add objects, or lower data.smallest_class"
    assert said(table, "data.smallest_class=13") == [f"FILE: no class with 13 objects or more; {wanted}"]
    left = "data.left_out=[agn, flare, microlensing, periodic, plateau]"
    assert said(table, left) == [f"FILE: one class with 10 objects or more; {wanted}"]
    assert [str(f) for f in check(config_of(None, "data.smallest_class=500", complete=False))] == [
        f"embedded sample: no class with 500 objects or more; {wanted}"
    ]


def test_classes_that_do_not_occur(table: Path) -> None:
    known = ", ".join(sorted(CLASSES))
    mend = f"classes among {known}; check the name"
    assert said(table, "data.left_out=[falre]") == [f"FILE: no object of class falre; {mend}"]
    # A model's own classes need not all be in the data it is scored on.
    assert said(table, "data.classes=[agn, kilonova]") == [
        f"warning: FILE: no object of class kilonova; {mend}"
    ]
    assert said(table, "data.classes=[Ia, II]") == [
        f"FILE: objects of {known}; one or more of Ia, II; relabel them, or choose other classes"
    ]
    assert said(table, "data.classes=[agn, flare]", "data.smallest_class=13") == []


def test_two_surveys(tmp_path: Path, table: Path, data_dir: Path) -> None:
    (tmp_path / "ours.csv").write_bytes(table.read_bytes())
    for kind in ("lightcurves", "metadata"):
        name = f"ztf_bts_{kind}.parquet"
        (tmp_path / name).write_bytes((data_dir / "astro" / name).read_bytes())
    assert said(tmp_path) == ["FILE: bands of lsst, ztf; one survey; set data.survey"]
    assert said(tmp_path, "data.survey=ztf") == []


def test_what_cannot_be_read_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    first, *rest = said(path)
    assert first.startswith("FILE") and rest == []
    with pytest.raises(DataInvalid):
        infer(config_of(path, complete=False))


def test_nothing_to_train_on_is_said_before_any_grid(tmp_path: Path) -> None:
    few = [replace(c, **{part: getattr(c, part)[:2] for part in PARTS}) for c in simulate(72, 0)]
    path = written(tmp_path, few)
    data = TransientsData(config_of(path))
    with pytest.raises(DataInvalid) as caught:
        data.setup()
    assert str(caught.value) == (
        f"{path}: usable objects: 0 (none) to train on, 0 to validate; two classes, and some of both; add objects"
    )
    one = TransientsData(config_of(None, "data.classes=[agn, kilonova]"))
    with pytest.raises(DataInvalid, match=r"^embedded sample: usable objects: 18 \(agn\) to train on, 2 to"):
        one.setup()


# ---------------------------------------------------------------- what the data are


def test_fingerprint_is_of_the_data_alone(table: Path, tmp_path: Path) -> None:
    wanted = TransientsData(config_of(table)).fingerprint()
    for sets in (
        ("seed=3", "threads=1", "train.epochs=9", "train.copies=0", "model.flux=robust", "model.trees=false"),
        ("data.grid=50", "data.fold=2", "data.test=0.3", "data.validation=0.2", "data.smallest_class=2"),
        ("data.read.duplicates=last", "predict.rates=flat", "evaluate.days=[1]", "data.simulated=99"),
        ("data.survey=lsst", f"data.classes=[{', '.join(sorted(CLASSES))}]"),
    ):
        assert TransientsData(config_of(table, *sets)).fingerprint() == wanted, sets
    copy = written(tmp_path, simulate(72, 0))
    assert TransientsData(config_of(copy)).fingerprint() == wanted


def test_fingerprint_tells_other_data(table: Path, tmp_path: Path) -> None:
    curves = simulate(72, 0)
    changed = replace(curves[0], flux=curves[0].flux + 0.001)
    others = [
        curves[:-1],
        curves[::-1],
        [changed, *curves[1:]],
        [replace(curves[0], label="flare"), *curves[1:]],
        [replace(curves[0], id="other"), *curves[1:]],
    ]
    found = {TransientsData(config_of(table)).fingerprint()}
    for number, some in enumerate(others):
        folder = tmp_path / str(number)
        folder.mkdir()
        found.add(TransientsData(config_of(written(folder, some))).fingerprint())
    found.add(TransientsData(config_of(table, "data.left_out=[agn]")).fingerprint())
    assert len(found) == 7


def test_facts(table: Path) -> None:
    data = TransientsData(config_of(table, "data.grid=8"))
    facts = data.facts()
    assert facts.source == str(table) and facts.items == len(data.train_set)
    assert (
        "lsst: 54 objects to train on, 6 to validate, 12 to test, split by object within each class"
        in facts.notes
    )
    assert facts.notes[-1] == "classes: " + ", ".join(f"{name} 12" for name in sorted(CLASSES))
    ours = TransientsData(config_of(None, "data.simulated=60", "data.grid=8", "train.copies=0")).facts()
    assert ours.source == "embedded sample" and "simulated light curves; none is real" in ours.notes


def test_a_data_set_is_read_once(table: Path) -> None:
    assert reading_of(config_of(table)) is reading_of(config_of(table, "seed=5", "train.epochs=1"))
