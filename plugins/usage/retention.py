"""Deletes old rows in small transactions, so that nothing waits long; sums by the day are kept."""

from __future__ import annotations

import asyncio
from typing import Final

from sqlalchemy import ColumnElement, Table, delete, select

from plugins.usage.statements import alone
from plugins.usage.tables import ATTEMPTS, BATCHES, CALLS, SUMS
from proxy.host import Clock
from proxy.sql.database import Database

DAY: Final = 86_400
MINUTES: Final = 2 * DAY
"""Maximum seconds for which sums by the minute are kept."""
WRITTEN: Final = DAY
"""Seconds for which the ids of written batches are kept."""
CHUNK: Final = 2000
"""Rows deleted at once."""


class Retention:
    """Deletes rows older than the settings allow.  Several processes may do this at once."""

    def __init__(self, days: int | None, database: Database, clock: Clock) -> None:
        self.days = days
        self.database = database
        self.clock = clock

    async def tidy(self) -> None:
        now = self.clock.time()
        await self.remove(BATCHES, BATCHES.c.at < micros(now - WRITTEN))
        minutes, hours, _ = SUMS.values()
        await self.remove(minutes, minutes.c.start < micros(now - MINUTES))
        if self.days is not None:
            limit = micros(now - self.days * DAY)
            await self.remove(hours, hours.c.start < limit)
            await self.remove(CALLS, CALLS.c.at < limit)
            await self.remove(ATTEMPTS, ATTEMPTS.c.at < limit)

    async def remove(self, table: Table, old: ColumnElement[bool]) -> None:
        some = select(table.c.id).where(old).limit(CHUNK)
        while True:
            async with self.database.writing() as connection:
                await alone(connection)
                gone = await connection.execute(delete(table).where(table.c.id.in_(some)))
            if gone.rowcount < CHUNK:
                return
            await asyncio.sleep(0)


def micros(seconds: float) -> int:
    return int(seconds * 1e6)
