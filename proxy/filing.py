"""Files of callers' own: kept by one feature, read by others that know nothing of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from msgspec import Struct


class Filed(Struct, frozen=True):
    """What is known of a file without reading it.

    name: as its owner gave it; nothing is ever opened by it.  expires: microseconds since 1970, from which on it is not
    there; None is never.
    """

    id: str
    name: str
    purpose: str
    bytes: int
    expires: int | None = None


class Keeper(Protocol):
    """Every method sees only what is this caller's, and raises Busy while it cannot tell."""

    async def found(self, caller: str, ids: Collection[str]) -> Mapping[str, Filed]:
        """Those of these files that are there, by id."""

    def pieces(self, caller: str, id: str) -> AsyncIterator[bytes]:
        """The bytes of a file, of which no more than a MiB is in memory.  Raises NotFound, also midway."""

    async def keep(self, caller: str, name: str, purpose: str, pieces: AsyncIterator[bytes], id: str = "") -> Filed:
        """A file that is made for a caller, in pieces of a MiB at most.  It counts as one that was uploaded.

        id: of a file that is made once: if it is there already, it is that one.  "" gives it one of its own.
        Raises BadCall or TooLarge beyond what the caller may have, and leaves nothing then.
        """


Removing: TypeAlias = Callable[[str, str], Awaitable[None]]
"""Is told a caller and the id of a file that is about to go, and awaited before it does."""


class Teller(Protocol):
    async def text(self, name: str, pieces: AsyncIterator[bytes], most: int) -> str:
        """A file as a model is told it.  most: letters that it may have.

        Raises BadCall for what cannot be read, and what reading the pieces raises.
        """


@dataclass(slots=True)
class Cabinet:
    """keeper: None where no feature keeps files.  teller: None where none makes text of them.

    removing: who made something of files that goes with them.
    """

    keeper: Keeper | None = None
    teller: Teller | None = None
    removing: list[Removing] = field(default_factory=list)
