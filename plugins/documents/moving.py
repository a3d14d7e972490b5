"""Moves a collection to another model: indexes all of it in a second table, then switches to that."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.documents.collections import Collection
from plugins.documents.index_tables import NOT_MOVING, cancel_move, schedule_deletion
from plugins.documents.ingest import ChunkWriter, Ingest, LeaseLost
from plugins.documents.job_queue import OPEN, Job, JobQueue
from plugins.documents.paging import paged
from plugins.documents.store import Item
from plugins.documents.tables import COLLECTIONS, COPIES, ITEMS, JOBS
from proxy.sql.database import Database
from proxy.wire.ids import new_id

SOME: Final = 500
"""Documents looked up at once."""


def is_searched(collection: str) -> ColumnElement[bool]:
    return (ITEMS.c.collection == collection) & (ITEMS.c.version > 0)


def copied(place: str) -> ColumnElement[bool]:
    """A condition: the searchable version of the document has been copied to that place."""
    same = (COPIES.c.place == place) & (COPIES.c.item == ITEMS.c.id) & (COPIES.c.version == ITEMS.c.version)
    return select(COPIES.c.item).where(same).exists()


class Moves:
    """The moves in the database."""

    def __init__(self, database: Database, job_queue: JobQueue) -> None:
        self.database = database
        self.job_queue = job_queue

    async def begin(self, one: Collection, model: str, key: str) -> bool:
        """Begin a move; gives whether the collection is moving now.  key: id of the requesting API key.

        Moving to the current model cancels a move in progress.
        """
        now = self.job_queue.micros()
        async with self.database.writing(lasting=True) as connection:
            which = COLLECTIONS.c.id == one.id
            row = (await connection.execute(select(COLLECTIONS).where(which).with_for_update())).first()
            if row is None or row.gone or row.next_model == model:
                return bool(row and not row.gone)
            await cancel_move(connection, one.id, now)
            moving = JOBS.c.status.in_(OPEN) & (JOBS.c.collection == one.id) & (JOBS.c.item == "")
            await connection.execute(update(JOBS).where(moving).values(status="cancelled", ended=now))
            if row.model == model:
                return False
            job = new_id("job_")
            onto = {"next_place": new_id("col_"), "next_model": model, "next_job": job, "next_dimensions": 0}
            await connection.execute(update(COLLECTIONS).where(which).values(**onto))
            told = {"id": job, "collection": one.id, "item": "", "version": 0, "owner": one.owner, "status": "queued"}
            told["key_id"] = key
            await connection.execute(insert(JOBS).values(**told, total=await size(connection, one.id), at=now))
        return True

    async def sizes(self, one: Collection) -> tuple[int, int]:
        """Characters copied so far, and in total."""
        async with self.database.reading() as connection:
            return await size(connection, one.id, copied(one.next_place)), await size(connection, one.id)

    async def missing(self, one: Collection, most: int) -> list[Item]:
        query = select(ITEMS).where(is_searched(one.id) & ~copied(one.next_place)).order_by(ITEMS.c.id).limit(most)
        async with self.database.reading() as connection:
            return [Item(*row) for row in await connection.execute(query)]

    async def note(self, one: Collection, item: Item, chunks: int) -> None:
        """Record that a document is completely copied, unless it has a new version by now: its text was then replaced
        while it was read."""
        same = (ITEMS.c.id == item.id) & (ITEMS.c.version == item.version)
        key = (COPIES.c.place == one.next_place) & (COPIES.c.item == item.id)
        async with self.database.writing() as connection:
            await connection.execute(delete(COPIES).where(key))
            moving = COLLECTIONS.c.next_place == one.next_place
            for query in (select(COLLECTIONS.c.id).where(moving), select(ITEMS.c.id).where(same)):
                if (await connection.execute(query.with_for_update(read=True))).first() is None:
                    return
            row = {"place": one.next_place, "item": item.id, "version": item.version, "chunks": chunks}
            made = self.database.insert(COPIES).values(row)  # a process whose lease has expired may record the same now
            keys = [COPIES.c.place, COPIES.c.item]
            new = {name: made.excluded[name] for name in ("version", "chunks")}
            await connection.execute(made.on_conflict_do_update(index_elements=keys, set_=new))

    async def noted(self, one: Collection) -> dict[tuple[str, int], int]:
        """The recorded copies: number of chunks by document and version."""
        query = select(COPIES.c.item, COPIES.c.version, COPIES.c.chunks).join(ITEMS, ITEMS.c.id == COPIES.c.item)
        there = (COPIES.c.place == one.next_place) & (ITEMS.c.version == COPIES.c.version)
        pages = paged(self.database, query.where(there), COPIES.c.item)
        return {(row.item, row.version): row.chunks async for page in pages for row in page}

    async def forget(self, one: Collection, items: Sequence[str]) -> None:
        for at in range(0, len(items), SOME):
            some = (COPIES.c.place == one.next_place) & COPIES.c.item.in_(items[at : at + SOME])
            async with self.database.writing() as connection:
                await connection.execute(delete(COPIES).where(some))

    async def swap(self, job: Job, one: Collection) -> bool:
        """Switch searches to the next place.  False if something still has to be copied.

        Raises LeaseLost.
        """
        now = self.job_queue.micros()
        which = COLLECTIONS.c.id == one.id
        async with self.database.writing(lasting=True) as connection:
            same = which & (COLLECTIONS.c.next_place == one.next_place) & (COLLECTIONS.c.gone == 0)
            row = (await connection.execute(select(COLLECTIONS).where(same).with_for_update())).first()
            if row is None:
                raise LeaseLost
            left = select(ITEMS.c.id).where(is_searched(one.id) & ~copied(one.next_place)).limit(1)
            if (await connection.execute(left)).first() is not None:
                return False
            told = {"status": "done", "done": JOBS.c.total, "error": "", "ended": now}
            if (await connection.execute(update(JOBS).where(self.job_queue.mine(job)).values(**told))).rowcount != 1:
                raise LeaseLost
            await recount(connection, one)
            moved = {"place": row.next_place, "model": row.next_model, "dimensions": row.next_dimensions, **NOT_MOVING}
            await connection.execute(update(COLLECTIONS).where(which).values(**moved))
            await schedule_deletion(connection, row.place, now)
            await connection.execute(delete(COPIES).where(COPIES.c.place == one.next_place))
        return True


async def size(connection: AsyncConnection, collection: str, also: Any = True) -> int:
    query = select(func.sum(ITEMS.c.characters)).where(is_searched(collection) & also)
    return int((await connection.execute(query)).scalar_one_or_none() or 0)


async def recount(connection: AsyncConnection, one: Collection) -> None:
    """Update the numbers of chunks: a copy is cut with today's settings, which may have changed."""
    same = (COPIES.c.place == one.next_place) & (COPIES.c.item == ITEMS.c.id)
    chunks = select(COPIES.c.chunks).where(same).scalar_subquery()
    await connection.execute(
        update(ITEMS).where(is_searched(one.id) & (ITEMS.c.chunks != chunks)).values(chunks=chunks)
    )


@dataclass(slots=True)
class Mover:
    """Moves a collection step by step; what has been copied survives later failures."""

    ingest: Ingest
    moves: Moves
    tidy: set[str] = field(default_factory=set)
    """Places known to contain only recorded copies."""

    async def step(self, job: Job, one: Collection) -> bool:
        """Do a part of a move; gives whether there is more to do.  Raises ProxyError if it fails, or LeaseLost."""
        place = one.next_place
        try:
            if place not in self.tidy:
                await self.tidied(one)
                self.tidy.add(place)
            if some := await self.moves.missing(one, SOME):
                await self.copy(job, one, some)
                return True
            await self.ingest.index.tend(place)  # so that no search runs without the indices
            return not (await self.tidied(one) and await self.swapped(job, one))
        except BaseException:
            self.tidy.discard(place)
            raise

    async def swapped(self, job: Job, one: Collection) -> bool:
        if not await self.moves.swap(job, one):
            return False
        self.tidy.discard(one.next_place)
        self.moves.job_queue.tell()
        return True

    async def tidied(self, one: Collection) -> bool:
        """Remove rows that are not recorded, and records whose rows are missing; gives whether none were missing."""
        there = await self.ingest.index.counts(one.next_place)
        right = await self.moves.noted(one)
        for (item, version), rows in there.items():
            if right.get((item, version)) != rows:
                await self.ingest.index.remove(one.next_place, item, version, version + 1)
        lost = [item for (item, version), chunks in right.items() if there.get((item, version), 0) != chunks]
        await self.moves.forget(one, lost)
        return not lost

    async def copy(self, job: Job, one: Collection, some: list[Item]) -> None:
        writer = ChunkWriter(self.ingest, job, one.onto)
        writer.done, total = await self.moves.sizes(one)
        await self.moves.job_queue.resize(job, total)
        whole: deque[tuple[int, Item, int]] = deque()
        for item in some:
            before, done = writer.given, writer.done
            await self.ingest.text(writer, item, item.version)
            writer.done = done + item.characters
            whole.append((writer.given, item, writer.given - before))
            await self.note(one, writer, whole)
        await writer.flush()
        await self.note(one, writer, whole)

    async def note(self, one: Collection, writer: ChunkWriter, whole: deque[tuple[int, Item, int]]) -> None:
        """Record the documents whose last row has been written."""
        while whole and whole[0][0] <= writer.written:
            _, item, chunks = whole.popleft()
            await self.moves.note(one, item, chunks)
