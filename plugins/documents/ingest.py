"""One document into the index: read, cut, embedded and added, with little of it in memory at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import orjson

from plugins.documents.chunks import Chunk, head
from plugins.documents.collections import Collection, Collections
from plugins.documents.embedding import Embedder
from plugins.documents.ledger import Job, Ledger
from plugins.documents.store import Item, Store
from plugins.documents.tending import Tender
from proxy.errors import BadCall, NotFound, ProxyError
from proxy.stores.vectors import Row, Vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from plugins.documents.vectorstores.origins import Origins

ROWS: Final = 1000
"""Rows that are added at once."""


class Overtaken(Exception):
    """The job is not this process's any more."""


@dataclass(frozen=True, slots=True)
class Ingest:
    store: Store
    collections: Collections
    ledger: Ledger
    embedder: Embedder
    index: Vectors
    tender: Tender
    origins: Origins

    async def run(self, job: Job, item: Item, collection: Collection) -> None:
        """Raises ProxyError where it fails, and Overtaken where nobody wants it any more."""
        if await self.index.count(collection.id, item.id, job.version):  # an earlier try has left it
            await self.index.remove(collection.id, item.id, job.version, job.version + 1)
        pen = Pen(self, job, item, collection)
        cutter = await self.origins.cutter(job, item)
        async for part in self.store.text(item.id, job.version):
            chunks = await asyncio.to_thread(cutter.cut, part)
            await pen.write(chunks, cutter.at)
        await pen.flush(cutter.at)
        if not pen.written:
            raise BadCall("There is no text in it.", code="no_text")
        if await self.index.count(collection.id, item.id, job.version) != pen.written:
            raise Overtaken  # another process has taken the same to do meanwhile
        if not await self.ledger.finish(job, pen.written):
            raise Overtaken
        if job.version > 1:
            await self.index.remove(collection.id, item.id, 0, job.version)


@dataclass(slots=True)
class Pen:
    """Gathers chunks, and writes them when there are enough."""

    ingest: Ingest
    job: Job
    item: Item
    collection: Collection
    written: int = 0
    waiting: list[Chunk] = field(default_factory=list)

    async def write(self, chunks: Sequence[Chunk], done: int) -> None:
        self.waiting += chunks
        while len(self.waiting) >= ROWS:
            some, self.waiting = self.waiting[:ROWS], self.waiting[ROWS:]
            await self.put(some, done)

    async def flush(self, done: int) -> None:
        if self.waiting:
            await self.put(self.waiting, done)

    async def put(self, chunks: Sequence[Chunk], done: int) -> None:
        rows = [self.row(position, chunk) for position, chunk in enumerate(chunks, self.written)]
        vectors = await self.ingest.embedder.vectors([row.text for row in rows], self.collection.model, self.item.owner)
        await self.check(vectors)
        if not await self.ingest.ledger.progress(self.job, done):
            raise Overtaken
        await self.ingest.index.add(self.collection.id, rows, vectors)
        self.ingest.tender.note(self.collection.id, len(rows))
        self.written += len(rows)

    def row(self, position: int, chunk: Chunk) -> Row:
        before = head(self.item.title, chunk)
        told = [chunk.start, chunk.end, len(before), chunk.page, chunk.headings]
        return Row(self.item.id, self.job.version, position, before + chunk.text, orjson.dumps(told).decode())

    async def check(self, vectors: NDArray[np.float32]) -> None:
        length = vectors.shape[1]
        wanted = self.collection.dimensions or await self.ingest.collections.measured(self.collection.id, length)
        if length != wanted:
            model = self.collection.model
            message = f"The model '{model}' gives {length} dimensions, and this collection was made with {wanted}."
            raise BadCall(message, code="dimensions_changed")


def lasting(error: ProxyError) -> bool:
    """Whether another try would fail like this one."""
    return isinstance(error, (BadCall, NotFound)) or error.status in (401, 403)
