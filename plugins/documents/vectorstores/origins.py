"""The files that documents are made of; the process that runs a document's job reads its file."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, delete, select, update

from plugins.documents.chunks import Cutter
from plugins.documents.contents import Content
from plugins.documents.files import FileConverter
from plugins.documents.index_tables import shared_lock
from plugins.documents.ingest import LeaseLost
from plugins.documents.job_queue import Job
from plugins.documents.parts import put_parts
from plugins.documents.scratch import scratch
from plugins.documents.store import Item
from plugins.documents.tables import COLLECTIONS, ITEMS, JOBS, ORIGINS, PARTS
from proxy.errors import BadCall, NotFound, ProxyError
from proxy.file_access import FileAccess, FileStore
from proxy.sql.database import Database

WANTED: Final = "+"
"""Suffix to the batch id of a file that was there before the batch, or was added singly since: it is listed with the
batch, but not cancelled with it."""
UNSUPPORTED: Final = "unsupported_file"
GONE: Final = "file_not_found"
"""The error code if a file was deleted, or has expired, before it was read."""
INVALID: Final = ("unreadable_file", "no_text")
"""Error codes that are due to the file itself."""


class Origin(NamedTuple):
    """See ORIGINS."""

    item: str
    collection: str
    file: str
    name: str
    bytes: int
    batch: str
    size: int
    overlap: int
    read: int
    code: str
    expires: int | None


@dataclass(frozen=True, slots=True)
class Origins:
    """size: default characters of a chunk.  most: maximum bytes of a file."""

    database: Database
    file_access: FileAccess
    reader: FileConverter
    size: int
    most: int

    @property
    def file_store(self) -> FileStore:
        """The store of uploaded files.  Raises BadCall if no plugin provides one."""
        if self.file_access.store is None:
            message = "Files are kept by the plugin 'files', which is not in the configuration of this server."
            raise BadCall(message, param="file_id", code="plugin_missing")
        return self.file_access.store

    async def ready(self, job: Job, item: Item) -> None:
        """Make sure that a document has its text: read its file if that was not done yet."""
        origin = (await self.of([item.id])).get(item.id)
        if origin is not None and not origin.read:
            await self.take(job, item, origin)

    async def cutter(self, item: Item) -> Cutter:
        """A cutter with the document's chunking options."""
        origin = (await self.of([item.id])).get(item.id)
        return Cutter(self.size) if origin is None else Cutter(origin.size or self.size, origin.overlap)

    async def take(self, job: Job, item: Item, origin: Origin) -> None:
        if origin.bytes > self.most:
            message = f"The file cannot be read: it is larger than {self.most} bytes."
            raise BadCall(message, param="file_id", code="unreadable_file")
        async with scratch() as file:
            async for piece in self.file_store.pieces(item.owner, origin.file):
                await asyncio.to_thread(file.write, piece)
            async with self.reader.content(file, origin.name) as content:
                await self.fill(job, content)

    async def fill(self, job: Job, content: Content) -> None:
        """Store the text of a document in one transaction.  Raises LeaseLost."""
        async with self.database.writing(lasting=True) as connection:
            if (await connection.execute(shared_lock(COLLECTIONS.c.id == job.collection))).first() is None:
                raise LeaseLost
            told = update(ITEMS).where((ITEMS.c.id == job.item) & (ITEMS.c.newest == job.version))
            if (await connection.execute(told.values(characters=content.characters))).rowcount != 1:
                raise LeaseLost
            await connection.execute(delete(PARTS).where(PARTS.c.item == job.item))
            await put_parts(connection, job.item, job.version, content)
            await connection.execute(update(ORIGINS).where(ORIGINS.c.item == job.item).values(read=1, code=""))
            await connection.execute(update(JOBS).where(JOBS.c.id == job.id).values(total=content.characters))

    async def note(self, item: str, error: ProxyError) -> None:
        """Store OpenAI's code for a failure; "" if it is the server's fault."""
        code = UNSUPPORTED if error.code == UNSUPPORTED else "invalid_file" if error.code in INVALID else ""
        async with self.database.writing() as connection:
            await connection.execute(update(ORIGINS).where(ORIGINS.c.item == item).values(code=code))

    async def some(self, where: ColumnElement[bool]) -> dict[str, Origin]:
        """The origins by document."""
        async with self.database.reading() as connection:
            return {row.item: Origin(*row) for row in await connection.execute(select(ORIGINS).where(where))}

    async def of(self, items: Collection[str]) -> Mapping[str, Origin]:
        return await self.some(ORIGINS.c.item.in_(list(items)))

    async def documents(self, owner: str, file: str) -> list[Item]:
        """All documents that were made of a file."""
        query = select(ITEMS).join(ORIGINS, ORIGINS.c.item == ITEMS.c.id)
        async with self.database.reading() as connection:
            found = await connection.execute(query.where((ORIGINS.c.file == file) & (ITEMS.c.owner == owner)))
            return [Item(*row) for row in found]


def no_file(id: str, param: str) -> NotFound:
    return NotFound(f"No file of yours has the id '{id[:100]}'.", param=param, code="file_not_found")
