"""Exports a whole conversation as JSON or Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import orjson

from plugins.conversations.conversation import Conversation
from plugins.conversations.messages import StoredMessage, message_as_json
from plugins.conversations.store import Summary
from proxy.types import JSON

NAMES = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool"}


def document(
    talk: Conversation, stored_messages: Sequence[StoredMessage], summaries: Sequence[Summary]
) -> dict[str, JSON]:
    return {
        **talk.as_json(),
        "messages": [{**message_as_json(one), **_itemised(one)} for one in stored_messages],
        "summaries": [summary_as_json(one) for one in summaries],
    }


def _itemised(one: StoredMessage) -> dict[str, JSON]:
    """The items of a message, which also have annotations, logprobs and searches."""
    return {"items": [part for part in orjson.loads(one.items) if part is not None]} if one.items else {}


def summary_as_json(one: Summary) -> dict[str, JSON]:
    return {"text": one.text, "up_to": one.upto, "model": one.model or None, "created_at": one.at // 10**6}


def markdown(talk: Conversation, stored_messages: Sequence[StoredMessage]) -> str:
    return "\n\n".join(_parts(talk, stored_messages)) + "\n"


def _parts(talk: Conversation, stored_messages: Sequence[StoredMessage]) -> Iterator[str]:
    title = " ".join(talk.title.split())
    yield f"# {title or 'Conversation'}"
    facts = [f"`{talk.id}`", day(talk.created), *([talk.model] if talk.model else [])]
    yield " · ".join(facts)
    if talk.system:
        yield f"## System\n\n{talk.system}"
    for one in stored_messages:
        yield f"## {NAMES[one.message.role]}{marked(one)}"
        yield from _said(one)


def _said(one: StoredMessage) -> Iterator[str]:
    if one.message.thinking:
        yield f"<details><summary>Thinking</summary>\n\n{one.message.thinking}\n\n</details>"
    if one.message.text:
        yield one.message.text
    for call in one.message.tool_calls:
        yield f"`{call.name}` was called:\n\n{fenced(call.arguments)}"
    if one.message.images:
        yield f"*({len(one.message.images)} images)*"


def fenced(text: str) -> str:
    """A code block with a fence that is longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}json\n{text}\n{fence}"


def marked(one: StoredMessage) -> str:
    return "" if one.status == "complete" else " (not complete)"


def day(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1e6, UTC).strftime("%Y-%m-%d %H:%M UTC")
