"""A cache of parsed request bodies, for repeated requests."""

from __future__ import annotations

from typing import Final, Generic, TypeVar

Read = TypeVar("Read")

LARGEST: Final = 64 * 1024
"""Maximum bytes of a body that is cached: larger ones are rarely repeated, so hashing them would be wasted."""
MOST: Final = 8 * 1024 * 1024
"""Approximate bytes of the whole cache."""
WEIGHT: Final = 6
"""Approximate bytes of memory per byte of a body, including its parsed form."""
OVERHEAD: Final = 2000
SEEN: Final = 8192


class BodyCache(Generic[Read]):
    """Caches parsed bodies from their second occurrence on, so that cache hits need no parsing.

    Many requests share a result, so it must not be changed.  The size is bounded by two generations: when the young one
    is full, it becomes the old one, and entries of the old one that were not used since are dropped.  Of a body that
    occurred once only the hash is kept, so that its parsed form is freed while it is still in the processor's cache.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.young: dict[bytes, Read] = {}
        self.old: dict[bytes, Read] = {}
        self.size = 0
        """Approximate bytes of the young generation."""
        self.seen: set[int] = set()

    def get(self, body: bytes) -> Read | None:
        if len(body) > LARGEST:
            return None
        found = self.young.get(body)
        if found is None and (found := self.old.get(body)) is not None:
            self.keep(body, found)
        return found

    def put(self, body: bytes, read: Read) -> None:
        """Cache a parsed body if it occurred before; otherwise only remember its hash."""
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
