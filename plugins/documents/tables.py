"""The tables of documents, from which the index is built.  Times are Unix microseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
)

from proxy.sql.columns import count, text
from proxy.sql.feature import Feature

FEATURE: Final = Feature("documents", Path(__file__).parent / "migrations")
METADATA: Final = MetaData()


def key(name: str) -> Column[str]:
    return Column(name, String(64), nullable=False)


COLLECTIONS: Final = Table(
    "documents_collections",
    METADATA,
    Column("id", String(64), primary_key=True),
    *map(text, ("owner", "name", "about", "model")),
    Column("dimensions", Integer, nullable=False, server_default="0"),
    *map(text, ("place", "next_place", "next_model", "next_job")),
    Column("next_dimensions", Integer, nullable=False, server_default="0"),
    Column("everyone", SmallInteger, nullable=False, server_default="0"),
    Column("gone", SmallInteger, nullable=False, server_default="0"),
    count("at"),
    UniqueConstraint("owner", "name", name="documents_collections_name"),
)
"""dimensions: 0 before the first vector.  place: the table of the index that is searched.

next_place, next_model, next_dimensions: the values after the move that `next_job` does; "" and 0 if there is none.
everyone: whether all callers may read it.
gone: 1 if it has been removed; its place is dropped some time after `at`, when no search uses it any more.
"""

READERS: Final = Table(
    "documents_readers",
    METADATA,
    Column("collection", String(64), primary_key=True),
    Column("reader", String(200), primary_key=True),
    Index("documents_readers_reader", "reader"),
)
"""The callers, besides its owner, who may read a collection."""

ITEMS: Final = Table(
    "documents_items",
    METADATA,
    Column("id", String(64), primary_key=True),
    key("collection"),
    *map(text, ("owner", "title", "source", "metadata")),
    key("digest"),
    *map(count, ("characters", "chunks")),
    *(Column(name, Integer, nullable=False, server_default="0") for name in ("version", "newest")),
    Column("status", String(16), nullable=False),
    text("error"),
    *map(count, ("at", "changed")),
    UniqueConstraint("collection", "digest", name="documents_items_digest"),
    Index("documents_items_owner", "owner", "at", "id"),
)
"""version: the one that is searched, 0 if there is none yet.  newest: the one that was sent last.

characters, digest, status and error belong to the newest one, chunks to the searched one.  metadata: a JSON object.
"""

PARTS: Final = Table(
    "documents_parts",
    METADATA,
    Column("item", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("part", Integer, primary_key=True),
    count("start"),
    text("content"),
)
"""The text of a version, in parts small enough to hold many in memory.  start: offset in characters."""

COPIES: Final = Table(
    "documents_copies",
    METADATA,
    Column("place", String(64), primary_key=True),
    Column("item", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    count("chunks"),
)
"""The documents of a moving collection that are completely in its next place."""

VALUES: Final = Table(
    "documents_values",
    METADATA,
    Column("item", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    text("value"),
    Column("number", Float, nullable=True),
    Index("documents_values_name", "name", "value"),
)
"""The metadata of documents, by entry, for filters.  value: as JSON.  number: NULL if it is not a number."""

JOBS: Final = Table(
    "documents_jobs",
    METADATA,
    Column("id", String(64), primary_key=True),
    key("collection"),
    key("item"),
    Column("version", Integer, nullable=False),
    text("owner"),
    Column("status", String(16), nullable=False),
    *map(count, ("done", "total")),
    *map(text, ("error", "holder")),
    *map(count, ("until", "at", "ended")),
    text("key_id"),
    Index("documents_jobs_status", "status", "at"),
    Index("documents_jobs_item", "item"),
    Index("documents_jobs_owner", "owner", "at"),
)
"""Documents to be indexed; a job without item moves its collection.

done, total: characters.  holder, until: the process that has the lease, and its end.  key_id: the request's API key.
"""

STORES: Final = Table(
    "documents_stores",
    METADATA,
    Column("collection", String(64), primary_key=True),
    *map(text, ("title", "metadata")),
    Column("days", BigInteger, nullable=True),
    count("active"),
    Column("expired", SmallInteger, nullable=False, server_default="0"),
    Index("documents_stores_expired", "expired", "active"),
)
"""What OpenAI's API stores of a vector store in addition to its collection.

title: its name, in case the collection could not get that one.  days: without use until it expires, or NULL.
active: time of the last use.  expired: 1 while its documents are being deleted, 2 when that is done.
"""

ORIGINS: Final = Table(
    "documents_origins",
    METADATA,
    Column("item", String(64), primary_key=True),
    key("collection"),
    key("file"),
    text("name"),
    count("bytes"),
    Column("batch", String(64), nullable=False, server_default=""),
    *(Column(name, Integer, nullable=False, server_default="0") for name in ("size", "overlap")),
    Column("read", SmallInteger, nullable=False, server_default="0"),
    Column("code", String(32), nullable=False, server_default=""),
    Column("expires", BigInteger, nullable=True),
    UniqueConstraint("collection", "file", name="documents_origins_file"),
    Index("documents_origins_batch", "batch"),
    Index("documents_origins_of", "file"),
    Index("documents_origins_expires", "expires"),
)
"""The files that documents are made of.

batch: the last one that added it; `+` follows if it is also wanted without the batch.
size, overlap: characters of a chunk, and of its overlap with the next; 0 for the default.  read: 1 if it has its text.
code: kind of the failure, if it failed.  expires: when the file, and so the document, ceases to exist; or NULL.
"""

BATCHES: Final = Table(
    "documents_batches",
    METADATA,
    Column("id", String(64), primary_key=True),
    key("collection"),
    Column("cancelled", SmallInteger, nullable=False, server_default="0"),
    count("at"),
    Index("documents_batches_collection", "collection"),
)
"""Files that were added to a vector store by one request."""
