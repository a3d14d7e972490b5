"""Decides how much of a conversation is sent to the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plugins.conversations.messages import StoredMessage, letters
from proxy.types import Message


@dataclass(frozen=True, slots=True)
class Room:
    """tokens: maximum of a whole prompt; turns: maximum number of exchanges.  None is unlimited.

    letters_a_token: characters per token, as measured in this conversation.
    """

    tokens: int | None
    turns: int | None
    letters_a_token: float

    def holds(self, turns: int, length: float, part: float = 1.0) -> bool:
        """Whether so much fits.  turns: exchanges.  length: characters.  part: the fraction of the room to be used."""
        if self.turns is not None and turns > int(self.turns * part):
            return False
        return self.tokens is None or length <= self.tokens * part * self.letters_a_token


def exchanges(turns: Sequence[StoredMessage]) -> list[int]:
    """The start indices of exchanges.  Each begins with a user message after a message of another role, so a tool call
    and its result belong to the same exchange."""
    found = []
    for index, one in enumerate(turns):
        if one.message.role == "user" and (not index or turns[index - 1].message.role != "user"):
            found.append(index)
    if turns and (not found or found[0]):
        found.insert(0, 0)
    return found


def kept_from(room: Room, outset: int, turns: Sequence[StoredMessage], new: Sequence[Message]) -> int:
    """The index of the first message to send: 0, or, if they do not all fit, one from which half the room is enough.

    outset: characters that are always sent.  Cutting to half keeps the start of the prompt the same for many turns,
    so that the upstream can use its prompt cache.
    """
    starts, lengths = exchanges(turns), [letters([one.message]) for one in turns]
    length = outset + letters(new)
    if room.holds(len(starts), length + sum(lengths)):
        return 0
    within = bool(new) and new[0].role != "user"  # the new messages continue the last exchange
    found = len(turns)
    for count, start in enumerate(reversed(starts[1:]), 1):
        length += sum(lengths[start:found])
        if not room.holds(count, length, 0.5):
            break
        found = start
    return starts[-1] if within and starts and found == len(turns) else found


def kept_last(turns: Sequence[StoredMessage], keep: int) -> int:
    """The index at which the last `keep` exchanges begin."""
    starts = exchanges(turns)
    return 0 if keep >= len(starts) else starts[-keep]
