"""Batches whose order is a pure function of (seed, epoch, position), so that any step can be resumed exactly.

A dataset is indexed by `Draw`: the item's index and a seed for whatever is random about it (crop, flip, noise). The
same draw gives the same item in any process, so the number of workers does not matter, and under DDP every process
takes its slice of the same global batch. Around each item python's, numpy's and torch's global generators are seeded
too and put back afterwards: a dataset that uses them is exact without knowing, and training's own draws are untouched.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, default_collate

from shared.errors import EnvironmentUnfit, ResourcesExhausted, SuiteError, UsageError
from shared.training.seed import isolated_rng

WORKER_SECONDS = 300


class Draw(NamedTuple):
    """What to read: an item's `index`, and the `seed` (32 bits) of everything random about it."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a draw
    seed: int


class EpochSampler:
    """The global batches of each epoch: lists of `Draw`.

    Shuffled (training): full batches only; the rest of a permutation is left out, and a data set smaller than one batch
    is repeated to fill it, so that every step sees the same number of items on any number of processes.
    Not shuffled (validation): every item once, in order, with the same draws in every epoch.
    """

    def __init__(self, items: int, batch_size: int, seed: int, shuffle: bool = True) -> None:
        if items < 1:
            raise UsageError("0 items to draw from; at least one wanted; check data and folds")
        self.items, self.batch_size, self.seed, self.shuffle = items, batch_size, seed, shuffle

    def __len__(self) -> int:
        return max(1, self.items // self.batch_size) if self.shuffle else -(-self.items // self.batch_size)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Every index of an epoch, one after the other."""
        if not self.shuffle:
            return np.arange(self.items)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.items)
        return np.resize(order, len(self) * self.batch_size)

    def batches(self, epoch: int) -> list[list[Draw]]:
        epoch = epoch if self.shuffle else 0
        order = self.order(epoch)
        draws = [Draw(int(index), _draw_seed(self.seed, epoch, i)) for i, index in enumerate(order)]
        return [draws[i : i + self.batch_size] for i in range(0, len(draws), self.batch_size)]


def _draw_seed(*entropy: int) -> int:
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


class ExactLoader:
    """An iterable of batches that knows where it is; made by `make_loader`.

    `state_dict`/`load_state_dict` hold (epoch, batches given). The epoch is wrapped *before* the last batch is given,
    because a Trainer may never ask for the StopIteration after it. `current` are the draws of the batch last given.
    """

    def __init__(
        self,
        dataset: Any,
        sampler: EpochSampler,
        *,
        workers: int,
        collate: Callable[[list[Any]], Any] | None,
        pin_memory: bool,
        shard: bool,
        timeout: float,
    ) -> None:
        self.dataset = dataset
        self.batch_size = sampler.batch_size
        self.sampler = self  # Lightning announces the epoch through `loader.sampler.set_epoch`
        self.batch_sampler = None  # it looks here too
        self.current: list[Draw] = []
        self._order = sampler
        self._shard = shard
        self._workers = workers
        self._timeout = timeout
        self._epoch = 0
        self._given = 0
        self._plan: list[list[Draw]] = []
        self._loader: DataLoader[Any] = DataLoader(
            _Items(dataset),  # type: ignore[arg-type]
            batch_sampler=_Planned(self),
            num_workers=workers,
            collate_fn=_Collate(collate or default_collate),
            pin_memory=pin_memory,
            timeout=timeout if workers else 0,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
            generator=torch.Generator(),  # its own: the default one would be advanced at every epoch start
        )

    def __len__(self) -> int:
        return len(self._order)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._given = epoch, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._given = int(state["epoch"]), int(state["given"])

    def __iter__(self) -> Iterator[Any]:
        # A generator: nothing below happens before the first batch is asked for, so that an epoch or a state set
        # after `iter()` still counts.
        global_batches = self._order.batches(self._epoch)
        total = len(global_batches)
        self._plan = [self._slice(draws) for draws in global_batches[self._given :]]
        plan = self._plan
        with _signals_to_parent_only(self._workers > 0):
            batches = iter(self._loader)
        for i, draws in enumerate(plan, start=total - len(plan) + 1):
            batch = self._next(batches, draws)
            self.current = draws
            if i == total:
                self._epoch, self._given = self._epoch + 1, 0
            else:
                self._given = i
            yield batch

    def _next(self, batches: Iterator[Any], draws: list[Draw]) -> Any:
        try:
            batch = next(batches)
        except RuntimeError as err:
            text = str(err)
            if "DataLoader worker" not in text and "DataLoader timed out" not in text:
                raise
            which = f"items {describe(self.dataset, draws)}"
            if "timed out" in text:
                raise EnvironmentUnfit(
                    f"{which}: no batch from the loader processes in {self._timeout:.0f} s; readable files wanted; "
                    "check the disk, or set data.workers=0"
                ) from err
            raise ResourcesExhausted(
                f"{which}: a loader process died while these were awaited ({text.splitlines()[0]}); often memory; "
                "set data.workers=0 or fewer, or a smaller crop"
            ) from err
        if isinstance(batch, _Failure):
            raise batch.error
        return batch

    def _slice(self, draws: list[Draw]) -> list[Draw]:
        """This process's part of a global batch."""
        world, rank = _world()
        if world == 1 or not self._shard:
            return draws
        if len(draws) % world:
            raise UsageError(
                f"train.batch_size={self.batch_size}: not divisible by {world} processes; it is the global batch; "
                f"set it to a multiple of {world}"
            )
        share = len(draws) // world
        return draws[rank * share : (rank + 1) * share]

    def close(self) -> None:
        """End the loader processes."""
        batches = self._loader._iterator
        if batches is None:
            return
        processes = list(getattr(batches, "_workers", []))
        shutdown = getattr(batches, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()
        for process in processes:
            if process.is_alive():  # they do not listen to SIGTERM, see `_signals_to_parent_only`
                process.kill()
        self._loader._iterator = None


def make_loader(
    dataset: Any,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
    pin_memory: bool = False,
    shard: bool | None = None,
    timeout: float = WORKER_SECONDS,
) -> ExactLoader:
    """Batches of ``dataset[Draw(index, seed)]``, resumable at any step.

    `dataset` has ``__len__`` and ``__getitem__(draw)``, or ``batch(draws)``, which makes a whole batch at once where a
    sample is cheaper than the call for it: nothing is collated then, and all randomness comes from the draws. A method
    ``name(index) -> str`` is used in messages if there is one.

    `batch_size` is the global batch: with several processes each takes its slice (`shard`, default for shuffled
    loaders). A loader that is not sharded gives every process everything, which keeps validation exactly equal on any
    number of processes. `workers` are spawned processes, kept between epochs.
    """
    return ExactLoader(
        dataset,
        EpochSampler(len(dataset), batch_size, seed, shuffle),
        workers=workers,
        collate=collate,
        pin_memory=pin_memory,
        shard=shuffle if shard is None else shard,
        timeout=timeout,
    )


def describe(dataset: Any, draws: Sequence[Draw]) -> str:
    """Names (or numbers) of the items of a batch, for a message."""
    name = getattr(dataset, "name", None)
    return ", ".join(str(name(draw.index)) if callable(name) else str(draw.index) for draw in draws)


class _Planned:
    """The batch sampler the DataLoader sees: what is left of the epoch."""

    def __init__(self, loader: ExactLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self._loader._plan)

    def __len__(self) -> int:
        return len(self._loader._plan)


class _Failure:
    """One of our errors on its way from a loader process: torch would rebuild it as a RuntimeError."""

    def __init__(self, error: SuiteError) -> None:
        self.error = error


class _Whole(NamedTuple):
    """A batch that needs no collating."""

    batch: Any


class _Items:
    """The dataset with its global generators seeded by the draw."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, draw: Draw) -> Any:
        with isolated_rng(draw.seed):
            try:
                return self._dataset[draw]
            except SuiteError as err:
                return _Failure(err)

    def __getitems__(self, draws: list[Draw]) -> list[Any]:
        """One whole batch where the dataset makes them at once, else its items."""
        batch = getattr(self._dataset, "batch", None)
        if batch is None:
            return [self[draw] for draw in draws]
        try:
            return [_Whole(batch(draws))]
        except SuiteError as err:
            return [_Failure(err)]


class _Collate:
    """`collate`, unless an item failed: then the failure is the batch."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, items: list[Any]) -> Any:
        failed = next((item for item in items if isinstance(item, _Failure)), None)
        if failed is not None:
            return failed
        return items[0].batch if isinstance(items[0], _Whole) else self._collate(items)


def _world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0


@contextmanager
def _signals_to_parent_only(wanted: bool) -> Iterator[None]:
    """Processes started inside never see SIGINT and SIGTERM: the training process decides when to stop.

    Ctrl-C reaches the whole process group; workers that die of it would break the step being finished.
    """
    both = {signal.SIGINT, signal.SIGTERM}
    old = signal.pthread_sigmask(signal.SIG_BLOCK, both) if wanted else set()
    try:
        yield
    finally:
        if wanted:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)
