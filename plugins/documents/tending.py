"""Takes what was added into the indices, soon after it came and not after every little bit of it."""

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
"""Searches look at each row that is in no index, and at each addition by itself: with so many it is noticed.  To take
them in costs in proportion to all that is there already, and so should not be done for every thousand."""
IDLE: Final = 2.0
"""Seconds without an addition after which even a few are worth it."""
LONGEST: Final = 10.0
"""Seconds after which they are, whatever else comes."""
EVERY: Final = 0.5


@dataclass(slots=True)
class Waiting:
    """since, last: when the first of them came, and the last."""

    rows: int
    adds: int
    since: float
    last: float


class Tender:
    def __init__(self, index: Vectors, clock: Clock) -> None:
        self.index = index
        self.clock = clock
        self.waiting: dict[str, Waiting] = {}
        self.wake = asyncio.Event()

    def note(self, table: str, rows: int) -> None:
        """So many rows were added to it, or removed."""
        now = self.clock.monotonic()
        one = self.waiting.setdefault(table, Waiting(0, 0, now, now))
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
                await self.tend(table)
            if not self.waiting:
                self.wake.clear()

    def due(self, one: Waiting) -> bool:
        now = self.clock.monotonic()
        return one.rows >= ROWS or one.adds >= ADDS or now - one.last >= IDLE or now - one.since >= LONGEST

    async def tend(self, table: str) -> None:
        try:
            await self.index.tend(table)
        except VectorsAway as error:  # another process may be at it; the next addition brings it up again
            log.info("maintenance of the index of %s failed: %s", table, error)
        except Exception:  # it is no reason to leave all others as they are, too
            log.exception("the index of %s was not tended", table)
