"""The tables of documents, which are their truth; the index is made from them.  Times are microseconds since 1970."""

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
"""dimensions: 0 until the first vector is there.  place: the table of the index that is searched.

next_place, next_model, next_dimensions: what these will be once it has moved, which `next_job` does; "" where it stays.
everyone: all callers may read it.
gone: there is only its place left, which goes some time after `at`, when nobody searches it any more.
"""

READERS: Final = Table(
    "documents_readers",
    METADATA,
    Column("collection", String(64), primary_key=True),
    Column("reader", String(200), primary_key=True),
    Index("documents_readers_reader", "reader"),
)
"""Callers, besides its owner, who may read a collection."""

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
"""version: the one that is searched, 0 before there is any.  newest: the one that was sent last.

characters, digest, status and error are the newest's, chunks are the searched one's.  metadata: a JSON object.
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
"""The text of a version, in parts that fit into memory many times.  start: characters before it."""

COPIES: Final = Table(
    "documents_copies",
    METADATA,
    Column("place", String(64), primary_key=True),
    Column("item", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    count("chunks"),
)
"""Of a collection that moves, what is whole in its next place."""

VALUES: Final = Table(
    "documents_values",
    METADATA,
    Column("item", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    text("value"),
    Column("number", Float, nullable=True),
    Index("documents_values_name", "name", "value"),
)
"""The metadata once more, to filter by.  value: as JSON.  number: where it is one."""

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
"""What is to be taken into the index, or, where no item is named, a collection that is to be moved.

done, total: characters.  holder: the process that does it, `until` when.  key_id: of the API key that asked for it.
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
"""What a collection is besides that OpenAI's API made as a vector store.

title: its name, where the collection could not have that one.  days: without use, after which it expires, or NULL.
active: when it was used.  expired: 1 while its documents are being taken away, 2 when they are gone.
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
"""Documents that are made of files.

batch: with which it was added last, and `+` where it is wanted without that, too.
size, overlap: characters of a chunk, and of what the next one repeats; 0 is as usual.  read: whether its text is there.
code: what kind of failure, where it failed.  expires: from when on its file, and so it, is not there, or NULL.
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
"""Files that were added to a vector store together."""
