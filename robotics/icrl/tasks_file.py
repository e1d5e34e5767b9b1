"""Files of tasks to play: YAML, JSON or CSV.

    env: darkroom              # optional: the model's own
    episodes: 20               # optional, as are copies and seed
    tasks:
      - goal: [4, 2]           # parameters as the family has them: goal | permutation | key and door
      - index: 17              # or the task's number

An environment of one's own is named as gymnasium does it, ``module:Name-v0`` or a ``Name-v0`` that is registered; its
tasks are keyword arguments that ``gymnasium.make`` hands on. `horizon` limits its episodes; `random` and `optimum`,
the returns that count as 0 and 1, may say what a return is worth::

    env: my_package:MyEnv-v0
    tasks: [{wind: 0.5}, {wind: -0.5}]

A CSV has one task a row and the same names as columns, numbers of one parameter apart by blanks: ``env,goal`` /
``darkroom,4 2``. `env`, `episodes`, `copies` and `seed` must be the same in all rows.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robotics.icrl.envs.base import Family, Task, whole_numbers
from robotics.icrl.envs.families import family
from robotics.icrl.envs.user import GymFamily, is_own
from shared.errors import Fault, ItemError, SuiteError, UsageError

SUFFIXES = (".yaml", ".yml", ".json", ".csv")
MAX_BYTES = 1_000_000
MAX_STEPS, MAX_REQUEST_STEPS = 50_000_000, 200_000
"""Of all tasks, copies, seeds and episodes of a file together, and of a served request, which keeps others waiting."""
WHOLE = ("episodes", "copies", "seed")
OWN = ("horizon", "random", "optimum")
"""Of an environment of one's own."""


@dataclass(frozen=True)
class TaskFile:
    """What to play. `episodes`, `copies` and `seed` are None where the file leaves them to the configuration."""

    tasks: list[Task]
    episodes: int | None = None
    copies: int | None = None
    seed: int | None = None
    faults: list[Fault] = field(default_factory=list)
    """Tasks that cannot be played."""


@dataclass(frozen=True)
class Amount:
    """What is played where a file says nothing, of `tasks` tasks at most, with each of `seeds`."""

    episodes: int = 1
    copies: int = 1
    seeds: int = 1
    tasks: int | None = None


def read(path: Path, env: str, unsaid: Amount = Amount()) -> TaskFile:
    """The tasks of a file; `env` where it names none. Raises `ItemError` if none of them can be played, and where more
    would be played than `MAX_STEPS`."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ItemError(path, f"{size:,} bytes", "at most 1 MB of tasks", "split it")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise ItemError(path, str(err.strerror or err), "a readable file", "check the path") from None
    except UnicodeDecodeError:
        raise ItemError(path, "not UTF-8 text", "a file of tasks", "save it as UTF-8") from None
    return parse(text, path, env, path.suffix.lower(), unsaid)


def parse(
    text: str,
    source: Path | str,
    env: str,
    suffix: str = ".yaml",
    unsaid: Amount = Amount(),
    *,
    own: bool = True,
) -> TaskFile:
    """The same of a text; without `own` only environments known here are made. Raises `ItemError`."""
    content = _table(text, source) if suffix == ".csv" else _mapping(text, source, suffix)
    known = ("env", "tasks", *WHOLE, *OWN)
    odd = sorted(set(content) - set(known))
    if odd:
        raise ItemError(source, f"unknown key {odd[0]}", f"one of {', '.join(known)}", "correct it", odd[0])
    whole = {name: _whole(content.get(name), name, source) for name in WHOLE}
    rows = content.get("tasks")
    if not isinstance(rows, list) or not rows:
        raise ItemError(source, "no tasks", "a list of one or more", "add `tasks:`", "tasks")
    name = content.get("env") or env
    if not isinstance(name, str):
        raise ItemError(source, f"{name}", "one environment's name", "a file for each environment", "env")
    try:
        room = _own(name, rows, content, source) if own and is_own(name) else family(name)
        if odd := [key for key in OWN if content.get(key) is not None and not isinstance(room, GymFamily)]:
            raise UsageError(
                f"{odd[0]} of {room.name}: known already; for environments of your own; remove it"
            )
    except ItemError:
        raise
    except UsageError as err:
        raise ItemError(source, str(err), field="env") from None
    found, faults = _tasks(room, rows, source)
    if not found:
        raise ItemError.of(faults[0])
    result = TaskFile(found, whole["episodes"], whole["copies"], whole["seed"], faults)
    counts = {
        "tasks": min(len(found), unsaid.tasks or len(found)),
        "copies": result.copies or unsaid.copies,
        "seeds": unsaid.seeds,
        "episodes": result.episodes or unsaid.episodes,
        "steps": room.horizon,
    }
    most = MAX_STEPS if own else MAX_REQUEST_STEPS
    if (total := math.prod(counts.values())) > most:
        said = " × ".join(f"{count:,} {name}" for name, count in counts.items() if count > 1)
        raise ItemError(source, f"{said} are {total:,} steps", f"at most {most:,}", "ask for fewer")
    return result


def _tasks(room: Family[Any], rows: Sequence[Any], source: Path | str) -> tuple[list[Task], list[Fault]]:
    found: list[Task] = []
    faults: list[Fault] = []
    there: set[str] = set()
    for number, row in enumerate(rows):
        try:
            task = _task(room, number, row)
            # Not its number: off the lists that is its place in the file.
            if (params := str(sorted(task.params.items()))) in there:
                raise UsageError(f"{_plain(row)}: is there already; each task once, and `copies` for more")
            there.add(params)
            found.append(task)
        except (UsageError, TypeError, ValueError) as err:
            said = str(err) if isinstance(err, SuiteError) else f"{_plain(row)} is no task"
            faults.append(Fault(source, said, "", "correct it", f"tasks[{number}]"))
    return found, faults


def _plain(row: Any) -> str:
    if isinstance(row, Mapping):
        return ", ".join(f"{key} {value}" for key, value in row.items())[:60] or "no arguments"
    return str(row)[:60]


def _task(room: Family[Any], number: int, row: Any) -> Task:
    """A task that is on no list has the number of its place in the file, counted on from the list's end."""
    if isinstance(room, GymFamily):
        return room.task(number)
    if not isinstance(row, Mapping):
        raise UsageError(f"task {str(row)[:60]}: not a mapping; parameters such as goal: [4, 2] wanted")
    if set(row) == {"index"}:
        numbers = whole_numbers("index", row["index"])
        if len(numbers) != 1:
            raise UsageError(f"index {row['index']}: one whole number wanted")
        return room.task(numbers[0])  # type: ignore[no-any-return]
    task = room.find(row)
    return replace(task, index=len(room) + number) if task.index >= len(room) else task


def _own(name: str, rows: Sequence[Any], content: Mapping[str, Any], source: Path | str) -> Family[Any]:
    try:
        return family(name)  # ours have ids too
    except UsageError:
        pass
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
            wanted = "keyword arguments of the environment, or {}"
            raise ItemError(source, f"task {str(row)[:60]}", wanted, "correct it", f"tasks[{number}]")
    random, optimum = (_number(content.get(key), key, source) for key in ("random", "optimum"))
    if random is not None and optimum is not None and not random < optimum:
        raise ItemError(
            source, f"random {random:g}, optimum {optimum:g}", "the optimum above", "correct them"
        )
    return GymFamily(name, rows, _whole(content.get("horizon"), "horizon", source), random, optimum)


def _number(value: Any, name: str, source: Path | str) -> float | None:
    if value is None:
        return None
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise ItemError(source, f"found {str(value)[:40]}", "a number", "correct it", name)
    return number


def _whole(value: Any, name: str, source: Path | str) -> int | None:
    least = 0 if name == "seed" else 1
    if value is None or value == "":
        return None
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise ItemError(
            source, f"found {str(value)[:40]}", f"a whole number from {least}", "correct it", name
        )
    return value


def _mapping(text: str, source: Path | str, suffix: str) -> dict[str, Any]:
    from shared.config import parse_yaml

    try:
        value = json.loads(text, object_pairs_hook=_once) if suffix == ".json" else parse_yaml(text, source)
    except UsageError as err:
        found = str(err).removeprefix(str(source)).lstrip(":").strip()
        raise ItemError(source, found) from None
    except (ValueError, RecursionError) as err:
        raise ItemError(source, f"not JSON ({str(err)[:80]})", "a file of tasks", "correct it") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ItemError(source, f"a {type(value).__name__}", "a mapping with `tasks`", "write `tasks:`")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise UsageError(
            f"key {next(name for name in names if names.count(name) > 1)} twice; each once wanted"
        )
    return found


def _table(text: str, source: Path | str) -> dict[str, Any]:
    try:
        table = csv.DictReader(io.StringIO(text), strict=True)
        names = [name.strip() for name in table.fieldnames or ()]
        if twice := [name for name in names if name and names.count(name) > 1]:
            raise ItemError(source, f"column {twice[0]} twice", "each column once", "mend it", twice[0])
        table.fieldnames = names
        rows = list(table)
    except csv.Error as err:
        raise ItemError(source, f"not CSV ({err})", "a table of tasks", "correct it") from None
    content: dict[str, Any] = {"tasks": []}
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise ItemError(source, f"row {number + 2} of another width", "as many cells as names", "mend it")
        for name in ("env", *WHOLE, *OWN):
            value = (row.pop(name, None) or "").strip() or None
            if content.setdefault(name, value) != value:
                raise ItemError(source, f"{name} {content[name]} and {value}", "one", "split the file", name)
        content["tasks"].append({key: _cell(value) for key, value in row.items() if value.strip()})
    return {key: value for key, value in content.items() if value not in (None, "")}


def _cell(text: str) -> Any:
    """``4 2``, ``4,2`` and ``[4, 2]`` → [4, 2], ``17`` → 17, ``0.1 -0.05`` → [0.1, -0.05]; other text as it is."""
    parts = text.strip(" []()").replace(",", " ").split()
    try:
        numbers = [int(part) if part.lstrip("+-").isdigit() else float(part) for part in parts]
    except ValueError:
        return text
    if not numbers:
        return text
    return numbers if len(numbers) > 1 else numbers[0]


def as_yaml(env: str, tasks: Sequence[Task], episodes: int, seed: int) -> str:
    """A file of tasks as text."""
    rows = "".join(f"  - {json.dumps(dict(task.params)).replace(chr(34), '')}\n" for task in tasks)
    return f"env: {env}\nepisodes: {episodes}\nseed: {seed}\ntasks:\n{rows}"
