"""The tasks of the bench: nothing is downloaded, everything follows from a seed.

A task is a generator, what its answers are, and how many samples each budget takes. Two budgets: `hour` is for one CPU
core (all mixers, three seeds, about an hour), `full` has the numbers of samples that the tables usually stand for and
is what a GPU takes. Sizes of inputs are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Literal

from shared.bench import digits, listops, pathfinder, recall, retrieval
from shared.bench.sample import Split
from shared.errors import UsageError

BudgetName = Literal["hour", "full"]
SEED = 0


@dataclass(frozen=True)
class Budget:
    """Samples to learn from and to test on, passes over the first, samples a step."""

    train: int
    test: int
    epochs: int
    batch: int = 32

    @property
    def steps(self) -> int:
        return self.epochs * (self.train // self.batch)


@dataclass(frozen=True)
class Task:
    """One row of the bench."""

    name: str
    make: Callable[[int, int], Split] = field(repr=False)
    """(count, part) → samples; part 0 to learn from, part 1 to test on."""
    length: int
    classes: int
    budgets: Mapping[BudgetName, Budget]
    says: str
    """What is asked, for the page."""
    vocabulary: int = 0
    """Number of tokens; 0: the input is one real value a position."""
    form: Literal["class", "pair", "position"] = "class"
    """One answer a sample, one a pair of sequences, or one a position."""
    positional: bool = True
    """The order of the tokens decides; a mixer below a bag of tokens has then not used it."""

    def split(self, part: int, count: int) -> Split:
        """Part 0 (to learn from) or 1 (to test on); kept for the next mixer."""
        return _split(self.name, part, count)


def _generated(make: Callable[..., Split], **options: int) -> Callable[[int, int], Split]:
    return partial(_by_part, make, options)


def _by_part(make: Callable[..., Split], options: Mapping[str, int], count: int, part: int) -> Split:
    return make(count, 2 * SEED + part, **options)


_LIST = (
    Task(
        "listops-s",
        _generated(listops.make),
        128,
        10,
        {"hour": Budget(20_000, 2_000, 2), "full": Budget(20_000, 2_000, 10)},
        "value of a nested list expression (MIN, MAX, MED, SM), 32–128 tokens, depth ≤ 5, 2–5 arguments",
        listops.VOCABULARY,
    ),
    Task(
        "pathfinder-16",
        _generated(pathfinder.make),
        256,
        2,
        {"hour": Budget(4_000, 1_000, 1), "full": Budget(20_000, 2_000, 20)},
        "two dots, joined by a dashed curve or not, 16 × 16 pixels one after the other",
    ),
    Task(
        "retrieval-s",
        _generated(retrieval.make),
        256,
        2,
        {"hour": Budget(2_000, 500, 1), "full": Budget(20_000, 2_000, 10)},
        "two strings of 256 bytes, do they share a key of four bytes",
        retrieval.VOCABULARY,
        "pair",
    ),
    Task(
        "digits-seq",
        digits.make,
        64,
        10,
        {"hour": Budget(1_257, 540, 20), "full": Budget(1_257, 540, 30)},
        "handwritten digit, 8 × 8 pixels one after the other",
    ),
    Task(
        "mqar",
        _generated(recall.mqar),
        64,
        32,
        {"hour": Budget(16_000, 1_000, 1), "full": Budget(20_000, 2_000, 10)},
        "the value that came with a key, 4 pairs, vocabulary 64",
        recall.MQAR_VOCABULARY,
        "position",
    ),
    Task(
        "selective-copy",
        _generated(recall.selective_copy),
        256,
        recall.COPY_VOCABULARY - 2,
        {"hour": Budget(4_000, 500, 1), "full": Budget(10_000, 1_000, 20)},
        "16 letters among blanks, to be repeated in order",
        recall.COPY_VOCABULARY,
        "position",
    ),
    Task(
        "selective-copy-64",
        _generated(recall.selective_copy, length=64, items=8),
        64,
        recall.COPY_VOCABULARY - 2,
        {"hour": Budget(6_000, 1_000, 4), "full": Budget(10_000, 1_000, 20)},
        "the same with 8 letters in 64 tokens, which a CPU's budget suffices for",
        recall.COPY_VOCABULARY,
        "position",
    ),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _LIST}


def find_task(name: str) -> Task:
    """Raises `UsageError` for a name that is none."""
    if name not in TASKS:
        raise UsageError(f"bench nets: found task {name!r}; one of {', '.join(TASKS)} wanted; correct it")
    return TASKS[name]


@cache
def _split(name: str, part: int, count: int) -> Split:
    return TASKS[name].make(count, part)
