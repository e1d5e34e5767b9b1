"""What the library holds: every part under a name, with the card that says what it is.

A paper is one file in one of the folders below; its ``@register`` line is all that makes it known to the factory, the
contract tests, `pipelines zoo` and the benchmarks: the folders are searched, nothing is listed by hand.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeVar

from shared.errors import UsageError
from shared.nets.options import check, keywords

Kind = Literal["mixer", "feedforward", "norm", "stem", "position", "down", "head", "backbone"]
IMAGENET: Mapping[str, Any] = {"ndim": 2, "in_chans": 3, "num_classes": 1000, "img_size": (224, 224)}
"""What the vision papers' tables are about."""
FOLDERS = ("mixers", "stems", "norms", "feedforward", "heads", "backbones")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Card:
    """One entry. What a class knows of itself (dimensions, causality, …) is read from the class."""

    name: str
    kind: Kind
    make: Any = field(repr=False)
    """The class; for a backbone the configuration (a mapping) it is built from."""
    paper: str
    """Short title, authors, year, arXiv number."""
    cost: str = ""
    """Work in the paper's notation: L tokens, C channels, n dimensions, k or w kernel or window side."""
    source: str = "ours"
    """ours; ours [R]: reconstructed from the text; else the wrapped library."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """Of a backbone: `ndim`, `in_chans`, `num_classes`, `img_size` it was published with; `params`, `macs` there."""


_CARDS: dict[tuple[Kind, str], Card] = {}


def register(
    kind: Kind, name: str, *, paper: str, cost: str = "", source: str = "ours"
) -> Callable[[type[T]], type[T]]:
    """Class decorator: make a part known under `name`."""

    def add(cls: type[T]) -> type[T]:
        _add(Card(name, kind, cls, paper, cost, source))
        return cls

    return add


def register_backbone(
    name: str,
    config: Mapping[str, Any],
    *,
    paper: str,
    published: Mapping[str, Any] | None = None,
    source: str = "ours",
) -> None:
    """Make a whole network known: its configuration (`BackboneConfig`'s keys) and its published figures."""
    _add(Card(name, "backbone", dict(config), paper, source=source, published=dict(published or {})))


def _add(card: Card) -> None:
    key = (card.kind, card.name)
    known = _CARDS.get(key)
    if known is not None and getattr(known.make, "__module__", 0) != getattr(card.make, "__module__", 1):
        raise ValueError(f"{card.kind} {card.name!r} is registered twice")
    _CARDS[key] = card


@cache
def _load_all() -> None:
    for folder in FOLDERS:
        package = importlib.import_module(f"shared.nets.{folder}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"shared.nets.{folder}.{module.name}")


def cards(kind: Kind | None = None) -> list[Card]:
    """All entries, or those of one kind, by kind and name."""
    _load_all()
    return [card for key, card in sorted(_CARDS.items()) if kind in (None, key[0])]


def find(kind: Kind, name: str) -> Card:
    """Raises `UsageError` with the nearest name."""
    _load_all()
    card = _CARDS.get((kind, name))
    if card is None:
        raise UsageError(f"backbone: found {kind} {name!r}; {nearest(name, [c.name for c in cards(kind)])}")
    return card


def split(part: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """``window`` or ``{name: window, window: 7}`` → (name, options); `kind` is accepted for `name`."""
    if isinstance(part, str):
        return part, {}
    options = dict(part)
    name = options.pop("name", None) or options.pop("kind", None)
    if not isinstance(name, str):
        raise UsageError(f"backbone: found {dict(part)}; a name, or a mapping with `name`, wanted; add it")
    return name, options


def make(kind: Kind, part: str | Mapping[str, Any], *args: Any, **context: Any) -> Any:
    """The part built from its specification; `context` is given to classes that ask for it.

    Raises `UsageError` for unknown names and options (with the nearest) and for values a class refuses.
    """
    name, options = split(part)
    cls = find(kind, name).make
    accepted = set(keywords(cls))
    for key in options:
        if key not in accepted or key in context:
            free = sorted(accepted - set(context) - set(list(inspect.signature(cls).parameters)[: len(args)]))
            raise UsageError(f"backbone: {kind} {name!r}: found option {key!r}; {nearest(key, free)}")
    given = {key: value for key, value in context.items() if key in accepted}
    try:
        check(cls, options)
        return cls(*args, **given, **options)
    except (TypeError, ValueError, RuntimeError) as err:
        raise UsageError(f"backbone: {kind} {name!r}: {err}; mend its options {options}") from err


def accepts(kind: Kind, name: str, option: str) -> bool:
    """Whether the part has a keyword `option`."""
    return option in keywords(find(kind, name).make)


def nearest(name: str, known: Sequence[str]) -> str:
    """The part of a message that says what was meant."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = ", ".join(known) or "none"
    return f"nearest is {near[0]!r}; correct it" if near else f"one of {listed} wanted; correct it"
