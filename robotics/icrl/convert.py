"""Learning histories in another form: stores, Minari datasets and DICP's files in, stores or Minari datasets out.

    pipelines predict icrl history_darkroom_PPO_alg-seed0.hdf5 -o out -s convert=store
    pipelines predict icrl histories.h5 -o out -s convert=minari

An item is a file, or the folder of a Minari dataset. No network is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from robotics.icrl.store import Histories, Meta, Store, Task, dicp, opened
from robotics.icrl.store_convert import read_dicp
from robotics.icrl.store_minari import dataset_folder, read_minari, write_minari
from robotics.icrl.store_writer import StoreWriter
from shared.errors import DataInvalid, Fault, ItemError, UsageError
from shared.io.names import unique_names
from shared.pipeline import Item, Predictor, Tick

Form = Literal["store", "minari"]
FORMS: tuple[Form, ...] = ("store", "minari")
FILE = "histories.h5"
SUFFIXES = (".h5", ".hdf5")


class Source(NamedTuple):
    """What is converted: attributes, then (task, histories) one task after another, read when asked for."""

    meta: Meta
    blocks: Iterator[tuple[Task, Histories]]


def open_source(path: Path) -> Source:
    """Any of the three forms, known by content. Raises `DataInvalid`, and `UsageError` as `read_dicp`."""
    if path.is_dir():
        return Source(*read_minari(path))
    with opened(path) as file:
        theirs = dicp(file)
    if theirs:
        return Source(*read_dicp(path))
    store = Store(path)
    return Source(store.meta, iter(store))


def convert(path: Path, form: Form, folder: Path) -> dict[str, Any]:
    """`path` as ``folder/histories.h5`` or as a Minari dataset in `folder`; how many tasks and histories. Raises as
    `open_source`."""
    source = open_source(path)
    counts: list[int] = []

    def seen() -> Iterator[tuple[Task, Histories]]:
        for task, block in source.blocks:
            counts.append(len(block))
            yield task, block

    if form == "minari":
        written = write_minari(source.meta, seen(), folder)
    else:
        written = folder / FILE
        with StoreWriter(written, source.meta, "no") as writer:
            for pair in seen():
                writer.add([pair])
        (folder / f".{FILE}.lock").unlink(missing_ok=True)
    return {
        "written": written.name,
        "env": source.meta.env_id,
        "tasks": len(counts),
        "histories": sum(counts),
    }


class Converter(Predictor):
    """The predictor of ``predict.convert``."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        form, others = options.get("convert"), set(options) - {"convert"}
        if form not in FORMS or others:
            found = f"convert={form}" if form not in FORMS else f"{min(others)} beside convert"
            raise UsageError(f"predict.{found}: {' or '.join(FORMS)} wanted, alone; correct it")
        self.form: Form = form

    def discover(self, paths: Sequence[Path]) -> list[Item]:
        found: list[tuple[Path, Path]] = []
        for path in map(Path, paths):
            found += [(path, file) for file in _inside(path)] if path.is_dir() else [(path.parent, path)]
        found = [(root if root != path else path.parent, path) for root, path in found]
        names = unique_names(found, lambda path: path.stem)
        return [Item(name, _files(path), path, _fault(path)) for name, (_, path) in zip(names, found)]

    def predict(self, item: Item, tick: Tick | None = None) -> Path:
        if item.fault is not None:
            raise ItemError.of(item.fault)
        path: Path = item.payload
        return path

    def write(self, result: Path, folder: Path) -> dict[str, Any]:
        try:
            return convert(result, self.form, folder)
        except DataInvalid as err:
            raise ItemError.of(err.faults[0]) from None


def _inside(folder: Path) -> list[Path]:
    """Minari datasets and files of histories below `folder`, or it itself."""
    if dataset_folder(folder) is not None:
        return [folder]
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            found += _inside(path)
        elif path.suffix.lower() in SUFFIXES:
            found.append(path)
    return found


def _files(path: Path) -> tuple[Path, ...]:
    folder = dataset_folder(path)
    return (path,) if folder is None else tuple(sorted(file for file in folder.iterdir() if file.is_file()))


def _fault(path: Path) -> Fault | None:
    if path.is_dir() or path.suffix.lower() in SUFFIXES:
        return None
    return Fault(
        path,
        f"a {path.suffix or 'nameless'} file",
        "a store, a file of DICP's or a Minari dataset",
        "leave it",
    )
