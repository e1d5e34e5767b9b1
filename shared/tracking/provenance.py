"""Where a run comes from: code, machine, process, command; enough to repeat it and to tell whether it still lives."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds our packages; a clone's root when run from one."""
MAX_PATCH_BYTES = 2_000_000
GIT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Provenance:
    """`tags` go onto the run; `patch` is what git would not give back (empty when the tree is clean)."""

    tags: dict[str, str] = field(default_factory=dict)
    patch: str = ""


def collect(seed: int | None = None) -> Provenance:
    """Everything about this process worth keeping with a run. Never fails: what is unknown is left out."""
    commit, patch = _git()
    tags = {
        "package_version": _package_version(),
        "python": platform.python_version(),
        "torch": _installed("torch"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "command": command(),
        **identity(),
    }
    if seed is not None:
        tags["seed"] = str(seed)
    if commit:
        tags["git_commit"] = commit
        tags["mlflow.source.git.commit"] = commit
        tags["git_dirty"] = "yes" if patch else "no"
    lock = ROOT / "constraints.txt"
    if lock.is_file():
        tags["lock_hash"] = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    return Provenance({key: value for key, value in tags.items() if value}, patch)


def command() -> str:
    """The command line as typed, without the interpreter's path."""
    return shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]])


# ---------------------------------------------------------------- which process, and does it live


def identity() -> dict[str, str]:
    """Tags that name this process for good: a pid alone is used again by the kernel."""
    import psutil

    return {
        "host": socket.gethostname(),
        "boot": boot_id(),
        "pid": str(os.getpid()),
        "pid_started": f"{psutil.Process().create_time():.2f}",
    }


@cache
def boot_id() -> str:
    """The same text until this machine restarts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        import psutil

        return f"{psutil.boot_time():.0f}"


def is_alive(tags: dict[str, str]) -> bool | None:
    """Whether the process of `identity` tags still runs; None when that cannot be known from here."""
    import psutil

    if "pid" not in tags or tags.get("host") != socket.gethostname():
        return None
    if tags.get("boot") != boot_id():
        return False
    try:
        process = psutil.Process(int(tags["pid"]))
        same = abs(process.create_time() - float(tags.get("pid_started", "0"))) < 2
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return None
    except (psutil.NoSuchProcess, ValueError):
        return False


# ---------------------------------------------------------------- parts


def _git() -> tuple[str, str]:
    """(commit, patch) of the clone our packages lie in; ("", "") when they do not lie in one."""
    top = _run_git("rev-parse", "--show-toplevel").strip()
    # An installed copy may sit in a .venv of somebody else's repository: that commit says nothing about us.
    if not top or Path(top).resolve() != ROOT:
        return "", ""
    commit = _run_git("rev-parse", "HEAD").strip()
    patch = _run_git("diff", "--no-ext-diff", "HEAD")
    untracked = _run_git("ls-files", "--others", "--exclude-standard").splitlines()
    head = "".join(f"# untracked: {name}\n" for name in untracked[:200])
    if len(patch) > MAX_PATCH_BYTES:
        patch = f"{patch[:MAX_PATCH_BYTES]}\n# cut: {len(patch):,} characters in all\n"
    return commit, head + patch


def _run_git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            timeout=GIT_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")


def _package_version() -> str:
    owners = packages_distributions().get("shared", [])
    return f"{owners[0]} {version(owners[0])}" if owners else ""


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
