"""`transients`: ties the rooms together; imports nothing heavy until asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astro.transients.config import TransientsConfig
from shared.errors import Fault
from shared.pipeline import DataFacts, Evaluation, NetworkUse, Pipeline, Predictor, Primary

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from shared.bundle import Bundle
    from shared.report.html import Report
    from shared.training.fit import FitResult


class Transients(Pipeline):
    name = "transients"
    summary = "Photometric classification of transients with the time-series transformer t2"
    inputs = "PLAsTiCC, SNPCC, long tables, ECSV/FITS, ZTF and LSST alerts (Avro)"
    network = NetworkUse(ndim=1, in_chans=6, size=(100,))
    models = ("t2", "any 1-D backbone")
    extra = "astro"
    requires = ("astropy", "pyarrow", "fastavro", "light_curve", "sklearn")
    config_type = TransientsConfig
    primary = Primary("log_loss", "min")
    headline = ("log_loss", "accuracy", "balanced_accuracy", "auc_macro", "ece", "trees_accuracy")
    folder = Path(__file__).parent

    def check(self, config: TransientsConfig) -> list[Fault]:
        from astro.transients.data import check

        return check(config)

    def complete(self, config: TransientsConfig) -> TransientsConfig:
        from astro.transients.data import infer

        return config.model_copy(update={"data": config.data.model_copy(update=infer(config))})

    def data(self, config: TransientsConfig) -> pl.LightningDataModule:
        from astro.transients.data import TransientsData

        return TransientsData(config)

    def schema(self, config: TransientsConfig, data: Any) -> dict[str, Any]:
        counts = dict(zip(config.data.classes, data.counts()))
        return {"class_counts": counts, "trained_on": data.trained_on()}

    def task(self, config: TransientsConfig) -> pl.LightningModule:
        from astro.transients.task import TransientsTask

        return TransientsTask(config)

    def fit(self, config: TransientsConfig, task: Any, data: Any, context: Any) -> FitResult:
        from astro.transients.task import fit

        return fit(config, task, data, context)

    def predictor(self, bundle: Bundle, options: Mapping[str, Any]) -> Predictor:
        from astro.transients.predict import TransientsPredictor

        return TransientsPredictor(bundle, options)

    def evaluate(self, bundle: Bundle, config: TransientsConfig, out: Path) -> Evaluation:
        from astro.transients.evaluate import evaluate

        return evaluate(bundle, config, out)

    def report(self, report: Report, config: TransientsConfig, evaluation: Evaluation) -> None:
        from astro.transients.report import add_sections

        add_sections(report, config, evaluation)

    def write_sample(self, folder: Path, n: int, seed: int) -> list[Path]:
        from astro.transients.sample import write_sample

        return write_sample(folder, n, seed)

    def card(self, config: TransientsConfig, evaluation: Evaluation, facts: DataFacts) -> str:
        from astro.transients.report import card_text

        return card_text(config, evaluation, facts)


PIPELINE = Transients()
