"""Exported files answer like the network, for any batch size; what differs or cannot be made leaves nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.export import _compare, export
from shared.bundle import Bundle
from shared.errors import ModelUnusable, UsageError
from tests.pipelines.fake_tracking import PIPELINE, LineConfig, LineTask, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("export") / "bundle")


def network(bundle: Bundle) -> Any:
    return bundle.load_into(LineTask(bundle.config(LineConfig)).network)


def test_onnx_answers_like_the_network(bundle: Bundle, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    result = export(PIPELINE, bundle.path, "onnx", tmp_path / "new" / "line.onnx")
    assert result["inputs"] == {"input": ["batch", 1]} and result["outputs"] == ["output"]
    assert result["max_difference"] <= result["tolerance"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["line.onnx"]
    session = onnxruntime.InferenceSession(result["output"], providers=["CPUExecutionProvider"])
    x = torch.randn(5, 1)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert torch.allclose(torch.from_numpy(got), network(bundle)(x), atol=1e-6)


def test_torch_program_answers_like_the_network(bundle: Bundle, tmp_path: Path) -> None:
    result = export(PIPELINE, bundle.path, "torch", tmp_path / "line.pt2")
    x = torch.randn(5, 1)
    assert torch.equal(torch.export.load(result["output"]).module()(x), network(bundle)(x))
    assert result["bytes"] == (tmp_path / "line.pt2").stat().st_size


class Other(type(PIPELINE)):  # type: ignore[misc]
    """The line, with another network or example."""

    def __init__(self, network: torch.nn.Module | None = None, example: Any = None) -> None:
        self._given = network, example

    def task(self, config: Any) -> Any:
        task = LineTask(config)
        task.example_input_array = self._given[1]
        if self._given[0] is not None:
            task.network = self._given[0]
        return task


class FixedBatch(torch.nn.Linear):
    """Works for one sample only, as a careless reshape does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] != 1:
            raise RuntimeError("one sample wanted")
        return super().forward(x)


def test_a_network_that_fixes_its_batch_is_exported_for_one(bundle: Bundle, tmp_path: Path) -> None:
    pipeline = Other(FixedBatch(1, 2), torch.ones(1, 1))
    assert export(pipeline, bundle.path, "torch", tmp_path / "line.pt2")["inputs"] == {"input": [1, 1]}


@pytest.mark.parametrize(
    ("own", "other", "wanted"),
    [
        ([1.0, math.nan], [1.0, math.nan], 0.0),
        ([1.0, math.nan], [1.5, math.nan], 0.5),
        ([1.0, 2.0], [1.0, math.nan], math.inf),
        ([1.0, math.nan], [1.0, 2.0], math.inf),
        ([math.inf, 1.0], [math.inf, 1.25], 0.25),
        ([math.inf, 1.0], [-math.inf, 1.0], math.inf),
    ],
)
def test_answers_that_are_no_numbers_must_be_the_same(
    own: list[float], other: list[float], wanted: float
) -> None:
    network = torch.nn.Identity()
    network.forward = lambda _: torch.tensor([own])  # type: ignore[method-assign]
    found, _ = _compare(network, lambda _: torch.tensor([other]), {"x": torch.ones(1, 1)}, free=False)
    assert found == wanted


def test_a_differing_result_is_not_kept(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipelines.export._torch_answer", lambda path: lambda given: network(bundle)(given["input"]) + 0.01
    )
    with pytest.raises(ModelUnusable, match=r"results differ by 0\.01"):
        export(PIPELINE, bundle.path, "torch", tmp_path / "line.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("over", "match"),
    [
        ({"format_": "tflite"}, "--format tflite: unknown"),
        ({"output": Path(".")}, "a file name wanted"),
        ({"pipeline": Other()}, "cannot be exported"),
    ],
)
def test_unusable_requests_are_one_line(
    bundle: Bundle, tmp_path: Path, over: Mapping[str, Any], match: str
) -> None:
    given = {"pipeline": PIPELINE, "model": bundle.path, "format_": "torch", "output": tmp_path / "x.pt2"}
    with pytest.raises(UsageError, match=match):
        export(**(given | over))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_bundle_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable):
        export(PIPELINE, tmp_path / "absent", "torch", tmp_path / "x.pt2")
