"""What can go wrong, as one line a person can act on, and the exit code that goes with it.

A line reads ``file[:field]: found; wanted; what to do``. Everything a user can cause is a `Fault`;
an exception only carries faults to the place that decides whether the batch goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong (or odd) with one input."""

    source: str | Path
    found: str
    wanted: str = ""
    mend: str = ""
    field: str = ""
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        where = f"{self.source}:{self.field}" if self.field else str(self.source)
        said = "; ".join(part for part in (self.found, self.wanted, self.mend) if part)
        return f"{where}: {said}".replace("\n", "\\n")

    def as_dict(self) -> dict[str, str]:
        return {key: str(value) for key, value in asdict(self).items() if value != ""}


class SuiteError(Exception):
    """Base of every error a user is meant to read; `exit_code` is the process's."""

    exit_code = 1


class UsageError(SuiteError):
    """Command line or configuration cannot be understood."""

    exit_code = 2


class EnvironmentUnfit(SuiteError):
    """A missing extra, a missing device, a store that cannot be reached."""

    exit_code = 3


class ItemError(SuiteError):
    """One item of a batch cannot be processed; the others go on."""

    exit_code = 5

    def __init__(
        self, source: str | Path, found: str, wanted: str = "", mend: str = "", field: str = ""
    ) -> None:
        self.fault = Fault(source, found, wanted, mend, field)
        super().__init__(str(self.fault))

    @classmethod
    def of(cls, fault: Fault) -> ItemError:
        """The error that carries `fault`."""
        return cls(fault.source, fault.found, fault.wanted, fault.mend, fault.field)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process borders by re-calling the class with `args`; ours takes the parts.
        fault = self.fault
        return type(self), (fault.source, fault.found, fault.wanted, fault.mend, fault.field)


class ModelUnusable(SuiteError):
    """A bundle is absent, damaged, or made for another pipeline."""

    exit_code = 5


class DataInvalid(SuiteError):
    """A data set has faults; all of them are in `faults`."""

    exit_code = 6

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = list(faults)
        errors = [fault for fault in self.faults if fault.severity == "error"]
        more = f" (and {len(errors) - 1} more: `pipelines check` lists all)" if len(errors) > 1 else ""
        super().__init__(f"{errors[0] if errors else 'data set invalid'}{more}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.faults,)


class Diverged(SuiteError):
    """Loss or gradient is not finite any more; the last good checkpoint is kept."""

    exit_code = 7


class ResourcesExhausted(SuiteError):
    """Memory or disk does not suffice."""

    exit_code = 8


class Interrupted(SuiteError):
    """Stopped by a signal after saving; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signum: int = 2) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def first_line(error: BaseException, most: int = 160) -> str:
    """What a foreign error says first, for a line of ours; its type's name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:most] if lines else type(error).__name__


def named_line(error: BaseException) -> str:
    """The same after its type's name, for errors that may be of any kind."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def need(extra: str, *modules: str) -> None:
    """Raise `EnvironmentUnfit` with the install line if a module of an optional extra is absent."""
    from importlib.util import find_spec

    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise EnvironmentUnfit(
            f"{', '.join(missing)}: not installed; the '{extra}' extra is wanted; "
            f"run `make setup EXTRAS={extra}` or `pip install -c constraints.txt -e '.[{extra}]'`"
        )


@contextmanager
def as_value_errors() -> Iterator[None]:
    """Errors of the suite as the `ValueError` that users of an estimator expect."""
    try:
        yield
    except SuiteError as err:
        raise ValueError(str(err)) from err
