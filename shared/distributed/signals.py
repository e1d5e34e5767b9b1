"""Ctrl-C and SIGTERM that wait while something is being finished."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from shared.errors import Interrupted


class Stopped(BaseException):
    """A signal came. Not an `Exception`, so that no library's ``except Exception`` swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """While entered, a first signal unwinds the stack and leaves as `Interrupted`; a second ends the process at once.

    Inside ``held()`` the first signal waits for the end of the block. In a thread other than the main one, signals
    cannot be handled, and nothing changes. A signal that was ignored before stays ignored.
    """

    def __init__(self) -> None:
        self._held = 0
        self._came = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._on)
        return self

    def _on(self, signum: int, frame: FrameType | None) -> None:
        if self._came:
            os._exit(128 + signum)
        self._came = signum
        if not self._held:
            raise Stopped(signum)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self._came and not self._held:
            raise Stopped(self._came)

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        if isinstance(err, Stopped):
            word = "terminated" if err.signum == signal.SIGTERM else "interrupted"
            raise Interrupted(f"{word}; the same command goes on where it stopped", err.signum) from None
