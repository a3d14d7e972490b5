"""The tables of users and keys.  Times are microseconds since 1970, UTC."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import JSON, BigInteger, Column, ForeignKey, Index, MetaData, String, Table

from proxy.sql.feature import Feature

TABLES: Final = Feature("accounts", Path(__file__).parent / "migrations")
METADATA: Final = MetaData()

USERS: Final = Table(
    "accounts_users",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("role", String(8), nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("disabled", BigInteger),
    Index("accounts_users_created", "created", "id"),
)
KEYS: Final = Table(
    "accounts_keys",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("user_id", ForeignKey("accounts_users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    Column("prefix", String(24), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("role", String(8), nullable=False),
    Column("models", JSON(none_as_null=True)),
    Column("routes", JSON(none_as_null=True)),
    Column("metadata", JSON, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("revoked", BigInteger),
    Column("last_used", BigInteger),
    Index("accounts_keys_created", "created", "id"),
)
SECRETS: Final = Table(
    "accounts_secrets",
    METADATA,
    Column("name", String(32), primary_key=True),
    Column("value", String(128), nullable=False),
)
