"""What every part of the network library must do, whatever the paper: a new entry is tested by existing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.backbones.factory import backbone_config
from shared.nets.backbones.pyramid import Backbone
from shared.nets.measure import count_macs, count_params
from shared.nets.mixers.base import TokenMixer
from shared.nets.registry import Card, cards, make

DIM = 16
SIZES = {1: (13,), 2: (7, 6), 3: (5, 3, 4)}
"""Odd and prime sides; a window, a stride or a dilation divides none of them."""


def _forms(card: Card) -> list[Any]:
    return [
        pytest.param(card, ndim, causal, id=f"{card.name}-{ndim}d{'-causal' if causal else ''}")
        for ndim in sorted(card.make.ndims)
        for causal in sorted(card.make.causal_forms)
        if not (causal and ndim > 1)
    ]


MIXERS = [form for card in cards("mixer") for form in _forms(card)]
FEEDFORWARDS = [
    pytest.param(card, ndim, id=f"{card.name}-{ndim}d")
    for card in cards("feedforward")
    for ndim in sorted(card.make.ndims)
]
each_mixer = pytest.mark.parametrize(("card", "ndim", "causal"), MIXERS)


def shaken(module: nn.Module) -> nn.Module:
    """In evaluation mode, with weights away from special starting values (zeros, ones)."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return module.eval()


def mixer(card: Card, ndim: int, causal: bool, index: int = 1) -> TokenMixer:
    torch.manual_seed(0)
    place = {"size": SIZES[ndim], "causal": causal, "index": index}
    module = shaken(make("mixer", {"name": card.name, **card.make.example}, DIM, ndim, **place))
    assert isinstance(module, TokenMixer)
    return module


def inputs(ndim: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, *SIZES[ndim], DIM, generator=generator, dtype=dtype)


# ---------------------------------------------------------------- token mixers


@each_mixer
def test_shape_numbers_and_gradients(card: Card, ndim: int, causal: bool) -> None:
    module, x = mixer(card, ndim, causal), inputs(ndim).requires_grad_()
    out = module(x)
    assert out.shape == x.shape and out.dtype == x.dtype and torch.isfinite(out).all()
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0, name


@each_mixer
def test_bfloat16_autocast_stays_finite(card: Card, ndim: int, causal: bool) -> None:
    module, x = mixer(card, ndim, causal), inputs(ndim)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert torch.isfinite(out.float()).all()
    with torch.no_grad():
        plain = module(x)
    assert (out.float() - plain).abs().max() <= 0.1 * plain.abs().max() + 1e-6


@each_mixer
def test_images_of_a_batch_are_independent_and_repeatable(card: Card, ndim: int, causal: bool) -> None:
    module, x = mixer(card, ndim, causal), inputs(ndim, batch=3)
    with torch.no_grad():
        together = module(x)
        torch.testing.assert_close(module(x), together, rtol=0, atol=0)
        for at in range(3):
            torch.testing.assert_close(module(x[at : at + 1])[0], together[at], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("card", "ndim", "causal"), [form for form in MIXERS if form.values[2]])
def test_causal_forms_never_look_ahead(card: Card, ndim: int, causal: bool) -> None:
    module, x = mixer(card, ndim, causal), inputs(ndim, batch=1).requires_grad_()
    out = module(x)
    for at in (0, 5, 11):
        (gradient,) = torch.autograd.grad(out[0, at].sum(), x, retain_graph=True)
        # An FFT spreads rounding errors; anything larger is a look ahead.
        assert gradient[0, at + 1 :].abs().max() <= 1e-6 * gradient.abs().max()


@pytest.mark.parametrize(
    ("card", "ndim", "causal"), [form for form in MIXERS if form.values[2] and form.values[0].make.stateful]
)
def test_single_steps_equal_the_whole_pass(card: Card, ndim: int, causal: bool) -> None:
    module, x = mixer(card, ndim, causal), inputs(ndim)
    with torch.no_grad():
        whole, state, outs = module(x), module.init_state(len(x)), []
        for at in range(x.shape[1]):
            out, state = module.step(x[:, at], state)
            outs.append(out)
    torch.testing.assert_close(torch.stack(outs, 1), whole, rtol=1e-4, atol=1e-5)


@each_mixer
def test_the_matrix_is_what_the_forward_pass_does(card: Card, ndim: int, causal: bool) -> None:
    module, x = mixer(card, ndim, causal), inputs(ndim)
    if not module.has_matrix:
        with pytest.raises(NotImplementedError):
            module.matrix(x)
        return
    with torch.no_grad():
        mixed = module.matrix(x) @ module.values(x)
        torch.testing.assert_close(module.output(mixed, x), module(x), rtol=1e-4, atol=1e-5)


@each_mixer
def test_the_fused_form_is_equal(card: Card, ndim: int, causal: bool) -> None:
    module, x = mixer(card, ndim, causal), inputs(ndim)
    with torch.no_grad():
        before = module(x)
        torch.testing.assert_close(module.fuse()(x), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("card", "ndim", "causal"), [form for form in MIXERS if form.values[0].make.masks])
def test_masked_tokens_change_nothing_valid(card: Card, ndim: int, causal: bool) -> None:
    module, x = mixer(card, ndim, causal), inputs(ndim)
    mask = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(4)) > 0.3
    other = torch.where(mask[..., None], x, torch.full_like(x, 7.0))
    with torch.no_grad():
        torch.testing.assert_close(module(other, mask)[mask], module(x, mask)[mask], rtol=1e-4, atol=1e-5)
        everything = torch.ones_like(mask)
        torch.testing.assert_close(module(x, everything), module(x), rtol=1e-4, atol=1e-5)


@each_mixer
def test_weights_survive_a_file(card: Card, ndim: int, causal: bool, tmp_path: Path) -> None:
    module, x = mixer(card, ndim, causal), inputs(ndim)
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, tmp_path / "w.safetensors")
    place = {"size": SIZES[ndim], "causal": causal, "index": 1}
    other = make("mixer", {"name": card.name, **card.make.example}, DIM, ndim, **place).eval()
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)


@each_mixer
def test_it_works_inside_a_network(card: Card, ndim: int, causal: bool) -> None:
    config = {
        "stem": {"name": "patch", "patch": 1},
        "dims": [DIM],
        "depths": [2],
        "mixers": [{"name": card.name, **card.make.example}],
        "causal": causal,
    }
    network = create_backbone(config, ndim=ndim, in_chans=3, num_classes=5, img_size=SIZES[ndim]).eval()
    with torch.no_grad():
        assert network(torch.randn(2, 3, *SIZES[ndim])).shape == (2, 5)


# ---------------------------------------------------------------- feed-forward parts and norms


@pytest.mark.parametrize(("card", "ndim"), FEEDFORWARDS)
def test_feedforward_parts(card: Card, ndim: int) -> None:
    torch.manual_seed(0)
    part = shaken(make("feedforward", {"name": card.name, **card.make.example}, DIM, ndim))
    x = inputs(ndim).requires_grad_()
    out = part(x)
    assert out.shape == x.shape and torch.isfinite(out).all()
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    with torch.no_grad():
        torch.testing.assert_close(part.fuse()(x), out, rtol=1e-4, atol=1e-5)
        if part.per_token:
            token = part(x.flatten(1, -2)[:, :1])
            torch.testing.assert_close(token[:, 0], out.flatten(1, -2)[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("card", cards("norm"), ids=lambda card: card.name)
def test_norms(card: Card) -> None:
    norm, x = shaken(make("norm", card.name, DIM)), inputs(2) * 3 + 1
    with torch.no_grad():
        out = norm(x)
        assert out.shape == x.shape
        mask = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(4)) > 0.3
        other = torch.where(mask[..., None], x, torch.full_like(x, 7.0))
        torch.testing.assert_close(norm(other, mask)[mask], norm(x, mask)[mask], rtol=1e-4, atol=1e-5)
        if norm.per_token:
            torch.testing.assert_close(norm(x[:, 2, 3]), out[:, 2, 3], rtol=1e-5, atol=1e-6)
    norm.train()
    with torch.no_grad():  # statistics of the batch leave invalid tokens out as well
        torch.testing.assert_close(norm(other, mask)[mask], norm(x, mask)[mask], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- stems, downsampling, heads


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("kind", ["stem", "down"])
def test_stems_and_downsampling_say_their_size(kind: Any, ndim: int) -> None:
    for card in cards(kind):
        if ndim not in getattr(card.make, "ndims", {1, 2, 3}):
            continue
        for size in ((16, 24, 32)[:ndim], (17, 23, 19)[:ndim]):
            part = make(kind, card.name, 3 if kind == "stem" else DIM, 2 * DIM, ndim)
            x = torch.randn(2, 3, *size) if kind == "stem" else torch.randn(2, *size, DIM)
            out = part(x)
            assert tuple(out.shape) == (2, *part.out_size(size), 2 * DIM), card.name


@pytest.mark.parametrize("card", cards("head"), ids=lambda card: card.name)
def test_heads_read_valid_tokens_only(card: Card) -> None:
    head, x = shaken(make("head", card.name, DIM, 5, norm="layernorm")), inputs(2)
    mask = torch.rand(x.shape[:-1], generator=torch.Generator().manual_seed(4)) > 0.3
    other = torch.where(mask[..., None], x, torch.full_like(x, 7.0))
    with torch.no_grad():
        assert head(x).shape == (2, 5)
        torch.testing.assert_close(head(other, mask), head(x, mask), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- named networks


def of_card(card: Card, **wanted: Any) -> nn.Module:
    if find_spec(card.source) is None and ":" in card.name:
        pytest.skip(f"{card.source} is an optional extra")
    return create_backbone(card.name, **wanted)


@pytest.mark.parametrize("card", cards("backbone"), ids=lambda card: card.name)
def test_named_networks_have_their_published_size(card: Card) -> None:
    p = card.published
    with torch.device("meta"):
        network = of_card(
            card,
            ndim=p["ndim"],
            in_chans=p["in_chans"],
            num_classes=p["num_classes"],
            img_size=p["img_size"],
        )
    if "params" in p:
        assert count_params(network) == p["params"]
    if "macs" in p:
        assert count_macs(network, p["in_chans"], p["img_size"]) == pytest.approx(p["macs"], rel=0.005)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(
    "card", [card for card in cards("backbone") if ":" not in card.name], ids=lambda card: card.name
)
def test_named_networks_give_a_pyramid_in_every_dimension(card: Card, ndim: int) -> None:
    """The same keys in one, two and three dimensions, with narrow stages so that it is quick."""
    config = backbone_config(card.name)
    small = config.model_dump() | {"dims": [DIM * 2**i for i in range(len(config.dims))]}
    small["depths"] = [min(depth, 2) for depth in config.depths]
    size = {1: (64,), 2: (64, 64), 3: (32, 32, 32)}[ndim]
    try:
        network = create_backbone(small, ndim=ndim, in_chans=4, features_only=True, img_size=size)
    except UsageError as err:
        blocks = [m for stage in config.mixers for m in (stage if isinstance(stage, list) else [stage])]
        names = {m if isinstance(m, str) else m["name"] for m in blocks}
        supported = set.intersection(*(set(c.make.ndims) for c in cards("mixer") if c.name in names))
        assert ndim not in supported or (config.causal and ndim > 1), err
        return
    assert isinstance(network, Backbone)
    with torch.no_grad():
        maps = network.eval()(torch.randn(1, 4, *size))
    assert [m.shape[1] for m in maps] == network.feature_info.channels()
    for level, reduction in zip(maps, network.feature_info.reduction()):
        assert tuple(level.shape[2:]) == tuple(-(-n // reduction) for n in size)
