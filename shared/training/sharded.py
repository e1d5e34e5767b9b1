"""Fully sharded training whose checkpoints are the same verified files as everywhere else."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.strategies import FSDPStrategy, Strategy


class VerifiedFsdp(FSDPStrategy):
    """`FSDPStrategy` that keeps whole (gathered) states and passes a checkpoint's facts on to `VerifiedIO`.

    Lightning's own refuses facts (``storage_options``) in every mode, although with whole states it writes through the
    checkpoint plugin like any other strategy.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(state_dict_type="full", **arguments)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """The first process writes; the others took part in gathering `checkpoint` and have nothing to do."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)
