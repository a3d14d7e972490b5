"""The JSON of vector stores, in OpenAI's format.  Source: OpenAI's API reference, "Vector stores"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson
from aiohttp import web

from plugins.documents.vectorstores.contents import Batch, Entry, usage_of
from plugins.documents.vectorstores.forms import LETTERS
from plugins.documents.vectorstores.searching import Result
from plugins.documents.vectorstores.stores import Counts, VectorStore
from proxy.types import JSON

SECOND: Final = 1_000_000
POLL: Final = "openai-poll-after-ms"
"""The header that tells OpenAI's clients when to poll again; without it they wait a second."""
SOON: Final = "200"
UNKNOWN: Final = Counts({}, 0)


def answer(body: JSON, pending: bool = False) -> web.Response:
    headers = {POLL: SOON} if pending else {}
    return web.Response(body=orjson.dumps(body), content_type="application/json", headers=headers)


def store(one: VectorStore, counts: Counts) -> dict[str, JSON]:
    files = counts.as_json()
    return {
        "id": one.id,
        "object": "vector_store",
        "created_at": one.at // SECOND,
        "name": one.name,
        "description": one.about or None,
        "usage_bytes": counts.bytes,
        "file_counts": files,
        "status": "expired" if one.expired else "in_progress" if files["in_progress"] else "completed",
        "expires_after": None if one.days is None else {"anchor": "last_active_at", "days": one.days},
        "expires_at": None if one.expires is None else one.expires // SECOND,
        "last_active_at": one.active // SECOND,
        "metadata": dict(one.metadata),
    }


def file(one: Entry, within: VectorStore, size: int) -> dict[str, JSON]:
    """size: default characters of a chunk."""
    error = None
    if one.status == "failed":
        code = (one.origin.code if one.origin is not None else "") or "server_error"
        error = {"code": code, "message": one.item.error}
    return {
        "id": one.id,
        "object": "vector_store.file",
        "created_at": one.item.at // SECOND,
        "vector_store_id": within.id,
        "status": one.status,
        "usage_bytes": usage_of(one, within),
        "last_error": error,
        "attributes": orjson.loads(one.item.metadata),
        "chunking_strategy": {"type": "static", "static": chunking(one, size)},
    }


def chunking(one: Entry, size: int) -> dict[str, JSON]:
    """The chunking that is actually applied, including the default."""
    letters, overlap = size, 0
    if one.origin is not None and one.origin.size:
        letters, overlap = one.origin.size, one.origin.overlap
    tokens = {"max_chunk_size_tokens": letters, "chunk_overlap_tokens": overlap}
    return {name: -int(-value // LETTERS) for name, value in tokens.items()}


def batch(one: Batch, counts: Mapping[str, int]) -> dict[str, JSON]:
    files = Counts(counts, 0).as_json()
    status = "completed"
    if one.cancelled:
        status = "cancelled"
    elif files["in_progress"]:
        status = "in_progress"
    elif files["total"] and files["failed"] == files["total"]:
        status = "failed"
    return {
        "id": one.id,
        "object": "vector_store.files_batch",
        "created_at": one.at // SECOND,
        "vector_store_id": one.collection,
        "status": status,
        "file_counts": files,
    }


def result(one: Result) -> dict[str, JSON]:
    return {
        "file_id": one.file,
        "filename": one.name,
        "score": one.score,
        "attributes": one.attributes,
        "content": [{"type": "text", "text": one.hit.content}],
    }
