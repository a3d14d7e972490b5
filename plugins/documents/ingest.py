"""Indexes a document: reads, cuts and embeds it and adds it to the index, with little of it in memory at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import orjson

from plugins.documents.chunks import Chunk, head
from plugins.documents.collections import Collection, Collections, Target
from plugins.documents.embedding import Embedder
from plugins.documents.index_upkeep import IndexUpkeep
from plugins.documents.job_queue import Job, JobQueue
from plugins.documents.payer import Payer
from plugins.documents.store import Item, Store
from proxy.errors import BadCall, NotFound, ProxyError
from proxy.stores.vectors import Row, Vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from plugins.documents.vectorstores.origins import Origins

ROWS: Final = 1000
"""Rows added at once."""


class LeaseLost(Exception):
    """The job is no longer this process's: it was cancelled, or another process has taken it over."""


@dataclass(frozen=True, slots=True)
class Ingest:
    store: Store
    collections: Collections
    job_queue: JobQueue
    embedder: Embedder
    index: Vectors
    upkeep: IndexUpkeep
    origins: Origins

    async def run(self, job: Job, item: Item, collection: Collection) -> None:
        """Index the document's version of this job.  Raises ProxyError if that fails, or LeaseLost."""
        place = collection.place
        if await self.index.count(place, item.id, job.version):  # left by an earlier attempt
            await self.index.remove(place, item.id, job.version, job.version + 1)
        await self.origins.ready(job, item)
        writer = ChunkWriter(self, job, collection.here)
        await self.text(writer, item, job.version)
        await writer.flush()
        if not writer.written:
            raise BadCall("There is no text in it.", code="no_text")
        if await self.index.count(place, item.id, job.version) != writer.written:
            raise LeaseLost  # another process has been indexing the same version
        if not await self.job_queue.finish(job, writer.written, place):
            raise LeaseLost
        if job.version > 1:
            await self.index.remove(place, item.id, 0, job.version)

    async def text(self, writer: ChunkWriter, item: Item, version: int) -> None:
        """Write the text of one version."""
        cutter, first, position = await self.origins.cutter(item), writer.done, 0
        async for part in self.store.text(item.id, version):
            chunks = await asyncio.to_thread(cutter.cut, part)
            rows = [row(item, version, position + place, chunk) for place, chunk in enumerate(chunks)]
            position += len(rows)
            writer.done = first + cutter.at
            await writer.write(rows)


@dataclass(slots=True)
class ChunkWriter:
    """Collects rows, and embeds and writes them in batches.

    done: characters of the text given so far, for the job's progress.  given, written: numbers of rows.
    """

    ingest: Ingest
    job: Job
    target: Target
    done: int = 0
    written: int = 0
    waiting: list[Row] = field(default_factory=list)

    @property
    def payer(self) -> Payer:
        return Payer(self.job.owner, self.job.key_id)

    @property
    def given(self) -> int:
        return self.written + len(self.waiting)

    async def write(self, rows: Sequence[Row]) -> None:
        self.waiting += rows
        while len(self.waiting) >= ROWS:
            await self.put(self.waiting[:ROWS])

    async def flush(self) -> None:
        if self.waiting:
            await self.put(self.waiting)

    async def put(self, rows: Sequence[Row]) -> None:
        """Embed rows and add them to the index.  Raises LeaseLost, ProxyError."""
        vectors = await self.ingest.embedder.vectors([row.text for row in rows], self.target.model, self.payer)
        await self.check(vectors)
        if not await self.ingest.job_queue.progress(self.job, self.done):
            raise LeaseLost
        await self.ingest.index.add(self.target.place, rows, vectors, self.ingest.store.database.alone)
        self.ingest.upkeep.note(self.target.place, len(rows))
        self.written += len(rows)
        self.waiting = self.waiting[len(rows) :]

    async def check(self, vectors: NDArray[np.float32]) -> None:
        """Raises BadCall if the vectors have other dimensions than those of the table."""
        length = vectors.shape[1]
        wanted = self.target.dimensions or await self.ingest.collections.measured(self.target.place, length)
        if length != wanted:
            model = self.target.model
            message = f"The model '{model}' gives {length} dimensions, and this collection was made with {wanted}."
            raise BadCall(message, code="dimensions_changed")


def row(item: Item, version: int, position: int, chunk: Chunk) -> Row:
    before = head(item.title, chunk)
    told = [chunk.start, chunk.end, len(before), chunk.page, chunk.headings]
    return Row(item.id, version, position, before + chunk.text, orjson.dumps(told).decode())


def lasting(error: ProxyError) -> bool:
    """Whether retrying would fail in the same way."""
    return isinstance(error, (BadCall, NotFound)) or error.status in (401, 403)
