"""Progress of long work, with one owner of the terminal.

On a terminal: rich bars on stderr, and lines printed meanwhile appear above them. Elsewhere (a log file, CI): one
plain line per task at most every 30 s, and one at its end. Nothing is ever written to stdout.

    with Progress() as progress:
        task = progress.task("predict", total=120)
        task.update(17, note="case_017")
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

LINE_SECONDS = 30.0
REFRESH_PER_SECOND = 4


class Progress:
    """Where the tasks of one piece of work are shown. Any thread may use it.

    `stream` is stderr by default; `terminal` None asks the stream; `shown` False (helper processes) shows nothing.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        terminal: bool | None = None,
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._terminal, self._shown, self._clock = stream, terminal, shown, clock
        self._tasks: list[Task] = []

    def task(self, label: str, total: int, done: int = 0) -> Task:
        """A new task of `total` steps; `done` of them were done before (a resumed run) and are no speed."""
        stream = self._stream if self._stream is not None else sys.stderr
        terminal = _is_terminal(stream) if self._terminal is None else self._terminal
        show: _Lines | _Bar | _Nothing
        if not self._shown:
            show = _Nothing()
        elif terminal:
            show = _Bar(stream, label, total, done)
        else:
            show = _Lines(stream, label, self._clock)
        made = Task(show, total, done, self._clock)
        self._tasks.append(made)
        return made

    def close(self) -> None:
        """End every task that is still open."""
        for task in self._tasks:
            task.close()
        self._tasks.clear()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Task:
    """One count on its way to a total; made by `Progress.task`."""

    def __init__(
        self, show: _Lines | _Bar | _Nothing, total: int, done: int, clock: Callable[[], float]
    ) -> None:
        self.total, self.done, self.note = total, done, ""
        self._show, self._clock = show, clock
        self._first, self._started = done, clock()
        self._lock = threading.Lock()
        self._closed = False

    def update(self, done: int, note: str = "") -> None:
        """`done` steps of the total are finished by now; an empty `note` keeps the one before."""
        with self._lock:
            if self._closed:
                return
            self.done, self.note = done, note or self.note
            self._show.update(self)

    def advance(self, note: str = "") -> None:
        """One more step is finished."""
        self.update(self.done + 1, note)

    def close(self) -> None:
        """Take the bar away, or write the last line. Later calls do nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._show.close(self)

    def __enter__(self) -> Task:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def elapsed(self) -> float:
        """Seconds since the task was made."""
        return self._clock() - self._started

    @property
    def remaining(self) -> float | None:
        """Seconds left at the mean speed so far; None before the first step."""
        fresh = self.done - self._first
        return None if fresh <= 0 else self.elapsed / fresh * max(0, self.total - self.done)


def clock_text(seconds: float) -> str:
    """3725.4 → ``1:02:05``, 65 → ``1:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


# ---------------------------------------------------------------- three ways to show it


class _Nothing:
    def update(self, task: Task) -> None: ...

    def close(self, task: Task) -> None: ...


class _Lines:
    """A line now and then, for streams that are kept."""

    def __init__(self, stream: TextIO, label: str, clock: Callable[[], float]) -> None:
        self._stream, self._label, self._clock = stream, label, clock
        self._last = clock()

    def update(self, task: Task) -> None:
        now = self._clock()
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        left = "" if task.remaining is None else f", {clock_text(task.remaining)} left"
        self._write(task, left)

    def close(self, task: Task) -> None:
        ended = "done in" if task.done >= task.total else "stopped after"
        self._write(task, f", {ended} {clock_text(task.elapsed)}")

    def _write(self, task: Task, middle: str) -> None:
        share = f" ({100 * task.done // task.total} %)" if task.total else ""
        note = f"; {task.note}" if task.note else ""
        try:
            self._stream.write(f"{self._label}: {task.done}/{task.total}{share}{middle}{note}\n")
            self._stream.flush()
        except (OSError, ValueError):  # a reader that left, a closed stream: no reason to stop working
            return


class _Bar:
    """A row of the terminal's one display."""

    def __init__(self, stream: TextIO, label: str, total: int, done: int) -> None:
        self._bars = _display.acquire(stream)
        self._id: TaskID = self._bars.add_task(label, total=total, completed=done, left="", note="")

    def update(self, task: Task) -> None:
        left = "" if task.remaining is None else f"{clock_text(task.remaining)} left"
        self._bars.update(self._id, completed=task.done, left=left, note=task.note)

    def close(self, task: Task) -> None:
        self._bars.remove_task(self._id)
        _display.release()


class _Display:
    """The rich display, alive while there are rows: two at once would overwrite each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: Bars | None = None
        self._rows = 0

    def acquire(self, stream: TextIO) -> Bars:
        with self._lock:
            if self._bars is None:
                self._bars = _bars(stream)
                self._bars.start()
            self._rows += 1
            return self._bars

    def release(self) -> None:
        with self._lock:
            self._rows -= 1
            if self._rows == 0 and self._bars is not None:
                self._bars.stop()
                self._bars = None


def _bars(stream: TextIO) -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns: list[Any] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    return RichProgress(
        *columns,
        console=Console(file=stream, force_terminal=True),
        refresh_per_second=REFRESH_PER_SECOND,
        transient=True,
        # Redirected stdout would end up on stderr; only worth it where both are the same screen.
        redirect_stdout=_is_terminal(sys.stdout),
        redirect_stderr=_is_terminal(sys.stderr),
    )


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


_display = _Display()
