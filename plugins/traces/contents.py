"""Prompts and answers as attributes in OpenTelemetry's conventions for generative AI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import orjson

from proxy.asks import JSON, Ask, Chat, Complete, Embed, Message
from proxy.types import Event, Finish, Text, Thinking, ToolCalled

LETTERS: Final = 4096
"""Maximum characters of a text; the rest is cut off."""
MESSAGES: Final = 64
"""Maximum messages of a prompt; the last ones are kept."""
CALLS: Final = 128
"""Maximum tool calls of a message; the first ones are kept."""


def asked(ask: Ask) -> str:
    """The prompt's messages as JSON."""
    if isinstance(ask, Chat):
        turns = [{"role": one.role, "parts": list(parts(one))} for one in ask.messages[-MESSAGES:]]
    else:
        turns = [{"role": "user", "parts": [part("text", text)]} for text in texts(ask)[:MESSAGES]]
    return orjson.dumps(turns).decode()


def texts(ask: Complete | Embed) -> tuple[str, ...]:
    return ask.prompts if isinstance(ask, Complete) else ask.inputs


def parts(message: Message) -> Iterator[JSON]:
    if message.thinking:
        yield part("reasoning", message.thinking)
    if message.role == "tool":
        yield {"type": "tool_call_response", "id": message.tool_call_id, "response": message.text[:LETTERS]}
    elif message.text:
        yield part("text", message.text)
    for one in message.tool_calls[:CALLS]:
        yield {"type": "tool_call", "id": one.id, "name": one.name, "arguments": one.arguments[:LETTERS]}


def part(kind: str, text: str) -> JSON:
    return {"type": kind, "content": text[:LETTERS]}


class Answer:
    """Collects the events of an answer, by choice; each text is cut after LETTERS characters."""

    def __init__(self) -> None:
        self.choices: dict[int, dict[str, str]] = {}
        self.calls: dict[int, list[JSON]] = {}
        self.reasons: dict[int, str] = {}

    def add(self, event: Event) -> None:
        if isinstance(event, Text | Thinking):
            said = self.choices.setdefault(event.choice, {})
            kind = "text" if isinstance(event, Text) else "reasoning"
            if len(before := said.get(kind, "")) < LETTERS:
                said[kind] = (before + event.text)[:LETTERS]
        elif isinstance(event, ToolCalled):
            calls = self.calls.setdefault(event.choice, [])
            if len(calls) < CALLS:
                made = {"id": event.id, "name": event.name, "arguments": event.arguments[:LETTERS]}
                calls.append({"type": "tool_call", **made})
        elif isinstance(event, Finish):
            self.reasons[event.choice] = event.reason

    def as_json(self) -> str:
        """The answer's messages as JSON."""
        return orjson.dumps(list(self.turns(sorted({*self.choices, *self.calls, *self.reasons})))).decode()

    def turns(self, choices: Iterable[int]) -> Iterator[JSON]:
        for choice in choices:
            said = [part(kind, text) for kind, text in self.choices.get(choice, {}).items()]
            reason = self.reasons.get(choice, "")
            yield {"role": "assistant", "parts": said + self.calls.get(choice, []), "finish_reason": reason}
