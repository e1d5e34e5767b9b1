"""Hyena: the transform is the direct convolution, what each direction sees, the public 2-D layer's outputs."""

from __future__ import annotations

import copy
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets import create_backbone
from shared.nets.measure import count_params
from shared.nets.mixers.hyena import Hyena
from shared.nets.ops import fft_conv as ops
from shared.nets.ops.fft_conv import (
    Spectrum,
    along_axis,
    axis_conv,
    fast_size,
    fft_conv,
    fft_conv_groups,
    spectrum,
    toeplitz,
)
from shared.nets.registry import make

GOLDEN = Path(__file__).parent / "golden" / "hyena.json"
PUBLIC: dict[str, dict[str, Any]] = {
    "joint, seq": {"filter": "joint", "direction": "seq", "order": 3},
    "product, one orthant": {"filter": "product", "direction": "causal", "order": 2},
    "product, 4dirp": {"filter": "product", "direction": "quadrants", "order": 2},
}
SIZES = {1: (13,), 2: (7, 6), 3: (5, 3, 4)}
CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
DIRECTIONS = ["causal", "seq", "quadrants", "centred"]


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def direct(x: Tensor, h: Tensor, origin: tuple[int, ...]) -> Tensor:
    """x (B, C, *S), h (C, *K), by torch's depthwise convolution (a correlation)."""
    n = len(origin)
    edges = [e for o, k in reversed(list(zip(origin, h.shape[1:]))) for e in (k - 1 - o, o)]
    return CONV[n](F.pad(x, edges), h.flip(list(range(1, n + 1)))[:, None], groups=len(h))  # type: ignore[no-any-return]


def built(ndim: int, **options: Any) -> Hyena:
    torch.manual_seed(0)
    return Hyena(8, ndim, **options).double().eval()


def ruled(module: nn.Module) -> nn.Module:
    """Weights by a rule that knows nothing but their names."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(
                0.7 * torch.sin(torch.arange(p.numel()) * 1.7 + zlib.crc32(name.encode()) % 97).view(p.shape)
            )
    return module


def public(name: str, **options: Any) -> Hyena:
    module = ruled(Hyena(4, 2, kernel_mlp_hidden_dim=8, **PUBLIC[name], **options))
    assert isinstance(module, Hyena)
    for part in module.filter.parts:  # there all axes share the sines' frequencies
        part.frequency = module.filter.parts[0].frequency  # type: ignore[union-attr]
    return module


def place_values(shape: tuple[int, ...]) -> Tensor:
    return torch.cos(torch.arange(torch.Size(shape).numel()) * 0.37).view(shape)


# ---------------------------------------------------------------- the convolution


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(
    ("size", "taps", "origin"),
    [
        ((13,), (13,), (0,)),
        ((13,), (25,), (12,)),
        ((13,), (13,), (12,)),
        ((13,), (4,), (1,)),
        ((5,), (31,), (7,)),
        ((7, 6), (13, 11), (6, 5)),
        ((7, 6), (7, 6), (0, 5)),
        ((5, 3, 4), (9, 5, 7), (4, 2, 3)),
        ((5, 3, 4), (5, 3, 4), (0, 0, 0)),
    ],
)
def test_the_transform_is_the_direct_convolution(
    size: tuple[int, ...], taps: tuple[int, ...], origin: tuple[int, ...], one_by_one: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if one_by_one:  # a channel at a time
        monkeypatch.setitem(ops.CHUNK_BYTES, "cpu", 1)
    x, h = drawn(2, 4, *size), drawn(4, *taps, seed=1) / torch.Size(taps).numel()
    wanted = direct(x, h, origin)
    torch.testing.assert_close(fft_conv(x, h, origin), wanted, rtol=0, atol=1e-14)
    kept = spectrum(h[None], size, origin)
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)  # channels-last strides
    torch.testing.assert_close(kept(last[:, None])[:, 0], wanted, rtol=0, atol=1e-14)
    dense = (toeplitz(h, size, origin) @ x.flatten(2)[..., None]).view(x.shape)
    torch.testing.assert_close(dense, wanted, rtol=0, atol=1e-14)
    torch.testing.assert_close(fft_conv(x.float(), h.float(), origin), wanted.float(), rtol=0, atol=1e-6)


def test_gradients_of_the_convolution() -> None:
    for size, groups, shared in (((5,), 2, True), ((4, 3), 2, False), ((3, 2, 2), 1, True)):
        x = drawn(2, 1 if shared else groups, 3, *size).requires_grad_()
        h = drawn(groups, 3, *(2 * s - 1 for s in size), seed=1).requires_grad_()
        origin = tuple(s - 1 for s in size)
        assert torch.autograd.gradcheck(lambda x, h, o=origin: fft_conv_groups(x, h, o), (x, h))


def test_axis_by_axis() -> None:
    x, a, b = drawn(2, 1, 3, 7, 6), drawn(4, 3, 13, seed=1), drawn(4, 3, 11, seed=2)
    wanted = fft_conv_groups(x, a[..., None] * b[:, :, None], (6, 5))
    dense = axis_conv(axis_conv(x, toeplitz(a, (7,), 6), 0), toeplitz(b, (6,), 5), 1)
    torch.testing.assert_close(dense, wanted, rtol=0, atol=1e-12)
    by_transform = along_axis(lambda v: fft_conv_groups(v, a, 6), x, 0)
    by_transform = along_axis(spectrum(b, (6,), 5), by_transform, 1)
    torch.testing.assert_close(by_transform, wanted, rtol=0, atol=1e-12)


def test_padded_lengths() -> None:
    assert [fast_size(n) for n in (1, 2, 7, 25, 127, 199, 16383)] == [2, 2, 8, 30, 128, 200, 16384]
    for n in range(1, 300):  # against all lengths
        whole = [m for m in range(n, 2 * n + 2) if m % 2 == 0 and 30**12 % m == 0]
        assert fast_size(n) == whole[0]


def test_an_origin_outside_the_filter_is_refused() -> None:
    with pytest.raises(ValueError, match="origin"):
        fft_conv(drawn(1, 2, 5), drawn(2, 3), 3)


# ---------------------------------------------------------------- the mixer


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", ["joint", "product"])
def test_every_form_is_its_matrix_kept_or_not_short_or_long(form: str, direction: Any, ndim: int) -> None:
    for options in ({"order": 3}, {"length": 3}, {"legacy": True}, {"normalise": "none", "bands": 2}):
        module = built(ndim, filter=form, direction=direction, **options)  # type: ignore[arg-type]
        x = drawn(2, *SIZES[ndim], 8)
        with torch.no_grad():
            wanted = module.output(module.matrix(x) @ module.values(x), x)
            torch.testing.assert_close(module(x), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(module(x), wanted, rtol=0, atol=1e-12)  # with gradients: nothing kept


def test_long_axes_of_a_product_go_by_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = built(3, direction="quadrants"), drawn(1, *SIZES[3], 8)
    with torch.no_grad():
        dense = module(x)
    monkeypatch.setattr("shared.nets.mixers.hyena._DENSE_SIDE", 3)
    module._ready.clear()
    with torch.no_grad():
        torch.testing.assert_close(module(x), dense, rtol=0, atol=1e-12)
    torch.testing.assert_close(module(x), dense, rtol=0, atol=1e-12)


def test_what_each_direction_sees() -> None:
    """The matrix of one filter in two dimensions: nothing, what is before, after, or everything."""
    x, at = drawn(1, 5, 4, 8), 2 * 4 + 1
    rows = torch.arange(20) // 4
    columns = torch.arange(20) % 4
    before = (rows <= 2) & (columns <= 1)
    after = (rows >= 2) & (columns >= 1)
    for direction, seen in (("causal", before), ("seq", after), ("centred", rows >= 0)):
        row = built(2, direction=direction).matrix(x)[0, :, at].abs().amax(0)
        assert torch.equal(row > 1e-12, seen), direction
    per_orthant = built(2, direction="quadrants").matrix(x)[0, :, at].unflatten(0, (4, 8)).abs().amax(1)
    assert torch.equal((per_orthant > 1e-12)[[0, 3]], torch.stack([before, after]))
    assert int((per_orthant > 1e-12).any(0).sum()) == 20


def test_causal_filters_do_not_depend_on_how_many_tokens_follow() -> None:
    module, x = built(1, causal=True, size=(9,)), drawn(1, 30, 8)
    whole = module(x)
    torch.testing.assert_close(module(x[:, :11]), whole[:, :11], rtol=0, atol=1e-14)
    upper = (
        torch.autograd.functional.jacobian(lambda x: module(x).sum((0, 2)), x[:, :12])[:, 0]
        .abs()
        .sum(-1)
        .triu(1)
    )
    assert upper.max() < 1e-15
    state = module.init_state(1)
    with torch.no_grad():
        for t in range(30):
            out, state = module.step(x[:, t], state)
            torch.testing.assert_close(out, whole[:, t].detach(), rtol=0, atol=1e-13)
    assert [s.shape[1] for s in state] == [2, 9]  # memory is bounded by the filter


@pytest.mark.parametrize("form", ["joint", "product"])
def test_another_resolution_samples_the_same_filter(form: str) -> None:
    """9 and 13 places share every second and third; a smooth map comes out alike at 1.5 times the size."""
    module = built(2, filter=form, normalise="none")
    (few, *_), (many, *_) = module.taps((9, 9), torch.float64), module.taps((13, 13), torch.float64)
    for (a, _), (b, _) in zip(few, many):
        steps = (slice(None), slice(None), *[slice(None, None, 2)] * (a.ndim - 2))
        thirds = (slice(None), slice(None), *[slice(None, None, 3)] * (a.ndim - 2))
        torch.testing.assert_close(a[steps], b[thirds], rtol=0, atol=1e-12)
    module = built(1, short_conv_kernel_size=1, normalise="mass")
    outs = []
    for side in (64, 96):
        t = torch.linspace(0, 1, side, dtype=torch.float64)[None, :, None]
        outs.append(module((3 * t + torch.arange(8)).sin()))
    alike = F.interpolate(outs[0].transpose(1, 2), 96, mode="linear", align_corners=True).transpose(1, 2)
    assert (alike - outs[1]).abs().max() < 0.02 * outs[1].std()


@pytest.mark.parametrize(("ndim", "size"), [(1, (512,)), (2, (24, 24)), (3, (9, 9, 9))])
def test_new_filters_keep_the_height_of_noise(ndim: int, size: tuple[int, ...]) -> None:
    for form in ("joint", "product"):
        torch.manual_seed(0)
        module, x = Hyena(32, ndim, filter=form), drawn(2, 1, 32, *size, dtype=torch.float32)
        assert 0.3 < module._convolutions(x[:, 0].movedim(1, -1))[0](x).std() < 3


def test_kept_filters_follow_the_weights(tmp_path: Path) -> None:
    module, x = built(2, filter="joint"), drawn(1, 7, 6, 8)
    with torch.inference_mode():
        first = module(x)
        keys = set(module.state_dict())
        module(drawn(1, 9, 9, 8)), module(drawn(1, 5, 5, 8))
        assert len(module._ready) == 2 and isinstance(next(iter(module._ready.values()))[1][0], Spectrum)
    assert set(module.state_dict()) == keys == set(built(2, filter="joint").state_dict())
    twin = copy.deepcopy(module)
    assert not twin._ready
    with torch.no_grad():
        torch.testing.assert_close(module(x), first, rtol=0, atol=0)
        module.filter.parts[0].weights[0].mul_(1.5)  # a new state dict does the same
        changed = module(x)
        assert (changed - first).abs().max() > 1e-6
        module.load_state_dict(twin.state_dict())
        torch.testing.assert_close(module(x), first, rtol=0, atol=0)
    module(x.requires_grad_()).sum().backward()  # gradients after prediction, in evaluation mode
    assert module.filter.parts[0].weights[0].grad is not None
    module.train()(x).sum().backward()
    assert not module._ready


def test_autocast_does_not_reach_the_filters() -> None:
    module, x = Hyena(8, 2).eval(), drawn(2, 7, 6, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert all(h.dtype == torch.float32 for one in module.taps((7, 6)) for h, _ in one)
        inner = module._convolutions(x)[0](drawn(2, 1, 8, 7, 6, dtype=torch.float32))
    with torch.no_grad():
        torch.testing.assert_close(
            inner, module._convolutions(x)[0](drawn(2, 1, 8, 7, 6, dtype=torch.float32)), rtol=0, atol=0
        )
    half = Hyena(8, 2).bfloat16().eval()
    assert half(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_public_layer_in_two_dimensions(name: str) -> None:
    """Outputs of github.com/Itamarzimm/HyenaND, layers/hyena2d.py, HyenaOperator2d(4, 5, filter_order=8, emb_dim=3),
    `ruled` weights copied by role (mix columns: the public order of orthants is none, both, last, first, interleaved
    with the channels), second of two images. `legacy` divides by 2 S, as that code does once too often."""
    wanted = torch.tensor(json.loads(GOLDEN.read_text())[name]).view(5, 5, 4)
    x = place_values((2, 5, 5, 4))
    with torch.no_grad():
        found = public(name, legacy=True)(x)[1]
        right = public(name, normalise="none")(x)[1]
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
    assert (right - wanted).abs().max() > 1e-3


def test_sizes() -> None:
    """Shape as MONAI's HyenaMixer (B, *S, C); parameters by role; work counted beside the matrix products."""
    assert Hyena(16, 3)(torch.randn(2, 5, 3, 4, 16)).shape == (2, 5, 3, 4, 16)
    width, dim = 64, 64
    mlp = width * 3 + width + 2 * (width**2 + width) + dim * width + width
    mixer = (dim + 1) * 3 * dim + 3 * dim * 4 + mlp + dim + (dim + 1) * dim
    assert count_params(Hyena(dim, 1)) == mixer
    network = create_backbone("hyena_xs", ndim=1, in_chans=1)
    norm, ffn = 2 * dim, (dim + 1) * 4 * dim + (4 * dim + 1) * dim
    assert count_params(network) == 2 * dim + 2 * (mixer + ffn + 2 * norm) + norm
    one, two = (Hyena(dim, 1, order=order).extra_macs((8192,)) for order in (2, 3))
    assert two == 2 * one and 2 * 1.25 * 16384 * 14 * dim < one < 3 * 1.25 * 16384 * 14 * dim
    assert Hyena(dim, 3).extra_macs((32, 32, 32)) == 0 and Hyena(dim, 2).extra_macs((128, 32)) > 0
    assert Hyena(dim, 3, filter="joint", direction="quadrants").extra_macs((8, 8, 8)) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "order"),
        ({"direction": "left"}, "direction"),
        ({"direction": "centred", "causal": True}, "looks ahead"),
        ({"filter": "table"}, "joint or product"),
        ({"normalise": "max"}, "normalise"),
        ({"short_conv_kernel_size": 4}, "even"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        make("mixer", {"name": "hyena", **{k: v for k, v in options.items() if k != "causal"}}, 8, 1,
             causal=options.get("causal", False))  # fmt: skip
