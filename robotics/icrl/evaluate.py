"""Online evaluation: held-out tasks played with frozen weights, episode after episode in one context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robotics.icrl.config import IcrlConfig
from robotics.icrl.data import check as check_data
from robotics.icrl.data import infer, trained_on
from robotics.icrl.envs.base import Floats, Task
from robotics.icrl.envs.families import tasks
from robotics.icrl.figures import curve_figure, paths_figure
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.play import GOOD, Played, first_good, play, told
from robotics.icrl.predict import FILTER_PICTURE, load, require_spaces
from robotics.icrl.tasks_file import SUFFIXES, Amount, read
from robotics.icrl.video import write_films
from shared.bundle import Bundle
from shared.errors import DataInvalid, Fault, ItemError
from shared.io.atomic import atomic_write_text
from shared.pipeline import Evaluation, error_faults
from shared.plots.style import save_png

LAST = 5
"""Episodes whose mean counts as the end of a curve."""


@dataclass(slots=True)
class IcrlEvaluation(Evaluation):
    """With what the report tabulates."""

    curve: list[dict[str, Any]] = field(default_factory=list)
    """One row an episode: mean over tasks and copies, and the band over seeds."""


def evaluate(bundle: Bundle, config: IcrlConfig, out: Path) -> IcrlEvaluation:
    """Plays the test part of the family of ``config.data`` (of a store: of its family), or the tasks of a file.

    Raises `DataInvalid`, and `UsageError` where the network has learned other spaces.
    """
    out.mkdir(parents=True, exist_ok=True)
    network, how = load(bundle, config), config.predict
    config, chosen = _to_play(config)
    require_spaces(network, chosen[0].family, str(bundle.path))
    wanted = config.evaluate
    rounds = [
        play(network, chosen, wanted.episodes, wanted.copies, config.seed + number, how)
        for number in range(wanted.seeds)
    ]
    _require_whole(rounds, str(config.data.path))
    scores = np.stack([one.normalised for one in rounds])  # (S, M, C, K)
    by_seed, by_task = scores.mean((1, 2)), scores.mean((0, 2))
    band = interval(by_seed)
    result = IcrlEvaluation(metrics_of(scores), rows_of(chosen, rounds, by_task))
    result.curve = [
        {
            "episode": k + 1,
            "normalised_return": float(by_seed[:, k].mean()),
            "low": float(low),
            "high": float(high),
        }
        for k, (low, high) in enumerate(band.T)
    ]
    _write_curve(result.curve, by_task, out / "curve.csv")
    result.figures = _figures(rounds[0], network.config, by_seed, by_task, band, out)
    result.notes = _notes(config, chosen, result.metrics)
    return result


def _require_whole(rounds: Sequence[Played], source: str) -> None:
    """Raises `DataInvalid` where a task could not be played to its end, or no one says what its returns are worth."""
    broken = {task.index: said for one in rounds for task, said in one.broken}
    faults = [Fault(source, str(said), "", "mend it", f"task {index}") for index, said in broken.items()]
    if not faults and np.isnan(rounds[0].normalised).any():
        faults = [Fault(source, "returns that no one can normalise", "`random` and `optimum`", "add them")]
    if faults:
        raise DataInvalid(faults)


def _to_play(config: IcrlConfig) -> tuple[IcrlConfig, list[Task]]:
    """With what a file of tasks says of episodes, copies and the seed."""
    path = config.data.path
    if path is not None and path.suffix.lower() in SUFFIXES:
        try:
            given = read(path, config.data.env, Amount(**config.evaluate.model_dump()))
        except ItemError as err:
            raise DataInvalid([err.fault]) from None
        if given.episodes == 1:
            found, wanted = "found 1", "2 or more, to see it learn"
            raise DataInvalid([Fault(path, found, wanted, "raise it", "episodes")])
        chosen = given.tasks
        said = {key: value for key in ("episodes", "copies") if (value := getattr(given, key)) is not None}
        over = {"evaluate": config.evaluate.model_copy(update=said)}
        config = config.model_copy(update=over | ({} if given.seed is None else {"seed": given.seed}))
    else:
        if path is not None and (errors := error_faults(check_data(config))):
            raise DataInvalid(errors)
        chosen = tasks(infer(config)["env"], "test")
    most = config.evaluate.tasks
    if len(chosen) > most:
        chosen = [chosen[at] for at in np.linspace(0, len(chosen) - 1, most).round().astype(int)]
    return config, chosen


def interval(by_seed: Floats) -> Floats:
    """(S, K) → (2, K): 95 % interval of the mean over seeds (Student's t); the mean itself for one seed."""
    mean, count = by_seed.mean(0), len(by_seed)
    if count < 2:
        return np.stack([mean, mean])
    from scipy.stats import t

    half = t.ppf(0.975, count - 1) * by_seed.std(0, ddof=1) / count**0.5
    return np.stack([mean - half, mean + half])


def metrics_of(scores: Floats) -> dict[str, float]:
    """(S, M, C, K) normalised returns → the flat metrics. `episode_above_90` is absent where the mean never gets
    there."""
    curve = scores.mean((0, 1, 2))
    last = min(LAST, len(curve))
    found = {
        "normalised_return": float(curve.mean()),
        "first_episode": float(curve[0]),
        "last_episodes": float(curve[-last:].mean()),
        "rise": float(curve[-last:].mean() - curve[0]),
        "worst_task_last": float(scores[..., -last:].mean((0, 2, 3)).min()),
    }
    if (good := first_good(curve)) is not None:
        found["episode_above_90"] = float(good)
    return found


def rows_of(chosen: Sequence[Task], rounds: Sequence[Played], by_task: Floats) -> list[dict[str, Any]]:
    """One mapping a task."""
    last = min(LAST, by_task.shape[1])
    returns = np.stack([one.returns for one in rounds]).mean((0, 2))
    rows, room = [], chosen[0].family
    best, name = room.best(chosen), "optimum" if room.best_is == "the optimum" else "reference"
    for row, task in enumerate(chosen):
        found = {
            name: float(best[row]),
            "first_return": float(returns[row, 0]),
            "last_return": float(returns[row, -last:].mean()),
            "first_normalised": float(by_task[row, 0]),
            "last_normalised": float(by_task[row, -last:].mean()),
            "episode_above_90": first_good(by_task[row]),
        }
        rows.append(told(task, found) | found)
    return rows


def _write_curve(curve: list[dict[str, Any]], by_task: Floats, path: Path) -> None:
    head = ",".join(curve[0]) + "".join(f",task_{row}" for row in range(len(by_task)))
    lines = [
        ",".join(f"{value:.6g}" for value in (*row.values(), *by_task[:, k])) for k, row in enumerate(curve)
    ]
    atomic_write_text(path, "\n".join([head, *lines]) + "\n")


def _figures(
    one: Played, model: ModelConfig, by_seed: Floats, by_task: Floats, band: Floats, out: Path
) -> dict[str, Path]:
    order, seen = np.argsort(by_task.mean(1)), one.family.plane(one.tasks[0]) is not None
    rows = sorted({int(order[0]), int(order[len(order) // 2]), int(order[-1])}, key=list(order).index)
    names = ("Worst", "Median", "Best") if len(rows) == 3 else ("Task",) * len(rows)
    titles = [f"{name}: task {one.tasks[row].index}" for name, row in zip(names, rows)]
    found = {
        f"Normalised return by episode: 0 is random play, 1 is {one.family.best_is}. Band: "
        "95 % interval of the mean over seeds; grey: single tasks.": save_png(
            curve_figure(by_seed, by_task, band, one.family.best_is), out / "1-curve.png"
        ),
        f"{'Ways' if seen else 'Rewards by step'} in some episodes of the worst, the median and the best task; "
        f"{'squares are the places to find, later steps darker; ' if seen else ''}above each its return.": save_png(
            paths_figure(one, rows, titles), out / "2-paths.png"
        ),
    }
    if one.family.frames(one.tasks[0], *(one.episode(name, 0, 0, 0) for name in ("obs", "rewards"))):
        shown = sorted({0, min(2, one.returns.shape[2] - 1), one.returns.shape[2] - 1})
        write_films(one, out, ["gif"], model, rows[len(rows) // 2], shown)
        said = ", ".join(str(number + 1) for number in shown)
        found[
            f"Episodes {said} of the {'median' if len(rows) == 3 else 'shown'} task. Beneath, the context: a column a "
            "step, now at the right end, dark where an episode begins, orange where a reward came."
        ] = out / "rollout.gif"
    if (picture := out / FILTER_PICTURE).is_file():
        found["The training histories before and after the filter."] = picture
    return found


def _notes(config: IcrlConfig, chosen: Sequence[Task], metrics: dict[str, float]) -> list[str]:
    wanted, notes = config.evaluate, []
    notes += trained_on(config, chosen)
    notes += [
        f"{len(chosen)} tasks of {chosen[0].family.name}, each played {wanted.copies} times with each of "
        f"{wanted.seeds} seeds, {wanted.episodes} episodes in one context; weights are never updated, actions are "
        + ("the likeliest" if config.predict.greedy else "drawn from the policy"),
        "normalised_return is the mean over all episodes: how high and how soon, as LHF's enhancement counts it; "
        f"last_episodes is the mean of the last {min(LAST, wanted.episodes)}.",
    ]
    if "episode_above_90" not in metrics:
        best_is = chosen[0].family.best_is
        notes.append(
            f"The mean never reaches {GOOD:.0%} of the way to {best_is}: episode_above_90 is left out."
        )
    return notes
