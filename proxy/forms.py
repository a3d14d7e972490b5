"""What a request says, as a model; what is wrong with it, as OpenAI would say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from proxy.errors import BadCall
from proxy.types import JSON

Form = TypeVar("Form", bound=BaseModel)
LONGEST: Final = 200
"""Letters of a field's name in an error: it may be the client's own."""


def checked(kind: type[Form], given: JSON, at: str = "", *, strict: bool = True) -> Form:
    """Raises BadCall naming the first field that is wrong.

    at: the field of the request that `given` came in, if it is not all of it.  strict: False takes text for a number,
    as in a URL.
    """
    try:
        return kind.model_validate(given, strict=strict or None)
    except ValidationError as error:
        raise told(error, given, at) from None


def told(error: ValidationError, given: JSON, at: str) -> BadCall:
    """Of several faults the first; of a field that may be several things, what each of them would be."""
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
    """Where a fault is in what was given, without the kinds of a union, which pydantic puts behind the field's name."""
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
    """As OpenAI writes it: `messages[0].content`."""
    text = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place)
    return text.lstrip(".")[:LONGEST]
