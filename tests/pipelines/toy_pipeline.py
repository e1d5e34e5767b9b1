"""Text files in, upper-case text files out; what goes wrong is written in the file. For tests of the batch engine."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.bundle import Bundle
from shared.config import RunConfig
from shared.errors import DataInvalid, Fault, ItemError, ResourcesExhausted, UsageError
from shared.pipeline import Evaluation, Item, Pipeline, Predictor, Primary, Tick

TARGET = "tests.pipelines.toy_pipeline:PIPELINE"
FLAT = "tests.pipelines.toy_pipeline:FLAT_PIPELINE"


class ToyPredictor(Predictor):
    """`behave` maps the first word of a file to what happens to it."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        unknown = set(options) - {"suffix", "seconds"}
        if unknown:
            raise UsageError(f"predict.{unknown.pop()}: unknown; suffix or seconds wanted; correct it")
        self.suffix = str(options.get("suffix", "out"))
        self.seconds = float(options.get("seconds", 60))

    def discover(self, paths: Sequence[Path]) -> list[Item]:
        print("a library that prints")
        found = [f for path in paths for f in (sorted(path.rglob("*.txt")) if path.is_dir() else [path])]
        if not found:
            raise DataInvalid([Fault(paths[0], "0 of 0 files match *.txt", "text files", "check the path")])
        return [self._item(path) for path in found]

    def _item(self, path: Path) -> Item:
        fault = Fault(path, "incomplete", "a second file", "add it") if path.stem.startswith("lone") else None
        name = path.read_text().split(maxsplit=1)[1] if path.stem.startswith("named") else path.stem
        return Item(name, (path,), path, fault)

    def predict(self, item: Item, tick: Tick | None = None) -> tuple[str, str]:
        text = item.payload.read_text()
        word = text.split(maxsplit=1)[0] if text.strip() else ""
        if word == "slow":
            began = time.monotonic()
            while time.monotonic() - began < self.seconds:
                time.sleep(0.02)
                if tick:
                    tick(int(time.monotonic() - began), int(self.seconds))
        if word == "bad":
            raise ItemError(item.payload, "the word bad", "good words", "write others", "line 1")
        if word == "bug":
            raise ZeroDivisionError("nobody thought of this")
        if word == "huge":
            raise ResourcesExhausted(f"{item.payload}: needs 900 GiB; 1 GiB free; crop it")
        if word == "memory":
            raise MemoryError
        if word == "exit":
            os._exit(7)
        if word == "leave":
            sys.exit("a library that leaves")
        if word == "killed":
            os.kill(os.getpid(), 9)
        return item.payload.stem, text.upper()

    def write(self, result: tuple[str, str], folder: Path) -> dict[str, Any]:
        assert list(folder.iterdir()) == []
        stem, text = result
        (folder / f"{stem}.{self.suffix}").write_text(text)
        if text.startswith("HALF"):
            raise RuntimeError("in the middle of writing")
        if text.startswith("FULL"):
            raise OSError(28, "No space left on device", str(folder))
        (folder / f"{stem}.json").write_text(json.dumps({"letters": len(text)}))
        lacking = {"failed": ["line 2: blotted"], "failed_count": 1} if text.startswith("PARTLY") else {}
        return {"letters": len(text), "mean": float("nan"), **lacking}


class FlatPredictor(ToyPredictor):
    layout = "flat"


class Toy(Pipeline):
    name = "toy-upper"
    summary = "upper case"
    inputs = "text"
    models = ("none",)
    extra = "none"
    requires = ()
    config_type = RunConfig
    primary = Primary("score")
    folder = Path(__file__).parent
    made: type[ToyPredictor] = ToyPredictor

    def predictor(self, bundle: Bundle, options: Mapping[str, Any]) -> Predictor:
        return self.made(options)

    def check(self, config: Any) -> list[Fault]:
        return []

    def data(self, config: Any) -> Any:
        raise NotImplementedError

    def task(self, config: Any) -> Any:
        raise NotImplementedError

    def evaluate(self, bundle: Bundle, config: Any, out: Path) -> Evaluation:
        return Evaluation({})

    def report(self, report: Any, config: Any, evaluation: Evaluation) -> None:
        return None

    def write_sample(self, folder: Path, n: int, seed: int) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"text{i:02d}.txt" for i in range(n)]
        for i, path in enumerate(paths):
            path.write_text(f"good {seed} {i}")
        return paths


class Flat(Toy):
    made = FlatPredictor


PIPELINE = Toy()
FLAT_PIPELINE = Flat()


def make_bundle(path: Path, value: float = 0.0) -> Path:
    import torch

    Bundle.save(
        path,
        pipeline="toy-upper",
        config=RunConfig.model_validate({}),
        state_dict={"w": torch.tensor([value])},
    )
    return path
