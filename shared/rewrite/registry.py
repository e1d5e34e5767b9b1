"""Rewrites under their names: a module of this package with one `@register` line is all that makes one known."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor, nn

from shared.errors import UsageError
from shared.nets.registry import nearest, split

Report = dict[str, Any]
Rewrite = Callable[..., tuple[nn.Module, Report]]
_KNOWN: dict[str, tuple[Rewrite, str]] = {}
"""Name → the function and its source."""


def register(name: str, paper: str = "–") -> Callable[[Rewrite], Rewrite]:
    """Function decorator: make a rewrite known under `name`."""

    def add(function: Rewrite) -> Rewrite:
        _KNOWN[name] = function, paper
        return function

    return add


@cache
def _load_all() -> None:
    package = importlib.import_module("shared.rewrite")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"shared.rewrite.{module.name}")


def names() -> list[str]:
    """Every rewrite."""
    _load_all()
    return sorted(_KNOWN)


def papers() -> dict[str, str]:
    """Every rewrite and its source."""
    return {name: _KNOWN[name][1] for name in names()}


def find(name: str) -> Rewrite:
    """Raises `UsageError` with the nearest name."""
    if name not in names():
        raise UsageError(f"rewrite: found {name!r}; {nearest(name, names())}")
    return _KNOWN[name][0]


def apply_all(
    model: nn.Module, parts: Sequence[str | Mapping[str, Any]], data: Tensor | None = None
) -> tuple[nn.Module, list[Report]]:
    """`model` after every rewrite of `parts` (a name, or a mapping with `name` and options), and their reports.

    Raises `UsageError` for unknown names and options (with the nearest) and where a rewrite refuses the model.
    """
    reports = []
    for part in parts:
        name, options = split(part)
        rewrite = find(name)
        accepted = [
            p.name for p in inspect.signature(rewrite).parameters.values() if p.kind is p.KEYWORD_ONLY
        ]
        for key in options:
            if key not in accepted:
                raise UsageError(f"rewrite {name}: found option {key!r}; {nearest(key, accepted)}")
        model, report = rewrite(model, data, **options)
        reports.append({"rewrite": name, **report})
    return model, reports
