"""Expired files and stores are invisible at once, although they are deleted later."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select, update

from plugins.documents import repair
from plugins.documents.moving import Moves
from plugins.documents.payer import Payer
from plugins.documents.tables import COPIES, ITEMS, ORIGINS, PARTS, STORES, VALUES
from plugins.documents.vectorstores.adding import New
from proxy.file_access import FileInfo
from tests.conftest import Start
from tests.plugins.documents.asking import A, ask
from tests.plugins.documents.storing import LANTERNS, ORCHARDS, call, config, filled, settled, upload
from tests.plugins.documents.test_jobs import until
from tests.plugins.documents.test_moving import Gate, ended, ollama
from tests.plugins.documents.test_vector_stores import WHO, names, rows, stores_of
from tests.plugins.files.asking import form, send


async def test_an_expired_file_is_not_found_anywhere(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        file = (await send(run, form(LANTERNS, "lanterns.txt", purpose="user_data", **lasting(3600))))["id"]
        store = (await call(run, "POST", "/vector_stores", file_ids=[file]))["id"]
        await settled(run, f"/vector_stores/{store}/files/{file}")
        assert await names(run, store) == ["lanterns.txt"]
        (found,) = (await ask(run, "POST", "/search", A, 200, **WHO))["results"]
        database = stores_of(run).stores.database
        async with database.writing() as connection:
            expires = (await connection.execute(select(ORIGINS.c.expires))).scalar_one()
            assert 3590e6 < expires - stores_of(run).stores.now() <= 3600e6
            await connection.execute(update(ORIGINS).values(expires=stores_of(run).stores.now()))
        assert await names(run, store) == []
        assert (await ask(run, "POST", "/search", A, 200, **WHO))["results"] == []
        assert (await ask(run, "GET", "/documents", A, 200))["data"] == []
        await ask(run, "GET", f"/documents/{found['document_id']}", A, 404)
        for path in (f"/vector_stores/{store}/files/{file}", f"/vector_stores/{store}/files/{file}/content"):
            assert (await call(run, "GET", path, A, 404))["error"]["code"] == "file_not_found"
        assert (await call(run, "GET", f"/vector_stores/{store}"))["file_counts"]["total"] == 0
        assert await rows(run, ITEMS) == [1]


def lasting(seconds: int) -> dict[str, str]:
    return {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(seconds)}


async def test_an_expired_store_is_empty_and_cannot_be_revived(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        store, file = await filled(run, expires_after={"anchor": "last_active_at", "days": 1})
        async with stores_of(run).stores.database.writing() as connection:
            await connection.execute(update(STORES).values(active=1))
        assert (await ask(run, "POST", "/search", A, 200, **WHO))["results"] == []
        assert (await ask(run, "GET", "/documents", A, 200))["data"] == []
        assert (await call(run, "GET", f"/vector_stores/{store}/files"))["data"] == []
        await call(run, "GET", f"/vector_stores/{store}/files/{file}", A, 404)
        told = await call(run, "POST", f"/vector_stores/{store}", A, 200, name="again", metadata={"a": "b"})
        assert (told["status"], told["name"], told["file_counts"]["total"]) == ("expired", "again", 0)
        refused = await ask(run, "POST", "/documents", A, 400, title="New", content="words", collection=store)
        assert refused["error"]["code"] == "vector_store_expired"
        assert await rows(run, ITEMS) == [1]


async def test_nothing_remains_of_a_file_deleted_while_it_is_added(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    async with start(config(database_url, tmp_path)) as run:
        store, file = await filled(run)
        contents = stores_of(run).contents
        late = [
            New(FileInfo("file-gone", "gone.txt", "user_data", 9)),
            New(FileInfo(file, "lanterns.txt", "user_data", 9)),
        ]
        await contents.adding.add(Payer("alice"), store, late)  # the first was deleted after it was looked up
        contents.runner.nudge()

        async def alone() -> bool:
            return await rows(run, ITEMS, ORIGINS) == [1, 1]

        await until(alone)
        assert await names(run, store) == ["lanterns.txt"]


async def test_a_store_that_expires_while_it_moves_and_grows_is_empty_and_keeps_its_model(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repair, "GRACE", 0.0)
    gate = Gate(monkeypatch, Moves, "swap")
    async with start(config(database_url, tmp_path), ollama()) as run:
        store, _ = await filled(run, expires_after={"anchor": "last_active_at", "days": 1})
        job = (await ask(run, "PUT", f"/collections/{store}", A, 202, embed="other-embed"))["moving"]["job_id"]
        await gate.reached.wait()
        await call(run, "POST", f"/vector_stores/{store}/files", A, 200, file_id=await upload(run, ORCHARDS))
        found = stores_of(run)
        async with found.stores.database.writing() as connection:
            await connection.execute(update(STORES).values(active=1))
        await found.expiring.tidy()
        gate.open.set()
        assert (await ended(run, job))["status"] == "cancelled"
        one = await ask(run, "GET", f"/collections/{store}")
        assert (one["embed"], one["moving"]) == ("demo-embed", None)
        assert await rows(run, ITEMS, ORIGINS, PARTS, COPIES, VALUES) == [0, 0, 0, 0, 0]
        ingest = found.contents.runner.ingest
        await repair.Repair(ingest.store, ingest.collections, ingest.index).sweep()
        assert list(await ingest.index.tables()) == []
