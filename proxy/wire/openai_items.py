"""Items of OpenAI's responses and conversations <-> our messages.  `openai_items_in` reads those of requests.

Source: OpenAI's API reference, "Responses" and "Conversations".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from proxy.errors import BadCall
from proxy.types import JSON, Image, Message, ToolCall
from proxy.wire import openai_namespaces as namespaces
from proxy.wire.ids import new_id
from proxy.wire.openai_turns import data_url

Item: TypeAlias = dict[str, JSON]
"""A complete item, as it is listed to clients: with `id`, `type` and `status`, and with its content in parts."""

Include = Literal[
    "web_search_call.action.sources",
    "web_search_call.results",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
]
"""What clients may ask to include in items.  Only pictures, logprobs and results of file searches are stored."""
RESPONSE: Final = "resp_"
"""The prefix of a response's id."""
REFERENCE: Final = "item_reference"
"""The type of an item that only refers to another one, by its id."""
PLACED: Final = re.compile(r"[a-z]{2,4}_([0-9a-f]{32})[0-9a-f]{2,4}")
PARTS: Final = {"message": "content", "function_call_output": "output"}
"""The field with an item's parts, which may have pictures, by the item's type."""
TEXTS: Final = {"input_text": "text", "output_text": "text", "refusal": "refusal"}
"""The field with a part's text, by the part's type."""


def placed(response: str, prefix: str, index: int, digits: int = 2) -> str:
    """The id of a response's item, which contains the response's id.  digits: 2 for output items, 4 for input items."""
    return f"{prefix}{response.removeprefix(RESPONSE)}{index:0{digits}x}"


def response_of(id: str) -> str | None:
    """The id of the response that an item's id contains; None if it contains none."""
    found = PLACED.fullmatch(id)
    return None if found is None else RESPONSE + found[1]


# --- complete items -> messages -------------------------------------------------------------------------


@dataclass(slots=True)
class Turn:
    """One turn of the model: successive items become one assistant message."""

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
    """The messages that complete items represent.  Further items at the end do not change the earlier messages, unless
    they continue a turn of the model."""
    return tuple(_messages(whole))


def _messages(whole: Iterable[Item]) -> Iterator[Message]:
    turn = Turn()
    for one in whole:
        kind = one["type"]
        if kind == "file_search_call":  # results are not repeated: the new request searches again if it has the tool
            continue
        if kind == "function_call":
            name = namespaces.joined(one.get("namespace"), one["name"])
            turn.calls.append(ToolCall(one["call_id"], name, one["arguments"]))
        elif kind == "reasoning":
            if turn.begun:
                yield from turn.end()
                turn = Turn()
            turn.thinking += [part["text"] for part in one["content"] or one["summary"]]
        elif one.get("role") == "assistant":
            # It may also follow calls: in a stream a message is only done when nothing can be added to it any more, and
            # some clients send items back in the order in which they were done.
            if turn.text is not None:
                yield from turn.end()
                turn = Turn()
            turn.text = words(one["content"])
        else:
            yield from turn.end()
            turn = Turn()
            yield _heard(one)
    yield from turn.end()


def _heard(one: Item) -> Message:
    """An item that is input for the model, as a message."""
    parts = content_parts(one)
    pictures = tuple(picture(part["image_url"]) for part in parts if part["type"] == "input_image")
    if one["type"] == "function_call_output":
        text = one["output"] if type(one["output"]) is str else words(parts)
        return Message("tool", text, pictures, tool_call_id=one["call_id"])
    return Message("user" if one["role"] == "user" else "system", words(parts), pictures)


def content_parts(one: Item) -> list[Item]:
    """The parts of a message or of a function's output; an empty list if it has none."""
    parts: JSON = one.get(PARTS.get(one["type"], ""))
    return parts if type(parts) is list else []


def check_outputs(given: Iterable[Item], told: Sequence[Message]) -> None:
    """Raises BadCall for the output of a function call that the model never made.

    given: the request's items.  told: all messages for its model, of which the oldest may be left out.
    """
    outputs = {one["call_id"] for one in given if one["type"] == "function_call_output"}
    if not outputs:
        return
    unasked = outputs.difference(call.id for one in told for call in one.tool_calls)
    for one in told if unasked else ():
        if one.role == "tool" and one.tool_call_id in unasked:
            message = f"No tool call found for function call output with call_id {one.tool_call_id[:100]}."
            raise BadCall(message, param="input")


def words(parts: Iterable[Item]) -> str:
    return "\n".join(part[TEXTS[part["type"]]] for part in parts if part["type"] in TEXTS)


def picture(url: str) -> Image:
    """The picture of a URL that was already checked."""
    return Image("", url) if url.startswith(("http://", "https://")) else Image(url.partition(",")[2])


def with_pictures(whole: Sequence[Item], linked: Mapping[str, Image]) -> list[Item]:
    """The items with links replaced by pictures, so that they stay readable.  linked: pictures by URL."""
    return [_pictured(one, linked) if content_parts(one) else one for one in whole]


def _pictured(one: Item, linked: Mapping[str, Image]) -> Item:
    parts = [
        {**part, "image_url": data_url(linked[part["image_url"]])} if part.get("image_url") in linked else part
        for part in content_parts(one)
    ]
    return {**one, PARTS[one["type"]]: parts}


# --- messages -> complete items -------------------------------------------------------------------------


def said(role: str, text: str) -> Item:
    """A text as a part of a message's content, in the form for this role."""
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}


def items_of(message: Message, made: Callable[[str], str] = new_id) -> list[Item]:
    """The items that represent a message.  made: makes an id with a prefix."""
    if message.role == "tool":
        output = _heard_parts(message) if message.images else message.text
        return [
            {"id": made("fco_"), "type": "function_call_output", "call_id": message.tool_call_id,
             "output": output, "status": "completed"}
        ]  # fmt: skip
    if message.role != "assistant":
        return [_input_item(message, made)]
    found = [reasoning(made("rs_"), message.thinking)] if message.thinking else []
    if message.text or not (message.thinking or message.tool_calls):
        found.append(spoken(made("msg_"), message.text))
    return found + [called(made("fc_"), call) for call in message.tool_calls]


def _input_item(message: Message, made: Callable[[str], str]) -> Item:
    return {
        "id": made("msg_"), "type": "message", "role": message.role, "content": _heard_parts(message),
        "status": "completed",
    }  # fmt: skip


def _heard_parts(message: Message) -> list[Item]:
    pictures = [
        {"type": "input_image", "image_url": one.url or data_url(one), "detail": "auto", "file_id": None}
        for one in message.images
    ]
    texts = [said(message.role, message.text)] if message.text or not pictures else []
    return [*texts, *pictures]


def spoken(
    id: str, text: str, status: str = "completed", logprobs: Sequence[JSON] = (), annotations: Sequence[JSON] = ()
) -> Item:
    """The model's text as an item."""
    part = {**said("assistant", text), "logprobs": list(logprobs), "annotations": list(annotations)}
    return {"id": id, "type": "message", "status": status, "role": "assistant", "content": [part]}


def reasoning(id: str, text: str, summed: bool = False, status: str = "completed") -> Item:
    """The model's reasoning as an item.  summed: whether it is given as a summary."""
    summary = [{"type": "summary_text", "text": text}] if summed else []
    content = [] if summed else [{"type": "reasoning_text", "text": text}]
    return {"id": id, "type": "reasoning", "summary": summary, "content": content, "encrypted_content": None,
            "status": status}  # fmt: skip


def called(id: str, call: ToolCall, status: str = "completed", namespace: str = "") -> Item:
    spaced = {"namespace": namespace} if namespace else {}
    return {
        "id": id, "type": "function_call", "status": status, "call_id": call.id, "name": call.name, **spaced,
        "arguments": call.arguments,
    }  # fmt: skip
