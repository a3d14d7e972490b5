"""All data stored about a caller can be exported and deleted, whichever feature stores it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from plugins.conversations.retention import DAY, Retention
from proxy.edge import me
from tests.conftest import Start
from tests.plugins.conversations.asking import OPS, A, B, asks, config, echo, kept, say, store_of
from tests.plugins.usage.asking import written

CHAIN = "usage, conversations, cache"


async def test_exactly_the_callers_own_data_is_exported_and_deleted(start: Start, database_url: str) -> None:
    async with start(config(database_url, CHAIN), echo()) as run:
        for who, word in ((A, "apple"), (B, "banana")):
            await say(run, word, who=who), await say(run, f"{word} pie", "u", who)
        await run.settled()
        await written(run, 4)
        told = await asks(run, "GET", "/api/me/data")
        assert told["user"] == "alice" and "banana" not in json.dumps(told) and "bob" not in json.dumps(told)
        data = told["data"]
        assert {one["id"]: [m["content"] for m in one["messages"]] for one in data["conversations"]} == {
            "t": ["apple", "heard apple"], "u": ["apple pie", "heard apple pie"],
        }  # fmt: skip
        assert [one["route"] for one in data["usage"]] == ["chat", "chat"]
        assert {one["answered"] for one in data["cache"]} == {"heard apple", "heard apple pie"}
        await asks(run, "GET", "/api/me/data?user=alice", B, 403)
        await asks(run, "DELETE", "/api/me/data?user=alice", B, 403)
        assert await asks(run, "GET", "/api/me/data?user=alice", OPS) == told
        gone = await asks(run, "DELETE", "/api/me/data")
        assert gone == {"user": "alice", "deleted": {"usage": 2, "conversations": 2, "cache": 2}}
        assert (await asks(run, "GET", "/api/me/data"))["data"] == {"usage": [], "conversations": [], "cache": []}
        assert (await asks(run, "GET", "/api/metrics/dashboard"))["total_requests"] == 0
        assert (await asks(run, "GET", "/api/metrics/dashboard", OPS))["total_requests"] == 4
        assert len((await asks(run, "GET", "/api/me/data", B))["data"]["cache"]) == 2
        await asks(run, "DELETE", "/api/me/data?user=bob", OPS)
        assert (await asks(run, "GET", "/api/conversations", B))["data"] == []


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_deletion_includes_rows_that_another_process_has_yet_to_write(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(me, "LATE", 1.0)
    async with start(config(database_url, CHAIN), echo()) as run, start(config(database_url, CHAIN), echo()) as other:
        await say(other, "apple")
        assert (await asks(run, "DELETE", "/api/me/data"))["deleted"] == {"usage": 1, "conversations": 1, "cache": 0}
        await written(other, 0)
        assert (await asks(run, "GET", "/api/me/data"))["data"]["usage"] == []


async def test_old_conversations_are_deleted(start: Start, tmp_path: Any) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db"), echo()) as run:
        await say(run, "old"), await say(run, "new", "u")
        store = store_of(run)
        await store.change("alice", "t", {"updated": store.now() - 8 * DAY})
        await Retention(store, 7).tidy()
        assert [one["id"] for one in (await asks(run, "GET", "/api/conversations"))["data"]] == ["u"]
        assert len(await kept(run, "u")) == 2
