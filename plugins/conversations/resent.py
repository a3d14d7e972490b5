"""What of a call's messages is new: clients that keep a history themselves send it again with every call."""

from __future__ import annotations

from collections.abc import Sequence

from plugins.conversations.messages import same
from proxy.types import Message


def apart(messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
    """What the model is told at the outset, if anything, and the turns."""
    index = 0
    while index < len(messages) and messages[index].role == "system":
        index += 1
    head = "\n\n".join(one.text for one in messages[:index])
    return (head if index else None), list(messages[index:])


def answered(turns: Sequence[Message]) -> int:
    """How many turns there are up to the last answer: those that may be a history."""
    return next((at for at in range(len(turns), 0, -1) if turns[at - 1].role == "assistant"), 0)


def new_of(turns: Sequence[Message], stored: Sequence[Message]) -> list[Message]:
    """The turns that are not stored yet.

    The history in them, up to the last answer, counts as resent only where all of it is what is stored from the
    beginning on, as far as both go; a history that was shortened or changed is new, like few-shot examples.
    """
    history = answered(turns)
    both = min(history, len(stored))
    if both and answered(stored[:both]) and all(map(same, turns[:both], stored[:both])):
        return list(turns[both:])
    return list(turns)
