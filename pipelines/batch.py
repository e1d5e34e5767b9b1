"""Files and folders in, results out: every item on its own, in processes of its own, with a manifest of what happened.

The parent hands out items, keeps the manifest and moves finished files to their place; it loads no model. All work,
even with one worker, happens in spawned processes: an item that exhausts memory or crashes native code costs itself,
not the batch, and Ctrl-C is answered at once. A repeated command does only what is left.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.batch_item import fault_mapping, hash_sources, load, make_servant
from pipelines.batch_output import OutputFolder, safe_name
from shared.bundle import Bundle
from shared.distributed.pool import Event, Pool, cores
from shared.distributed.signals import Signals
from shared.errors import DataInvalid, Fault, ItemError, ModelUnusable, ResourcesExhausted, UsageError, need
from shared.io.strict_json import plain
from shared.pipeline import Item
from shared.progress import Progress, Task

Say = Callable[[str], None]
ENGINES = ("local", "ray")
SHOWN_FAILURES = 20
WINDOW_BAR_SECONDS = 5.0
"""An item that takes longer gets a bar of its own."""


@dataclass(slots=True)
class Summary:
    """What a batch came to; `as_dict` is what ``--json`` prints. `incomplete` items are ok but for parts of them."""

    items: int
    ok: int
    failed: int
    skipped: int
    seconds: float
    manifest: str
    output: str
    incomplete: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self.__slots__}


def exit_code(summary: Summary) -> int:
    """0 all fine, 4 some or parts of some failed, 5 all failed."""
    if not summary.failed:
        return 4 if summary.incomplete else 0
    return 5 if summary.failed == summary.items else 4


def predict_batch(
    name: str,
    model_path: Path | str,
    inputs: Sequence[Path],
    output: Path,
    *,
    engine: str = "local",
    workers: int = 0,
    options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    fail_fast: bool = False,
    say: Say = lambda text: None,
    progress: Progress | None = None,
) -> Summary:
    """Predict every item under `inputs` with the bundle at `model_path`; results and ``manifest.jsonl`` in `output`.

    `name` is a registered pipeline or ``module:attribute``. `workers` 0 means one process per two cores.
    Raises a `SuiteError` only for what concerns the whole batch: `UsageError` (paths, engine, two items with one
    result), `ModelUnusable`, `DataInvalid` (nothing found), `ResourcesExhausted` (disk full), `Interrupted`.
    """
    began = time.monotonic()
    _check_request(inputs, output, engine)
    workers = workers or max(1, cores() // 2)
    bundle = _bundle(name, Path(model_path))
    order = (name, str(Path(model_path).absolute()), dict(options or {}))
    like = {"model": bundle.hash, "options": plain(dict(options or {}))}
    with (
        Signals() as signals,
        progress or Progress(shown=False) as shown,
        OutputFolder(Path(output)) as folder,
        Pool(make_servant, order, workers) as pool,
    ):
        folder.layout, items = _discover(pool, inputs, folder)
        batch = _Batch(bundle.pipeline, items, folder, like, overwrite, fail_fast, signals, shown)
        if engine == "ray":
            pool.close()
            from pipelines.batch_ray import run_ray

            events = run_ray(order, batch.tasks(), workers)
        else:
            events = pool.run(batch.tasks())
        batch.consume(events)
    batch.tell_failures(say)
    return Summary(
        items=len(items),
        ok=batch.ok,
        failed=batch.failed,
        skipped=batch.skipped,
        seconds=round(time.monotonic() - began, 2),
        manifest=str(folder.manifest),
        output=str(output),
        incomplete=batch.incomplete,
    )


# ---------------------------------------------------------------- before the first item


def _check_request(inputs: Sequence[Path], output: Path, engine: str) -> None:
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine}: unknown; {' or '.join(ENGINES)} wanted; correct it")
    if engine == "ray":
        need("scale", "ray")
    for path in inputs:
        try:
            Path(path).stat()
        except OSError as err:
            reason = "not found" if isinstance(err, FileNotFoundError) else f"cannot be read ({err.strerror})"
            raise UsageError(f"{path}: {reason}; a file or folder wanted; check the path") from None


def _bundle(name: str, path: Path) -> Bundle:
    pipeline, bundle = load(name), Bundle.open(path)
    if bundle.pipeline != pipeline.name:
        raise ModelUnusable(
            f"{path}: a model of {bundle.pipeline}; one of {pipeline.name} wanted; choose another --model"
        )
    return bundle


def _discover(pool: Pool, inputs: Sequence[Path], folder: OutputFolder) -> tuple[str, list[Item]]:
    """Layout and items, without doubles and without our own results. Raises `DataInvalid`, `UsageError`."""
    paths = list({path.resolve(): path for path in map(Path, inputs)}.values())
    answers = [event for event in pool.run([("discover", ("discover", paths))]) if event.kind != "note"]
    if answers[0].kind == "died":
        raise ResourcesExhausted(f"{', '.join(map(str, paths))}: {answers[0].value} while looking for items")
    layout, found = answers[0].value
    here = folder.path.resolve()
    below = any(path.is_dir() and path.resolve() in here.parents for path in paths)

    def ours(source: Path) -> bool:
        return folder.is_result(source) or (below and here in source.resolve().parents)

    fresh = [item for item in found if not (item.sources and all(ours(source) for source in item.sources))]
    items = list({(item.id, item.sources): item for item in fresh}.values())
    if not items:
        why = f"{len(found)} items, all of them results of this command" if found else "no item found"
        raise DataInvalid([Fault(", ".join(map(str, paths)), why, "files to predict", "check the path")])
    _refuse_clashes(items)
    return layout, items


def _refuse_clashes(items: Sequence[Item]) -> None:
    first: dict[str, Item] = {}
    for item in items:
        twin = first.setdefault(safe_name(item.id), item)
        if twin is not item:
            one, other = (str(i.sources[0]) if i.sources else i.id for i in (twin, item))
            raise UsageError(
                f"{other}: would write to the same place as {one} ({safe_name(item.id)}); "
                "one name per item wanted; rename one, or predict them into two folders"
            )


# ---------------------------------------------------------------- the batch


@dataclass
class _Batch:
    """Bookkeeping of one run. Keeps counts and the first few failures, never results."""

    name: str
    items: list[Item]
    folder: OutputFolder
    like: Mapping[str, Any]
    """What a finished item's line must say to be skipped, besides the input's hashes."""
    overwrite: bool
    fail_fast: bool
    signals: Signals
    progress: Progress
    ok: int = 0
    failed: int = 0
    skipped: int = 0
    incomplete: int = 0
    """Items that came out, with parts that could not be: ``failed_count`` and ``failed`` of their summaries"""
    failures: list[str] = field(default_factory=list)
    _drafts: dict[int, Path] = field(default_factory=dict)
    _bars: dict[int, Task] = field(default_factory=dict)
    _since: dict[int, float] = field(default_factory=dict)

    def tasks(self) -> Iterator[tuple[int, Any]]:
        """Items that need work, each with a draft folder; the others are settled on the way."""
        for index, item in enumerate(self.items):
            if self.fail_fast and self.failed:
                return
            try:
                if item.fault is not None:
                    raise ItemError.of(item.fault)
                if not self.overwrite:
                    if self._skip(item):
                        continue
                    self.folder.guard(item.id, safe_name(item.id))
            except ItemError as err:
                self._fail(item, fault_mapping(err.fault))
                continue
            self._drafts[index], self._since[index] = self.folder.draft(), time.monotonic()
            yield index, ("item", item, str(self._drafts[index]))

    def _skip(self, item: Item) -> bool:
        if item.id not in self.folder.done:
            return False
        like = {**self.like, "inputs": hash_sources(item.sources)}
        line = self.folder.finished(item.id, like)
        if line is None:
            return False
        self.folder.append({**line, "status": "skipped", "seconds": 0.0}, durable=False)
        self.skipped += 1
        self._advance(item)
        return True

    def consume(self, events: Generator[Event, None, None]) -> None:
        """Settle items as their outcomes come in; stops at the first failure if told so."""
        self._bar = self.progress.task("predict", total=len(self.items))
        with closing(events):
            for event in events:
                if event.kind == "note":
                    self._tick(event.key, *event.value)
                else:
                    self._settle(event)
                if self.fail_fast and self.failed:
                    return

    def _settle(self, event: Event) -> None:
        item, draft = self.items[event.key], self._drafts.pop(event.key)
        seconds = round(time.monotonic() - self._since.pop(event.key), 3)
        if event.key in self._bars:
            bar = self._bars.pop(event.key)
            if event.kind == "done" and event.value["error"] is None:
                bar.update(bar.total)
            bar.close()
        # The payload is needed no more; a long list of items should not grow with what was done.
        self.items[event.key] = Item(item.id, item.sources)
        if event.kind == "died":
            shutil.rmtree(draft, ignore_errors=True)
            where = item.sources[0] if item.sources else item.id
            fault = Fault(where, str(event.value), mend="predict it alone, or with fewer workers")
            self._fail(item, fault_mapping(fault), seconds=seconds)
            return
        outcome = event.value
        if outcome["error"] is not None:
            self._fail(item, outcome["error"], outcome["inputs"], outcome["seconds"])
            if outcome["full"]:
                raise ResourcesExhausted(
                    f"{outcome['error']['message']}; free some space and repeat the command"
                )
            return
        self._finish(item, draft, outcome)

    def _finish(self, item: Item, draft: Path, outcome: Mapping[str, Any]) -> None:
        name = safe_name(item.id)
        prefix = f"{name}/" if self.folder.layout == "folder" else ""
        outputs = [{**output, "path": prefix + output["path"]} for output in outcome["outputs"]]
        line = self._line(item, "ok", outcome["inputs"], outcome["seconds"])
        line |= {"outputs": outputs, "summary": outcome["summary"]}
        try:
            with self.signals.held():
                self.folder.place(line, name, draft, overwrite=self.overwrite)
                self.ok += 1
                self._note_parts(outcome["summary"])
                self._advance(item)
        except ItemError as err:
            shutil.rmtree(draft, ignore_errors=True)
            self._fail(item, fault_mapping(err.fault), outcome["inputs"], outcome["seconds"])

    def _note_parts(self, summary: Mapping[str, Any]) -> None:
        if not summary.get("failed_count"):
            return
        self.incomplete += 1
        said = summary.get("failed", [])
        self.failures += said.values() if isinstance(said, Mapping) else said

    def _fail(
        self, item: Item, error: Mapping[str, Any], inputs: Sequence[Any] = (), seconds: float = 0.0
    ) -> None:
        known = list(inputs) or [{"path": str(source), "sha256": None} for source in item.sources]
        line = self._line(item, "failed", known, seconds) | {"error": dict(error)}
        with self.signals.held():
            self.folder.append(line)
            self.failed += 1
            self.failures.append(str(error["message"]))
            self._advance(item)

    def _line(self, item: Item, status: str, inputs: Sequence[Any], seconds: float) -> dict[str, Any]:
        return {
            "item": item.id,
            "status": status,
            "inputs": list(inputs),
            "outputs": [],
            "pipeline": self.name,
            **self.like,
            "version": _version(),
            "seconds": seconds,
            "error": None,
            "summary": {},
        }

    # ------------------------------------------------------------ what people see

    def _advance(self, item: Item) -> None:
        note = item.id if not self.failed else f"{item.id} ({self.failed} failed)"
        self._bar.update(self.ok + self.failed + self.skipped, note)

    def _tick(self, index: int, done: int, total: int) -> None:
        if index not in self._bars:
            if done >= total or time.monotonic() - self._since[index] < WINDOW_BAR_SECONDS:
                return
            self._bars[index] = self.progress.task(self.items[index].id, total)
        self._bars[index].update(done)

    def tell_failures(self, say: Say) -> None:
        if not self.failed + self.incomplete:
            return
        if not self.failed:
            say(f"parts of {self.incomplete} of {len(self.items)} items failed:")
        else:
            more = f", and parts of {self.incomplete} more," if self.incomplete else ""
            say(f"{self.failed} of {len(self.items)} items{more} failed:")
        for message in self.failures[:SHOWN_FAILURES]:
            say(f"  {message}")
        if (unsaid := len(self.failures) - SHOWN_FAILURES) > 0:
            say(f"  … and {unsaid} more in {self.folder.manifest}")


def _version() -> str:
    try:
        return version("domain-pipelines")
    except PackageNotFoundError:  # used from a plain checkout
        return ""
