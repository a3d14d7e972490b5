"""A key-value store in this process's memory, with least-recently-used eviction."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Final

from proxy.clock import Clock
from proxy.stores.keyvalue import Entry, NewValue, StoredValue

OVERHEAD: Final = 300
"""Approximate bytes of an entry besides its key, label and value."""


Held = tuple[bytes, bytes, int, float, float]
"""Value, label, size, born, expires.  There may be hundreds of thousands; the garbage collector does not track tuples
that contain only such values."""


class Memory:
    """most: maximum bytes of all entries together."""

    def __init__(self, most: int, clock: Clock) -> None:
        self.most = most
        self.clock = clock
        self.kept: OrderedDict[str, Held] = OrderedDict()
        self.size = 0

    async def get(self, keys: Sequence[str]) -> list[StoredValue | None]:
        return list(map(self.look, keys))

    def look(self, key: str) -> StoredValue | None:
        found = self.kept.get(key)
        if found is None:
            return None
        value, _, _, born, expires = found
        if expires <= self.clock.time():
            self.drop(key)
            return None
        self.kept.move_to_end(key)
        return StoredValue(value, born)

    async def set(self, news: Sequence[NewValue]) -> None:
        for new in news:
            self.put(new)

    def put(self, new: NewValue) -> None:
        key, now = new.key, self.clock.time()
        if key in self.kept:
            self.drop(key)
        size = OVERHEAD + len(key) + len(new.label) + len(new.value)
        if size <= self.most:
            self.kept[key] = (new.value, new.label, size, now, now + new.ttl)
            self.size += size
        while self.size > self.most:
            self.size -= self.kept.popitem(last=False)[1][2]

    def drop(self, key: str) -> bool:
        if (found := self.kept.pop(key, None)) is None:
            return False
        self.size -= found[2]
        return True

    async def delete(self, keys: Sequence[str]) -> int:
        return sum(map(self.drop, keys))

    async def entries(self, prefix: str = "") -> AsyncIterator[Entry]:
        now = self.clock.time()
        for key, (_, label, size, born, expires) in list(self.kept.items()):
            if key.startswith(prefix) and expires > now:
                yield Entry(key, label, size, born, expires)

    async def expire(self) -> int:
        now = self.clock.time()
        return await self.delete([key for key, held in self.kept.items() if held[4] <= now])

    async def aclose(self) -> None:
        self.kept.clear()
        self.size = 0
