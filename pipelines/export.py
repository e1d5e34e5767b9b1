"""A bundle's network as an ONNX file or a ``torch.export`` program, kept only if it answers like the original."""

from __future__ import annotations

import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.bundle import Bundle
from shared.errors import ModelUnusable, UsageError, named_line, need
from shared.io.atomic import atomic_path

if TYPE_CHECKING:
    from torch import Tensor, nn

    from shared.pipeline import Pipeline

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""Name → the suffix its files usually have."""
TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest output (or to 1 where outputs are smaller)."""
ONE_FILE_BYTES = 1_900_000_000
"""An ONNX file cannot exceed 2 GB without a second file beside it."""

Answer = Callable[["Tensor"], "Tensor"]


def export(pipeline: Pipeline, model: Path, format_: str, output: Path) -> dict[str, Any]:
    """Write `output` and say how far it is from the original; complete and checked, or absent.

    Input is one tensor whose first axis is a free batch size; the other axes are fixed to the task's
    `example_input_array`. Raises `UsageError`, `EnvironmentUnfit`, or `ModelUnusable` when results differ.
    """
    if format_ not in FORMATS:
        raise UsageError(f"--format {format_}: unknown; one of {', '.join(FORMATS)} wanted")
    if output.is_dir():
        raise UsageError(
            f"{output}: a folder; a file name wanted; for example {output / 'model'}{FORMATS[format_]}"
        )
    if format_ == "onnx":
        need("export", "onnx", "onnxruntime", "onnxscript")
    started = time.monotonic()
    network, example = _network(pipeline, Bundle.open(model))
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output) as draft:
        try:
            with _silence():
                free = _write(network, example, format_, draft)
        except (RuntimeError, ValueError, NotImplementedError) as err:
            raise ModelUnusable(f"{output}: cannot be exported ({named_line(err)})") from err
        answer = _onnx_answer(draft) if format_ == "onnx" else _torch_answer(draft)
        difference, tolerance = _compare(network, answer, example, free)
        if not difference <= tolerance:
            raise ModelUnusable(
                f"{output}: results differ by {difference:.2g}; at most {tolerance:.2g} wanted; nothing kept"
            )
    return {
        "pipeline": pipeline.name,
        "format": format_,
        "output": str(output),
        "bytes": output.stat().st_size,
        "input": ["batch" if free else 1, *map(int, example.shape[1:])],
        "max_difference": difference,
        "tolerance": tolerance,
        "seconds": round(time.monotonic() - started, 1),
    }


def _network(pipeline: Pipeline, bundle: Bundle) -> tuple[nn.Module, Tensor]:
    """The network with the bundle's weights and an input of two samples."""
    import torch

    task = pipeline.task(bundle.config(pipeline.config_type))
    example = getattr(task, "example_input_array", None)
    if not isinstance(example, torch.Tensor):
        raise UsageError(
            f"{pipeline.name}: no example input; a tensor `example_input_array` wanted on its task; cannot export"
        )
    network: nn.Module = bundle.load_into(task.network)
    for module in network.modules():  # recomputation serves training only, and exporters stumble over it
        if getattr(module, "use_checkpoint", False):
            module.use_checkpoint = False  # type: ignore[assignment]
    # One sample would freeze the batch size to 1.
    return network, example[:1].repeat(2, *[1] * (example.dim() - 1))


def _write(network: nn.Module, example: Tensor, format_: str, path: Path) -> bool:
    """Write the program; True if its batch size is free, False if the network fixed it (then to 1)."""
    import torch

    axes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
    free = True
    with torch.no_grad():
        try:
            program = torch.export.export(network, (example,), dynamic_shapes=axes)
        except (torch._dynamo.exc.UserError, ValueError, RuntimeError):
            free = False
            program = torch.export.export(network, (example[:1],))
    if format_ == "torch":
        torch.export.save(program, path)
        return free
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if size > ONE_FILE_BYTES:
        raise UsageError(f"--format onnx: {size:,} bytes of weights; at most 2 GB wanted; use --format torch")
    converted = torch.onnx.export(
        program, dynamo=True, input_names=["input"], output_names=["output"], verbose=False
    )
    if converted is None:
        raise ModelUnusable(f"{path.name}: the ONNX exporter returned nothing; use --format torch")
    converted.save(str(path), external_data=False)
    return free


def _onnx_answer(path: Path) -> Answer:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _torch_answer(path: Path) -> Answer:
    import torch

    module = torch.export.load(path).module()
    return lambda x: module(x)


def _compare(network: nn.Module, answer: Answer, example: Tensor, free: bool) -> tuple[float, float]:
    """(largest difference, tolerance) over the example and noise like it, with batch sizes 1 and 3 where free."""
    import torch

    generator = torch.Generator().manual_seed(0)
    worst, largest = 0.0, 1.0
    for size in (1, 3) if free else (1,):
        noise = torch.randn((size, *example.shape[1:]), generator=generator, dtype=torch.float32)
        x = noise.to(example.dtype) if example.is_floating_point() else example[:1].repeat_interleave(size, 0)
        with torch.no_grad():
            wanted, got = network(x), answer(x)
        if got.shape != wanted.shape:
            return float("inf"), TOLERANCE
        worst = max(worst, float((wanted - got).abs().max()))
        largest = max(largest, float(wanted.abs().max()))
    return worst, TOLERANCE * largest


@contextmanager
def _silence() -> Iterator[None]:
    """Without the exporters' progress lines and advice; errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
