"""Messages, tools and formats for requests to any OpenAI-compatible server."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping

from proxy.types import JSON, Format, Image, Message, Tool, ToolCall
from proxy.wire.openai_answer import tool_call
from proxy.wire.openai_messages import MAGIC


def messages_of(messages: tuple[Message, ...], notes: dict[str, str]) -> Iterator[dict[str, JSON]]:
    open_calls: list[ToolCall] = []
    pictures: list[JSON] = []  # from tools; these servers do not accept them in a tool message
    for one in messages:
        if pictures and one.role != "tool":
            yield {"role": "user", "content": pictures}
            pictures = []
        said: dict[str, JSON] = {"role": one.role, "content": content_of(one)}
        if one.thinking:  # these servers do not accept earlier reasoning
            notes["messages.thinking"] = "ignored"
        if one.name:
            said["name"] = one.name
        if one.tool_calls:
            open_calls = list(one.tool_calls)
            said["content"] = said["content"] or None
            said["tool_calls"] = [tool_call(call) for call in one.tool_calls]
        if one.role == "tool":
            said["tool_call_id"] = one.tool_call_id or answered(open_calls, one.name)
            said["content"] = one.text
            pictures += pictures_of(one)
        yield said
    if pictures:
        yield {"role": "user", "content": pictures}


def answered(calls: list[ToolCall], name: str) -> str:
    """The id of the call that a result without an id belongs to: the first with its name, otherwise the first."""
    call = next((one for one in calls if one.name == name), calls[0] if calls else None)
    if call is None:
        return "call_0"
    calls.remove(call)
    return call.id


def content_of(message: Message) -> JSON:
    if not message.images:
        return message.text
    pictures = pictures_of(message)
    return [{"type": "text", "text": message.text}, *pictures] if message.text else pictures


def pictures_of(message: Message) -> list[JSON]:
    return [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in message.images]


def data_url(image: Image) -> str:
    head = base64.b64decode(image.base64[:16])
    kind = next((kind for magic, kind in MAGIC if head.startswith(magic)), "png")
    return f"data:image/{kind};base64,{image.base64}"


def tool_of(tool: Tool) -> dict[str, JSON]:
    function: dict[str, JSON] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters:
        function["parameters"] = tool.parameters
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def response_format(form: Format) -> dict[str, JSON]:
    """The response format.  `strict` is set only where OpenAI accepts it; the answer is checked here in any case."""
    if not form.schema:
        return {"type": "json_object"}
    shape: dict[str, JSON] = {"name": "answer", "schema": form.schema}
    if form.strict and closed(form.schema):
        shape["strict"] = True
    return {"type": "json_schema", "json_schema": shape}


def closed(schema: JSON) -> bool:
    """Whether all objects in a schema require all their properties and allow no others, as OpenAI's `strict` does."""
    if isinstance(schema, list):
        return all(map(closed, schema))
    if not isinstance(schema, Mapping):
        return True
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        if schema.get("additionalProperties") is not False or len(required) != len(properties):
            return False
    return all(map(closed, schema.values()))
