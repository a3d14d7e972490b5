"""Embedding calls for documents count for the key that added or searched them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from proxy.upstreams.demo import Fault, Simulator
from tests.conftest import Running, Start
from tests.plugins.documents.asking import TEXTS, ask
from tests.plugins.documents.storing import LANTERNS, call, settled, upload
from tests.plugins.documents.test_moving import ollama
from tests.plugins.usage.asking import written
from tests.whole.test_gateway import upstream_headers

ROOT = "root-0123456789-0123456789"
WHO = "Who was the keeper of the lantern?"
Head = dict[str, str]


def config(url: str, folder: Path, limits: str = "") -> str:
    documents = {"embed": "demo-embed", "rerank": "demo", "closer": 3}
    plugins: dict[str, Any] = {"documents": documents, "files": {}, "usage": {}, "limits": {}}
    inner = ["usage", "limits"]
    chains = {"chat": ["documents", *inner], "completions": [], "embeddings": inner, "internal": inner}
    told = {"database": {"url": url}, "accounts": {}, "plugins": plugins, "chains": chains}
    told["stores"] = {"texts": {"lancedb": str(folder / "lance")}}
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in told.items())
    return text.replace('"limits": {}', f'"limits": {{"limits": [{limits}]}}')


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMAPY_ADMIN_KEY", ROOT)


def bearer(key: str) -> Head:
    return {"Authorization": f"Bearer {key}"}


async def keys(run: Running, count: int) -> list[tuple[str, Head]]:
    """New keys of one user: their IDs, and headers with them."""
    made = []
    for path, body in (("users", {"name": "alice"}), *[("keys", {"user": "alice"})] * count):
        response = await run.http.post(f"{run.url}/api/admin/{path}", json=body, headers=bearer(ROOT))
        made.append(await response.json())
    return [(one["id"], bearer(one["key"])) for one in made[1:]]


async def revoke(run: Running, id: str) -> None:
    response = await run.http.delete(f"{run.url}/api/admin/keys/{id}", headers=bearer(ROOT))
    assert response.status == 200


async def calls_since(run: Running, before: int) -> set[tuple[str, str, str]]:
    """The caller, key and route of each call recorded since then."""
    return {(one["caller"], one["key_id"], one["route"]) for one in (await written(run, before + 1))[before:]}


async def test_each_embedding_call_counts_for_the_key_that_caused_it(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    async with start(config(database_url, tmp_path), ollama()) as run:
        (one, first), (two, second) = await keys(run, 2)
        embedded = {("alice", one, "embeddings")}
        added = [await ask(run, "POST", "/documents", first, 201, title=title, content=text, wait=30)
                 for title, text in TEXTS.items()]  # fmt: skip
        assert await calls_since(run, 0) == embedded
        before = len(await written(run))
        await ask(run, "POST", "/search", second, 200, query=WHO)
        assert await calls_since(run, before) == {("alice", two, "embeddings"), ("alice", two, "internal")}
        before = len(await written(run))
        chat = {"model": "demo", "messages": [{"role": "user", "content": WHO}], "rag": True}
        assert (await run.http.post(f"{run.url}/v1/chat/completions", json=chat, headers=second)).status == 200
        assert {key for _, key, _ in await calls_since(run, before)} == {two}
        before = len(await written(run))
        document = f"/documents/{added[0]['document_id']}"
        await ask(run, "PUT", document, second, 200, content="Another text of lanterns.", wait=30)
        assert await calls_since(run, before) == {("alice", two, "embeddings")}
        listed = await ask(run, "GET", "/collections", first, 200)
        before = len(await written(run))
        await ask(run, "PUT", f"/collections/{listed['data'][0]['id']}", first, 202, embed="other-embed")
        assert await calls_since(run, before) == embedded


async def test_files_of_vector_stores_count_for_the_key_that_added_them(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    async with start(config(database_url, tmp_path)) as run:
        (one, first), (two, second) = await keys(run, 2)
        file = await upload(run, LANTERNS, "lanterns.txt", first)
        store = (await call(run, "POST", "/vector_stores", second, 200, name="lights", file_ids=[file]))["id"]
        await settled(run, f"/vector_stores/{store}/files/{file}", second)
        assert {key for _, key, _ in await calls_since(run, 0)} == {two}
        before = len(await written(run))
        await call(run, "POST", f"/vector_stores/{store}/search", first, 200, query=WHO)
        assert {key for _, key, _ in await calls_since(run, before)} == {one}
        before = len(await written(run))
        cut = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 0}}
        await call(run, "POST", f"/vector_stores/{store}/files", first, 200, file_id=file, chunking_strategy=cut)
        await settled(run, f"/vector_stores/{store}/files/{file}", first)
        assert {key for _, key, _ in await calls_since(run, before)} == {one}


async def test_a_keys_budget_applies_to_its_uploads(start: Start, tmp_path: Path) -> None:
    rule = '{"per": "key", "tokens_per_day": 30, "match": {"route": "embeddings"}}'
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path, rule)) as run:
        (_, first), (_, second) = await keys(run, 2)
        await ask(run, "POST", "/documents", first, 201, title="Lanterns", content=TEXTS["Lanterns"], wait=30)
        request = {"query": WHO, "words": 0.5}
        told = await ask(run, "POST", "/search", first, 429, **request)
        assert told["error"]["code"] == "insufficient_quota"
        await ask(run, "POST", "/search", second, 200, **request)


async def test_a_document_is_indexed_for_its_key_although_the_key_was_revoked_meanwhile(
    start: Start, tmp_path: Path
) -> None:
    ollama = Simulator(faults=[Fault("stall", path="/api/embed", until=(go := asyncio.Event()))])
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path), ollama) as run:
        (one, first), (_, second) = await keys(run, 2)
        told = await ask(run, "POST", "/documents", first, 202, title="Lanterns", content=TEXTS["Lanterns"], wait=0)
        await ollama.until(lambda: any(seen.path == "/api/embed" for seen in ollama.seen))
        await revoke(run, one)
        go.set()
        assert await calls_since(run, 0) == {("alice", one, "embeddings")}
        async with asyncio.timeout(30):
            while (await ask(run, "GET", f"/documents/{told['document_id']}", second))["status"] != "ready":  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_from_documents_is_rated_by_its_request_id(start: Start, tmp_path: Path, stream: bool) -> None:
    async with start(config(f"sqlite:///{tmp_path}/x.db", tmp_path), ollama()) as run:
        [(_, head)] = await keys(run, 1)
        await ask(run, "POST", "/documents", head, 201, title="x", content=TEXTS["Lanterns"], wait=30)
        asked = {"query": WHO, "model": "demo", "stream": stream}
        async with run.http.post(f"{run.url}/api/rag/generate", json=asked, headers=head) as answer:
            await answer.read()
        id = answer.headers["x-request-id"]
        await written(run)
        async with run.http.post(
            f"{run.url}/v1/feedback", json={"request_id": id, "rating": "up"}, headers=head
        ) as told:
            assert (told.status, await told.json()) == (200, {"request_id": id, "rating": "up"})
        assert upstream_headers(run)["x-request-id"] == id
