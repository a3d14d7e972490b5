"""Answers on their way into a store."""

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
from proxy.stores.keyvalue import KeyValue, New, StoreError
from proxy.types import Call

SOON: Final = 0.01
"""Seconds that an answer may wait for others; for so long no other process finds it in their store."""
TOGETHER: Final = 64
"""Answers that are written at once; as many do not wait."""
MOST: Final = 1024
"""Answers that wait or are being written, at most; a store that is slower than that keeps what it can."""


class Place(Struct, frozen=True):
    """Where the answer to a call is kept: under which key, what that was made from, and for how many seconds.

    stamp: of the model, as the key has it.  flight: under which it is shared while it is under way.
    """

    where: str
    call: Call
    tenant: str
    told: bytes
    ttl: float
    stamp: str
    flight: str

    def label(self, model: str) -> bytes:
        """What the entry can be found by.  model: the one that answered."""
        return key.label_of(self.call, model, self.tenant, self.told)


@dataclass(slots=True, eq=False)
class Item:
    """An answer to a call, and how it shall be kept.  born: Unix seconds; largest: bytes of an entry."""

    store: KeyValue
    place: Place
    entry: Entry
    born: float
    largest: int
    failed: Callable[[], None]
    packed: bytes | None = None
    """The entry, once somebody wanted to know; to compress a long one again for every hit would cost more than it."""

    def new(self, now: float) -> New | None:
        """None for what is too large, or has expired before it could be written."""
        if (packed := self.packed) is None:
            packed = self.packed = self.entry.pack()
        place = self.place
        left = self.born + place.ttl - now
        if len(packed) > self.largest or left <= 0:
            return None
        model = self.entry.facts.get("model", place.call.model)
        return New(place.where, packed, left, place.label(model))


class Outbox:
    """Packs and writes answers together, as they come within a moment, to stores that must be waited for: one at a
    time that costs a miss a sixth more.

    What is in it can be had from it, so that nobody notices; a process that is killed loses what it holds.  It is one
    for all stores, and outlives a reload.
    """

    def __init__(self, services: Services) -> None:
        self.background = services.background
        self.clock = services.clock
        self.held: dict[str, Item] = {}
        """By key: all that is not yet in its store."""
        self.waiting: list[Item] = []
        self.timer: asyncio.TimerHandle | None = None
        self.writing: set[asyncio.Task[None]] = set()

    def get(self, store: KeyValue, where: str) -> tuple[Entry, float] | None:
        """An answer on its way into this store, and when it was given; not what is too large to be kept there."""
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
                except StoreError:  # told by the store
                    self.over(mine, failed=True)
        finally:
            self.over(items)

    async def packed(self, items: Sequence[Item]) -> list[New]:
        news = []
        for item in items:
            if (new := item.new(self.clock.time())) is None:
                continue
            news.append(new)
            if len(new.value) > COMPRESSED:  # which took a while that others wait for
                await asyncio.sleep(0)
        return news

    def over(self, items: Sequence[Item], failed: bool = False) -> None:
        for item in items:
            if failed:
                item.failed()
            if self.held.get(item.place.where) is item:
                del self.held[item.place.where]

    async def written(self) -> None:
        """Return when every answer that was given by now is in its store, or could not be put there."""
        self.send()
        if self.writing:
            await asyncio.wait(set(self.writing))
