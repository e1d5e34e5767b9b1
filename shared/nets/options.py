"""What the options of a part may be. Their annotations say it, and are checked before the class sees a value: a YAML
file's `"2"`, `2.5` or `-1` is refused with the option's name, not by whatever it breaks first."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@cache
def keywords(cls: type) -> Mapping[str, Any]:
    """Keyword parameters of a class and their annotations, its parents' among them where it passes ``**kwargs`` on."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        make = vars(base)["__init__"]
        parameters = list(inspect.signature(make).parameters.values())[1:]  # without self
        hints = get_type_hints(make, include_extras=True)
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, hints.get(p.name, Any))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def check(cls: type, options: Mapping[str, Any]) -> None:
    """Raises ValueError for the first value that its annotation does not allow. Nothing is converted: `2` serves where
    `2.0` is wanted, a list where a tuple is, and no more."""
    hints = keywords(cls)
    for key, value in options.items():
        try:
            _adapter(cls, key).validate_python(value, strict=True) if key in hints else None
        except ValidationError as err:
            said = dict.fromkeys(_wanted(e) for e in err.errors())
            raise ValueError(f"option {key}: found {value!r}; {' or '.join(said)} wanted") from None


def _wanted(error: Mapping[str, Any]) -> str:
    if error["type"] in ("sequence_str", "is_instance_of"):
        return "a list"
    return str(error["msg"]).removeprefix("Input should be ")


@cache
def _adapter(cls: type, key: str) -> TypeAdapter[Any]:
    return TypeAdapter(keywords(cls)[key])
