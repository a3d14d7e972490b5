"""Reads the tools and the tool choice of a request for a response.  Source: OpenAI's API reference, "Responses"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal

from msgspec.structs import replace

from proxy.errors import BadCall
from proxy.types import JSON, Tool, ToolChoice
from proxy.wire import openai_file_search as file_search
from proxy.wire import openai_messages, read
from proxy.wire import openai_namespaces as namespaces
from proxy.wire.openai_fields import Asked
from proxy.wire.openai_messages import Limits
from proxy.wire.openai_response_fields import response

FUNCTION: Final = "function"


def read_tools(asked: Asked, value: JSON, at: str) -> None:
    found, mine, echo = dict[str, Tool](), response(asked), list[JSON]()
    for one, kind, name in kinds(value, at):
        if kind == file_search.KIND:
            echo.append(mine.search.add(one, name, mine.theirs, asked.limits.max_depth))
            continue
        if kind not in (FUNCTION, namespaces.KIND):
            raise _unsupported(kind, name, (FUNCTION, namespaces.KIND, file_search.KIND))
        read_one = _function if kind == FUNCTION else _namespace
        known, told, unheard = read_one(one, name, asked.limits)
        found |= known
        echo.append(told)
        asked.notes |= dict.fromkeys((f"{at}.{key}" for key in unheard), "ignored")
    asked.tools = openai_messages.distinct(found)
    mine.echo[at] = echo


def kinds(value: JSON, at: str) -> Iterator[tuple[dict[str, JSON], str, str]]:
    """Each tool of a list, its type, and its path in the request."""
    for index, one in enumerate(openai_messages.bounded(value, at)):
        name = f"{at}[{index}]"
        given = read.mapping(one, name)
        yield given, read.filled(read.needed(given, "type", f"{name}.type"), f"{name}.type"), name


def _unsupported(kind: str, at: str, known: Iterable[str]) -> BadCall:
    message = f"Tools of type '{kind[:80]}' are not supported; those that are: {', '.join(known)}."
    return BadCall(message, param=f"{at}.type", code="unsupported_tool")


Heard = tuple[dict[str, Tool], dict[str, JSON], list[str]]
"""Functions by their paths, the tool as the response repeats it, and the names of ignored fields."""


def _function(given: dict[str, JSON], at: str, limits: Limits) -> Heard:
    one = openai_messages.function(given, at, limits)
    return {at: one}, told_of(one), _unheard(given, openai_messages.FUNCTION)


def _namespace(given: dict[str, JSON], at: str, limits: Limits) -> Heard:
    """A namespace's functions, with the namespace in their names.

    Its description is not given to the model, which would have to read it once for each function.
    """
    space = read.filled(read.needed(given, "name", f"{at}.name"), f"{at}.name")
    found, echo, unheard = dict[str, Tool](), list[JSON](), list[str]()
    for inner, kind, name in kinds(read.needed(given, "tools", f"{at}.tools"), f"{at}.tools"):
        if kind != FUNCTION:
            raise _unsupported(kind, name, (FUNCTION,))
        known, told, more = _function(inner, name, limits)
        found |= {place: replace(one, name=namespaces.joined(space, one.name)) for place, one in known.items()}
        echo.append(told)
        unheard += more
    told = {"type": namespaces.KIND, "name": space, "description": given.get("description"), "tools": echo}
    return found, told, unheard + _unheard(given, ("name", "tools"))


def _unheard(given: dict[str, JSON], known: Iterable[str]) -> list[str]:
    return [key for key in given if key not in known and key != "type" and given[key] is not None]


def told_of(one: Tool) -> JSON:
    """A function as the response repeats it."""
    return {"type": "function", "name": one.name, "description": one.description or None,
            "parameters": one.parameters or None, "strict": one.strict}  # fmt: skip


def read_tool_choice(asked: Asked, value: JSON, at: str) -> None:
    if type(value) is str:
        asked.tool_choice = ToolChoice(read.one_of(value, at, ("none", "auto", "required")))
        return
    kinds = ("function", "allowed_tools", file_search.KIND)
    kind = read.one_of(read.mapping(value, at).get("type"), f"{at}.type", kinds)
    search = response(asked).search
    search.chosen, search.place = kind == file_search.KIND, f"{at}.type"
    if search.chosen:
        return
    if kind == "function":
        asked.tool_choice = ToolChoice("required", (_named(value, at),))
        return
    mode = read.one_of(value.get("mode"), f"{at}.mode", ("auto", "required"))
    listed = read.array(read.needed(value, "tools", f"{at}.tools"), f"{at}.tools")
    if not listed:
        raise BadCall(f"Invalid '{at}': no tool is allowed.", param=f"{at}.tools", code="empty_array")
    names = [_allowed(one, f"{at}.tools[{index}]") for index, one in enumerate(listed)]
    search.chosen, search.place = file_search.KIND in names, f"{at}.tools"
    functions = tuple(name.removeprefix("function ") for name in names if name != file_search.KIND)
    how: Literal["auto", "required"] = "required" if mode == "required" else "auto"
    asked.tool_choice = ToolChoice(how, functions) if functions else ToolChoice("none")


def _allowed(value: JSON, at: str) -> str:
    kind = read.one_of(read.mapping(value, at).get("type"), f"{at}.type", ("function", file_search.KIND))
    return file_search.KIND if kind == file_search.KIND else f"function {_named(value, at)}"


def _named(value: JSON, at: str) -> str:
    return read.filled(read.needed(read.mapping(value, at), "name", f"{at}.name"), f"{at}.name")
