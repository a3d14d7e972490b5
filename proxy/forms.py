"""Requests checked by a pydantic model, with errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from proxy.errors import BadCall
from proxy.types import JSON

Form = TypeVar("Form", bound=BaseModel)
LONGEST: Final = 200
"""Maximum characters of a field's name in an error, because clients can send any name."""


def checked(kind: type[Form], given: JSON, at: str = "", *, strict: bool = True) -> Form:
    """`given` as a model.  Raises BadCall, which names the first field that is wrong.

    at: the request field that contains `given`, "" if it is the whole request.  strict: False accepts text for numbers,
    as in a URL.
    """
    try:
        return kind.model_validate(given, strict=strict or None)
    except ValidationError as error:
        raise validation_error(error, given, at) from None


def validation_error(error: ValidationError, given: JSON, at: str) -> BadCall:
    """The error for the first fault; if the field's type is a union, it names what each of its types expects."""
    faults = error.errors()
    first = faults[0]
    place = place_of(first, given)
    name = path_of((at, *place))
    if first["type"] == "extra_forbidden":
        return BadCall(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    if first["type"] == "missing":
        return BadCall(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    alike = [first] if place == first["loc"] else [one for one in faults if place_of(one, given) == place]
    said = " or ".join(one["msg"].removeprefix("Value error, ") for one in alike)
    said = said.replace(" or Input should be ", " or ")
    message = f"Invalid '{name}': {said}." if name else f"Invalid request: {said}."
    return BadCall(message, param=name or None, code="invalid_value")


def place_of(fault: ErrorDetails, given: JSON) -> tuple[str | int, ...]:
    """The place of a fault in what was given, without the union types that pydantic adds after the field's name."""
    place = fault["loc"][:1]
    there: Any = given.get(place[0]) if isinstance(given, dict) and place else None
    for step in fault["loc"][1:]:
        if isinstance(step, int) if isinstance(there, list) else isinstance(there, dict) and step in there:
            there = there[step]
        elif fault["type"] != "missing" or step != fault["loc"][-1]:
            continue
        place += (step,)
    return place


def path_of(place: Sequence[str | int]) -> str:
    """A place as OpenAI writes it, such as `messages[0].content`."""
    text = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place)
    return text.lstrip(".")[:LONGEST]
