"""A bundle's network as an ONNX file or a ``torch.export`` program, kept only if it answers like the original."""

from __future__ import annotations

import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.bundle import Bundle
from shared.errors import ModelUnusable, UsageError, named_line, need
from shared.io.atomic import atomic_path

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from shared.pipeline import Pipeline

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""Name → the suffix its files usually have."""
TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest output (or to 1 where outputs are smaller)."""
ONE_FILE_BYTES = 1_900_000_000
"""An ONNX file cannot exceed 2 GB without a second file beside it."""

Tensors = dict[str, "Tensor"]
Answer = Callable[[Tensors], "Tensor | Sequence[Tensor]"]


def export(pipeline: Pipeline, model: Path, format_: str, output: Path) -> dict[str, Any]:
    """Write `output` and say how far it is from the original; complete and checked, or absent.

    Inputs are as the task's `example_input_array`, which the network takes: a tensor, or a named tuple of tensors,
    whose names are kept (without those that are None), as are a named tuple's that it returns. The first axis is a
    free batch size; the others are fixed. Raises `UsageError`, `EnvironmentUnfit`, or `ModelUnusable` where results
    differ.
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
    network, example, names = _network(pipeline, Bundle.open(model))
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(output) as draft:
        try:
            with _silence():
                free = _write(network, example, names, format_, draft)
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
        "inputs": {
            name: ["batch" if free else 1, *map(int, tensor.shape[1:])] for name, tensor in example.items()
        },
        "outputs": names,
        "max_difference": difference,
        "tolerance": tolerance,
        "seconds": round(time.monotonic() - started, 1),
    }


def _network(pipeline: Pipeline, bundle: Bundle) -> tuple[nn.Module, Tensors, list[str]]:
    """The network with the bundle's weights, tensors in and out since no named tuple can be written; an input of two
    samples; the names of what comes out."""
    import torch

    task = pipeline.task(bundle.config(pipeline.config_type))
    example = getattr(task, "example_input_array", None)
    if example is None:
        raise UsageError(
            f"{pipeline.name}: this model cannot be exported; one whose task has an `example_input_array` wanted; "
            "predict or serve with it"
        )
    network: nn.Module = bundle.load_into(task.network)
    for module in network.modules():  # recomputation serves training only, and exporters stumble over it
        if getattr(module, "use_checkpoint", False):
            module.use_checkpoint = False  # type: ignore[assignment]

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
            out = tuple(_named(self.network(_like(example, given)), "output").values())
            return out if len(out) > 1 else out[0]

    with torch.no_grad():
        names = list(_named(network(example), "output"))
    # One sample would freeze the batch size to 1.
    inputs = {name: _rows(tensor, 2) for name, tensor in _named(example, "input").items()}
    return Flat().eval(), inputs, names


def _named(value: Any, name: str) -> Tensors:
    """A named tuple's tensors without those that are None; a tensor as `name`."""
    fields = value._asdict() if hasattr(value, "_asdict") else {name: value}
    return {field: tensor for field, tensor in fields.items() if tensor is not None}


def _like(example: Any, given: Sequence[Tensor]) -> Any:
    """The inverse of `_named`."""
    if not hasattr(example, "_asdict"):
        return given[0]
    return example._replace(**dict(zip(_named(example, ""), given)))


def _all(out: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    import torch

    return [out] if isinstance(out, torch.Tensor) else out


def _rows(tensor: Tensor, count: int) -> Tensor:
    """The first `count`, from the start again where there are fewer."""
    import torch

    return tensor[torch.arange(count) % len(tensor)]


def _write(network: nn.Module, example: Tensors, names: list[str], format_: str, path: Path) -> bool:
    """Write the program; True if its batch size is free, False if the network fixed it (then to 1)."""
    import torch

    batch = {0: torch.export.Dim("batch", min=1, max=4096)}
    free = True
    with torch.no_grad():
        try:
            given = tuple(example.values())
            program = torch.export.export(network, given, dynamic_shapes=((batch,) * len(given),))
        except (torch._dynamo.exc.UserError, ValueError, RuntimeError):
            free = False
            program = torch.export.export(network, tuple(each[:1] for each in example.values()))
    if format_ == "torch":
        torch.export.save(program, path)
        return free
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if size > ONE_FILE_BYTES:
        raise UsageError(f"--format onnx: {size:,} bytes of weights; at most 2 GB wanted; use --format torch")
    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    if converted is None:
        raise ModelUnusable(f"{path.name}: the ONNX exporter returned nothing; use --format torch")
    graph = converted.model.graph
    ends = [*zip(graph.inputs, example, strict=True), *zip(graph.outputs, names, strict=True)]
    for value in (
        out for node in graph for out in node.outputs
    ):  # the exporter's own may be called like ours
        value.name = f"node_{value.name}"
    for value, name in ends:
        value.name = name
    converted.save(str(path), external_data=False)
    return free


def _onnx_answer(path: Path) -> Answer:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    read = {each.name for each in session.get_inputs()}  # what nothing depends on is left out
    return lambda given: [
        torch.from_numpy(each)
        for each in session.run(None, {name: x.numpy() for name, x in given.items() if name in read})
    ]


def _torch_answer(path: Path) -> Answer:
    import torch

    module = torch.export.load(path).module()
    return lambda given: module(*given.values())


def _compare(network: nn.Module, answer: Answer, example: Tensors, free: bool) -> tuple[float, float]:
    """(largest difference, tolerance) over the example with noise for its reals, batch sizes 1 and 3 where free."""
    import torch

    generator = torch.Generator().manual_seed(0)
    worst, largest = 0.0, 1.0
    for size in (1, 3) if free else (1,):
        given = {name: _noised(_rows(tensor, size), generator) for name, tensor in example.items()}
        with torch.no_grad():
            pairs = zip(_all(network(*given.values())), _all(answer(given)), strict=True)
        for wanted, got in pairs:
            if got.shape != wanted.shape or not torch.equal(got.isnan(), wanted.isnan()):
                return float("inf"), TOLERANCE
            # Infinities differ by NaN from their like, and NaN is hidden by `max`.
            apart = (wanted - got).abs().masked_fill((wanted == got) | wanted.isnan(), 0)
            worst, largest = max(worst, float(apart.max())), max(largest, float(wanted.abs().max()))
    return worst, TOLERANCE * largest


def _noised(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Noise for reals, but for NaN, which says that something is absent; whole numbers and truth values as they are."""
    import torch

    if not tensor.is_floating_point():
        return tensor
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor.dtype)
    return noise.masked_fill(tensor.isnan(), torch.nan)


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
