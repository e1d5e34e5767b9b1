"""Names of items that come from files: short, and no two alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


def unique_names(files: Sequence[tuple[Path, Path]], stem: Callable[[Path], str]) -> list[str]:
    """The shortest name for each (where the search began, file) that no other has: below its folder, `stem` of the
    file, then its whole name, then more folders."""

    def candidates(root: Path, path: Path) -> list[str]:
        inside = path.relative_to(root)
        short = (inside.parent / stem(path)).as_posix()
        whole = path.absolute().as_posix().lstrip("/")
        return [short, inside.as_posix(), f"{root.absolute().name}/{inside.as_posix()}", whole]

    options, level = [candidates(*pair) for pair in files], [0] * len(files)
    while True:
        names = [each[at] for each, at in zip(options, level)]
        first: dict[str, list[int]] = {}
        for number, name in enumerate(names):
            first.setdefault(name, []).append(number)
        again = [
            n for same in first.values() if len(same) > 1 for n in same if level[n] + 1 < len(options[n])
        ]
        if not again:
            return names
        for number in again:
            level[number] += 1
