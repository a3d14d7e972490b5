"""What is old goes, a little at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select, update

from plugins.conversations import removing
from plugins.conversations.keeping import DAY, Keeping
from plugins.conversations.removing import LEFT, NOBODY
from plugins.conversations.tables import MESSAGES, TALKS
from tests.conftest import Running, Start
from tests.plugins.conversations.asking import asks, config, echo, store_of


async def test_others_write_while_much_goes(start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
        going = asyncio.ensure_future(Keeping(store, 7).tidy())
        await asks(run, "POST", "/api/conversations", status=201, json={"id": "new"})
        await going
        left = await asks(run, "GET", "/api/conversations?order=asc")
        assert [one["id"] for one in left["data"]] == ["c5", "c6", "new"], "one that is being answered stays"


async def count(run: Running) -> int:
    async with store_of(run).database.reading() as connection:
        return (await connection.execute(select(func.count()).select_from(MESSAGES))).scalar_one()


async def test_a_conversation_is_gone_at_once_and_its_messages_a_few_at_a_time(
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
            if len(seen) == 2:  # not even a part of it is to be had
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
        await Keeping(store, None).tidy()
        async with store.database.reading() as connection:
            assert not (await connection.execute(select(TALKS.c.id))).all()
