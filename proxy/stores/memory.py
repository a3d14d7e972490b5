"""A key-value store in this process: least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Final

from proxy.clock import Clock
from proxy.stores.keyvalue import Entry, Kept, New

OVERHEAD: Final = 300
"""Bytes that an entry takes besides its key, label and value, about."""


class Memory:
    """most: bytes of everything together."""

    def __init__(self, most: int, clock: Clock) -> None:
        self.most = most
        self.clock = clock
        self.kept: OrderedDict[str, tuple[Kept, Entry]] = OrderedDict()
        self.size = 0

    async def get(self, keys: Sequence[str]) -> list[Kept | None]:
        now = self.clock.time()
        return [self.one(key, now) for key in keys]

    def one(self, key: str, now: float) -> Kept | None:
        found = self.kept.get(key)
        if found is None:
            return None
        if found[1].expires <= now:
            self.drop(key)
            return None
        self.kept.move_to_end(key)
        return found[0]

    async def set(self, news: Sequence[New]) -> None:
        now = self.clock.time()
        for new in news:
            self.drop(new.key)
            size = OVERHEAD + len(new.key) + len(new.label) + len(new.value)
            if size <= self.most:
                entry = Entry(new.key, new.label, size, now, now + new.ttl)
                self.kept[new.key] = (Kept(new.value, now), entry)
                self.size += size
        while self.size > self.most:
            self.drop(next(iter(self.kept)))

    def drop(self, key: str) -> bool:
        if (found := self.kept.pop(key, None)) is None:
            return False
        self.size -= found[1].size
        return True

    async def delete(self, keys: Sequence[str]) -> int:
        return sum(map(self.drop, keys))

    async def entries(self, prefix: str = "") -> AsyncIterator[Entry]:
        now = self.clock.time()
        for key, (_, entry) in list(self.kept.items()):
            if key.startswith(prefix) and entry.expires > now:
                yield entry

    async def expire(self) -> int:
        now = self.clock.time()
        return await self.delete([key for key, (_, entry) in self.kept.items() if entry.expires <= now])

    async def aclose(self) -> None:
        self.kept.clear()
        self.size = 0
