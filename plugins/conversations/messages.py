"""Messages as they are stored, compared and returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from proxy.streams import Choice
from proxy.types import JSON, Image, Message, Role, ToolCall, Usage
from proxy.wire.ids import new_id
from proxy.wire.openai_answer import tool_call
from proxy.wire.openai_turns import content_of

Status = Literal["complete", "cut", "left"]
PREFIX: Final = "msg_"


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message with its metadata.  position: counts from 1 in its conversation, 0 before it is stored.

    status: `cut` is an answer whose upstream failed midway, `left` one whose client disconnected.
    finish, model, usage: of an answer.  call: id of the request that added it.  at: Unix microseconds.
    """

    message: Message
    id: str = ""
    position: int = 0
    at: int = 0
    status: Status = "complete"
    finish: str = ""
    model: str = ""
    usage: Usage | None = None
    call: str = ""
    items: str = ""


def answer_of(choice: Choice) -> Message:
    return cleaned(Message("assistant", choice.text, (), choice.thinking, tuple(choice.tool_calls)))


def cleaned(one: Message) -> Message:
    """The message without null characters, which PostgreSQL cannot store."""
    if "\0" not in one.text:
        return one
    return Message(
        one.role, one.text.replace("\0", ""), one.images, one.thinking, one.tool_calls, one.tool_call_id, one.name
    )


def row_of(said: StoredMessage) -> dict[str, Any]:
    """The columns of a message, except its conversation, owner and position."""
    one, usage = said.message, said.usage or Usage(None, None)
    return {
        "id": said.id or new_id(PREFIX),
        "at": said.at,
        "role": one.role,
        "text": one.text,
        "body": body_of(one),
        "items": said.items,
        "status": said.status,
        "finish": said.finish,
        "model": said.model.replace("\0", ""),
        "call": said.call,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def body_of(one: Message) -> str:
    """JSON of everything except role and text; "" if there is nothing else."""
    body: dict[str, JSON] = {}
    if one.images:
        body["images"] = [image.base64 for image in one.images]
    if one.tool_calls:
        body["tool_calls"] = [[call.id, call.name, call.arguments] for call in one.tool_calls]
    for name in ("thinking", "tool_call_id", "name"):
        if value := getattr(one, name):
            body[name] = value
    return orjson.dumps(body).decode() if body else ""


def message_of(row: Mapping[str, Any]) -> Message:
    role: Role = row["role"]
    if not row["body"]:
        return Message(role, row["text"])
    body = orjson.loads(row["body"])
    return Message(
        role,
        row["text"],
        tuple(Image(one) for one in body.get("images", ())),
        body.get("thinking", ""),
        tuple(ToolCall(*one) for one in body.get("tool_calls", ())),
        body.get("tool_call_id", ""),
        body.get("name", ""),
    )


def stored_message_of(row: Mapping[str, Any]) -> StoredMessage:
    counted = (row["prompt_tokens"], row["completion_tokens"])
    return StoredMessage(
        message_of(row),
        row["id"],
        row["position"],
        row["at"],
        row["status"],
        row["finish"],
        row["model"],
        None if counted == (None, None) else Usage(*counted),
        row["call"],
        row["items"],
    )


def same(one: Message, other: Message) -> bool:
    """Whether a resent message is the stored one; thinking is ignored, since few clients send it back."""
    return (
        one.role == other.role
        and one.text == other.text
        and one.images == other.images
        and one.tool_call_id == other.tool_call_id
        and [called(call) for call in one.tool_calls] == [called(call) for call in other.tool_calls]
    )


def called(call: ToolCall) -> tuple[str, str, JSON]:
    """A tool call with parsed arguments, since clients may serialise them with different whitespace."""
    try:
        return call.id, call.name, orjson.loads(call.arguments)
    except orjson.JSONDecodeError:
        return call.id, call.name, call.arguments


def message_as_json(said: StoredMessage) -> dict[str, JSON]:
    """A message in OpenAI's format, with its metadata."""
    one = said.message
    document: dict[str, JSON] = {
        "id": said.id,
        "position": said.position,
        "role": one.role,
        "content": content_of(one) if one.text or not one.tool_calls else None,
    }
    if one.thinking:
        document["reasoning_content"] = one.thinking
    if one.tool_calls:
        document["tool_calls"] = [tool_call(call) for call in one.tool_calls]
    document |= {name: value for name in ("tool_call_id", "name") if (value := getattr(one, name))}
    return document | {"created_at": said.at // 10**6, "status": said.status} | _answered(said)


def _answered(said: StoredMessage) -> dict[str, JSON]:
    told: dict[str, JSON] = {"request_id": said.call} if said.call else {}
    if said.model:
        told |= {"model": said.model, "finish_reason": said.finish or None}
    if said.usage is not None:
        told["usage"] = {
            "prompt_tokens": said.usage.prompt_tokens,
            "completion_tokens": said.usage.completion_tokens,
        }
    return told


def letters(messages: Sequence[Message]) -> int:
    """The approximate length of a prompt in characters; an image counts as `PICTURE`."""
    return sum(
        len(one.text) + len(one.thinking) + PICTURE * len(one.images) + sum(len(c.arguments) for c in one.tool_calls)
        for one in messages
    )


PICTURE: Final = 2000
