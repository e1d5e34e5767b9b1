"""Neighbourhood attention and DiNAT: the windows of the paper, and the published network's outputs."""

from __future__ import annotations

import json
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.backbones.factory import backbone_config
from shared.nets.measure import count_macs, count_params
from shared.nets.mixers import na
from shared.nets.mixers.attention import Attention
from shared.nets.mixers.na import NeighbourhoodAttention
from shared.nets.ops.neighbours import Limits, plan_of
from shared.nets.registry import make

GOLDEN = Path(__file__).parent / "golden" / "dinat.json"
CASES = [  # size, kernel, dilation
    ((17,), (5,), (1,)),
    ((17,), (3,), (4,)),
    ((7, 10), (3, 5), (1, 1)),
    ((11, 7), (3, 3), (3, 2)),
    ((5, 4, 7), (3, 3, 3), (1, 1, 2)),
]


def built(ndim: int, **options: Any) -> NeighbourhoodAttention:
    torch.manual_seed(0)
    mixer = NeighbourhoodAttention(8, ndim, heads=2, **options).double().eval()
    if mixer.bias is not None:
        nn.init.normal_(mixer.bias)
    return mixer


def drawn(size: tuple[int, ...], batch: int = 2) -> Tensor:
    return torch.randn(batch, *size, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def start(at: int, size: int, kernel: int, dilation: int) -> int:
    """Where the window of place `at` begins: NATTEN's rule, case by case."""
    reach = kernel // 2 * dilation
    if at - reach < 0:
        return at % dilation
    if at + reach >= size:
        whole, residue = size // dilation * dilation, at % dilation
        if residue < size - whole:
            return whole + residue - 2 * reach
        return whole + residue - kernel * dilation
    return at - reach


def added(mixer: NeighbourhoodAttention, size: tuple[int, ...], kernel: Any, dilation: Any) -> Tensor:
    """The equivalent mask of full attention, (H, L, L): the bias of each offset, −∞ outside the windows."""
    places = list(product(*(range(s) for s in size)))
    out = torch.full((mixer.heads, len(places), len(places)), float("-inf"), dtype=torch.float64)
    for i, query in enumerate(places):
        lines = [
            range(start(q, s, k, d), start(q, s, k, d) + k * d, d)
            for q, s, k, d in zip(query, size, kernel, dilation)
        ]
        for key in product(*lines):
            at = 0
            for a, b, d, k in zip(key, query, dilation, mixer.kernel):
                at = at * (2 * k - 1) + (a - b) // d + k - 1
            out[:, i, places.index(key)] = 0 if mixer.bias is None else mixer.bias[:, at].detach()
    return out


def masked_attention(mixer: NeighbourhoodAttention, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = mixer.qkv(x.flatten(1, -2)).unflatten(-1, (3, mixer.heads, -1)).permute(2, 0, 3, 1, 4)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixer.proj(seen.transpose(1, 2).flatten(2)).view(x.shape)


@pytest.mark.parametrize("tile", [1, 2, 3, None])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("size", "kernel", "dilation"), CASES)
def test_it_is_full_attention_under_a_mask(
    size: Any, kernel: Any, dilation: Any, bias: bool, tile: int | None
) -> None:
    mixer, x = built(len(size), kernel=kernel, dilation=dilation, bias=bias, tile=tile), drawn(size)
    expected = masked_attention(mixer, x, added(mixer, size, kernel, dilation))
    torch.testing.assert_close(mixer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_invalid_tokens_are_no_keys(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    size, kernel, dilation = CASES[3]
    mixer, x = built(2, kernel=kernel, dilation=dilation, bias=bias, tile=2), drawn(size)
    valid = torch.rand(2, *size, generator=torch.Generator().manual_seed(2)) > 0.4
    own = torch.eye(77, dtype=torch.bool)
    mask = added(mixer, size, kernel, dilation).masked_fill(
        ~(valid.flatten(1)[:, None, None] | own), float("-inf")
    )
    expected = masked_attention(mixer, x, mask)
    torch.testing.assert_close(mixer(x, valid), expected, rtol=0, atol=1e-12)
    monkeypatch.setattr(na, "LIMITS", Limits(cached=1, scores=1, kept=0))  # one tile at a time
    torch.testing.assert_close(mixer(x, valid), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(mixer(x, valid | True), mixer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(5,), (5, 5), (3, 3, 3), (2, 4)])
def test_a_window_as_large_as_the_map_or_larger_is_full_attention(size: tuple[int, ...]) -> None:
    kernel = size[0] if size[0] % 2 else 7
    near, full = built(len(size), kernel=kernel, bias=False), Attention(8, len(size), heads=2).double()
    full.load_state_dict(near.state_dict())
    x = drawn(size)
    torch.testing.assert_close(near(x), full(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("tile", [1, 3])
@pytest.mark.parametrize(("size", "kernel", "dilation"), CASES)
def test_every_token_has_as_many_keys(size: Any, kernel: Any, dilation: Any, tile: int) -> None:
    plan = plan_of(size, kernel, dilation, (tile,) * len(size), kernel, False).on(torch.device("cpu"))
    seen = (plan.offsets >= 0).sum(-1)[plan.kind].flatten()[plan.home]
    assert len(seen) == torch.tensor(size).prod()
    assert set(seen.tolist()) == {int(torch.tensor(kernel).prod())}
    assert plan.own.sum(-1).unique().tolist() == [1]


@pytest.mark.parametrize("dilation", [1, 2])
def test_inside_the_map_it_commutes_with_shifts(dilation: int) -> None:
    mixer, x = built(2, kernel=3, dilation=dilation, tile=4), drawn((14, 13))
    moved, out = mixer(x.roll((1, 1), (1, 2))), mixer(x)
    inner = slice(dilation + 1, -dilation - 1)
    torch.testing.assert_close(
        moved[:, inner, inner], out.roll((1, 1), (1, 2))[:, inner, inner], rtol=0, atol=1e-12
    )
    assert (moved - out.roll((1, 1), (1, 2))).abs().max() > 1e-3  # borders do not


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"kernel 5 at dilation 3 spans 15 of the 14 tokens along axis 1"):
        make("mixer", {"name": "neighbourhood", "kernel": 5, "dilation": 3}, 8, 2, size=(15, 14))
    mixer = make("mixer", {"name": "neighbourhood", "kernel": 5, "dilation": 3}, 8, 2)
    with pytest.raises(UsageError, match="spans 15 of the 14 tokens"):
        mixer(torch.zeros(1, 15, 14, 8))
    for options, words in (
        ({"kernel": 4}, "odd"),
        ({"dilation": "all"}, "or max"),
        ({"tile": 0}, "equal to 1"),
    ):
        with pytest.raises(UsageError, match=words):
            make("mixer", {"name": "neighbourhood", **options}, 8, 2)


def test_the_largest_dilation_follows_the_map() -> None:
    near, wide = (built(2, kernel=7, dilation="max", index=i) for i in (0, 1))
    assert near.windows((56, 30)) == ((7, 7), (1, 1))
    assert wide.windows((56, 30)) == ((7, 7), (8, 4))
    assert wide.windows((10, 4)) == ((7, 4), (1, 1))


def test_the_causal_state_holds_what_a_window_needs() -> None:
    mixer, x = built(1, kernel=3, dilation=4, causal=True), drawn((30,))
    state, outs = mixer.init_state(2), []
    for at in range(30):
        out, state = mixer.step(x[:, at], state)
        outs.append(out)
        assert state[0].shape[2] == min(at + 1, 8)
    torch.testing.assert_close(torch.stack(outs, 1), mixer(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(mixer.matrix(x)[0, 0, 20].nonzero().flatten(), torch.tensor([12, 16, 20]))


def test_tables_serve_training_after_tracing_and_prediction_and_are_no_weights() -> None:
    plan_of.cache_clear()
    mixer, x = built(2, kernel=3), drawn((6, 5))
    exported = torch.export.export(mixer, (x,)).module()
    torch.testing.assert_close(exported(x), mixer(x), rtol=0, atol=1e-12)
    with torch.inference_mode():
        mixer(x)
    mixer(x).sum().backward()
    assert mixer.qkv.weight.grad is not None
    assert set(mixer.state_dict()) == {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "bias"}


def test_parts_made_again_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, x = built(2, kernel=3, dropout=0.0, tile=2).train(), drawn((9, 8)).requires_grad_()
    inputs = [x, *mixer.parameters()]
    expected = torch.autograd.grad(mixer(x).square().sum(), inputs)
    monkeypatch.setattr(na, "LIMITS", Limits(cached=2000, scores=2000, kept=0))
    found = torch.autograd.grad(mixer(x).square().sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_no_score_matrix_is_made() -> None:
    """A map of 20,000 tokens, whose scores would be 400 million a head."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple) else (out,):
                largest = max(largest, one.numel() if isinstance(one, Tensor) else 0)
            return out

    mixer, x = built(2, kernel=3).float(), torch.zeros(1, 200, 100, 8)
    with torch.no_grad(), Watch():
        mixer(x)
    assert largest < 2 * x.numel() * 9  # queries, keys and values of all heads, and little more


# ---------------------------------------------------------------- the networks


@pytest.mark.parametrize(
    ("name", "params", "macs", "table"),
    [
        ("dinat_mini", 19_984_174, 2_694_812_672, (20, 2.7)),
        ("dinat_tiny", 27_901_582, 4_295_226_368, (28, 4.3)),
        ("nat_mini", 19_984_174, 2_694_812_672, (20, 2.7)),
    ],
)
def test_sizes_of_the_published_networks(name: str, params: int, macs: int, table: tuple[int, float]) -> None:
    """The official table gives rounded figures."""
    with torch.device("meta"):
        network = create_backbone(name, ndim=2, in_chans=3, num_classes=1000, img_size=224)
    found = count_params(network), count_macs(network, 3, (224, 224))
    assert found == (params, macs)
    assert (round(found[0] / 1e6), round(found[1] / 1e9, 1)) == table


def ruled(network: nn.Module) -> nn.Module:
    """Weights by a rule that knows nothing but their names."""
    with torch.no_grad():
        for name, values in network.state_dict().items():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            values.copy_(torch.randn(values.shape, generator=generator) * 0.1)
            if name.endswith("weight") and values.ndim == 1:
                values.add_(1)
    return network.eval()


def small_dinat() -> nn.Module:
    """`dinat_mini` with 16 to 128 channels, heads of 8, 8, 16 and 16, depths 2, 2, 3, 1, kernel 3 and 10 classes."""
    config = backbone_config("dinat_mini").model_dump()
    mixers = [{**config["mixers"][0], "kernel": 3, "head_dim": d} for d in (8, 8, 16, 16)]
    config |= {"dims": [16, 32, 64, 128], "depths": [2, 2, 3, 1], "mixers": mixers}
    return create_backbone(config, ndim=2, in_chans=3, num_classes=10)


def test_outputs_of_the_published_network() -> None:
    """The golden file holds class scores of the official network (github.com/SHI-Labs/
    Neighborhood-Attention-Transformer, classification/nat.py, MIT: NAT with embed_dim 16, mlp_ratio 3, depths 2, 2, 3,
    1, num_heads 2, 4, 4, 8, kernel_size 3, dilations (1, 8), (1, 4), (1, 2, 1), (1), 10 classes, in evaluation mode),
    with NATTEN's compiled layer replaced by a loop over its window rule (the `start` of this file), the weights of
    `ruled(small_dinat())` under its own names, for sin(0, 1, 2, …) as an image of 3 × 96 × 104 values."""
    image = torch.arange(3 * 96 * 104, dtype=torch.float64).sin().float().view(1, 3, 96, 104)
    with torch.no_grad():
        scores = ruled(small_dinat())(image)[0]
    expected = torch.tensor(json.loads(GOLDEN.read_text())["scores"])
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
