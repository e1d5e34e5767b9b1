"""Peak memory, two ways: bytes of live tensors (exact, the same everywhere) and the growth of a process."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class _Live(TorchDispatchMode):
    """Counts storages that operations make, from their making to their end."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._end, key, size)

    def _end(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def live_peak(work: Callable[[], object], known: Iterable[Tensor] = ()) -> int:
    """Most bytes held at once by tensors that `work` makes; `known` ones (weights, inputs) are not counted. What an
    operation needs inside itself is not seen."""
    with _Live(known) as counter:
        work()
    return counter.peak


def peak_growth(work: Callable[[], object]) -> float:
    """Bytes by which this process's resident memory grows at most while `work` runs; nan where Linux's /proc is absent.

    What `work` returns is still held then, so it counts. A fresh process is best: memory that was freed before, but
    not given back to the system, hides growth.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts again from now
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(key: str) -> float:
    """Bytes of a line of /proc/self/status."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024.0
    return float("nan")


def keep_freed_memory() -> None:
    """Tell glibc to keep what is freed for the next step: small networks otherwise spend up to nine tenths of a step
    in getting and giving back the same pages. No effect with another C library."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
