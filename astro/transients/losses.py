"""What training minimises, and how it meets classes of very different size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Imbalance = Literal["weights", "adjust", "none", "legacy"]


class TransientLoss(nn.Module):
    """Logits (B, K) and labels (B,) → a scalar.

    ``weights``: the mean over a batch of −v_y ln p_y, v_c = N / (N_c K), N_c over the whole training part, K its
    classes: its expectation is the global flat log-loss (spec section 1), and a class that a batch lacks costs nothing.
    ``adjust``: cross-entropy of logits + ln(N_c / N) (Menon et al. 2021, arXiv 2007.07314, equation 10): the logits
    alone are then those of balanced classes. ``none``: plain cross-entropy. ``legacy``: t2's, see `batch_log_loss`.
    """

    weights: Tensor
    offsets: Tensor

    def __init__(self, counts: Sequence[int], imbalance: Imbalance = "weights") -> None:
        """`counts`: objects of each class in the training part."""
        super().__init__()
        number = torch.tensor(counts, dtype=torch.float64)
        there = (number > 0).double()
        share = number.clamp(min=1) / number.sum()
        self.imbalance = imbalance
        self.register_buffer("weights", (there / (share * there.sum())).float())
        self.register_buffer("offsets", share.log().float())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.imbalance == "legacy":
            return batch_log_loss(logits.softmax(-1), labels)
        if self.imbalance == "adjust":
            logits = logits + self.offsets
        loss = F.cross_entropy(logits, labels, reduction="none")
        if self.imbalance == "weights":
            loss = loss * self.weights[labels]
        return loss.mean()


def batch_log_loss(probability: Tensor, labels: Tensor) -> Tensor:
    """t2's training loss (astronet.metrics.WeightedLogLoss): 1 / N_c of this batch, averaged over all K classes, those
    that are absent as 0. So its value falls with the classes that a batch happens to lack: it is no score."""
    truth = F.one_hot(labels, probability.shape[1]).to(probability.dtype)
    number = truth.sum(0)
    logs = probability.clamp(1e-15, 1 - 1e-15).log()
    return -((truth * logs).sum(0) / number.where(number > 0, 1)).mean()
