"""What goes: conversations that are old, and all of a caller's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from sqlalchemy import ColumnElement, select

from plugins.conversations.export import document
from plugins.conversations.forms import Page
from plugins.conversations.reading import Reading
from plugins.conversations.store import Store
from plugins.conversations.tables import TALKS
from proxy.sql.now import now
from proxy.types import JSON

EVERY: Final = 3600.0
"""Seconds between two times."""
CHUNK: Final = 50
ROWS: Final = 1000
"""Conversations that go at once, and messages of theirs unless it is one only: nobody waits for it long."""
PAUSE: Final = 0.01
"""Seconds in which others write."""
DAY: Final = 86_400 * 10**6


@dataclass(frozen=True, slots=True)
class Keeping:
    """days: after which a conversation goes that nobody has gone on with.  It may run in several processes."""

    store: Store
    days: int | None
    name: str = "conversations"

    async def tidy(self) -> None:
        if self.days is not None:
            await self.remove((TALKS.c.updated < self.store.now() - self.days * DAY) & (TALKS.c.held_until < now()))

    async def remove(self, which: ColumnElement[bool]) -> int:
        """How many conversations that were."""
        some, whole = select(TALKS.c.number, TALKS.c.messages).where(which).limit(CHUNK), 0
        while True:
            async with self.store.database.writing() as connection:
                found = [(row.number, row.messages) for row in await connection.execute(some)]
                numbers = at_once(found)
                whole += await self.store.remove(connection, TALKS.c.number.in_(numbers))
            if len(numbers) == len(found) < CHUNK:
                return whole
            await self.store.host.clock.sleep(PAUSE)

    async def told(self, caller: str) -> AsyncIterator[JSON]:
        reading, after = Reading(self.store), None
        while True:
            found = await reading.talks(caller, Page(after=after, limit=CHUNK, order="asc"))
            for talk in found.found:
                async with self.store.database.reading() as connection:
                    saids = await self.store.turns(connection, talk)
                yield document(talk, saids, await reading.summaries(talk))
            if not found.more:
                return
            after = found.found[-1].id

    async def forget(self, caller: str) -> int:
        return await self.remove(TALKS.c.owner == caller)


def at_once(found: Sequence[tuple[int, int]]) -> list[int]:
    """The numbers of the first ones.  found: numbers of conversations, and how many messages each has."""
    sums = accumulate(messages for _, messages in found)
    return [
        number for index, ((number, _), rows) in enumerate(zip(found, sums, strict=True)) if not index or rows <= ROWS
    ]
