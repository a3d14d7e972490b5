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

    def holds(self, turns: int, length: float, part: float = 1.0) -> bool:
        """turns: exchanges.  length: letters.  part: of what there is room for."""
        if self.turns is not None and turns > int(self.turns * part):
            return False
        return self.tokens is None or length <= self.tokens * part * self.letters_a_token


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

    outset: letters of what is always told.  Cut so, what is told begins with the same bytes for many turns, which
    upstream need not read again.
    """
    starts, lengths = exchanges(turns), [letters([one.message]) for one in turns]
    length = outset + letters(new)
    if room.holds(len(starts), length + sum(lengths)):
        return 0
    within = bool(new) and new[0].role != "user"  # it goes on with the last exchange
    found = len(turns)
    for count, start in enumerate(reversed(starts[1:]), 1):
        length += sum(lengths[start:found])
        if not room.holds(count, length, 0.5):
            break
        found = start
    return starts[-1] if within and starts and found == len(turns) else found


def kept_last(turns: Sequence[Said], keep: int) -> int:
    """The index of the last `keep` exchanges."""
    starts = exchanges(turns)
    return 0 if keep >= len(starts) else starts[-keep]
