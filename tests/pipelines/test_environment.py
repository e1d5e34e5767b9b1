"""What must and must not be in the pinned environment."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PINS = dict(
    re.findall(r"^([A-Za-z0-9_.-]+)==([^\s#]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
)


def test_nothing_that_drags_cuda_in() -> None:
    assert not [name for name in PINS if re.match(r"(torchaudio|nvidia-|cuda-|triton)", name, re.I)]


def test_torchvision_belongs_to_the_pinned_torch() -> None:
    """torchvision 0.N is made for torch 2.(N − 15) and requires exactly that; another would pull a second torch in."""
    torch, vision = (tuple(map(int, PINS[name].split("."))) for name in ("torch", "torchvision"))
    assert vision[1] - torch[1] == 15


def test_one_lightning_and_no_compromised_release() -> None:
    assert "lightning" not in PINS
    assert tuple(map(int, PINS["pytorch-lightning"].split("."))) >= (2, 6, 4)


def test_torch_closes_the_weights_only_holes() -> None:
    assert tuple(map(int, PINS["torch"].split(".")[:2])) >= (2, 10)


def test_mlflow_parts_agree() -> None:
    assert PINS["mlflow"] == PINS["mlflow-skinny"] == PINS["mlflow-tracing"]


def test_albumentations_is_the_last_permissive_release() -> None:
    assert PINS["albumentations"] == "2.0.8"
    assert "albumentationsx" not in PINS


def test_wheel_holds_exactly_our_packages() -> None:
    from setuptools import find_packages

    from pipelines._guard import PACKAGES

    include = [f"{name}*" for name in PACKAGES]
    tops = {name.split(".")[0] for name in find_packages(str(ROOT), include=include)}
    assert tops == set(PACKAGES)
