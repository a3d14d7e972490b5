"""Numbers, strings and enum values that match a JSON schema."""

import math
import re
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
LONGEST = 100_000
"""Maximum characters of a string."""
KINDS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
FORMATS = {
    "date": "2026-01-02",
    "date-time": "2026-01-02T03:04:05Z",
    "time": "03:04:05Z",
    "duration": "P1D",
    "email": "someone@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uri-reference": "/simulated",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
SAMPLES = (
    *("a", "A", "0", "ab", "AB", "Ab", "a1", "A1", "a-b", "a_b", "a b", "+10", "1.0", "#000000", "2026-01"),
    *("2026-01-02", "someone@example.com", "https://example.com/"),
    *("0" * size for size in range(2, 13)),
    *("a" * size for size in range(3, 9)),
    *("A" * size for size in range(3, 9)),
)


def fitting_enum(values: list[Any], kind: Any) -> Any:
    """The first value of an enum that also has the required type, otherwise the first one."""
    want = KINDS.get(kind) if isinstance(kind, str) else None
    return next((value for value in values if want and isinstance(value, want)), values[0])


def number(schema: Schema, kind: str) -> int | float:
    """As close to 1 as the bounds permit."""
    step = schema.get("multipleOf") or (1 if kind == "integer" else 0)
    low, high = _bounds(schema, step or 0.5)
    value: int | float = min(max(1, low), high)
    if step:
        value = math.ceil(value / step) * step
        value = value - step if value > high else value
    return int(value) if value == int(value) else value


def _bounds(schema: Schema, step: float) -> tuple[float, float]:
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
    if step == 0.5 and math.isfinite(above) and math.isfinite(below):
        step = (below - above) / 2
    return max(low, above + step), min(high, below - step)


def text_of(schema: Schema, hint: str) -> str:
    if schema.get("format") in FORMATS:
        return FORMATS[schema["format"]]
    least, most = min(schema.get("minLength", 0), LONGEST), schema.get("maxLength", LONGEST)
    text = hint or "simulated"
    text = (text * (least // len(text) + 1) if len(text) < least else text)[: max(most, least)]
    return _matching(str(schema["pattern"]), text) if schema.get("pattern") else text[:most]


def _matching(pattern: str, text: str) -> str:
    """The text or the first sample that matches; if none does, the text anyway."""
    wanted = re.compile(pattern)
    return next((sample for sample in (text[:64], *SAMPLES) if wanted.search(sample)), text)


def distinct(made: list[Any], items: Any) -> Iterator[Any]:
    """The items, made different from each other as far as their types permit."""
    choices = items.get("enum", []) if isinstance(items, dict) else []
    for place, item in enumerate(made):
        if place < len(choices):
            yield choices[place]
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield item + place
        else:
            yield f"{item} {place}" if isinstance(item, str) and place else item
