"""Pipelines by name, from the entry-point group ``pipelines``; a third party registers the same way."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from shared.errors import EnvironmentUnfit, UsageError

if TYPE_CHECKING:
    from shared.pipeline import Pipeline

GROUP = "pipelines"


@cache
def _targets() -> dict[str, str]:
    return {point.name: point.value for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def names() -> list[str]:
    return list(_targets())


def load(name: str) -> Pipeline:
    """The pipeline registered as `name`. Raises `UsageError` with the nearest name, and as `load_object` does."""
    targets = _targets()
    if name not in targets:
        if not targets:
            raise EnvironmentUnfit(
                "pipelines: none registered; an installed distribution wanted; run `make setup`"
            )
        near = difflib.get_close_matches(name, targets, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(targets)}"
        raise UsageError(f"{name}: unknown pipeline; a registered name wanted; {hint}")
    return load_object(targets[name])


def load_object(target: str) -> Pipeline:
    """The pipeline at ``module:attribute``; how a spawned worker finds one that is not registered.

    Raises `EnvironmentUnfit` if it cannot be imported or is no pipeline.
    """
    from shared.pipeline import Pipeline  # late: `--help` needs no pydantic

    module, _, attribute = target.partition(":")
    try:
        pipeline = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as err:
        raise EnvironmentUnfit(
            f"{target}: cannot be imported ({err}); a whole distribution wanted; install it again or remove it"
        ) from err
    if not isinstance(pipeline, Pipeline):
        raise EnvironmentUnfit(f"{target}: not a Pipeline; fix the distribution's entry point")
    return pipeline
