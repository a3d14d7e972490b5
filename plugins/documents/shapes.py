"""The JSON of the endpoints' answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from aiohttp import web

from plugins.documents.collections import Collection
from plugins.documents.job_queue import Job
from plugins.documents.scores import Hit
from plugins.documents.search import Outcome
from plugins.documents.store import Item
from proxy.types import JSON


def answer(body: JSON, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def item(one: Item, job: Job | None = None) -> dict[str, JSON]:
    told: dict[str, JSON] = {
        "document_id": one.id,
        "status": one.status,
        "title": one.title,
        "source": one.source or None,
        "metadata": orjson.loads(one.metadata),
        "collection": one.collection,
        "owner": one.owner,
        "characters": one.characters,
        "chunks": one.chunks,
        "version": one.newest,
        "searched_version": one.version or None,
        "error": one.error or None,
        "created_at": one.at // 1_000_000,
        "updated_at": one.changed // 1_000_000,
    }
    return told if job is None else {**told, "job_id": job.id}


def job(one: Job) -> dict[str, JSON]:
    share = 1.0 if one.status == "done" else min(1.0, one.done / one.total) if one.total else 0.0
    return {
        "job_id": one.id,
        "kind": "document" if one.item else "move",
        "document_id": one.item or None,
        "collection": one.collection,
        "version": one.version or None,
        "status": one.status,
        "done": one.done,
        "total": one.total,
        "progress": round(share, 4),
        "error": one.error or None,
        "created_at": one.at // 1_000_000,
        "ended_at": one.ended // 1_000_000 or None,
    }


def collection(one: Collection, caller: str, readers: Mapping[str, Sequence[str]]) -> dict[str, JSON]:
    """A collection.  Only its owner sees its readers and whether it is being moved."""
    told: dict[str, JSON] = {
        "id": one.id,
        "name": one.name,
        "description": one.about,
        "owner": one.owner,
        "embed": one.model,
        "dimensions": one.dimensions or None,
        "created_at": one.at // 1_000_000,
    }
    if one.owner == caller:
        told["moving"] = {"embed": one.next_model, "job_id": one.next_job} if one.next_place else None
        told["shared"] = {"everyone": one.everyone, "readers": list(readers.get(one.id, ()))}
    return told


def hit(one: Hit, outcome: Outcome) -> dict[str, JSON]:
    about, found = one.about, outcome.item(one)
    return {
        "content": one.content,
        "title": found.title,
        "document_id": found.id,
        "collection": one.collection,
        "source": found.source or None,
        "metadata": orjson.loads(found.metadata),
        "score": round(one.score, 4),
        "position": one.row.position,
        "chunks": one.last - one.row.position + 1,
        "headings": list(about.headings),
        "page": about.page or None,
        "start": about.start,
        "end": about.end,
    }


def explained(one: Hit) -> dict[str, JSON]:
    return {
        "cosine": round(one.cosine, 4),
        "text_score": round(one.words, 4),
        "vector_rank": one.near,
        "text_rank": one.worded,
        "words": round(one.share, 4),
        "grade": one.grade,
        "score": round(one.score, 4),
    }
