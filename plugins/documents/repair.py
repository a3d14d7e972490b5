"""Repairs differences between database and index after a crash; the database is authoritative."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.documents.collections import Collection, Collections
from plugins.documents.index_tables import shared_lock
from plugins.documents.job_queue import OPEN
from plugins.documents.paging import paged
from plugins.documents.store import Item, Store, queue
from plugins.documents.tables import COLLECTIONS, ITEMS, JOBS
from proxy.host import Clock
from proxy.sql.database import Database
from proxy.stores.vectors import Vectors

log = logging.getLogger(__name__)
GRACE: Final = 120.0
"""Seconds for which a removed place is kept, for searches that have already begun."""
PAGE: Final = 500
"""Documents per transaction."""


@dataclass(frozen=True, slots=True)
class Repair:
    store: Store
    collections: Collections
    index: Vectors

    async def run(self) -> int:
        """Repair all collections; gives the number of documents that are indexed again."""
        again = 0
        for id in await self.collections.ids():
            if (one := await self.collections.by_id(id)) is not None:
                again += await self.collection(one)
        if again:
            log.warning("%s documents are indexed again: they were missing or incomplete in the index", again)
        return again

    async def sweep(self) -> None:
        """Drop places that were removed so long ago that nobody can still search or write them."""
        for place in await self.collections.left(self.collections.now() - int(GRACE * 1e6)):
            await self.index.drop(place)
            await self.collections.forget(place)

    async def collection(self, one: Collection) -> int:
        """Repair one collection; gives the number of documents that are indexed again.

        Index rows are counted before reading what should be there, so that rows added meanwhile do not look wrong.
        """
        before = await self.adding(one.id)
        there = await self.index.counts(one.place)
        right = await self.right(one.id)
        for document, version in there:
            if (document, version) not in right:
                await self.index.remove(one.place, document, version, version + 1)
        wrong = [key[0] for key, chunks in right.items() if chunks >= 0 and key not in before
                 and there.get(key, 0) != chunks]  # fmt: skip
        return await self.again(one, wrong + await self.stuck(one.id))

    async def right(self, id: str) -> Mapping[tuple[str, int], int]:
        """The number of rows that each version should have; -1 while it is being added.

        Open jobs are read first: one that ends in between is then found among the ready versions.
        """
        adding = dict.fromkeys(await self.adding(id), -1)
        query = select(ITEMS.c.id, ITEMS.c.version, ITEMS.c.chunks)
        ready = query.where((ITEMS.c.collection == id) & (ITEMS.c.version > 0))
        pages = paged(self.store.database, ready, ITEMS.c.id)
        found = {(row.id, row.version): row.chunks async for page in pages for row in page}
        return found | adding

    async def adding(self, id: str) -> set[tuple[str, int]]:
        """The documents and versions with open jobs."""
        query = select(JOBS.c.id, JOBS.c.item, JOBS.c.version)
        still = query.where((JOBS.c.collection == id) & JOBS.c.status.in_(OPEN))
        pages = paged(self.store.database, still, JOBS.c.id)
        return {(row.item, row.version) async for page in pages for row in page}

    async def stuck(self, id: str) -> list[str]:
        """Pending documents without an open job."""
        has = select(JOBS.c.id).where((JOBS.c.item == ITEMS.c.id) & JOBS.c.status.in_(OPEN)).exists()
        async with self.store.database.reading() as connection:
            query = select(ITEMS.c.id).where((ITEMS.c.collection == id) & (ITEMS.c.status == "pending") & ~has)
            return list((await connection.execute(query)).scalars())

    async def again(self, one: Collection, ids: list[str]) -> int:
        """Index these documents again; gives their number.

        It is 0 if the collection has moved meanwhile, since the rows were counted in another place.
        """
        count, same = 0, (COLLECTIONS.c.id == one.id) & (COLLECTIONS.c.place == one.place)
        for at in range(0, len(ids), PAGE):
            async with self.store.database.writing(lasting=True) as connection:
                if (await connection.execute(shared_lock(same))).first() is not None:
                    some = ITEMS.c.id.in_(ids[at : at + PAGE])
                    count += await begun_again(connection, some, self.store.now())
        return count


async def begun_again(connection: AsyncConnection, which: ColumnElement[bool], now: int) -> int:
    """Queue documents to be indexed again, in their newest version; until then they cannot be found."""
    rows = (await connection.execute(select(ITEMS).where(which))).all()
    ids = [row.id for row in rows]
    values = {"version": 0, "chunks": 0, "status": "pending", "error": ""}
    await connection.execute(update(ITEMS).where(ITEMS.c.id.in_(ids)).values(**values))
    for row in rows:
        await queue(connection, Item(*row), now, key="")  # counted for no API key
    return len(rows)


async def everything(database: Database, clock: Clock) -> int:
    """Queue every document to be indexed again, page by page; a running server starts with the first ones."""
    count, last = 0, ""
    while True:
        async with database.writing(lasting=True) as connection:
            some = select(ITEMS.c.id).where(ITEMS.c.id > last).order_by(ITEMS.c.id).limit(PAGE)
            ids = list((await connection.execute(some)).scalars())
            if not ids:
                return count
            count += await begun_again(connection, ITEMS.c.id.in_(ids), int(clock.time() * 1e6))
            last = ids[-1]
