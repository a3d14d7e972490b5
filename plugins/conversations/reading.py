"""Pages of conversations and messages, search and statistics.  Every query filters by owner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import BigInteger, ColumnElement, Select, cast, func, literal_column, select, text, tuple_

from plugins.conversations.conversation import Conversation, conversation_of
from plugins.conversations.forms import Page, Query
from plugins.conversations.messages import StoredMessage, stored_message_of
from plugins.conversations.snippet import around, spaced
from plugins.conversations.store import Store, Summary, in_conversation, owned
from plugins.conversations.tables import MESSAGES, SUMMARIES, TALKS
from proxy.errors import NotFound
from proxy.types import JSON

Told = TypeVar("Told")
DAY = 86_400_000_000


@dataclass(frozen=True, slots=True)
class ResultPage(Generic[Told]):
    """A page.  more: whether others follow."""

    found: Sequence[Told]
    more: bool


def page(found: Sequence[dict[str, JSON]], more: bool) -> dict[str, JSON]:
    """A list in OpenAI's format."""
    first, last = (found[0]["id"], found[-1]["id"]) if found else (None, None)
    return {"object": "list", "data": list(found), "first_id": first, "last_id": last, "has_more": more}


def no_such(id: str) -> NotFound:
    return NotFound(f"Nothing of yours has the id '{id[:200]}'.", param="after", code="not_found")


@dataclass(frozen=True, slots=True)
class Found:
    """A search result: a message, with an excerpt around the match."""

    talk: str
    title: str
    said: StoredMessage
    snippet: str


@dataclass(frozen=True, slots=True)
class ConversationReader:
    store: Store

    async def rows(self, query: Select[*tuple[Any, ...]]) -> list[dict[str, Any]]:
        async with self.store.database.reading() as connection:
            return [dict(one) for one in (await connection.execute(query)).mappings()]

    async def talks(self, owner: str, asked: Page) -> ResultPage[Conversation]:
        """A page of conversations by last use; the order `desc` starts with the latest."""
        place = tuple_(TALKS.c.updated, TALKS.c.number)
        query = select(TALKS).where(TALKS.c.owner == owner)
        if asked.after is not None:
            after = await self.rows(select(TALKS.c.updated, TALKS.c.number).where(owned(owner, asked.after)))
            if not after:
                raise no_such(asked.after)
            cursor = tuple_(after[0]["updated"], after[0]["number"])
            query = query.where(place > cursor if asked.order == "asc" else place < cursor)
        columns = (TALKS.c.updated, TALKS.c.number)
        rows = await self.rows(ordered(query, columns, asked))
        return ResultPage([conversation_of(row) for row in rows[: asked.limit]], len(rows) > asked.limit)

    async def following(self, owner: str, last: int, limit: int) -> list[Conversation]:
        """Conversations with a higher number than `last`, which need not exist any more."""
        query = select(TALKS).where((TALKS.c.owner == owner) & (TALKS.c.number > last))
        return [conversation_of(row) for row in await self.rows(query.order_by(TALKS.c.number).limit(limit))]

    async def messages(self, talk: Conversation, asked: Page) -> ResultPage[StoredMessage]:
        query = select(MESSAGES).where(in_conversation(talk))
        if asked.after is not None:
            after = (await self.position(talk, asked.after)).position
            at = MESSAGES.c.position
            query = query.where(at > after if asked.order == "asc" else at < after)
        rows = await self.rows(ordered(query, (MESSAGES.c.position,), asked))
        return ResultPage([stored_message_of(row) for row in rows[: asked.limit]], len(rows) > asked.limit)

    async def position(self, talk: Conversation, id: str, param: str = "after") -> StoredMessage:
        """The message with this id.  Raises NotFound."""
        rows = await self.rows(select(MESSAGES).where(in_conversation(talk), MESSAGES.c.id == id.replace("\0", "")))
        if not rows:
            message = f"The conversation '{talk.id}' has no message '{id[:200]}'."
            raise NotFound(message, param=param, code="message_not_found")
        return stored_message_of(rows[0])

    async def summaries(self, talk: Conversation) -> list[Summary]:
        """All summaries, oldest first."""
        whose = (SUMMARIES.c.talk == talk.number) & (SUMMARIES.c.owner == talk.owner)
        rows = await self.rows(select(SUMMARIES).where(whose).order_by(SUMMARIES.c.upto, SUMMARIES.c.number))
        return [Summary(row["text"], row["upto"], row["at"], row["model"]) for row in rows]

    async def search(self, owner: str, asked: Query) -> ResultPage[Found]:
        """Messages that contain all the words, newest first."""
        query = self.searching(asked.q.replace("\0", " ")).where(MESSAGES.c.owner == owner, TALKS.c.owner == owner)
        if asked.after is not None:
            here = select(MESSAGES.c.number).where(MESSAGES.c.owner == owner, MESSAGES.c.id == asked.after)
            if not (after := await self.rows(here)):
                raise no_such(asked.after)
            query = query.where(MESSAGES.c.number < after[0]["number"])
        rows = await self.rows(query.order_by(MESSAGES.c.number.desc()).limit(asked.limit + 1))
        words = spaced(asked.q).split()
        found = [
            Found(row["talk_id"], row["talk_title"], stored_message_of(row), around(row["text"], words))
            for row in rows[: asked.limit]
        ]
        return ResultPage(found, len(rows) > asked.limit)

    def searching(self, words: str) -> Select[Any]:
        query = select(MESSAGES, TALKS.c.id.label("talk_id"), TALKS.c.title.label("talk_title"))
        if self.store.database.dialect == "postgresql":
            wanted = func.plainto_tsquery("simple", spaced(words))
            query = query.where(literal_column("conversations_messages.words").op("@@")(wanted))
        else:
            matches = "conversations_found MATCH :words AND conversations_found.rowid = conversations_messages.number"
            query = query.select_from(text("conversations_found")).where(text(matches)).params(words=quoted(words))
        return query.where(TALKS.c.number == MESSAGES.c.talk)

    async def statistics(self, owner: str, since: int) -> dict[str, JSON]:
        """since: Unix microseconds from which on counts by day are included."""
        talks = TALKS.c.owner == owner
        messages = MESSAGES.c.talk.in_(select(TALKS.c.number).where(talks)) & (MESSAGES.c.owner == owner)
        counts = [func.count().label("conversations"), added("prompt_tokens"), added("completion_tokens")]
        models = await self.rows(select(TALKS.c.model, *counts).where(talks).group_by(TALKS.c.model))
        roles = await self.rows(
            select(MESSAGES.c.role, func.count().label("count")).where(messages).group_by(MESSAGES.c.role)
        )
        day = ((MESSAGES.c.at - MESSAGES.c.at % DAY) / 1_000_000).label("start")
        days = await self.rows(
            select(cast(day, BigInteger).label("start"), func.count().label("messages"))
            .where(messages, MESSAGES.c.at >= since)
            .group_by(text("1"))
            .order_by(text("1"))
        )
        whole = {name: sum(int(one[name]) for one in models) for name in COUNTED}
        said = {one["role"]: one["count"] for one in roles}
        return {
            **whole,
            "messages": sum(said.values()),
            "messages_by_role": said,
            "average_messages": round(sum(said.values()) / whole["conversations"], 2) if models else None,
            "by_model": [
                {"model": one["model"] or None, **{name: int(one[name]) for name in COUNTED}} for one in models
            ],
            "by_day": days,
        }


COUNTED = ("conversations", "prompt_tokens", "completion_tokens")


def added(name: str) -> ColumnElement[Any]:
    return func.coalesce(func.sum(TALKS.c[name]), 0).label(name)


def ordered(query: Select[Any], columns: Sequence[ColumnElement[Any]], asked: Page) -> Select[Any]:
    """The query sorted, with one row more than the limit, to know whether others follow."""
    return query.order_by(*(one if asked.order == "asc" else one.desc() for one in columns)).limit(asked.limit + 1)


def quoted(words: str) -> str:
    """A query in FTS5's syntax with every word quoted, so that none is read as an operator."""
    return " ".join('"' + word.replace('"', '""') + '"' for word in words.split())
