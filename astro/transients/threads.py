"""Many light curves in as many threads as this process may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from astro.transients.lightcurve import LightCurve

T = TypeVar("T")


def in_threads(
    work: Callable[[list[LightCurve]], T], curves: Sequence[LightCurve], size: int
) -> Iterator[tuple[NDArray[np.int64], T]]:
    """(Places in `curves`, what `work` makes of those), `size` at a time, every curve once.

    Curves of similar length go together, since they are padded alike; the longest go first, so that threads end
    together. Each thread computes alone: the matrices are small, and threads that share one take longer than one.
    """
    order = np.argsort([-len(curve) for curve in curves], kind="stable")
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    threads = min(torch.get_num_threads(), len(groups))

    def one(rows: NDArray[np.int64]) -> T:
        return work([curves[i] for i in rows])

    with _libraries().limit(limits=1, user_api="blas"):
        if threads < 2:
            yield from zip(groups, map(one, groups))
            return
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from zip(groups, pool.map(one, groups))


@cache
def _libraries() -> ThreadpoolController:
    """Looked for once: that takes milliseconds."""
    return ThreadpoolController()
