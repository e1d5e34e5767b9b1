"""Files of tasks in; episodes played in context out: returns, every step, a picture. Stores of histories in: LHF's
scores of every history out.

A file's tasks are played side by side, each copy with a context of its own. Equal files give equal bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from robotics.icrl.config import IcrlConfig
from robotics.icrl.data import rule_of, score_histories, spaces_of, trained_on
from robotics.icrl.envs.base import Family
from robotics.icrl.envs.families import tasks
from robotics.icrl.envs.grid import GridFamily
from robotics.icrl.figures import filter_figure, paths_figure
from robotics.icrl.lhf import Scores
from robotics.icrl.models import build
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.play import Played, first_good, play, told
from robotics.icrl.sample import EPISODES
from robotics.icrl.store import Store
from robotics.icrl.store_check import check as check_store
from robotics.icrl.tasks_file import SUFFIXES, Amount, TaskFile, as_yaml, parse, read
from robotics.icrl.video import write_films
from shared.bundle import Bundle
from shared.config import merge, nested
from shared.errors import DataInvalid, Fault, ItemError, UsageError
from shared.io.atomic import atomic_write_text
from shared.io.names import unique_names
from shared.pipeline import Item, Predictor, Tick, error_faults
from shared.plots.style import save_png

STORES = (".h5", ".hdf5")
MAX_REQUEST_CHARACTERS = 100_000
SHOWN = 20
FILTER_TABLE, FILTER_PICTURE = "histories.csv", "filter.png"


def load(bundle: Bundle, config: IcrlConfig) -> Any:
    """The bundle's network, on the CPU."""
    return bundle.load_into(build(config.model, config.data.spaces or spaces_of(config.data.env)))


def require_spaces(network: Any, room: Family[Any], source: str) -> None:
    """Raises `UsageError` where a family's agents see or do other things than the network has learned."""
    wanted: Spaces = network.spaces
    found = Spaces.of(room.observation_space, room.action_space)
    if found != wanted:
        raise UsageError(
            f"{source}: {room.name} has {found}; the model knows {wanted}; use a model trained there"
        )


@dataclass(frozen=True)
class Result:
    """Of one file of tasks."""

    played: Played
    seed: int
    failed: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Filtered:
    """Of one store: scores by task, and the rule they follow."""

    scores: dict[str, Scores]
    rule: dict[str, Any]
    notes: list[str]


class IcrlPredictor(Predictor):
    """An item is a file. Options are keys of ``predict.``, and those of ``filter.`` with their prefix."""

    record_inputs: ClassVar[Mapping[str, str]] = {"tasks": "string"}
    record_outputs: ClassVar[Mapping[str, str]] = {"returns": "string", "steps": "string"}

    def __init__(self, bundle: Bundle, options: Mapping[str, Any]) -> None:
        over: dict[str, Any] = {}
        for key, value in options.items():
            path = key if key.startswith("filter.") else f"predict.{key}"
            over = merge(over, nested(path.split("."), value))
        self.config: IcrlConfig = bundle.config(IcrlConfig, over or None)
        # Stores are not the bundle's: they are scored as published, unless the options say otherwise.
        self.scoring = IcrlConfig.model_validate({"filter": over.get("filter", {})})
        self.unsaid = Amount(self.config.predict.episodes, self.config.predict.copies)
        self.network = load(bundle, self.config)

    # ------------------------------------------------------------ files

    def discover(self, paths: Sequence[Path]) -> list[Item]:
        found: list[tuple[Path, Path]] = []
        for path in map(Path, paths):
            if path.is_dir():
                inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in (*SUFFIXES, *STORES))
                found += [(path, file) for file in inside if file.is_file()]
            else:
                found.append((path.parent, path))
        names = unique_names(found, lambda path: path.stem)
        return [Item(name, (file,), file, self._fault(file)) for name, (_, file) in zip(names, found)]

    @staticmethod
    def _fault(file: Path) -> Fault | None:
        if file.suffix.lower() in (*SUFFIXES, *STORES):
            return None
        wanted = f"tasks ({', '.join(SUFFIXES)}) or a store ({', '.join(STORES)})"
        return Fault(file, f"a {file.suffix or 'nameless'} file", wanted, "convert it")

    def predict(self, item: Item, tick: Tick | None = None) -> Result | Filtered:
        if item.fault is not None:
            raise ItemError.of(item.fault)
        file: Path = item.payload
        if file.suffix.lower() in STORES:
            return self._filtered(file)
        return self._played(read(file, self.config.data.env, self.unsaid), str(file))

    def _played(self, given: TaskFile, source: str) -> Result:
        room, how = given.tasks[0].family, self.config.predict
        try:
            require_spaces(self.network, room, source)
        except UsageError as err:
            raise ItemError(source, str(err).removeprefix(f"{source}: ")) from None
        notes = trained_on(self.config, given.tasks)
        if room.name != self.config.data.env:
            notes.append(f"trained in {self.config.data.env}, played in {room.name}")
        seed = self.config.seed if given.seed is None else given.seed
        episodes, copies = given.episodes or self.unsaid.episodes, given.copies or self.unsaid.copies
        played = play(self.network, given.tasks, episodes, copies, seed, how)
        broken = [
            Fault(source, str(said), "", "mend it", f"task {task.index}") for task, said in played.broken
        ]
        if not played.tasks:
            raise ItemError.of(broken[0])
        return Result(played, seed, [*given.faults, *broken], notes)

    def _filtered(self, path: Path) -> Filtered:
        faults = check_store(path)
        if wrong := error_faults(faults):
            raise ItemError.of(wrong[0])
        store = Store(path)
        try:
            found = score_histories(store, store.tasks, self.scoring)
        except DataInvalid as err:
            raise ItemError.of(err.faults[0]) from None
        rule = asdict(rule_of(self.scoring)) | {"seed": self.scoring.seed}
        return Filtered(found, rule, [str(fault) for fault in faults])

    def write(self, result: Result | Filtered, folder: Path) -> dict[str, Any]:
        if isinstance(result, Filtered):
            written = write_scores(result.scores, folder)
            return {"rule": result.rule, **written, "notes": result.notes[:SHOWN]}
        played, how = result.played, self.config.predict
        atomic_write_text(folder / "returns.csv", _csv(returns_table(played)))
        atomic_write_text(folder / "steps.csv", _csv(steps_table(played)))
        if how.picture:
            rows = list(range(min(4, len(played.tasks))))
            titles = [f"task {played.tasks[row].index}" for row in rows]
            save_png(paths_figure(played, rows, titles), folder / "paths.png")
        kinds = [kind for kind in ("gif", "mp4") if getattr(how, kind)]
        result.notes.extend(write_films(played, folder, kinds, self.network.config))
        return summary_of(result)

    # ------------------------------------------------------------ serving

    def predict_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        text = record.get("tasks")
        if not isinstance(text, str) or not text.strip():
            raise ItemError("request", "no tasks", "the text of a file of tasks (YAML)", "send it", "tasks")
        if len(text) > MAX_REQUEST_CHARACTERS:
            found, wanted = f"{len(text):,} characters", f"at most {MAX_REQUEST_CHARACTERS:,}"
            raise ItemError("request", found, wanted, "split it", "tasks")
        given = parse(text, "request", self.config.data.env, unsaid=self.unsaid, own=False)
        result = self._played(given, "request")
        if result.failed:
            raise ItemError.of(result.failed[0])
        return {"returns": _csv(returns_table(result.played)), "steps": _csv(steps_table(result.played))}

    def example_record(self) -> dict[str, Any]:
        env = self.config.data.env
        return {"tasks": as_yaml(env, tasks(env, "test")[:1], min(EPISODES, 4), 0)}


# ---------------------------------------------------------------- tables


def returns_table(played: Played) -> pd.DataFrame:
    """One row an episode: task and its parameters, copy (from 0), episode (from 1), return, normalised return (empty
    where not known)."""
    task, copy, episode = np.indices(played.returns.shape).reshape(3, -1)
    found = {
        "copy": copy,
        "episode": episode + 1,
        "return": played.returns.ravel(),
        "normalised": played.normalised.ravel().round(6),
    }
    about = pd.DataFrame([told(each, found) for each in played.tasks], dtype=object)
    return about.astype({"task": int}).iloc[task].reset_index(drop=True).assign(**found)


def steps_table(played: Played) -> pd.DataFrame:
    """One row a step: what the agent saw (x, y in a grid), what it did there, as the environment was told it, what it
    got."""
    episode, step = played.place
    row, at = np.nonzero(episode < played.returns.shape[2])
    numbers = np.repeat([each.index for each in played.tasks], played.copies)
    found = {
        "task": numbers[row],
        "copy": row % played.copies,
        "episode": episode[row, at] + 1,
        "step": step[row, at],
    }
    grid = isinstance(played.family, GridFamily)
    found |= _columns("obs", played.rollout.obs[row, at], ("x", "y") if grid else ())
    first = played.family.action_space.get("start", 0)
    found |= _columns("action", played.rollout.actions[row, at] + first)
    return pd.DataFrame(found | {"reward": played.rollout.rewards[row, at]})


def _columns(name: str, values: Any, names: Sequence[str] = ()) -> dict[str, Any]:
    if values.ndim == 1:
        return {name: values}
    names = names or [f"{name}_{number}" for number in range(values.shape[1])]
    return dict(zip(names, values.T))


def summary_of(result: Result) -> dict[str, Any]:
    """For the manifest. Where no one knows what a return is worth, the returns themselves."""
    played = result.played
    curve = played.normalised.mean((0, 1))
    known = not np.isnan(curve).any()
    shown = curve if known else played.returns.mean((0, 1))
    kind = "episode" if known else "return"
    found: dict[str, Any] = {
        "env": played.family.name,
        "tasks": len(played.tasks),
        "copies": played.copies,
        "episodes": len(curve),
        "seed": result.seed,
        f"first_{kind}": round(float(shown[0]), 4),
        f"last_{kind}": round(float(shown[-1]), 4),
        **({"episode_above_90": first_good(curve)} if known else {}),
        "notes": result.notes,
    }
    if result.failed:
        found["failed"] = [str(fault) for fault in result.failed[:SHOWN]]
        found["failed_count"] = len(result.failed)
    return found


# ---------------------------------------------------------------- histories


def write_scores(scores: Mapping[str, Scores], folder: Path) -> dict[str, Any]:
    """Every history's curve, scores, probability and how often it is taken; a picture of before and after."""
    rows = [row for one in scores.values() for row in one.rows()]
    atomic_write_text(folder / FILTER_TABLE, _csv(pd.DataFrame(rows)))
    save_png(filter_figure(scores), folder / FILTER_PICTURE)
    left = sum(int((one.weight == 0).sum()) for one in scores.values())
    notes = sorted({note for one in scores.values() for note in one.notes})
    return {"tasks": len(scores), "histories": len(rows), "left_out": left, "filter_notes": notes[:SHOWN]}


def _csv(frame: pd.DataFrame) -> str:
    return str(frame.to_csv(index=False, lineterminator="\n"))
