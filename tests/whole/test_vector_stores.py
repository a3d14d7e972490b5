"""Vector stores through the stock SDK: every answer fits the SDK's types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import VectorStore, VectorStoreDeleted, VectorStoreSearchResponse
from openai.types.vector_stores import VectorStoreFile, VectorStoreFileBatch, VectorStoreFileDeleted
from pydantic import BaseModel

from tests.conftest import Start
from tests.plugins.documents.storing import LANTERNS, ORCHARDS, config

STATIC: Any = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 40}}


def fits(one: BaseModel, kind: type[BaseModel]) -> None:
    kind.model_validate(one.model_dump(warnings="error"), strict=True)


async def test_a_store_its_files_and_searches(start: Start, database_url: str, tmp_path: Path) -> None:
    async with start(config(database_url, tmp_path)) as run, run.client(api_key="a-key") as client:
        stores = client.vector_stores
        made = await stores.create(
            name="lights",
            metadata={"team": "blue"},
            expires_after={"anchor": "last_active_at", "days": 3},
            description="of towers",
        )
        fits(made, VectorStore)
        assert made.status == "completed" and made.file_counts.total == 0 and made.usage_bytes == 0
        assert made.expires_at is not None and made.expires_at - (made.last_active_at or 0) == 3 * 86400
        file = await stores.files.upload_and_poll(
            vector_store_id=made.id, file=("lanterns.txt", LANTERNS), attributes={"year": 1891, "kind": "tower"}
        )
        fits(file, VectorStoreFile)
        assert (file.status, file.attributes, file.last_error) == ("completed", {"year": 1891, "kind": "tower"}, None)
        assert file.chunking_strategy is not None and file.usage_bytes > len(LANTERNS)
        other = await client.files.create(file=("orchards.md", ORCHARDS), purpose="assistants")
        added = await stores.files.create_and_poll(other.id, vector_store_id=made.id, chunking_strategy=STATIC)
        fits(added, VectorStoreFile)
        assert added.chunking_strategy and added.chunking_strategy.model_dump() == STATIC
        told = await stores.retrieve(made.id)
        fits(told, VectorStore)
        assert told.file_counts.completed == 2 and told.usage_bytes > file.usage_bytes
        await searched(client, made.id, file.id)
        text = [one.text async for one in await stores.files.content(file.id, vector_store_id=made.id)]
        assert "".join(map(str, text)) == LANTERNS.decode()
        await check_deletion(client, made.id, file.id, other.id)


async def searched(client: openai.AsyncOpenAI, id: str, file: str) -> None:
    stores = client.vector_stores
    found = [one async for one in stores.search(id, query="Who kept the lantern of Porthgwarra?")]
    for one in found:
        fits(one, VectorStoreSearchResponse)
    assert (found[0].file_id, found[0].filename) == (file, "lanterns.txt")
    assert "Mabel Quill" in found[0].content[0].text and 0 < found[0].score <= 1
    year: Any = {"type": "lt", "key": "year", "value": 1800}
    assert [one async for one in stores.search(id, query=["lantern", "pears"], filters=year)] == []
    several = [one.filename async for one in stores.search(id, query=["lantern keeper", "pears in March"])]
    assert set(several) == {"lanterns.txt", "orchards.md"}
    changed = await stores.files.update(file, vector_store_id=id, attributes={"year": 1700})
    fits(changed, VectorStoreFile)
    assert [one.file_id async for one in stores.search(id, query="lantern", filters=year)] == [file]


async def check_deletion(client: openai.AsyncOpenAI, id: str, file: str, other: str) -> None:
    stores = client.vector_stores
    fits(await stores.update(id, name="towers", expires_after=None), VectorStore)
    assert (await stores.retrieve(id)).name == "towers"
    fits(await stores.files.delete(file, vector_store_id=id), VectorStoreFileDeleted)
    assert [one.id async for one in stores.files.list(id)] == [other]
    await client.files.retrieve(file)  # still there: it was only removed from the store
    await client.files.delete(other)  # this removes it from every store
    assert [one.id async for one in stores.files.list(id)] == []
    fits(await stores.delete(id), VectorStoreDeleted)
    with pytest.raises(openai.NotFoundError):
        await stores.retrieve(id)


async def test_batches(start: Start, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/x.db"
    async with start(config(url, tmp_path)) as run, run.client(api_key="a-key") as client:
        stores = client.vector_stores
        made = await stores.create()
        assert made.name == ""
        files = [(f"{number}.txt", f"Text number {number} of rain.".encode()) for number in range(5)]
        batch = await stores.file_batches.upload_and_poll(made.id, files=[*files, ("x.exe", b"MZ")])
        fits(batch, VectorStoreFileBatch)
        counts = {"cancelled": 0, "completed": 5, "failed": 1, "in_progress": 0, "total": 6}
        assert batch.status == "completed" and batch.file_counts.model_dump() == counts
        failed = [
            one async for one in stores.file_batches.list_files(batch.id, vector_store_id=made.id, filter="failed")
        ]
        assert len(failed) == 1 and failed[0].last_error and failed[0].last_error.code == "unsupported_file"
        fits(failed[0], VectorStoreFile)
        ids = [one.id async for one in stores.files.list(made.id, limit=2, order="asc")]
        assert ids == [one.id async for one in stores.files.list(made.id, limit=4)][::-1] and len(ids) == 6
        page = await stores.files.list(made.id, limit=2, order="asc", before=ids[4])
        assert [one.id for one in page.data] == ids[2:4] and page.has_more
        assert len((await stores.files.list(made.id, filter="completed")).data) == 5
        await check_readding(client, made.id, batch.id, ids)
        names = [(await stores.create(name=name)).id for name in ("same", "same", "")]
        assert [one.id async for one in stores.list(limit=2, order="asc")] == [made.id, *names]
        assert [one.name async for one in stores.list()] == ["", "same", "same", ""]


async def check_readding(client: openai.AsyncOpenAI, id: str, batch: str, ids: list[str]) -> None:
    """Adding a file again keeps its identity and chunks it again."""
    stores, counts = client.vector_stores, {"cancelled": 0, "in_progress": 0}
    one = {"file_id": ids[0], "attributes": {"n": 1}, "chunking_strategy": STATIC}
    again = await stores.file_batches.create_and_poll(id, files=[one])  # type: ignore[list-item]
    assert again.file_counts.model_dump() == {**counts, "completed": 1, "failed": 0, "total": 1}
    first = await stores.files.retrieve(ids[0], vector_store_id=id)
    assert first.attributes == {"n": 1} and first.chunking_strategy and first.chunking_strategy.type == "static"
    assert (await stores.file_batches.retrieve(batch, vector_store_id=id)).file_counts.total == 5
