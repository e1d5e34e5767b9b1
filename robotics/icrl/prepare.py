"""Before training: collect what is missing, then write what the filter makes of it."""

from __future__ import annotations

from pathlib import Path

from robotics.icrl.config import IcrlConfig
from robotics.icrl.data import IcrlData, train_tasks
from robotics.icrl.predict import write_scores
from shared.progress import Progress
from shared.tracking.ranks import is_leader


def prepare(config: IcrlConfig, data: IcrlData, work: Path) -> None:
    """Histories into `work`, going on after an interruption; the filter's table and picture into ``work/figures``.

    Other processes of the same training come later and find all of it done.
    """
    if config.data.path is None and not is_leader():
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
