"""How long responses are kept, and how many, with either database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from sqlalchemy import select, update

from plugins.stored import retention
from plugins.stored.answers import Document, StoredAnswer
from plugins.stored.retention import DAY, Retention
from plugins.stored.store import Store
from plugins.stored.tables import ANSWERS, FEATURE
from proxy.background import Background
from proxy.errors import BadCall
from proxy.host import Host
from proxy.sql.database import Database
from tests.clocks import Watch

NOW = 100.0 * DAY


class Lent:
    """The part of a plugin's host that a store needs."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = Watch(NOW)
        self.background = Background()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Store, Host]]:
    database = Database(url, 2, 10.0)
    try:
        await database.migrate(FEATURE)
        host = cast(Host, Lent(database))
        yield Store(host), host
    finally:
        await database.aclose()


def response(id: str, parent: str | None = None, status: str = "completed") -> Document:
    return {
        "id": id, "object": "response", "model": "m", "status": status, "previous_response_id": parent,
        "output": [{"id": f"msg_{id}", "n": id}], "background": True,
    }  # fmt: skip


async def ids(host: Host) -> list[str]:
    async with host.database.reading() as connection:
        return list((await connection.execute(select(ANSWERS.c.id).order_by(ANSWERS.c.id))).scalars())


async def test_old_responses_are_deleted_unless_another_continues_them(database_url: str) -> None:
    async with opened(database_url) as (store, host):
        for id, parent, days in (("a", None, 50), ("b", "a", 40), ("c", "b", 5), ("d", None, 50), ("e", "d", 40)):
            await store.add("alice", response(id, parent), "[]", NOW - days * DAY)
        await store.add("bob", response("z", "e"), "[]", NOW)  # another caller's claim to continue it does not keep it
        await Retention(store, host, 30, 100, 10**9).tidy()
        assert await ids(host) == ["a", "b", "c", "z"]


@pytest.mark.parametrize(("entries", "size"), [(2, 10**9), (100, 4000)])
async def test_the_newest_responses_of_each_caller_stay(database_url: str, entries: int, size: int) -> None:
    async with opened(database_url) as (store, host):
        for number in range(5):
            for owner in ("alice", "bob"):
                await store.add(owner, response(f"{owner}{number}"), '"' + "x" * 1500 + '"', NOW + number)
        await store.add("carol", response("carol"), "[]", NOW - 5)
        await Retention(store, host, None, entries, size).tidy()
        assert await ids(host) == ["alice3", "alice4", "bob3", "bob4", "carol"]


async def test_storage_per_caller_is_measured_in_bytes(database_url: str) -> None:
    async with opened(database_url) as (store, host):
        for number in range(3):
            await store.add("alice", response(f"{number}"), '"' + "好" * 500 + '"', NOW + number)
        await store.add_queued("bob", response("bob", status="queued"), "[]", False)
        await store.ended("bob", {**response("bob"), "output": ["好" * 1000]})
        await store.add("bob", response("newer"), "[]", NOW + 1)
        await Retention(store, host, None, 100, 3000).tidy()
        assert await ids(host) == ["2", "newer"]


async def test_searching_for_expired_responses_takes_no_write_lock(database_url: str) -> None:
    """The search can take seconds in a large table, so it must not hold a write transaction."""
    async with opened(database_url) as (store, host):
        await store.add("alice", response("a"), "[]", NOW)
        retention, database = Retention(store, host, 30, 100, 10**9), host.database
        async with database.writing() as connection:
            await connection.execute(update(ANSWERS).values(model="x"))
            async with asyncio.timeout(10):
                await retention.tidy()


async def test_responses_without_heartbeats_fail_and_live_ones_do_not(database_url: str) -> None:
    async with opened(database_url) as (store, host):
        retention, clock = Retention(store, host, None, 100, 10**9), cast(Watch, host.clock)
        for id in ("dead", "alive"):
            await store.add_queued("alice", response(id, status="queued"), "[]", False)
        clock.move(40)
        assert await store.beat(["alive", "gone"]) == {"alive"}
        await retention.tidy()
        found: dict[str, Any] = {id: await store.get("alice", "response", id) for id in ("dead", "alive")}
        assert (found["dead"].status, found["alive"].status) == ("failed", "queued")
        assert not await store.ended("dead", response("dead"))
        assert await store.ended("alive", response("alive"))


async def test_a_response_with_new_heartbeats_is_alive_after_a_clock_change(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database_url) as (store, host):
        clock = cast(Watch, host.clock)
        for id in ("dead", "alive"):
            await store.add_queued("alice", response(id, status="queued"), "[]", False)
        clock.move(3600)  # the clock was set

        async def sleep(seconds: float) -> None:
            await store.beat(["alive"])

        monkeypatch.setattr(clock, "sleep", sleep)
        await Retention(store, host, None, 100, 10**9).tidy()
        found = [(await store.get("alice", "response", id)).status for id in ("dead", "alive")]
        assert found == ["failed", "queued"]


async def test_failing_a_response_does_not_read_its_large_columns(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead server may leave a hundred of them with megabytes of input each."""
    read: list[StoredAnswer] = []

    async def fail(store: Store, kept: StoredAnswer) -> None:
        read.append(kept)

    monkeypatch.setattr(retention, "fail", fail)
    async with opened(database_url) as (store, host):
        await store.add_queued("alice", response("dead", status="queued"), '[{"n": "large"}]', True)
        cast(Watch, host.clock).move(40)
        await Retention(store, host, None, 100, 10**9).tidy()
    assert [(one.id, one.input, one.events) for one in read] == [("dead", [], "")]


async def test_a_chain_of_responses_has_its_items_in_order_and_a_maximum_length(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.stored.store.MOST_TURNS", 100)
    async with opened(database_url) as (store, _):
        before = None
        for number in range(101):
            await store.add("alice", response(f"{number}", before), f'[{{"n": "in {number}"}}]', NOW + number)
            before = str(number)
        found = [one["n"] for one in await store.items("alice", "99")]
        assert found == [word for n in range(100) for word in (f"in {n}", f"{n}")]
        await store.add("bob", response("bob", "0"), "[]", NOW)
        with pytest.raises(BadCall, match="not found"):  # as if Alice's responses did not exist
            await store.items("bob", "bob")
        with pytest.raises(BadCall) as caught:
            await store.items("alice", "100")
        assert caught.value.code == "previous_response_too_long"
