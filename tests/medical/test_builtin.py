"""The shipped weights: small, described, made by the command their card names, and able to find a tumour."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from medical.brats_seg.config import REGIONS, BratsConfig
from medical.brats_seg.metrics import dice
from medical.brats_seg.model import build_network
from medical.brats_seg.pipeline import PIPELINE
from medical.brats_seg.predict import BratsPredictor
from medical.brats_seg.sample import make_case, write_case
from medical.brats_seg.weights import load_pretrained
from shared.bundle import Bundle
from shared.config import config_hash


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    assert PIPELINE.builtin is not None
    return Bundle.open(PIPELINE.builtin)


def test_it_is_small_and_says_what_it_is(bundle: Bundle) -> None:
    assert sum(file.stat().st_size for file in bundle.path.iterdir()) <= 5_000_000
    for words in ("What it is not for", "For research only", "no patient's image", "Terms", "real images"):
        assert words in bundle.card, words
    assert bundle.schema["params_count"] == 994_761
    assert bundle.metrics["dice_wt"] > 0.85


def test_the_command_of_the_card_gives_its_configuration(bundle: Bundle) -> None:
    found = re.search(r"Reproduce: `(.+)`", bundle.card)
    assert found is not None
    words = shlex.split(found[1])
    sets = [words[i + 1] for i, word in enumerate(words) if word == "-s"]
    preset = words[words.index("--preset") + 1]
    assert config_hash(PIPELINE.resolve(preset, sets=sets)) == config_hash(bundle.config(BratsConfig))


def test_training_may_start_from_it_by_name(bundle: Bundle) -> None:
    config = PIPELINE.resolve("patches")
    assert isinstance(config, BratsConfig)
    said = load_pretrained(build_network(config.model, 4, len(REGIONS)), config.model)
    assert said.startswith("all weights from builtin")


def test_it_finds_the_tumour_of_a_new_head(bundle: Bundle, tmp_path: Path) -> None:
    case = make_case(987_654, spacing_mm=(1.875, 1.875, 1.2109375))
    predictor = BratsPredictor(bundle, {"picture": False, "precision": "float32"})
    (item,) = predictor.discover([write_case(tmp_path, "Made-1", case)])
    labels = predictor.predict(item).labels
    assert dice(labels > 0, case.label > 0) > 0.8
    assert np.isin(labels, (0, 1, 2, 4)).all()
