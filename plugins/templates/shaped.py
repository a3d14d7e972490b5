"""Answer schemas that depend on variables: an enum of the values that the caller gave.

`enum: ["{{labels}}"]` becomes the distinct items of the list `labels`; an empty list removes the enum.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from plugins.templates import text
from plugins.templates.text import Value
from proxy.types import JSON

HOLE: Final = re.compile(r"\{\{\s*(" + text.NAME.pattern + r")\s*\}\}")
ENUM: Final = "enum"


def hole(enum: JSON) -> str | None:
    """The variable that an enum is a placeholder for, if it is one."""
    if isinstance(enum, list | tuple) and len(enum) == 1 and isinstance(enum[0], str):
        found = HOLE.fullmatch(enum[0])
        return None if found is None else found[1]
    return None


def holes(schema: JSON) -> Iterator[str]:
    """The variables used as enums in a schema."""
    if isinstance(schema, Mapping):
        if (name := hole(schema.get(ENUM))) is not None:
            yield name
        for one in schema.values():
            yield from holes(one)
    elif isinstance(schema, list | tuple):
        for one in schema:
            yield from holes(one)


def shaped(schema: JSON, values: Mapping[str, Value]) -> JSON:
    """The schema with the placeholders replaced."""
    if isinstance(schema, list | tuple):
        return [shaped(one, values) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {key: shaped(one, values) for key, one in schema.items()}
    if (name := hole(schema.get(ENUM))) is not None:
        if items := values.get(name):
            made[ENUM] = list(dict.fromkeys(items)) if isinstance(items, list | tuple) else [items]
        else:
            del made[ENUM]
    return made
