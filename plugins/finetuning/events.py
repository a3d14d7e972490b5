"""The events and measurements of jobs: bounded, however long a training takes and however much it reports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.finetuning.measures import clean
from plugins.finetuning.store import Job, Store, held
from plugins.finetuning.tables import CHECKPOINTS, EVENTS
from proxy.errors import NotFound
from proxy.wire.ids import timely_id

MOST: Final = 1000
"""Maximum measurements of a job, and maximum other events; beyond it, every second measurement is deleted."""
MOST_CHECKPOINTS: Final = 100
CHUNK: Final = 500


class Event(NamedTuple):
    """A row of EVENTS."""

    job: str
    number: int
    at: int
    level: str
    sample: int
    message: str
    data: str

    @property
    def id(self) -> str:
        return f"ftevent-{self.number}-{self.job}"


class Checkpoint(NamedTuple):
    """A row of CHECKPOINTS."""

    id: str
    job: str
    name: str
    step: int
    at: int
    metrics: str


class Events:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.database = store.database

    async def say(self, job: str, message: str, level: str = "info") -> None:
        await self.add(job, [said(message, level)])

    async def add(self, job: str, rows: Sequence[dict[str, Any]]) -> None:
        """rows: columns of EVENTS, except those that are filled in here.  Ignored if the job was deleted."""
        async with self.database.writing() as connection:
            await self.write(connection, job, rows)

    async def write(self, connection: AsyncConnection, job: str, rows: Sequence[dict[str, Any]]) -> None:
        """Like `add`, in an existing transaction."""
        if rows and await held(connection, job):
            last = select(func.coalesce(func.max(EVENTS.c.number), 0)).where(EVENTS.c.job == job)
            first, now = (await connection.execute(last)).scalar_one() + 1, self.store.micros()
            blank = {"job": job, "at": now, "sample": -1, "data": ""}
            await connection.execute(
                insert(EVENTS), [{**blank, "number": first + at, **row} for at, row in enumerate(rows)]
            )
            await self.thin_out(connection, job)

    async def thin_out(self, connection: AsyncConnection, job: str) -> None:
        """Delete every second measurement, and the oldest of the other events, if there are too many."""
        of = EVENTS.c.job == job
        measured, other = of & (EVENTS.c.sample >= 0), of & (EVENTS.c.sample < 0)
        for which in (measured, other):
            if (await connection.execute(select(func.count()).where(which))).scalar_one() <= MOST:
                continue
            query = select(EVENTS.c.number).where(which).order_by(EVENTS.c.number)
            numbers = list((await connection.execute(query)).scalars())
            gone = numbers[1:-1:2] if which is measured else numbers[:-MOST]
            for at in range(0, len(gone), CHUNK):
                some = of & EVENTS.c.number.in_(gone[at : at + CHUNK])
                await connection.execute(delete(EVENTS).where(some))

    async def page(self, job: Job, after: str | None, limit: int) -> tuple[list[Event], bool]:
        """One page, newest first, and whether there are more.  Raises NotFound if `after` is not the job's."""
        query = select(EVENTS).where(EVENTS.c.job == job.id)
        if after is not None:
            query = query.where(EVENTS.c.number < number_of(after, job.id))
        async with self.database.reading() as connection:
            rows = await connection.execute(query.order_by(EVENTS.c.number.desc()).limit(limit + 1))
            found = [Event(*row) for row in rows]
        return found[:limit], len(found) > limit

    async def measured(self, job: str) -> AsyncIterator[Event]:
        """All measurements, oldest first."""
        last = 0
        while True:
            some = (EVENTS.c.job == job) & (EVENTS.c.number > last)
            async with self.database.reading() as connection:
                rows = await connection.execute(select(EVENTS).where(some).order_by(EVENTS.c.number).limit(CHUNK))
                found = [Event(*row) for row in rows]
            for one in found:
                if one.sample >= 0:
                    yield one
            if len(found) < CHUNK:
                return
            last = found[-1].number

    async def mark(self, job: str, name: str, step: int, metrics: dict[str, float]) -> None:
        """Add a checkpoint; if there are too many, the oldest are deleted."""
        row = {"id": timely_id("ftckpt_"), "job": job, "name": name, "step": step, "at": self.store.micros()}
        async with self.database.writing() as connection:
            if not await held(connection, job):
                return
            await connection.execute(insert(CHECKPOINTS).values(**row, metrics=orjson.dumps(metrics).decode()))
            of, order = CHECKPOINTS.c.job == job, CHECKPOINTS.c.id.desc()
            old = select(CHECKPOINTS.c.id).where(of).order_by(order).offset(MOST_CHECKPOINTS).limit(CHUNK)
            await connection.execute(delete(CHECKPOINTS).where(CHECKPOINTS.c.id.in_(old)))

    async def checkpoints(self, job: Job, after: str | None, limit: int) -> tuple[list[Checkpoint], bool]:
        """One page, newest first, and whether there are more.  Raises NotFound if `after` is not the job's."""
        query = select(CHECKPOINTS).where(CHECKPOINTS.c.job == job.id).order_by(CHECKPOINTS.c.id.desc())
        async with self.database.reading() as connection:
            found = [Checkpoint(*row) for row in await connection.execute(query)]
        if after is not None:
            places = [at for at, one in enumerate(found) if one.id == after]
            if not places:
                raise NotFound(
                    f"The job has no checkpoint '{after[:100]}'.", param="after", code="checkpoint_not_found"
                )
            found = found[places[0] + 1 :]
        return found[:limit], len(found) > limit


def said(message: str, level: str = "info") -> dict[str, Any]:
    return {"level": level, "message": clean(message)}


def number_of(id: str, job: str) -> int:
    """The number in an event's id.  Raises NotFound."""
    number = id.removeprefix("ftevent-").removesuffix(f"-{job}")
    if f"ftevent-{number}-{job}" != id or not number.isascii() or not number.isdigit() or len(number) > 9:
        raise NotFound(f"The job has no event '{id[:100]}'.", param="after", code="event_not_found")
    return int(number)
