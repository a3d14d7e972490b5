"""What was read of a request's body, for the next one that says the same."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

Read = TypeVar("Read")

LARGEST: Final = 64 * 1024
"""Bytes of a body that is remembered; a larger one is rarely sent twice, and is hashed for nothing."""
MOST: Final = 8 * 1024 * 1024
"""Bytes that everything remembered takes, about."""
WEIGHT: Final = 6
"""Bytes that a byte of a body takes once it was read, about."""
OVERHEAD: Final = 2000
SEEN: Final = 8192


class Memo(Generic[Read]):
    """Remembers what was made of bodies that came more than once, so that those that a cache answers are not read anew.

    What it gives is given to many requests: nobody may change it.  Bounded in two halves: when the younger one is full,
    what was not asked for meanwhile goes.  A body that comes once leaves a number behind and nothing else, so that what
    was read of it is freed while it is in the processor's cache.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.young: dict[bytes, Read] = {}
        self.old: dict[bytes, Read] = {}
        self.size = 0
        """Bytes of the younger half."""
        self.seen: set[int] = set()

    def get(self, body: bytes) -> Read | None:
        if len(body) > LARGEST:
            return None
        found = self.young.get(body)
        if found is None and (found := self.old.get(body)) is not None:
            self.keep(body, found)
        return found

    def put(self, body: bytes, read: Read) -> None:
        """From the second time on it is kept."""
        if len(body) > LARGEST:
            return
        number = hash(body)
        if number in self.seen:
            self.keep(body, read)
            return
        if len(self.seen) >= SEEN:
            self.seen.clear()
        self.seen.add(number)

    def keep(self, body: bytes, read: Read) -> None:
        if self.size >= self.most // 2:
            self.old, self.young, self.size = self.young, {}, 0
        self.young[body] = read
        self.size += WEIGHT * len(body) + OVERHEAD
