"""Old conversations are deleted, a few rows at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select, update

from plugins.conversations import forms, removing, retention
from plugins.conversations.removing import LEFT, NOBODY
from plugins.conversations.retention import DAY, Retention
from plugins.conversations.store import Store
from plugins.conversations.tables import MESSAGES, TALKS
from tests.conftest import Running, Start
from tests.plugins.conversations.asking import A, B, asks, config, echo, kept, store_of, talk_of, texts


async def test_retention_does_not_block_other_writers(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "ROWS", 4)
    async with start(config(database_url), echo()) as run:
        messages = [{"role": "user", "content": "x"}] * 2
        for number in range(7):
            body = {"id": f"c{number}", "messages": messages}
            await asks(run, "POST", "/api/conversations", status=201, json=body)
        store = store_of(run)
        for number in range(6):
            held = {"holder": "one", "held_until": store.now() + 10_000_000} if number == 5 else {}
            await store.change("alice", f"c{number}", {"updated": store.now() - 8 * DAY, **held})
        going = asyncio.ensure_future(Retention(store, 7).tidy())
        await asks(run, "POST", "/api/conversations", status=201, json={"id": "new"})
        await going
        left = await asks(run, "GET", "/api/conversations?order=asc")
        assert [one["id"] for one in left["data"]] == ["c5", "c6", "new"], "a conversation with a call under way stays"


@pytest.mark.parametrize(
    ("lengths", "count"),
    [([], 0), ([9], 1), ([2, 2, 1], 3), ([2, 2, 2, 1], 2), ([1] * 9, 4), ([9, 1], 1), ([0, 9], 1)],
)
def test_a_batch_of_deletions_is_bounded_in_rows_and_characters(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], count: int
) -> None:
    monkeypatch.setattr(removing, "ROWS", 4)
    monkeypatch.setattr(removing, "LETTERS", 5)
    assert removing.together(lengths) == count


async def test_long_messages_are_copied_and_deleted_in_smaller_batches(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "LETTERS", 10)
    async with start(config(database_url), echo()) as run:
        messages = [{"role": "user", "content": "x" * length} for length in (3, 6, 20, 1, 9)]
        await asks(run, "POST", "/api/conversations", status=201, json={"id": "t", "messages": messages})
        appended, seen = Store.append, list[int]()

        async def appending(self: Store, *given: Any, **more: Any) -> Any:
            seen.append(len(given[2]))
            return await appended(self, *given, **more)

        monkeypatch.setattr(Store, "append", appending)
        await asks(run, "POST", "/api/conversations/t/fork", status=201, json={"id": "f"})
        assert seen == [2, 1, 2] and [len(one) for one in texts(await kept(run, "f"))] == [3, 6, 20, 1, 9]
        begun, left = removing.fewer, list[int]()

        async def looking(*given: Any) -> bool:
            left.append(await count(run))
            return await begun(*given)

        monkeypatch.setattr(removing, "fewer", looking)
        await asks(run, "DELETE", "/api/conversations/f")
        assert left == [10, 8, 7] and await count(run) == 5


async def test_remains_of_a_dead_process_are_hidden_and_later_deleted(start: Start, database_url: str) -> None:
    async with start(config(database_url, max_conversations=2), echo()) as run:
        body = {"messages": [{"role": "user", "content": "lantern"}], "title": "lantern"}
        numbers = []
        for id, who in (("gone", A), ("copy", A), ("b", B)):
            await asks(run, "POST", "/api/conversations", who, 201, json={"id": id, **body})
            owner = "bob" if who is B else "alice"
            numbers.append((await talk_of(run, id, owner)).number)
        item = (await asks(run, "GET", "/v1/conversations/copy/items"))["data"][0]["id"]
        async with store_of(run).database.writing() as connection:
            hidden = TALKS.c.owner == "alice"
            await connection.execute(update(TALKS).where(hidden).values(owner=NOBODY))
        assert not (await asks(run, "GET", "/api/conversations"))["data"]
        assert not (await asks(run, "GET", "/api/conversations/search?q=lantern"))["data"]
        figures = await asks(run, "GET", "/api/conversations/statistics")
        assert (figures["conversations"], figures["messages"], figures["by_day"]) == (0, 0, [])
        for path in ("", "/messages", "/export"):
            await asks(run, "GET", f"/api/conversations/copy{path}", status=404)
        await asks(run, "GET", f"/v1/conversations/copy/items/{item}", status=404)
        told = await asks(run, "POST", "/v1/conversations", status=404, json={"items": [{"id": item}]})
        assert told["error"]["code"] == "item_not_found"
        whole = await asks(run, "GET", "/api/me/data")
        assert "lantern" not in str(whole)
        for id in "xy":  # nor do they count towards the limit towards the limit
            await asks(run, "POST", "/api/conversations", status=201, json={"id": id})
        await Retention(store_of(run), None).tidy()
        assert await count(run) == 3, "another process may still be working on it"
        await Retention(store_of(run), None).forget("alice")
        assert await count(run) == 1 and (await asks(run, "GET", "/api/conversations", B))["data"]


async def test_a_conversation_deleted_during_an_export_does_not_end_it(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "CHUNK", 2)
    async with start(config(database_url), echo()) as run:
        for id in "abcd":
            await asks(run, "POST", "/api/conversations", status=201, json={"id": id})
        told = []
        async for one in Retention(store_of(run), None).export("alice"):
            told.append(one)
            if len(told) == 2:
                await asks(run, "DELETE", "/api/conversations/b")
        assert [one["id"] for one in told if isinstance(one, dict)] == ["a", "b", "c", "d"]


async def test_the_items_added_by_one_request_are_limited(
    start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "MOST_LETTERS", 10)
    async with start(config(f"sqlite:///{tmp_path}/x.db"), echo()) as run:
        six = {"role": "user", "content": "six   "}
        await asks(run, "POST", "/api/conversations", status=201, json={"id": "t", "messages": [six]})
        for path, body, param in (
            ("/api/conversations", {"messages": [six, six]}, "messages"),
            ("/api/conversations/t/messages", {"messages": [six, six]}, "messages"),
            ("/api/conversations/t/messages", {"role": "user", "content": "x" * 11}, "content"),
            ("/v1/conversations", {"items": [six, six]}, "items"),
            ("/v1/conversations/t/items", {"items": [six, six]}, "items"),
        ):
            error = (await asks(run, "POST", path, status=400, json=body))["error"]
            assert (error["code"], error["param"]) == ("input_too_large", param)
        assert await count(run) == 1


async def count(run: Running) -> int:
    async with store_of(run).database.reading() as connection:
        return (await connection.execute(select(func.count()).select_from(MESSAGES))).scalar_one()


async def test_a_deleted_conversation_is_gone_at_once_and_its_messages_in_batches(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removing, "ROWS", 3)
    async with start(config(database_url), echo()) as run:
        body = {"id": "big", "messages": [{"role": "user", "content": "lantern"}] * 20}
        await asks(run, "POST", "/api/conversations", status=201, json=body)
        item = (await asks(run, "GET", "/v1/conversations/big/items"))["data"][0]["id"]
        store, seen = store_of(run), list[int]()
        begun = removing.fewer

        async def looking(*given: Any) -> bool:
            seen.append(await count(run))
            if len(seen) == 2:  # no part of it can be read
                await asks(run, "GET", "/api/conversations/big", status=404)
                assert not (await asks(run, "GET", "/api/conversations/search?q=lantern"))["data"]
                refers = {"items": [{"type": "item_reference", "id": item}]}
                await asks(run, "POST", "/v1/conversations", status=404, json=refers)
                await asks(run, "POST", "/api/conversations", status=201, json={"id": "big"})
            return await begun(*given)

        monkeypatch.setattr(removing, "fewer", looking)
        await asks(run, "DELETE", "/api/conversations/big")
        assert seen == [20, 17, 14, 11, 8, 5, 2]
        assert (await asks(run, "GET", "/api/conversations/big"))["message_count"] == 0
        dead = {"owner": NOBODY, "updated": store.now() - LEFT - 1}
        async with store.database.writing() as connection:
            await connection.execute(update(TALKS).values(dead))
        await Retention(store, None).tidy()
        async with store.database.reading() as connection:
            assert not (await connection.execute(select(TALKS.c.id))).all()
