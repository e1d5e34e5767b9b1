"""Collecting learning histories of a family of tasks into a store, resumable at any moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from robotics.icrl.collect import explorer, noise, population, q_learning, reals, sb3
from robotics.icrl.collect.known import refusal
from robotics.icrl.collect.recording import Recording, described, histories
from robotics.icrl.envs.base import Family, Task
from robotics.icrl.envs.families import family
from robotics.icrl.envs.grid import GridFamily, GridTask
from robotics.icrl.store import Histories, Meta, Store
from robotics.icrl.store_writer import Resume, StoreWriter
from shared.config import Config
from shared.errors import UsageError
from shared.pipeline import Tick

Numbers = NDArray[np.int64]
_STEPS_AT_ONCE = 3_000_000
"""Of all tasks and streams played together: some 100 MB, and at most this is lost by a kill."""


def _hyper(room: Family[Any], options: Config, streams: int, steps: int) -> dict[str, Any]:
    return options.model_dump(mode="json")


@dataclass(frozen=True)
class Collector:
    """One way of making histories. `joint`: a task's streams are made together or not at all."""

    options: type[Config]
    play: Callable[[Sequence[Any], Numbers, int, int, Any], Recording | list[Histories]]
    joint: bool = False
    costs: int = 1
    """Arrays of all steps that are held at once, in units of a recording"""
    slow: bool = False
    """A task takes so long that each is written as soon as it is done"""
    hyper: Callable[[Family[Any], Any, int, int], dict[str, Any]] = _hyper
    """Of (family, options, streams, steps): what a store says of the settings"""


def _population(
    chosen: Sequence[GridTask], numbers: Numbers, steps: int, seed: int, options: population.PopulationOptions
) -> Recording:
    return population.play(chosen, len(numbers), steps, seed, options)


def _noise(
    chosen: Sequence[Any],
    numbers: Numbers,
    steps: int,
    seed: int,
    options: noise.NoiseOptions | noise.RandomOptions,
) -> Recording | list[Histories]:
    play = noise.play if isinstance(chosen[0], GridTask) else reals.play
    return play(chosen, numbers, steps, seed, options)


COLLECTORS: Mapping[str, Collector] = {
    "population": Collector(population.PopulationOptions, _population, joint=True),
    "q-learning": Collector(q_learning.QLearningOptions, q_learning.play),
    "noise-distillation": Collector(noise.NoiseOptions, _noise, costs=2),
    "explorer": Collector(explorer.ExplorerOptions, explorer.play, joint=True),
    "random": Collector(noise.RandomOptions, _noise, costs=2),
    "sb3": Collector(sb3.Sb3Options, sb3.play, joint=True, slow=True, hyper=sb3.hyper),
}


def collect(
    env_name: str,
    tasks: Sequence[int],
    streams: int,
    steps: int,
    seed: int,
    path: Path,
    algorithm: str = "population",
    options: Mapping[str, Any] | Config | None = None,
    random_share: float = 0.0,
    resume: Resume = "auto",
    tick: Tick | None = None,
) -> Store:
    """`streams` histories of `steps` steps for each of the `tasks` (indices) of a family, in the store at `path`.

    `random_share` of each task's histories, the last ones but never all, play at random instead (LHF's noisy setting:
    0.3); their `source` says so. What the store holds already is kept, what is missing is made: the same call gives the
    same bytes, however often it was interrupted. `tick` is called with (histories there, histories wanted). Raises
    `UsageError`, `ResourcesExhausted`.
    """
    room, wanted = family(env_name), sorted(set(tasks))
    chosen = [room.task(index) for index in wanted]
    if not chosen or streams < 1 or steps < 1 or not 0 <= random_share < 1:
        raise UsageError(
            f"collect {len(chosen)} tasks, {streams} streams, {steps} steps, random_share {random_share}: nothing to "
            "collect; at least one of each and a share from 0 to below 1 wanted"
        )
    collector, parsed = configured(algorithm, options)
    if why := refusal(algorithm, env_name):
        raise UsageError(f"collector {why}")
    learning = _learning(streams, random_share)
    sources = [(algorithm, collector, parsed, np.arange(learning))]
    if learning < streams:
        sources.append(("random", COLLECTORS["random"], noise.RandomOptions(), np.arange(learning, streams)))
    meta = described_store(room, algorithm, parsed, streams, steps, seed, random_share)
    with StoreWriter(path, meta, resume) as writer:

        def there() -> int:
            return sum(streams - len(writer.missing(task.index, streams)) for task in chosen)

        if tick is not None and there():
            tick(there(), len(chosen) * streams)
        for name, each, settings, numbers in sources:
            size = max(1, _STEPS_AT_ONCE // (steps * len(numbers) * each.costs)) if len(numbers) else 1
            size = 1 if each.slow or not isinstance(room, GridFamily) else size
            for group in _open_tasks(writer, chosen, numbers, size):
                _collect(writer, name, each, settings, group, numbers, steps, seed)
                if tick is not None:
                    tick(there(), len(chosen) * streams)
    return Store(path)


def _learning(streams: int, random_share: float) -> int:
    """How many of a task's histories do not play at random: one at least."""
    return max(1, streams - round(streams * random_share))


def configured(algorithm: str, options: Mapping[str, Any] | Config | None) -> tuple[Collector, Config]:
    """The collector of a name and its options, defaults filled in. Raises `UsageError`."""
    if algorithm not in COLLECTORS:
        raise UsageError(f"collector {algorithm}: unknown; one of {', '.join(COLLECTORS)}")
    collector = COLLECTORS[algorithm]
    if isinstance(options, Config):
        options = options.model_dump()
    try:
        return collector, collector.options.model_validate(dict(options or {}))
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(map(str, first["loc"]))
        known = ", ".join(collector.options.model_fields) or "none"
        raise UsageError(f"collector {algorithm}, {key}: {first['msg']}; its options: {known}") from None


def described_store(
    room: Family[Any],
    algorithm: str,
    options: Config,
    streams: int,
    steps: int,
    seed: int,
    random_share: float,
) -> Meta:
    """Attributes of a store; stores of other settings are not mixed with it."""
    own = COLLECTORS[algorithm].hyper(room, options, _learning(streams, random_share), steps)
    hyper = {**own, "steps": steps, "random_share": random_share}
    if COLLECTORS[algorithm].joint or random_share:
        hyper["streams"] = streams  # more streams would be another run
    return Meta(
        room.env_id, algorithm, seed, room.horizon, room.observation_space, room.action_space, {}, hyper
    )


def _open_tasks(writer: StoreWriter, chosen: Sequence[Task], numbers: Numbers, size: int) -> list[list[Task]]:
    """Tasks that lack some of the histories `numbers`, in groups of `size`."""
    last = int(numbers.max(initial=-1)) + 1
    lacking = [task for task in chosen if np.isin(numbers, writer.missing(task.index, last)).any()]
    return [lacking[begin : begin + size] for begin in range(0, len(lacking), size)]


def _collect(
    writer: StoreWriter,
    name: str,
    collector: Collector,
    options: Config,
    group: Sequence[Any],
    numbers: Numbers,
    steps: int,
    seed: int,
) -> None:
    played = collector.play(group, numbers, steps, seed, options)
    blocks = histories(group, played, numbers, name) if isinstance(played, Recording) else played
    pairs = []
    for described_task, block in zip(described(group), blocks):
        missing = writer.missing(described_task.index, int(numbers.max()) + 1)
        rows = np.flatnonzero(np.isin(block.history, missing))
        pairs.append((described_task, block if len(rows) == len(block) else block.keep(rows)))
    writer.add(pairs)
