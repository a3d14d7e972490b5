"""Entries waiting to be written to a store: readable meanwhile, bounded, written in batches, and not lost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from plugins.cache import outbox
from plugins.cache.entry import Entry
from plugins.cache.outbox import EntryPlace, Item, Outbox
from proxy.clock import Clock
from proxy.server import services as lent
from proxy.stores.keyvalue import NewValue, StoreError
from proxy.stores.memory import Memory
from proxy.types import Call, Chat, Finish, Message, Text
from proxy.upstreams.demo import Simulator, running
from tests.conftest import Start
from tests.plugins.cache.test_cache import CACHE, outcomes


class Store(Memory):
    """Writes once `may` is set, or fails."""

    def __init__(self) -> None:
        super().__init__(10_000_000, Clock())
        self.may = asyncio.Event()
        self.sets: list[int] = []
        self.fails = False

    async def set(self, news: Sequence[NewValue]) -> None:
        await self.may.wait()
        self.sets.append(len(news))
        if self.fails:
            raise StoreError("no")
        await super().set(news)


class Failures(list[str]):
    """The keys of entries that could not be written."""


def item(
    store: Store, number: int, failures: Failures, ttl: float = 60, largest: int = 10_000, text: str = "a"
) -> Item:
    where, call = f"k{number}", Call("id", "chat", "m", Chat((Message("user", "hi"),)))
    answer = Entry([Text(text), Finish("stop")], {}, 1.0)
    born = store.clock.time()
    return Item(
        store, EntryPlace(where, call, "", b"[]", ttl, "", where), answer, born, largest, lambda: failures.append(where)
    )


async def test_a_pending_entry_is_readable_and_then_in_the_store() -> None:
    async with lent() as services:
        box, store, failures = Outbox(services), Store(), Failures()
        box.put(item(store, 1, failures))
        writing = asyncio.ensure_future(box.written())
        await asyncio.sleep(0)
        assert box.get(store, "k1") is not None and box.get(Store(), "k1") is None
        store.may.set()
        await writing
        assert box.get(store, "k1") is None and (await store.get(["k1"]))[0] is not None
        assert box.held == {} and failures == []


async def test_an_answer_is_packed_once_however_often_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    pack, packed = Entry.pack, list[Entry]()

    def counted(entry: Entry) -> bytes:
        packed.append(entry)
        return pack(entry)

    monkeypatch.setattr(Entry, "pack", counted)
    async with lent() as services:
        box, store, failures = Outbox(services), Store(), Failures()
        store.may.set()
        box.put(item(store, 1, failures))
        assert [box.get(store, "k1") is not None for _ in range(5)] == [True] * 5
        await box.written()
        assert len(packed) == 1 and len(store.kept) == 1


async def test_many_entries_are_written_in_batches_and_few_soon() -> None:
    async with lent() as services:
        box, store, failures = Outbox(services), Store(), Failures()
        store.may.set()
        for number in range(outbox.TOGETHER + 1):
            box.put(item(store, number, failures))
        async with asyncio.timeout(30):
            while len(store.kept) <= outbox.TOGETHER:  # noqa: ASYNC110  (a timer writes the last one; there is no event)
                await asyncio.sleep(0.01)
        assert store.sets == [outbox.TOGETHER, 1] and box.held == {}


async def test_with_a_slow_store_the_number_of_pending_entries_is_bounded() -> None:
    async with lent() as services:
        box, store, failures = Outbox(services), Store(), Failures()
        for number in range(outbox.MOST + 5):
            box.put(item(store, number, failures))
        assert len(box.held) == outbox.MOST and len(failures) == 5
        store.may.set()
        await box.written()
        assert len(store.kept) == outbox.MOST and box.held == {}


async def test_failures_are_counted_and_expired_or_oversized_entries_dropped() -> None:
    async with lent() as services:
        box, store, failures = Outbox(services), Store(), Failures()
        store.may.set()
        box.put(item(store, 1, failures, ttl=-1))
        box.put(item(store, 2, failures, largest=10))
        box.put(item(store, 3, failures, text="".join(map(chr, range(200, 20_000))), largest=1_000_000))
        assert box.get(store, "k1") is None
        await box.written()
        assert list(store.kept) == ["k3"] and failures == []
        store.fails = True
        box.put(item(store, 4, failures))
        await box.written()
        assert failures == ["k4"] and box.held == {}


async def test_a_newer_entry_stays_pending_while_the_older_one_is_written() -> None:
    async with lent() as services:
        box, store, failures = Outbox(services), Store(), Failures()
        box.put(item(store, 1, failures))
        box.send()
        newer = item(store, 1, failures, text="newer")
        box.put(newer)
        store.may.set()
        await asyncio.wait(set(box.writing))
        assert box.held == {"k1": newer}
        await box.written()
        assert b"newer" in store.kept["k1"][0]


async def test_a_reload_and_a_shutdown_lose_no_entry(start: Start, tmp_path: Path) -> None:
    async with running(Simulator()) as url:
        text = CACHE.replace("cache: {}", "cache: {store: own}")
        text += f"stores: {{own: {{disk: {{path: '{tmp_path}/c.db'}}}}}}\nupstreams: {{local: {{ollama: '{url}'}}}}\n"
        async with start(text) as run:
            assert await outcomes(run, {}) == ["miss"]
            run.configure(text + "params: strict\n")
            assert await run.server.reload()
            assert await outcomes(run, {}, {"seed": 1}) == ["hit", "miss"]
        async with start(text) as run:
            assert await outcomes(run, {}, {"seed": 1}) == ["hit", "hit"]
