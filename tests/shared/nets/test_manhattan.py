"""Manhattan attention and RMT: what the paper says, and the published network's outputs."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.backbones.factory import backbone_config
from shared.nets.mixers import manhattan
from shared.nets.mixers.manhattan import Manhattan, decay_bias
from shared.nets.registry import make

GOLDEN = Path(__file__).parent / "golden" / "rmt.json"
SIZES = {1: (11,), 2: (5, 4), 3: (3, 2, 4)}


def built(ndim: int, **options: Any) -> Manhattan:
    torch.manual_seed(0)
    return Manhattan(16, ndim, heads=4, **options).double().eval()


def drawn(ndim: int) -> Tensor:
    return torch.randn(2, *SIZES[ndim], 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ruled(network: nn.Module) -> nn.Module:
    """Weights by a rule that knows nothing but their names."""
    with torch.no_grad():
        for name, values in network.state_dict().items():
            if not values.is_floating_point():
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            if name.endswith("running_var"):
                values.copy_(torch.rand(values.shape, generator=generator) + 0.5)
            else:
                values.copy_(
                    torch.randn(values.shape, generator=generator) * 0.1
                    + float("norm" in name and name.endswith("weight"))
                )
    return network.eval()


def small_rmt() -> nn.Module:
    """`rmt_t` with 16 to 128 channels, 2, 2, 4, 4 heads, depths 1, 1, 2, 1, a head of 32 channels and 10 classes."""
    config = backbone_config("rmt_t").model_dump()
    heads = [{**mixer, "head_dim": d} for mixer, d in zip(config["mixers"], (8, 16, 16, 32))]
    config |= {"dims": [16, 32, 64, 128], "depths": [1, 1, 2, 1], "mixers": heads}
    return create_backbone(
        config | {"head": {"name": "projected", "width": 32}}, ndim=2, in_chans=3, num_classes=10
    )


def test_outputs_of_the_published_network() -> None:
    """The golden file holds class scores of the official network (github.com/qhfan/RMT, classfication_release/RMT.py:
    VisRetNet with embed_dims 16, 32, 64, 128, depths 1, 1, 2, 1, num_heads 2, 2, 4, 4, init_values 2, heads_ranges
    4, 4, 6, 6, mlp_ratios 3, projection 32, 10 classes, in evaluation mode) with the weights of `ruled(small_rmt())`
    under its own names, for sin(0, 1, 2, …) as an image of 3 × 96 × 64 values."""
    image = torch.arange(3 * 96 * 64, dtype=torch.float64).sin().float().view(1, 3, 96, 64)
    with torch.no_grad():
        scores = ruled(small_rmt())(image)[0]
    expected = torch.tensor(json.loads(GOLDEN.read_text())["scores"])
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_without_decay_and_rotation_it_is_attention_and_a_convolution(ndim: int) -> None:
    mixer, x = built(ndim, decay=None, rotary=False), drawn(ndim)
    q, k, v = (
        layer(x).flatten(1, -2).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (mixer.q, mixer.k, mixer.v)
    )
    plain = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).view(x.shape)
    torch.testing.assert_close(mixer(x), mixer.proj(plain + mixer.lepe(mixer.v(x))), rtol=0, atol=1e-12)


def test_whole_mode_is_the_equation() -> None:
    mixer, x = built(2, lepe=0), drawn(2)
    places = [(a, b) for a in range(5) for b in range(4)]
    q, k, v = (layer(x).flatten(1, 2).unflatten(-1, (4, 4)) for layer in (mixer.q, mixer.k, mixer.v))
    angles = torch.arange(20, dtype=torch.float64)[:, None, None] * torch.tensor(
        [1.0, 1e-4], dtype=torch.float64
    )
    circle = torch.polar(torch.ones_like(angles), angles)
    turned = [  # pairs of channels as complex numbers
        torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (2, 2))) * circle).flatten(-2)
        for t in (q, k)
    ]
    scores = torch.einsum("bihd,bjhd->bhij", *turned) / 2
    for h in range(4):
        rate = torch.tensor(1 - 2.0 ** (-2 - 4 * h / 4), dtype=torch.float64).log()
        for i, one in enumerate(places):
            for j, other in enumerate(places):
                scores[:, h, i, j] += rate * (abs(one[0] - other[0]) + abs(one[1] - other[1]))
    mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).flatten(2)
    torch.testing.assert_close(mixer(x), mixer.proj(mixed).view(x.shape), rtol=0, atol=1e-12)


def test_on_one_axis_the_two_modes_are_one() -> None:
    x = drawn(1)
    torch.testing.assert_close(built(1, mode="split")(x), built(1)(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("ndim", [2, 3])
def test_split_mode_has_one_pass_an_axis(ndim: int) -> None:
    """With equal scores, each pass is a fixed matrix along one axis, and together they are a Kronecker product: a token
    reaches every other one, and the decay is |i − j|₁ again."""
    mixer, x = built(ndim, mode="split", lepe=0, rotary=False), drawn(ndim)
    with torch.no_grad():
        mixer.q.weight.zero_(), mixer.q.bias.zero_()
    factors = [decay_bias((n,), 0, n, mixer.decay, x)[0].softmax(-1) for n in SIZES[ndim]]
    for h in range(4):
        product = factors[0][h]
        for factor in factors[1:]:
            product = torch.kron(product, factor[h])
        torch.testing.assert_close(mixer.matrix(x)[0, h], product, rtol=0, atol=1e-12)


def test_the_bias_is_symmetric_with_a_zero_diagonal() -> None:
    decay = built(2).decay
    bias = decay_bias((5, 4), 0, 20, decay, drawn(2))[0]
    assert torch.equal(bias, bias.transpose(1, 2)) and bias.diagonal(dim1=1, dim2=2).abs().max() == 0
    assert bias[:, 0, 19].tolist() == pytest.approx([rate * (4 + 3) for rate in decay])  # corner to corner
    assert decay[0] == pytest.approx(-0.28768207) and decay == sorted(decay)  # ln 3/4, then slower


@pytest.mark.parametrize("masked", [False, True])
def test_queries_in_parts_change_nothing(masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = built(2), drawn(2)
    mask = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(2)) > 0.5 if masked else None
    whole = mixer(x, mask)
    monkeypatch.setattr(manhattan, "SCORES", 4 * 20 * 3)  # three queries at a time
    torch.testing.assert_close(mixer(x, mask), whole, rtol=0, atol=1e-12)


def test_invalid_tokens_are_absent() -> None:
    """In either mode a map with its last columns masked gives what the smaller map gives (without the rotation by the
    flat position, which counts the columns)."""
    for mode in ("whole", "split"):
        mixer, x = built(2, mode=mode, rotary=False), drawn(2)
        mask = torch.ones(x.shape[:-1], dtype=torch.bool)
        mask[:, :, 2:] = False
        torch.testing.assert_close(mixer(x, mask)[:, :, :2], mixer(x[:, :, :2]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "rows"}, "'whole' or 'split'"),
        ({"decay": [0, 4]}, "a > 0"),
        ({"lepe": 4}, "odd"),
        ({"heads": 16}, "even"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make("mixer", {"name": "manhattan", **options}, 16, 2)
