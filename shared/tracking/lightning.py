"""A Lightning logger that forwards to a `TrackedRun`; the run itself decides when the store is written."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

if TYPE_CHECKING:
    from shared.tracking.run import TrackedRun


class RunLogger(Logger):
    """Metrics of the Trainer, into the run it belongs to, on the first process only."""

    def __init__(self, run: TrackedRun) -> None:
        super().__init__()
        self._run = run

    @property
    def name(self) -> str:
        return self._run.pipeline

    @property
    def version(self) -> str:
        return self._run.run_id

    @property
    def save_dir(self) -> str:
        return str(Path(self._run.work))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._run.log_metrics({key: value for key, value in metrics.items() if key != "epoch"}, step or 0)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run holds the resolved configuration already."""
