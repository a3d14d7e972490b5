"""How much of a conversation a model is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plugins.conversations.messages import Said, letters
from proxy.types import Message


@dataclass(frozen=True, slots=True)
class Room:
    """tokens: of a whole prompt at most; turns: exchanges at most.  None is no bound.

    letters_a_token: as measured in this conversation.
    """

    tokens: int | None
    turns: int | None
    letters_a_token: float

    def holds(self, outset: int, turns: Sequence[Said], new: Sequence[Message], part: float = 1.0) -> bool:
        """part: of what there is room for.  outset: letters of what is always told."""
        if self.turns is not None and len(exchanges(turns)) > int(self.turns * part):
            return False
        if self.tokens is None:
            return True
        whole = outset + letters([one.message for one in turns]) + letters(new)
        return whole <= self.tokens * part * self.letters_a_token


def exchanges(turns: Sequence[Said]) -> list[int]:
    """Where each begins: at a user's message after somebody else's.  A call of a tool and its answer are in one."""
    found = []
    for index, one in enumerate(turns):
        if one.message.role == "user" and (not index or turns[index - 1].message.role != "user"):
            found.append(index)
    if turns and (not found or found[0]):
        found.insert(0, 0)
    return found


def kept_from(room: Room, outset: int, turns: Sequence[Said], new: Sequence[Message]) -> int:
    """The index from which on turns are told: 0, or, once there is no room, where half of it is enough.

    Cut so, what is told begins with the same bytes for many turns, and upstream need not read it again.
    """
    if room.holds(outset, turns, new):
        return 0
    starts = exchanges(turns)
    for start in starts[1:]:
        if room.holds(outset, turns[start:], new, 0.5):
            return start
    within = bool(starts) and bool(new) and new[0].role != "user"  # it goes on with the last exchange
    return starts[-1] if within else len(turns)


def kept_last(turns: Sequence[Said], keep: int) -> int:
    """The index of the last `keep` exchanges."""
    starts = exchanges(turns)
    return 0 if keep >= len(starts) else starts[-keep]
