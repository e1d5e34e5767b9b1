"""What taking the means out of a network's norms saves: the same network with LayerNorm, RMSNorm and CRMSNorm.

The three compute the same, so the figures are times of a forward pass of the whole network, one thread, evaluation
mode, taken in turn. `digits` is a network trained here on scikit-learn's digits, its outputs and accuracy compared;
`vit_tiny` is timm's ViT-Tiny at 224 × 224 and `wide` a shallow network whose norms weigh most, both with random
weights; `compiled` is `wide` under torch.compile, which needs a C++ compiler.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.nets import create_backbone
from shared.rewrite.convert import apply

Say = Callable[[str], None]
PEER = "the same network with LayerNorm"
FORMS = ("rms", "crms")
DIGITS: dict[str, Any] = {
    "stem": {"name": "conv", "kernels": [3, 3], "strides": [1, 2], "activation": "relu"},
    "position": "learned",
    "dims": [64],
    "depths": [4],
    "mixers": [{"name": "attention", "head_dim": 16}],
    "ffn": {"name": "mlp", "ratio": 2},
    "head": "max",
}
WIDE = DIGITS | {
    "stem": {"name": "patch", "patch": 1},
    "position": "sine",
    "dims": [32],
    "ffn": {"name": "mlp", "ratio": 1},
    "head": "mean",
}


def run_digits(say: Say) -> list[dict[str, Any]]:
    """A trained network: equal outputs, equal accuracy, and the time."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    model = create_backbone(DIGITS, ndim=2, in_chans=1, num_classes=10, img_size=(8, 8))
    _train(model, x[:1400], y[:1400], epochs=5)
    model.eval()
    case, name = "digits, 16 tokens", "ViT, 4 blocks of 64, trained"
    rows = _times(case, name, model, x, 60, say)
    with torch.no_grad():
        wanted, truth = model(x[1400:]), y[1400:]
        for form in FORMS:
            found = apply(model, form=form)[0](x[1400:])
            largest = float((found - wanted).abs().max())
            say(f"digits: {form} differs by {largest:.1e} at outputs up to {float(wanted.abs().max()):.1f}")
            right = [round(float((out.argmax(1) == truth).double().mean()), 4) for out in (found, wanted)]
            row = {"case": case, "model": f"{name}, {form}", "unit": "", "peer_name": PEER, "ratio": None}
            rows.append(row | {"quantity": "accuracy, held out", "ours": right[0], "peer": right[1]})
            rows.append(row | {"quantity": "largest difference of outputs", "ours": largest, "peer": 0.0})
    return rows


def run_vit_tiny(say: Say) -> list[dict[str, Any]]:
    """A published size: 12 blocks of 192 channels, 197 tokens."""
    from shared.nets.compat import import_timm

    torch.manual_seed(0)
    model = import_timm().create_model("vit_tiny_patch16_224", num_classes=1000).eval()
    return _times("224 × 224", "timm vit_tiny_patch16_224", model, torch.randn(64, 3, 224, 224), 12, say)


def run_wide(say: Say, compiled: bool = False) -> list[dict[str, Any]]:
    """Many tokens of few channels, feed-forward parts no wider than the stream: where norms weigh most."""
    torch.manual_seed(0)
    model = create_backbone(WIDE, ndim=2, in_chans=1, num_classes=10).eval()
    name = f"ViT, 4 blocks of 32{', compiled' if compiled else ''}"
    return _times("16 × 16 tokens", name, model, torch.randn(64, 1, 16, 16), 40, say, compiled)


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {
    "digits": run_digits,
    "vit_tiny": run_vit_tiny,
    "wide": run_wide,
    "compiled": lambda say: run_wide(say, compiled=True),
}
QUICK = ("digits",)


def _train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> None:
    steps = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(steps, 3e-3, total_steps=epochs * -(-len(x) // 50))
    for _ in range(epochs):
        for part in torch.randperm(len(x)).split(50):
            steps.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            steps.step()
            rate.step()


def _times(
    case: str, name: str, model: nn.Module, x: Tensor, rounds: int, say: Say, compiled: bool = False
) -> list[dict[str, Any]]:
    """Median milliseconds of each form; the ratio is the median over rounds, in which the three take turns."""
    torch.set_num_threads(1)
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)  # that it cannot keep code for next time
    forms = {"layer": model} | {form: apply(model, form=form)[0] for form in FORMS}
    rows = []
    for batch in (1, 64):
        nets = {key: torch.compile(net, dynamic=False) if compiled else net for key, net in forms.items()}
        taken: dict[str, list[float]] = {form: [] for form in forms}
        order = list(nets)
        for _ in range(rounds):
            order.append(order.pop(0))
            for form in order:
                taken[form].append(_milliseconds(nets[form], x[:batch]))
        for form in FORMS:
            ratio = statistics.median(a / b for a, b in zip(taken["layer"], taken[form]))
            ours, peer = (statistics.median(taken[key]) for key in (form, "layer"))
            say(f"{case}: batch {batch}, {form} {ours:.2f} ms against {peer:.2f}, ratio {ratio:.3f}")
            rows.append(
                {
                    "case": case,
                    "model": f"{name}, {form}",
                    "quantity": f"time, batch {batch}",
                    "unit": "ms",
                    "ours": round(ours, 3),
                    "peer": round(peer, 3),
                    "peer_name": PEER,
                    "ratio": round(ratio, 3),
                }
            )
    return rows


def _milliseconds(net: nn.Module, x: Tensor) -> float:
    """Of one pass, after one that brings code and weights near."""
    with torch.no_grad():
        net(x)
        started = time.perf_counter()
        net(x)
        return (time.perf_counter() - started) * 1e3
