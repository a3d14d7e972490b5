"""Finds the new messages of a call: clients that keep the history themselves resend it with every call."""

from __future__ import annotations

from collections.abc import Sequence

from plugins.conversations.messages import same
from proxy.types import Message


def split_system(messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
    """The leading system messages as one text, None if there are none; and the other messages."""
    index = 0
    while index < len(messages) and messages[index].role == "system":
        index += 1
    head = "\n\n".join(one.text for one in messages[:index])
    return (head if index else None), list(messages[index:])


def answered(turns: Sequence[Message]) -> int:
    """The number of messages up to the last answer, which may be a resent history."""
    return next((at for at in range(len(turns), 0, -1) if turns[at - 1].role == "assistant"), 0)


def new_of(turns: Sequence[Message], stored: Sequence[Message]) -> list[Message]:
    """The messages that are not stored yet.

    The history up to the last answer counts as resent only if it matches the stored messages from the beginning, up
    to the end of the shorter one.  A shortened or changed history counts as new, like few-shot examples.
    """
    history = answered(turns)
    both = min(history, len(stored))
    if both and answered(stored[:both]) and all(map(same, turns[:both], stored[:both])):
        return list(turns[both:])
    return list(turns)
