"""What is old goes, a little at a time."""

from __future__ import annotations

import asyncio

import pytest

from plugins.conversations import keeping
from plugins.conversations.keeping import DAY, Keeping, at_once
from tests.conftest import Start
from tests.plugins.conversations.asking import asks, config, echo, store_of


def test_as_many_go_at_once_as_nobody_waits_for() -> None:
    assert at_once([]) == []
    assert at_once([(1, 5000), (2, 0)]) == [1]
    assert at_once([(1, 600), (2, 400), (3, 1)]) == [1, 2]


async def test_others_write_while_much_goes(start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "ROWS", 4)
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
