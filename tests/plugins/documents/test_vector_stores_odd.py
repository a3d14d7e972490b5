"""Vector stores of which several things happen at once, and names that no database takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update

from plugins.documents import paging
from plugins.documents.repair import Repair
from plugins.documents.tables import BATCHES, ITEMS, ORIGINS, STORES
from plugins.documents.vectorstores.adding import Adding, New
from plugins.documents.vectorstores.expiring import Expiring
from proxy.errors import BadCall, NotFound
from proxy.filing import Filed
from tests.conftest import Running, Start
from tests.plugins.documents.asking import A
from tests.plugins.documents.storing import LANTERNS, ORCHARDS, call, config, filled, settled, upload
from tests.plugins.documents.test_vector_stores import WHO, rows, stores_of

ODD = "a\0b"


def odd(store: str, file: str) -> list[tuple[str, str, dict[str, Any], int]]:
    of, names = f"/vector_stores/{store}", {"type": "eq", "key": ODD, "value": "x"}
    tool = {"type": "file_search", "vector_store_ids": [store], "filters": names}
    return [
        ("POST", "/vector_stores", {"name": ODD}, 200),
        ("POST", "/vector_stores", {"file_ids": [ODD]}, 400),
        ("POST", f"{of}/files", {"file_id": ODD}, 400),
        ("POST", f"{of}/file_batches", {"file_ids": [file, ODD]}, 400),
        ("POST", f"{of}/search", {**WHO, "filters": names}, 400),
        ("POST", "/responses", {"model": "demo", "input": "Hi", "tools": [tool]}, 400),
        ("POST", "/responses", {"model": "demo", "input": "Hi", "tools": [tool | {"vector_store_ids": [ODD]}]}, 400),
        ("GET", "/vector_stores/a%00b", {}, 404),
        ("GET", f"{of}/files/a%00b", {}, 404),
        ("GET", f"{of}/file_batches/a%00b", {}, 404),
        ("DELETE", "/files/a%00b", {}, 404),
    ]


async def test_what_no_database_takes_is_refused(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        store, file = await filled(run)
        for method, path, body, status in odd(store, file):
            await call(run, method, path, A, status, **body)


async def test_what_goes_while_files_come(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(config(database_url, tmp_path)) as run:
        lasts = {"anchor": "last_active_at", "days": 1}
        store, file = await filled(run, expires_after=lasts)
        there = Adding.there

        async def gone(self: Adding, *given: Any) -> Any:
            """The document goes just after it was found."""
            origins = await there(self, *given)
            await given[0].execute(delete(ITEMS).where(ITEMS.c.id.in_([one.item for one in origins.values()])))
            return origins

        with monkeypatch.context() as patched:
            patched.setattr(Adding, "there", gone)
            told = await call(run, "POST", f"/vector_stores/{store}/files", A, 400, file_id=file)
        assert told["error"]["code"] == "conflict"
        other = New(Filed(await upload(run, ORCHARDS), "orchards.txt", "user_data", len(ORCHARDS)))
        await expires_while_one_comes(run, store, other, monkeypatch)
        adding = stores_of(run).contents.adding
        with pytest.raises(BadCall) as expired:  # since it was looked at
            await adding.add("alice", store, [other], batch=True)
        assert expired.value.code == "vector_store_expired"
        await call(run, "DELETE", f"/vector_stores/{store}")
        with pytest.raises(NotFound):
            await adding.add("alice", store, [other], batch=True)
        assert await rows(run, ITEMS, ORIGINS, BATCHES) == [0, 0, 0]


async def expires_while_one_comes(run: Running, store: str, other: New, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stores_of(run)
    fewer, database, came = Expiring.fewer, found.stores.database, [other]

    async def late(self: Expiring, id: str) -> bool:
        more = await fewer(self, id)
        if not more and came:
            async with database.writing() as connection:
                await found.contents.adding.insert(connection, "alice", id, [came.pop()], "")
        return more

    async with database.writing() as connection:
        await connection.execute(update(STORES).where(STORES.c.collection == store).values(active=1))
    with monkeypatch.context() as patched:
        patched.setattr(Expiring, "fewer", late)
        await found.expiring.tidy()
    assert not came and await rows(run, ITEMS, ORIGINS, BATCHES) == [0, 0, 0]


async def test_repairs_look_at_pages_and_leave_what_is_added(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "ROWS", 2)
    async with start(config(database_url, tmp_path)) as run:
        files = [await upload(run, LANTERNS, f"{one}.txt") for one in range(5)]
        store = (await call(run, "POST", "/vector_stores", A, 200, file_ids=files))["id"]
        await settled(run, f"/vector_stores/{store}")
        found = stores_of(run)
        index, collections = found.contents.runner.ingest.index, found.stores.collections
        repair = Repair(found.contents.store, collections, index)
        assert len(await repair.right(store)) == 5 and await repair.run() == 0
        item, adding = (await found.contents.one(store, files[0])).item, Repair.adding
        calls: list[str] = []

        async def version(number: int) -> None:
            async with collections.database.writing() as connection:
                await connection.execute(update(ITEMS).where(ITEMS.c.id == item.id).values(version=number))

        async def done(self: Repair, id: str) -> set[tuple[str, int]]:
            """By the second look it is ready: until then another process was at it."""
            calls.append(id)
            if len(calls) == 2:
                await version(1)
            return await adding(self, id)

        await version(0)
        monkeypatch.setattr(Repair, "adding", done)
        assert await repair.run() == 0
        assert (item.id, 1) in await index.counts(store)
