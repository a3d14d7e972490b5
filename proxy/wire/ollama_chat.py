"""Chat -> the body of Ollama's /api/chat, and what has to be emulated because Ollama cannot do it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import orjson
from msgspec import Struct
from msgspec.structs import replace

from proxy.models import ModelInfo
from proxy.types import JSON, Chat, Complete, Message, Tool
from proxy.wire import ollama_schema


@dataclass(frozen=True, slots=True)
class Pins:
    """What the operator set for a model; the same on every call, because a change makes Ollama reload it.

    options: load-time ones only, such as num_ctx.
    """

    options: Mapping[str, JSON] = field(default_factory=dict)
    shift: bool = False
    keep_alive: float | str | None = None

    def around(self, body: dict[str, JSON]) -> dict[str, JSON]:
        if self.keep_alive is not None:
            body["keep_alive"] = self.keep_alive
        return body


class Plan(Struct, frozen=True):
    """The request to Ollama for one call, and what must be done with its answer.

    notes: field -> `emulated`, `changed` or `ignored`, reported to the caller in a header.
    forced: the tools of which one must be called; the answer is then JSON that represents the call.
    one_call: only the first tool call is kept.
    json: whether the answer must be JSON.  schema: what it must match, if that is checked.
    strict_tools: for each tool whose arguments are checked, their schema.
    """

    body: dict[str, JSON]
    notes: Mapping[str, str]
    forced: tuple[Tool, ...] = ()
    one_call: bool = False
    json: bool = False
    schema: Mapping[str, JSON] | None = None
    strict_tools: Mapping[str, Mapping[str, JSON]] = {}


def plan(model: str, chat: Chat, stream: bool, pins: Pins, info: ModelInfo | None) -> Plan:
    """Plan the request for a chat.  Nothing is truncated: a prompt that is too long is an error, not a silent loss."""
    notes: dict[str, str] = {}
    tools, forced = offered(chat, notes)
    body: dict[str, JSON] = {"model": model, "stream": stream, "truncate": False, "shift": pins.shift}
    messages, form = chat.messages, chat.format
    if forced:
        messages, body["format"] = telling(messages, must_call(forced)), calling(forced)
    elif form is not None:
        body["format"] = form.schema or "json"
        messages = telling(messages, must_fit(form.schema))
    if tools:
        names = {tool.name for tool in tools}
        budget = ollama_schema.Budget()
        body["tools"] = [tool_of(tool, index, budget) for index, tool in enumerate(chat.tools) if tool.name in names]
    body["messages"] = list(messages_of(ending(messages, notes), notes))
    body |= sampled(chat, notes, info)
    if forced and "logprobs" in body:  # the tokens would be those of the JSON that represents the call
        del body["logprobs"], body["top_logprobs"]
        notes["logprobs"] = "ignored"
    if options := {**options_of(chat.options), **pins.options}:
        body["options"] = options
    return Plan(
        pins.around(body),
        notes,
        forced,
        one_call=not chat.parallel_tool_calls,
        json=form is not None and not forced,
        schema=form.schema if form is not None and form.strict and not forced else None,
        strict_tools={tool.name: tool.parameters for tool in chat.tools if tool.strict and tool.parameters},
    )


def offered(chat: Chat, notes: dict[str, str]) -> tuple[tuple[Tool, ...], tuple[Tool, ...]]:
    """The tools to send to Ollama, and those of which one is forced, because Ollama has no tool_choice."""
    choice = chat.tool_choice
    if not chat.tools:
        return (), ()
    if not chat.parallel_tool_calls:
        notes["parallel_tool_calls"] = "emulated"
    if choice.mode == "auto" and not choice.names:
        return chat.tools, ()
    notes["tool_choice"] = "emulated"
    wanted = tuple(tool for tool in chat.tools if not choice.names or tool.name in choice.names)
    if choice.mode == "none":
        return (), ()
    return ((), wanted) if choice.mode == "required" else (wanted, ())


def sampled(chat: Chat | Complete, notes: dict[str, str], info: ModelInfo | None) -> dict[str, JSON]:
    body: dict[str, JSON] = {}
    if chat.think is not None:
        if info is not None and info.can("thinking") is False:
            if chat.think is not False:
                notes["reasoning_effort"] = "ignored"
        else:
            body["think"] = chat.think
    if chat.logprobs is not None:
        body["logprobs"] = True
        body["top_logprobs"] = chat.logprobs
    return body


def options_of(options: Mapping[str, JSON]) -> dict[str, JSON]:
    told = {"num_predict" if name == "max_tokens" else name: value for name, value in options.items()}
    if "num_predict" in told and told["num_predict"] is None:
        told["num_predict"] = -1  # without it the model's own limit would apply
    return told


def ending(messages: tuple[Message, ...], notes: dict[str, str]) -> tuple[Message, ...]:
    """Merge several assistant messages at the end, as multi-agent apps send them: Ollama refuses more than one.

    They are joined by an empty line, as Ollama itself does for models that have a template.
    """
    first = len(messages)
    while first and messages[first - 1].role == "assistant":
        first -= 1
    last = messages[first:]
    if len(last) < 2:
        return messages
    notes["messages"] = "changed"
    text = "\n\n".join(one.text for one in last if one.text)
    thinking = "\n\n".join(one.thinking for one in last if one.thinking)
    calls = tuple(call for one in last for call in one.tool_calls)
    return (*messages[:first], Message("assistant", text, thinking=thinking, tool_calls=calls))


def messages_of(messages: tuple[Message, ...], notes: dict[str, str]) -> Iterator[dict[str, JSON]]:
    called: dict[str, str] = {}
    for one in messages:
        said: dict[str, JSON] = {"role": one.role, "content": one.text}
        if one.images:
            said["images"] = [image.base64 for image in one.images]
        if one.thinking:
            said["thinking"] = one.thinking
        if one.tool_calls:
            called |= {call.id: call.name for call in one.tool_calls}
            said["tool_calls"] = [
                {"id": call.id, "function": {"name": call.name, "arguments": orjson.Fragment(call.arguments)}}
                for call in one.tool_calls
            ]
        if one.role == "tool":
            said["tool_call_id"] = one.tool_call_id
            said["tool_name"] = one.name or called.get(one.tool_call_id, "")
        elif one.name:
            notes["messages.name"] = "ignored"
        yield said


def tool_of(tool: Tool, index: int, budget: ollama_schema.Budget) -> dict[str, JSON]:
    parameters = ollama_schema.parameters(tool.parameters, f"tools[{index}].function.parameters", budget)
    said = parameters.pop("description", "")  # Ollama keeps no description there
    description = tool.description if said in tool.description else f"{tool.description} {said}".strip()
    function = {"name": tool.name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


# --- what Ollama cannot do: requested in the prompt, and enforced by a grammar -----------------------


def telling(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """Add an instruction to the client's system message, or else to its last user message.

    The system message stays the same from turn to turn, so the prompt cache remains valid. A system message of our
    own would replace the model's.
    """
    spots = [index for index, one in enumerate(messages) if one.role == "system"][:1]
    spots += [index for index, one in enumerate(messages) if one.role == "user"][-1:]
    if not spots:
        return (*messages, Message("user", text))
    one = messages[spots[0]]
    told = replace(one, text=f"{one.text}\n\n{text}" if one.text else text)
    return (*messages[: spots[0]], told, *messages[spots[0] + 1 :])


def must_fit(schema: Mapping[str, JSON] | None) -> str:
    if not schema:
        return "Answer with one JSON object and nothing else."
    return f"Answer with JSON that fits this JSON schema, and nothing else:\n{orjson.dumps(schema).decode()}"


def must_call(forced: tuple[Tool, ...]) -> str:
    functions = [{"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in forced]
    return (
        "Call exactly one of these functions, by answering with a JSON object of its `name` and its `arguments`, "
        f"and nothing else:\n{orjson.dumps(functions).decode()}"
    )


def calling(forced: tuple[Tool, ...]) -> dict[str, JSON]:
    """The schema of a JSON object that represents a call of one of the tools."""
    definitions: dict[str, JSON] = {}
    shapes = []
    for index, tool in enumerate(forced):
        parameters: JSON = tool.parameters or {"type": "object", "properties": {}}
        place = f"#/$defs/{index}"
        if (moved := rebased(parameters, place)) != parameters:  # references start at the root
            definitions[str(index)] = moved
            parameters = {"$ref": place}
        shapes.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": parameters},
                "required": ["name", "arguments"],
            }
        )
    schema = shapes[0] if len(shapes) == 1 else {"anyOf": shapes}
    return {**schema, "$defs": definitions} if definitions else schema


def rebased(schema: JSON, place: str) -> JSON:
    """A schema with its references adjusted to being moved from the root to `place`."""
    if isinstance(schema, list):
        return [rebased(one, place) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {name: rebased(one, place) for name, one in schema.items()}
    if isinstance(ref := schema.get("$ref"), str) and ref.startswith("#"):
        moved["$ref"] = place + ref[1:]
    return moved


def load_body(model: str, pins: Pins) -> dict[str, JSON]:
    """The body of an empty chat, which loads the model with the same load-time options as every other call."""
    body: dict[str, JSON] = {"model": model, "messages": [], "stream": False, "shift": pins.shift}
    if pins.options:
        body["options"] = dict(pins.options)
    return pins.around(body)


def embed_body(model: str, inputs: tuple[str, ...], dimensions: int | None, pins: Pins) -> dict[str, JSON]:
    """The body of /api/embed, which has no `shift`.  Without inputs it only loads the model."""
    body: dict[str, JSON] = {"model": model, "input": inputs, "truncate": False}
    if dimensions is not None:
        body["dimensions"] = dimensions
    if pins.options:
        body["options"] = dict(pins.options)
    return pins.around(body)
