"""Writes rows to the database: bounded, in the background, so that no call waits for it."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import select

from plugins.usage import sums
from plugins.usage.rows import AttemptRow, CallRow, FirstAttempts, Names, attempt_row, call_row
from plugins.usage.statements import alone, insert_rows
from plugins.usage.tables import ATTEMPTS, BATCHES, CALLS
from proxy.announcements import Attempt, CallEnded
from proxy.errors import Busy
from proxy.host import Clock, interruptible_sleep
from proxy.sql.backlog import EVERY, Backlog
from proxy.sql.database import Database

log = logging.getLogger(__name__)
Row = CallRow | AttemptRow
Waiting = Row | CallEnded
"""Ended calls become rows only when they are written, many at a time: this costs half as much as between two calls."""

BATCH: Final = 1000
"""Rows written at once, unless more are waiting."""
MOST: Final = 2 * BATCH


@dataclass(slots=True)
class Batch:
    """Rows written in one transaction.  tried: an attempt was made, and may have succeeded without confirmation."""

    rows: Sequence[Row]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    tried: bool = False


class Writer(Backlog):
    what = "records of usage"

    def __init__(self, database: Database, clock: Clock) -> None:
        super().__init__(clock)
        self.database = database
        self.waiting: deque[Waiting] = deque()
        self.smooth = FirstAttempts()
        self.names = Names()
        self.writing: deque[Batch] = deque()
        self.full = asyncio.Event()

    @property
    def pending(self) -> int:
        return len(self.waiting) + len(self.smooth) + sum(len(one.rows) for one in self.writing)

    def add(self, row: Waiting) -> None:
        if len(self.waiting) >= self.most:
            self.lose(1)
            return
        if (
            isinstance(row, CallEnded) and row.about
        ):  # convert it now: `about` may be large, and a row keeps little of it
            row = self.row(row)
        self.waiting.append(row)
        if len(self.waiting) == BATCH:
            self.full.set()

    def row(self, one: Waiting) -> Row:
        return call_row(one, self.names.of(one)) if isinstance(one, CallEnded) else one

    def tried(self, one: Attempt) -> None:
        if one.error or one.number > 1:
            self.add(attempt_row(one, self.clock.time()))
        elif len(self.smooth.found) < self.most:
            self.smooth.add(one, self.clock.time())
        else:
            self.lose(1)

    async def rest(self, seconds: float) -> None:
        """Wait for the next write; if the database is unavailable, for the full time, however many rows are waiting."""
        if seconds > EVERY:
            await asyncio.sleep(seconds)
            return
        await interruptible_sleep(seconds, self.full)

    async def flush(self) -> None:
        async with self.turn:
            left = self.pending
            while left > 0 and (batch := self.next()) is not None:
                left -= await self.write(batch)

    def next(self) -> Batch | None:
        if not self.writing and (self.waiting or self.smooth):
            self.writing.append(Batch([*self.taken(), *self.smooth.taken()]))
        if len(self.waiting) < BATCH:
            self.full.clear()
        return self.writing[0] if self.writing else None

    def taken(self) -> Iterator[Row]:
        for _ in range(min(MOST, len(self.waiting))):
            try:
                yield self.row(self.waiting.popleft())
            except Exception:  # a call that cannot become a row must not keep the others from being written
                log.exception("ended calls cannot be recorded")
                self.lose(1)

    async def write(self, batch: Batch) -> int:
        """Write a batch; returns how many rows are done with."""
        try:
            await self.put(batch)
        except Busy:
            raise
        except Exception:  # a row that the database rejects must not keep the others from being written
            log.exception("a batch of %s records cannot be written", len(batch.rows))
            self.writing.popleft()
            return self.divide(batch)
        self.writing.popleft()
        return len(batch.rows)

    def divide(self, batch: Batch) -> int:
        """Split a failed batch, so that in the end only the faulty row is lost."""
        half = len(batch.rows) // 2
        if not half:
            self.lose(1)
            return 1
        self.writing.extendleft((Batch(batch.rows[half:]), Batch(batch.rows[:half])))
        return 0

    async def put(self, batch: Batch) -> None:
        calls = [row for row in batch.rows if isinstance(row, CallRow)]
        tries = [row for row in batch.rows if isinstance(row, AttemptRow)]
        added, tried = sums.summed(calls), batch.tried
        batch.tried = True
        async with self.database.writing() as connection:
            if tried or not calls:  # otherwise `sums.add` takes the lock
                await alone(connection)  # the unconfirmed transaction may be committing right now
            if tried and (await connection.execute(select(BATCHES).where(BATCHES.c.id == batch.id))).first():
                return
            now = int(self.clock.time() * 1e6)
            await insert_rows(connection, BATCHES, ("id", "at"), [(batch.id, now)])
            await insert_rows(connection, CALLS, CallRow._fields, calls)
            await insert_rows(connection, ATTEMPTS, AttemptRow._fields, tries)
            if calls:
                await sums.add(connection, added)
