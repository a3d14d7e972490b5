"""Vector stores under concurrent changes, and names with characters that databases refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update
from yarl import URL

from plugins.documents import paging
from plugins.documents.collections import Sharing
from plugins.documents.payer import Payer
from plugins.documents.repair import Repair
from plugins.documents.store import Store
from plugins.documents.tables import BATCHES, COLLECTIONS, ITEMS, ORIGINS, PARTS, READERS, STORES, VALUES
from plugins.documents.vectorstores.adding import Adding, New
from plugins.documents.vectorstores.expiring import Expiring
from proxy.errors import BadCall, NotFound
from proxy.file_access import FileInfo
from proxy.sql.database import Database, DatabaseAway
from tests.conftest import Running, Start
from tests.plugins.documents.asking import A, ask
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


async def test_characters_that_databases_refuse_are_refused(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        store, file = await filled(run)
        for method, path, body, status in odd(store, file):
            await call(run, method, path, A, status, **body)


async def test_a_text_that_replaces_a_broken_file_is_indexed(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        file = await upload(run, b"a\0b", "lanterns.txt")
        store = (await call(run, "POST", "/vector_stores", A, 200, file_ids=[file]))["id"]
        path = f"/vector_stores/{store}/files/{file}"
        assert (await settled(run, path))["status"] == "failed"
        (document,) = (await ask(run, "GET", "/documents", A, 200))["data"]
        told = await ask(run, "PUT", f"/documents/{document['document_id']}", A, content=LANTERNS.decode(), wait=30)
        assert (told["status"], told["characters"]) == ("ready", len(LANTERNS)), told["error"]
        assert (await settled(run, path))["last_error"] is None


async def test_a_store_whose_files_cannot_be_added_is_not_created(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    async with start(config(database_url, tmp_path, max_documents=1)) as run:
        files = [await upload(run, LANTERNS), await upload(run, ORCHARDS)]
        told = await call(run, "POST", "/vector_stores", A, 400, name="lights", file_ids=files)
        assert told["error"]["code"] == "too_many_documents"
        assert (await call(run, "GET", "/vector_stores"))["data"] == []


async def test_stores_and_files_deleted_while_files_are_added(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(config(database_url, tmp_path)) as run:
        lasts = {"anchor": "last_active_at", "days": 1}
        store, file = await filled(run, expires_after=lasts)
        there = Adding.there

        async def gone(self: Adding, *given: Any) -> Any:
            """Delete the document just after it was found."""
            origins = await there(self, *given)
            await given[0].execute(delete(ITEMS).where(ITEMS.c.id.in_([one.item for one in origins.values()])))
            return origins

        with monkeypatch.context() as patched:
            patched.setattr(Adding, "there", gone)
            told = await call(run, "POST", f"/vector_stores/{store}/files", A, 400, file_id=file)
        assert told["error"]["code"] == "conflict"
        other = New(FileInfo(await upload(run, ORCHARDS), "orchards.txt", "user_data", len(ORCHARDS)))
        await expires_while_one_comes(run, store, other, monkeypatch)
        adding = stores_of(run).contents.adding
        with pytest.raises(BadCall) as expired:  # since it was last checked
            await adding.add(Payer("alice"), store, [other], batch=True)
        assert expired.value.code == "vector_store_expired"
        await call(run, "DELETE", f"/vector_stores/{store}")
        with pytest.raises(NotFound):
            await adding.add(Payer("alice"), store, [other], batch=True)
        assert await rows(run, ITEMS, ORIGINS, BATCHES) == [0, 0, 0]


async def test_a_store_deleted_during_a_change_stays_deleted(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        store, _ = await filled(run)
        stores = stores_of(run).stores
        one, collection = await stores.one("alice", store), await stores.collections.one("alice", store)
        await call(run, "DELETE", f"/vector_stores/{store}")
        with pytest.raises(NotFound):
            await stores.change(one, "other", {"days": 1})
        with pytest.raises(NotFound):
            await stores.collections.change(collection, {"name": "other"}, Sharing(readers=("bob",)))
        assert await rows(run, STORES, READERS) == [0, 0]
        async with stores.database.reading() as connection:
            assert "other" not in set((await connection.execute(select(COLLECTIONS.c.name))).scalars())


async def test_concurrent_requests_can_turn_a_collection_into_a_vector_store(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    async with start(config(database_url, tmp_path)) as run:
        id = (await ask(run, "POST", "/collections", A, 201, name="lights"))["id"]
        told = [{"x": str(number)} for number in range(8)]
        await asyncio.gather(*(call(run, "POST", f"/vector_stores/{id}", A, 200, metadata=one) for one in told))
        assert (await call(run, "GET", f"/vector_stores/{id}"))["metadata"] in told


async def expires_while_one_comes(run: Running, store: str, other: New, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stores_of(run)
    fewer, database, came = Expiring.fewer, found.stores.database, [other]

    async def late(self: Expiring, id: str) -> bool:
        more = await fewer(self, id)
        if not more and came:
            async with database.writing() as connection:
                await found.contents.adding.insert(connection, Payer("alice"), id, [came.pop()], "")
        return more

    async with database.writing() as connection:
        await connection.execute(update(STORES).where(STORES.c.collection == store).values(active=1))
    with monkeypatch.context() as patched:
        patched.setattr(Expiring, "fewer", late)
        await found.expiring.tidy()
    assert not came and await rows(run, ITEMS, ORIGINS, BATCHES) == [0, 0, 0]


async def waits(database: Database) -> None:
    """Whether a connection waits for another one's lock."""
    async with asyncio.timeout(20), database.reading() as connection:
        while not (await connection.execute(text("SELECT 1 FROM pg_locks WHERE NOT granted"))).first():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has one writer
async def test_a_file_and_its_store_can_be_deleted_concurrently(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    async with start(config(database_url, tmp_path)) as run:
        store, file = await filled(run)
        contents = stores_of(run).contents
        item, database = (await contents.one(store, file)).item, contents.stores.database
        for work in (contents.store.change(item, {}, {"x": 1}), contents.store.remove(item)):
            async with (
                asyncio.TaskGroup() as group,
                database.writing() as connection,
            ):  # in the order in which a store is removed
                await connection.execute(select(COLLECTIONS).where(COLLECTIONS.c.id == store).with_for_update())
                for table in (PARTS, VALUES, ORIGINS):
                    await connection.execute(delete(table).where(table.c.item == item.id))
                group.create_task(work)
                await waits(database)
                await connection.execute(delete(ITEMS).where(ITEMS.c.id == item.id))
                await connection.rollback()  # as if it had failed, so that the next one has work to do
        assert await rows(run, ITEMS, PARTS, ORIGINS) == [0, 0, 0]


async def test_a_text_that_breaks_off_does_not_send_a_second_response(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        store, file = await filled(run)

        async def broken(self: Store, item: str, version: int) -> AsyncIterator[str]:
            yield "first"
            raise DatabaseAway("It has gone.")

        monkeypatch.setattr(Store, "text", broken)
        reader, writer = await asyncio.open_connection("127.0.0.1", URL(run.url).port)
        path = f"/v1/vector_stores/{store}/files/{file}/content"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a-key\r\n\r\n".encode())
        got = b""
        with suppress(ConnectionError):
            async with asyncio.timeout(20):
                while b"503" not in got and (some := await reader.read(65536)):
                    got += some
        writer.close()
        assert got.count(b"HTTP/1.1") <= 1 and not got.endswith(b"0\r\n\r\n")


async def test_repairs_work_in_pages_and_keep_rows_being_added(
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
            """Ready at the second check, as if another process had been working on it."""
            calls.append(id)
            if len(calls) == 2:
                await version(1)
            return await adding(self, id)

        await version(0)
        monkeypatch.setattr(Repair, "adding", done)
        assert await repair.run() == 0
        assert (item.id, 1) in await index.counts(store)
