"""Estimates of how many tokens a prompt has, if the upstream did not count them."""

from __future__ import annotations

from typing import Final

import orjson

from proxy.asks import Ask, Chat, Complete, Embed, Message
from proxy.types import JSON

LETTERS: Final = 4
"""Characters per token, approximately."""
PICTURE: Final = 500
"""Tokens per picture, approximately."""


def letters(ask: Ask) -> int:
    """Approximate number of characters that the model reads for a request, functions and schemas included."""
    if isinstance(ask, Chat):
        said = sum(_said(message) for message in ask.messages)
        return said + letters_beside(ask)
    if isinstance(ask, Complete):
        beside = len(ask.system) + len(ask.suffix) + LETTERS * PICTURE * len(ask.images)
        return sum(len(prompt) + beside for prompt in ask.prompts)
    if isinstance(ask, Embed):
        return sum(map(len, ask.inputs))
    return 0


def _said(message: Message) -> int:
    said = len(message.text) + LETTERS * PICTURE * len(message.images)
    if message.tool_calls:
        said += sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return said


def letters_beside(chat: Chat) -> int:
    """Characters of what the model reads beside the messages: functions, and the schema of the answer."""
    if not chat.tools and chat.format is None:  # most chats
        return 0
    shapes: list[JSON] = [[one.name, one.description, one.parameters] for one in chat.tools]
    if chat.format is not None and chat.format.schema:
        shapes.append(chat.format.schema)
    return sum(len(orjson.dumps(one, default=dict)) for one in shapes)


def guess(guessed: list[str], name: str, about: float) -> int:
    """A whole number near `about`; the name of what it estimates is appended to `guessed`."""
    guessed.append(name)
    return max(1, round(about)) if about else 0
