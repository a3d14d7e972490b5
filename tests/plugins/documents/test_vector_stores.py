"""Vector stores: owners, errors, restarts and expiry."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import func, select, update

from plugins.documents.chunks import Cutter
from plugins.documents.scores import Hit, joined
from plugins.documents.tables import BATCHES, COLLECTIONS, ITEMS, JOBS, ORIGINS, PARTS, STORES, VALUES
from plugins.documents.vectorstores.api import VectorStores
from proxy.errors import ProxyError, UpstreamError
from proxy.stores.vectors import Row
from proxy.upstreams.demo import Simulator
from tests.conftest import Running, Start
from tests.plugins.documents.asking import OPS, A, B, ask
from tests.plugins.documents.asking import config as documents
from tests.plugins.documents.storing import LANTERNS, ORCHARDS, call, config, filled, settled, upload

WHO = {"query": "Who kept the lantern of Porthgwarra?"}


def stores_of(run: Running) -> VectorStores:
    (found,) = [
        route.handle.__self__  # type: ignore[attr-defined]
        for route in run.server.live.pipeline.router.routes
        if (route.method, route.path) == ("POST", "/v1/vector_stores")
    ]
    assert isinstance(found, VectorStores)
    return found


async def rows(run: Running, *tables: Any) -> list[int]:
    async with stores_of(run).stores.database.reading() as connection:
        counts = [select(func.count()).select_from(table) for table in tables]
        return [int((await connection.execute(one)).scalar_one()) for one in counts]


async def names(run: Running, store: str, who: dict[str, str] = A, **more: Any) -> list[str]:
    told = await call(run, "POST", f"/vector_stores/{store}/search", who, 200, **{**WHO, **more})
    return [one["filename"] for one in told["data"]]


async def test_other_callers_stores_are_not_found(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        store, file = await filled(run)
        batch = (await call(run, "POST", f"/vector_stores/{store}/file_batches", A, 200, file_ids=[file]))["id"]
        mine = await upload(run, ORCHARDS, who=B)
        of = f"/vector_stores/{store}"
        routes: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", of, {}),
            ("POST", of, {"name": "x", "expires_after": {"anchor": "last_active_at", "days": 300}}),
            ("DELETE", of, {}),
            ("POST", f"{of}/search", WHO),
            ("GET", f"{of}/files", {}),
            ("POST", f"{of}/files", {"file_id": mine}),
            ("GET", f"{of}/files/{file}", {}),
            ("POST", f"{of}/files/{file}", {"attributes": {"x": 1}}),
            ("DELETE", f"{of}/files/{file}", {}),
            ("GET", f"{of}/files/{file}/content", {}),
            ("POST", f"{of}/file_batches", {"file_ids": [mine]}),
            ("GET", f"{of}/file_batches/{batch}", {}),
            ("POST", f"{of}/file_batches/{batch}/cancel", {}),
            ("GET", f"{of}/file_batches/{batch}/files", {}),
        ]
        there = {(route.method, route.path) for route in stores_of(run).routes()}
        assert len(there) == len(routes) + 2  # routes that create and list
        for who in (B, OPS):
            for method, path, body in routes:
                told = await call(run, method, path, who, 404, **body)
                assert told["error"]["code"] == "vector_store_not_found", path
            assert (await call(run, "GET", f"/vector_stores?after={store}", who, 404))["error"]["param"] == "after"
            assert (await call(run, "GET", "/vector_stores", who))["data"] == []
        other = (await call(run, "POST", "/vector_stores", B, 200, name="b"))["id"]
        for path, body in (
            (f"/vector_stores/{other}/files", {"file_id": file}),
            (f"/vector_stores/{other}/file_batches", {"file_ids": [mine, file]}),
            ("/vector_stores", {"file_ids": [file]}),
        ):
            assert (await call(run, "POST", path, B, 404, **body))["error"]["code"] == "file_not_found"
        for path in (f"files/{file}", f"file_batches/{batch}", f"files?before={file}"):
            await call(run, "GET", f"/vector_stores/{other}/{path}", B, 404)
        assert await names(run, store) == ["lanterns.txt"] and (await call(run, "GET", of))["name"] == "lights"


async def test_a_shared_store_is_read_only(start: Start, tmp_path: Path) -> None:
    """A vector store is a collection, and both APIs show it."""
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        store, file = await filled(run)
        await ask(run, "PUT", "/collections/lights", A, 200, shared={"readers": ["bob"]})
        assert await names(run, store, B) == ["lanterns.txt"]
        for method, path, body in (
            ("POST", "", {"name": "x"}), ("DELETE", "", {}), ("DELETE", f"/files/{file}", {}),
        ):  # fmt: skip
            assert (await call(run, method, f"/vector_stores/{store}{path}", B, 403, **body))["error"]["message"]
        told = await ask(run, "POST", "/documents", A, 201, title="T", content="A lantern is a lamp.", collection=store,
                         wait=30)  # fmt: skip
        listed = (await call(run, "GET", f"/vector_stores/{store}/files"))["data"]
        assert [one["id"] for one in listed] == [told["document_id"], file]
        assert (await call(run, "GET", f"/vector_stores/{store}"))["file_counts"]["completed"] == 2
        found = await ask(run, "POST", "/search", A, 200, query="lantern", collections=["lights"])
        assert {one["title"] for one in found["results"]} == {"T", "lanterns.txt"}
        default = (await ask(run, "GET", "/collections/lights"))["id"]
        assert default == store
        await ask(run, "DELETE", "/collections/lights", A, 200)
        await call(run, "GET", f"/vector_stores/{store}", A, 404)
        assert await rows(run, STORES, ORIGINS, ITEMS, PARTS, BATCHES) == [0] * 5


STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 60}}
BAD: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST", "", {"file_ids": ["file-x"]}, "file_ids[0]"),
    ("POST", "", {"file_ids": "file-x"}, "file_ids"),
    ("POST", "", {"name": "x" * 101}, "name"),
    ("POST", "", {"metadata": {"a": 1}}, "metadata"),
    ("POST", "", {"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
    ("POST", "", {"expires_after": {"anchor": "created_at", "days": 1}}, "expires_after.anchor"),
    ("POST", "", {"expires_after": {"anchor": "last_active_at", "days": 0}}, "expires_after.days"),
    ("POST", "", {"chunking_strategy": {"type": "smart"}}, "chunking_strategy.type"),
    ("POST", "", {"chunking_strategy": {"type": "static"}}, "chunking_strategy"),
    ("POST", "", {"chunking_strategy": STATIC}, "chunking_strategy.static"),
    ("POST", "", {"path": "/etc"}, "path"),
    ("GET", "?limit=101", {}, "limit"),
    ("GET", "?order=up", {}, "order"),
    ("GET", "?after=vs_1", {}, "after"),
    ("GET", "/vs_1", {}, "vector_store_id"),
    ("POST", "/ID", {"color": "red"}, "color"),
    ("POST", "/ID/search", {"query": 1}, "query"),
    ("POST", "/ID/search", {"query": []}, "query"),
    ("POST", "/ID/search", {"query": ["a", " "]}, "query[1]"),
    ("POST", "/ID/search", {"query": "x", "max_num_results": 51}, "max_num_results"),
    ("POST", "/ID/search", {"query": "x", "ranking_options": {"score_threshold": 2}}, "ranking_options.score_t"),
    ("POST", "/ID/search", {"query": "x", "ranking_options": {"ranker": "best"}}, "ranking_options.ranker"),
    ("POST", "/ID/search", {"query": "x", "filters": {"year": 1}}, "filters.type"),
    ("POST", "/ID/search", {"query": "x", "filters": {"type": "eq", "key": "a"}}, "filters.value"),
    ("POST", "/ID/search", {"query": "x", "filters": {"type": "and", "filters": []}}, "filters.filters"),
    ("POST", "/ID/search", {"query": "x", "filters": {"type": "or", "filters": [{"type": "gt", "key": "a",
                                                      "value": "b"}]}}, "filters.filters[0].value"),
    ("POST", "/ID/files", {}, "file_id"),
    ("POST", "/ID/files", {"file_id": "file-x"}, "file_id"),
    ("POST", "/ID/files", {"file_id": "x", "attributes": {"a": [1]}}, "attributes"),
    ("GET", "/ID/files?filter=done", {}, "filter"),
    ("GET", "/ID/files?after=file-1", {}, "after"),
    ("GET", "/ID/files/file-1", {}, "file_id"),
    ("POST", "/ID/files/file-1", {}, "attributes"),
    ("POST", "/ID/file_batches", {}, ""),
    ("POST", "/ID/file_batches", {"file_ids": []}, "file_ids"),
    ("POST", "/ID/file_batches", {"file_ids": ["a"], "files": [{"file_id": "a"}]}, ""),
    ("POST", "/ID/file_batches", {"files": [{"file_id": "a"}]}, "files[0]"),
    ("POST", "/ID/file_batches", {"files": [{"id": "a"}]}, "files[0].file_id"),
    ("POST", "/ID/file_batches", {"file_ids": ["x"] * 2001}, "file_ids"),
    ("GET", "/ID/file_batches/vsfb_1", {}, "batch_id"),
]  # fmt: skip


async def test_an_invalid_field_is_named_in_the_error(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, max_collections=2, max_documents=1)) as run:
        id = (await call(run, "POST", "/vector_stores"))["id"]
        for method, path, body, param in BAD:
            told = await call(run, method, "/vector_stores" + path.replace("ID", id), A, None, **body)
            assert told["error"]["message"] and str(told["error"]["param"] or "").startswith(param), (path, body, told)
            assert (await rows(run, COLLECTIONS, ITEMS)) == [1, 0]
        files = [await upload(run, one) for one in (LANTERNS, ORCHARDS)]
        told = await call(run, "POST", f"/vector_stores/{id}/file_batches", A, 400, file_ids=files)
        assert told["error"]["code"] == "too_many_documents" and await rows(run, ITEMS, BATCHES) == [0, 0]
        await call(run, "POST", "/vector_stores")
        assert (await call(run, "POST", "/vector_stores", A, 400))["error"]["code"] == "too_many_collections"


async def test_without_the_plugin_files_nothing_can_be_added(start: Start, tmp_path: Path) -> None:
    async with start(documents(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        id = (await call(run, "POST", "/vector_stores"))["id"]
        told = await call(run, "POST", f"/vector_stores/{id}/files", A, 400, file_id="file-1")
        assert told["error"]["code"] == "plugin_missing" and "'files'" in told["error"]["message"]


async def test_a_batch_continues_after_a_restart_and_can_be_cancelled(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    ollama = Simulator(load_time=3600.0)  # nothing is embedded
    async with start(config(database_url, tmp_path), ollama) as run:
        store = (await call(run, "POST", "/vector_stores"))["id"]
        files = [await upload(run, f"Lantern {number}".encode(), f"{number}.txt") for number in range(4)]
        batch = await call(run, "POST", f"/vector_stores/{store}/file_batches", A, 200, file_ids=files[:3])
        assert (batch["status"], batch["file_counts"]["in_progress"]) == ("in_progress", 3)
        other = await call(run, "POST", f"/vector_stores/{store}/file_batches", A, 200, file_ids=files[3:])
        path = f"/vector_stores/{store}/file_batches"
        gone = await call(run, "POST", f"{path}/{other['id']}/cancel")
        assert (gone["status"], gone["file_counts"]["cancelled"]) == ("cancelled", 1)
        assert (await call(run, "GET", f"/vector_stores/{store}"))["status"] == "in_progress"
    async with start(config(database_url, tmp_path)) as run:
        told = await settled(run, f"{path}/{batch['id']}")
        assert (told["status"], told["file_counts"]["completed"]) == ("completed", 3)
        assert len(await names(run, store, query="lantern")) == 3
        still = await call(run, "POST", f"{path}/{batch['id']}/cancel")  # it has ended
        assert still["status"] == "completed"
        listed = await call(run, "GET", f"/vector_stores/{store}/files?filter=cancelled")
        assert [one["id"] for one in listed["data"]] == files[3:]
        await call(run, "POST", f"/vector_stores/{store}/files", A, 200, file_id=files[3])  # again; now it is indexed
        assert (await settled(run, f"/vector_stores/{store}/files/{files[3]}"))["status"] == "completed"


async def test_a_cancelled_batch_keeps_files_that_were_also_added_otherwise(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    ollama = Simulator(load_time=3600.0)  # nothing is embedded
    async with start(config(database_url, tmp_path), ollama) as run:
        store = (await call(run, "POST", "/vector_stores"))["id"]
        of = f"/vector_stores/{store}"
        files = [await upload(run, f"Lantern {number}".encode(), f"{number}.txt") for number in range(4)]
        before, otherwise, brought, after = files
        cut = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
        for file in (before, otherwise):
            await call(run, "POST", f"{of}/files", A, 200, file_id=file)
        each = [
            {"file_id": file, "chunking_strategy": cut} if file == otherwise else {"file_id": file} for file in files
        ]
        batch = await call(run, "POST", f"{of}/file_batches", A, 200, files=each)
        assert batch["file_counts"]["total"] == batch["file_counts"]["in_progress"] == 4
        await call(run, "POST", f"{of}/files", A, 200, file_id=after)
        told = await call(run, "POST", f"{of}/file_batches/{batch['id']}/cancel")
        counts = told["file_counts"]
        assert (told["status"], counts["cancelled"], counts["in_progress"]) == ("cancelled", 1, 3)
        again = await call(run, "POST", f"{of}/file_batches", A, 200, file_ids=[brought])
        assert (await call(run, "POST", f"{of}/file_batches/{again['id']}/cancel"))["file_counts"]["cancelled"] == 1
    async with start(config(database_url, tmp_path)) as run:
        for file in (before, otherwise, after):
            assert (await settled(run, f"{of}/files/{file}"))["status"] == "completed"
        assert (await call(run, "GET", f"{of}/files/{brought}"))["status"] == "cancelled"


async def test_an_unused_store_expires(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        lasts = {"anchor": "last_active_at", "days": 2}
        store, file = await filled(run, expires_after=lasts)
        kept, _ = await filled(run)
        expiring, stores = stores_of(run).expiring, stores_of(run).stores
        await expiring.tidy()
        assert await names(run, store) == ["lanterns.txt"]

        async def aged(days: float) -> None:
            async with stores.database.writing() as connection:
                at = stores.now() - int(days * 86400e6)
                await connection.execute(update(STORES).where(STORES.c.collection == store).values(active=at))

        await aged(1.9)
        assert await names(run, store) == ["lanterns.txt"]  # a search counts as a use
        await expiring.tidy()
        assert (await call(run, "GET", f"/vector_stores/{store}"))["status"] == "completed"
        await aged(2.1)
        for _ in range(2):  # before and after its documents are deleted
            told = await call(run, "GET", f"/vector_stores/{store}")
            assert told["status"] == "expired"
            for path, body in (("search", WHO), ("files", {"file_id": file}), ("", {"expires_after": lasts})):
                refused = await call(run, "POST", f"/vector_stores/{store}/{path}".rstrip("/"), A, 400, **body)
                assert refused["error"]["code"] == "vector_store_expired"
            await expiring.tidy()
        assert told["file_counts"]["total"] == told["usage_bytes"] == 0
        assert await rows(run, ITEMS, PARTS, ORIGINS, JOBS, VALUES) == [1, 1, 1, 1, 0]
        assert await names(run, kept) == ["lanterns.txt"]


async def test_deleting_a_file_or_its_owner_deletes_what_depends_on_them(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        store, file = await filled(run)
        twin = await upload(run, LANTERNS, "twin.txt")
        await call(run, "POST", f"/vector_stores/{store}/files", A, 200, file_id=twin)
        assert (await settled(run, f"/vector_stores/{store}/files/{twin}"))["status"] == "completed"
        async with run.http.delete(f"{run.url}/v1/files/{file}", headers=A) as response:
            assert response.status == 200
        assert await names(run, store) == ["twin.txt"]
        async with run.http.delete(f"{run.url}/api/me/data", headers=A) as response:
            deleted = (await response.json())["deleted"]
        assert (deleted["files"], deleted["documents"]) in ((1, 1), (1, 0))
        assert await rows(run, ITEMS, ORIGINS, STORES, PARTS) == [0] * 4


BROKEN = [
    ("a.exe", b"MZ", "unsupported_file"),
    ("a.pdf", b"no pdf", "invalid_file"),
    ("a.txt", b" \n ", "invalid_file"),
    ("a.txt", b"...", "invalid_file"),
    ("a.txt", b"a\0b", "invalid_file"),
    ("a.txt", b"x" * 1001, "invalid_file"),
]


async def test_an_unreadable_file_fails_with_the_reason(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, max_file_bytes=1000)) as run:
        ids = [await upload(run, data, name) for name, data, _ in BROKEN]
        store = (await call(run, "POST", "/vector_stores", A, 200, file_ids=ids))["id"]
        for id, (_, _, code) in zip(ids, BROKEN, strict=True):
            told = await settled(run, f"/vector_stores/{store}/files/{id}")
            assert (told["status"], told["last_error"]["code"]) == ("failed", code) and told["last_error"]["message"]
        assert (await call(run, "GET", f"/vector_stores/{store}"))["file_counts"]["failed"] == len(BROKEN)


async def test_a_score_threshold_filters_results(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        store, _ = await filled(run)
        search = f"/vector_stores/{store}/search"
        good = (await call(run, "POST", search, A, 200, **WHO))["data"][0]["score"]
        bad = (await call(run, "POST", search, A, 200, query="zebra"))["data"][0]["score"]
        assert 2 * bad < good <= 1
        least = {"score_threshold": good - 0.01}
        assert await names(run, store, ranking_options=least) == ["lanterns.txt"]
        assert await names(run, store, query="zebra", ranking_options=least) == []
        weights = {"embedding_weight": 1, "text_weight": 0}
        assert await names(run, store, ranking_options={"ranker": "none", "hybrid_search": weights}) == ["lanterns.txt"]


SENTENCES = " ".join(f"This is sentence number {number} of the text." for number in range(60))


def test_overlapping_chunks_are_joined_without_repetition() -> None:
    chunks = Cutter(300, 100).cut(SENTENCES)
    assert all(len(one.text) <= 300 for one in chunks)
    assert any(one.end > other.start for one, other in pairwise(chunks))
    hits = [hit(place, [one.start, one.end, 0, 0, []], one.text) for place, one in enumerate(chunks)]
    whole = hits[0]
    for one in hits[1:]:
        whole = joined(whole, one)
    assert whole.content == SENTENCES


def hit(position: int, about: Sequence[Any], text: str) -> Hit:
    return Hit(Row("d", 1, position, text, orjson.dumps(about).decode()), "c", "m", 0.5, last=position)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProxyError("x", code="unsupported_file"), "unsupported_file"),
        (ProxyError("x", code="unreadable_file"), "invalid_file"),
        (UpstreamError("x", "server"), ""),
    ],
)
async def test_failures_have_openais_codes(start: Start, tmp_path: Path, error: ProxyError, code: str) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        await filled(run)
        origins = stores_of(run).contents.origins
        (item,) = await origins.some(ORIGINS.c.file != "")
        await origins.note(item, error)
        assert (await origins.of([item]))[item].code == code
