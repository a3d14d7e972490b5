"""Updates the search indices after additions, soon but in batches."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from proxy.host import Clock
from proxy.stores.vectors import Vectors, VectorsAway

log = logging.getLogger(__name__)
ROWS: Final = 20_000
ADDS: Final = 50
"""Rows, and additions, after which indices are updated at once.  Searches scan unindexed rows, addition by addition,
which is noticeable at these numbers.  An update costs time in proportion to the whole table, so it must be rare."""
IDLE: Final = 2.0
"""Seconds without an addition after which even a few rows are indexed."""
LONGEST: Final = 10.0
"""Seconds after the first addition when rows are indexed in any case."""
EVERY: Final = 0.5


@dataclass(slots=True)
class PendingChanges:
    """Changes that are not indexed yet.  since, last: monotonic seconds of the first and the last one."""

    rows: int
    adds: int
    since: float
    last: float


class IndexUpkeep:
    def __init__(self, index: Vectors, clock: Clock) -> None:
        self.index = index
        self.clock = clock
        self.waiting: dict[str, PendingChanges] = {}
        self.wake = asyncio.Event()

    def note(self, table: str, rows: int) -> None:
        """Called after rows were added to a table, or removed (0)."""
        now = self.clock.monotonic()
        one = self.waiting.setdefault(table, PendingChanges(0, 0, now, now))
        one.last = now
        one.rows += rows
        one.adds += 1
        self.wake.set()

    async def run(self) -> None:
        while True:
            await self.wake.wait()
            await asyncio.sleep(EVERY)
            for table in [table for table, one in self.waiting.items() if self.due(one)]:
                del self.waiting[table]
                await self.update(table)
            if not self.waiting:
                self.wake.clear()

    def due(self, one: PendingChanges) -> bool:
        now = self.clock.monotonic()
        return one.rows >= ROWS or one.adds >= ADDS or now - one.last >= IDLE or now - one.since >= LONGEST

    async def update(self, table: str) -> None:
        try:
            await self.index.tend(table)
        except VectorsAway as error:  # another process may be doing it; the next addition tries again
            log.info("maintenance of the index of %s failed: %s", table, error)
        except Exception:  # must not end the loop for the other tables
            log.exception("the index of %s was not tended", table)
