"""`forecast`: ties the rooms together; imports nothing heavy until asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import Fault
from shared.pipeline import DataFacts, Evaluation, NetworkUse, Pipeline, Predictor, Primary
from timeseries.forecast.config import ForecastConfig

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from shared.bundle import Bundle
    from shared.report.html import Report
    from shared.training.fit import FitResult


class Forecast(Pipeline):
    name = "forecast"
    summary = "Long-horizon forecasting with the LTSF-Linear family and Autoformer"
    inputs = "CSV or Parquet tables, wide or long (unique_id, ds, y)"
    network = NetworkUse(ndim=1, in_chans=7, size=(336,))
    models = ("linear", "nlinear", "dlinear", "autoformer", "naive", "backbone")
    extra = "timeseries"
    requires = ("sktime", "pyarrow", "statsmodels")
    config_type = ForecastConfig
    primary = Primary("mse", "min")
    headline = ("mse", "mae", "mase", "smape", "windows")
    folder = Path(__file__).parent

    def check(self, config: ForecastConfig) -> list[Fault]:
        from timeseries.forecast.tables.check import check

        return check(config)

    def complete(self, config: ForecastConfig) -> ForecastConfig:
        from timeseries.forecast.tables.check import infer

        return config.model_copy(update={"data": config.data.model_copy(update=infer(config))})

    def data(self, config: ForecastConfig) -> pl.LightningDataModule:
        from timeseries.forecast.data import ForecastData

        return ForecastData(config)

    def schema(self, config: ForecastConfig, data: Any) -> dict[str, Any]:
        return dict(data.schema())

    def task(self, config: ForecastConfig) -> pl.LightningModule:
        from timeseries.forecast.task import ForecastTask

        return ForecastTask(config)

    def fit(self, config: ForecastConfig, task: Any, data: Any, context: Any) -> FitResult:
        from timeseries.forecast.fit import fit

        return fit(config, task, data, context)

    def predictor(self, bundle: Bundle, options: Mapping[str, Any]) -> Predictor:
        from timeseries.forecast.predict import ForecastPredictor

        return ForecastPredictor(bundle, options)

    def evaluate(self, bundle: Bundle, config: ForecastConfig, out: Path) -> Evaluation:
        from timeseries.forecast.evaluate import evaluate

        return evaluate(bundle, config, out)

    def report(self, report: Report, config: ForecastConfig, evaluation: Evaluation) -> None:
        from timeseries.forecast.report import add_sections

        add_sections(report, config, evaluation)

    def write_sample(self, folder: Path, n: int, seed: int) -> list[Path]:
        from timeseries.forecast.sample import write_sample

        return write_sample(folder, n, seed)

    def card(self, config: ForecastConfig, evaluation: Evaluation, facts: DataFacts) -> str:
        from timeseries.forecast.report import card_text

        return card_text(config, evaluation, facts)


PIPELINE = Forecast()
