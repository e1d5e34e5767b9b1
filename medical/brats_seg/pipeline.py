"""`brats-seg`: ties the rooms together; imports nothing heavy until asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medical.brats_seg.config import BratsConfig
from shared.errors import Fault
from shared.pipeline import DataFacts, Evaluation, NetworkUse, Pipeline, Predictor, Primary

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from shared.bundle import Bundle
    from shared.report.html import Report


class BratsSeg(Pipeline):
    name = "brats-seg"
    summary = "Brain-tumour segmentation of four-modality MRI with Swin UNETR"
    inputs = "NIfTI case folders, MSD 4-D files, CSV/JSON datalists, DICOM studies"
    network = NetworkUse(ndim=3, in_chans=4, size=(96, 96, 96))
    models = ("swin-unetr", "segresnet", "unet")
    extra = "medical"
    requires = ("monai", "nibabel", "pydicom", "cc3d", "einops")
    config_type = BratsConfig
    primary = Primary("dice_mean", "max")
    headline = tuple(
        f"{group}{name}"
        for group in ("", "patches/")
        for name in ("dice_mean", "dice_wt", "dice_tc", "dice_et", "hd95_wt", "hd95_tc", "hd95_et")
    )
    folder = Path(__file__).parent

    def check(self, config: BratsConfig) -> list[Fault]:
        from medical.brats_seg.cases import check_dataset

        return check_dataset(config)

    def data(self, config: BratsConfig) -> pl.LightningDataModule:
        from medical.brats_seg.data import BratsData

        return BratsData(config)

    def task(self, config: BratsConfig) -> pl.LightningModule:
        from medical.brats_seg.task import BratsTask

        return BratsTask(config)

    def predictor(self, bundle: Bundle, options: Mapping[str, Any]) -> Predictor:
        from medical.brats_seg.predict import BratsPredictor

        return BratsPredictor(bundle, options)

    def evaluate(self, bundle: Bundle, config: BratsConfig, out: Path) -> Evaluation:
        from medical.brats_seg.evaluate import evaluate

        return evaluate(self, bundle, config, out)

    def report(self, report: Report, config: BratsConfig, evaluation: Evaluation) -> None:
        from medical.brats_seg.report import add_sections

        add_sections(report, config, evaluation)

    def write_sample(self, folder: Path, n: int, seed: int) -> list[Path]:
        from medical.brats_seg.sample import write_cases

        return write_cases(folder, n, seed)

    def card(self, config: BratsConfig, evaluation: Evaluation, facts: DataFacts) -> str:
        from medical.brats_seg.report import card_text

        return card_text(config, evaluation, facts)


PIPELINE = BratsSeg()
