"""Small files of tasks, as a user brings them."""

from __future__ import annotations

from pathlib import Path

from robotics.icrl.envs.families import tasks
from robotics.icrl.tasks_file import as_yaml
from shared.io.atomic import atomic_write_text

EPISODES = 12


def write_sample(folder: Path, n: int, seed: int) -> list[Path]:
    """`n` files of one held-out Darkroom goal each."""
    folder.mkdir(parents=True, exist_ok=True)
    held = tasks("darkroom", "test")
    written = []
    for number in range(n):
        path = folder / f"darkroom-{number:02d}.yaml"
        task = held[(seed + number) % len(held)]
        atomic_write_text(path, as_yaml("darkroom", [task], EPISODES, seed + number))
        written.append(path)
    return written
