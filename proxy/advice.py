"""Error messages for wrong settings: what was found, what is expected, and what to write instead."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import typing
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any, Final

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

Place = tuple[str | int, ...]
UNKNOWN: Final = "there is no such setting"
NUMBERS: Final = ("a whole number", "a number")
EXPECTED: Final = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "decimal_parsing": "a number",
    "decimal_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
KINDS: Final = (
    (bool, "true or false"),
    (int | float, "a number"),
    (str, "a text"),
    (list, "a list"),
    (dict, "a mapping"),
)
SHOWN: Final = 40
"""Characters of a wrong value that are shown."""


def advised(model: type[BaseModel], data: Any, errors: Sequence[ErrorDetails]) -> Iterator[tuple[Place, str]]:
    """For pydantic's errors about `data`: the place of each, and a message that says what is wrong there."""
    for error in errors:
        if not _of_another_branch(error, errors):
            place = _place(data, error["loc"])
            yield place, _words(error) + _advice(model, place, error)


def hint(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def docstrings(cls: type) -> dict[str, str]:
    """The docstrings of a class's fields, by name; found by parsing its source."""
    try:
        (found,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError):  # an installation without sources
        return {}
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in pairwise(getattr(found, "body", []))
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }


def _of_another_branch(error: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    """Whether it says that a mapping should be a text, while another error says what is wrong inside the mapping."""
    if error["type"] != "string_type" or not isinstance(error["input"], dict):
        return False
    around = error["loc"][:-1]
    return any(one is not error and one["loc"][: len(around)] == around for one in errors)


def _words(error: ErrorDetails) -> str:
    """What is wrong: pydantic's message, or one of our own where pydantic's is about Python types."""
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        return UNKNOWN
    if kind == "missing":
        return "this setting is required"
    if kind not in EXPECTED:
        return error["msg"].removeprefix("Value error, ")
    # The value itself is shown only where a number is expected; elsewhere it may be a secret.
    tells = EXPECTED[kind] in NUMBERS and isinstance(given, str | float)
    return f"this should be {EXPECTED[kind]}, not {repr(given)[:SHOWN] if tells else _kind(given)}"


def _kind(given: Any) -> str:
    return next((name for kind, name in KINDS if isinstance(given, kind)), "nothing")


def _place(data: Any, steps: Place) -> Place:
    """pydantic's location as a place in the file, without the steps that pydantic adds for keys and for unions."""
    place: Place = ()
    for index, step in enumerate(steps):
        inside = step in data if isinstance(data, dict) else isinstance(data, list) and isinstance(step, int)
        if inside or (isinstance(data, dict) and index == len(steps) - 1):
            place = (*place, step)
            data = data[step] if inside else None
    return place


def _advice(model: type[BaseModel], place: Place, error: ErrorDetails) -> str:
    """What to write instead, "" if that is unknown."""
    match error["type"]:
        case "missing":
            written = _example(model, place)
            return f"; the least is `{written}`, and nothing else need be said" if written else ""
        case "extra_forbidden":
            return _other_name(model, place)
        case "literal_error" if error["loc"][-1:] == ("[key]",):
            return hint(str(place[-1]), re.findall(r"'(\w+)'", error["ctx"]["expected"]))
        case "string_type" if isinstance(error["input"], int | float):
            return "; put it in quotes"
    return _form(model, place, error)


def _form(model: type[BaseModel], place: Place, error: ErrorDetails) -> str:
    """What a value of the expected kind looks like."""
    match EXPECTED.get(error["type"]):
        case "a whole number" | "a number":
            return _meaning(model, place)
        case "a list":
            return _as_list(error["input"])
        case "a mapping":
            return _as_mapping(model, place)
    return ""


def _other_name(model: type[BaseModel], place: Place) -> str:
    """For an unknown setting: one with a similar name, or the place where one of this name belongs, or all names."""
    name = str(place[-1])
    models = list(_models(model, place[:-1]))
    names = [known for one in models for known in one.model_fields]
    if near := hint(name, names):
        return near
    inside = next((found for one in models for found in _inside(one, name)), "")
    if inside:
        return f" here; it belongs in `{inside}`"
    return f"; there are {', '.join(dict.fromkeys(names))}" if names else ""


def _inside(model: type[BaseModel], name: str, depth: int = 3) -> Iterator[str]:
    """How a nested setting of this name is written; `depth` limits how far the search goes."""
    for field, info in model.model_fields.items():
        for before, one, after in _members(info.annotation):
            if name in one.model_fields:
                yield f"{field}: {before}{{{name}: …}}{after}"
            elif depth:
                yield from (f"{field}: {before}{{{found}}}{after}" for found in _inside(one, name, depth - 1))


def _members(annotation: Any) -> Iterator[tuple[str, type[BaseModel], str]]:
    """The settings classes in a field's type, with what must be written before and after one of them."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation, ""
    elif origin is dict:
        yield from (("{NAME: " + before, one, after + "}") for before, one, after in _members(inner[1]))
    elif origin is tuple:
        yield from (("[" + before, one, after + "]") for before, one, after in _members(inner[0]))
    else:
        for one in inner:
            yield from _members(one)


def _meaning(model: type[BaseModel], place: Place) -> str:
    """The first sentence of the setting's docstring, because it names the unit."""
    for one in _models(model, place[:-1]):
        for cls in one.__mro__[: one.__mro__.index(BaseModel)]:
            if said := docstrings(cls).get(str(place[-1])):
                return f" ({re.split(r'[.;:](?: |$)', ' '.join(said.split()))[0]})"
    return ""


def _as_list(given: Any) -> str:
    if isinstance(given, str | int | float):
        return f", such as `[{', '.join(part.strip() for part in str(given).split(','))}]`"
    return "; begin each item with `- `" if isinstance(given, dict) else ""


def _as_mapping(model: type[BaseModel], place: Place) -> str:
    """An example of the setting or of one around it; else the names of the settings in it."""
    for end in range(len(place), 0, -1):
        if written := _example(model, place[:end]):
            return f", such as `{written}`"
    names = [name for one in _models(model, place) for name in one.model_fields]
    return f" with {', '.join(names)}" if names else ""


def _example(model: type[BaseModel], place: Place) -> str:
    field = _field(model, place)
    if field is None or not field.examples:
        return ""
    return yaml.safe_dump({place[-1]: field.examples[0]}, default_flow_style=True, width=10_000).strip()[1:-1]


def _field(model: type[BaseModel], place: Place) -> FieldInfo | None:
    fields = [one.model_fields.get(str(place[-1])) for one in _models(model, place[:-1])] if place else []
    return next((one for one in fields if one is not None), None)


def _models(annotation: Any, place: Place) -> Iterator[type[BaseModel]]:
    """The settings classes that are possible at a place."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not place:
            yield annotation
        elif field := annotation.model_fields.get(str(place[0])):
            yield from _models(field.annotation, place[1:])
    elif origin is dict:
        yield from _models(inner[1], place[1:])
    elif origin is tuple:  # a single item may also be written without a list
        yield from _models(inner[0], place[1:] if isinstance(next(iter(place), 0), int) else place)
    else:
        for one in inner:
            yield from _models(one, place)
