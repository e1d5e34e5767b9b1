"""Before training: collect what is missing, then write what the filter makes of it."""

from __future__ import annotations

import time
from pathlib import Path

from robotics.icrl.config import IcrlConfig
from robotics.icrl.data import HISTORIES, IcrlData, train_tasks
from robotics.icrl.predict import write_scores
from robotics.icrl.store import parts_folder
from shared.errors import EnvironmentUnfit
from shared.progress import Progress
from shared.tracking.ranks import is_leader


def prepare(config: IcrlConfig, data: IcrlData, work: Path) -> None:
    """Histories into `work`, going on after an interruption; the filter's table and picture into ``work/figures``.

    Other processes of the same training wait until it is there, complete.
    """
    if config.data.path is None and not is_leader():
        _wait_for(work / HISTORIES)
        data.open_collected(work)
    elif config.data.path is None:
        total = len(train_tasks(config)) * config.data.streams
        with Progress() as progress:
            bar = progress.task("collect histories", total)
            data.collect(work, lambda done, _: bar.update(done))
    if data.scores and is_leader():
        figures = work / "figures"
        figures.mkdir(parents=True, exist_ok=True)
        write_scores(data.scores, figures)


def _wait_for(store: Path, seconds: float = 6 * 3600) -> None:
    """Until the first process has collected all: under torchrun and SLURM all start together. Raises
    `EnvironmentUnfit` where nothing has come for so long."""
    deadline = time.monotonic() + seconds
    while not store.is_file() or parts_folder(store).is_dir():
        if time.monotonic() > deadline:
            raise EnvironmentUnfit(
                f"{store}: not complete after {seconds / 3600:g} h; process 0 collects it; see what became of that one"
            )
        time.sleep(0.2)
