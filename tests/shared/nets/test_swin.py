"""Shifted-window attention: equal to timm's and MONAI's, exact at the seam, at the filling, and as plain attention."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.blocks.block import Block
from shared.nets.measure import count_macs
from shared.nets.mixers.window import WindowAttention
from shared.nets.registry import make

NAMES = {
    "patch_embed.proj": "stem.proj.conv",
    "patch_embed.norm": "stem.norm",
    "layers.": "stages.",
    "downsample.": "down.",
    "attn.relative_position_bias_table": "mixer.table",
    "attn.cpb_mlp": "mixer.bias_net",
    "attn.logit_scale": "mixer.log_scale",
    "attn.": "mixer.",
    "mlp.linear": "ffn.fc",
    "mlp.": "ffn.",
}
"""Official names, as timm and MONAI have them, and ours."""


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, value in state.items():
        if name.endswith(("relative_position_index", "attn_mask")):
            continue
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        out["head." + name if name.startswith("norm.") else name] = value
    return out


def shaken(module: nn.Module) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)  # Swin V2 starts with zeros, which would hide its branches
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return module.eval()


def mixer(ndim: int, dim: int = 8, index: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    options = {"window": 4, "head_dim": 4} | options
    return shaken(WindowAttention(dim, ndim, index=index, **options)).to(dtype)


@pytest.mark.parametrize(
    ("ours", "theirs", "side"),
    [
        ("swin_tiny", "swin_tiny_patch4_window7_224", 224),
        ("swinv2_tiny_window8_256", "swinv2_tiny_window8_256", 256),
    ],
)
def test_networks_equal_timms(ours: str, theirs: str, side: int) -> None:
    pytest.importorskip("timm")
    from shared.nets.compat import import_timm

    reference = shaken(import_timm().create_model(theirs, num_classes=10))
    network = create_backbone(ours, ndim=2, in_chans=3, num_classes=10).eval()
    network.load_state_dict(renamed(reference.state_dict()))
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(x)
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.05


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("size", [(8, 12, 4), (8, 8, 8)])
def test_block_equals_monais_in_three_dimensions(index: int, size: tuple[int, ...]) -> None:
    swin = pytest.importorskip("monai.networks.nets.swin_unetr")
    window, shift = swin.get_window_size(size, (4, 4, 4), (2 * index,) * 3)
    reference = shaken(swin.SwinTransformerBlock(24, 3, (4, 4, 4), (2 * index,) * 3))
    eps: dict[str, Any] = {"name": "layernorm", "eps": 1e-5}
    block = Block(
        WindowAttention(24, 3, window=4, head_dim=8, index=index),
        make("feedforward", "mlp", 24, 3),
        (make("norm", eps, 24), make("norm", eps, 24)),
    ).eval()
    block.load_state_dict(renamed(reference.state_dict()))
    x = torch.randn(2, *size, 24, generator=torch.Generator().manual_seed(1))
    mask = swin.compute_mask(size, window, shift, x.device) if any(shift) else None
    with torch.no_grad():
        torch.testing.assert_close(block(x), reference(x, mask), rtol=0, atol=2e-6)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("size", [(9,), (5, 3), (3, 4, 2)])
def test_a_window_over_the_whole_map_is_full_attention(size: tuple[int, ...], cosine: bool) -> None:
    """With B read off the table by hand: the entry of an offset Δ stands at Δ + w − 1 along each axis."""
    ndim, w = len(size), 9
    module = mixer(ndim, window=w, index=1, cosine=cosine)  # the shift of odd blocks is off as well
    x = torch.randn(2, *size, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    table = 16 * torch.sigmoid(module.bias_net(module.offsets)) if cosine else module.table
    table = table.view(*[2 * w - 1] * ndim, module.heads)
    at = list(itertools.product(*map(range, size)))
    bias = torch.stack(
        [torch.stack([table[tuple(a - b + w - 1 for a, b in zip(p, q))] for q in at]) for p in at]
    ).movedim(-1, 0)
    weight, start = module.qkv.weight, module.qkv.bias
    if cosine:
        start = torch.cat([module.q_bias, torch.zeros(8, dtype=torch.float64), module.v_bias])
    q, k, v = F.linear(x.flatten(1, -2), weight, start).view(2, len(at), 3, 2, 4).permute(2, 0, 3, 1, 4)
    scale = 4**-0.5
    if cosine:
        q, k, scale = F.normalize(q, dim=-1) * module.log_scale.exp(), F.normalize(k, dim=-1), 1.0
    seen = F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    torch.testing.assert_close(module(x), module.output(seen, x), rtol=1e-10, atol=1e-12)


def allowed_pairs(size: tuple[int, ...], window: int, shift: int) -> Tensor:
    """(L, L), by the paper's picture: windows at multiples of `window` less `shift`, cut at the map's border. Of an
    axis no longer than the window all is one."""
    cell = [[0] * n if n <= window else [(i + window - shift) // window for i in range(n)] for n in size]
    # Cyclically the first and the last cell share a window, but not their tokens: as cells they are apart.
    names = list(itertools.product(*cell))
    return torch.tensor([[a == b for b in names] for a in names])


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("size", [(13,), (13, 17), (5, 9, 4)])
def test_gradients_never_cross_seam_filling_or_window(size: tuple[int, ...], index: int) -> None:
    """Exactly 0 outside the token's own cut window, and not 0 inside; odd sides, filled to whole windows."""
    module = mixer(len(size), index=index)
    x = torch.randn(1, *size, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x.requires_grad_()
    out = module(x)
    allowed = allowed_pairs(size, 4, 2 * index)
    tokens = len(allowed)
    for at in {0, 2, tokens // 2, tokens - 2, tokens - 1}:
        (gradient,) = torch.autograd.grad(out.view(tokens, 8)[at].sum(), x, retain_graph=True)
        reached = gradient.view(tokens, 8).abs().sum(1)
        assert reached[~allowed[at]].abs().max() == 0
        assert reached[allowed[at]].min() > 0
    matrix = module.matrix(x)
    assert (matrix[:, :, ~allowed] == 0).all() and (matrix[:, :, allowed] > 0).all()
    torch.testing.assert_close(matrix.sum(-1), torch.ones_like(matrix[..., 0]))


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("cosine", [False, True])
def test_masks_and_single_precision_kernel(cosine: bool, index: int) -> None:
    """The fast kernel (no gradients), the slow one and a mask without effect agree; hidden tokens change nothing."""
    module = mixer(2, dim=32, index=index, dtype=torch.float32, head_dim=16, cosine=cosine)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 13, 17, 32, generator=generator)
    mask = torch.rand(3, 13, 17, generator=generator) > 0.4
    with torch.no_grad():
        fast = module(x)
        torch.testing.assert_close(module(x, torch.ones_like(mask)), fast, rtol=1e-4, atol=1e-5)
        hidden = module(torch.where(mask[..., None], x, 50 * x), mask)
        torch.testing.assert_close(hidden[mask], module(x, mask)[mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module(x), fast, rtol=1e-4, atol=1e-5)


def test_swin_v2_scores_are_capped() -> None:
    """τ = exp(min(s, ln 100)): a larger s changes nothing and has no gradient."""
    module, x = mixer(1, cosine=True), torch.randn(1, 12, 8, dtype=torch.float64)
    with torch.no_grad():
        module.log_scale.fill_(4.7)
        capped = module(x)
        module.log_scale.fill_(9.0)
    torch.testing.assert_close(module(x), capped, rtol=1e-12, atol=1e-13)
    module(x).sum().backward()
    assert module.log_scale.grad.abs().max() == 0 and module.bias_net[0].weight.grad.abs().max() > 0


def test_attention_is_counted_on_every_device() -> None:
    """L w^n C for the scores, and as much for the sums, beside 4 L C² of the linear maps."""
    config = {"stem": {"name": "patch", "patch": 1}, "dims": [32], "depths": [1], "ffn": None}
    config |= {"mixers": [{"name": "window", "window": 4}]}
    expected = 64 * (3 * 32 + 4 * 32**2 + 2 * 16 * 32)
    for device in ("cpu", "meta"):
        with torch.device(device):
            network = create_backbone(config, ndim=2, in_chans=3)
        assert count_macs(network, 3, (8, 8)) == expected


@pytest.mark.slow
def test_exported_programs_keep_the_batch_free() -> None:
    config = {"stem": {"name": "patch", "patch": 2}, "dims": [8], "depths": [2], "mixers": ["window"]}
    network = create_backbone(config, ndim=2, in_chans=3, num_classes=2).eval()
    x = torch.randn(5, 3, 18, 20)
    program = torch.export.export(network, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), network(x), rtol=1e-4, atol=1e-5)


def test_impossible_windows_are_refused_in_one_line() -> None:
    config = {"dims": [8], "depths": [1], "mixers": [{"name": "window", "window": 4, "shift": 4}]}
    with pytest.raises(UsageError, match="0 ≤ shift < window wanted"):
        create_backbone(config, ndim=2, in_chans=3)
