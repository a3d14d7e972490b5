"""Turns a filter on the metadata of documents into an SQL condition, with bound parameters only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, and_, not_, or_, select

from plugins.documents.store import number_of
from plugins.documents.tables import ITEMS, VALUES
from proxy.errors import BadCall
from proxy.types import JSON
from proxy.wire import read

DEEPEST: Final = 4
MOST: Final = 64
"""Maximum comparisons in one filter."""
ORDERS: Final[Mapping[str, Callable[[Any, float], ColumnElement[bool]]]] = {
    "gt": lambda column, value: column > value,
    "gte": lambda column, value: column >= value,
    "lt": lambda column, value: column < value,
    "lte": lambda column, value: column <= value,
}
FOUND: Final = ("eq", "ne", "in", "nin", *ORDERS)
TOGETHER: Final = {"and": and_, "or": or_}


def condition(given: JSON, name: str = "filter") -> ColumnElement[bool]:
    """The condition for documents that match.

    given: `{name: value, …}`, all of which must be equal, or OpenAI's `{type: "eq", key, value}` and
    `{type: "and", filters: […]}`.  Raises BadCall naming the field.
    """
    count = [0]
    return part(given, name, DEEPEST, count)


def part(given: JSON, name: str, depth: int, count: list[int]) -> ColumnElement[bool]:
    if type(given) is not dict:
        raise read.wrong(name, "an object", given)
    count[0] += 1
    if depth <= 0 or count[0] > MOST:
        message = f"Invalid '{name}': a filter has up to {MOST} comparisons, {DEEPEST} deep."
        raise BadCall(message, param=name, code="invalid_value")
    if "type" in given and type(several := given.get("filters")) is list:
        together = TOGETHER[read.one_of(given["type"], f"{name}.type", tuple(TOGETHER))]
        if not several:
            raise BadCall(f"Invalid '{name}.filters': it is empty.", param=f"{name}.filters", code="empty_array")
        return together(*(part(one, f"{name}.filters[{at}]", depth - 1, count) for at, one in enumerate(several)))
    if "type" in given and "key" in given:  # OpenAI's form, not metadata names
        kind = read.one_of(given["type"], f"{name}.type", FOUND)
        return compared(kind, given["key"], read.needed(given, "value", f"{name}.value"), name)
    if not given or len(given) > MOST:
        raise BadCall(f"Invalid '{name}': it must have from 1 to {MOST} entries.", param=name, code="invalid_value")
    return and_(*(compared("eq", key, value, f"{name}.{key[:64]}") for key, value in given.items()))


def compared(kind: str, key: JSON, value: JSON, name: str) -> ColumnElement[bool]:
    if type(key) is not str:
        raise read.wrong(f"{name}.key", "a string", key)
    if "\0" in key:  # not every database accepts it
        raise BadCall(f"Invalid '{name}.key': it can be no such thing.", param=f"{name}.key", code="invalid_value")
    if kind in ORDERS:
        if (number := number_of(value)) is None:
            raise read.wrong(f"{name}.value", "a number", value)
        return has(key, ORDERS[kind](VALUES.c.number, number))
    several = value if kind in ("in", "nin") else [value]
    if type(several) is not list or not several or len(several) > MOST:
        raise read.wrong(f"{name}.value", f"an array of one to {MOST} values", value)
    fits = has(key, among(several, name))
    return not_(fits) if kind in ("ne", "nin") else fits


def among(several: Sequence[JSON], name: str) -> ColumnElement[bool]:
    """Whether the value is one of several.  1 equals 1.0; true is not a number.

    One condition covers all numbers and one the rest: building thousands of conditions would block the event loop for a
    second.
    """
    numbers: list[float] = []
    texts: list[str] = []
    for value in several:
        if (number := number_of(value)) is not None:
            numbers.append(number)
        elif type(value) in (str, bool):
            texts.append(orjson.dumps(value).decode())
        else:
            raise read.wrong(name, "a string, a number or a boolean", value)
    columns = ((VALUES.c.number, numbers), (VALUES.c.value, texts))
    return or_(*(column.in_(values) for column, values in columns if values))


def has(key: str, fits: ColumnElement[bool]) -> ColumnElement[bool]:
    return select(VALUES.c.item).where((VALUES.c.item == ITEMS.c.id) & (VALUES.c.name == key) & fits).exists()
