"""Batches as a pure function of seed, epoch and position."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shared.errors import ItemError, ResourcesExhausted, UsageError
from shared.training import loader as module
from shared.training.loader import Draw, EpochSampler, ExactLoader, describe, make_loader


class Noisy:
    """Item i is i plus noise of every global generator; some items misbehave."""

    def __init__(self, items: int = 10, broken: int = -1, deadly: int = -1) -> None:
        self.items, self.broken, self.deadly = items, broken, deadly

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, draw: Draw) -> Any:
        if draw.index == self.broken:
            raise ItemError(f"item-{draw.index}", "found", "wanted", "mend")
        if draw.index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        return torch.tensor([draw.index + noise, draw.seed % 1000], dtype=torch.float64)

    def name(self, index: int) -> str:
        return f"item-{index}"


def take(loader: ExactLoader, batches: int) -> list[list[list[float]]]:
    """As a Trainer does it: an epoch's iterator is dropped after its last batch, never exhausted."""
    out: list[list[list[float]]] = []
    while len(out) < batches:
        iterator = iter(loader)
        left = len(loader) - loader.state_dict()["given"]
        for _ in range(min(left, batches - len(out))):
            out.append(next(iterator).tolist())
    return out


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = EpochSampler(10, 4, seed=7)
    assert sampler.batches(3) == EpochSampler(10, 4, seed=7).batches(3)
    assert sampler.batches(0) != sampler.batches(1)
    assert sampler.batches(0) != EpochSampler(10, 4, seed=8).batches(0)
    indices = [draw.index for batch in sampler.batches(0) for draw in batch]
    assert len(indices) == len(set(indices)) == 8  # two full batches of ten items
    seeds = {draw.seed for epoch in range(5) for batch in sampler.batches(epoch) for draw in batch}
    assert len(seeds) == 40


def test_small_sets_fill_a_batch_and_validation_gives_everything_in_order() -> None:
    assert [len(batch) for batch in EpochSampler(3, 8, 0).batches(0)] == [8]
    whole = EpochSampler(5, 2, 0, shuffle=False)
    assert [[draw.index for draw in batch] for batch in whole.batches(4)] == [[0, 1], [2, 3], [4]]
    assert whole.batches(0) == whole.batches(9)
    with pytest.raises(UsageError, match="0 items"):
        EpochSampler(0, 2, 0)


@pytest.mark.parametrize("given", range(1, 6))
def test_any_position_can_be_resumed(given: int) -> None:
    wanted = take(make_loader(Noisy(), 4, seed=1), 6)  # three epochs of two batches
    first = make_loader(Noisy(), 4, seed=1)
    assert take(first, given) == wanted[:given]
    second = make_loader(Noisy(), 4, seed=1)
    second.load_state_dict(first.state_dict())
    assert take(second, 6 - given) == wanted[given:]


def test_the_epoch_is_over_with_its_last_batch() -> None:
    loader = make_loader(Noisy(), 4, seed=1)
    take(loader, 2)
    assert loader.state_dict() == {"epoch": 1, "given": 0}
    loader.set_epoch(1)
    take(loader, 1)
    assert loader.state_dict() == {"epoch": 1, "given": 1}


def test_workers_change_nothing_and_leave_with_the_loader() -> None:
    import psutil

    torch.manual_seed(0)
    before = torch.get_rng_state()
    wanted = take(make_loader(Noisy(), 4, seed=1), 5)
    assert torch.equal(torch.get_rng_state(), before)  # training's own draws are untouched
    loader = make_loader(Noisy(), 4, seed=1, workers=2)
    assert take(loader, 5) == wanted
    workers = [process.pid for process in loader._loader._iterator._workers]  # type: ignore[union-attr]
    loader.close()
    assert len(workers) == 2
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in workers)


def test_processes_share_a_global_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = take(make_loader(Noisy(), 4, seed=1), 1)[0]
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(module, "_world", lambda rank=rank: (2, rank))
        parts += take(make_loader(Noisy(), 4, seed=1), 1)[0]
        assert len(take(make_loader(Noisy(), 4, 1, shuffle=False), 1)[0]) == 4  # validation: everything
    assert parts == wanted
    with pytest.raises(UsageError, match="batch_size=3: not divisible by 2 processes"):
        take(make_loader(Noisy(), 3, seed=1), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_item_keeps_its_error(workers: int) -> None:
    loader = make_loader(Noisy(broken=2), 2, 0, shuffle=False, workers=workers)
    with pytest.raises(ItemError, match="item-2: found; wanted; mend"):
        take(loader, 2)
    loader.close()


def dead_worker() -> None:
    loader = make_loader(Noisy(deadly=3), 2, 0, shuffle=False, workers=1)
    with pytest.raises(ResourcesExhausted, match=r"items item-\d, item-\d: a loader process died"):
        take(loader, 2)
    loader.close()


def test_a_dead_worker_is_no_hang() -> None:
    """In a process of its own: another test's library may have changed how this one learns of its children's end."""
    call = "from tests.shared.test_training_loader import dead_worker; dead_worker()"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", call], cwd=root, check=True, timeout=120)


def test_current_names_the_batch_last_given() -> None:
    loader = make_loader(Noisy(), 3, 0, shuffle=False)
    take(loader, 2)
    assert describe(loader.dataset, loader.current) == "item-3, item-4, item-5"
    assert describe(None, [Draw(4, 0)]) == "4"


class Gathered:
    """Gives whole batches."""

    def __len__(self) -> int:
        return 10

    def batch(self, draws: list[Draw]) -> Any:
        if any(draw.index == 9 for draw in draws):
            raise ItemError("item-9", "found", "wanted", "mend")
        return torch.tensor([draw.index for draw in draws])


def test_a_dataset_may_gather_whole_batches() -> None:
    loader = make_loader(Gathered(), 3, seed=1, shuffle=False)
    batches = iter(loader)
    assert [next(batches).tolist() for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(ItemError, match="item-9"):
        next(batches)
