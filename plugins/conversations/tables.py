"""The tables of conversations.  Times are Unix microseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, MetaData, String, Table, Text

from proxy.sql.columns import NUMBER, count, text
from proxy.sql.feature import Feature

FEATURE: Final = Feature("conversations", Path(__file__).parent / "migrations")
METADATA: Final = MetaData()


def of_talk() -> Column[int]:
    return Column("talk", BigInteger, ForeignKey("conversations.number", ondelete="CASCADE"), nullable=False)


TALKS: Final = Table(
    "conversations",
    METADATA,
    Column("number", NUMBER, primary_key=True),
    Column("owner", Text, nullable=False),
    Column("id", String(128), nullable=False),
    *map(text, ("title", "titled", "model", "system", "metadata", "parent")),
    *map(count, ("created", "updated", "messages", "next", "first", "prompt_tokens", "completion_tokens")),
    *map(count, ("read_letters", "read_tokens")),
    text("holder"),
    count("held_until"),
    Index("conversations_id", "owner", "id", unique=True),
    Index("conversations_updated", "owner", "updated", "number"),
    Index("conversations_old", "updated"),
)
"""One row per conversation.  Owners choose ids, so an id is unique only per owner.

titled: where the title comes from: `caller`, `first` message, `model`.  parent: the conversation it was forked from.
messages: their number; next: position of the next one; first: position of the first one still sent to models.
read_letters, read_tokens: characters of the last prompt as sent, and its tokens as the upstream counted them.
holder, held_until: the lease of the current turn: its token, and when it expires unless renewed.
"""

MESSAGES: Final = Table(
    "conversations_messages",
    METADATA,
    Column("number", NUMBER, primary_key=True),
    Column("id", String(64), nullable=False),
    of_talk(),
    Column("owner", Text, nullable=False),
    Column("position", BigInteger, nullable=False),
    count("at"),
    *map(text, ("role", "text", "body", "items", "status", "finish", "model", "call")),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    Index("conversations_position", "talk", "owner", "position", unique=True),
    Index("conversations_message", "id", unique=True),
)
"""body: JSON of a message without role and text.  items: JSON of the items that it was received in, "" if it was
received as a message.  status: `complete`, `cut` or `left`.  call: id of the request that added it."""

SUMMARIES: Final = Table(
    "conversations_summaries",
    METADATA,
    Column("number", NUMBER, primary_key=True),
    of_talk(),
    Column("owner", Text, nullable=False),
    Column("upto", BigInteger, nullable=False),
    count("at"),
    *map(text, ("text", "model")),
    Index("conversations_summary", "talk", "upto"),
)
"""Summaries of left-out messages; never changed.  upto: position of the last message that a summary covers."""
