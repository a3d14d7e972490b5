"""The tables of conversations.  Times are microseconds since 1970 in UTC."""

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
"""One row a conversation; its id is its owner's to choose, and so it is another's, too.

titled: who gave the title: `caller`, `first` message, `model`.  parent: what it was forked from.
messages: how many there are; next: the position of the next; first: that of the first which models are still told.
read_letters, read_tokens: of the last prompt, as sent and as counted upstream.
holder, held_until: whose turn it is, and until when unless it is renewed.
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
"""body: JSON of what a message has beside its role and text.  items: JSON of the items that it came in, "" where it
came as a message.  status: `complete`, `cut` or `left`.  call: id of the request that brought it."""

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
"""What was left out, in short; never changed.  upto: position of the last message that it tells of."""
