"""Documents through a running server: added, found, changed and removed, with permission only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from plugins.documents.filters import condition
from plugins.documents.search import Search, SearchRequest
from plugins.documents.store import Store
from proxy.edge import request_reader
from proxy.errors import UpstreamError
from tests.conftest import Running, Start
from tests.plugins.documents.asking import OPS, TEXTS, A, B, add, ask, config, fill, titles

WHO = "Who was the keeper of the lantern?"


async def test_an_added_document_is_found_and_the_score_explained(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    async with start(config(database_url, tmp_path)) as run:
        ids = await fill(run)
        for query, title in (
            (WHO, "Lanterns"),
            ("When are pears grafted?", "Orchards"),
            ("Why does the clock strike thirteen?", "Clocks"),
        ):
            told = await ask(run, "POST", "/search", query=query, explain=True)
            first = told["results"][0]
            assert (first["title"], first["document_id"], first["content"]) == (title, ids[title], TEXTS[title])
            assert first["score"] == 1 and first["explain"]["vector_rank"] == first["explain"]["text_rank"] == 1
            assert first["explain"]["cosine"] > 0.4 > 0.2 > told["results"][1]["explain"]["cosine"]
        told = await ask(run, "POST", "/search", query=WHO, top_k=1, explain=True)
        assert len(told["results"]) == 1 and {one["reason"] for one in told["dropped"]} == {"not among the best"}
        stats = await ask(run, "GET", "/stats")
        assert (stats["documents"], stats["chunks"]) == (3, 3)
        assert (stats["collections"][0]["name"], stats["collections"][0]["ready"]) == ("default", 3)


async def test_equal_contents_are_one_document(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        first = await add(run, "One", "The same text.\r\n")
        again = await ask(run, "POST", "/documents", A, 200, title="Two", content="The same\0 text.\n", wait=9)
        assert again["document_id"] == first["document_id"] and again["duplicate"] and not first["duplicate"]
        several = (ask(run, "POST", "/documents", title="T", content="At once.", wait=9) for _ in range(8))
        assert len({one["document_id"] for one in await asyncio.gather(*several)}) == 1
        other = await add(run, "One", "The same text.", B)
        assert other["document_id"] != first["document_id"]  # another caller's equal document stays unknown
        assert len((await ask(run, "GET", "/documents"))["data"]) == 2


async def test_a_new_version_replaces_the_old_one(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        ids = await fill(run)
        path = f"/documents/{ids['Lanterns']}"
        red = "The lighthouse has a red lamp."
        told = await ask(run, "PUT", path, A, 200, content=red, metadata={"y": 1}, wait=9)
        assert (told["version"], told["searched_version"], told["status"]) == (2, 2, "ready")
        assert told["metadata"] == {"y": 1} and told["title"] == "Lanterns"
        assert (await ask(run, "POST", "/search", query=WHO))["results"][0]["content"] != TEXTS["Lanterns"]
        assert await titles(run, "colour of the lighthouse lamp", top_k=1) == ["Lanterns"]
        same = await ask(run, "PUT", path, A, 200, content=red, source="http://x.example")
        assert (same["version"], same["source"]) == (2, "http://x.example")
        renamed = await ask(run, "PUT", path, A, 200, title="Beacons", wait=9)
        assert renamed["version"] == 3
        assert await titles(run, "beacons", top_k=1) == ["Beacons"]  # the title is also searched
        doubled = await ask(run, "PUT", path, A, 400, content=TEXTS["Clocks"], title="Half", metadata={"z": 1})
        assert doubled["error"]["code"] == "duplicate_document"
        after = await ask(run, "GET", path)  # a refused change changes nothing
        assert (after["title"], after["metadata"], after["version"]) == ("Beacons", {"y": 1}, 3)
        async with run.http.get(f"{run.url}/api/rag{path}/content", headers=A) as response:
            assert await response.text() == red


async def test_a_document_deleted_while_it_is_downloaded_breaks_the_download_off(
    start: Start, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Store.text

    async def removing(self: Store, item: str, version: int) -> AsyncIterator[str]:
        async for part in whole(self, item, version):
            yield part
            if going:
                await ask(run, "DELETE", f"/documents/{going.pop()}", A, 200)

    going: list[str] = []
    async with start(config(database_url, tmp_path)) as run:
        id = (await add(run, "Long", "A sentence of some words. " * 8000))["document_id"]
        url = f"{run.url}/api/rag/documents/{id}/content"
        monkeypatch.setattr(Store, "text", removing)
        async with run.http.get(url, headers=A) as response:
            assert await response.text() == "A sentence of some words. " * 8000
        going.append(id)
        with pytest.raises(aiohttp.ClientPayloadError):
            await (await run.http.get(url, headers=A)).text()


async def test_a_removed_document_is_gone(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        ids = await fill(run)
        path = f"/documents/{ids['Lanterns']}"
        assert (await ask(run, "DELETE", path, A, 200))["deleted"]
        assert "Lanterns" not in await titles(run, WHO)
        assert (await ask(run, "GET", path, A, 404))["error"]["code"] == "document_not_found"
        await add(run, "Lanterns", TEXTS["Lanterns"])  # and can be added again
        assert (await titles(run, WHO))[0] == "Lanterns"
        collection = (await ask(run, "GET", "/collections"))["data"][0]["id"]
        assert (await ask(run, "DELETE", f"/collections/{collection}", A, 200))["deleted"]
        assert await titles(run, WHO) == [] and (await ask(run, "GET", "/stats"))["documents"] == 0
        await add(run, "Lanterns", TEXTS["Lanterns"])
        assert (await titles(run, WHO))[0] == "Lanterns"


async def test_no_document_is_visible_without_permission(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        secret = await add(run, "Secret", "The canary sings at midnight in the cellar.", collection=None)
        open_one = await ask(run, "POST", "/collections", A, 201, name="open", shared={"everyone": True})
        club = await ask(run, "POST", "/collections", A, 201, name="club", shared={"readers": ["bob"]})
        await add(run, "Open", "The canary sings in the market hall.", collection="open")
        await add(run, "Club", "The canary sings in the club house.", collection="club")
        mine = (await ask(run, "GET", "/collections"))["data"]
        default = next(one["id"] for one in mine if one["name"] == "default")
        query = "Where does the canary sing?"
        assert set(await titles(run, query)) == {"Secret", "Open", "Club"}
        assert set(await titles(run, query, B)) == {"Open", "Club"}
        assert set(await titles(run, query, OPS)) == {"Open"}  # admins do not read others' documents
        assert await titles(run, query, B, collections=[open_one["id"]]) == ["Open"]
        for who, path, name in (
            (B, "/search", default),
            (B, "/search", "default"),
            (OPS, "/search", club["id"]),
            (B, "/search", "club"),  # names are the owner's; others use the ID
        ):
            told = await ask(run, "POST", path, who, 404, query=query, collections=[name])
            assert (told["error"]["code"], told["error"]["param"]) == ("collection_not_found", "collections")
        await check_hidden(run, secret)
        assert (await ask(run, "GET", "/documents", B))["data"] == []
        assert (await ask(run, "GET", f"/documents?collection={default}", B, 404))["error"]["param"] == "collection"
        assert "canary" not in str(await ask(run, "GET", "/stats", OPS)) and default not in str(
            await ask(run, "GET", "/stats", B)
        )
        await check_read_only(run, club["id"])
        assert (await ask(run, "PUT", f"/collections/{club['id']}", A, 200, shared={}))["shared"]["readers"] == []
        assert set(await titles(run, query, B)) == {"Open"}


async def check_hidden(run: Running, document: dict[str, Any]) -> None:
    id = document["document_id"]
    for method, path in (("GET", id), ("GET", f"{id}/content"), ("PUT", id), ("DELETE", id)):
        body = {"title": "x"} if method == "PUT" else {}
        told = await ask(run, method, f"/documents/{path}", B, 404, **body)
        assert told["error"]["code"] == "document_not_found"
    assert (await ask(run, "GET", f"/documents?after={id}", B, 404))["error"]["param"] == "after"
    assert (await ask(run, "GET", f"/jobs/{document['job_id']}", B, 404))["error"]["code"] == "job_not_found"


async def check_read_only(run: Running, club: str) -> None:
    (shared,) = (await ask(run, "GET", f"/documents?collection={club}", B))["data"]
    assert (await ask(run, "GET", f"/documents/{shared['document_id']}", B, 200))["title"] == "Club"
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("PUT", f"/documents/{shared['document_id']}", {"title": "x"}),
        ("DELETE", f"/documents/{shared['document_id']}", {}),
        ("PUT", f"/collections/{club}", {"name": "x"}),
        ("DELETE", f"/collections/{club}", {}),
        ("POST", "/documents", {"title": "x", "content": "x", "collection": club}),
    ]
    for method, path, body in calls:
        assert (await ask(run, method, path, B, 403, **body))["error"]["code"] == "read_only"
    assert "shared" not in await ask(run, "GET", f"/collections/{club}", B)


FILTERS = [
    ({"kind": "report"}, {"A", "B"}),
    ({"kind": "report", "year": 2020}, {"A"}),
    ({"year": 2020.0}, {"A"}),
    ({"draft": True}, {"B"}),
    ({"type": "gte", "key": "year", "value": 2021}, {"B", "C"}),
    ({"type": "in", "key": "kind", "value": ["report", "memo"]}, {"A", "B", "C"}),
    ({"type": "ne", "key": "kind", "value": "report"}, {"C", "D"}),
    ({"type": "or", "filters": [{"year": 2020}, {"type": "lt", "key": "year", "value": 2019}]}, {"A"}),
    ({"type": "and", "filters": [{"kind": "report"}, {"type": "nin", "key": "year", "value": [2020]}]}, {"B"}),
    ({"type": "in", "key": "year", "value": [2020.0, "2021.5", True, 2022]}, {"A", "C"}),
    ({"type": "nin", "key": "draft", "value": [1, "true", True]}, {"A", "C", "D"}),
    ({"kind": "' OR 1=1 --"}, set()),
]
WRONG = [
    ([], "filter"),
    ({}, "filter"),
    ({"kind": None}, "filter.kind"),
    ({"type": "gt", "key": "year", "value": "x"}, "filter.value"),
    ({"type": "in", "key": "year", "value": []}, "filter.value"),
    ({"type": "is", "key": "year", "value": 2020}, "filter.type"),
    ({"type": "eq", "key": "year"}, "filter.value"),
    ({"type": "xor", "filters": [{"year": 2020}]}, "filter.type"),
    ({"type": "and", "filters": []}, "filter.filters"),
    ({"type": "and", "filters": [{"type": "and", "filters": ["x"]}]}, "filter.filters[0].filters[0]"),
]


async def test_a_filter_selects_documents_by_metadata(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        given: list[dict[str, Any]] = [
            {"kind": "report", "year": 2020},
            {"kind": "report", "year": 2021.5, "draft": True},
            {"kind": "memo", "year": 2022},
            {},
        ]
        for name, metadata in zip("ABCD", given, strict=True):
            await add(run, name, f"Rainfall in district {name} was heavy.", metadata=metadata)
        for filter, expected in FILTERS:
            assert set(await titles(run, "rainfall", top_k=9, filter=filter)) == expected, filter
        for filter, name in WRONG:
            assert (await ask(run, "POST", "/search", A, 400, query="x", filter=filter))["error"]["param"] == name


def test_a_filter_with_many_values_is_one_condition() -> None:
    """One condition per value took a second for the most values allowed, during which nothing else was served."""
    few, many = ({"type": "in", "key": "a", "value": [*range(count), "x"]} for count in (2, 63))
    assert str(condition(few)) == str(condition(many))


BAD: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST", "/documents", {"content": "x"}, "title"),
    ("POST", "/documents", {"title": "x"}, "content"),
    ("POST", "/documents", {"title": "x", "content": ""}, "content"),
    ("POST", "/documents", {"title": "x", "content": "x", "metadata": {"a": [1]}}, "metadata.a"),
    ("POST", "/documents", {"title": "x", "content": "x", "metadata": {"a": {"x": 1}}}, "metadata.a"),
    ("POST", "/documents", {"title": "x", "content": "x", "metadata": {"a": "x" * 600}}, "metadata"),
    ("POST", "/documents", {"title": "x", "content": "x", "wait": 100}, "wait"),
    ("POST", "/documents", {"title": "x", "content": "x", "collection": "none"}, "collection"),
    ("POST", "/documents", {"title": "x", "content": "y" * 5001}, "content"),
    ("POST", "/documents", {"title": "x", "content": "x", "path": "/etc/passwd"}, "path"),
    ("POST", "/documents", {"title": 1, "content": "y" * 5000}, "title"),
    ("POST", "/collections", {"name": ""}, "name"),
    ("POST", "/collections", {"name": "\0"}, "name"),
    ("POST", "/documents", {"title": "\0", "content": "x"}, "title"),
    ("POST", "/documents", {"title": "x", "content": "\0"}, "content"),
    ("POST", "/search", {"query": "  "}, "query"),
    ("POST", "/search", {"query": "x", "top_k": 0}, "top_k"),
    ("POST", "/search", {"query": "x", "collections": "default"}, "collections"),
    ("POST", "/generate", {"query": "x"}, "model"),
    ("GET", "/documents?limit=1000", {}, "limit"),
    ("GET", "/documents?status=lost", {}, "status"),
    ("GET", "/documents/doc_1", {}, "id"),
    ("DELETE", "/jobs/job_1", {}, "id"),
]


async def test_an_invalid_field_is_named_in_the_error(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_reader, "LARGE", 2000)  # large bodies are checked in a thread
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, max_characters=5000)) as run:
        for method, path, body, param in BAD:
            told = await ask(run, method, path, **body)
            assert told["error"]["param"] == param and told["error"]["message"]


async def test_the_error_for_a_union_lists_all_accepted_types(start: Start, tmp_path: Path) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        told = await ask(run, "POST", "/documents", A, 400, title="x", content="x", metadata={"a": None})
    message = (
        "Invalid 'metadata.a': Input should be a valid string or a valid boolean or a valid integer or a valid number."
    )
    assert (told["error"]["param"], told["error"]["message"]) == ("metadata.a", message)


async def test_documents_are_paged(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run:
        for number in range(5):
            await add(run, f"T{number}", f"Text number {number}.")
        seen, after, more = [], "", True
        while more:
            told = await ask(run, "GET", f"/documents?limit=2{after}")
            seen += [one["title"] for one in told["data"]]
            after, more = f"&after={told['last_id']}", told["has_more"]
        assert seen == ["T4", "T3", "T2", "T1", "T0"]
        assert (await ask(run, "GET", "/documents?status=failed"))["data"] == []


async def test_empty_collections_do_not_count_towards_the_limit_of_a_search(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.documents.search.WIDEST", 1)
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        await add(run, "Lanterns", TEXTS["Lanterns"])
        for name in ("new", "newer"):
            await ask(run, "POST", "/collections", A, 201, name=name)
        assert await titles(run, "Who kept the lantern?") == ["Lanterns"]
        await add(run, "Clocks", TEXTS["Clocks"], collection="new")
        told = await ask(run, "POST", "/search", A, 400, query="Who kept the lantern?")
        assert (told["error"]["code"], told["error"]["param"]) == ("too_many_collections", "collections")
        assert await titles(run, "Who kept the lantern?", collections=["default"]) == ["Lanterns"]


async def test_too_many_shared_collections_do_not_prevent_a_search(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugins.documents.search.WIDEST", 2)
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        await add(run, "Lanterns", TEXTS["Lanterns"])
        for number in range(2):
            made = await ask(run, "POST", "/collections", B, 201, name=f"all {number}", shared={"everyone": True})
            await add(run, f"Clocks {number}", TEXTS["Clocks"], B, collection=made["name"])
        told = await ask(run, "POST", "/search", A, query=WHO)
        assert [one["title"] for one in told["results"]] == ["Lanterns"] and told["partial"]
        assert "partial" not in await ask(run, "POST", "/search", A, query=WHO, collections=["default"])
        body = {"model": "demo", "messages": [{"role": "user", "content": WHO}], "rag": True}
        async with run.http.post(f"{run.url}/v1/chat/completions", json=body, headers=A) as response:
            assert response.headers["x-gemmapy-rag"] == "1 passage of 1, shared collections left out"


async def test_a_failing_model_of_a_shared_collection_does_not_prevent_a_search(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Search.vector

    async def vector(self: Search, request: SearchRequest, model: str) -> Any:
        if model == "demo-embed:latest":
            raise UpstreamError("It is not there any more.", "connect")
        return await whole(self, request, model)

    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path)) as run:
        await add(run, "Lanterns", TEXTS["Lanterns"])
        shared = {"name": "theirs", "embed": "demo-embed:latest", "shared": {"everyone": True}}
        theirs = (await ask(run, "POST", "/collections", B, 201, **shared))["id"]
        await add(run, "Clocks", TEXTS["Clocks"], B, collection="theirs")
        assert len((await ask(run, "POST", "/search", A, query=WHO))["results"]) == 2
        monkeypatch.setattr(Search, "vector", vector)
        told = await ask(run, "POST", "/search", A, query=WHO)
        assert [one["title"] for one in told["results"]] == ["Lanterns"] and told["partial"]
        await ask(run, "POST", "/search", A, 502, query=WHO, collections=[theirs])
        await ask(run, "POST", "/search", B, 502, query=WHO)


async def test_storage_per_caller_is_limited(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path, max_documents=2, max_collections=2)) as run:
        await add(run, "A", "one")
        await add(run, "B", "two")
        told = await ask(run, "POST", "/documents", A, 400, title="C", content="three")
        assert told["error"]["code"] == "too_many_documents"
        await ask(run, "POST", "/collections", A, 201, name="more")
        told = await ask(run, "POST", "/collections", A, 400, name="too many")
        assert told["error"]["code"] == "too_many_collections"
        told = await ask(run, "PUT", "/collections/more", A, 400, name="default")
        assert told["error"]["code"] == "collection_exists"
        await add(run, "A", "one", B)
        for name in ("one", "two"):
            await ask(run, "POST", "/collections", OPS, 201, name=name)
        told = await ask(
            run, "POST", "/documents", OPS, 400, title="A", content="one"
        )  # there is no space for 'default'
        assert told["error"]["code"] == "too_many_collections"


async def test_storage_per_caller_is_limited_for_concurrent_requests_too(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    async with start(config(database_url, tmp_path, max_documents=3, max_collections=3)) as run:
        await ask(run, "POST", "/documents", A, None, title="A", content="one", wait=0)
        texts = [{"title": "A", "content": f"text {number}", "wait": 0} for number in range(12)]
        await asyncio.gather(*(ask(run, "POST", "/documents", A, None, **one) for one in texts))
        names = [f"name{number}" for number in range(12)]
        await asyncio.gather(*(ask(run, "POST", "/collections", A, None, name=one) for one in names))
        assert len((await ask(run, "GET", "/documents"))["data"]) == 3
        assert len((await ask(run, "GET", "/collections"))["data"]) == 3
