"""The tables of stored answers.  Times are microseconds since 1970 in UTC."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, MetaData, Table, Text

from proxy.sql.columns import text
from proxy.sql.feature import Feature

FEATURE: Final = Feature("stored", Path(__file__).parent / "migrations")
METADATA: Final = MetaData()


ANSWERS: Final = Table(
    "stored_answers",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("at", BigInteger, nullable=False),
    *map(text, ("owner", "kind", "model", "status", "parent", "head", "input", "output", "events")),
    Column("beat", BigInteger, nullable=True),
    Column("bytes", BigInteger, nullable=False),
    Index("stored_answers_owner", "owner", "kind", "at", "id"),
    Index("stored_answers_at", "at"),
    Index("stored_answers_parent", "parent"),
    Index("stored_answers_beat", "beat"),
)
"""One row per answer.

kind: `response` or `chat.completion`, the `object` of its document.
parent: the response that it continues.
head: its document as JSON, without what is in `output`.
events: of a background response that streams, so that the stream can be read again.
beat: the last heartbeat of the process that generates it; NULL once it has ended.
"""

LABELS: Final = Table(
    "stored_labels",
    METADATA,
    Column("answer", Text, ForeignKey("stored_answers.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
"""The metadata of chat completions, for searching."""
