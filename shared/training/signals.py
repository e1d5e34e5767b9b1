"""Ctrl-C and SIGTERM while training: the first asks for a stop after the step, a second within 5 s stops at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from shared.errors import Interrupted

SECOND_SECONDS = 5.0
_BOTH = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Context in which the two signals are noted in `signum` instead of ending the process.

    The second within 5 s raises `Interrupted` wherever the program is (files stay whole, nothing more is saved);
    a third ends the process without any clearing up. Outside the main thread signals are left alone.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._first = 0.0
        self._count = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._old = {int(number): signal.getsignal(number) for number in _BOTH}
            self.install()
        return self

    def install(self) -> None:
        """Take the signals (again): a Trainer puts its own handler for SIGTERM over ours."""
        for number in self._old:
            signal.signal(number, self._note)

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._old = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        self._count += 1
        if self._count > 2:
            os._exit(128 + signum)
        if self.signum and now - self._first < SECOND_SECONDS:
            raise Interrupted("stopped at once by a second signal; the last checkpoint is whole", signum)
        self.signum, self._first = signum, now
        self._count = 1


def stopped(signum: int, step: int) -> Interrupted:
    """The error of a run that was asked to stop and has saved."""
    name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
    return Interrupted(
        f"stopped by {name}; saved after step {step}; the same command goes on from there", signum
    )
