"""The job queue: each job is leased to one process, and another takes over when that one dies."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, delete, select, true, update

from plugins.documents.index_tables import cancel_move, shared_lock
from plugins.documents.tables import COLLECTIONS, ITEMS, JOBS, PARTS
from proxy.host import Clock
from proxy.sql.database import Database
from proxy.sql.lease import LeaseHolder, SilenceTimer

LEASE: Final = 30.0
"""Seconds after the last heartbeat at which a job's lease expires."""
SILENT: Final = LEASE / 2
"""Seconds for which this process must also have seen no heartbeat, since clocks can differ; longer than the interval
between two."""
KEPT: Final = 7 * 86_400
"""Seconds for which an ended job is kept."""
SOME: Final = 20
OPEN: Final = ("queued", "running")


class Job(NamedTuple):
    """A document version to be indexed, or a collection to be moved; see JOBS."""

    id: str
    collection: str
    item: str
    version: int
    owner: str
    status: str
    done: int
    total: int
    error: str
    holder: str
    until: int
    at: int
    ended: int
    key_id: str = ""


class JobQueue:
    def __init__(self, database: Database, clock: Clock, server: str) -> None:
        """server: an id that is unique to this run of this server."""
        self.database = database
        self.clock = clock
        self.changed = asyncio.Event()
        """Set, and replaced by a new event, whenever a job of this process makes progress."""
        self.holder = LeaseHolder(server)
        self.name = self.holder.name
        self.silence = SilenceTimer(clock, SILENT)

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def micros(self, more: float = 0.0) -> int:
        return int((self.clock.time() + more) * 1e6)

    async def claim(self, items: bool = True, moves: bool = True, but: Collection[str] = ()) -> Job | None:
        """Lease the oldest free job to this process.

        items, moves: whether to take jobs for documents, and for moves.  but: jobs that this process is running, even
        if it could not renew their leases.
        """
        if not items and not moves:
            return None
        now = self.micros()
        running = JOBS.c.status == "running"
        free = (JOBS.c.status == "queued") | (running & (JOBS.c.until < now))
        left = running & JOBS.c.holder.startswith(self.holder.here, autoescape=True)
        wanted = true() if items and moves else (JOBS.c.item != "") if items else (JOBS.c.item == "")
        query = (
            select(JOBS)
            .where(wanted & (free | left) & JOBS.c.id.not_in(but))
            .order_by(JOBS.c.at, JOBS.c.id)
            .limit(SOME)
        )
        async with self.database.reading() as connection:
            found = [Job(*row) for row in await connection.execute(query)]
        for job in found:
            nobodys = job.status == "queued" or job.holder == self.name or self.holder.dead(job.holder)
            over = job.until < now and self.silence.lasts(job.id, job.until)
            if (nobodys or over) and await self.taken(job):
                return job
        return None

    async def taken(self, job: Job) -> bool:
        same = (JOBS.c.id == job.id) & (JOBS.c.status == job.status) & (JOBS.c.holder == job.holder)
        told = {"status": "running", "holder": self.name, "until": self.micros(LEASE), "done": 0}
        async with self.database.writing() as connection:
            changed = await connection.execute(update(JOBS).where(same & (JOBS.c.until == job.until)).values(**told))
        return changed.rowcount == 1

    def mine(self, job: Job) -> ColumnElement[bool]:
        return (JOBS.c.id == job.id) & (JOBS.c.status == "running") & (JOBS.c.holder == self.name)

    async def progress(self, job: Job, done: int | None = None) -> bool:
        """Renew the lease and store the progress.  False if the job is no longer this process's, which must stop."""
        told = {"until": self.micros(LEASE)} | ({} if done is None else {"done": done})
        async with self.database.writing() as connection:
            changed = await connection.execute(update(JOBS).where(self.mine(job)).values(**told))
        self.tell()
        return changed.rowcount == 1

    async def resize(self, job: Job, total: int) -> None:
        async with self.database.writing() as connection:
            await connection.execute(update(JOBS).where(self.mine(job)).values(total=total))

    async def finish(self, job: Job, chunks: int, place: str) -> bool:
        """End a job: its version is the one that is searched from now on.

        False if the job was taken over or cancelled, or its collection has moved to another place.
        """
        now = self.micros()
        item = ITEMS.c.id == job.item
        async with self.database.writing(lasting=True) as connection:
            there = (COLLECTIONS.c.id == job.collection) & (COLLECTIONS.c.place == place)
            if (await connection.execute(shared_lock(there))).first() is None:
                return False
            await connection.execute(
                select(ITEMS.c.id).where(item).with_for_update()
            )  # the lock order of `add_version`
            told = {"status": "done", "done": JOBS.c.total, "error": "", "ended": now}
            if (await connection.execute(update(JOBS).where(self.mine(job)).values(**told))).rowcount != 1:
                return False
            newest = update(ITEMS).where(item & (ITEMS.c.newest == job.version))
            ready = newest.values(version=job.version, chunks=chunks, status="ready", error="", changed=now)
            if (await connection.execute(ready)).rowcount != 1:
                return False
            older = (PARTS.c.item == job.item) & (PARTS.c.version < job.version)
            await connection.execute(delete(PARTS).where(older))
            old = (JOBS.c.ended > 0) & (JOBS.c.ended < self.micros(-KEPT))
            await connection.execute(delete(JOBS).where(old))
            return True

    async def wait(self, job: Job, reason: str) -> None:
        """Store the reason of a failed attempt, to be shown until the next one."""
        newest = (ITEMS.c.id == job.item) & (ITEMS.c.newest == job.version)
        held = select(JOBS.c.id).where(self.mine(job)).exists()
        async with self.database.writing() as connection:
            await connection.execute(update(ITEMS).where(newest & held).values(error=reason))
            await connection.execute(update(JOBS).where(self.mine(job)).values(error=reason))
        self.tell()

    async def fail(self, job: Job, reason: str) -> None:
        await self.end(job, self.mine(job), "failed", reason)

    async def release(self, job: Job) -> None:
        """Put a job back into the queue, because this process is stopping."""
        async with self.database.writing() as connection:
            await connection.execute(update(JOBS).where(self.mine(job)).values(status="queued", holder="", until=0))

    async def cancel(self, job: Job) -> bool:
        """Cancel a job; False if it has ended already."""
        return await self.end(job, (JOBS.c.id == job.id) & JOBS.c.status.in_(OPEN), "cancelled", "")

    async def end(self, job: Job, which: ColumnElement[bool], status: str, reason: str) -> bool:
        """End a job without success: its document has failed, or its collection stays in its place."""
        now = self.micros()
        newest = (ITEMS.c.id == job.item) & (ITEMS.c.newest == job.version)
        moving = select(COLLECTIONS.c.id).where(COLLECTIONS.c.next_job == job.id)
        async with self.database.writing(lasting=True) as connection:
            if job.item:  # the lock order of `add_version` and of moves
                await connection.execute(select(ITEMS.c.id).where(ITEMS.c.id == job.item).with_for_update())
            else:
                await connection.execute(moving.with_for_update())
            told = {"status": status, "error": reason, "ended": now}
            if (await connection.execute(update(JOBS).where(which).values(**told))).rowcount != 1:
                return False
            failed = update(ITEMS).where(newest).values(status="failed", error=reason or status)
            await connection.execute(failed)
            for collection in (await connection.execute(moving)).scalars().all():
                await cancel_move(connection, collection, now)
            return True

    async def one(self, owner: str, id: str) -> Job | None:
        return await self.first((JOBS.c.id == id) & (JOBS.c.owner == owner))

    async def of_item(self, item: str) -> Job | None:
        """The latest job of a document."""
        return await self.first(JOBS.c.item == item)

    async def first(self, where: ColumnElement[bool]) -> Job | None:
        query = select(JOBS).where(where).order_by(JOBS.c.version.desc(), JOBS.c.at.desc(), JOBS.c.id).limit(1)
        async with self.database.reading() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else Job(*row)

    async def latest(self, owner: str, limit: int) -> list[Job]:
        query = select(JOBS).where(JOBS.c.owner == owner).order_by(JOBS.c.at.desc(), JOBS.c.id).limit(limit)
        async with self.database.reading() as connection:
            return [Job(*row) for row in await connection.execute(query)]
