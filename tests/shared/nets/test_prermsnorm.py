"""The lossless conversion from layer norms to RMSNorm and CRMSNorm (shared/rewrite/convert.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.registry import Card, cards
from shared.rewrite import apply_all, names
from shared.rewrite.convert import apply
from shared.rewrite.norms import Crms, Rms

DIM, SIZE = 24, (12, 8)
VIT: dict[str, Any] = {
    "stem": {"name": "patch", "patch": 4},
    "position": "learned",
    "dims": [DIM],
    "depths": [4],
    "mixers": [{"name": "attention", "head_dim": 8}],
    "ffn": {"name": "mlp", "ratio": 2},
    "layer_scale": 0.3,
}


def network(double: bool = True, seed: int = 0, **changes: Any) -> nn.Module:
    """A network whose every parameter is random, norms' factors and offsets among them."""
    torch.manual_seed(seed)
    options = {"ndim": 2, "in_chans": 3, "num_classes": 5, "img_size": SIZE}
    options |= {key: changes.pop(key) for key in list(changes) if key in {*options, "features_only"}}
    model = create_backbone(VIT | changes, **options)
    return random(model, double)


def random(model: nn.Module, double: bool = True) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return (model.double() if double else model).eval()


def images(batch: int = 2, double: bool = True, size: tuple[int, ...] = SIZE) -> Tensor:
    draw = torch.Generator().manual_seed(7)
    x = torch.randn(batch, 3, *size, generator=draw, dtype=torch.float64)
    return x if double else x.float()


def layer_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.LayerNorm) for module in model.modules())


CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no layer scale": {"layer_scale": None},
    "parallel": {"order": "parallel"},
    "sine": {"position": "sine"},
    "no position": {"position": "none"},
    "no ffn": {"ffn": None},
    "conv stem": {"stem": {"name": "conv", "kernels": [3, 3], "strides": [2, 2], "activation": "relu"}},
    "max head": {"head": "max"},
    "map": {"num_classes": 0},
    "two stages": {
        "position": "sine",
        "dims": [16, DIM],
        "depths": [2, 2],
        "down": {"name": "conv", "norm_before": "layernorm"},
        "mixers": [{"name": "attention", "heads": 2}],
        "layer_scale": None,
    },
    "chunked": {"mixers": [{"name": "attention", "heads": 3, "chunk": 4}]},
    "no bias": {"mixers": [{"name": "attention", "heads": 3, "qkv_bias": False}]},
}


@pytest.mark.parametrize("form", ["rms", "crms"])
@pytest.mark.parametrize("what", CHANGES)
def test_outputs_and_gradients_are_equal(what: str, form: Any) -> None:
    model, x = network(**CHANGES[what]), images().requires_grad_()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    new, report = apply(model, x.detach(), form=form)
    assert report["max_difference"] <= 1e-12 and report["folded"] == report["norms"] - len(model.config.dims)
    assert layer_norms(new) == 0 and report["params_after"] < report["params_before"]
    wanted, found = model(x), new(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    slope = torch.randn(wanted.shape, dtype=wanted.dtype)
    (a,), (b,) = (torch.autograd.grad(out, x, slope) for out in (found, wanted))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("form", ["rms", "crms"])
@pytest.mark.parametrize("card", [*cards("mixer"), *cards("feedforward")], ids=lambda card: card.name)
def test_every_part_that_names_its_writers_keeps_its_word(card: Card, form: Any) -> None:
    """Readers see the input and nothing else does, writers make the output: else these would differ."""
    part = {"name": card.name, **card.make.example}
    causal = False not in getattr(card.make, "causal_forms", {False})
    ndim = 1 if causal else max(card.make.ndims & {1, 2})
    changes = {"mixers": [part]} if card.kind == "mixer" else {"ffn": part}
    size = SIZE[:ndim]
    model = network(**changes, dims=[16], position="none", causal=causal, ndim=ndim, img_size=size)
    if not all(
        (part.mixer if card.kind == "mixer" else part.ffn).writers() for part in model.stages[0].blocks
    ):
        with pytest.raises(UsageError, match="names no writers"):
            apply(model, form=form)
        return
    _, report = apply(model, images(size=size), form=form)
    assert report["max_difference"] <= 1e-10


@pytest.mark.parametrize("form", ["rms", "crms"])
def test_single_precision(form: Any) -> None:
    model, x = network(double=False), images(double=False)
    new, _ = apply(model, form=form)
    with torch.no_grad():
        wanted = model(x)
        assert (new(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        features = (new.forward_features(x), model.forward_features(x))
        torch.testing.assert_close(*features, rtol=0, atol=1e-5)


def test_the_stream_of_crms_keeps_all_but_one_channel() -> None:
    new, _ = apply(network(), form="crms")
    blocks = [block for stage in new.stages for block in stage.blocks]
    assert all(isinstance(block.norm1, Crms) and not block.norm1.restore for block in blocks)
    assert all(block.mixer.proj.out_features == block.mixer.qkv.in_features == DIM - 1 for block in blocks)
    assert new.position.code.shape[-1] == new.stem.proj.conv.out_channels == DIM - 1
    (kept,) = new.features(images())
    (whole,) = apply(network())[0].features(images())
    torch.testing.assert_close(kept, whole[:, :-1])
    torch.testing.assert_close(whole.mean(1), torch.zeros_like(whole[:, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["rms", "crms"])
def test_a_mixer_whose_readers_are_unknown_keeps_factor_and_offset(
    form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network(), images()
    monkeypatch.setattr(type(model.stages[0].blocks[0].mixer), "readers", lambda self: ())
    new, report = apply(model, x, form=form)
    assert report["max_difference"] <= 1e-12 and report["folded"] == 4  # the feed-forward parts'
    assert new.stages[0].blocks[0].norm1.weight is not None and new.stages[0].blocks[0].norm2.weight is None


def test_a_causal_network_streams_as_before() -> None:
    changes = {"stem": {"name": "patch", "patch": 1}, "causal": True, "position": "sine", "head": "last"}
    model = network(**changes, ndim=1, img_size=9)
    for form in ("rms", "crms"):
        new, _ = apply(model, form=form)
        assert new.streams
        states = [new.init_state(2), model.init_state(2)]
        for at in range(5):
            x = images(size=(9,))[:, :, at]
            (a, states[0]), (b, states[1]) = new.step(x, states[0]), model.step(x, states[1])
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"init_values": 0.2, "qk_norm": True},
        {"reg_tokens": 3, "no_embed_class": True, "qkv_bias": False},
        {"global_pool": "avg", "class_token": False},
        {"pos_embed": "none", "drop_path_rate": 0.2},
    ],
)
@pytest.mark.parametrize("form", ["rms", "crms"])
def test_timms_vision_transformer(options: dict[str, Any], form: Any) -> None:
    pytest.importorskip("timm")
    from shared.nets.compat import import_timm

    torch.manual_seed(0)
    vit = import_timm().models.vision_transformer.VisionTransformer
    small = {"img_size": 16, "patch_size": 4, "embed_dim": DIM, "depth": 4, "num_heads": 3, "num_classes": 5}
    model, x = random(vit(**small, **options)), images(size=(16, 16)).requires_grad_()
    new, report = apply(model, x.detach(), form=form)
    assert layer_norms(new) == (
        8 if "qk_norm" in options else 0
    )  # those inside the heads are not the stream's
    assert report["norms"] == 9 and report["folded"] == 8
    torch.testing.assert_close(new(x), model(x), rtol=0, atol=1e-12)
    (a,), (b,) = (torch.autograd.grad(m(x).square().sum(), x) for m in (new, model))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_named_networks_of_timm_and_their_refusals() -> None:
    pytest.importorskip("timm")
    from shared.nets.compat import import_timm

    timm = import_timm()
    model = timm.create_model("vit_tiny_patch16_224", num_classes=7, depth=2).eval()
    new, report = apply(model, torch.randn(1, 3, 224, 224), form="rms")
    assert report["max_difference"] < 1e-5 and isinstance(new.blocks[0].norm1, Rms)
    for classes in (7, 0):
        wrapped = create_backbone(
            "timm:vit_tiny_patch16_224", ndim=2, in_chans=3, num_classes=classes, img_size=32
        )
        assert apply(wrapped.eval(), torch.randn(1, 3, 32, 32), form="crms")[1]["max_difference"] < 1e-4
    pyramid = create_backbone(
        "timm:vit_tiny_patch16_224", ndim=2, in_chans=3, features_only=True, img_size=32
    )
    with pytest.raises(UsageError, match="no norm has seen"):
        apply(pyramid)
    for name, layer in (
        ("vit_base_patch16_clip_224", "norm_pre"),
        ("convnext_atto", "ConvNeXt"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
    ):
        with torch.device("meta"), pytest.raises(UsageError, match=layer):
            apply(timm.create_model(name, num_classes=7))


# ---------------------------------------------------------------- training


def test_five_steps_of_sgd_keep_equality_where_centring_is_part_of_the_network() -> None:
    """The parametrised network has the layer-norm network's parameters, gradients and so steps; baking keeps both."""
    torch.manual_seed(1)
    model = network().train()
    new, _ = apply(model, trainable=True)
    x, labels = images(8), torch.arange(8) % 5
    for net in (model, new):
        steps = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
        for _ in range(5):
            steps.zero_grad()
            F.cross_entropy(net(x), labels).backward()
            steps.step()
    start = network()(x)
    wanted = model.eval()(x)
    assert (wanted - start).abs().max() > 0.1  # the steps did something
    torch.testing.assert_close(new.eval()(x), wanted, rtol=0, atol=1e-10)
    assert sum(p.numel() for p in new.parameters()) == sum(p.numel() for p in model.parameters())
    for form in ("rms", "crms"):
        baked, report = apply(new, form=form)
        assert report["folded"] == 8 and not any("parametrizations" in key for key in baked.state_dict())
        torch.testing.assert_close(baked(x), wanted, rtol=0, atol=1e-10)


def test_a_trained_network_on_real_digits() -> None:
    """scikit-learn's 8 × 8 digits: trained with layer norms, then converted; the same scores, the same accuracy."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(data.target)
    torch.manual_seed(0)
    config = VIT | {"stem": {"name": "patch", "patch": 2}, "depths": [2], "layer_scale": None, "head": "max"}
    model = create_backbone(config, ndim=2, in_chans=1, num_classes=10, img_size=(8, 8))
    steps = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for _ in range(3):
        for part in torch.randperm(1400).split(50):
            steps.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            steps.step()
    held_out = x[1400:]
    with torch.no_grad():
        wanted = model.eval()(held_out)
        assert (wanted.argmax(1) == y[1400:]).double().mean() > 0.7
        for form in ("rms", "crms"):
            new, _ = apply(model, form=form)
            found = new(held_out)
            assert (found - wanted).abs().max() <= 1e-5 * max(1, wanted.abs().max())
            assert torch.equal(found.argmax(1), wanted.argmax(1))


# ---------------------------------------------------------------- what it refuses, and how it is called


@pytest.mark.parametrize(
    ("changes", "layer"),
    [
        ({"order": "renorm", "layer_scale": None}, "stages.0.blocks.0: found order renorm"),
        ({"order": "postnorm"}, "stages.0.blocks.0: found order postnorm"),
        ({"order": "convnext"}, "stages.0.blocks.0: found order convnext"),
        ({"norm": "batchnorm"}, "stages.0.blocks.0.norm1: found BatchNorm"),
        ({"norm": "rmsnorm"}, "stages.0.blocks.0.norm1: found RMSNorm"),
        ({"final_norm": "none"}, "head.norm: found NoNorm"),
        ({"position": "conv"}, "position: found ConvPosition"),
        ({"block_position": 3}, "stages.0.blocks.0.position"),
        ({"stem": {"name": "patch", "patch": 4, "norm": "layernorm"}}, "stem: found no linear map"),
        ({"mixers": ["pool"]}, "stages.0.blocks.0.mixer: found Pool"),
        ({"features_only": True}, "features_only"),
        (
            {"position": "none", "dims": [8, 16], "depths": [1, 1], "down": "merge"},
            "stages.1.down: found PatchMerging",
        ),
        (
            {"position": "none", "dims": [8, 16], "depths": [1, 1], "down": "conv"},
            "stages.1.down.before: found NoNorm",
        ),
    ],
)
def test_it_refuses_by_the_layers_name(changes: dict[str, Any], layer: str) -> None:
    if "dims" in changes:
        changes = changes | {"mixers": [{"name": "attention", "heads": 1}]}
    with pytest.raises(UsageError, match=layer):
        apply(network(**changes))


def test_it_refuses_shared_norms_shared_weights_and_cct() -> None:
    model = network()
    block = model.stages[0].blocks[1]
    block.norm2 = block.norm1
    with pytest.raises(
        UsageError, match=r"blocks\.1\.norm2: found the same norm as stages\.0\.blocks\.1\.norm1"
    ):
        apply(model)
    model = network()
    model.stages[0].blocks[1].mixer.proj.weight = model.stages[0].blocks[0].mixer.proj.weight
    with pytest.raises(UsageError, match=r"blocks\.1\.mixer\.proj: found weights used"):
        apply(model)
    with pytest.raises(UsageError, match="Linear"):
        apply(nn.Linear(3, 3))
    converted, _ = apply(network(), form="crms")
    with pytest.raises(UsageError, match="found Crms"):
        apply(converted)


def test_a_configuration_may_ask_for_it() -> None:
    assert "prermsnorm" in names()
    torch.manual_seed(0)
    options = {"ndim": 2, "in_chans": 3, "num_classes": 5, "img_size": SIZE}
    plain = create_backbone(VIT, **options)
    torch.manual_seed(0)
    converted = create_backbone(VIT | {"rewrite": [{"name": "prermsnorm", "form": "crms"}]}, **options)
    x = images(double=False)
    torch.testing.assert_close(converted.eval()(x), plain.eval()(x), rtol=0, atol=1e-5)
    assert layer_norms(converted) == 0
    for parts, hint in (
        (["prermsnrm"], "nearest is 'prermsnorm'"),
        ([{"name": "prermsnorm", "from": "rms"}], "nearest is 'form'"),
        ([{"name": "prermsnorm", "form": "layer"}], "rms or crms wanted"),
        ([{"name": "prermsnorm", "form": "crms", "trainable": True}], "convert after training"),
    ):
        with pytest.raises(UsageError, match=hint):
            apply_all(plain, parts)
