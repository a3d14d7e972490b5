"""The variables of a template: their types and limits, and the values that callers give."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

from pydantic import NonNegativeInt, model_validator

from plugins.templates.text import Item, Value
from proxy.config import Strict
from proxy.types import JSON
from proxy.wire import read

Kind: TypeAlias = Literal["string", "integer", "number", "boolean", "enum", "list"]
STRING: Final = "string"
WHOLE: Final = re.compile(r"-?[0-9]{1,18}")
LARGEST: Final = 2**63
"""Numbers must be smaller: a YAML file may contain integers of any size."""
NUMBER: Final = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?")
TRUTHS: Final = {"true": True, "false": False}
ONLY: Final[Mapping[str, tuple[Kind, ...]]] = {
    "values": ("enum",),
    "items": ("list",),
    "min_items": ("list",),
    "max_items": ("list",),
    "min_length": ("string", "list"),
    "max_length": ("string", "list"),
    "minimum": ("integer", "number", "list"),
    "maximum": ("integer", "number", "list"),
}
"""The types to which each limit applies; for a list, to its items."""
SHOWN: Final = 20
"""Problems reported at once."""


class Wrong(ValueError):
    """An invalid value; the message says what is expected, as the end of a sentence."""


class Variable(Strict):
    """One variable of a template.  It is required unless it has a default or is optional."""

    type: Kind = STRING
    """`string`, `integer`, `number`, `boolean`, `enum` (one of `values`) or `list`."""
    description: str = ""
    """What to fill in."""
    default: Any = None
    """The value if none is given."""
    optional: bool = False
    """Whether it may be left out; a section can hide the text that depends on it."""
    values: tuple[str, ...] = ()
    """The possible values of an `enum`."""
    items: Literal["string", "integer", "number"] = "string"
    """The type of a `list`'s items."""
    minimum: int | float | None = None
    """Smallest number."""
    maximum: int | float | None = None
    """Largest number."""
    min_length: NonNegativeInt | None = None
    """Minimum characters of a text."""
    max_length: NonNegativeInt | None = None
    """Maximum characters of a text."""
    min_items: NonNegativeInt | None = None
    """Minimum items of a list."""
    max_items: NonNegativeInt | None = None
    """Maximum items of a list."""

    @model_validator(mode="after")
    def _consistent(self) -> Variable:
        for name in self.model_fields_set & ONLY.keys():
            if self.type not in ONLY[name]:
                raise ValueError(f"'{name}' is no limit of a variable of type '{self.type}'")
        if self.type == "enum" and not self.values:
            raise ValueError("an enum needs 'values'")
        if self.default is not None:
            try:
                object.__setattr__(self, "default", self.read(self.default))
            except Wrong as error:
                raise ValueError(f"its default {error}") from None
        return self

    @property
    def required(self) -> bool:
        return self.default is None and not self.optional

    def read(self, given: JSON) -> Value:
        """The value in its type; numbers and booleans may be given as text, because some dialects have nothing else.

        Raises Wrong.
        """
        if self.type != "list":
            return self.one(self.type, given)
        if not isinstance(given, list | tuple):
            raise Wrong(f"must be a list, but is {read.kind_of(given)}")
        if self.min_items is not None and len(given) < self.min_items:
            raise Wrong(f"must have at least {self.min_items} items, but has {len(given)}")
        if self.max_items is not None and len(given) > self.max_items:
            raise Wrong(f"must have at most {self.max_items} items, but has {len(given)}")
        return tuple(self.item(index, one) for index, one in enumerate(given))

    def one(self, kind: Kind, given: JSON) -> Item:
        made: Item = READ[kind](self, given)
        return made

    def item(self, index: int, given: JSON) -> Item:
        try:
            return self.one(self.items, given)
        except Wrong as error:
            raise Wrong(f"has an item, [{index}], that {error}") from None


def texted(variable: Variable, given: JSON) -> str:
    """OpenAI's prompts wrap texts as `{"type": "input_text", "text": …}`."""
    if isinstance(given, dict) and given.get("type") == "input_text":
        given = given.get("text")
    if not isinstance(given, str):
        raise Wrong(f"must be a string, but is {read.kind_of(given)}")
    if variable.min_length is not None and len(given) < variable.min_length:
        raise Wrong(f"must have at least {variable.min_length} characters, but has {len(given)}")
    if variable.max_length is not None and len(given) > variable.max_length:
        raise Wrong(f"must have at most {variable.max_length} characters, but has {len(given)}")
    return given


def whole(variable: Variable, given: JSON) -> int:
    if isinstance(given, str) and WHOLE.fullmatch(given.strip()):
        given = int(given)
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if type(given) is not int:  # a bool would pass `isinstance`
        raise Wrong(f"must be an integer, but is {read.kind_of(given)}")
    check_range(variable, given)
    return given


def number(variable: Variable, given: JSON) -> float:
    if isinstance(given, str) and NUMBER.fullmatch(given.strip()):
        given = int(given) if WHOLE.fullmatch(given.strip()) else float(given)
    if type(given) not in (int, float) or (type(given) is float and not math.isfinite(given)):
        raise Wrong(f"must be a number, but is {read.kind_of(given)}")
    check_range(variable, given)
    found: float = given
    return found


def check_range(variable: Variable, given: float) -> None:
    if abs(given) >= LARGEST:
        raise Wrong("must be a smaller number")
    if variable.minimum is not None and given < variable.minimum:
        raise Wrong(f"must be at least {variable.minimum:g}, but is {given:g}")
    if variable.maximum is not None and given > variable.maximum:
        raise Wrong(f"must be at most {variable.maximum:g}, but is {given:g}")


def truth(variable: Variable, given: JSON) -> bool:
    if isinstance(given, str):
        given = TRUTHS.get(given.strip().lower(), given)
    if type(given) is not bool:
        raise Wrong(f"must be a boolean, but is {read.kind_of(given)}")
    return given


def chosen(variable: Variable, given: JSON) -> str:
    if given not in variable.values:
        shown = f"'{given[:80]}'" if isinstance(given, str) else read.kind_of(given)
        raise Wrong(f"must be one of {', '.join(map(repr, variable.values))}, but is {shown}")
    return str(given)


READ: Final[Mapping[str, Callable[[Variable, JSON], Any]]] = {
    "string": texted,
    "integer": whole,
    "number": number,
    "boolean": truth,
    "enum": chosen,
}


def fill(variables: Mapping[str, Variable], given: Mapping[str, JSON]) -> tuple[dict[str, Value], list[str]]:
    """Every variable's value, and all problems; null is the same as not given."""
    values: dict[str, Value] = {}
    problems: list[str] = []
    for name, variable in variables.items():
        if (value := given.get(name)) is None:
            values[name] = variable.default
            if variable.required:
                problems.append(missing(name, variable))
            continue
        try:
            values[name] = variable.read(value)
        except Wrong as error:
            problems.append(f"'{name}' {error}")
    return values, problems + list(unknown(variables, given))


def missing(name: str, variable: Variable) -> str:
    said = f" ({variable.description.rstrip('.')})" if variable.description else ""
    return f"'{name}' is missing{said}"


def unknown(variables: Mapping[str, Variable], given: Mapping[str, JSON]) -> Iterator[str]:
    """A message for each, empty beyond SHOWN: a body may contain a million unknown names."""
    known = ", ".join(f"'{name}'" for name in variables) or "none"
    for number, name in enumerate(name for name in given if name not in variables):
        yield f"'{name[:80]}' is no variable of it (there are: {known[:500]})" if number < SHOWN else ""


def joined(problems: list[str]) -> str:
    more = len(problems) - SHOWN
    return "; ".join(problems[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
