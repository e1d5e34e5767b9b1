"""`icrl`: ties the rooms together; imports nothing heavy until asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robotics.icrl.config import IcrlConfig, refuse_unused
from shared.config import RunConfig
from shared.errors import Fault
from shared.pipeline import DataFacts, Evaluation, NetworkUse, Pipeline, Predictor, Primary

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from shared.bundle import Bundle
    from shared.report.html import Report
    from shared.training.fit import FitResult


class Icrl(Pipeline):
    name = "icrl"
    summary = "In-context reinforcement learning (AD, DPT, DICP) with learning-history filtering"
    inputs = "files of tasks to play (YAML, JSON, CSV); stores of learning histories (HDF5)"
    models = ("ad", "dpt", "dicp", "dt")
    extra = "robotics"
    requires = ("gymnasium", "h5py", "imageio")
    config_type = IcrlConfig
    primary = Primary("normalised_return", "max")
    headline = ("normalised_return", "first_episode", "last_episodes", "rise", "episode_above_90")
    network = NetworkUse(1, in_chans=32, size=(200,), causal=True, streaming=True, kinds=("mixer",))
    folder = Path(__file__).parent

    def resolve(
        self,
        preset: str = "default",
        config_file: Path | None = None,
        sets: Sequence[str] = (),
        over: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        config = super().resolve(preset, config_file, sets, over)
        assert isinstance(config, IcrlConfig)
        refuse_unused(config, sets)
        return config

    def check(self, config: IcrlConfig) -> list[Fault]:
        from robotics.icrl.data import check

        return check(config)

    def complete(self, config: IcrlConfig) -> IcrlConfig:
        from robotics.icrl.data import fitting, infer

        config = config.model_copy(update={"data": config.data.model_copy(update=infer(config))})
        return config.model_copy(update={"model": fitting(config)})

    def data(self, config: IcrlConfig) -> pl.LightningDataModule:
        from robotics.icrl.data import IcrlData

        return IcrlData(config)

    def prepare(self, config: IcrlConfig, data: Any, work: Path) -> None:
        from robotics.icrl.prepare import prepare

        prepare(config, data, work)

    def task(self, config: IcrlConfig) -> pl.LightningModule:
        from robotics.icrl.task import IcrlTask

        return IcrlTask(config)

    def fit(self, config: IcrlConfig, task: Any, data: Any, context: Any) -> FitResult:
        from robotics.icrl.task import fit

        return fit(config, task, data, context)

    def predictor(self, bundle: Bundle, options: Mapping[str, Any]) -> Predictor:
        if options.get("convert"):
            from robotics.icrl.convert import Converter

            return Converter(options)
        from robotics.icrl.predict import IcrlPredictor

        return IcrlPredictor(bundle, options)

    def evaluate(self, bundle: Bundle, config: IcrlConfig, out: Path) -> Evaluation:
        from robotics.icrl.evaluate import evaluate

        return evaluate(bundle, config, out)

    def report(self, report: Report, config: IcrlConfig, evaluation: Evaluation) -> None:
        from robotics.icrl.report import add_sections

        add_sections(report, config, evaluation)

    def write_sample(self, folder: Path, n: int, seed: int) -> list[Path]:
        from robotics.icrl.sample import write_sample

        return write_sample(folder, n, seed)

    def card(self, config: IcrlConfig, evaluation: Evaluation, facts: DataFacts) -> str:
        from robotics.icrl.report import card_text

        return card_text(config, evaluation, facts)


PIPELINE = Icrl()
