"""Stores as Minari datasets and back: one Minari episode per episode, task and number of its history in its metadata.

Minari keeps each episode apart (``<id>/data/main_data.hdf5``, ``metadata.json``), which takes some 18 kB an episode
whatever it holds. Beside Minari's own metadata the dataset has ``icrl``: the store's attributes and its tasks; an
episode has ``task``, ``history``, ``source`` and, as options of ``reset``, the task. Read back it is the same store.

A dataset of others can be read where its environment is a family known here and each episode says its ``task``, or was
begun by ``reset(options={"task": 17})``; ``history`` 0 is then taken where none is said, and a task's episodes in their
order are one history. Local folders only: nothing is downloaded, and no environment is built of what a file says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robotics.icrl.collect.recording import described
from robotics.icrl.envs.base import Family
from robotics.icrl.envs.families import family
from robotics.icrl.envs.grid import GRIDS
from robotics.icrl.store import Histories, Meta, Task
from shared.errors import DataInvalid, Fault, need

METADATA = "metadata.json"
Stream = Iterator[tuple[Task, Histories]]


def dataset_folder(path: Path) -> Path | None:
    """The folder of a Minari dataset's files if `path` is a dataset or that folder; else None."""
    for folder in (path / "data", path):
        if (folder / METADATA).is_file():
            return folder
    return None


def dataset_id(meta: Meta) -> str:
    """Such as ``darkroom-explorer-v0``."""
    name = meta.env_id.rsplit("/", 1)[-1].rsplit("-v", 1)[0]
    return f"{name}-{meta.algorithm}-v0".lower()


# ---------------------------------------------------------------- writing


def write_minari(meta: Meta, blocks: Stream, folder: Path) -> Path:
    """The dataset ``folder/<id>``, which must not exist, of all `blocks`. Raises `EnvironmentUnfit` without Minari.

    ``MINARI_DATASETS_PATH=folder`` and ``minari.load_dataset(id)`` open it, as does ``minari.MinariDataset(path)``.
    """
    need("robotics", "gymnasium", "minari")
    from minari.dataset.minari_storage import MinariStorage

    path = folder.absolute() / dataset_id(meta)  # Minari looks for relative ones inside themselves
    (path / "data").mkdir(parents=True)
    storage = MinariStorage.new(
        path / "data", _space(meta.observation_space), _space(meta.action_space), _env_spec(meta), "hdf5"
    )
    storage.update_metadata(
        {"dataset_id": path.name, "algorithm_name": meta.algorithm, "minari_version": version("minari")}
    )
    tasks: dict[str, Any] = {}
    for task, block in blocks:
        tasks[str(task.index)] = asdict(task)
        first = storage.total_episodes
        episodes = list(_episodes(block))
        storage.update_episodes([episode for episode, _ in episodes])
        storage.update_episode_metadata([about for _, about in episodes], range(first, first + len(episodes)))
    storage.update_metadata({"icrl": {"meta": meta.attributes(), "tasks": tasks}})
    return path


def _episodes(block: Histories) -> Iterator[tuple[Any, dict[str, Any]]]:
    from minari.data_collector.episode_buffer import EpisodeBuffer

    for row in range(len(block)):
        begins = np.flatnonzero(block.starts()[row])
        about = {
            "task": int(block.task[row]),
            "history": int(block.history[row]),
            "source": str(block.source[row]),
        }
        for begin, end in zip(begins, [*begins[1:], block.steps]):
            part = slice(int(begin), int(end))
            best = None if block.optimal_actions is None else block.optimal_actions[row, part]
            yield (
                EpisodeBuffer(
                    options={"task": about["task"]},
                    observations=np.concatenate([block.obs[row, part], block.final_obs[row, end - 1 : end]]),  # type: ignore[arg-type]
                    actions=block.actions[row, part],
                    rewards=block.rewards[row, part],  # type: ignore[arg-type]
                    terminations=block.terminations[row, part],  # type: ignore[arg-type]
                    truncations=block.truncations[row, part],  # type: ignore[arg-type]
                    infos=None if best is None else {"optimal_actions": best},
                ),
                about,
            )


def _space(about: Mapping[str, Any]) -> Any:
    from gymnasium import spaces

    if about["kind"] == "discrete":
        return spaces.Discrete(int(about["n"]))
    kind = np.dtype(about.get("dtype", "float32"))
    low, high = (
        np.broadcast_to(np.asarray(wide if about.get(side) is None else about[side], kind), about["shape"])
        for side, wide in (("low", -np.inf), ("high", np.inf))
    )
    return spaces.Box(low, high, tuple(about["shape"]), kind.type)


def _env_spec(meta: Meta) -> Any:
    """Of a dark grid, so that ``recover_environment`` works; its tasks are options of ``reset``. Others: None."""
    if meta.env_id not in {each.env_id for each in GRIDS.values()}:
        return None
    import gymnasium as gym

    from robotics.icrl import envs

    envs.register()
    return gym.spec(meta.env_id)


# ---------------------------------------------------------------- reading


def read_minari(path: Path) -> tuple[Meta, Stream]:
    """What a dataset holds, task by task, as a store has it. Raises `DataInvalid`, `EnvironmentUnfit`."""
    need("robotics", "gymnasium", "minari")
    from minari.dataset.minari_storage import MinariStorage

    folder = dataset_folder(path)
    if folder is None:
        raise _invalid(path, f"no {METADATA}", "a folder of a Minari dataset")
    try:
        about = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        absent = {"observation_space", "action_space", "total_episodes"} - set(about)
        if absent:  # Minari would build the environment to ask it
            raise _invalid(path, f"no {sorted(absent)[0]}", "Minari's metadata", METADATA)
        storage = MinariStorage.read(folder)
        found = list(storage.get_episode_metadata(range(storage.total_episodes)))
    except (OSError, KeyError, ValueError, TypeError, AssertionError) as err:
        raise _invalid(path, f"unreadable ({str(err)[:120]})", "a Minari dataset with HDF5 data") from err
    if not found:
        raise _invalid(path, "no episode", "one or more")
    own = about.get("icrl")
    meta, known = _own(path, own) if own is not None else _foreign(path, about, found)
    return meta, _histories(path, storage, _order(path, found), known, None if own else family(meta.env_id))


def _own(path: Path, own: Mapping[str, Any]) -> tuple[Meta, dict[int, Task]]:
    try:
        return Meta.of(own["meta"]), {int(index): Task(**task) for index, task in own["tasks"].items()}
    except (KeyError, ValueError, TypeError, AttributeError) as err:
        raise _invalid(path, f"icrl unreadable ({str(err)[:80]})", "as exported", METADATA) from err


def _foreign(
    path: Path, about: Mapping[str, Any], found: Sequence[Mapping[str, Any]]
) -> tuple[Meta, dict[int, Task]]:
    from shared.errors import UsageError

    try:
        room = family(str(json.loads(about.get("env_spec") or "{}").get("id")))
        tasks = [room.task(index) for index in sorted({_task_of(path, each) for each in found})]
    except (ValueError, UsageError) as err:
        raise _invalid(path, str(err), "an environment and tasks known here", METADATA) from err
    spaces = (room.observation_space, room.action_space)
    name = str(about.get("algorithm_name") or "minari")
    meta = Meta(room.env_id, name, 0, room.horizon, *spaces, {}, {"converted_from": "minari"})
    return meta, {task.index: task for task in described(tasks)}


def _task_of(path: Path, about: Mapping[str, Any]) -> int:
    value = about.get("task", (about.get("options") or {}).get("task"))
    if value is None:
        raise _invalid(
            path, f"episode {about.get('id')} names no task", "`task` in its metadata or its reset's options"
        )
    return int(value)


def _order(path: Path, found: Sequence[Mapping[str, Any]]) -> dict[int, dict[int, list[int]]]:
    """Task → history → its episodes, in their order."""
    order: dict[int, dict[int, list[int]]] = {}
    for number, about in enumerate(found):
        histories = order.setdefault(_task_of(path, about), {})
        histories.setdefault(int(about.get("history", 0)), []).append(number)
    return {index: dict(sorted(order[index].items())) for index in sorted(order)}


def _histories(
    path: Path,
    storage: Any,
    order: Mapping[int, Mapping[int, Sequence[int]]],
    known: Mapping[int, Task],
    room: Family[Any] | None,
) -> Stream:
    for index, numbers in order.items():
        if index not in known:
            raise _invalid(path, f"task {index} is not described", "as exported", METADATA)
        rows = []
        for history, episodes in numbers.items():
            about = next(iter(storage.get_episode_metadata(episodes[:1])))
            rows.append(
                _row(list(storage.get_episodes(episodes)), index, history, str(about.get("source", "minari")))
            )
        lengths = sorted({row.steps for row in rows})
        if len(lengths) > 1:
            found = f"histories of {lengths[0]} to {lengths[-1]} steps"
            raise _invalid(path, found, "one length", f"task {index}")
        try:
            block = Histories.join(rows)
        except ValueError as err:
            raise _invalid(path, str(err), "episodes of one shape", f"task {index}") from err
        yield known[index], block if room is None else _compact(block, room)


def _row(episodes: Sequence[Mapping[str, Any]], task: int, history: int, source: str) -> Histories:
    def joined(key: str, cut: int | None = None) -> NDArray[Any]:
        return np.concatenate([np.asarray(each[key])[:cut] for each in episodes])[None]

    obs = joined("observations", -1)
    final, at = np.zeros_like(obs), np.cumsum([len(each["rewards"]) for each in episodes]) - 1
    final[0, at] = [each["observations"][-1] for each in episodes]
    best: list[Any] = [(each.get("infos") or {}).get("optimal_actions") for each in episodes]
    count = np.repeat(np.arange(len(episodes)), [len(each["rewards"]) for each in episodes])
    return Histories(
        obs=obs,
        actions=joined("actions"),
        rewards=joined("rewards").astype(np.float32),
        terminations=joined("terminations").astype(bool),
        truncations=joined("truncations").astype(bool),
        episode=count[None].astype(np.int32),
        final_obs=final,
        task=np.full(1, task),
        history=np.full(1, history),
        source=np.full(1, source),
        optimal_actions=None if any(each is None for each in best) else np.concatenate(best)[None],
    )


def _compact(block: Histories, room: Family[Any]) -> Histories:
    """Whole numbers as a store of ours has them, and the best actions, which a grid's rules tell."""
    task = room.task(int(block.task[0]))
    for name, space in (
        ("obs", room.observation_space),
        ("final_obs", room.observation_space),
        ("actions", room.action_space),
    ):
        real = "float" in str(space.get("dtype", ""))
        setattr(block, name, getattr(block, name).astype(np.float32 if real else np.uint8))
    block.optimal_actions = room.labels(task, block.obs, block.rewards, block.starts())
    return block


def _invalid(path: Path, found: str, wanted: str, field: str = "") -> DataInvalid:
    return DataInvalid([Fault(path, found, wanted, "export or download it again", field)])
