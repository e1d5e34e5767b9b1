"""The smallest pipeline that can be trained, bundled, tracked, exported and served: a straight line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.bundle import Bundle
from shared.config import Config, RunConfig
from shared.errors import Fault, ItemError
from shared.pipeline import Evaluation, Item, Pipeline, Predictor, Primary, Tick


class LineModelConfig(Config):
    width: int = 2


class LineConfig(RunConfig):
    model: LineModelConfig = LineModelConfig()


class LinePredictor(Predictor):
    record_inputs = {"x": "double", "name": "string"}
    record_outputs = {"y": "double"}

    def __init__(self, bundle: Bundle) -> None:
        config = bundle.config(LineConfig)
        self._network = bundle.load_into(LineTask(config).network)

    def discover(self, paths: Sequence[Path]) -> list[Item]:
        return []

    def predict(self, item: Item, tick: Tick | None = None) -> Any:
        return None

    def write(self, result: Any, folder: Path) -> dict[str, Any]:
        return {}

    def predict_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        import torch

        if record["x"] is None or record["x"] < 0:
            raise ItemError("record", f"x = {record['x']}", "x ≥ 0 wanted", field="x")
        if record["x"] > 1e6:
            raise ZeroDivisionError("a bug")
        with torch.no_grad():
            return {"y": float(self._network(torch.tensor([[record["x"]]])).sum())}

    def example_record(self) -> dict[str, Any]:
        return {"x": 1.0}


def LineTask(config: LineConfig) -> Any:
    """A LightningModule-like object; made by a function so that importing this file stays light."""
    import pytorch_lightning as pl
    import torch

    class Task(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = torch.nn.Linear(1, config.model.width)
            self.example_input_array = torch.ones(1, 1)

    return Task()


class Line(Pipeline):
    name = "toy-line"
    summary = "A straight line"
    inputs = "numbers"
    models = ("line",)
    extra = "none"
    requires = ("torch",)
    config_type = LineConfig
    primary = Primary("score", "max")
    folder = Path(__file__).parent

    def check(self, config: Any) -> list[Fault]:
        return []

    def data(self, config: Any) -> Any:
        raise NotImplementedError

    def task(self, config: Any) -> Any:
        return LineTask(config)

    def predictor(self, bundle: Bundle, options: Mapping[str, Any]) -> Predictor:
        return LinePredictor(bundle)

    def evaluate(self, bundle: Bundle, config: Any, out: Path) -> Evaluation:
        return Evaluation({})

    def write_sample(self, folder: Path, n: int, seed: int) -> list[Path]:
        return []

    def report(self, report: Any, config: Any, evaluation: Evaluation) -> None:
        return None


PIPELINE = Line()


def make_bundle(path: Path, seed: int = 0) -> Bundle:
    """A bundle of the line with seeded weights."""
    import torch

    torch.manual_seed(seed)
    config = LineConfig.model_validate({})
    state = LineTask(config).network.state_dict()
    return Bundle.save(path, pipeline="toy-line", config=config, state_dict=state, card="# line\n")


def register_in(folder: Path) -> Path:
    """Metadata in `folder` that makes `toy-line` a registered pipeline for whoever has `folder` on its path."""
    info = folder / "toy_line-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-line\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pipelines]\ntoy-line = tests.pipelines.fake_tracking:PIPELINE\n")
    return folder
