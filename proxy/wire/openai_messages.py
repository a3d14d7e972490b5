"""OpenAI's chat messages and tools -> ours.  Source: OpenAI's API reference, "Create chat completion"."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from msgspec.structs import replace

from proxy.errors import BadCall
from proxy.types import JSON, Image, Message, Tool, ToolCall
from proxy.wire import read

# The first bytes of a picture, and the format that they indicate.
MAGIC = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"RIFF", "webp"), (b"GIF8", "gif"))
MOST_TOOLS = 128
MESSAGE = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "audio"}
    | {"reasoning_content", "reasoning"}
)
PART = frozenset({"type", "text", "image_url", "refusal"})
FUNCTION = frozenset({"name", "description", "parameters", "strict"})
READABLE = ("png", "jpeg", "webp")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for requests.  max_image_bytes is the size of a decoded image."""

    max_choices: int = 8
    max_depth: int = 64
    max_image_bytes: int = 20 * 1024 * 1024
    max_inputs: int = 2048


def messages(value: JSON, limits: Limits) -> tuple[Message, ...]:
    items = read.array(value, "messages")
    if not items:
        raise BadCall("Invalid 'messages': the array is empty.", param="messages", code="empty_array")
    if all(simple := [plain(item) for item in items]):
        return tuple(cast(list[Message], simple))
    found = tuple([message(item, f"messages[{index}]", limits) for index, item in enumerate(items)])
    return _with_ids(found) if any(map(_lacks_id, found)) else found


def unheard(value: JSON) -> Iterator[str]:
    """Names of valid messages' fields that local models do not support, so that they are ignored."""
    for item in value:
        yield from (f"messages.{name}" for name in item if name not in MESSAGE)
        for part in item["content"] if type(item.get("content")) is list else ():
            yield from (f"messages.content.{name}" for name in part if name not in PART)
            image = part.get("image_url")
            if type(image) is dict and image.get("detail") not in (None, "auto"):
                yield "messages.image_url.detail"


def _lacks_id(one: Message) -> bool:
    return (one.role == "tool" and not one.tool_call_id) or any(not call.id for call in one.tool_calls)


def plain(item: JSON) -> Message | None:
    """A message with only a role and a text, the most frequent kind, read quickly; None for all others."""
    if type(item) is dict and len(item) == 2 and type(content := item.get("content")) is str:
        role = item.get("role")
        if role == "user" or role == "system" or (role == "assistant" and content):
            return Message(role, content)
    return None


def message(value: JSON, at: str, limits: Limits) -> Message:
    item = read.mapping(value, at)
    role = item.get("role")
    if reader := ROLES.get(role) if type(role) is str else None:
        return reader(item, at, limits)
    read.needed(item, "role", f"{at}.role")
    raise _bad_role(role, at)


def _bad_role(role: JSON, at: str) -> BadCall:
    try:
        read.one_of(role, f"{at}.role", tuple(ROLES))
    except BadCall as error:
        return error
    return read.wrong(f"{at}.role", "a string", role)


def _system(item: Mapping[str, JSON], at: str, limits: Limits) -> Message:
    return Message("system", _words(item, at), name=_name(item, at))


def _user(item: Mapping[str, JSON], at: str, limits: Limits) -> Message:
    content = read.needed(item, "content", f"{at}.content")
    if type(content) is str:
        return Message("user", content, name=_name(item, at))
    texts, images = _parts(content, f"{at}.content", limits)
    return Message("user", texts, images, name=_name(item, at))


def _assistant(item: Mapping[str, JSON], at: str, limits: Limits) -> Message:
    if item.get("audio") is not None:
        raise BadCall(f"'{at}.audio' is not supported.", param=f"{at}.audio", code="unsupported_parameter")
    calls = _tool_calls(item, at)
    content = item.get("content")
    refusal = item.get("refusal")
    if content is None and not calls and refusal is None:
        raise BadCall(
            f"Missing required parameter: '{at}.content'.",
            param=f"{at}.content",
            code="missing_required_parameter",
        )
    thinking = item.get("reasoning_content") or item.get("reasoning")
    words = _words(item, at) if content is not None else ""
    return Message(
        "assistant",
        words or (read.text(refusal, f"{at}.refusal") if refusal is not None else ""),
        thinking=thinking if type(thinking) is str else "",
        tool_calls=calls,
        name=_name(item, at),
    )


def _tool(item: Mapping[str, JSON], at: str, limits: Limits) -> Message:
    wanted = read.filled(read.needed(item, "tool_call_id", f"{at}.tool_call_id"), f"{at}.tool_call_id")
    content = read.needed(item, "content", f"{at}.content")
    if type(content) is str or content == []:
        return Message("tool", content or "", tool_call_id=wanted, name=_name(item, at))
    texts, images = _parts(content, f"{at}.content", limits)
    return Message("tool", texts, images, tool_call_id=wanted, name=_name(item, at))


def _function(item: Mapping[str, JSON], at: str, limits: Limits) -> Message:
    """The deprecated result of a function; `_with_ids` finds the call's id by name."""
    name = read.filled(read.needed(item, "name", f"{at}.name"), f"{at}.name")
    content = item.get("content")
    return Message("tool", "" if content is None else read.text(content, f"{at}.content"), name=name)


ROLES: Mapping[str, Callable[[Mapping[str, JSON], str, Limits], Message]] = {
    "system": _system,
    "developer": _system,
    "user": _user,
    "assistant": _assistant,
    "tool": _tool,
    "function": _function,
}


def _name(item: Mapping[str, JSON], at: str) -> str:
    name = item.get("name")
    return "" if name is None else read.text(name, f"{at}.name")


def _words(item: Mapping[str, JSON], at: str) -> str:
    content = read.needed(item, "content", f"{at}.content")
    if type(content) is str:
        return content
    texts = []
    for index, part in enumerate(read.array(content, f"{at}.content")):
        name = f"{at}.content[{index}]"
        kind = read.one_of(read.mapping(part, name).get("type"), f"{name}.type", ("text", "refusal"))
        texts.append(read.text(read.needed(part, kind, f"{name}.{kind}"), f"{name}.{kind}"))
    return "\n".join(texts)


def _parts(content: JSON, at: str, limits: Limits) -> tuple[str, tuple[Image, ...]]:
    """The text and the images.  Ollama puts text before images, so their order is not kept."""
    texts, images = [], []
    parts = read.array(content, at)
    if not parts:
        raise BadCall(f"Invalid '{at}': the array is empty.", param=at, code="empty_array")
    for index, part in enumerate(parts):
        name = f"{at}[{index}]"
        kind = read.one_of(read.mapping(part, name).get("type"), f"{name}.type", ("text", "image_url"))
        if kind == "text":
            texts.append(read.text(read.needed(part, "text", f"{name}.text"), f"{name}.text"))
        else:
            images.append(image(read.needed(part, "image_url", f"{name}.image_url"), f"{name}.image_url", limits))
    return "\n".join(texts), tuple(images)


def image(value: JSON, at: str, limits: Limits) -> Image:
    if type(value) is dict:
        value, at = read.needed(value, "url", f"{at}.url"), f"{at}.url"
    url = read.filled(value, at)
    if url.startswith(("http://", "https://")):
        return Image("", url)
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        message = f"Invalid '{at}': expected a data: URL with base64, or an http(s) URL."
        raise BadCall(message, param=at, code="invalid_image_url")
    check_image(read.base64_bytes(body, at, limits.max_image_bytes), at)
    return Image(body)


def check_image(picture: bytes, at: str) -> None:
    """Raises BadCall for image formats that Ollama does not support, by the image's first bytes."""
    kind = next((kind for magic, kind in MAGIC if picture.startswith(magic)), "unknown")
    if kind == "webp" and picture[8:12] != b"WEBP":  # audio and video files are RIFF, too
        kind = "unknown"
    if kind not in READABLE:
        found = "a GIF" if kind == "gif" else "none of them"
        message = f"Invalid '{at}': images must be PNG, JPEG or WebP; this is {found}."
        raise BadCall(message, param=at, code="unsupported_image")


def _tool_calls(item: Mapping[str, JSON], at: str) -> tuple[ToolCall, ...]:
    if (legacy := item.get("function_call")) is not None:
        name, arguments = _called(legacy, f"{at}.function_call")
        return (ToolCall("", name, arguments),)
    if (calls := item.get("tool_calls")) is None:
        return ()
    found = enumerate(read.array(calls, f"{at}.tool_calls"))
    return tuple(_tool_call(call, f"{at}.tool_calls[{index}]") for index, call in found)


def _tool_call(value: JSON, at: str) -> ToolCall:
    call = read.mapping(value, at)
    read.one_of(call.get("type", "function"), f"{at}.type", ("function",))
    name, arguments = _called(read.needed(call, "function", f"{at}.function"), f"{at}.function")
    return ToolCall(read.filled(read.needed(call, "id", f"{at}.id"), f"{at}.id"), name, arguments)


def _called(value: JSON, at: str) -> tuple[str, str]:
    function = read.mapping(value, at)
    name = read.filled(read.needed(function, "name", f"{at}.name"), f"{at}.name")
    return name, read.object_text(function.get("arguments", ""), f"{at}.arguments")


def _with_ids(found: Sequence[Message]) -> tuple[Message, ...]:
    """Give deprecated function calls and their results, which have no ids, matching generated ones."""
    made, given = [], {}
    for index, one in enumerate(found):
        if one.tool_calls and not one.tool_calls[0].id:
            call = one.tool_calls[0]
            given[call.name] = f"call_{index}"
            one = replace(one, tool_calls=(replace(call, id=f"call_{index}"),))
        elif one.role == "tool" and not one.tool_call_id:
            one = replace(one, tool_call_id=given.get(one.name, f"call_{index}"))
        made.append(one)
    return tuple(made)


def distinct(found: Mapping[str, Tool]) -> tuple[Tool, ...]:
    """The tools without duplicates.  found: tools by their paths in the request.

    Raises BadCall if two with the same name differ, because a call could mean either.
    """
    named: dict[str, Tool] = {}
    for at, one in found.items():
        if named.setdefault(one.name, one) != one:
            message = f"Invalid '{at}.name': another function is called '{one.name[:80]}', too."
            raise BadCall(message, param=f"{at}.name", code="duplicate_tool")
    return tuple(named.values())


def tools(value: JSON, limits: Limits) -> tuple[Tool, ...]:
    found = {}
    for index, item in enumerate(bounded(value, "tools")):
        at = f"tools[{index}]"
        read.one_of(read.needed(read.mapping(item, at), "type", f"{at}.type"), f"{at}.type", ("function",))
        inner = f"{at}.function"
        found[inner] = function(read.needed(item, "function", inner), inner, limits)
    return distinct(found)


def unheard_of_tools(value: JSON) -> Iterator[str]:
    """Names of valid tools' fields that are ignored."""
    for item in value:
        yield from (f"tools.{name}" for name in item if name not in ("type", "function"))
        yield from (f"tools.function.{name}" for name in item["function"] if name not in FUNCTION)


def bounded(value: JSON, at: str) -> list[JSON]:
    """A list of at most as many functions as OpenAI accepts.  Raises BadCall."""
    items = read.array(value, at)
    if len(items) > MOST_TOOLS:
        message = f"Invalid '{at}': more than {MOST_TOOLS} functions."
        raise BadCall(message, param=at, code="array_above_max_length")
    return items


def function(value: JSON, at: str, limits: Limits) -> Tool:
    item = read.mapping(value, at)
    parameters = item.get("parameters")
    if parameters is not None:
        read.not_deep(read.mapping(parameters, f"{at}.parameters"), f"{at}.parameters", limits.max_depth)
    description, strict = item.get("description"), item.get("strict")
    return Tool(
        read.filled(read.needed(item, "name", f"{at}.name"), f"{at}.name"),
        "" if description is None else read.text(description, f"{at}.description"),
        parameters or {},
        strict is not None and read.flag(strict, f"{at}.strict"),
    )
