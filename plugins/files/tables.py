"""The tables of files.  Times are microseconds since 1970 in UTC."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Table, Text

from proxy.sql.feature import Feature

FEATURE: Final = Feature("files", Path(__file__).parent / "migrations")
METADATA: Final = MetaData()

FILES: Final = Table(
    "files_files",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("purpose", String(32), nullable=False, server_default=""),
    Column("status", String(16), nullable=False),
    Column("bytes", BigInteger, nullable=False, server_default="0"),
    Column("pieces", Integer, nullable=False, server_default="0"),
    Column("at", BigInteger, nullable=False),
    Column("changed", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=True),
    Index("files_files_owner", "owner", "at", "id"),
    Index("files_files_status", "status", "changed"),
    Index("files_files_expires", "expires"),
)
"""status: `receiving`, `whole`, or `gone` while its pieces are being deleted.  pieces: how many there are."""

PIECES: Final = Table(
    "files_pieces",
    METADATA,
    Column("file", String(64), ForeignKey("files_files.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("content", LargeBinary, nullable=False),
)
"""The bytes, in rows of a bounded size."""
