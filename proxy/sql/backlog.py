"""Rows that wait to be written: bounded, in the background, so that no call waits for the database."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import Final

from proxy.clock import Clock
from proxy.errors import Busy

log = logging.getLogger(__name__)
EVERY: Final = 0.5
"""Seconds that a row waits at most for others to be written with."""
LONGEST: Final = 5.0
"""Seconds between two tries to write while the database is away."""
SAY: Final = 60.0
"""Seconds between two warnings of what is lost."""


class Backlog(ABC):
    """Outlives reloads.  Whoever adds to it keeps `pending` within `most`, and tells what it has to `lose`."""

    what: str
    """It holds these, in the words of the log."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.most = 0
        self.lost = 0
        """Those, since the process started, that could not be kept until they were written."""
        self.said = (float("-inf"), 0)
        self.turn = asyncio.Lock()
        """Held by whoever writes."""
        self.task: asyncio.Task[None] | None = None

    @property
    @abstractmethod
    def pending(self) -> int:
        """How many are not written yet."""

    @abstractmethod
    async def flush(self) -> None:
        """Write all that is waiting now.  Raises Busy while the database is away."""

    def lose(self, count: int) -> None:
        self.lost += count
        at, lost = self.said
        if (now := self.clock.monotonic()) - at >= SAY:
            count = self.lost - lost
            log.error("%s %s are lost: the database has been away for too long, or refuses them", count, self.what)
            self.said = now, self.lost

    async def run(self) -> None:
        """For as long as the process lives."""
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
        """Between two tries to write."""
        await asyncio.sleep(seconds)

    async def flushed(self) -> bool:
        """Whether all that was waiting is written; else after a rest."""
        try:
            await self.flush()
        except Busy:
            await asyncio.sleep(EVERY)
            return False
        return True

    async def close(self, patience: float) -> None:
        """Write what is there, in so many seconds at most; what is not written then is told.

        After a reload others go on adding to it, and are not waited for.
        """
        try:
            async with asyncio.timeout(patience):
                while not await self.flushed():
                    pass
        except TimeoutError:
            log.error("%s %s were not written: the database does not answer", self.pending, self.what)
