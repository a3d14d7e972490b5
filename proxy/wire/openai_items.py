"""Items of OpenAI's responses and conversations <-> our messages.

Source: OpenAI's API reference, "Responses" and "Conversations".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from proxy.errors import BadCall
from proxy.types import JSON, Image, Message, ToolCall
from proxy.wire import openai_messages, read
from proxy.wire.ids import new_id
from proxy.wire.openai_messages import Limits
from proxy.wire.openai_turns import data_url

Item: TypeAlias = dict[str, JSON]
"""A whole item, as it is listed again: with `id`, `type` and `status`, and content in parts."""

MOST: Final = 10_000
"""Items of one request."""
SANE: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
PREFIXES: Final = {"message": "msg_", "function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}
ROLES: Final = ("user", "assistant", "system", "developer")
TEXTS: Final = {"input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Where the words of a part are, by its type."""
STATUSES: Final = ("completed", "incomplete", "in_progress")


# --- a request's items -> whole items -------------------------------------------------------------------


def items(value: JSON, at: str, limits: Limits) -> list[Item]:
    """What a request gives as items, checked and made whole; a text is one message of the user's.

    An item that comes without an id, or with one that another has, gets a new one.  Raises BadCall naming the first
    field that is wrong or not supported.
    """
    if type(value) is str:
        value = [{"role": "user", "content": read.filled(value, at)}]
    given = read.array(value, at)
    if len(given) > MOST:
        raise BadCall(f"Invalid '{at}': more than {MOST} items.", param=at, code="array_above_max_length")
    made = [item(one, f"{at}[{index}]", limits) for index, one in enumerate(given)]
    return distinct(made)


def distinct(made: list[Item]) -> list[Item]:
    """No two items with one id: a list is paged by them."""
    seen: set[str] = set()
    for one in made:
        if one["id"] in seen:
            one["id"] = new_id(PREFIXES[one["type"]])
        seen.add(one["id"])
    return made


def item(value: JSON, at: str, limits: Limits) -> Item:
    given = read.mapping(value, at)
    kind = _kind(given, at)
    id, told = _id(given.get("id"), kind, at), READERS[kind](given, at, limits)
    return {"id": id, "type": kind, **told, "status": _status(given, at)}


def _kind(given: Item, at: str) -> str:
    kind: JSON = given.get("type")
    if kind is None:
        kind = "message" if "role" in given else "item_reference" if set(given) == {"id"} else None
    kind = read.text(read.needed({"type": kind}, "type", f"{at}.type"), f"{at}.type")
    if kind == "item_reference":
        message = f"'{at}' refers to an item; send the item itself, or name its response as 'previous_response_id'."
        raise BadCall(message, param=at, code="unsupported_item")
    if kind not in READERS:
        message = f"Items of type '{kind[:80]}' are not supported; those that are: {', '.join(READERS)}."
        raise BadCall(message, param=f"{at}.type", code="unsupported_item")
    return str(kind)


def _id(value: JSON, kind: str, at: str) -> str:
    given = "" if value is None else read.text(value, f"{at}.id")
    return given if SANE.fullmatch(given) else new_id(PREFIXES[kind])


def _status(given: Item, at: str) -> str:
    status = given.get("status")
    return "completed" if status is None else read.one_of(status, f"{at}.status", STATUSES)


def _message(given: Item, at: str, limits: Limits) -> Item:
    role = read.one_of(read.needed(given, "role", f"{at}.role"), f"{at}.role", ROLES)
    content = read.needed(given, "content", f"{at}.content")
    if type(content) is str:
        return {"role": role, "content": [said(role, content)]}
    parts = read.array(content, f"{at}.content")
    if not parts and role != "assistant":
        raise BadCall(f"Invalid '{at}.content': the array is empty.", param=f"{at}.content", code="empty_array")
    made = [_part(one, f"{at}.content[{index}]", role, limits) for index, one in enumerate(parts)]
    return {"role": role, "content": made}


def said(role: str, text: str) -> Item:
    """A text as a part of the content of this role."""
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


def _part(value: JSON, at: str, role: str, limits: Limits) -> Item:
    given = read.mapping(value, at)
    kinds = ("input_text", "output_text", "text", "refusal" if role == "assistant" else "input_image")
    kind = read.one_of(given.get("type"), f"{at}.type", kinds)
    if kind == "refusal":
        return {"type": kind, "refusal": read.text(read.needed(given, kind, f"{at}.{kind}"), f"{at}.{kind}")}
    if kind == "input_image":
        return _image(given, at, role, limits)
    return said(role, read.text(read.needed(given, "text", f"{at}.text"), f"{at}.text"))


def _image(given: Item, at: str, role: str, limits: Limits) -> Item:
    if role != "user":
        raise BadCall(f"Invalid '{at}': images are a user's to send.", param=at, code="invalid_value")
    if given.get("file_id") is not None:
        message = f"'{at}.file_id' is not supported: no files are kept here; send 'image_url'."
        raise BadCall(message, param=f"{at}.file_id", code="unsupported_parameter")
    url = read.text(read.needed(given, "image_url", f"{at}.image_url"), f"{at}.image_url")
    openai_messages.image(url, f"{at}.image_url", limits)
    return {"type": "input_image", "image_url": url, "detail": _detail(given, at), "file_id": None}


def _detail(given: Item, at: str) -> str:
    detail = given.get("detail")
    return "auto" if detail is None else read.one_of(detail, f"{at}.detail", ("auto", "low", "high", "original"))


def _function_call(given: Item, at: str, limits: Limits) -> Item:
    return {
        "call_id": _needed(given, "call_id", at),
        "name": _needed(given, "name", at),
        "arguments": read.object_text(read.needed(given, "arguments", f"{at}.arguments"), f"{at}.arguments"),
    }


def _function_output(given: Item, at: str, limits: Limits) -> Item:
    output = read.needed(given, "output", f"{at}.output")
    if type(output) is not str:
        parts = enumerate(read.array(output, f"{at}.output"))
        output = [_output_part(one, f"{at}.output[{index}]") for index, one in parts]
    return {"call_id": _needed(given, "call_id", at), "output": output}


def _output_part(value: JSON, at: str) -> Item:
    given = read.mapping(value, at)
    read.one_of(given.get("type"), f"{at}.type", ("input_text", "output_text", "text"))
    return said("tool", read.text(read.needed(given, "text", f"{at}.text"), f"{at}.text"))


def _reasoning(given: Item, at: str, limits: Limits) -> Item:
    """What other servers have encrypted is not read."""
    made = {
        name: [
            {"type": kind, "text": _needed(read.mapping(one, f"{at}.{name}"), "text", f"{at}.{name}", empty=True)}
            for one in read.array(given.get(name) or [], f"{at}.{name}")
        ]
        for name, kind in (("summary", "summary_text"), ("content", "reasoning_text"))
    }
    return {**made, "encrypted_content": None}


def _needed(given: Item, name: str, at: str, empty: bool = False) -> str:
    value = read.needed(given, name, f"{at}.{name}")
    return read.text(value, f"{at}.{name}") if empty else read.filled(value, f"{at}.{name}")


READERS: Final[Mapping[str, Callable[[Item, str, Limits], Item]]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_output,
    "reasoning": _reasoning,
}


# --- whole items -> messages ----------------------------------------------------------------------------


@dataclass(slots=True)
class Turn:
    """What the model said at once: items that follow each other are one message of the assistant's."""

    thinking: list[str] = field(default_factory=list)
    text: str | None = None
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def begun(self) -> bool:
        return self.text is not None or bool(self.calls)

    def end(self) -> Iterator[Message]:
        if self.begun or self.thinking:
            text, thinking = self.text or "", "\n".join(self.thinking)
            yield Message("assistant", text, thinking=thinking, tool_calls=tuple(self.calls))


def messages(whole: Iterable[Item]) -> tuple[Message, ...]:
    """The messages that whole items stand for.  More items at the end do not change what was before them, unless both
    are one turn of the model's."""
    return tuple(_messages(whole))


def _messages(whole: Iterable[Item]) -> Iterator[Message]:
    turn = Turn()
    for one in whole:
        kind = one["type"]
        if kind == "function_call":
            turn.calls.append(ToolCall(one["call_id"], one["name"], one["arguments"]))
        elif kind == "reasoning" or one.get("role") == "assistant":
            if turn.begun:
                yield from turn.end()
                turn = Turn()
            if kind == "reasoning":
                turn.thinking += [part["text"] for part in one["content"] or one["summary"]]
            else:
                turn.text = words(one["content"])
        else:
            yield from turn.end()
            turn = Turn()
            yield _heard(one)
    yield from turn.end()


def _heard(one: Item) -> Message:
    """What the model is told by others."""
    if one["type"] == "function_call_output":
        output = one["output"]
        return Message("tool", output if type(output) is str else words(output), tool_call_id=one["call_id"])
    pictures = tuple(picture(part["image_url"]) for part in one["content"] if part["type"] == "input_image")
    return Message("user" if one["role"] == "user" else "system", words(one["content"]), pictures)


def words(parts: Iterable[Item]) -> str:
    return "\n".join(part[TEXTS[part["type"]]] for part in parts if part["type"] in TEXTS)


def picture(url: str) -> Image:
    """Of a URL that was checked."""
    return Image("", url) if url.startswith(("http://", "https://")) else Image(url.partition(",")[2])


def with_pictures(whole: Sequence[Item], linked: Mapping[str, Image]) -> list[Item]:
    """The items with pictures in place of links, so that they can be read again.  linked: by URL."""
    return [_pictured(one, linked) if one["type"] == "message" else one for one in whole]


def _pictured(one: Item, linked: Mapping[str, Image]) -> Item:
    parts = [
        {**part, "image_url": data_url(linked[part["image_url"]])} if part.get("image_url") in linked else part
        for part in one["content"]
    ]
    return {**one, "content": parts}


# --- messages -> whole items ----------------------------------------------------------------------------


def items_of(message: Message, made: Callable[[str], str] = new_id) -> list[Item]:
    """The items that say what a message says.  made: gives an id that begins with this prefix."""
    if message.role == "tool":
        return [
            {"id": made("fco_"), "type": "function_call_output", "call_id": message.tool_call_id,
             "output": message.text, "status": "completed"}
        ]  # fmt: skip
    if message.role != "assistant":
        return [_told(message, made)]
    found = [reasoning(made("rs_"), message.thinking)] if message.thinking else []
    if message.text or not (message.thinking or message.tool_calls):
        found.append(spoken(made("msg_"), message.text))
    return found + [called(made("fc_"), call) for call in message.tool_calls]


def _told(message: Message, made: Callable[[str], str]) -> Item:
    pictures = [
        {"type": "input_image", "image_url": one.url or data_url(one), "detail": "auto", "file_id": None}
        for one in message.images
    ]
    parts = [said(message.role, message.text)] if message.text or not pictures else []
    return {
        "id": made("msg_"), "type": "message", "role": message.role, "content": [*parts, *pictures],
        "status": "completed",
    }  # fmt: skip


def spoken(id: str, text: str, status: str = "completed", logprobs: Sequence[JSON] = ()) -> Item:
    """What the model said as an item."""
    part = {**said("assistant", text), "logprobs": list(logprobs)}
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": [part]}


def reasoning(id: str, text: str, summed: bool = False, status: str = "completed") -> Item:
    """What the model thought as an item.  summed: as a summary, where that is asked for."""
    summary = [{"type": "summary_text", "text": text}] if summed else []
    content = [] if summed else [{"type": "reasoning_text", "text": text}]
    return {"id": id, "type": "reasoning", "summary": summary, "content": content, "encrypted_content": None,
            "status": status}  # fmt: skip


def called(id: str, call: ToolCall, status: str = "completed") -> Item:
    return {
        "id": id, "type": "function_call", "status": status, "call_id": call.id, "name": call.name,
        "arguments": call.arguments,
    }  # fmt: skip
