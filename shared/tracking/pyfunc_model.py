"""The model MLflow loads: a bundle behind `mlflow.pyfunc`, one answer for each row of the request.

This file is stored with every logged model and run by MLflow when it loads one ("models from code"); nothing is
pickled. The suite must be installed where it is loaded: the bundle's pipeline is found by its entry point.
"""

from __future__ import annotations

import logging
import threading
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from shared.bundle import Bundle
from shared.errors import ModelUnusable, SuiteError

log = logging.getLogger(__name__)


class BundleModel(PythonModel):  # type: ignore[misc]
    """Columns are the predictor's `record_inputs` and `record_outputs`, plus ``error`` where a row failed."""

    def load_context(self, context: Any) -> None:
        bundle = Bundle.open(Path(context.artifacts["bundle"]))
        self._predictor = find_pipeline(bundle.pipeline).predictor(bundle, {})
        self._gate = threading.Lock()  # the scoring server answers from several threads

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A data frame with a row for each row of `model_input`."""
        # Only the hint `pd.DataFrame` is taken by MLflow without a warning, and without a schema of its own.
        frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
        records = [{str(k): plain(v) for k, v in row.items()} for row in frame.to_dict("records")]
        with self._gate:
            answers = [self._answer(record) for record in records]
        columns = [*self._predictor.record_outputs]
        if any("error" in answer for answer in answers):
            columns.append("error")
        answer = pd.DataFrame(answers, columns=columns or None)
        # What is missing leaves as null: JSON knows no NaN.
        return answer.astype(object).where(answer.notna(), None) if answer.isna().any(axis=None) else answer

    def _answer(self, record: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self._predictor.predict_record(record))
        except SuiteError as err:
            return {"error": str(err)}
        except Exception as err:
            log.exception("predict_record failed")
            return {"error": f"bug: {type(err).__name__}: {err}; please report it"}


def plain(value: Any) -> Any:
    """`value` as Python's own type: a data frame hands out NumPy scalars, and NaN for what was left out."""
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    return None if isinstance(value, float) and value != value else value


def find_pipeline(name: str) -> Any:
    """The pipeline registered as `name`. Raises `ModelUnusable` where it is not installed."""
    for point in entry_points(group="pipelines"):
        if point.name == name:
            pipeline = point.load()
            pipeline.ready()
            return pipeline
    raise ModelUnusable(f"{name}: pipeline not installed; this suite wanted beside MLflow; install it there")


mlflow.models.set_model(BundleModel())
