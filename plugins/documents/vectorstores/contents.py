"""The contents of a vector store: documents, identified by their files' ids if they are made of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, select

from plugins.documents.expiry import not_expired
from plugins.documents.runner import Runner
from plugins.documents.store import Item, Store
from plugins.documents.tables import BATCHES, ITEMS, ORIGINS
from plugins.documents.vectorstores.adding import Adding
from plugins.documents.vectorstores.origins import WANTED, Origin, Origins
from plugins.documents.vectorstores.paging import PageBounds, page
from plugins.documents.vectorstores.stores import Stores, VectorStore, by_status, status_of
from proxy.errors import NotFound


class Batch(NamedTuple):
    """See BATCHES.  at: Unix microseconds."""

    id: str
    collection: str
    cancelled: int
    at: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A document in a vector store.  origin: None if it was not made of a file."""

    item: Item
    origin: Origin | None

    @property
    def id(self) -> str:
        return self.item.id if self.origin is None else self.origin.file

    @property
    def name(self) -> str:
        return self.item.title if self.origin is None else self.origin.name

    @property
    def status(self) -> str:
        return status_of(self.item.status, self.item.error)


@dataclass(frozen=True, slots=True)
class Contents:
    stores: Stores
    store: Store
    origins: Origins
    adding: Adding
    runner: Runner

    def chosen(self, where: ColumnElement[bool]) -> Select[Any]:
        seen = where & not_expired(self.store.now())
        return select(ITEMS, ORIGINS).outerjoin(ORIGINS, ORIGINS.c.item == ITEMS.c.id).where(seen)

    async def one(self, collection: str, file: str, param: str = "file_id") -> Entry:
        """A document, by the id of its file or its own.  Raises NotFound."""
        named = (ORIGINS.c.file == file) | (ITEMS.c.id == file)
        async with self.store.database.reading() as connection:
            row = (await connection.execute(self.chosen((ITEMS.c.collection == collection) & named))).first()
        if row is None:
            message = f"No file of this vector store has the id '{file[:100]}'."
            raise NotFound(message, param=param, code="file_not_found")
        return entry(row)

    async def page(self, where: ColumnElement[bool], cut: PageBounds) -> tuple[list[Entry], bool]:
        async with self.store.database.reading() as connection:
            rows, more = await page(connection, self.chosen(where), ITEMS.c.at, ITEMS.c.id, cut)
        return [entry(row) for row in rows], more

    async def file_goes(self, owner: str, file: str) -> None:
        """Called when a file is deleted: remove its documents from all vector stores."""
        for item in await self.origins.documents(owner, file):
            await self.runner.remove(item)

    # --- batches ---

    async def batch(self, collection: str, id: str) -> Batch:
        """One batch.  Raises NotFound."""
        query = select(BATCHES).where((BATCHES.c.id == id) & (BATCHES.c.collection == collection))
        async with self.store.database.reading() as connection:
            row = (await connection.execute(query)).first()
        if row is None:
            message = f"No batch of this vector store has the id '{id[:100]}'."
            raise NotFound(message, param="batch_id", code="batch_not_found")
        return Batch(*row)

    async def counts(self, batch: Batch) -> dict[str, int]:
        rows = await self.stores.counted(ITEMS.c.id.in_(of_batch(batch.id)), ITEMS.c.collection)
        return by_status(rows)

    async def cancel(self, batch: Batch) -> None:
        for job in await self.adding.cancel(batch.id):
            self.runner.stop(job)

    async def filenames(self, items: Sequence[str]) -> dict[str, tuple[str, str]]:
        """The id and name of the file by document, for those that have one."""
        found = await self.origins.of(items)
        return {item: (origin.file, origin.name) for item, origin in found.items()}


def of_batch(id: str) -> Select[Any]:
    return select(ORIGINS.c.item).where(ORIGINS.c.batch.in_((id, id + WANTED)))


def entry(row: Any) -> Entry:
    item, origin = row[: len(Item._fields)], row[len(Item._fields) :]
    return Entry(Item(*item), None if origin[0] is None else Origin(*origin))


def usage_of(one: Entry, store: VectorStore) -> int:
    """Approximate bytes: characters of its text plus bytes of its vectors."""
    return one.item.characters + 4 * store.dimensions * one.item.chunks
