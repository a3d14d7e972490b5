"""Conversations in the database.  Every query filters by owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, case, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from plugins.conversations.conversation import Conversation, Exists, conversation_of, full, unknown
from plugins.conversations.messages import StoredMessage, row_of, stored_message_of
from plugins.conversations.tables import MESSAGES, SUMMARIES, TALKS
from proxy.host import Host
from proxy.records import Records

TOGETHER: Final = 500
"""Rows inserted by one statement."""


def owned(owner: str, id: str) -> ColumnElement[bool]:
    return (TALKS.c.owner == owner) & (TALKS.c.id == id)


def in_conversation(talk: Conversation) -> ColumnElement[bool]:
    """A condition: the messages of this conversation."""
    return (MESSAGES.c.talk == talk.number) & (MESSAGES.c.owner == talk.owner)


@dataclass(frozen=True, slots=True)
class Summary:
    """upto: position of the last message that it covers."""

    text: str
    upto: int
    at: int = 0
    model: str = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """first: position of the first message that is still sent to models.  summary: a new one of the earlier messages.

    lead: leading system messages that would be cut off; they are kept in the conversation's system prompt.
    """

    first: int
    summary: Summary | None = None
    lead: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits.  talks: conversations per caller; messages: per conversation."""

    talks: int
    messages: int


@dataclass(frozen=True, slots=True)
class Store(Records):
    host: Host
    most: Limits

    # --- within an open transaction ---

    async def found(self, connection: AsyncConnection, owner: str, id: str) -> Conversation | None:
        row = (await connection.execute(select(TALKS).where(owned(owner, id)))).mappings().first()
        return None if row is None else conversation_of(dict(row))

    async def check_room(self, connection: AsyncConnection, owner: str) -> None:
        """Raises BadCall if the owner has the maximum number of conversations."""
        count = select(func.count()).select_from(TALKS).where(TALKS.c.owner == owner)
        if (await connection.execute(count)).scalar_one() >= self.most.talks:
            raise full(f"You have {self.most.talks} conversations, which is the maximum; delete some.")

    async def made(self, connection: AsyncConnection, owner: str, id: str, **columns: Any) -> bool:
        """Create a conversation; gives False if the id exists already."""
        now = self.now()
        row = {"owner": owner, "id": id, "created": now, "updated": now, "next": 1, "first": 1, **columns}
        done = await connection.execute(self.database.insert(TALKS).values(row).on_conflict_do_nothing())
        return bool(done.rowcount)

    async def append(
        self,
        connection: AsyncConnection,
        talk: Conversation,
        stored_messages: Sequence[StoredMessage],
        whose: str | None = None,
        **columns: Any,
    ) -> list[StoredMessage]:
        """Append messages, all or none, safe against concurrent appends; gives them with their positions.

        whose: the messages' owner, if not the conversation's.  columns: of the conversation, to change as well.
        Raises NotFound if the conversation has been deleted, BadCall if it is full.
        """
        count, now = len(stored_messages), self.now()
        changes = {"next": TALKS.c.next + count, "messages": TALKS.c.messages + count, "updated": now, **columns}
        changed = update(TALKS).where(owned(talk.owner, talk.id), TALKS.c.number == talk.number).values(changes)
        row = (await connection.execute(changed.returning(TALKS.c.next, TALKS.c.messages))).first()
        if row is None:
            raise unknown(talk.id)
        if row.messages > self.most.messages:
            raise full(f"A conversation may have {self.most.messages} messages; go on in a fork or a new one.")
        first = row.next - count
        place = {"talk": talk.number, "owner": talk.owner if whose is None else whose}
        rows = [
            {**row_of(one), **place, "position": first + index, "at": one.at or now}
            for index, one in enumerate(stored_messages)
        ]
        for start in range(0, count, TOGETHER):
            await connection.execute(insert(MESSAGES), rows[start : start + TOGETHER])
        return [stored_message_of(one) for one in rows]

    async def name(self, connection: AsyncConnection, talk: Conversation, title: str) -> None:
        """Replace a title taken from the first message; one that the owner has set stays."""
        first = owned(talk.owner, talk.id) & (TALKS.c.number == talk.number) & (TALKS.c.titled == "first")
        await connection.execute(update(TALKS).where(first).values(title=title, titled="model"))

    async def turns(self, connection: AsyncConnection, talk: Conversation, first: int = 0) -> list[StoredMessage]:
        """The messages from position `first` on."""
        chosen = (
            select(MESSAGES).where(in_conversation(talk), MESSAGES.c.position >= first).order_by(MESSAGES.c.position)
        )
        return [stored_message_of(dict(row)) for row in (await connection.execute(chosen)).mappings()]

    async def summary(self, connection: AsyncConnection, talk: Conversation) -> Summary | None:
        """The newest summary."""
        mine = (SUMMARIES.c.talk == talk.number) & (SUMMARIES.c.owner == talk.owner)
        chosen = select(SUMMARIES).where(mine).order_by(SUMMARIES.c.upto.desc(), SUMMARIES.c.number.desc()).limit(1)
        row = (await connection.execute(chosen)).mappings().first()
        return None if row is None else Summary(row["text"], row["upto"], row["at"], row["model"])

    async def leave_out(self, connection: AsyncConnection, talk: Conversation, cut: Cut) -> None:
        """Store a cut; it can only move forward."""
        further = (TALKS.c.number == talk.number) & (TALKS.c.owner == talk.owner) & (TALKS.c.first < cut.first)
        changes: dict[str, Any] = {"first": cut.first}
        if cut.lead:
            both = TALKS.c.system + f"\n\n{cut.lead}"
            changes["system"] = case((TALKS.c.system == "", cut.lead), else_=both)
        await connection.execute(update(TALKS).where(further).values(changes))
        if (new := cut.summary) is not None:
            row = {"talk": talk.number, "owner": talk.owner, "upto": new.upto, "at": self.now()}
            await connection.execute(insert(SUMMARIES).values(row | {"text": new.text, "model": new.model}))

    # --- in a transaction of their own ---

    async def talk(self, owner: str, id: str) -> Conversation:
        """One conversation.  Raises NotFound."""
        async with self.database.reading() as connection:
            found = await self.found(connection, owner, id)
        if found is None:
            raise unknown(id)
        return found

    async def create(
        self, owner: str, id: str, stored_messages: Sequence[StoredMessage] = (), **columns: Any
    ) -> Conversation:
        """Create a conversation with messages.  Raises Exists, BadCall."""
        async with self.database.writing() as connection:
            await self.check_room(connection, owner)
            made = await self.made(connection, owner, id, **columns)
            talk = await self.found(connection, owner, id)
            if talk is None or not made:
                raise Exists(id)
            if stored_messages:
                await self.append(connection, talk, stored_messages)
                talk = await self.found(connection, owner, id) or talk
        return talk

    async def change(self, owner: str, id: str, columns: Mapping[str, Any]) -> Conversation:
        """Update columns.  Raises NotFound."""
        async with self.database.writing() as connection:
            await connection.execute(update(TALKS).where(owned(owner, id)).values(dict(columns)))
            talk = await self.found(connection, owner, id)
        if talk is None:
            raise unknown(id)
        return talk

    async def undo(self, talk: Conversation) -> None:
        """Delete a new conversation that has no messages yet."""
        async with self.database.writing() as connection:
            empty = (TALKS.c.number == talk.number) & (TALKS.c.messages == 0)
            await connection.execute(delete(TALKS).where(owned(talk.owner, talk.id) & empty))


def written(metadata: Mapping[str, Any] | None) -> str:
    return orjson.dumps(metadata).decode() if metadata else ""
