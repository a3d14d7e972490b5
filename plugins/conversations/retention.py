"""Deletes old conversations; exports and deletes all conversations of a caller."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from sqlalchemy import exists

from plugins.conversations.export import document
from plugins.conversations.reading import ConversationReader
from plugins.conversations.removing import NOBODY, remove, remove_hidden, remove_left
from plugins.conversations.store import Store
from plugins.conversations.tables import MESSAGES, TALKS
from proxy.sql.now import now
from proxy.types import JSON

EVERY: Final = 3600.0
"""Seconds between two clean-ups."""
CHUNK: Final = 50
"""Conversations read at once during an export."""
DAY: Final = 86_400 * 10**6


@dataclass(frozen=True, slots=True)
class Retention:
    """days: after which an unused conversation is deleted; None for never.  Several processes may run it."""

    store: Store
    days: int | None
    name: str = "conversations"

    async def tidy(self) -> None:
        if self.days is not None:
            old = (TALKS.c.updated < self.store.now() - self.days * DAY) & (TALKS.c.owner != NOBODY)
            await remove(self.store, old & (TALKS.c.held_until < now()))
        await remove_left(self.store)

    async def export(self, caller: str) -> AsyncIterator[JSON]:
        reading, last = ConversationReader(self.store), 0
        while found := await reading.following(caller, last, CHUNK):
            for talk in found:
                async with self.store.database.reading() as connection:
                    stored_messages = await self.store.turns(connection, talk)
                yield document(talk, stored_messages, await reading.summaries(talk))
            last = found[-1].number

    async def forget(self, caller: str) -> int:
        """Also deletes what a crashed process has left half-deleted or half-copied; copies in progress fail."""
        whole = await remove(self.store, TALKS.c.owner == caller)
        said = (MESSAGES.c.talk == TALKS.c.number) & (MESSAGES.c.owner == caller)
        await remove_hidden(self.store, exists().where(said))
        return whole
