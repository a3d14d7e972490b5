"""What every key-value store promises, asked of each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.clock import Clock
from proxy.stores.disk import Disk
from proxy.stores.keyvalue import Instant, Kept, KeyValue, New, StoreError
from proxy.stores.memory import Memory
from proxy.stores.redis import RedisStore
from tests.servers import Cluster, RedisServer, all_slots, emptied, free_port

KINDS = ("memory", "disk", "redis", "cluster")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RedisServer]]:
    """A Redis and a cluster for all of these tests: a cluster takes two seconds to form."""
    folder = tmp_path_factory.mktemp("redis")
    plain, cluster = RedisServer(folder, free_port()), Cluster(folder, free_port())
    try:
        asyncio.run(plain.start())
        asyncio.run(cluster.start("--cluster-enabled", "yes"))
        asyncio.run(all_slots(cluster.port))
        yield {"redis": plain, "cluster": cluster}
    finally:
        plain.kill()
        cluster.kill()


@pytest.fixture(params=KINDS)
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, servers: dict[str, RedisServer]
) -> AsyncIterator[KeyValue]:
    made: KeyValue
    if request.param == "memory":
        made = Memory(1_000_000, Clock())
    elif request.param == "disk":
        made = Disk(str(tmp_path / "a" / "b.db"), 1_000_000, Clock())
    else:
        server = servers[request.param]
        await emptied(server.port)
        made = RedisStore(server.url, 30.0, Clock())
    yield made
    await made.aclose()


async def values(store: KeyValue, *keys: str) -> list[bytes | None]:
    return [None if found is None else found.value for found in await store.get(keys)]


async def test_what_was_set_is_found_in_the_order_that_was_asked(store: KeyValue) -> None:
    await store.set([New("a", b"1", 60), New("b", bytes(range(256)), 60, b"label")])
    assert await values(store, "b", "c", "a", "a") == [bytes(range(256)), None, b"1", b"1"]
    assert await values(store, "a") == [b"1"] and await values(store, "c") == [None]


async def test_a_store_that_is_here_gives_the_same_without_waiting(store: KeyValue) -> None:
    assert isinstance(store, Instant) == isinstance(store, Memory)
    if isinstance(store, Instant):
        store.put(New("a", b"1", 60, b"x"))
        found = store.look("a")
        assert isinstance(found, Kept) and found.value == b"1" and await store.get(["a", "b"]) == [found, None]
        assert store.look("b") is None
        store.put(New("a", b"2", 0.01))
        await asyncio.sleep(0.02)
        assert store.look("a") is None and [one async for one in store.entries()] == []


async def test_a_new_value_takes_the_place_of_the_old_one(store: KeyValue) -> None:
    await store.set([New("a", b"1", 60, b"x")])
    await store.set([New("a", b"2", 60, b"y")])
    assert await values(store, "a") == [b"2"]
    assert [(one.key, one.label) async for one in store.entries()] == [("a", b"y")]


async def test_a_value_is_as_old_as_it_is(store: KeyValue) -> None:
    await store.set([New("a", b"1", 60)])
    (found,) = await store.get(["a"])
    assert found is not None and abs(found.born - Clock().time()) < 60


async def test_a_value_ends_with_its_life(store: KeyValue) -> None:
    await store.set([New("short", b"1", 0.05), New("long", b"2", 60)])
    await asyncio.sleep(0.1)
    assert await values(store, "short", "long") == [None, b"2"]
    assert [one.key async for one in store.entries()] == ["long"]
    await store.expire()
    assert [one.key async for one in store.entries()] == ["long"]


async def test_deleting_counts_what_was_there(store: KeyValue) -> None:
    await store.set([New(f"k{number}", b"1", 60) for number in range(450)])
    assert await store.delete(["k0", "nobody", "k1"]) == 2
    assert await store.delete([f"k{number}" for number in range(450)]) == 448
    assert await store.delete([]) == 0
    assert [one async for one in store.entries()] == []


async def test_entries_are_told_with_their_labels_and_without_their_values(store: KeyValue) -> None:
    long = "é".encode() * 5_000
    await store.set([New("a:1", b"v" * 10_000, 60, b"one"), New("a:2", b"v", 60, long), New("b:1", b"v", 60)])
    found = {one.key: one async for one in store.entries("a:")}
    assert {key: one.label for key, one in found.items()} == {"a:1": b"one", "a:2": long}
    assert found["a:1"].size >= 10_000 and abs(found["a:1"].expires - found["a:1"].born - 60) < 2


@pytest.mark.parametrize("prefix", ["a*", "a?", "a[b]", "a\\", "%", "_", "ü:"])
async def test_a_prefix_is_no_pattern(store: KeyValue, prefix: str) -> None:
    await store.set([New(f"{prefix}1", b"", 60), New("ab1", b"", 60), New("a1", b"", 60), New("axyz", b"", 60)])
    assert [one.key async for one in store.entries(prefix)] == [f"{prefix}1"]


async def test_every_entry_is_told_once_however_many_there_are(store: KeyValue) -> None:
    keys = {f"key-{number}" for number in range(1203)}
    await store.set([New(key, b"1", 60) for key in keys])
    told = [one.key async for one in store.entries("key-")]
    assert len(told) == len(keys) and set(told) == keys


async def test_it_is_used_by_many_at_once(store: KeyValue) -> None:
    async def one(number: int) -> None:
        await store.set([New(f"{number}", str(number).encode(), 60)])
        assert await values(store, f"{number}") == [str(number).encode()]

    await one(0)  # connecting is behind it, and would bring them one after the other
    await asyncio.gather(*(one(number) for number in range(200)))


@pytest.mark.parametrize("kind", ["redis", "cluster"])
async def test_what_comes_too_late_is_nobody_elses(servers: dict[str, RedisServer], kind: str) -> None:
    """Its connection would give it to whoever asks next, and with it another caller's answer."""
    server = servers[kind]
    await emptied(server.port)
    patient, store = RedisStore(server.url, 10.0, Clock()), RedisStore(server.url, 0.1, Clock())
    keys = [f"{number}" for number in range(30)]
    await patient.set([New(key, key.encode(), 60) for key in keys])
    for _ in range(3):
        await asyncio.gather(*(store.get([key]) for key in keys), return_exceptions=True)
        server.freeze()
        try:
            for some in (keys[:1], keys[1:3]):
                with pytest.raises(StoreError):
                    await store.get(some)
        finally:
            server.thaw()
        store.breaker.patience = 10.0
        for some in ([key] for key in keys):
            assert await values(store, *some) == [key.encode() for key in some]
        store.breaker.patience = 0.1
    await patient.aclose()
    await store.aclose()


# --- those that bound themselves ---------------------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", "disk"], indirect=True)
async def test_what_was_used_longest_ago_makes_room(store: KeyValue) -> None:
    big = b"x" * 90_000
    for number in range(10):
        await store.set([New(f"{number}", big, 60)])
        await store.get(["0"])
    for number in range(10, 14):
        await store.set([New(f"{number}", big, 60)])
    there = {one.key async for one in store.entries()}
    assert {"0", "13"} <= there and not {"1", "2"} & there
    assert sum([one.size async for one in store.entries()]) <= 1_000_000


@pytest.mark.parametrize("store", ["memory", "disk"], indirect=True)
async def test_what_is_larger_than_the_store_is_not_kept_and_pushes_nothing_out(store: KeyValue) -> None:
    await store.set([New("a", b"1", 60)])
    await store.set([New("big", b"x" * 2_000_000, 60)])
    assert await values(store, "a", "big") == [b"1", None]
