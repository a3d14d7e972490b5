"""Answers that are written in batches, with either database."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy.exc import IntegrityError

from plugins.stored.store import Store
from proxy.sql.database import DatabaseAway
from tests.plugins.stored.test_retention import NOW, ids, opened, response


def added(store: Store, *names: str) -> list[asyncio.Task[None]]:
    return [asyncio.ensure_future(store.add("alice", response(name), "[]", NOW)) for name in names]


async def test_concurrent_answers_are_written_in_one_batch_before_the_wait_ends(database_url: str) -> None:
    async with opened(database_url) as (store, host):
        sizes: list[int] = []
        put = store.adding.put

        async def counted(batch):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            sizes.append(len(batch))
            await put(batch)

        store.adding.put = counted  # type: ignore[method-assign]
        names = [f"{number:03}" for number in range(100)]
        await asyncio.gather(*added(store, *names))
        assert await ids(host) == names and sum(sizes) == 100 and len(sizes) <= 4 and max(sizes) == 64
        await store.add("alice", response("later"), "[]", NOW)
        assert (await store.get("alice", "response", "later")).id == "later"


async def test_an_answer_that_cannot_be_written_does_not_affect_the_others(database_url: str) -> None:
    async with opened(database_url) as (store, host):
        told = await asyncio.gather(*added(store, "a", "b", "a", "c"), return_exceptions=True)
        assert [type(one) for one in told] == [type(None), type(None), IntegrityError, type(None)]
        assert await ids(host) == ["a", "b", "c"]


async def test_a_write_that_has_begun_is_completed_although_its_waiter_was_cancelled(database_url: str) -> None:
    async with opened(database_url) as (store, host):
        tasks = added(store, "a", "b")
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks)
        await store.settled()
        assert tasks[0].cancelled() and await ids(host) == ["a", "b"]


async def test_all_waiters_get_the_error_that_the_database_is_down(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database_url) as (store, host):

        def away(*_: object) -> None:
            raise DatabaseAway("It is away.")

        with monkeypatch.context() as patched:
            patched.setattr(host.database, "writing", away)
            patched.setattr(host.database, "reading", away)
            waits = [*added(store, "a", "b"), *(asyncio.ensure_future(store.ready()) for _ in range(2))]
            told = await asyncio.gather(*waits, return_exceptions=True)
        assert [type(one) for one in told] == [DatabaseAway] * 4 and len({id(one) for one in told}) == 4
        await asyncio.gather(store.ready(), *added(store, "a"))
        assert await ids(host) == ["a"]
