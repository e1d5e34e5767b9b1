"""The contract every pipeline keeps, and nothing else: what the application may ask of it.

A pipeline's module is imported by ``pipelines list``; it must stay light: torch and the like are imported inside
methods. Life of a run (`pipelines/run.py`): ``check → data → task → fit → bundle → evaluate → report``;
life of a prediction (`pipelines/batch.py`): ``predictor → discover → predict → write``, item by item.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from shared.config import RunConfig, read_yaml, resolve
from shared.errors import Fault, UsageError, need

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from shared.bundle import Bundle
    from shared.report.html import Report
    from shared.training.fit import FitResult

Tick = Callable[[int, int], None]
"""Called with (done, total) while one item is processed."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What was read: enough to tell two runs' data apart, and to tell a person."""

    source: str
    fingerprint: str
    items: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to predict. `sources` are hashed into the manifest; `payload` is the pipeline's own.

    An item that cannot even be assembled (a missing modality, say) carries its `fault` and is reported, not run.
    """

    id: str
    sources: tuple[Path, ...]
    payload: Any = None
    fault: Fault | None = None


@dataclass(slots=True)
class Evaluation:
    """Scores of one model on one data set.

    `metrics` are flat (``dice_wt``); `table` has one mapping per item; `figures` maps a caption to a PNG file;
    `notes` are sentences that belong beside the numbers (conventions, empty cases).
    """

    metrics: dict[str, float]
    table: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Predictor(ABC):
    """A loaded model that turns a user's files into files. Built once per process by `Pipeline.predictor`."""

    layout: ClassVar[Literal["folder", "flat"]] = "folder"
    """folder: an item's files go to ``output/<id>/``; flat: straight into ``output/``."""

    @abstractmethod
    def discover(self, paths: Sequence[Path]) -> list[Item]:
        """Every item under `paths`, in a stable order; broken ones with their `fault`. Reads no big data."""

    @abstractmethod
    def predict(self, item: Item, tick: Tick | None = None) -> Any:
        """The result for one item. Raises `ItemError` for bad input."""

    @abstractmethod
    def write(self, result: Any, folder: Path) -> dict[str, Any]:
        """Write the result's files into the empty `folder`; return a short summary for the manifest. What could not be
        done of an item (a task, a series) is its ``failed``, messages in a list or by name, and ``failed_count``.

        The caller moves the files to their place afterwards, so nothing half-written is ever seen.
        """

    # Serving: one record in, one record out, plain strings and numbers only (files travel as base64 text).
    record_inputs: ClassVar[Mapping[str, str]] = {}
    """Column name → MLflow type (``string``, ``double``, ``long``)."""
    record_outputs: ClassVar[Mapping[str, str]] = {}

    def predict_record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one serving request. Raises `ItemError`."""
        raise UsageError("this pipeline does not serve; use `pipelines predict`")

    def example_record(self) -> dict[str, Any]:
        """A small valid request, kept as the model's input example."""
        return {}


@dataclass(frozen=True, slots=True)
class Primary:
    """The metric of `Evaluation` that decides which model is champion.

    The task logs the same name under ``val/`` while training; that one picks the best checkpoint.
    """

    metric: str
    mode: Literal["max", "min"] = "max"

    def improves(self, new: float, old: float | None) -> bool:
        if new != new:  # NaN never wins
            return False
        if old is None or old != old:
            return True
        return new > old if self.mode == "max" else new < old


@dataclass(frozen=True, slots=True)
class NetworkUse:
    """What a pipeline asks of a backbone, and the input that costs are measured at."""

    ndim: int
    in_chans: int
    size: tuple[int, ...]
    causal: bool = False
    streaming: bool = False
    """Whether it also goes token by token"""
    kinds: tuple[str, ...] = ()
    """Kinds of parts it takes; none given, all"""


class Pipeline(ABC):
    """One published system, end to end. Subclass, fill the class attributes, register under `pipelines`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    inputs: ClassVar[str]
    """The files a user brings, in a few words."""
    models: ClassVar[tuple[str, ...]]
    extra: ClassVar[str]
    """The pip extra that brings `requires`."""
    requires: ClassVar[tuple[str, ...]]
    config_type: ClassVar[type[RunConfig]]
    primary: ClassVar[Primary]
    headline: ClassVar[tuple[str, ...]] = ()
    """The few metrics people look at first, the primary one among them; empty = all."""
    network: ClassVar[NetworkUse | None] = None
    """What it asks of a backbone of `shared.nets`; None = it takes none."""
    folder: ClassVar[Path]
    """The pipeline's own folder (``Path(__file__).parent``), holding ``presets/`` and ``builtin/``: the shipped bundle
    itself, and below it a folder for each further one."""

    # ------------------------------------------------------------ known without heavy imports

    @cached_property
    def presets(self) -> dict[str, Path]:
        return {path.stem: path for path in sorted((self.folder / "presets").glob("*.yaml"))}

    @property
    def builtin(self) -> Path | None:
        """The shipped bundle, if there is one."""
        path = self.folder / "builtin"
        return path if (path / "schema.json").is_file() else None

    @property
    def shipped(self) -> dict[str, Path]:
        """Every shipped bundle by the name that ``--model`` takes: ``builtin``, ``builtin:NAME``."""
        own = {} if self.builtin is None else {"builtin": self.builtin}
        below = sorted(self.folder.glob("builtin/*/schema.json"))
        return own | {f"builtin:{path.parent.name}": path.parent for path in below}

    @property
    def missing(self) -> list[str]:
        return [name for name in self.requires if find_spec(name) is None]

    def main_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Those of `metrics` that `headline` names, in its order; all of them where it names none of these."""
        chosen = {name: metrics[name] for name in self.headline if name in metrics}
        return chosen or dict(metrics)

    def ready(self) -> None:
        """Raise `EnvironmentUnfit` with the install line unless the extra is installed."""
        need(self.extra, *self.requires)

    def resolve(
        self,
        preset: str = "default",
        config_file: Path | None = None,
        sets: Sequence[str] = (),
        over: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        """The configuration: preset, then file, then `over` (from flags such as --data), then --set."""
        if preset not in self.presets:
            raise UsageError(
                f"--preset {preset}: unknown; one of {', '.join(self.presets)}; see `pipelines list`"
            )
        layers: list[tuple[str, Mapping[str, Any]]] = [(f"preset {preset}", read_yaml(self.presets[preset]))]
        if config_file is not None:
            layers.append((str(config_file), read_yaml(config_file)))
        if over:
            layers.append(("command line", over))
        return resolve(self.config_type, layers, sets)

    # ------------------------------------------------------------ rooms, imported on call

    @abstractmethod
    def check(self, config: Any) -> list[Fault]:
        """Every fault of the data set at ``config.data.path``, in one pass; [] when there is none."""

    @abstractmethod
    def data(self, config: Any) -> pl.LightningDataModule:
        """Loaders. Has ``facts() -> DataFacts``, valid after ``setup("fit")``. Raises `DataInvalid`."""

    @abstractmethod
    def task(self, config: Any) -> pl.LightningModule:
        """Loss, optimiser and metrics around ``.network``, whose weights go into the bundle.

        ``.notes``, if it has any, are sentences for the log and the card (which weights it started from, say).
        """

    @abstractmethod
    def predictor(self, bundle: Bundle, options: Mapping[str, Any]) -> Predictor:
        """A ready predictor. `options` override keys of ``predict.`` (dotted, without the prefix)."""

    @abstractmethod
    def evaluate(self, bundle: Bundle, config: Any, out: Path) -> Evaluation:
        """Scores of `bundle` on the held-out part of ``config.data`` (all of it when not the training data).

        Pictures go into `out`.
        """

    @abstractmethod
    def report(self, report: Report, config: Any, evaluation: Evaluation) -> None:
        """Add the sections a person of the field expects; the common ones are there already."""

    @abstractmethod
    def write_sample(self, folder: Path, n: int, seed: int) -> list[Path]:
        """`n` small items of the kind a user brings, written into `folder`: for a first try and for tests."""

    def card(self, config: Any, evaluation: Evaluation, facts: DataFacts) -> str:
        """Markdown that goes into ``card.md`` below the generated facts: purpose, limits, licences."""
        return ""

    # ------------------------------------------------------------ overridden where the data decide

    def complete(self, config: Any) -> Any:
        """`config` with what is inferred from the data (columns, steps) written into it, called after `check`.

        So everything a run needs is in its configuration, and the network can be built from that alone.
        """
        return config

    def schema(self, config: Any, data: Any) -> dict[str, Any]:
        """Plain facts for the bundle's ``schema.json``, below the pipeline's name: scalers, class names, units."""
        return {}

    # ------------------------------------------------------------ overridden by what is not supervised training

    def prepare(self, config: Any, data: pl.LightningDataModule, work: Path) -> None:
        """Work before training that is worth keeping (collected histories, caches); `work` survives a resume."""

    def fit(self, config: Any, task: Any, data: Any, context: Any) -> FitResult:
        """Train `task` on `data`. `context` is `shared.training.fit.FitContext`."""
        from shared.training.fit import fit

        return fit(config, task, data, context)


def error_faults(faults: Iterable[Fault]) -> list[Fault]:
    return [fault for fault in faults if fault.severity == "error"]
