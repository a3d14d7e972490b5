"""Records when keys were last used, in the background and with few writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

from proxy.background import Background
from proxy.clock import Clock
from proxy.errors import Busy

EVERY: Final = 60.0
"""Minimum seconds between two writes for the same key."""
GATHER: Final = 2.0
"""Seconds to wait for other keys, so that they are written together."""
LEAVING: Final = 2.0
"""Seconds that the last write may take when the server stops."""
MOST: Final = 10_000

Write = Callable[[Mapping[str, int]], Awaitable[None]]
"""Takes microseconds since 1970, by the key's id.  Raises Busy while it cannot write them."""


class Uses:
    """Collects when keys are used, and writes the times together."""

    def __init__(self, write: Write, clock: Clock, background: Background) -> None:
        self.write = write
        self.clock = clock
        self.background = background
        self.due: dict[str, float] = {}
        self.pending: dict[str, int] = {}
        self.writing: asyncio.Task[None] | None = None

    def note(self, key: str) -> None:
        """Note that the key with this id is used now."""
        now = self.clock.monotonic()
        if self.due.get(key, now) > now or len(self.pending) >= MOST:
            return
        if len(self.due) >= MOST:
            self.due.clear()
        self.due[key] = now + EVERY
        self.pending[key] = int(self.clock.time() * 1_000_000)
        if self.writing is None or self.writing.done():
            self.writing = self.background.start(self.work(), "writing when API keys were used")

    async def work(self) -> None:
        """Write until nothing is pending; keeps trying while the database is unavailable."""
        while self.pending:
            await self.clock.sleep(GATHER)
            with suppress(Busy):
                await self.flush()

    async def flush(self) -> None:
        """Write what is pending.  If that raises Busy, everything is still pending."""
        if not self.pending:
            return
        batch, self.pending = self.pending, {}
        try:
            await self.write(batch)
        except BaseException:
            self.pending = {**batch, **self.pending}
            raise

    async def close(self) -> None:
        """Write what is pending, without waiting for a database that is unavailable."""
        with suppress(Busy, TimeoutError):
            async with asyncio.timeout(LEAVING):
                await self.flush()
