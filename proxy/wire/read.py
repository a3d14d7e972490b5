"""Checks of JSON values, which raise BadCall naming the field."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import orjson

from proxy.errors import BadCall
from proxy.types import JSON

Named = TypeVar("Named", bound=str)

MOST_ITEMS: Final = 10_000
"""Maximum number of messages in a request, of parts in a message, and the like."""

KINDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
}


def kind_of(value: JSON) -> str:
    return "null" if value is None else KINDS[type(value)]


def wrong(name: str, expected: str, value: JSON) -> BadCall:
    message = f"Invalid type for '{name}': expected {expected}, but got {kind_of(value)} instead."
    return BadCall(message, param=name, code="invalid_type")


def text(value: JSON, name: str) -> str:
    if type(value) is not str:
        raise wrong(name, "a string", value)
    return value


def filled(value: JSON, name: str) -> str:
    """A string that is not empty."""
    if not text(value, name):
        raise BadCall(f"Invalid '{name}': the string is empty.", param=name, code="empty_string")
    return str(value)


def flag(value: JSON, name: str) -> bool:
    if type(value) is not bool:
        raise wrong(name, "a boolean", value)
    return value


def number(value: JSON, name: str, low: float, high: float) -> float:
    if type(value) not in (int, float):
        raise wrong(name, "a number", value)
    return float(_within(value, name, low, high))


def whole(value: JSON, name: str, low: int, high: int) -> int:
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int:
        raise wrong(name, "an integer", value)
    return int(_within(value, name, low, high))


def _within(value: float, name: str, low: float, high: float) -> float:
    if value < low:
        message = f"Invalid '{name}': {value} is below the minimum value of {low}."
        raise BadCall(message, param=name, code="below_minimum_value")
    if value > high:
        message = f"Invalid '{name}': {value} is above the maximum value of {high}."
        raise BadCall(message, param=name, code="above_maximum_value")
    return value


def mapping(value: JSON, name: str) -> dict[str, JSON]:
    if type(value) is not dict:
        raise wrong(name, "an object", value)
    return value


def array(value: JSON, name: str, most: int = MOST_ITEMS) -> list[JSON]:
    """A list of at most `most` items, because checking them blocks the event loop."""
    if type(value) is not list:
        raise wrong(name, "an array", value)
    if len(value) > most:
        raise BadCall(f"Invalid '{name}': more than {most} items.", param=name, code="array_above_max_length")
    return value


def one_of(value: JSON, name: str, allowed: Sequence[Named]) -> Named:
    for known in allowed:
        if value == known:
            return known
    choices = ", ".join(f"'{known}'" for known in allowed)
    shown = f"'{value[:80]}'" if type(value) is str else kind_of(value)
    message = f"Invalid value for '{name}': {shown}. Supported values are: {choices}."
    raise BadCall(message, param=name, code="invalid_value")


def model(value: JSON, name: str) -> str:
    """A model's name, with Ollama's maximum length: a host of 350 characters and three parts of 80."""
    if len(filled(value, name)) > 600:
        raise BadCall(f"Invalid '{name}': the name is too long.", param=name, code="string_above_max_length")
    return str(value)


def needed(body: Mapping[str, JSON], key: str, name: str) -> JSON:
    """The value of a required field, which is not null."""
    if (value := body.get(key)) is None:
        raise BadCall(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    return value


def object_text(value: JSON, name: str) -> str:
    """A text that must be a JSON object, as in tool calls; an empty one becomes `{}`."""
    source = text(value, name).strip() or "{}"
    try:
        parsed = orjson.loads(source)
    except orjson.JSONDecodeError as error:
        raise BadCall(f"Invalid '{name}': not JSON: {error}.", param=name, code="invalid_json") from None
    mapping(parsed, name)
    return source


def base64_bytes(value: str, name: str, most: int) -> bytes:
    if len(value) * 3 // 4 > most + 3:
        raise BadCall(f"Invalid '{name}': more than {most} bytes.", param=name, code="image_too_large")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise BadCall(f"Invalid '{name}': not base64.", param=name, code="invalid_base64") from None


def not_deep(value: JSON, name: str, most: int) -> None:
    """Raises BadCall for JSON nested more than `most` levels, which could exhaust a serialiser's stack."""
    level: list[JSON] = [value]
    for _ in range(most):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise BadCall(f"Invalid '{name}': nested more than {most} levels deep.", param=name, code="too_deep")


def _children(node: JSON) -> Sequence[JSON]:
    if type(node) is dict:
        return [child for child in node.values() if type(child) in (dict, list)]
    if type(node) is list:
        return [child for child in node if type(child) in (dict, list)]
    return ()


def dumped(value: JSON) -> str:
    """A value from a request as JSON text.  Raises BadCall if it is nested too deeply."""
    not_deep(value, "arguments", 200)
    return orjson.dumps(value).decode()
