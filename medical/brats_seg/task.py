"""Loss, optimiser and validation of the segmentation network; nothing here reads files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn

from medical.brats_seg.augment import IMAGE, LABEL
from medical.brats_seg.config import REGIONS, BratsConfig, BratsTrainConfig
from medical.brats_seg.inference import Sliding, predict_masks, rounded_window
from medical.brats_seg.metrics import dice
from medical.brats_seg.model import build_network, stride
from shared.training.optim import optimizer_config


def build_loss(train: BratsTrainConfig) -> nn.Module:
    """Soft Dice on three sigmoid regions (paper, equation 3), with binary cross-entropy beside it if asked."""
    common: dict[str, Any] = {
        "sigmoid": True,
        "squared_pred": train.squared_dice,
        "batch": train.batch_dice,
        "smooth_nr": 1e-5,
        "smooth_dr": 1e-5,
    }
    if train.cross_entropy == 0:
        return DiceLoss(**common)
    return DiceCELoss(lambda_ce=train.cross_entropy, **common)


class BratsTask(pl.LightningModule):
    """Batches: image (B, 4, D, H, W), label (B, 3, D, H, W) in the order tc, wt, et.

    Validation items come whole, one at a time. Those no larger than a training crop (patches) go through the network
    directly, others through the sliding window; ``val/dice_*`` is the mean of the two groups' means.
    """

    def __init__(self, config: BratsConfig) -> None:
        super().__init__()
        self.config = config
        channels = len(config.data.modalities)
        self.network = build_network(config.model, channels, len(REGIONS))
        self.notes = self._load_pretrained()
        self.loss = build_loss(config.train)
        self.example_input_array = torch.zeros(1, channels, *config.train.crop)
        window = rounded_window(config.predict.window, stride(config.model))
        self._sliding = Sliding(window, overlap=0.25, blend=config.predict.blend)
        self._scores: list[dict[str, Any]] = []

    def _load_pretrained(self) -> tuple[str, ...]:
        if self.config.model.pretrained is None:
            return ()
        from medical.brats_seg.weights import load_pretrained

        return (load_pretrained(self.network, self.config.model),)

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image)
        return logits

    def training_step(self, batch: Mapping[str, Tensor], index: int) -> Tensor:
        loss: Tensor = self.loss(self.network(batch[IMAGE]), batch[LABEL])
        return loss

    # ------------------------------------------------------------ validation

    def validation_step(self, batch: Mapping[str, Tensor], index: int) -> None:
        image, label = batch[IMAGE], batch[LABEL][0].bool().cpu().numpy()
        small = all(n <= c for n, c in zip(image.shape[2:], self.config.train.crop))
        if small:
            masks = (self.network(image).float() > 0)[0].cpu().numpy()
        else:
            masks = predict_masks(self.network, image[0].float().cpu().numpy(), self._sliding)
        row = {f"dice_{region}": dice(p, t) for region, p, t in zip(REGIONS, masks, label)}
        self._scores.append({"small": small, **row})

    def on_validation_epoch_end(self) -> None:
        scores, self._scores = self._scores, []
        groups = [
            [row for row in scores if row["small"] is small]
            for small in (True, False)
            if any(row["small"] is small for row in scores)
        ]
        metrics: dict[str, float] = {}
        for region in REGIONS:
            means = [_mean([row[f"dice_{region}"] for row in group]) for group in groups]
            metrics[f"val/dice_{region}"] = _mean(means)
            if len(groups) == 2:
                metrics[f"val/patch_dice_{region}"], metrics[f"val/head_dice_{region}"] = means
        metrics["val/dice_mean"] = _mean([metrics[f"val/dice_{region}"] for region in REGIONS])
        self.log_dict(metrics, prog_bar=False)

    def configure_optimizers(self) -> Any:
        return optimizer_config(self, self.config.train, self.network.parameters())


def _mean(values: list[float]) -> float:
    return float(sum(values) / len(values)) if values else float("nan")
