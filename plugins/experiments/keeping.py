"""What is old goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, Table, delete, func, select

from plugins.experiments.book import FILE
from plugins.experiments.store import MICRO, PARTS, Store
from plugins.experiments.tables import BATCHES, CALLS, EXPERIMENTS

DAY: Final = 86_400
WRITTEN: Final = DAY
"""Seconds for which it is known what was written."""
GONE: Final = 90 * DAY
"""Seconds that results stay of an experiment that no configuration has any more."""
CHUNK: Final = 2000
"""Rows that go at once."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """days, most: of calls that may be rated.  It does no harm where several processes do it."""

    store: Store
    days: int
    most: int

    async def tidy(self) -> None:
        now = self.store.host.clock.time()
        await self.remove(BATCHES, BATCHES.c.at < micros(now - WRITTEN))
        await self.remove(CALLS, CALLS.c.at < micros(now - self.days * DAY))
        async with self.store.database.reading() as connection:
            newest = (await connection.execute(select(func.max(CALLS.c.id)))).scalar() or 0
        await self.remove(CALLS, CALLS.c.id <= newest - self.most)
        gone = (EXPERIMENTS.c.source == FILE) & (EXPERIMENTS.c.updated < micros(now - GONE))
        async with self.store.database.writing() as connection:
            await connection.execute(delete(EXPERIMENTS).where(gone))
            there = select(EXPERIMENTS.c.id)
            for table in PARTS:  # what was written for one that was deleted just then goes, too
                await connection.execute(delete(table).where(table.c.experiment.not_in(there)))

    async def remove(self, table: Table, old: ColumnElement[bool]) -> None:
        some = select(table.c.id).where(old).limit(CHUNK)
        while True:
            async with self.store.database.writing() as connection:
                gone = await connection.execute(delete(table).where(table.c.id.in_(some)))
            if gone.rowcount < CHUNK:
                return


def micros(seconds: float) -> int:
    return int(seconds * MICRO)
