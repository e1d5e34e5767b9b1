"""Autoformer beside the authors' code: the same weights, the same windows, one process, one thread, turn by turn.

The peer is a checkout of github.com/thuml/Autoformer whose folder is named by the environment variable
PIPELINES_AUTOFORMER; without it the case is skipped. The published size on windows of 96 rows, 96 ahead, 7 channels, 32
at once: forward, backward and Adam, least time of several turns. Before the clock starts, without dropout, the outputs
of training's form and prediction's are compared, and the losses of a few steps; the timed steps have dropout.
"""

from __future__ import annotations

import importlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from shared.bench.peer import checkout
from timeseries.forecast.models.autoformer import Autoformer
from timeseries.forecast.windows import Inputs

Say = Callable[[str], None]
VARIABLE = "PIPELINES_AUTOFORMER"
TURNS, EQUAL = 5, 3
OURS = (
    (r"^enc_embedding\.value_embedding\.tokenConv", "encoder_embedding.columns"),
    (r"^dec_embedding\.value_embedding\.tokenConv", "decoder_embedding.columns"),
    (r"^enc_embedding\.temporal_embedding\.embed", "encoder_embedding.marks"),
    (r"^dec_embedding\.temporal_embedding\.embed", "decoder_embedding.marks"),
    (r"^encoder\.attn_layers\.", "encoder."),
    (r"^decoder\.layers\.", "decoder."),
    (r"\.(self_)?attention\.", ".mixer."),
    (r"\.cross_attention\.", ".cross."),
    (r"\.(query|key|value|out)_projection\.", r".\1."),
    (r"\.conv([12])\.", r".ffn.fc\1."),
    (r"^(decoder\.\d+)\.projection\.", r"\1.trend."),
    (r"^decoder\.projection\.", "seasonal."),
    (r"^(encoder|decoder)\.norm\.layernorm\.", r"\1_norm."),
)
"""The official names as regular expressions, and ours, applied in order."""


def our_name(name: str) -> str:
    """Of an official weight."""
    for old, new in OURS:
        name = re.sub(old, new, name)
    return name


def our_weights(official: Mapping[str, Tensor], ours: nn.Module) -> dict[str, Tensor]:
    """The official weights under our names; kernels of one step become matrices."""
    shapes = {name: value.shape for name, value in ours.state_dict().items()}
    named = {our_name(name): v for name, v in official.items() if "position_embedding" not in name}
    return {name: value.reshape(shapes[name]) for name, value in named.items()}


def pair(
    folder: Path, *, length: int = 96, horizon: int = 96, channels: int = 7, **options: Any
) -> tuple[Any, Any]:
    """The official network and ours with its weights. `options` are ours."""
    o = {
        "label_length": 48, "width": 512, "heads": 8, "feedforward": 2048, "encoder_layers": 2, "decoder_layers": 1,
        "kernel": 25, "factor": 3, "dropout": 0.05,
    } | options  # fmt: skip
    with checkout(folder, ("models", "layers", "utils")):
        model: Any = importlib.import_module("models.Autoformer").Model
    sizes = SimpleNamespace(
        seq_len=length, label_len=o["label_length"], pred_len=horizon, enc_in=channels, dec_in=channels,
        c_out=channels, d_model=o["width"], n_heads=o["heads"], d_ff=o["feedforward"], e_layers=o["encoder_layers"],
        d_layers=o["decoder_layers"], moving_avg=o["kernel"], factor=o["factor"], dropout=o["dropout"],
        embed="timeF", freq="h", activation="gelu", output_attention=False,
    )  # fmt: skip
    official = model(sizes)
    ours = Autoformer(length, horizon, channels, marks=4, **o)
    ours.load_state_dict(our_weights(official.state_dict(), ours))
    return official, ours


def windows(batch: int, length: int, horizon: int, channels: int, seed: int = 0) -> tuple[Inputs, Tensor]:
    """A daily rhythm, noise, and marks of four features; with what came after."""
    draw = torch.Generator().manual_seed(seed)
    rhythm = torch.sin(torch.arange(length + horizon) * (2 * torch.pi / 24))[:, None]
    x = rhythm + 0.5 * torch.randn(batch, length + horizon, channels, generator=draw)
    marks = torch.rand(batch, length + horizon, 4, generator=draw) - 0.5
    there = torch.ones(batch, length, channels, dtype=torch.bool)
    none = x.new_empty(batch, length + horizon, 0)
    return Inputs(x[:, :length], there, none[:, :length], none, marks), x[:, length:]


def official_forward(official: nn.Module, inputs: Inputs, label_length: int = 48) -> Tensor:
    """(B, H, C) of the authors' network, which reads nothing of its third argument but the shape."""
    length = inputs.x.shape[1]
    marks = inputs.marks[:, length - label_length :]
    blank = inputs.x.new_zeros(*marks.shape[:2], inputs.x.shape[2])
    return official(inputs.x, inputs.marks[:, :length], blank, marks)  # type: ignore[no-any-return]


def autoformer_case(say: Say) -> list[dict[str, Any]]:
    """One training step of the published size."""
    named = os.environ.get(VARIABLE)
    if not named:
        say(f"{VARIABLE} is not set to a checkout of github.com/thuml/Autoformer; skipped")
        return []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _official_step(Path(named), say)
    finally:
        torch.set_num_threads(threads)


def _official_step(folder: Path, say: Say) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    inputs, y = windows(32, 96, 96, 7)
    away = 0.0
    official, ours = pair(folder, dropout=0.0)
    for training in (True, False):
        with torch.no_grad():
            wanted = official_forward(official.train(training), inputs)
            away = max(away, (ours.train(training)(inputs)[:, 0] - wanted).abs().max().item())
    say(f"without dropout the outputs differ by {away:.1e}, training's form and prediction's")
    steps = (
        _steps(ours, lambda: ours(inputs)[:, 0], y),
        _steps(official, lambda: official_forward(official, inputs), y),
    )
    losses = [[step() for _ in range(EQUAL)] for step in steps]
    say(f"losses of {EQUAL} steps without dropout: {losses[0]}, official {losses[1]}")
    official, ours = pair(folder)
    steps = (
        _steps(ours, lambda: ours(inputs)[:, 0], y),
        _steps(official, lambda: official_forward(official, inputs), y),
    )
    mine, peers = _alternate(steps, TURNS)
    say(f"a step takes {mine:.2f} s, the official code {peers:.2f} s: {peers / mine:.2f} ×")
    return [
        {
            "case": "autoformer-step",
            "model": "autoformer, published size, 32 windows of 96 + 96 rows, 7 channels",
            "quantity": "training step",
            "unit": "s",
            "ours": round(mine, 3),
            "peer": round(peers, 3),
            "peer_name": "github.com/thuml/Autoformer",
            "ratio": round(peers / mine, 2),
            "largest_difference": away,
            "loss": losses[0][-1],
            "loss_peer": losses[1][-1],
        }
    ]


def _steps(network: nn.Module, forward: Callable[[], Tensor], y: Tensor) -> Callable[[], float]:
    """A call that trains the network by one step of Adam and gives its loss."""
    network.train()
    adam = torch.optim.Adam(network.parameters(), 1e-4)

    def step() -> float:
        adam.zero_grad()
        loss = (forward() - y).square().mean()
        loss.backward()
        adam.step()
        return round(loss.item(), 4)

    return step


def _alternate(steps: Sequence[Callable[[], float]], turns: int) -> list[float]:
    """Least seconds of each; they take turns, so that a busy machine harms all, and the first turn is not timed."""
    seconds: list[list[float]] = [[] for _ in steps]
    for turn in range(1 + turns):
        for taken, step in zip(seconds, steps):
            started = time.perf_counter()
            step()
            if turn:
                taken.append(time.perf_counter() - started)
    return [min(taken) for taken in seconds]


CASES: dict[str, Callable[[Say], list[dict[str, Any]]]] = {"autoformer-step": autoformer_case}
QUICK = ("autoformer-step",)
