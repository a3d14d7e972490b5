"""Deletes old comparisons; exports and deletes all comparisons of a caller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ColumnElement, select

from plugins.comparison.store import Store
from plugins.comparison.tables import ROUNDS
from proxy.types import JSON

EVERY: Final = 3600.0
"""Seconds between two clean-ups."""
CHUNK: Final = 50
"""Comparisons deleted in one transaction, so that others do not wait for it long."""
PAGE: Final = 4
"""Comparisons in memory at once during an export: each can have megabytes of text."""
PAUSE: Final = 0.01
"""Seconds between two transactions, to let others write."""
DAY: Final = 86_400 * 10**6


@dataclass(frozen=True, slots=True)
class Retention:
    """days: the age at which a comparison is deleted; None for never.  Several processes may run it concurrently."""

    store: Store
    days: int | None
    name: str = "comparisons"

    async def tidy(self) -> None:
        if self.days is not None:
            await self.remove(ROUNDS.c.at < self.store.now() - self.days * DAY)

    async def remove(self, which: ColumnElement[bool]) -> int:
        """Delete the selected comparisons; gives their number."""
        whole, some = 0, select(ROUNDS.c.number).where(which).limit(CHUNK)
        while True:
            async with self.store.database.writing() as connection:
                numbers = (await connection.execute(some)).scalars().all()
                whole += await self.store.remove(connection, numbers)
            if len(numbers) < CHUNK:
                return whole
            await self.store.host.clock.sleep(PAUSE)

    async def export(self, caller: str) -> AsyncIterator[JSON]:
        last = 0
        while found := await self.store.following(caller, last, PAGE):
            for one in found:
                yield {**one.as_json(), **one.asked}
            last = found[-1].number

    async def forget(self, caller: str) -> int:
        return await self.remove(ROUNDS.c.owner == caller)
