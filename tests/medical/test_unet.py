"""The U-Net over any pyramid of the library: sizes, configuration, and the lean blocks it inherits."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from medical.brats_seg import lean
from medical.brats_seg.config import BratsModelConfig
from medical.brats_seg.model import build_network
from medical.brats_seg.pipeline import PIPELINE
from shared.errors import UsageError

PYRAMID = {
    "stem": {"name": "patch", "patch": 2},
    "dims": [12, 24, 48],
    "depths": [1, 1, 1],
    "mixers": ["pool"],
}


def unet(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = BratsModelConfig.model_validate(
        {"name": "unet", "feature_size": 12, "norm": "batch", "backbone": PYRAMID, **options}
    )
    return build_network(config, 4, 3).eval()


@pytest.mark.parametrize("size", [(16, 16, 16), (17, 24, 9)], ids=str)
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_logits_have_the_inputs_size(size: tuple[int, int, int], patch: int) -> None:
    network = unet(backbone={**PYRAMID, "stem": {"name": "patch", "patch": patch}})
    with torch.no_grad():
        assert network(torch.randn(2, 4, *size)).shape == (2, 3, *size)


def test_every_parameter_learns() -> None:
    network = unet().train()
    network(torch.randn(2, 4, 16, 16, 16)).square().mean().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before a batch norm is taken out again by the norm's mean.
    assert not [name for name in idle if not name.endswith("transp_conv.conv.bias")]


def test_prediction_takes_the_lean_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "LARGE", 1)
    network, x = unet(), torch.randn(1, 4, 16, 32, 16)
    ours = lean.make_lean(copy.deepcopy(network))
    assert any(isinstance(m, lean.LeanUpBlock) for m in ours.modules())
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_file_becomes_part_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "net.yaml"
    file.write_text("backbone:\n  dims: [12]\n  depths: [1]\n  mixers: [pool]\n", encoding="utf-8")
    config = PIPELINE.resolve("smoke", sets=["model.name=unet", f"model.backbone={file}"])
    file.unlink()
    assert config.model.backbone == {"dims": [12], "depths": [1], "mixers": ["pool"]}
    build_network(config.model, 4, 3)


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        (None, "pipelines zoo --for brats-seg"),
        ("poolformer_s1", "nearest is 'poolformer_s12'"),
        ({"dims": [12], "depths": [1], "mixers": ["pol"]}, "nearest is 'pool'"),
        ({"dims": [12], "depths": [1], "mixer": ["pool"]}, "did you mean mixers"),
        ({"dims": [12], "depths": [1, 2], "mixers": ["pool"]}, "the same number wanted"),
    ],
    ids=["none", "name", "mixer", "key", "stages"],
)
def test_what_does_not_fit_is_refused_in_one_line(backbone: object, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        unet(backbone=backbone)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "stem", [{"name": "conv", "kernels": [4], "strides": [2]}, {"name": "patch", "patch": [2, 2, 1]}]
)
def test_pyramids_of_other_sizes_than_the_decoder_makes_are_refused(stem: dict[str, object]) -> None:
    network = unet(backbone={**PYRAMID, "stem": stem})
    with pytest.raises(UsageError, match=r"model.backbone: a map of .* the same stride \d along every axis"):
        network(torch.zeros(1, 4, 16, 16, 16))
