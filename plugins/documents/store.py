"""Documents in the database, which is authoritative over the index."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
from sqlalchemy import BigInteger, ColumnElement, bindparam, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.documents.collections import readable
from plugins.documents.contents import Content
from plugins.documents.expiry import expired_stores, not_expired
from plugins.documents.index_tables import shared_lock
from plugins.documents.parts import copy_parts, put_parts, renumber
from plugins.documents.payer import Payer
from plugins.documents.tables import COLLECTIONS, COPIES, ITEMS, JOBS, ORIGINS, PARTS, STORES, VALUES
from proxy.errors import BadCall, Busy, NotFound
from proxy.host import Clock
from proxy.sql.database import Database
from proxy.sql.transaction_lock import transaction_lock
from proxy.types import JSON
from proxy.wire.ids import new_id

FOUND = select(ITEMS).where(
    ITEMS.c.id.in_(bindparam("ids", expanding=True))
    & (ITEMS.c.version > 0)
    & not_expired(bindparam("now", type_=BigInteger()))
)
"""Prepared once: every search runs it, and building it takes longer than SQLite takes to answer it."""


class Item(NamedTuple):
    """A document; see ITEMS."""

    id: str
    collection: str
    owner: str
    title: str
    source: str
    metadata: str
    digest: str
    characters: int
    chunks: int
    version: int
    newest: int
    status: str
    error: str
    at: int
    changed: int


@dataclass(frozen=True, slots=True)
class New:
    """A document to be added."""

    title: str
    content: Content
    source: str = ""
    metadata: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A new version.  content: None keeps the text under a new title.  key: id of the API key of the request."""

    content: Content | None
    key: str = ""


class Store:
    """Methods with an owner or caller see only what that one may see."""

    def __init__(self, database: Database, clock: Clock, most: int) -> None:
        """most: maximum documents of one owner."""
        self.database = database
        self.clock = clock
        self.most = most

    def now(self) -> int:
        return int(self.clock.time() * 1e6)

    async def add(self, payer: Payer, collection: str, new: New) -> tuple[Item, bool]:
        """Add a document; gives it and whether it is new: the same content exists only once in a collection.

        Raises BadCall, or NotFound if the collection has been removed.
        """
        for _ in range(2):
            try:
                async with self.database.writing(lasting=True) as connection:
                    return await self.added(connection, payer, collection, new)
            except IntegrityError:  # added concurrently; the second attempt finds it
                continue
        raise BadCall("The collection is being changed; try again.", code="conflict")

    async def added(self, connection: AsyncConnection, payer: Payer, collection: str, new: New) -> tuple[Item, bool]:
        if (await connection.execute(shared_lock(COLLECTIONS.c.id == collection))).first() is None:
            message = "The collection has been removed meanwhile."
            raise NotFound(message, param="collection", code="collection_not_found")
        expired = (STORES.c.collection == collection) & expired_stores(self.now())
        if (await connection.execute(select(STORES.c.collection).where(expired))).first() is not None:
            message = "The collection is a vector store that has expired."
            raise BadCall(message, param="collection", code="vector_store_expired")
        same = (ITEMS.c.collection == collection) & (ITEMS.c.digest == new.content.digest)
        if (row := (await connection.execute(select(ITEMS).where(same))).first()) is not None:
            return await self.again(connection, Item(*row), payer.key), False
        await transaction_lock(connection, f"documents of {payer.name}")
        count = select(func.count()).select_from(ITEMS).where(ITEMS.c.owner == payer.name)
        if (await connection.execute(count)).scalar_one() >= self.most:
            raise BadCall(f"You have {self.most} documents, which is the maximum.", code="too_many_documents")
        now = self.now()
        item = Item(
            new_id("doc_"),
            collection,
            payer.name,
            new.title,
            new.source,
            dumped(new.metadata),
            new.content.digest,
            new.content.characters,
            0,
            0,
            1,
            "pending",
            "",
            now,
            now,
        )
        await connection.execute(insert(ITEMS).values(item._asdict()))
        await put_parts(connection, item.id, 1, new.content)
        await put_values(connection, item.id, new.metadata)
        await queue(connection, item, now, payer.key)
        return item, True

    async def again(self, connection: AsyncConnection, item: Item, key: str) -> Item:
        """A document that is sent again; if it had failed, it is queued again."""
        if item.status != "failed":
            return item
        newest = await renumber(connection, item.id, item.newest)
        item = item._replace(newest=newest, status="pending", error="", changed=self.now())
        values = {name: getattr(item, name) for name in ("newest", "status", "error", "changed")}
        await connection.execute(update(ITEMS).where(ITEMS.c.id == item.id).values(**values))
        await queue(connection, item, item.changed, key)
        return item

    async def change(
        self,
        item: Item,
        values: Mapping[str, Any],
        metadata: Mapping[str, JSON] | None,
        renewal: NewVersion | None = None,
    ) -> None:
        """Change the fields of a document, its metadata and its version, all or nothing.

        Raises BadCall if another document of the collection has the same content.
        """
        try:
            async with self.database.writing(lasting=True) as connection:
                await connection.execute(shared_lock(COLLECTIONS.c.id == item.collection))
                told = {**values, "changed": self.now()}
                if metadata is not None:
                    told["metadata"] = dumped(metadata)
                query = update(ITEMS).where(ITEMS.c.id == item.id)
                if (await connection.execute(query.values(**told))).rowcount != 1:
                    return
                if metadata is not None:
                    await put_values(connection, item.id, metadata)
                if renewal is not None:
                    await add_version(connection, item.id, renewal, self.now())
        except IntegrityError:
            message = "Another document of this collection has the same contents."
            raise BadCall(message, param="content", code="duplicate_document") from None

    async def remove(self, item: Item) -> None:
        async with self.database.writing(lasting=True) as connection:
            await connection.execute(shared_lock(COLLECTIONS.c.id == item.collection))  # not while it is being removed
            await connection.execute(delete(ITEMS).where(ITEMS.c.id == item.id))
            for table in (PARTS, VALUES, JOBS, COPIES, ORIGINS):
                await connection.execute(delete(table).where(table.c.item == item.id))

    async def one(self, caller: str, id: str) -> Item | None:
        """A document that the caller may read."""
        query = select(ITEMS).join(COLLECTIONS, COLLECTIONS.c.id == ITEMS.c.collection)
        async with self.database.reading() as connection:
            mine = (ITEMS.c.id == id) & readable(caller) & not_expired(self.now())
            row = (await connection.execute(query.where(mine))).first()
        return None if row is None else Item(*row)

    async def item(self, id: str) -> Item | None:
        """A document of any owner, for the server's own work."""
        async with self.database.reading() as connection:
            row = (await connection.execute(select(ITEMS).where(ITEMS.c.id == id))).first()
        return None if row is None else Item(*row)

    async def page(self, where: ColumnElement[bool], after: Item | None, limit: int) -> list[Item]:
        """A page of documents, newest first.  after: the last one of the previous page."""
        query = (
            select(ITEMS)
            .where(where & not_expired(self.now()))
            .order_by(ITEMS.c.at.desc(), ITEMS.c.id.desc())
            .limit(limit)
        )
        if after is not None:
            older = (ITEMS.c.at == after.at) & (ITEMS.c.id < after.id)
            query = query.where((ITEMS.c.at < after.at) | older)
        async with self.database.reading() as connection:
            return [Item(*row) for row in await connection.execute(query)]

    async def found(self, ids: Collection[str]) -> dict[str, Item]:
        """Those of these documents that are searchable; rows of others in the index are outdated."""
        given = {"ids": list(ids), "now": self.now()}
        async with self.database.reading() as connection:
            return {row.id: Item(*row) for row in await connection.execute(FOUND, given)}

    async def text(self, item: str, version: int) -> AsyncIterator[str]:
        """The parts of a text, one at a time.  Raises Busy if the document is removed or replaced meanwhile."""
        number = 0
        parts = select(PARTS.c.content).where((PARTS.c.item == item) & (PARTS.c.version == version))
        first = parts.where(PARTS.c.part == 0).exists()
        while True:
            async with self.database.reading() as connection:
                query = select(first, parts.where(PARTS.c.part == number).scalar_subquery())
                there, part = (await connection.execute(query)).one()
            if number and not there:
                raise Busy("The document was changed while it was read; try again.", code="document_changed")
            if part is None:
                return
            yield part
            number += 1

    async def statistics(self, caller: str) -> Sequence[Any]:
        """Documents, chunks and characters by collection and status, for the collections that the caller may read."""
        sums = [func.sum(ITEMS.c[name]).label(name) for name in ("chunks", "characters")]
        columns = (ITEMS.c.collection, ITEMS.c.status, func.count().label("documents"), *sums)
        query = select(*columns).join(COLLECTIONS, COLLECTIONS.c.id == ITEMS.c.collection)
        query = query.where(readable(caller) & not_expired(self.now()))
        async with self.database.reading() as connection:
            return (await connection.execute(query.group_by(ITEMS.c.collection, ITEMS.c.status))).all()


def dumped(metadata: Mapping[str, JSON]) -> str:
    return orjson.dumps(dict(metadata)).decode()


async def add_version(connection: AsyncConnection, item: str, renewal: NewVersion, now: int) -> None:
    """Add a new version; the old one is searched until the new one is ready."""
    query, content = update(ITEMS).where(ITEMS.c.id == item), renewal.content
    raised = query.values(newest=ITEMS.c.newest + 1, status="pending", error="")
    newest = (await connection.execute(raised.returning(ITEMS.c.newest))).scalar_one()
    if content is None:
        await copy_parts(connection, item, newest - 1, newest)
    else:
        await put_parts(connection, item, newest, content)
        await connection.execute(update(ORIGINS).where(ORIGINS.c.item == item).values(read=1, code=""))
        await connection.execute(query.values(digest=content.digest, characters=content.characters))
    row = (await connection.execute(select(ITEMS).where(ITEMS.c.id == item))).one()
    await queue(connection, Item(*row), now, renewal.key)


async def put_values(connection: AsyncConnection, item: str, metadata: Mapping[str, JSON]) -> None:
    await connection.execute(delete(VALUES).where(VALUES.c.item == item))
    if rows := values_of(item, metadata):
        await connection.execute(insert(VALUES), rows)


def values_of(item: str, metadata: Mapping[str, JSON]) -> list[dict[str, Any]]:
    return [
        {"item": item, "name": name, "value": orjson.dumps(value).decode(), "number": number_of(value)}
        for name, value in metadata.items()
    ]


def number_of(value: JSON) -> float | None:
    return float(value) if type(value) in (int, float) else None


async def queue(connection: AsyncConnection, item: Item, now: int, key: str) -> str:
    """Queue the indexing of the newest version, and cancel open jobs of older ones.

    key: id of the API key of the request.
    """
    open_jobs = (JOBS.c.item == item.id) & JOBS.c.status.in_(("queued", "running"))
    await connection.execute(update(JOBS).where(open_jobs).values(status="cancelled", ended=now))
    job = new_id("job_")
    told = {"collection": item.collection, "item": item.id, "version": item.newest, "owner": item.owner}
    rest = {"key_id": key, "status": "queued", "total": item.characters, "at": now}
    await connection.execute(insert(JOBS).values(id=job, **told, **rest))
    return job
