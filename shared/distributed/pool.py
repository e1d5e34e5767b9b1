"""Tasks in spawned processes, where a process that dies takes only its own task with it.

The standard pools either hang or give up as a whole when a worker is killed (out of memory, a crash in native code);
this one reports the task, starts another worker and goes on. Workers are started when there is work for them, ignore
Ctrl-C (their parent decides), write nothing to stdout, and end as soon as the parent is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from shared import errors
from shared.errors import EnvironmentUnfit, ResourcesExhausted, SuiteError

Emit = Callable[[Any], None]
"""Sends a note about the running task to the parent."""
Servant = Callable[[Any, Emit], Any]
"""Does one task. Errors of the task belong into its result; what it raises ends the whole pool."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_END_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Event:
    """`value` is a note, a result, or the reason why the worker died."""

    kind: Literal["note", "done", "died"]
    key: Any
    value: Any


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_threads(threads: int) -> None:
    """Let numerical libraries use at most `threads`; a smaller number in the environment is kept.

    Waiting threads sleep instead of spinning: beside other busy processes, spinning ones are several times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in THREAD_VARIABLES:
        given = os.environ.get(name, "")
        os.environ[name] = str(min(threads, int(given)) if given.isdigit() and int(given) else threads)
    if "torch" in sys.modules:  # read the environment already
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class Pool:
    """At most `workers` processes, each of which calls ``make(*args)`` once for its `Servant`.

    `make` is found by its module and name, `args` and tasks must be picklable.
    """

    def __init__(self, make: Callable[..., Servant], args: tuple[Any, ...], workers: int) -> None:
        self._make, self._args, self.size = make, args, max(1, workers)
        self._threads = max(1, cores() // self.size)
        self._workers: list[_Worker] = []

    def run(self, tasks: Iterable[tuple[Any, Any]]) -> Generator[Event, None, None]:
        """Events of every (key, task), in the order they happen. Raises what `make` or a servant raised."""
        source = iter(tasks)
        waiting: deque[tuple[Any, Any]] = deque()
        more = True
        while True:
            while more and len(waiting) < self.size:
                try:
                    waiting.append(next(source))
                except StopIteration:
                    more = False
            self._hand_out(waiting)
            if not waiting and not any(worker.busy for worker in self._workers):
                return
            yield from self._collect()

    def _hand_out(self, waiting: deque[tuple[Any, Any]]) -> None:
        for worker in [w for w in self._workers if w.ready and not w.busy]:
            if waiting and not worker.give(*waiting[0]):
                self._dismiss(worker)
            elif waiting:
                waiting.popleft()
        starting = sum(not worker.ready for worker in self._workers)
        while starting < len(waiting) and len(self._workers) < self.size:
            worker = _Worker()
            self._workers.append(worker)
            worker.start(self._make, self._args, self._threads)
            starting += 1

    def _collect(self) -> Iterator[Event]:
        by_handle: dict[Any, _Worker] = {}
        for worker in self._workers:
            by_handle[worker.connection] = by_handle[worker.process.sentinel] = worker
        for worker in {id(w): w for w in map(by_handle.__getitem__, wait(list(by_handle)))}.values():
            event = self._hear(worker)
            if event is not None:
                yield event

    def _hear(self, worker: _Worker) -> Event | None:
        """One message of `worker`, or the news of its death."""
        try:
            # The last words come before the death: a result already sent counts.
            if not worker.connection.poll():
                raise EOFError
            kind, value = worker.connection.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if kind == "failed":
            raise value
        if kind == "ready":
            worker.ready = True
            return None
        key = worker.key
        if kind == "done":
            worker.busy, worker.key = False, None
        return Event(kind, key, value)

    def _bury(self, worker: _Worker) -> Event | None:
        busy, key, ready = worker.busy, worker.key, worker.ready
        code = self._dismiss(worker)
        if not ready:
            reason = f"{describe_end(code)} before it was ready"
            if code == -signal.SIGKILL:
                raise ResourcesExhausted(f"{reason}; memory for the model wanted; close other programs")
            raise EnvironmentUnfit(
                f"{reason}; a program that can be started anew wanted; call from the command line, or below "
                '`if __name__ == "__main__":`'
            )
        return Event("died", key, describe_end(code)) if busy else None

    def _dismiss(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.end()

    def close(self) -> None:
        """End every worker now; what they were doing is lost."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.tell_to_end()
        for worker in workers:
            worker.end()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """The parent's side of one process."""

    def __init__(self) -> None:
        self.ready = self.busy = False
        self.key: Any = None
        self.connection: Connection
        self.process: Any = None

    def start(self, make: Callable[..., Servant], args: tuple[Any, ...], threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork after threads were started may dead-lock
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, args, threads), daemon=False)
        self.process.start()
        theirs.close()

    def give(self, key: Any, task: Any) -> bool:
        """False if the process is gone."""
        try:
            self.connection.send(task)
        except OSError:
            return False
        self.busy, self.key = True, key
        return True

    def tell_to_end(self) -> None:
        if self.process is not None and self.process.pid is not None:
            self.connection.close()
            if self.busy or not self.ready:
                self.process.terminate()

    def end(self) -> int:
        """Wait for the end, force it if it takes long; the exit code as `Process.exitcode` has it."""
        if self.process is None or self.process.pid is None:
            return 0
        self.connection.close()
        self.process.join(_END_SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        code = int(self.process.exitcode or 0)
        self.process.close()
        return code


def describe_end(code: int) -> str:
    """What an exit code says, for people."""
    if code == -signal.SIGKILL:
        return "the worker process was killed (SIGKILL, usually for want of memory)"
    if code < 0:
        return f"the worker process was ended by {signal.Signals(-code).name}"
    return f"the worker process ended with code {code}"


# ---------------------------------------------------------------- the worker's side


def _serve(connection: Connection, make: Callable[..., Servant], args: tuple[Any, ...], threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _stdout_to_stderr()
    limit_threads(threads)
    try:
        servant = make(*args)
        limit_threads(threads)
        connection.send(("ready", None))
        while True:
            task = connection.recv()
            connection.send(("done", servant(task, lambda note: connection.send(("note", note)))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has closed the pool, or is gone
    except Exception as err:  # noqa: BLE001 - handed to the parent, which raises it
        connection.send(("failed", portable(err)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _stdout_to_stderr() -> None:
    """Standard output carries the command's result; a library's prints must not get into it."""
    try:
        os.dup2(2, 1)
    except OSError:
        return


def portable(err: Exception) -> Exception:
    """`err` if it can cross to the parent, else an error with its text; the traceback travels as a note."""
    if isinstance(err, SuiteError):
        if getattr(errors, type(err).__name__, None) is type(err):
            return err
        plain = SuiteError(str(err))
        plain.exit_code = err.exit_code
        return plain
    told = RuntimeError(f"{type(err).__name__}: {err}")
    told.add_note(traceback.format_exc())
    return told
