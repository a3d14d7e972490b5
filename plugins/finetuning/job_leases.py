"""Leases of jobs: each is processed by one process at a time, and taken over if that process dies."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.finetuning.events import Events, said
from plugins.finetuning.store import OPEN, Job, Store
from plugins.finetuning.tables import JOBS
from proxy.errors import BadCall
from proxy.sql.lease import LeaseHolder, SilenceTimer
from proxy.sql.transaction_lock import transaction_lock

LEASE: Final = 30.0
"""Seconds after which a lease ends unless it is renewed."""
SILENT: Final = 6.0
"""Seconds for which an expired lease must also be seen unchanged, whatever the clocks say: three heartbeats."""
SOME: Final = 20


class JobLeases:
    def __init__(self, store: Store, events: Events, server: str, at_once: int) -> None:
        """server: an id that the processes of this server share.  at_once: concurrent trainings of all of them."""
        self.store = store
        self.events = events
        self.database = store.database
        self.server = server
        self.at_once = at_once
        self.holder = LeaseHolder(server)
        self.silence = SilenceTimer(store.clock, SILENT)

    async def claim(self, status: str, trainers: Collection[str], but: Collection[str] = ()) -> Job | None:
        """Take the oldest job that waits, or whose process has died; it is this process's from now on.

        status: `validating_files` or `queued`.  trainers: those that this server has.  but: jobs that this process is
        working on, even if it could not renew their leases.
        """
        statuses = (status,) if status == "validating_files" else ("queued", "running")
        waits = JOBS.c.status.in_(statuses) & JOBS.c.trainer.in_(trainers) & JOBS.c.id.not_in(but)
        mine = JOBS.c.holder == self.holder.name
        here = JOBS.c.holder.startswith(self.holder.here, autoescape=True)
        near = select(JOBS.c.holder).where(waits & here & ~mine).distinct()
        async with self.database.reading() as connection:
            dead = [one for one in (await connection.execute(near)).scalars() if self.holder.dead(one)]
            free = JOBS.c.holder.in_(["", *dead]) | (JOBS.c.until < self.store.micros())
            if await self.busy(connection) >= self.at_once:
                free &= JOBS.c.status != "queued"  # but an abandoned running job may be one of those that fill it
            query = select(JOBS).where(waits & free).order_by(JOBS.c.at, JOBS.c.id).limit(SOME)
            found = [Job(*row) for row in await connection.execute(query)]
        for job in found:
            free_now = job.holder in ("", self.holder.name, *dead) or self.silence.lasts(job.id, job.until)
            if free_now and (taken := await self.taken(job)) is not None:
                return taken
        return None

    async def taken(self, job: Job) -> Job | None:
        told: dict[str, Any] = {"holder": self.holder.name, "server": self.server, "until": self.store.micros(LEASE)}
        if job.status != "validating_files":
            told |= {"status": "running"}
        same = (JOBS.c.id == job.id) & (JOBS.c.status == job.status) & (JOBS.c.holder == job.holder)
        async with self.database.writing() as connection:
            if job.status != "validating_files":
                await transaction_lock(connection, "training")
                if await self.busy(connection, job.id) >= self.at_once:
                    return None
            changed = update(JOBS).where(same & (JOBS.c.until == job.until)).values(**told).returning(*JOBS.c)
            row = (await connection.execute(changed)).first()
        return None if row is None else Job(*row)

    async def busy(self, connection: AsyncConnection, but: str = "") -> int:
        """The number of trainings that this server runs.  but: a job not to count."""
        under_way = (JOBS.c.status == "running") & (JOBS.c.server == self.server) & (JOBS.c.id != but)
        held = (await connection.execute(select(JOBS.c.holder, JOBS.c.until).where(under_way))).all()
        now = self.store.micros()  # if the clock was set forward, all leases seem expired: `dead` decides then
        return sum(one.until >= now or not self.holder.dead(one.holder) for one in held)

    def mine(self, job: Job) -> ColumnElement[bool]:
        return (JOBS.c.id == job.id) & (JOBS.c.status == job.status) & (JOBS.c.holder == self.holder.name)

    async def tell(self, job: Job, **told: Any) -> bool:
        """Renew the lease and store the progress; False if the job is no longer this process's; it must stop then."""
        values = {"until": self.store.micros(LEASE), **told}
        async with self.database.writing() as connection:
            return (await connection.execute(update(JOBS).where(self.mine(job)).values(**values))).rowcount == 1

    async def release(self, job: Job, status: str, words: str = "", **told: Any) -> bool:
        """Give the job back, so that any process can take it."""
        return await self.leave(job, said(words) if words else None, status=status, **told)

    async def end(self, job: Job, status: str, words: str, level: str = "info", **told: Any) -> bool:
        return await self.leave(job, said(words, level), status=status, ended=self.store.micros(), **told)

    async def leave(self, job: Job, event: dict[str, Any] | None, **told: Any) -> bool:
        """Change the job, and add the event in the same transaction."""
        values = {"holder": "", "server": "", "until": 0, **told}
        async with self.database.writing(lasting=True) as connection:
            changed = await connection.execute(update(JOBS).where(self.mine(job)).values(**values))
            if changed.rowcount == 1 and event is not None:
                await self.events.write(connection, job.id, [event])
        return changed.rowcount == 1

    async def cancel(self, owner: str, id: str) -> Job:
        """Cancel a job; its process notices at its next heartbeat.  Raises NotFound, and BadCall if it has ended."""
        told = {"status": "cancelled", "ended": self.store.micros(), "holder": "", "until": 0}
        mine = (JOBS.c.id == id) & (JOBS.c.owner == owner) & JOBS.c.status.in_(OPEN)
        async with self.database.writing(lasting=True) as connection:
            changed = update(JOBS).where(mine).values(**told).returning(*JOBS.c)
            if (row := (await connection.execute(changed)).first()) is not None:
                await self.events.write(connection, id, [said("The job was cancelled.")])
        if row is None:
            status = (await self.store.one(owner, id)).status
            raise BadCall(f"The job '{id[:100]}' has ended: its status is '{status}'.", param="id", code="job_over")
        return Job(*row)
