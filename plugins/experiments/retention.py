"""Deletes old rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select

from plugins.experiments.index import FILE
from plugins.experiments.store import MICRO, PARTS, E, Store, clear
from plugins.experiments.tables import BATCHES, CALLS, EXPERIMENTS

DAY: Final = 86_400
WRITTEN: Final = DAY
"""Seconds for which the ids of written batches are kept."""
GONE: Final = 90 * DAY
"""Seconds for which results are kept after their experiment was last in a configuration."""


@dataclass(frozen=True, slots=True)
class Retention:
    """days, most: how many calls are kept for later ratings.  Several processes may do this at once."""

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
        for table in PARTS:  # also rows that were written while their experiment was being deleted
            await clear(database, table, table.c.experiment.not_in(select(E.id)))


def micros(seconds: float) -> int:
    return int(seconds * MICRO)
