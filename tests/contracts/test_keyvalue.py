"""The contract of every key-value store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.clock import Clock
from proxy.stores.disk import Disk
from proxy.stores.keyvalue import Instant, KeyValue, NewValue, StoredValue, StoreError
from proxy.stores.memory import Memory
from proxy.stores.redis import RedisStore
from tests.servers import Cluster, RedisServer, all_slots, emptied, free_port

KINDS = ("memory", "disk", "redis", "cluster")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, RedisServer]]:
    """One Redis and one cluster for all of these tests, because a cluster takes two seconds to form."""
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


async def test_values_are_returned_in_the_order_of_the_keys(store: KeyValue) -> None:
    await store.set([NewValue("a", b"1", 60), NewValue("b", bytes(range(256)), 60, b"label")])
    assert await values(store, "b", "c", "a", "a") == [bytes(range(256)), None, b"1", b"1"]
    assert await values(store, "a") == [b"1"] and await values(store, "c") == [None]


async def test_an_in_process_store_gives_the_same_values_synchronously(store: KeyValue) -> None:
    assert isinstance(store, Instant) == isinstance(store, Memory)
    if isinstance(store, Instant):
        store.put(NewValue("a", b"1", 60, b"x"))
        found = store.look("a")
        assert isinstance(found, StoredValue) and found.value == b"1" and await store.get(["a", "b"]) == [found, None]
        assert store.look("b") is None
        store.put(NewValue("a", b"2", 0.01))
        await asyncio.sleep(0.02)
        assert store.look("a") is None and [one async for one in store.entries()] == []


async def test_a_new_value_replaces_the_old_one(store: KeyValue) -> None:
    await store.set([NewValue("a", b"1", 60, b"x")])
    await store.set([NewValue("a", b"2", 60, b"y")])
    assert await values(store, "a") == [b"2"]
    assert [(one.key, one.label) async for one in store.entries()] == [("a", b"y")]


async def test_a_value_has_its_time_of_creation(store: KeyValue) -> None:
    await store.set([NewValue("a", b"1", 60)])
    (found,) = await store.get(["a"])
    assert found is not None and abs(found.born - Clock().time()) < 60


async def test_a_value_expires(store: KeyValue) -> None:
    await store.set([NewValue("short", b"1", 0.05), NewValue("long", b"2", 60)])
    await asyncio.sleep(0.1)
    assert await values(store, "short", "long") == [None, b"2"]
    assert [one.key async for one in store.entries()] == ["long"]
    await store.expire()
    assert [one.key async for one in store.entries()] == ["long"]


async def test_deleting_returns_the_number_of_existing_keys(store: KeyValue) -> None:
    await store.set([NewValue(f"k{number}", b"1", 60) for number in range(450)])
    assert await store.delete(["k0", "nobody", "k1"]) == 2
    assert await store.delete([f"k{number}" for number in range(450)]) == 448
    assert await store.delete([]) == 0
    assert [one async for one in store.entries()] == []


async def test_entries_are_listed_with_labels_and_without_values(store: KeyValue) -> None:
    long = "é".encode() * 5_000
    await store.set(
        [NewValue("a:1", b"v" * 10_000, 60, b"one"), NewValue("a:2", b"v", 60, long), NewValue("b:1", b"v", 60)]
    )
    found = {one.key: one async for one in store.entries("a:")}
    assert {key: one.label for key, one in found.items()} == {"a:1": b"one", "a:2": long}
    assert found["a:1"].size >= 10_000 and abs(found["a:1"].expires - found["a:1"].born - 60) < 2


@pytest.mark.parametrize("prefix", ["a*", "a?", "a[b]", "a\\", "%", "_", "ü:"])
async def test_a_prefix_is_not_a_pattern(store: KeyValue, prefix: str) -> None:
    await store.set(
        [NewValue(f"{prefix}1", b"", 60), NewValue("ab1", b"", 60), NewValue("a1", b"", 60), NewValue("axyz", b"", 60)]
    )
    assert [one.key async for one in store.entries(prefix)] == [f"{prefix}1"]


async def test_every_entry_is_listed_exactly_once(store: KeyValue) -> None:
    keys = {f"key-{number}" for number in range(1203)}
    await store.set([NewValue(key, b"1", 60) for key in keys])
    told = [one.key async for one in store.entries("key-")]
    assert len(told) == len(keys) and set(told) == keys


async def test_concurrent_use(store: KeyValue) -> None:
    async def one(number: int) -> None:
        await store.set([NewValue(f"{number}", str(number).encode(), 60)])
        assert await values(store, f"{number}") == [str(number).encode()]

    await one(0)  # connected already: connecting would serialise them
    await asyncio.gather(*(one(number) for number in range(200)))


@pytest.mark.parametrize("kind", ["redis", "cluster"])
async def test_a_late_reply_is_never_given_to_another_request(servers: dict[str, RedisServer], kind: str) -> None:
    """On a reused connection the next request would read it, and so get another caller's answer."""
    server = servers[kind]
    await emptied(server.port)
    patient, store = RedisStore(server.url, 10.0, Clock()), RedisStore(server.url, 0.1, Clock())
    keys = [f"{number}" for number in range(30)]
    await patient.set([NewValue(key, key.encode(), 60) for key in keys])
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


# --- stores with a size limit of their own -----------------------------------------------------------


@pytest.mark.parametrize("store", ["memory", "disk"], indirect=True)
async def test_the_least_recently_used_entry_is_evicted(store: KeyValue) -> None:
    big = b"x" * 90_000
    for number in range(10):
        await store.set([NewValue(f"{number}", big, 60)])
        await store.get(["0"])
    for number in range(10, 14):
        await store.set([NewValue(f"{number}", big, 60)])
    there = {one.key async for one in store.entries()}
    assert {"0", "13"} <= there and not {"1", "2"} & there
    assert sum([one.size async for one in store.entries()]) <= 1_000_000


@pytest.mark.parametrize("store", ["memory", "disk"], indirect=True)
async def test_a_value_larger_than_the_store_is_not_stored_and_evicts_nothing(store: KeyValue) -> None:
    await store.set([NewValue("a", b"1", 60)])
    await store.set([NewValue("big", b"x" * 2_000_000, 60)])
    assert await values(store, "a", "big") == [b"1", None]
