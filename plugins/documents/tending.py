"""Takes what was added into the indices, soon after it came and not after every little bit of it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from proxy.host import Clock
from proxy.stores.vectors import Vectors, VectorsAway

log = logging.getLogger(__name__)
ROWS: Final = 500
ADDS: Final = 20
"""Searches look at each row that is in no index, and at each addition by itself: with so many it is noticed."""
IDLE: Final = 2.0
"""Seconds after which even a few are worth it."""
EVERY: Final = 0.5


@dataclass(slots=True)
class Waiting:
    rows: int
    adds: int
    since: float


class Tender:
    def __init__(self, index: Vectors, clock: Clock) -> None:
        self.index = index
        self.clock = clock
        self.waiting: dict[str, Waiting] = {}
        self.wake = asyncio.Event()

    def note(self, table: str, rows: int) -> None:
        """So many rows were added to it, or removed."""
        one = self.waiting.setdefault(table, Waiting(0, 0, self.clock.monotonic()))
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
        return one.rows >= ROWS or one.adds >= ADDS or self.clock.monotonic() - one.since >= IDLE

    async def tend(self, table: str) -> None:
        try:
            await self.index.tend(table)
        except VectorsAway as error:  # another process may be at it; the next addition brings it up again
            log.info("the index of %s was not tended: %s", table, error)
