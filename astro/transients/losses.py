"""What training minimises, and how it meets classes of very different size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Imbalance = Literal["weights", "adjust", "sample", "none", "legacy"]


class TransientLoss(nn.Module):
    """Logits (B, K) and labels (B,) → a scalar.

    ``weights``: the mean over a batch of −v_y ln p_y, v_c = N w_c / (N_c Σ w), N_c over the whole training part: its
    expectation is the global weighted log-loss (spec section 1), and a class that a batch lacks costs nothing there.
    ``adjust``: cross-entropy of logits + `strength` · ln(N_c / N) (Menon et al. 2021, arXiv 2007.07314, equation 10):
    the logits alone are then those of balanced classes.
    ``sample``: plain cross-entropy, over batches drawn by `sampling_weights`. ``none``: plain cross-entropy.
    ``legacy``: t2's, see `batch_log_loss`.
    """

    weights: Tensor
    offsets: Tensor

    def __init__(
        self,
        counts: Sequence[int],
        imbalance: Imbalance = "weights",
        *,
        class_weights: Sequence[float] | None = None,
        strength: float = 1.0,
        smoothing: float = 0.0,
    ) -> None:
        """`counts`: objects of each class in the training part. `class_weights`: w; none = all 1."""
        super().__init__()
        number = torch.tensor(counts, dtype=torch.float64)
        w = torch.ones_like(number) if class_weights is None else torch.tensor(class_weights).double()
        w = w * (number > 0)
        self.imbalance, self.smoothing = imbalance, smoothing
        share = number.clamp(min=1) / number.sum()
        self.register_buffer("weights", (w / (share * w.sum())).float())
        self.register_buffer("offsets", (strength * share.log()).float())

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.imbalance == "legacy":
            return batch_log_loss(logits.softmax(-1), labels)
        if self.imbalance == "adjust":
            logits = logits + self.offsets
        loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)
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


def sampling_weights(labels: Sequence[int], power: float = 1.0) -> Tensor:
    """(N,) of each object, its share of the draws: N_c^−power. 1 draws every class as often, 0 every object."""
    each = torch.as_tensor(labels)
    number = torch.bincount(each).clamp(min=1).double() ** -power
    return number[each] / number[each].sum()
