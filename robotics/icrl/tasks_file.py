"""Files of tasks to play: YAML, JSON or CSV.

    env: darkroom              # optional: the model's own
    episodes: 20               # optional, as are copies and seed
    tasks:
      - goal: [4, 2]           # parameters as the family has them: goal | permutation | key and door
      - index: 17              # or the task's number

A CSV has one task a row and the same names as columns, numbers of one parameter apart by blanks: ``env,goal`` /
``darkroom,4 2``. `env`, `episodes`, `copies` and `seed` must be the same in all rows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robotics.icrl.envs.grid import GridTask, family
from shared.errors import Fault, ItemError, SuiteError, UsageError

SUFFIXES = (".yaml", ".yml", ".json", ".csv")
MAX_BYTES = 1_000_000
MAX_STEPS = 50_000_000
"""Of all tasks, copies and episodes of a file together."""
WHOLE = ("episodes", "copies", "seed")


@dataclass(frozen=True)
class TaskFile:
    """What to play. `episodes`, `copies` and `seed` are None where the file leaves them to the configuration."""

    tasks: list[GridTask]
    episodes: int | None = None
    copies: int | None = None
    seed: int | None = None
    faults: list[Fault] = field(default_factory=list)
    """Tasks that cannot be played."""


def read(path: Path, env: str) -> TaskFile:
    """The tasks of a file; `env` where it names none. Raises `ItemError` if none of them can be played."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ItemError(path, f"{size:,} bytes", "at most 1 MB of tasks", "split it")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise ItemError(path, str(err.strerror or err), "a readable file", "check the path") from None
    except UnicodeDecodeError:
        raise ItemError(path, "not UTF-8 text", "a file of tasks", "save it as UTF-8") from None
    return parse(text, path, env, path.suffix.lower())


def parse(text: str, source: Path | str, env: str, suffix: str = ".yaml") -> TaskFile:
    """The same of a text. Raises `ItemError`."""
    content = _table(text, source) if suffix == ".csv" else _mapping(text, source, suffix)
    odd = sorted(set(content) - {"env", "tasks", *WHOLE})
    if odd:
        raise ItemError(
            source, f"unknown key {odd[0]}", f"one of env, tasks, {', '.join(WHOLE)}", "correct it", odd[0]
        )
    whole = {name: _whole(content.get(name), name, source) for name in WHOLE}
    rows = content.get("tasks")
    if not isinstance(rows, list) or not rows:
        raise ItemError(source, "no tasks", "a list of one or more", "add `tasks:`", "tasks")
    room, found, faults = str(content.get("env") or env), [], []
    for number, row in enumerate(rows):
        where = f"tasks[{number}]"
        try:
            found.append(_task(room, row))
        except (UsageError, TypeError, ValueError) as err:
            said = str(err) if isinstance(err, SuiteError) else f"{str(row)[:60]} is no task"
            faults.append(Fault(source, said, "", "correct it", where))
    if not found:
        raise ItemError.of(faults[0])
    result = TaskFile(found, whole["episodes"], whole["copies"], whole["seed"], faults)
    total = len(found) * (result.copies or 1) * (result.episodes or 1) * found[0].family.horizon
    if total > MAX_STEPS:
        raise ItemError(source, f"{total:,} steps in all", f"at most {MAX_STEPS:,}", "split it")
    return result


def _task(room: str, row: Any) -> GridTask:
    if not isinstance(row, Mapping):
        raise UsageError(f"task {str(row)[:60]}: not a mapping; parameters such as goal: [4, 2] wanted")
    rooms = family(room)
    return rooms.task(int(row["index"])) if set(row) == {"index"} else rooms.find(dict(row))


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
        value = json.loads(text) if suffix == ".json" else parse_yaml(text, source)
    except UsageError as err:
        found = str(err).removeprefix(str(source)).lstrip(":").strip()
        raise ItemError(source, found) from None
    except (ValueError, RecursionError) as err:
        raise ItemError(source, f"not JSON ({str(err)[:80]})", "a file of tasks", "correct it") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ItemError(source, f"a {type(value).__name__}", "a mapping with `tasks`", "write `tasks:`")
    return value


def _table(text: str, source: Path | str) -> dict[str, Any]:
    try:
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as err:
        raise ItemError(source, f"not CSV ({err})", "a table of tasks", "correct it") from None
    content: dict[str, Any] = {"tasks": []}
    for number, row in enumerate(rows):
        if None in row or None in row.values():
            raise ItemError(source, f"row {number + 2} of another width", "as many cells as names", "mend it")
        for name in ("env", *WHOLE):
            value = row.pop(name, None)
            if content.setdefault(name, value) != value:
                raise ItemError(source, f"{name} {content[name]} and {value}", "one", "split the file", name)
        content["tasks"].append({key: _cell(value) for key, value in row.items() if value.strip()})
    return {key: value for key, value in content.items() if value not in (None, "")}


def _cell(text: str) -> Any:
    """``4 2`` → [4, 2], ``17`` → 17."""
    numbers = [int(part) for part in text.split()] if all(p.isdigit() for p in text.split()) else [text]
    return numbers if len(numbers) > 1 else numbers[0]


def as_yaml(env: str, tasks: Sequence[GridTask], episodes: int, seed: int) -> str:
    """A file of tasks as text."""
    rows = "".join(f"  - {json.dumps(task.params).replace(chr(34), '')}\n" for task in tasks)
    return f"env: {env}\nepisodes: {episodes}\nseed: {seed}\ntasks:\n{rows}"
