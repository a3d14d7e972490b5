"""Adds files to a vector store: each becomes a document, with a job that reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.documents.expiry import expired_stores
from plugins.documents.index_tables import shared_lock
from plugins.documents.job_queue import OPEN
from plugins.documents.parts import copy_parts, renumber
from plugins.documents.payer import Payer
from plugins.documents.store import Item, Store, dumped, put_values, queue, values_of
from plugins.documents.tables import BATCHES, COLLECTIONS, ITEMS, JOBS, ORIGINS, STORES, VALUES
from plugins.documents.vectorstores.origins import WANTED, Origin
from proxy.errors import BadCall, NotFound
from proxy.file_access import FileInfo
from proxy.sql.transaction_lock import transaction_lock
from proxy.types import JSON
from proxy.wire.ids import new_id

ASKED: Final = 500
"""Ids per query."""


@dataclass(frozen=True, slots=True)
class New:
    """A file to be added.  attributes: None keeps those of a file that is there already.

    size, overlap: characters of a chunk, and of its overlap with the next; 0 for the default.
    """

    file: FileInfo
    attributes: Mapping[str, JSON] | None = None
    size: int = 0
    overlap: int = 0


@dataclass(frozen=True, slots=True)
class Adding:
    store: Store

    async def add(self, payer: Payer, collection: str, several: Sequence[New], batch: bool = False) -> str:
        """Add files, all or none; gives the id of their batch, "" if `batch` is false.

        A file that is there already stays the same document: it is cut again if its chunking changes, and read again
        if it had failed.  Raises BadCall if the owner has too many documents or the vector store has expired, and
        NotFound if it has been deleted.
        """
        for _ in range(2):
            try:
                async with self.store.database.writing(lasting=True) as connection:
                    await self.hold(connection, collection)
                    id = await self.batch(connection, collection) if batch else ""
                    await self.added(connection, payer, collection, several, id)
                    return id
            except IntegrityError:  # one was added concurrently; the second attempt finds it
                continue
        raise BadCall("The vector store is being changed; try again.", code="conflict")

    async def hold(self, connection: AsyncConnection, collection: str) -> None:
        """Lock a vector store against deletion and expiry until the transaction ends."""
        if (await connection.execute(shared_lock(COLLECTIONS.c.id == collection))).first() is None:
            message = "The vector store has been deleted meanwhile."
            raise NotFound(message, param="vector_store_id", code="vector_store_not_found")
        expired = (STORES.c.collection == collection) & expired_stores(self.store.now())
        if (await connection.execute(select(STORES.c.collection).where(expired))).first() is not None:
            message = f"The vector store '{collection}' has expired."
            raise BadCall(message, param="vector_store_id", code="vector_store_expired")

    async def batch(self, connection: AsyncConnection, collection: str) -> str:
        id = new_id("vsfb_")
        await connection.execute(insert(BATCHES).values(id=id, collection=collection, at=self.store.now()))
        return id

    async def added(
        self, connection: AsyncConnection, payer: Payer, collection: str, several: Sequence[New], batch: str
    ) -> None:
        there = await self.there(connection, collection, [one.file.id for one in several])
        fresh = [one for one in several if one.file.id not in there]
        if fresh:
            await transaction_lock(connection, f"documents of {payer.name}")
            count = select(func.count()).select_from(ITEMS).where(ITEMS.c.owner == payer.name)
            if (await connection.execute(count)).scalar_one() + len(fresh) > self.store.most:
                raise BadCall(f"You may have {self.store.most} documents in all.", code="too_many_documents")
            await self.insert(connection, payer, collection, fresh, batch)
        for one in sorted(several, key=by_file):
            if (origin := there.get(one.file.id)) is not None:
                await self.again(connection, origin, one, payer.key, batch)

    async def there(self, connection: AsyncConnection, collection: str, files: Sequence[str]) -> dict[str, Origin]:
        found: dict[str, Origin] = {}
        for at in range(0, len(files), ASKED):
            which = (ORIGINS.c.collection == collection) & ORIGINS.c.file.in_(files[at : at + ASKED])
            for row in await connection.execute(select(ORIGINS).where(which)):
                found[row.file] = Origin(*row)
        return found

    async def insert(
        self, connection: AsyncConnection, payer: Payer, collection: str, several: Sequence[New], batch: str
    ) -> None:
        now = self.store.now()
        items, origins, jobs = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
        values: list[dict[str, Any]] = []
        for at, new in enumerate(several, now):  # distinct times, so that lists keep their order
            item, file = new_id("doc_"), new.file
            own = {"id": item, "collection": collection, "owner": payer.name, "title": file.name[-500:]}
            digest = hashlib.sha256(file.id.encode()).hexdigest()  # equal files are still separate documents
            told = {"metadata": dumped(new.attributes or {}), "digest": digest, "newest": 1, "status": "pending"}
            items.append({**own, **told, "source": "", "error": "", "at": at, "changed": at})
            how = {"size": new.size, "overlap": new.overlap, "batch": batch, "bytes": file.bytes}
            how["expires"] = file.expires
            origins.append({"item": item, "collection": collection, "file": file.id, "name": file.name, **how})
            job = {"id": new_id("job_"), "collection": collection, "item": item, "version": 1}
            paid = {"owner": payer.name, "key_id": payer.key}
            jobs.append({**job, **paid, "status": "queued", "total": file.bytes, "at": at})
            values += values_of(item, new.attributes or {})
        items.sort(key=lambda row: str(row["digest"]))  # one lock order for concurrent additions of the same files
        for table, rows in ((ITEMS, items), (ORIGINS, origins), (JOBS, jobs), (VALUES, values)):
            if rows:
                await connection.execute(insert(table), rows)

    async def again(self, connection: AsyncConnection, origin: Origin, new: New, key: str, batch: str) -> None:
        which = select(ITEMS).where(ITEMS.c.id == origin.item).with_for_update()
        if (row := (await connection.execute(which)).first()) is None:
            raise BadCall("The vector store is being changed; try again.", code="conflict")
        item, now = Item(*row), self.store.now()
        told: dict[str, Any] = {"size": new.size, "overlap": new.overlap, "batch": batch_of(origin, item, batch)}
        await connection.execute(update(ORIGINS).where(ORIGINS.c.item == item.id).values(**told))
        if new.attributes is not None:
            await put_values(connection, item.id, new.attributes)
            metadata = dumped(new.attributes)
            await connection.execute(update(ITEMS).where(ITEMS.c.id == item.id).values(metadata=metadata))
        otherwise = (origin.size, origin.overlap) != (new.size, new.overlap)
        if item.status != "failed" and not otherwise:
            return
        newest = item.newest + 1 if otherwise else await renumber(connection, item.id, item.newest)
        if otherwise and origin.read:
            await copy_parts(connection, item.id, item.newest, newest)
        values = {"newest": newest, "status": "pending", "error": "", "changed": now}
        await connection.execute(update(ITEMS).where(ITEMS.c.id == item.id).values(**values))
        await queue(connection, item._replace(newest=newest), now, key)

    async def cancel(self, batch: str) -> list[str]:
        """Cancel the pending files of a batch; gives the ids of their jobs."""
        mine = select(ORIGINS.c.item).where(ORIGINS.c.batch == batch)
        open_jobs = JOBS.c.item.in_(mine) & JOBS.c.status.in_(OPEN)
        now = self.store.now()
        async with self.store.database.writing(lasting=True) as connection:
            await connection.execute(update(BATCHES).where(BATCHES.c.id == batch).values(cancelled=1))
            jobs = list((await connection.execute(select(JOBS.c.id).where(open_jobs))).scalars())
            pending = ITEMS.c.id.in_(mine) & (ITEMS.c.status == "pending")
            told = {"status": "failed", "error": "cancelled", "changed": now}
            await connection.execute(update(ITEMS).where(pending).values(**told))
            await connection.execute(update(JOBS).where(open_jobs).values(status="cancelled", ended=now))
        return jobs


def batch_of(origin: Origin, item: Item, batch: str) -> str:
    """The new batch of a file that is there already.  batch: the one that adds it again, "" if it is added singly."""
    if batch:
        return batch if item.status == "failed" else batch + WANTED
    return origin.batch.removesuffix(WANTED) + WANTED if origin.batch else ""


def by_file(new: New) -> str:
    return new.file.id
