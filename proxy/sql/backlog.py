"""Rows that wait to be written in the background, limited in number, so that no call waits for the database."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import Final

from proxy.clock import Clock
from proxy.errors import Busy

log = logging.getLogger(__name__)
EVERY: Final = 0.5
"""Maximum seconds that a row waits, so that several are written together."""
LONGEST: Final = 5.0
"""Maximum seconds between two tries to write while the database is unavailable."""
SAY: Final = 60.0
"""Minimum seconds between two log lines about lost rows."""


class Backlog(ABC):
    """A queue of rows to write; survives reloads.

    A subclass keeps `pending` at or below `most`, and calls `lose` for rows that it has to drop.
    """

    what: str
    """What the rows are called in the log."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.most = 0
        self.lost = 0
        """How many rows were dropped since the process started."""
        self.said = (float("-inf"), 0)
        self.turn = asyncio.Lock()
        """Held while writing."""
        self.task: asyncio.Task[None] | None = None

    @property
    @abstractmethod
    def pending(self) -> int:
        """How many rows are not written yet."""

    @abstractmethod
    async def flush(self) -> None:
        """Write everything that is pending now.  Raises Busy while the database is unavailable."""

    def lose(self, count: int) -> None:
        """Count dropped rows, and log an error now and then."""
        self.lost += count
        at, lost = self.said
        if (now := self.clock.monotonic()) - at >= SAY:
            count = self.lost - lost
            log.error("%s %s are lost: the database has been away for too long, or refuses them", count, self.what)
            self.said = now, self.lost

    async def run(self) -> None:
        """Flush repeatedly; never returns."""
        pause = EVERY
        while True:
            await self.rest(pause)
            try:
                await self.flush()
                if pause != EVERY:
                    log.info("%s can be written again", self.what)
                pause = EVERY
            except Busy as error:
                if pause == EVERY:
                    log.warning("%s wait for the database (%s so far): %s", self.what, self.pending, error)
                pause = min(LONGEST, pause * 2)
            except Exception:
                log.exception("%s cannot be written", self.what)

    async def rest(self, seconds: float) -> None:
        """Wait between two tries to write."""
        await asyncio.sleep(seconds)

    async def flushed(self) -> bool:
        """Try to flush; gives whether it succeeded, after a pause if it did not."""
        try:
            await self.flush()
        except Busy:
            await asyncio.sleep(EVERY)
            return False
        return True

    async def close(self, patience: float) -> None:
        """Write what is pending, within `patience` seconds; log how much is then still not written.

        Rows that a newer configuration adds meanwhile are not waited for.
        """
        try:
            async with asyncio.timeout(patience):
                while not await self.flushed():
                    pass
        except TimeoutError:
            log.error("%s %s were not written: the database does not answer", self.pending, self.what)
