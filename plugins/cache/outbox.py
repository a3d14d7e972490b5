"""A write buffer for answers that go into a store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec import Struct

from plugins.cache import key
from plugins.cache.entry import COMPRESSED, Entry
from proxy.errors import Busy
from proxy.host import Services
from proxy.stores.keyvalue import KeyValue, NewValue, StoreError
from proxy.types import Call

SOON: Final = 0.01
"""Maximum seconds for which an answer waits to be written with others; other processes see it only afterwards."""
TOGETHER: Final = 64
"""Batch size: so many waiting answers are written without further delay."""
MOST: Final = 1024
"""Maximum number of answers waiting or being written; if the store is slower, further ones are not cached."""


class EntryPlace(Struct, frozen=True):
    """Where the answer to a call is cached.

    where: the key.  told: what the key is a digest of.  ttl: seconds.  stamp: the model's, as in the key.
    flight: the name under which it is shared while being generated.
    """

    where: str
    call: Call
    tenant: str
    told: bytes
    ttl: float
    stamp: str
    flight: str

    def label(self, model: str) -> bytes:
        """The entry's label, for searches.  model: the one that answered."""
        return key.label_of(self.call, model, self.tenant, self.told)


@dataclass(slots=True, eq=False)
class Item:
    """An answer to be written.  born: Unix seconds; largest: maximum bytes of an entry."""

    store: KeyValue
    place: EntryPlace
    entry: Entry
    born: float
    largest: int
    failed: Callable[[], None]
    packed: bytes | None = None
    """The packed entry, once it was needed; compressing a long one again for every hit would be expensive."""

    def new(self, now: float) -> NewValue | None:
        """The entry to be written; None if it is too large or has already expired."""
        if (packed := self.packed) is None:
            packed = self.packed = self.entry.pack()
        place = self.place
        left = self.born + place.ttl - now
        if len(packed) > self.largest or left <= 0:
            return None
        model = self.entry.facts.get("model", place.call.model)
        return NewValue(place.where, packed, left, place.label(model))


class Outbox:
    """Writes answers in batches to stores whose calls are awaited; single writes would make a miss a sixth slower.

    Lookups include the answers still held here, so the delay is not visible within the process; if it is killed,
    they are lost.  There is one outbox for all stores, and it survives reloads.
    """

    def __init__(self, services: Services) -> None:
        self.background = services.background
        self.clock = services.clock
        self.held: dict[str, Item] = {}
        """By key: all answers that are not yet in their store."""
        self.waiting: list[Item] = []
        self.timer: asyncio.TimerHandle | None = None
        self.writing: set[asyncio.Task[None]] = set()

    def get(self, store: KeyValue, where: str) -> tuple[Entry, float] | None:
        """An answer waiting for this store and when it was given (Unix seconds); None if too large or expired."""
        item = self.held.get(where)
        if item is None or item.store is not store or item.new(self.clock.time()) is None:
            return None
        return item.entry, item.born

    def put(self, item: Item) -> None:
        if len(self.held) >= MOST:
            item.failed()
            return
        self.held[item.place.where] = item
        self.waiting.append(item)
        if len(self.waiting) >= TOGETHER:
            self.send()
        elif self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(SOON, self.send)

    def send(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        try:
            task = self.background.start(self.write(waiting), "keeping answers")
        except Busy:
            self.over(waiting, failed=True)
            return
        self.writing.add(task)
        task.add_done_callback(self.writing.discard)

    async def write(self, items: Sequence[Item]) -> None:
        try:
            for store in {id(item.store): item.store for item in items}.values():
                mine = [item for item in items if item.store is store]
                try:
                    await store.set(await self.packed(mine))
                except StoreError:  # logged by the store
                    self.over(mine, failed=True)
        finally:
            self.over(items)

    async def packed(self, items: Sequence[Item]) -> list[NewValue]:
        news = []
        for item in items:
            if (new := item.new(self.clock.time())) is None:
                continue
            news.append(new)
            if len(new.value) > COMPRESSED:  # compression blocked the event loop for a while
                await asyncio.sleep(0)
        return news

    def over(self, items: Sequence[Item], failed: bool = False) -> None:
        for item in items:
            if failed:
                item.failed()
            if self.held.get(item.place.where) is item:
                del self.held[item.place.where]

    async def written(self) -> None:
        """Return when every answer put so far is in its store, or writing it has failed."""
        self.send()
        if self.writing:
            await asyncio.wait(set(self.writing))
