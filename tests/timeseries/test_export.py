"""A linear forecaster as a file for other programs: scaled windows in, NaN where missing, forecasts out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.export import export
from shared.errors import UsageError
from tests.timeseries.repeating import HORIZON, LENGTH, make_config, save
from timeseries.forecast.config import ForecastConfig
from timeseries.forecast.network import ForecastNetwork
from timeseries.forecast.pipeline import PIPELINE
from timeseries.forecast.windows import Inputs


def of(model: dict[str, Any], **data: Any) -> ForecastConfig:
    config = make_config(**data)
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"name": "linear"}, marks=pytest.mark.slow),
        {"name": "nlinear"},
        pytest.param({"name": "nlinear", "individual": True}, marks=pytest.mark.slow),
        pytest.param({"name": "dlinear", "kernel": 5}, marks=pytest.mark.slow),
        pytest.param({"name": "naive", "season": 4}, marks=pytest.mark.slow),
    ],
    ids=lambda model: model["name"],
)
@pytest.mark.parametrize("format_", ["onnx", "torch"])
def test_exported_files_answer_like_the_network_also_where_values_miss(
    tmp_path: Path, model: dict[str, Any], format_: str
) -> None:
    config = of(model)
    torch.manual_seed(0)
    network = ForecastNetwork(config)
    output = tmp_path / ("model.onnx" if format_ == "onnx" else "model.pt2")
    result = export(PIPELINE, save(tmp_path / "b", config, network).path, format_, output)
    assert result["inputs"] == {"input": ["batch", LENGTH, 2]}
    x = torch.randn(3, LENGTH, 2)
    x[0, -2:, 1] = x[1, 4:9] = torch.nan
    if format_ == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
        got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    else:
        got = torch.export.load(output).module()(x)
    mask = x.isfinite()
    nothing = torch.empty(3, LENGTH + HORIZON, 0)
    inputs = Inputs(x.nan_to_num(), mask, nothing[:, :LENGTH], nothing, torch.randn(3, LENGTH + HORIZON, 4))
    with torch.no_grad():
        torch.testing.assert_close(got, network.eval()(inputs), rtol=1e-4, atol=1e-5)


def test_a_model_that_reads_more_than_its_targets_is_not_exported(tmp_path: Path) -> None:
    config = of({"name": "nlinear"}, future_columns=["f"])
    path = save(tmp_path / "b", config, ForecastNetwork(config)).path
    with pytest.raises(UsageError, match="forecast: this model cannot be exported"):
        export(PIPELINE, path, "torch", tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
