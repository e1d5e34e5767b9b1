"""The other processes of a training on this machine: started by repeating this command, watched, never left behind.

Under torchrun or SLURM processes are started from outside, and nothing here happens.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

from shared.config import TrainConfig
from shared.errors import ResourcesExhausted, SuiteError, UsageError

PARENT = "PIPELINES_HELPER_OF"
LEAVE_SECONDS = 10.0
_SET = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE")


class Helpers:
    """Context in which ``devices − 1`` copies of this command take part; empty if one process suffices."""

    def __init__(self, train: TrainConfig, logs: Path) -> None:
        self._train, self._logs = train, logs
        self._processes: list[subprocess.Popen[bytes]] = []
        self._before = {name: os.environ.get(name) for name in _SET}

    def __enter__(self) -> Helpers:
        if self._train.devices * self._train.num_nodes > 1 and not started_outside():
            self._start()
        return self

    def _start(self) -> None:
        nodes = self._train.num_nodes
        if nodes > 1 and not all(
            os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
        ):
            raise UsageError(
                f"configuration:train.num_nodes: {nodes}, but this node's place is not known; use torchrun, "
                "or set MASTER_ADDR, MASTER_PORT and NODE_RANK on every node"
            )
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
        os.environ.setdefault("NODE_RANK", "0")
        os.environ["WORLD_SIZE"] = str(self._train.devices * nodes)
        os.environ["LOCAL_RANK"] = "0"
        for rank in range(1, self._train.devices):
            env = {**os.environ, "LOCAL_RANK": str(rank), PARENT: str(os.getpid())}
            with open(self._log(rank), "wb") as log:
                command = [sys.executable, *sys.orig_argv[1:]]
                self._processes.append(
                    subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
                )

    def _log(self, rank: int) -> Path:
        return self._logs / f"process-{rank}.log"

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + LEAVE_SECONDS / (1 if err is None else 4)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        for process in self._processes:
            _end(process)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def failure(self) -> SuiteError | None:
        """What to say if one of the processes ended by itself and so broke the exchange; None if none did."""
        deadline = time.monotonic() + 3.0  # the connection breaks a little before the process is gone
        while time.monotonic() < deadline:
            for rank, process in enumerate(self._processes, start=1):
                code = process.poll()
                if code:
                    return _death(rank, len(self._processes) + 1, code, self._log(rank))
            time.sleep(0.1)
        return None


def started_outside() -> bool:
    """Whether torchrun, SLURM or `Helpers` started this process as one of several."""
    if "LOCAL_RANK" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return True
    from lightning_fabric.plugins.environments import SLURMEnvironment

    return bool(SLURMEnvironment.detect())


def is_helper() -> bool:
    """Whether this process was started by `Helpers`."""
    return PARENT in os.environ


def leave_with_parent() -> None:
    """In a helper: end when the process that started it has gone, however it went."""
    parent = int(os.environ.get(PARENT, "0"))
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="leave-with-parent").start()


def is_broken_exchange(err: BaseException) -> bool:
    """Whether the error is what the others' disappearance looks like from inside."""
    text = str(err)
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Timed out",
        "timed out",
        "gloo",
        "NCCL",
    )
    return isinstance(err, RuntimeError) and any(sign in text for sign in signs)


def _death(rank: int, world: int, code: int, log: Path) -> SuiteError:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    text = f"process {rank} of 0–{world - 1} ended ({ended}{': ' + last[:120] if last else ''})"
    if 1 <= code <= 8:  # it said why; its reason is the run's
        error = SuiteError(f"{text}; see {log}")
        error.exit_code = code
        return error
    return ResourcesExhausted(
        f"{text}, so the training stopped; often memory; see {log}; "
        "the same command goes on from the last checkpoint"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    family = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    for child in family:
        with contextlib.suppress(psutil.Error):
            child.kill()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
