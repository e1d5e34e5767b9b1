"""Training of every mixer on every task under one rule: AdamW 3e-3, weight decay 0.05, one-cycle, three seeds.

Results lie in a `Records` file, one a (task, mixer, seed); what is there is not done again, unless the mixer's source,
the task or the budget changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.bench.baselines import baselines
from shared.bench.memory import MIB, keep_freed_memory, live_peak
from shared.bench.model import BenchNet, Plan, bench_mixers, plan, usable
from shared.bench.records import Records, fingerprint
from shared.bench.sample import IGNORED, Split
from shared.bench.tasks import Budget, BudgetName, Task
from shared.progress import Progress, clock_text

SEEDS = (0, 1, 2)
LR, WEIGHT_DECAY = 3e-3, 0.05
EVAL_BATCH = 128
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One training."""

    task: Task
    budget: Budget
    mixer: str
    plan: Plan
    seed: int
    device: str

    @property
    def key(self) -> str:
        mark = fingerprint(
            self.mixer, self.task.split(0, 1000).digest(), self.budget, self.plan, LR, WEIGHT_DECAY
        )
        return f"{self.task.name}/{self.mixer}/{self.seed}/{mark}"


def run_task(
    task: Task,
    records: Records,
    say: Say,
    *,
    budget: BudgetName | None = None,
    mixers: Sequence[str] | None = None,
    seeds: Sequence[int] = SEEDS,
) -> list[dict[str, Any]]:
    """All results of one task, baselines among them (`mixer` "majority", "bag", "nearest"); what is missing is trained.

    `budget` None: `hour` on a CPU, `full` on a GPU. `mixers` None: whatever the registry holds for one dimension.
    """
    keep_freed_memory()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen: BudgetName = budget or ("full" if device == "cuda" else "hour")
    size = task.budgets[chosen]
    jobs = [
        Job(task, size, name, plan(task, name), seed, device)
        for name in _taking_part(task, mixers, say)
        for seed in seeds
    ]
    keys = [job.key for job in jobs]
    todo = [job for job, key in zip(jobs, keys) if key not in records]
    found = _baseline_records(task, size, chosen, records)
    if todo:
        say(
            f"{task.name}: {len(jobs) - len(todo)} of {len(jobs)} trainings done before, "
            f"{len(todo)} to do, about {clock_text(estimate(todo))} on this machine now"
        )
    with Progress() as progress, progress.task(task.name, sum(job.budget.steps for job in todo)) as shown:
        for job in todo:
            before = shown.done

            def moved(step: int, before: int = before, job: Job = job) -> None:
                shown.update(before + step, f"{job.mixer}, seed {job.seed}")

            result = {**train(job, moved), "budget": chosen}
            records.add(job.key, result)
            say(
                f"{task.name}: {job.mixer}, seed {job.seed}: {result['accuracy']:.3f}, {result['seconds']:.0f} s"
            )
    return found + [records[key] for key in keys]


def _taking_part(task: Task, mixers: Sequence[str] | None, say: Say) -> list[str]:
    names = [card.name for card in bench_mixers()] if mixers is None else list(mixers)
    reasons = {name: usable(task, name) for name in names}
    for name, reason in reasons.items():
        if reason:
            say(f"{task.name}: without {name}: {reason}")
    return [name for name in names if not reasons[name]]


def _baseline_records(task: Task, size: Budget, budget: str, records: Records) -> list[dict[str, Any]]:
    keys = {
        name: f"{task.name}/{name}/-/{size}/{task.split(0, 1000).digest()[:12]}"
        for name in ("majority", "bag", "nearest")
    }
    if any(key not in records for key in keys.values()):
        for name, accuracy in baselines(task, size).items():
            records.add(
                keys[name], {"task": task.name, "mixer": name, "accuracy": accuracy, "budget": budget}
            )
    return [records[key] for key in keys.values()]


# ---------------------------------------------------------------- one training


def train(job: Job, moved: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
    """Train once and test: accuracy, steps a second, peak memory of a step. Not deterministic on a GPU.

    Steps a second are those of the first quartile of step times (what others do on the machine only ever adds); on a
    GPU, which works behind the clock's back, of the whole."""
    task, size = job.task, job.budget
    torch.manual_seed(job.seed)
    net = BenchNet(task, job.plan.part, job.plan.ratio).to(job.device)
    x, y = _tensors(task.split(0, size.train), job.device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=size.steps)
    order = torch.Generator().manual_seed(job.seed)
    started, loss = time.perf_counter(), torch.tensor(math.nan)
    times: list[float] = []
    net.train()
    for _ in range(size.epochs):
        for rows in torch.randperm(len(x), generator=order).split(size.batch):
            if len(rows) < size.batch:
                continue
            began = time.perf_counter()
            optimiser.zero_grad(set_to_none=True)
            loss = _loss(net, x[rows], y[rows])
            loss.backward()
            optimiser.step()
            schedule.step()
            times.append(time.perf_counter() - began)
            moved(len(times))
    last = float(loss.detach())  # waits for the GPU
    seconds = time.perf_counter() - started
    return {
        "task": task.name,
        "mixer": job.mixer,
        "seed": job.seed,
        "accuracy": accuracy(net, *_tensors(task.split(1, size.test), job.device)),
        "loss": last if math.isfinite(last) else None,
        "params": job.plan.params,
        "part": job.plan.part,
        "ratio": job.plan.ratio,
        "fair": job.plan.fair,
        "steps": len(times),
        "batch": size.batch,
        "steps_per_s": len(times) / seconds if job.device == "cuda" else 1 / sorted(times)[len(times) // 4],
        "peak_mib": step_memory(net, x[: size.batch], y[: size.batch]) / MIB,
        "seconds": seconds,
        "device": torch.cuda.get_device_name() if job.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def _tensors(split: Split, device: str) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(split.x).to(device), torch.from_numpy(split.y).to(device)


def _loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y, ignore_index=IGNORED)


def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of the answers asked for that are right."""
    net.eval()
    right = 0
    with torch.no_grad():
        for part, wanted in zip(x.split(EVAL_BATCH), y.split(EVAL_BATCH)):
            right += int((net(part).argmax(1) == wanted).sum())  # IGNORED is never a class
    return right / int((y != IGNORED).sum())


def step_memory(net: nn.Module, x: Tensor, y: Tensor) -> int:
    """Most bytes a training step holds beyond weights and samples: live tensors; on a GPU the allocator's peak."""
    net.train()
    net.zero_grad(set_to_none=True)

    def work() -> None:
        _loss(net, x, y).backward()

    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    return live_peak(work, [x, y, *net.parameters(), *net.buffers()])


def estimate(jobs: Sequence[Job], steps: int = 3) -> float:
    """Seconds that `jobs` take here, by a few steps of each mixer; testing costs a third of training on as much."""
    known: dict[str, float] = {}
    for job in jobs:
        if job.mixer in known:
            continue
        torch.manual_seed(0)
        net = BenchNet(job.task, job.plan.part, job.plan.ratio).to(job.device)
        x, y = _tensors(job.task.split(0, job.budget.train), job.device)
        times = []
        for _ in range(steps + 1):
            started = time.perf_counter()
            loss = _loss(net, x[: job.budget.batch], y[: job.budget.batch])
            loss.backward()
            float(loss.detach())
            times.append(time.perf_counter() - started)
        known[job.mixer] = min(times[1:])
    share = [1 + job.budget.test / (3 * job.budget.train * job.budget.epochs) for job in jobs]
    return sum(known[job.mixer] * job.budget.steps * more for job, more in zip(jobs, share))
