"""Evaluation of cases and patches: what is counted, what is left out, which pictures are kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medical.brats_seg.config import REGIONS, BratsConfig
from medical.brats_seg.evaluate import evaluate_cases, score_patches, summarise_patches
from medical.brats_seg.held_out import data_fingerprint, is_own
from medical.brats_seg.labels import encode
from medical.brats_seg.report import add_sections, card_text
from shared.bundle import Bundle
from shared.config import resolve
from shared.errors import DataInvalid, Fault, ItemError, UsageError
from shared.pipeline import DataFacts, Evaluation, Item
from shared.report.html import Report
from tests.samples import write_case

SHAPE = (24, 28, 20)


def label_map(convention: str = "brats2021", shift: int = 0) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[6 + shift : 16 + shift, 8:18, 6:14] = 2
    labels[8 + shift : 14 + shift, 10:16, 8:12] = 1
    labels[8 + shift : 12 + shift, 10:14, 8:12] = 4 if convention == "brats2021" else 3
    return labels


class Stub:
    """Predicts the reference moved by as many voxels as the item's payload says."""

    def __init__(self) -> None:
        self.config = BratsConfig()

    def predict(self, item: Item, tick: Any = None) -> Any:
        payload = dict(item.payload)
        if payload.get("broken"):
            raise ItemError(item.id, "truncated", "a whole file", "copy it again")
        convention = payload.get("convention", "brats2021")
        head = np.zeros(SHAPE, np.float32)
        head[2:-2, 2:-2, 2:-2] = 100.0
        case = SimpleNamespace(
            label=label_map(convention) if payload.get("labelled", True) else None,
            convention=convention,
            images=np.stack([head] * 4),
            affine=np.diag([1.0, 1.0, 2.0, 1.0]),
        )
        masks = np.asarray(encode(label_map(convention, payload.get("shift", 0)), convention), bool)
        return SimpleNamespace(case=case, masks=masks, facts={"seconds": 0.1, "warnings": ["odd <header>"]})


def items(*payloads: dict[str, Any]) -> list[Item]:
    return [Item(f"case-{i}", (), payload) for i, payload in enumerate(payloads)]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    payloads = ({"shift": 1}, {"convention": "brats2023"}, {"shift": 2}, {"shift": 3})
    return evaluate_cases(Stub(), items(*payloads), tmp_path_factory.mktemp("four"))  # type: ignore[arg-type]


def test_cases_are_scored_in_their_own_convention_and_spacing(four: Evaluation) -> None:
    assert four.table[1]["dice_mean"] == 1.0
    assert four.table[2]["dice_wt"] == pytest.approx(0.8)
    assert four.table[2]["volume_true_ml_wt"] == pytest.approx(10 * 10 * 8 * 2 / 1000)
    assert four.metrics["dice_wt"] == pytest.approx((0.9 + 1.0 + 0.8 + 0.7) / 4)
    assert four.metrics["cases"] == 4
    assert "seconds" not in four.metrics
    assert all(isinstance(value, float) for value in four.metrics.values())


def test_worst_median_and_best_are_kept(four: Evaluation) -> None:
    captions = {path.name: caption for caption, path in four.figures.items()}
    assert "case-3" in captions["worst-close-up.png"]
    assert "case-2" in captions["median-overview.png"]  # of an even number, the lower one
    assert "case-1" in captions["best-overview.png"]
    folder = next(iter(four.figures.values())).parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(captions)
    assert set(captions) == {
        "scores.png",
        *(f"{rank}-{kind}.png" for rank in ("worst", "median", "best") for kind in ("overview", "close-up")),
    }


def test_a_single_case_is_shown_once(tmp_path: Path) -> None:
    one = evaluate_cases(Stub(), items({}), tmp_path / "one")  # type: ignore[arg-type]
    assert sorted(path.name for path in one.figures.values()) == [
        "case-close-up.png", "case-overview.png", "scores.png",
    ]  # fmt: skip


def test_bad_cases_are_named_and_left_out(tmp_path: Path) -> None:
    batch = items({}, {"broken": True}, {"labelled": False})
    batch.append(Item("case-3", (), {}, Fault("case-3", "no T2", "four modalities")))
    result = evaluate_cases(Stub(), batch, tmp_path)  # type: ignore[arg-type]
    assert [row["case"] for row in result.table] == ["case-0"]
    left_out = [note for note in result.notes if note.startswith("not scored")]
    assert [note.split(": ")[1] for note in left_out] == ["case-1", "case-2", "case-3"]
    with pytest.raises(DataInvalid, match="truncated"):
        evaluate_cases(Stub(), batch[1:], tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.glob(".drafts"))


def test_patches_in_both_conventions() -> None:
    import torch

    class Threshold(torch.nn.Module):
        """Logit of channel r = image channel r − 0.5."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] - 0.5

    network = Threshold().eval()
    truth = np.zeros((3, 3, 8, 8, 8), bool)
    truth[:, :, 2:6, 2:6, 2:6] = True
    truth[1, 2] = False  # no enhancing tumour, none predicted
    truth[2, 2] = False  # none, but predicted
    images = np.zeros((3, 4, 8, 8, 8), np.float32)
    images[:, :3] = truth
    images[2, 2, 0, 0, 0] = 1.0
    rows = score_patches([network], images, truth, batch=2)
    metrics = summarise_patches(rows)
    assert metrics["patches/count"] == 3
    assert metrics["patches/dice_wt"] == 1.0
    assert metrics["patches/dice_et"] == pytest.approx(2 / 3)
    assert metrics["patches/dice_monai_et"] == 1.0
    assert metrics["patches/empty_true_et"] == 2
    assert metrics["patches/dice_mean"] == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert summarise_patches([]) == {}
    # Networks in another precision get their patches in it; flips of a pointwise network change nothing.
    assert score_patches([Threshold().bfloat16()], images, truth, tta="flip8") == rows
    # A higher threshold asks for a higher logit: 0.5 is not above log(0.7 / 0.3).
    assert score_patches([network], images, truth, threshold=0.7)[0]["dice_wt"] == 0.0


# ---------------------------------------------------------------- what a model may be scored on


def bundle_of(path: Path, *sets: str, fingerprint: str = "") -> Bundle:
    schema = {"data_fingerprint": fingerprint} if fingerprint else {}
    config = resolve(BratsConfig, [], sets)
    return Bundle.save(path, pipeline="brats-seg", config=config, state_dict={}, schema=schema)


def test_own_data_is_known_by_place_and_by_content(tmp_path: Path) -> None:
    for number in range(3):
        write_case(tmp_path / "own", number)
    here = resolve(BratsConfig, [], [f"data.path={tmp_path / 'own'}"])
    content = data_fingerprint(here)
    by_place = bundle_of(tmp_path / "a", f"data.path={tmp_path / 'own'}", fingerprint=content)
    moved = bundle_of(tmp_path / "b", "data.path=elsewhere", fingerprint=content)
    other = bundle_of(tmp_path / "c", "data.path=elsewhere", fingerprint="0" * 64)
    assert is_own([by_place], here) == is_own([moved], here) == (True, [])
    assert is_own([other], here) == (False, [])
    assert is_own([other, moved], here) == (True, [])
    write_case(tmp_path / "own", 3)
    own, warnings = is_own([by_place], here)
    assert own and "has changed since training" in warnings[0]


@pytest.mark.parametrize("change", ["data.fold=1", "data.folds=4", "data.exclude_patients=[P]"])
def test_cases_seen_in_training_are_not_scored(tmp_path: Path, change: str) -> None:
    write_case(tmp_path / "own", 1)
    place = f"data.path={tmp_path / 'own'}"
    member, other = bundle_of(tmp_path / "m", place), bundle_of(tmp_path / "o", place, change)
    asked = resolve(BratsConfig, [], [place])
    with pytest.raises(UsageError, match=change.split("=")[0]):
        is_own([member, other], asked)
    made = bundle_of(tmp_path / "made", change)
    with pytest.raises(UsageError, match="it has seen the other cases"):
        is_own([made], resolve(BratsConfig, [], []))
    assert is_own([made], resolve(BratsConfig, [], ["seed=1"])) == (False, [])


def test_report_and_card_say_what_was_measured(four: Evaluation) -> None:
    patches = {"patches/count": 7.0, **{f"patches/dice_{region}": 0.5 for region in REGIONS}}
    evaluation = replace(four, metrics=four.metrics | patches)
    report = Report("run")
    add_sections(report, BratsConfig(), evaluation)
    page = report.html()
    for text in ("Regions", "Held-out patches", "Pictures", "Cases", "Limits", "7 real patches"):
        assert text in page, text
    assert page.count("<img") == 7
    assert page.index("<td>case-3</td>") < page.index("<td>case-1</td>")  # worst first
    assert f"{evaluation.metrics['dice_wt']:.4f}" in page
    card = card_text(BratsConfig(), evaluation, DataFacts("embedded", "f" * 64, 12))
    assert "research" in card.lower() and "flair, t1ce, t1, t2" in card and "synthetic" in card
