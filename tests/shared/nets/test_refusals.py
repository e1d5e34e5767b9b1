"""What a user may get wrong is one line of class `UsageError`, at build time or at the first input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.registry import cards, make
from shared.nets.stems.base import Down, Stem
from shared.nets.zoo import zoo
from shared.rewrite import names

BASE: dict[str, Any] = {
    "stem": {"name": "patch", "patch": 1},
    "dims": [8],
    "depths": [1],
    "mixers": [{"name": "attention", "head_dim": 8}],
}


def built(over: dict[str, Any] | None = None, **wanted: Any) -> Any:
    return create_backbone(
        BASE | (over or {}), **({"ndim": 1, "in_chans": 3, "num_classes": 2} | wanted)
    ).eval()


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"mixers": [{"name": "attention", "heads": "2"}]}, "option heads: found '2'; a valid integer"),
        ({"mixers": [{"name": "attention", "head_dim": 0}]}, "option head_dim: found 0; greater than or equal to 1"),
        ({"mixers": [{"name": "attention", "dropout": 2}]}, "option dropout: found 2; less than 1"),
        ({"mixers": [{"name": "attention", "qkv_bias": "no"}]}, "option qkv_bias: found 'no'; a valid boolean"),
        ({"mixers": [{"name": "pool", "kernel": -3}]}, "option kernel: found -3"),
        ({"mixers": [{"name": "window", "window": 2.5}]}, "option window: found 2.5; a valid integer or a list"),
        ({"mixers": [{"name": "window", "window": [2.5]}]}, r"option window: found \[2.5\]; a valid integer"),
        ({"mixers": [{"name": "mamba", "rank": -1}]}, "option rank: found -1"),
        ({"mixers": [{"name": "hyena", "length": 0}]}, "option length: found 0"),
        ({"mixers": [{"name": "lmu", "theta": 0}], "causal": True}, "option theta: found 0; greater than 0"),
        ({"mixers": [[]]}, "mixers has an empty list"),
        ({"ffn": {"name": "mlp", "ratio": -1}}, "option ratio: found -1"),
        ({"norm": {"name": "layernorm", "eps": "1e-6"}}, "option eps: found '1e-6'; a valid number"),
        ({"head": {"name": "projected", "width": 0}}, "option width: found 0"),
        ({"position": {"name": "conv", "kernel": 2}}, "kernel 2 is even"),
        ({"block_position": 2}, "block_position 2 is even"),
        ({"stem": {"name": "patch", "patch": 0}}, "option patch: found 0"),
        ({"stem": {"name": "conv", "activation": "x"}}, "activation 'x'"),
        ({"stem": {"name": "conv", "kernels": [3, 3], "strides": [1, 1], "padding": [1]}}, "same number"),
        ({"dims": [8, 8], "depths": [1, 1], "down": {"name": "conv", "kernel": 4}}, "kernel 4, stride 2; an odd"),
        ({"dims": [8, 8]}, r"^backbone: dims has 2 stages, depths 1; the same number wanted; correct it$"),
        ({"stem": None}, r"^backbone:stem: found None"),
    ],
)  # fmt: skip
def test_wrong_configurations(over: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        built(over)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"ndim": 4}, "ndim 4"),
        ({"ndim": "2"}, "ndim '2'"),
        ({"in_chans": 0}, "in_chans 0"),
        ({"num_classes": -1}, "num_classes -1"),
        ({"img_size": (13, 13)}, r"img_size \(13, 13\)"),
        ({"img_size": "13"}, "img_size '13'"),
        ({"img_size": 0}, "img_size 0"),
    ],
)
def test_wrong_arguments(wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        built(**wanted)


def test_wrong_inputs_and_masks() -> None:
    network, x = built(), torch.zeros(2, 3, 13)
    for wrong in (torch.zeros(2, 4, 13), torch.zeros(2, 3, 0), x.long(), torch.zeros(2, 3, 4, 4)):
        with pytest.raises(UsageError, match="an input of"):
            network(wrong)
    for mask in (torch.ones(2, 13), torch.ones(2, 12).bool(), torch.ones(2, 3, 13).bool(), "all"):
        with pytest.raises(UsageError, match=r"a mask of .*; \[2, 13\] torch.bool wanted"):
            network(x, mask)
    with pytest.raises(UsageError, match=r"\[13\] tokens; \[12\] wanted"):
        built({"position": "learned"}, img_size=12)(x)


def test_sources(tmp_path: Path) -> None:
    for source in (3, ["a"], None):
        with pytest.raises(UsageError, match="a name, a YAML file or a mapping"):
            create_backbone(source, ndim=2, in_chans=3)  # type: ignore[arg-type]
    file = tmp_path / "net.yaml"
    file.write_text("backbone: poolformer_s12\n", encoding="utf-8")
    with torch.device("meta"):
        network = create_backbone(file, ndim=2, in_chans=3)
    assert network.feature_info.channels() == [64, 128, 320, 512]


def test_an_image_without_valid_tokens_pools_to_finite_numbers() -> None:
    mask = torch.tensor([[False] * 13, [True] * 13])
    for card in cards("head"):
        with torch.no_grad():
            assert torch.isfinite(built({"head": card.name})(torch.randn(2, 3, 13), mask)).all(), card.name


# ---------------------------------------------------------------- causal networks


@pytest.mark.parametrize(
    ("over", "where"),
    [
        ({"block_position": 3}, "block 0 of stage 0"),
        ({"position": "conv"}, "position"),
        ({"norm": "groupnorm1"}, "block 0 of stage 0"),
        ({"ffn": "grn_mlp"}, "block 0 of stage 0"),
        ({"ffn": "conv_mlp"}, "block 0 of stage 0"),
        ({"final_norm": "groupnorm1"}, "final_norm"),
        ({"stem": "cct"}, "stem"),
        ({"stem": {"name": "conv", "kernels": [3], "strides": [1]}}, "stem"),
        ({"stem": {"name": "patch", "norm": "groupnorm1"}}, "stem"),
        ({"dims": [8, 8], "depths": [1, 1], "down": {"name": "conv", "kernel": 7}}, "down of stage 1"),
    ],
)
def test_causal_networks_refuse_parts_that_look_ahead(over: dict[str, Any], where: str) -> None:
    built(over)
    with pytest.raises(UsageError, match=rf"{where} \(\w+\) looks ahead in a causal network"):
        built(over | {"causal": True})


@pytest.mark.parametrize(
    "over",
    [
        {"stem": "patch"},
        {"stem": "conv"},
        {"dims": [8, 8], "depths": [1, 1]},
        {"dims": [8, 8], "depths": [1, 1], "down": "merge"},
        {"norm": "batchnorm", "position": "sine"},
        *({"ffn": card.name} for card in cards("feedforward") if not card.make.looks_ahead),
        *({"norm": card.name} for card in cards("norm") if not getattr(card.make, "looks_ahead", False)),
    ],
)
def test_what_a_causal_network_takes_does_not_look_ahead(over: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = built(over | {"causal": True}, num_classes=0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    x = torch.randn(1, 3, 32, requires_grad=True)
    y = network(x)
    step = 32 // y.shape[-1]
    (gradient,) = torch.autograd.grad(y[0, :, 1].square().sum(), x)
    assert gradient[..., 2 * step :].abs().max() == 0 < gradient[..., : 2 * step].abs().max()


def test_the_zoo_knows_what_looks_ahead_and_its_kinds() -> None:
    rows = {row["name"]: row["causal"] for row in zoo(kind="feedforward")}
    assert rows["mlp"] == "can be" and rows["conv_mlp"] == rows["grn_mlp"] == ""
    with pytest.raises(UsageError, match="nearest is 'mixer'"):
        zoo(kind="mixr")


def test_every_size_that_stems_and_downsampling_take_is_the_one_they_say() -> None:
    for kind, options in (
        ("stem", {"kernels": [5, 3], "strides": [2, 1]}),
        ("down", {"kernel": 5, "stride": 3}),
    ):
        part = make(kind, {"name": "conv", **options}, 3, 8, 1)  # type: ignore[arg-type]
        assert isinstance(part, Stem | Down)
        for side in range(5, 14):
            x = torch.zeros(1, 3, side) if kind == "stem" else torch.zeros(1, side, 3)
            assert part(x).shape[1] == part.out_size((side,))[0]


def test_the_zoo_lists_rewrites_too() -> None:
    rows = zoo(kind="rewrite")
    assert [row["name"] for row in rows] == names() and all("arXiv" in row["paper"] for row in rows)
