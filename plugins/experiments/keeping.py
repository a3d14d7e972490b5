"""What is old goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select

from plugins.experiments.book import FILE
from plugins.experiments.store import MICRO, PARTS, E, Store, clear
from plugins.experiments.tables import BATCHES, CALLS, EXPERIMENTS

DAY: Final = 86_400
WRITTEN: Final = DAY
"""Seconds for which it is known what was written."""
GONE: Final = 90 * DAY
"""Seconds that results stay of an experiment that no configuration has any more."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """days, most: of calls that may be rated.  It does no harm where several processes do it."""

    store: Store
    days: int
    most: int

    async def tidy(self) -> None:
        now = self.store.host.clock.time()
        database = self.store.database
        await clear(database, BATCHES, BATCHES.c.at < micros(now - WRITTEN))
        await clear(database, CALLS, CALLS.c.at < micros(now - self.days * DAY))
        async with database.reading() as connection:
            newest = (await connection.execute(select(func.max(CALLS.c.id)))).scalar() or 0
        await clear(database, CALLS, CALLS.c.id <= newest - self.most)
        await clear(database, EXPERIMENTS, (E.source == FILE) & (E.updated < micros(now - GONE)))
        for table in PARTS:  # what was written for one that was deleted just then goes, too
            await clear(database, table, table.c.experiment.not_in(select(E.id)))


def micros(seconds: float) -> int:
    return int(seconds * MICRO)
