"""Sections of the run's report and of the model card, from saved results only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robotics.icrl.config import IcrlConfig
from robotics.icrl.models.config import METHODS

if TYPE_CHECKING:
    from shared.pipeline import DataFacts, Evaluation
    from shared.report.html import Report

LIMITS = (
    "It learns in context in tasks like those it was trained in: same observations, same actions, same horizon. "
    "Elsewhere it has learned nothing.",
    "AD learns in context at the pace of the learner whose histories it imitates, DPT as its contexts allow; more "
    "episodes than a context holds work by keeping its latest half.",
    "Training and held-out tasks are told apart by a fixed seeded split (of the dark grids: DICP's); scores of other "
    "splits differ.",
)
SHOWN_EPISODES = (1, 2, 3, 5, 10, 15, 20, 30, 40, 50, 75, 100)


def add_sections(report: Report, config: IcrlConfig, evaluation: Evaluation) -> None:
    """The curve first, then tasks, pictures, notes and limits."""
    report.heading("Learning in context")
    curve = getattr(evaluation, "curve", [])
    rows = [
        {
            "episode": row["episode"],
            "normalised": f"{row['normalised_return']:.3f}",
            "interval": f"{row['low']:.3f} to {row['high']:.3f}",
        }
        for row in curve
        if row["episode"] in SHOWN_EPISODES or row is curve[-1]
    ]
    report.table(
        rows,
        {"episode": "Episode", "normalised": "Normalised return", "interval": "95 % interval over seeds"},
    )
    for caption, path in evaluation.figures.items():
        report.figure(path, caption)
    report.heading("Tasks")
    keys = list(dict.fromkeys(key for row in evaluation.table for key in row))
    table = [{key: _text(row.get(key)) for key in keys} for row in evaluation.table]
    report.table(table, {key: key.replace("_", " ") for key in keys})
    report.heading("How to read the numbers")
    report.items([*evaluation.notes, *LIMITS])


def _text(value: Any) -> Any:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else value


def card_text(config: IcrlConfig, evaluation: Evaluation, facts: DataFacts) -> str:
    """Purpose, input, origin of the data, limits."""
    data, model = config.data, config.model
    origin = f"histories made here by the collector {data.collector}; no licence applies"
    if data.path is not None:
        origin = f"{facts.source}; its terms hold for these weights as well"
    chosen = config.filter
    kept = "none" if chosen.mode == "none" else f"{chosen.mode}, λ = {chosen.stability_weight:g}"
    return (
        "## What it is for\n\nPlays tasks of a family it was trained on, tells by the rewards alone which one it is, "
        "and gets better from episode to episode without any update of its weights.\n\n"
        f"- Method: {model.method} ({METHODS[model.method]}); "
        f"{'the published tokens' if model.legacy else 'one token a step, a loss at every position'}\n"
        f"- Family: {data.env}; context {model.context} steps\n"
        f"- Training data: {origin}\n"
        f"- Learning-history filter: {kept}\n\n"
        "## What it is not for\n\n" + "".join(f"- {limit}\n" for limit in LIMITS)
    )
