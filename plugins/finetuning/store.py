"""Jobs in the database.  Every query for a caller filters by owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson
from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.finetuning.forms import Wanted
from plugins.finetuning.tables import JOBS
from proxy.errors import BadCall, NotFound
from proxy.host import Clock
from proxy.sql.database import Database
from proxy.sql.transaction_lock import transaction_lock
from proxy.types import JSON

OPEN: Final = ("validating_files", "queued", "running")
"""Statuses of unfinished jobs."""
MOST: Final = 1000
"""Maximum finished jobs of a caller without a model; beyond it the oldest are deleted.  Jobs with a model are kept."""


class Job(NamedTuple):
    """A row of JOBS."""

    id: str
    owner: str
    status: str
    model: str
    trainer: str
    training_file: str
    validation_file: str
    tuned: str
    hyper: str
    metadata: str
    results: str
    seed: int
    suffix: str
    code: str
    error: str
    param: str
    holder: str
    server: str
    starts: int
    tokens: int
    trained: int
    done: int
    total: int
    until: int
    at: int
    began: int
    ended: int
    gone: int

    @property
    def hypers(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = orjson.loads(self.hyper)
        return found


class Store:
    def __init__(self, database: Database, clock: Clock, most_open: int) -> None:
        """most_open: maximum unfinished jobs of one caller."""
        self.database = database
        self.clock = clock
        self.most_open = most_open

    def micros(self, more: float = 0.0) -> int:
        return int((self.clock.time() + more) * 1e6)

    async def add(self, row: Mapping[str, Any]) -> Job:
        """Insert a job whose files are to be validated.  Raises BadCall if the caller has too many."""
        owner = row["owner"]
        mine = JOBS.c.owner == owner
        async with self.database.writing(lasting=True) as connection:
            await transaction_lock(connection, f"fine-tuning of {owner}")
            made = insert(JOBS).values(**row, status="validating_files", at=self.micros())
            job = Job(*(await connection.execute(made.returning(*JOBS.c))).one())
            count = select(func.count()).where(mine & JOBS.c.status.in_(OPEN))
            if (await connection.execute(count)).scalar_one() > self.most_open:
                message = f"You have {self.most_open} unfinished jobs, which is the maximum."
                raise BadCall(message, code="too_many_jobs")
            over = mine & JOBS.c.status.not_in(OPEN) & ((JOBS.c.status != "succeeded") | (JOBS.c.gone != 0))
            old = select(JOBS.c.id).where(over).order_by(JOBS.c.at.desc(), JOBS.c.id.desc()).offset(MOST).limit(MOST)
            await connection.execute(delete(JOBS).where(JOBS.c.id.in_(old)))
        return job

    async def one(self, owner: str, id: str) -> Job:
        """Raises NotFound, also for another owner's job."""
        found = await self.first((JOBS.c.owner == owner) & (JOBS.c.id == id))
        if found is None:
            raise not_found(id)
        return found

    async def first(self, where: ColumnElement[bool]) -> Job | None:
        async with self.database.reading() as connection:
            row = (await connection.execute(select(JOBS).where(where).limit(1))).first()
        return None if row is None else Job(*row)

    async def page(self, owner: str, wanted: Wanted) -> tuple[list[Job], bool]:
        """One page, newest first, and whether there are more.  Raises NotFound if `after` is not the owner's."""
        last = None if wanted.after is None else await self.one(owner, wanted.after)
        return await self.beyond(owner, wanted, last)

    async def beyond(self, owner: str, wanted: Wanted, last: Job | None) -> tuple[list[Job], bool]:
        """Like `page`, after a job that may have been deleted meanwhile."""
        query = select(JOBS).where(JOBS.c.owner == owner)
        if last is not None:
            query = query.where((JOBS.c.at < last.at) | ((JOBS.c.at == last.at) & (JOBS.c.id < last.id)))
        # One caller has too few jobs for metadata to need an index.
        query = query.order_by(JOBS.c.at.desc(), JOBS.c.id.desc())
        query = query if wanted.metadata else query.limit(wanted.limit + 1)
        async with self.database.reading() as connection:
            found = [Job(*row) for row in await connection.execute(query)]
        fit = [job for job in found if not wanted.metadata or fits(orjson.loads(job.metadata), wanted.metadata)]
        return fit[: wanted.limit], len(fit) > wanted.limit

    async def of_model(self, owner: str | None, name: str) -> Job | None:
        """The job that created a model.  owner: None means any caller's."""
        where = (JOBS.c.tuned == name) & (JOBS.c.status == "succeeded") & (JOBS.c.gone == 0)
        return await self.first(where if owner is None else where & (JOBS.c.owner == owner))

    async def deleted(self, job: Job) -> None:
        """Record that its model was deleted."""
        async with self.database.writing() as connection:
            await connection.execute(update(JOBS).where(JOBS.c.id == job.id).values(gone=1))

    async def owned(self, owner: str, limit: int) -> Sequence[Job]:
        async with self.database.reading() as connection:
            return [
                Job(*row) for row in await connection.execute(select(JOBS).where(JOBS.c.owner == owner).limit(limit))
            ]

    async def remove(self, owner: str, ids: Sequence[str]) -> int:
        async with self.database.writing(lasting=True) as connection:
            mine = (JOBS.c.owner == owner) & JOBS.c.id.in_(ids)
            return (await connection.execute(delete(JOBS).where(mine))).rowcount


async def held(connection: AsyncConnection, id: str) -> bool:
    """Whether a job exists; its row is locked until the transaction ends."""
    return (await connection.execute(select(JOBS.c.id).where(JOBS.c.id == id).with_for_update())).first() is not None


def fits(metadata: Mapping[str, JSON], wanted: Mapping[str, str]) -> bool:
    return all(metadata.get(name) == value for name, value in wanted.items())


def not_found(id: str) -> NotFound:
    return NotFound(f"No fine-tuning job of yours has the id '{id[:100]}'.", param="id", code="job_not_found")
