"""What is each store's own: files that survive, servers that fail."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from pathlib import Path

import pytest
from redis.asyncio.connection import SSLConnection

from proxy.clock import Clock
from proxy.stores import breaker
from proxy.stores.disk import Disk
from proxy.stores.keyvalue import New, StoreError
from proxy.stores.redis import SPACE, RedisStore
from tests.conftest import BARE, Start
from tests.servers import redis_server


class Watch(Clock):
    """A clock that stands still until it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


async def test_a_disk_store_survives_a_restart_and_is_shared(tmp_path: Path) -> None:
    path = str(tmp_path / "cache.db")
    first = Disk(path, 1_000_000, Clock())
    await first.set([New("a", b"1", 60)])
    second = Disk(path, 1_000_000, Clock())
    assert [found and found.value for found in await second.get(["a"])] == [b"1"]
    await second.set([New("b", b"2", 60)])
    assert (await first.get(["b"]))[0] is not None
    await first.aclose()
    await second.aclose()
    third = Disk(path, 1_000_000, Clock())
    assert [one.key async for one in third.entries()] == ["a", "b"]
    await third.aclose()


async def test_a_file_that_is_no_store_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cache.db"
    path.write_bytes(b"this is no database" * 1000)
    store = Disk(str(path), 1_000_000, Clock())
    await store.set([New("a", b"1", 60)])
    assert (await store.get(["a"]))[0] is not None
    await store.aclose()
    assert path.with_suffix(".unreadable").read_bytes().startswith(b"this is no database")
    assert "put aside" in caplog.text


async def test_a_disk_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Disk(str(tmp_path / "file" / "cache.db"), 1_000_000, Clock())
    with pytest.raises(StoreError, match="file"):
        await store.get(["a"])
    await store.aclose()


async def test_a_disk_store_stays_within_its_bound(tmp_path: Path) -> None:
    store = Disk(str(tmp_path / "cache.db"), 2_000_000, Clock())
    for number in range(200):
        await store.set([New(f"{number}", b"x" * 50_000, 60)])
    await store.aclose()
    assert (tmp_path / "cache.db").stat().st_size <= 2_600_000


@pytest.mark.parametrize("size", [40, 2_053, 3_077, 6_000, 20_000])
async def test_a_file_never_fills_up_whatever_the_size_of_its_values(tmp_path: Path, size: int) -> None:
    """Rows take whole pages, so that values just above half a page take twice their size."""
    store = Disk(str(tmp_path / "cache.db"), 2_000_000, Clock())
    for number in range(0, 4_000_000 // (size + 300), 50):
        await store.set([New(f"{number + one}", b"x" * size, 60) for one in range(50)])
    newest = await store.get([f"{number + 49}"])
    await store.aclose()
    assert newest[0] is not None and (tmp_path / "cache.db").stat().st_size <= 2_700_000


async def test_values_of_one_key_that_come_together_take_the_room_of_one(tmp_path: Path) -> None:
    store = Disk(str(tmp_path / "cache.db"), 1_000_000, Clock())
    await store.set([New("other", b"kept", 60)])
    for _ in range(100):
        await store.set([New("same", b"x" * 10_000, 60), New("same", b"y" * 10_000, 60)])
    other, same = await store.get(["other", "same"])
    assert other is not None and same is not None and same.value == b"y" * 10_000
    await store.aclose()


async def test_a_closed_store_stays_closed(tmp_path: Path) -> None:
    store = Disk(str(tmp_path / "cache.db"), 1_000_000, Clock())
    await store.set([New("a", b"1", 60)])
    await store.aclose()
    with pytest.raises(StoreError, match="closed"):
        await store.get(["a"])


async def test_a_file_that_another_process_locks_costs_no_seconds(tmp_path: Path) -> None:
    store = Disk(str(tmp_path / "cache.db"), 1_000_000, Clock())
    await store.set([New("a", b"1", 60)])
    other = sqlite3.connect(tmp_path / "cache.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with asyncio.timeout(10):
        with pytest.raises(StoreError, match="locked"):
            await store.set([New("b", b"1", 60)])
        assert (await store.get(["a"]))[0] is not None
    other.close()
    await store.aclose()


async def test_what_others_wrote_into_redis_is_not_there(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        store = RedisStore(server.url, 1.0, Clock())
        await store.set([New("a", b"1", 60)])
        for value in (b"", b"x", b"G1", b"G1" + b"\xff" * 12 + b"short"):
            await store.client.set(f"{SPACE}b", value)
            assert await store.get(["b"]) == [None]
            assert [one.key async for one in store.entries()] == ["a"]
        await store.client.delete(f"{SPACE}b")
        await store.client.lpush(f"{SPACE}b", "a list")
        assert [found is not None for found in await store.get(["b", "a"])] == [False, True]
        await store.aclose()


async def test_what_is_no_string_in_redis_is_no_failure_of_it(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as server:
        store = RedisStore(server.url, 1.0, Clock())
        await store.client.lpush(f"{SPACE}b", "a list")
        for _ in range(breaker.FAILURES + 1):
            assert await store.get(["b"]) == [None]
        await store.set([New("a", b"1", 60)])
        assert (await store.get(["a"]))[0] is not None
        await store.aclose()


async def test_a_redis_that_refuses_what_is_asked_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As one does that moves its keys, or lets this user read nothing; and the log repeats nothing that was asked."""
    async with redis_server(tmp_path) as server:
        store = RedisStore(server.url, 1.0, Clock())
        await store.set([New("a", b"1", 60)])
        await store.client.execute_command("ACL", "SETUSER", "default", "-get", "-set")
        for keys in (["a"], ["a", "b"]):
            with pytest.raises(StoreError, match="no permissions"):
                await store.get(keys)
        with pytest.raises(StoreError, match="no permissions") as raised:
            await store.set([New("canary-key", b"canary-value", 60, b"canary-label")])
        assert "canary" not in str(raised.value) + caplog.text
        await store.aclose()


async def test_a_redis_that_hangs_costs_tens_of_milliseconds_and_then_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch, loop = Watch(), asyncio.get_running_loop()
    async with redis_server(tmp_path) as server:
        store = RedisStore(server.url, 0.05, watch)
        await store.set([New("a", b"1", 60)])
        server.freeze()
        began = loop.time()
        for _ in range(breaker.FAILURES):
            with pytest.raises(StoreError, match=r"no answer within 0\.05 seconds|Timeout"):
                await store.get(["a"])
        assert loop.time() - began < 2
        assert store.breaker.open
        server.thaw()
        with pytest.raises(StoreError, match="left alone"):
            await store.get(["a"])
        assert len([text for text in caplog.messages if "go on without it" in text]) == 1
        watch.now += breaker.REST
        with caplog.at_level(logging.INFO):
            assert (await store.get(["a"]))[0] is not None
        assert "answers again" in caplog.text and not store.breaker.open
        await store.aclose()


async def test_a_redis_that_is_away_heals_by_itself(tmp_path: Path) -> None:
    watch = Watch()
    async with redis_server(tmp_path) as server:
        store = RedisStore(server.url, 0.2, watch)
        await store.set([New("a", b"1", 60)])
        server.kill()
        for _ in range(breaker.FAILURES):
            with pytest.raises(StoreError):
                await store.get(["a"])
        await server.start()
        watch.now += breaker.REST
        assert await store.get(["a"]) == [None]
        await store.set([New("a", b"2", 60)])
        assert (await store.get(["a"]))[0] is not None
        await store.aclose()


async def test_a_url_may_ask_for_tls() -> None:
    store = RedisStore("rediss://user:secret@redis.example:6380/2", 1.0, Clock())
    pool = store.client.connection_pool
    assert pool.connection_class is SSLConnection
    assert pool.connection_kwargs["db"] == 2 and pool.connection_kwargs["password"] == "secret"
    assert "secret" not in store.breaker.name
    await store.aclose()


async def test_while_a_store_is_left_alone_one_try_at_a_time_is_made(tmp_path: Path) -> None:
    watch = Watch()
    guard = breaker.Breaker("it", 0.05, watch)
    hung = asyncio.Event()
    for _ in range(breaker.FAILURES):
        with pytest.raises(StoreError):
            await guard.do(hung.wait())
    watch.now += breaker.REST
    trying = asyncio.ensure_future(guard.do(hung.wait(), 5))
    await asyncio.sleep(0)
    with pytest.raises(StoreError, match="left alone"):
        await guard.do(hung.wait())
    hung.set()
    assert await trying is True and not guard.open


async def test_a_failure_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    guard = breaker.Breaker("it", 0.01, watch)

    async def fails() -> None:
        raise ConnectionResetError("gone")

    for _ in range(30):
        with pytest.raises(StoreError):
            await guard.do(fails())
        watch.now += breaker.REST
    assert len([text for text in caplog.messages if "go on without it" in text]) == 3


@pytest.mark.parametrize("kind", ["disk: {{path: {}}}", "lancedb: {}"])
async def test_a_store_whose_files_cannot_be_is_told_when_the_server_starts(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    for name in ("file", "folder"):
        text = f"stores: {{kept: {{{kind.format(tmp_path / name / 'x')}}}}}\nupstreams: {{a: {{demo: {{}}}}}}\n"
        uses = "cache: {store: kept}" if "disk" in kind else "documents: {store: kept, embed: demo-embed}"
        async with start(f"{text}database: {{url: 'sqlite:///{tmp_path}/d.db'}}\nplugins: {{{uses}}}\n{BARE}"):
            pass
    (told,) = [one for one in caplog.messages if "cannot be kept" in one]
    assert f"'kept' cannot be kept in {tmp_path}/file/x: {tmp_path}/file cannot be written" in told
