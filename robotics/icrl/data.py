"""Learning histories of the training tasks, collected or given, filtered, and cut into windows.

Tasks of a family's test part (DICP's seeded split) are never trained on, whatever a store holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch

from robotics.icrl.collect.run import collect, configured, described_store
from robotics.icrl.config import IcrlConfig
from robotics.icrl.envs.base import Family, Task
from robotics.icrl.envs.families import family, tasks
from robotics.icrl.envs.grid import GridFamily
from robotics.icrl.lhf import Rule, Scores, score
from robotics.icrl.models import build
from robotics.icrl.models.batch import Arrays, Window, of_histories
from robotics.icrl.models.config import ModelConfig
from robotics.icrl.models.spaces import Spaces
from robotics.icrl.store import Histories, Store, some, store_files
from robotics.icrl.store_check import check as check_store
from robotics.icrl.store_check import check_rules
from robotics.icrl.tasks_file import SUFFIXES, Amount, read
from shared.errors import DataInvalid, Fault, ItemError, UsageError, first_line
from shared.pipeline import DataFacts, error_faults
from shared.training.loader import Draw, ExactLoader, make_loader

Part = Literal["train", "val"]
HISTORIES = "histories.h5"
"""Below a run's work folder: what was collected."""


def check(config: IcrlConfig) -> list[Fault]:
    """Every fault of the store at ``data.path``, or of a file of tasks, which is for scoring only. Of a trained model's
    configuration, those that keep it from being scored. Raises `UsageError` where ``data.env`` is given and not the
    store's."""
    path, trained = config.data.path, config.data.spaces is not None  # which `infer` fills in
    if path is None:
        return []
    if path.suffix.lower() in SUFFIXES:
        try:
            faults = read(path, config.data.env, Amount(**config.evaluate.model_dump())).faults
        except ItemError as err:
            return [err.fault]
        what = "tasks to play, for evaluate and predict"
        plays = Fault(path, what, "a store to train on", severity="warning")
        return faults if trained else [*faults, plays]
    faults = check_store(path)
    if error_faults(faults):
        return faults
    store = Store(path)
    try:
        room = family(store.meta.env_id)
    except UsageError as err:
        fault = Fault(path, f"histories of {store.meta.env_id}", str(err), "collect in one of these")
        return [*faults, fault]
    if not trained and "env" in config.data.model_fields_set and config.data.env != room.name:
        raise UsageError(
            f"data.env: {config.data.env}, but {path} holds {room.name}; its own wanted; "
            f"set it with -s data.env={room.name}"
        )
    misfits = _misfits(path, store, room)
    if misfits or trained:
        return [*faults, *misfits]
    held = {task.index for task in tasks(room.name, "test")}
    train, test = ([index for index in store.tasks if (index in held) is part] for part in (False, True))
    if len(train) < 2:
        found, wanted = f"training tasks: {len(train)}", "2 or more: one trains, one validates"
        faults.append(Fault(path, found, wanted, "collect more tasks"))
    if test:
        found = f"{some(test)} of {room.name}'s test part"
        faults.append(Fault(path, found, "training tasks", "left out of training", "tasks", "warning"))
    return [*faults, *_unfit(config, store, room, set(train))]


def _unfit(config: IcrlConfig, store: Store, room: Family[Any], train: set[int]) -> list[Fault]:
    """What a grid's rules, or a filter of a part of the histories, cannot take."""
    faults, short, share = [], [], config.data.first
    partly = share < 1 and config.filter.mode != "none"
    for index in store.tasks if isinstance(room, GridFamily) or partly else ():
        block = store.read(index)
        if isinstance(room, GridFamily):
            faults += check_rules(store.path, room.task(index), block)
        if partly and index in train and (np.isfinite(block.first(share).returns()).sum(axis=1) < 2).any():
            short.append(index)
    if short:
        found = f"{share:g} leaves fewer than 2 episodes in histories of tasks {some(short)}"
        wanted = f"2 or more for filter.mode {config.filter.mode}"
        faults.append(Fault(store.path, found, wanted, "raise it", "data.first"))
    return faults


def _misfits(path: Path, store: Store, room: Family[Any]) -> list[Fault]:
    """What a store says otherwise than its family: the split and the scores go by a task's number."""
    meta, mend = store.meta, "collect it in the family, or correct the attributes"
    faults = []
    try:
        found = Spaces.of(meta.observation_space, meta.action_space)
    except (UsageError, KeyError, TypeError, ValueError) as err:
        return [Fault(path, first_line(err), str(spaces_of(room.name)), mend, "spaces")]
    for name, said, wanted in (
        ("horizon", meta.horizon, room.horizon),
        ("spaces", str(found), str(spaces_of(room.name))),
    ):
        if said != wanted:
            faults.append(Fault(path, str(said), f"{wanted}, as {room.name} has", mend, name))
    if unknown := [index for index in store.tasks if not 0 <= index < len(room)]:
        faults.append(Fault(path, f"task {unknown[0]} of {room.name}", f"0 to {len(room) - 1}", "", "tasks"))
        return faults
    known = {index: (dict(store.task(index).params), dict(room.task(index).params)) for index in store.tasks}
    odd = [(index, given, own) for index, (given, own) in known.items() if given != own]
    if odd:
        more = f" and {len(odd) - 2} more" if len(odd) > 2 else ""
        said = ", ".join(f"task {index} is {given}" for index, given, _ in odd[:2])
        wanted = ", ".join(f"{own}" for *_, own in odd[:2])
        wanted = f"{wanted} as the family numbers them"
        faults.append(Fault(path, said + more, wanted, "number the tasks so", "tasks"))
    return faults


def infer(config: IcrlConfig) -> dict[str, Any]:
    """The completed keys of ``data``. Raises `EnvironmentUnfit` where the family's tasks cannot be played here."""
    path, env = config.data.path, str(config.data.env)
    if path is not None and path.suffix.lower() not in SUFFIXES:
        env = family(Store(path).meta.env_id).name
    family(env).ready()
    return {"env": env, "spaces": spaces_of(env)}


def trained_on(config: IcrlConfig, chosen: Sequence[Task]) -> list[str]:
    """What is to say of tasks that are of the training part of the model's own family."""
    if chosen[0].family.name != config.data.env:
        return []
    known = {task.index for task in tasks(config.data.env, "train")}
    seen = [task.index for task in chosen if task.index in known]
    if not seen:
        return []
    some = ", ".join(map(str, seen[:20])) + (" …" if len(seen) > 20 else "")
    return [
        f"{len(seen)} of the {len(chosen)} tasks are of the training part ({some}): what is earned there is not "
        "what the model earns in new ones"
    ]


def history_steps(config: IcrlConfig) -> int:
    """Steps of a history that are used."""
    data = config.data
    if data.path is None:
        steps = data.episodes * family(data.env).horizon
    else:
        store = Store(data.path)
        steps = store.read(store.tasks[0]).steps
    return max(1, round(steps * data.first))


def fitting(config: IcrlConfig) -> ModelConfig:
    """The model with a context no longer than histories are: a network that never saw so long a one in training plays
    worse in it than in the one it knows. What cannot be trained is refused here, before an hour of collecting.

    Raises `UsageError` for a model that cannot be built and for histories too short for the filter, `DataInvalid` for
    those too short for `legacy`, whose windows have one length.
    """
    model, path = config.model, config.data.path
    if path is not None and path.suffix.lower() in SUFFIXES:
        return model
    steps, data = history_steps(config), config.data
    if path is None and config.filter.mode != "none" and steps // family(data.env).horizon < 2:
        raise UsageError(
            f"data.first: {data.first:g} of {data.episodes} episodes; two whole ones wanted for filter.mode "
            f"{config.filter.mode}; raise data.first or data.episodes"
        )
    if model.legacy and steps < model.context:
        found, wanted = f"{steps} steps", f"model.context {model.context} or more"
        raise DataInvalid([Fault("histories", found, wanted, "lower it, or collect longer")])
    if not model.legacy:
        context = min(model.context, max(2, steps))
        keep = model.keep if model.keep < context else 0
        model = model.model_copy(update={"context": context, "keep": keep})
    with torch.random.fork_rng(devices=[]):  # one block fails as all do
        build(model.model_copy(update={"depth": 1}), data.spaces or spaces_of(data.env))
    return model


def spaces_of(env: str) -> Spaces:
    """What agents of a family see and do."""
    room = family(env)
    return Spaces.of(room.observation_space, room.action_space)


def train_tasks(config: IcrlConfig) -> list[Task]:
    """The tasks to collect in, in the split's order."""
    return tasks(config.data.env, "train")[: config.data.tasks or None]


class Windows:
    """`count` windows an epoch out of N histories; a draw's seed says which, so any step can be made again."""

    def __init__(self, arrays: Arrays, spaces: Spaces, length: int, from_start: float, count: int) -> None:
        self.arrays, self.spaces, self.length, self.count = arrays, spaces, length, count
        self.from_start = from_start

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"window {index}"

    def batch(self, draws: Sequence[Draw]) -> Window:
        random = np.random.default_rng([draw.seed for draw in draws])
        rows = random.integers(len(self.arrays.reward), size=len(draws))
        first = random.integers(self.arrays.steps - self.length + 1, size=len(draws))
        first[random.random(len(draws)) < self.from_start] = 0
        return self.arrays.window(torch.from_numpy(rows), torch.from_numpy(first), self.length, self.spaces)


class IcrlData(pl.LightningDataModule):
    """Loaders of what `data.path` holds, or of what `collect` made."""

    def __init__(self, config: IcrlConfig) -> None:
        super().__init__()
        self.config = config
        self.store: Store | None = None

    def setup(self, stage: str = "fit") -> None:
        """Opens a given store. Raises `DataInvalid`."""
        path = self.config.data.path
        if path is None or self.store is not None:
            return
        if path.suffix.lower() in SUFFIXES:
            raise DataInvalid(
                [Fault(path, "a file of tasks", "a store of histories to train on", "use it with evaluate")]
            )
        self.store = Store(path)

    def collect(self, folder: Path, tick: Callable[[int, int], None] | None = None) -> None:
        """Histories of the training tasks into `folder`, going on where an earlier attempt stopped."""
        data = self.config.data
        steps = data.episodes * family(data.env).horizon
        chosen = [task.index for task in train_tasks(self.config)]
        args = (data.env, chosen, data.streams, steps, self.config.seed, folder / HISTORIES)
        self.store = collect(*args, data.collector, data.options, data.random_share, tick=tick)

    def open_collected(self, folder: Path) -> None:
        """What another process has collected there."""
        self.store = Store(folder / HISTORIES)

    # ------------------------------------------------------------ histories

    @cached_property
    def parts(self) -> dict[Part, list[int]]:
        """Task numbers; the last of the split's order validate."""
        order = [task.index for task in tasks(self.config.data.env, "train")]
        if self.store is not None and self.config.data.path is not None:
            there = set(self.store.tasks)
            order = [index for index in order if index in there]
        order = order[: self.config.data.tasks or None]
        count = min(max(1, round(len(order) * self.config.data.validation)), len(order) - 1)
        if count < 1:
            raise DataInvalid([Fault("histories", f"training tasks: {len(order)}", "2 or more", "add tasks")])
        return {"train": order[:-count], "val": order[-count:]}

    def histories(self, part: Part) -> Histories:
        assert self.store is not None, "collect first"
        found = self.store.load(self.parts[part])
        return found if self.config.data.first == 1 else found.first(self.config.data.first)

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """LHF's, of the training histories by task; {} without a filter. Raises `DataInvalid`."""
        if self.config.filter.mode == "none":
            return {}
        assert self.store is not None
        return score_histories(self.store, self.parts["train"], self.config)

    @cached_property
    def train_arrays(self) -> Arrays:
        found, weight = self.histories("train"), None
        if self.scores:
            begins = np.cumsum([0, *(len(each.returns) for each in self.scores.values())])
            taken = [each.taken + begin for each, begin in zip(self.scores.values(), begins)]
            weight = np.concatenate([each.weight for each in self.scores.values()])
            if self.config.filter.mode == "stochastic":
                found, weight = found.keep(np.concatenate(taken)), None
        return self._arrays(found, weight)

    @cached_property
    def val_arrays(self) -> Arrays:
        return self._arrays(self.histories("val"))

    def _arrays(self, found: Histories, weight: Any = None) -> Arrays:
        model = self.config.model
        return of_histories(found, self.spaces, method=model.method, legacy=model.legacy, weight=weight)

    @property
    def spaces(self) -> Spaces:
        return self.config.data.spaces or spaces_of(self.config.data.env)

    # ------------------------------------------------------------ loaders

    def train_dataloader(self) -> ExactLoader:
        train = self.config.train
        count = train.steps * train.batch_size * train.accumulate
        windows = Windows(self.train_arrays, self.spaces, self.length, train.from_start, count)
        return make_loader(windows, train.batch_size, self.config.seed, workers=0)

    def val_dataloader(self) -> ExactLoader:
        windows = Windows(self.val_arrays, self.spaces, self.length, 0.5, 4 * self.config.train.batch_size)
        return make_loader(windows, self.config.train.batch_size, self.config.seed, shuffle=False)

    @property
    def length(self) -> int:
        """Steps of a window: the context, or the histories' length."""
        return min(self.config.model.context, self.train_arrays.steps)

    # ------------------------------------------------------------ facts

    def facts(self) -> DataFacts:
        data, parts = self.config.data, self.parts
        count = len(parts["train"]) + len(parts["val"])
        if data.path is None:
            source, items = "embedded sample", count * data.streams
            notes = [f"to be collected by {data.collector}: {data.streams} histories of {count} tasks"]
        else:
            assert self.store is not None
            source = str(data.path)
            items = sum(len(self.store.numbers(index)) for each in parts.values() for index in each)
            notes = [f"collected by {self.store.meta.algorithm}: {items} histories of {count} tasks"]
            if data.unused:
                keys = ", ".join(f"data.{key}" for key in data.unused)
                notes.append(f"{keys}: of collecting, and change nothing in a store")
        if self.config.model.context == history_steps(self.config):
            notes.append(f"context of {self.config.model.context} steps, all that a history has")
        notes.append(f"{data.env}: {len(parts['train'])} tasks to train on, {len(parts['val'])} to validate")
        return DataFacts(source, self.fingerprint(), items, tuple(notes))

    def fingerprint(self) -> str:
        """sha256 of the store's files, or of all that decides what is collected."""
        digest = hashlib.sha256()
        if self.config.data.path is not None:
            for file in store_files(self.config.data.path):
                digest.update(file.read_bytes())
            return digest.hexdigest()
        data, room = self.config.data, family(self.config.data.env)
        options = configured(data.collector, data.options)[1]
        settings = (data.streams, data.episodes * room.horizon, self.config.seed, data.random_share)
        meta = described_store(room, data.collector, options, *settings)
        chosen = [task.index for task in train_tasks(self.config)]
        digest.update(json.dumps([meta.attributes(), chosen], sort_keys=True).encode())
        return digest.hexdigest()


def rule_of(config: IcrlConfig) -> Rule:
    """LHF's rule as configured; where no filter is, the published one."""
    chosen = config.filter
    mode: Literal["filter", "reweight"] = "reweight" if chosen.mode == "reweight" else "filter"
    return Rule(mode, chosen.stability_weight, chosen.temperature)


def score_histories(store: Store, chosen: Sequence[int], config: IcrlConfig) -> dict[str, Scores]:
    """LHF's scores of the histories of some tasks, by task, of the part of them that is used. Raises `DataInvalid`."""
    about = {str(index): store.task(index) for index in chosen}
    returns = {}
    for name in about:
        found = store.read(int(name)).first(config.data.first).returns()
        returns[name] = [row[~np.isnan(row)] for row in found]
    return score(
        returns,
        rule_of(config),
        config.seed,
        r_max={name: each.r_max for name, each in about.items() if each.r_max is not None},
        r_min={name: each.r_min for name, each in about.items() if each.r_min is not None},
    )
