"""The tables of callers' own templates.  Times are microseconds since 1970 in UTC."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, MetaData, String, Table, Text, UniqueConstraint

METADATA: Final = MetaData()
SORTED: Final = String(64).with_variant(String(64, collation="C"), "postgresql")
"""Sorted by code points, as in Python and SQLite, not by a language's rules."""


def template() -> Column[str]:
    reference = ForeignKey("templates_custom.id", ondelete="CASCADE")
    return Column("template", String(64), reference, primary_key=True)


CUSTOM: Final = Table(
    "templates_custom",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("owner", Text, nullable=False),
    Column("name", SORTED, nullable=False),
    Column("public_name", String(64), nullable=True, unique=True),
    Column("category", String(32), nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("latest", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
    Column("uses", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("owner", "name", name="templates_custom_owner_name"),
    Index("templates_custom_uses", "uses"),
)
"""One row per template.  public_name: its name if everybody may use it; unique among public templates.
category, description: those of its newest version."""

VERSIONS: Final = Table(
    "templates_versions",
    METADATA,
    template(),
    Column("version", Integer, primary_key=True),
    Column("document", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
)
"""Rows never change.  document: as JSON."""

ALIASES: Final = Table(
    "templates_aliases",
    METADATA,
    template(),
    Column("alias", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
)

USES: Final = Table(
    "templates_uses",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("uses", BigInteger, nullable=False),
)
"""How often the library's templates were used."""
