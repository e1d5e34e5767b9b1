"""Mamba's scan against its definition, the mixer against mambapy, and what selection is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.bench.recall import selective_copy
from shared.errors import UsageError
from shared.nets import create_backbone
from shared.nets.measure import count_params
from shared.nets.mixers.mamba import Mamba
from shared.nets.ops import selective_scan as ops
from shared.nets.ops.selective_scan import selective_recurrence, selective_scan


def arguments(
    batch: int, length: int, width: int, states: int, *, own: bool = False, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """x, Δ, A, B, C, state; with `own` decay rates for every sequence."""
    torch.manual_seed(0)
    delta = F.softplus(torch.randn(batch, length, width, dtype=dtype))
    rates = -torch.exp(torch.randn(*([batch] if own else []), width, states, dtype=dtype) / 2)
    x, b, c = (torch.randn(batch, length, n, dtype=dtype) for n in (width, states, states))
    state = torch.randn(batch, width, states, dtype=dtype)
    return [v.requires_grad_() for v in (x, delta, rates, b, c, state)]


# ---------------------------------------------------------------- the scan


@pytest.mark.parametrize("own", [False, True], ids=["one A", "A by sequence"])
@pytest.mark.parametrize("length", [1, 7, 300])
def test_chunks_equal_the_recurrence_in_values_and_gradients(
    length: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of 72 tokens in 8 segments, chunks of 8 in one, and what is left over at the end."""
    given = arguments(2, length, 3, 4, own=own)
    wanted = selective_recurrence(*given)
    weights = [torch.randn_like(v) for v in wanted]
    expected = torch.autograd.grad([(w * v).sum() for w, v in zip(weights, wanted)], given)
    for values, step in ((72 * 24, 4096), (8 * 24, 1)):
        monkeypatch.setattr(ops, "CHUNK_VALUES", values)
        monkeypatch.setattr(ops, "STEP_VALUES", step)
        found = selective_scan(*given)
        torch.testing.assert_close(found, wanted)
        gradients = torch.autograd.grad([(w * v).sum() for w, v in zip(weights, found)], given)
        torch.testing.assert_close(gradients, expected)


def test_single_precision_is_within_1e_5_of_the_recurrence() -> None:
    given = arguments(1, 512, 32, 16, dtype=torch.float32)
    with torch.no_grad():
        for found, wanted in zip(selective_scan(*given), selective_recurrence(*given)):
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_numerical_gradients_and_operator_rules() -> None:
    given = arguments(2, 7, 2, 3)
    assert torch.autograd.gradcheck(selective_scan, given)
    first = [
        v.detach().transpose(0, 1).contiguous().requires_grad_() for v in (given[0], given[1], *given[3:5])
    ]
    last = [v.detach().transpose(-1, -2).contiguous().requires_grad_() for v in (given[2][None], given[5])]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(ops._scan, (*first, *last), test_utils=checks)


@pytest.mark.parametrize("size", [1e-8, 1e4], ids=["tiny", "huge"])
def test_extreme_step_sizes_stay_finite_and_right(size: float) -> None:
    """Δ = 1e4 forgets everything at once (a ratio of decays would divide 0 by 0), Δ = 1e-8 nothing."""
    given = [v.detach() for v in arguments(2, 600, 4, 3, dtype=torch.float32)]
    given[1] = torch.where(torch.rand(given[1].shape) < 0.5, size, given[1])
    given = [v.requires_grad_() for v in given]
    found, wanted = selective_scan(*given), selective_recurrence(*given)
    for one, other in zip(found, wanted):
        assert torch.isfinite(one).all()
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    gradients = torch.autograd.grad(found[0].sum(), given[:5])
    expected = torch.autograd.grad(wanted[0].sum(), given[:5])
    for one, other in zip(gradients, expected):
        assert torch.isfinite(one).all()
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_a_state_carries_on_where_another_call_ended() -> None:
    x, delta, a, b, c, state = (v.detach() for v in arguments(2, 50, 3, 4))
    whole, end = selective_scan(x, delta, a, b, c, state)
    first, middle = selective_scan(x[:, :20], delta[:, :20], a, b[:, :20], c[:, :20], state)
    second, last = selective_scan(x[:, 20:], delta[:, 20:], a, b[:, 20:], c[:, 20:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(last, end)


def test_backward_keeps_one_state_a_chunk_and_no_tensor_of_all_states() -> None:
    given = arguments(1, 4096, 64, 16, dtype=torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        selective_scan(*given)
    assert max(kept) <= 4096 * 64


# ---------------------------------------------------------------- the mixer


def mixer(dim: int = 12, ndim: int = 1, **options: Any) -> Mamba:
    torch.manual_seed(0)
    return Mamba(dim, ndim, **options).double().eval()


def test_published_sizes() -> None:
    """65,408 in two layers of 64 channels, 3,771,648 a layer of 768 (norms among them); 24 of these are the backbone of
    the 130 M language model: with 50,280 embeddings and the final norm, 129,135,360."""
    with torch.device("meta"):
        small, large = (
            create_backbone(name, ndim=1, in_chans=1, num_classes=0) for name in ("mamba_xs", "mamba_130m")
        )
        layer = create_backbone("mamba_s_1d", ndim=1, in_chans=1, num_classes=0).stages[0].blocks[0]
    assert count_params(small.stages) == 65_408
    blocks = large.stages[0].blocks
    assert {count_params(block) for block in blocks} == {3_771_648}
    assert count_params(large.stages) == 24 * 3_771_648 == 90_519_552
    assert count_params(large.stages) + count_params(large.head.norm) + 50_280 * 768 == 129_135_360
    assert count_params(layer) == 116_608


def test_37_single_steps_chunks_and_recurrence_are_one_function() -> None:
    x = torch.randn(2, 37, 64)
    torch.manual_seed(0)
    chunked, slow = (Mamba(64, 1, causal=True, method=m) for m in ("chunked", "recurrent"))
    slow.load_state_dict(chunked.state_dict())
    with torch.no_grad():
        whole, state, outs = chunked(x), chunked.init_state(2), []
        for at in range(37):
            out, state = chunked.step(x[:, at], state)
            outs.append(out)
        scale = whole.abs().max()
        assert (slow(x) - whole).abs().max() <= 1e-5 * scale
        assert (torch.stack(outs, 1) - whole).abs().max() <= 1e-5 * scale


def test_the_network_streams() -> None:
    network = create_backbone("mamba_xs", ndim=1, in_chans=3).eval()
    x = torch.randn(2, 3, 11)
    with torch.no_grad():
        whole, state, outs = network.forward_features(x), network.init_state(2), []
        for at in range(11):
            out, state = network.step(x[..., at], state)
            outs.append(out)
    torch.testing.assert_close(torch.stack(outs, -1), whole, rtol=1e-4, atol=1e-5)


def test_parity_with_mambapy() -> None:
    """mambapy 1.2 (pscan mode), weights copied under their own names."""
    peer_module = pytest.importorskip("mambapy.mamba")
    torch.manual_seed(0)
    peer = peer_module.MambaBlock(peer_module.MambaConfig(d_model=24, n_layers=1))
    ours = Mamba(24, 1, causal=True)
    for name, value in peer.state_dict().items():
        outer = name.startswith(("in_proj", "out_proj"))
        ours.state_dict()[name if outer else f"paths.0.{name}"].copy_(value)
    x, y = (torch.randn(2, 50, 24).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    found, wanted = ours(x), peer(y)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    found.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-6)


def test_start_of_step_sizes_and_decay_rates_survives_the_networks_own() -> None:
    """Section 3.6: softplus(b) in [0.001, 0.1], A = −1 … −N, D = 1."""
    path: Any = create_backbone("mamba_xs", ndim=1, in_chans=1).stages[0].blocks[0].mixer.paths[0]
    start = F.softplus(path.dt_proj.bias)
    assert 0.001 <= start.min() < 0.005 and 0.02 < start.max() <= 0.1001
    torch.testing.assert_close(path.A_log.exp(), torch.arange(1.0, 17).expand(128, -1))
    assert path.dt_proj.weight.abs().max() <= 4**-0.5 and (path.D == 1).all()
    assert path.no_decay == {"A_log", "D"}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_sequences_equal_those_without(side: str) -> None:
    """Δ = 0 keeps the state and the convolution reads zeros: padding on either side is not there."""
    net = mixer(causal=True)
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    rest = torch.full((2, 5, 12), 3.0, dtype=torch.float64)
    keep = torch.ones(2, 9, dtype=torch.bool)
    padded, mask = ([rest, x], [~keep[:, :5], keep]) if side == "left" else ([x, rest], [keep, ~keep[:, :5]])
    at = slice(5, None) if side == "left" else slice(0, 9)
    torch.testing.assert_close(net(torch.cat(padded, 1), torch.cat(mask, 1))[:, at], net(x))


def test_masked_steps_keep_the_state() -> None:
    path: Any = mixer(causal=True).paths[0]
    x = torch.randn(1, 6, 24, dtype=torch.float64)
    delta, a, b, c = path.parameters_of(x, torch.tensor([[True, True, True, False, False, False]]))
    assert (delta[:, 3:] == 0).all() and (delta[:, :3] > 0).all()
    _, half = selective_scan(x[:, :3], delta[:, :3], a, b[:, :3], c[:, :3])
    torch.testing.assert_close(selective_scan(x, delta, a, b, c)[1], half, rtol=0, atol=0)


# ---------------------------------------------------------------- paths over maps


@pytest.mark.parametrize("shared", [False, True])
def test_cross_scan_is_the_sum_of_one_dimensional_scans(shared: bool) -> None:
    """Written out for a 3 × 4 map: rows, rows back, columns, columns back; each a causal scan."""
    net = mixer(8, 2, scan="cross", shared=shared)
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    inner, gate = net.in_proj(x).chunk(2, -1)
    total = torch.zeros_like(inner)
    for number in range(4):
        path: Any = net.paths[0 if shared else number]
        line = (inner if number < 2 else inner.transpose(1, 2)).flatten(1, 2)
        line = path.convolve(line.flip(1) if number % 2 else line)
        y = selective_recurrence(line, *path.parameters_of(line))[0] + path.D * line
        y = y.flip(1) if number % 2 else y
        total += y.unflatten(1, (3, 4)) if number < 2 else y.unflatten(1, (4, 3)).transpose(1, 2)
    torch.testing.assert_close(net(x), net.out_proj(total * F.silu(gate)))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_paths_by_scan_and_dimension(ndim: int) -> None:
    assert len(mixer(8, ndim, scan="cross").orders) == 2 * ndim
    assert len(mixer(8, ndim, scan="raster").paths) == 2
    assert len(mixer(8, ndim, scan="cross", shared=True).paths) == 1
    size = (4, 3, 2)[:ndim]
    x = torch.randn(1, *size, 8, dtype=torch.float64).requires_grad_()
    out = mixer(8, ndim, scan="raster")(x)
    (gradient,) = torch.autograd.grad(out[(0, *(0,) * ndim)].sum(), x)
    assert (gradient.abs().sum(-1) > 0).all()  # forth and back: a token sees all


def test_wrong_options_are_refused_in_one_line() -> None:
    for options in ({"scan": "zigzag"}, {"method": "fast"}, {"states": 0}):
        with pytest.raises(UsageError, match="mamba"):
            create_backbone(
                {"dims": [8], "depths": [1], "mixers": [{"name": "mamba", **options}]}, ndim=1, in_chans=1
            )


def test_scan_work_is_counted_by_formula() -> None:
    """Multiply-accumulates of every state: entry, recurrence, read-out; 2n paths."""
    assert mixer(8, 1, causal=True).extra_macs((10,)) == 10 * 16 * (3 * 16 + 2)
    assert mixer(8, 3).extra_macs((2, 3, 4)) == 6 * 24 * 16 * (3 * 16 + 2)


# ---------------------------------------------------------------- what selection is for


def copied(selective: bool, *, length: int = 24, items: int = 3, steps: int = 400, batch: int = 64) -> float:
    """Share of letters said right on 500 new samples, after training on `steps` batches."""
    torch.manual_seed(0)
    norm = {"name": "rmsnorm", "eps": 1e-5}
    config = {
        "stem": {"name": "patch", "patch": 1},
        "dims": [32],
        "depths": [2],
        "mixers": [{"name": "mamba", "selective": selective}],
        "ffn": None,
        "norm": norm,
        "final_norm": norm,
        "causal": True,
    }
    net, head = create_backbone(config, ndim=1, in_chans=16), nn.Linear(32, 14)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    learned = [*net.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=5e-3, weight_decay=0)
    curve = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    train, test = (
        selective_copy(n, part, length=length, items=items) for part, n in enumerate((steps * batch, 500))
    )

    def scores(x: Any) -> Tensor:
        hot = F.one_hot(torch.from_numpy(x), 16).transpose(1, 2).float()
        return head(net(hot)[..., -items:].transpose(1, 2))

    for at in range(0, steps * batch, batch):
        wanted = torch.from_numpy(train.y[at : at + batch, -items:])
        loss = F.cross_entropy(scores(train.x[at : at + batch]).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        curve.step()
    with torch.no_grad():
        return float((scores(test.x).argmax(-1).numpy() == test.y[:, -items:]).mean())


@pytest.mark.slow
def test_selection_solves_selective_copying_and_a_fixed_system_does_not() -> None:
    """Section 4.1.1: what lies between the letters differs, so that no convolution can line them up."""
    assert copied(True) > 0.95 > 0.9 > copied(False)
