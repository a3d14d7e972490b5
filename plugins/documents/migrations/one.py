"""The first tables.

Written out instead of imported from `tables`, so that later changes there do not alter this migration.
"""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "one", None


def texts(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False, server_default="") for name in names]


def counts(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.BigInteger, nullable=False, server_default="0") for name in names]


def keys(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.String(64), nullable=False) for name in names]


def upgrade() -> None:
    collections()
    items()
    contents()
    jobs()


def collections() -> None:
    op.create_table(
        "documents_collections",
        sa.Column("id", sa.String(64), primary_key=True),
        *texts("owner", "name", "about", "model"),
        sa.Column("dimensions", sa.Integer, nullable=False, server_default="0"),
        sa.Column("everyone", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("gone", sa.SmallInteger, nullable=False, server_default="0"),
        *counts("at"),
        sa.UniqueConstraint("owner", "name", name="documents_collections_name"),
    )
    op.create_table(
        "documents_readers",
        sa.Column("collection", sa.String(64), primary_key=True),
        sa.Column("reader", sa.String(200), primary_key=True),
    )
    op.create_index("documents_readers_reader", "documents_readers", ["reader"])


def items() -> None:
    op.create_table(
        "documents_items",
        sa.Column("id", sa.String(64), primary_key=True),
        *keys("collection"),
        *texts("owner", "title", "source", "metadata"),
        *keys("digest"),
        *counts("characters", "chunks"),
        sa.Column("version", sa.Integer, nullable=False, server_default="0"),
        sa.Column("newest", sa.Integer, nullable=False, server_default="0"),
        sa.Column("status", sa.String(16), nullable=False),
        *texts("error"),
        *counts("at", "changed"),
        sa.UniqueConstraint("collection", "digest", name="documents_items_digest"),
    )
    op.create_index("documents_items_owner", "documents_items", ["owner", "at", "id"])


def contents() -> None:
    op.create_table(
        "documents_parts",
        sa.Column("item", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("part", sa.Integer, primary_key=True),
        *counts("start"),
        *texts("content"),
    )
    op.create_table(
        "documents_values",
        sa.Column("item", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), primary_key=True),
        *texts("value"),
        sa.Column("number", sa.Float, nullable=True),
    )
    op.create_index("documents_values_name", "documents_values", ["name", "value"])


def jobs() -> None:
    op.create_table(
        "documents_jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        *keys("collection", "item"),
        sa.Column("version", sa.Integer, nullable=False),
        *texts("owner"),
        sa.Column("status", sa.String(16), nullable=False),
        *counts("done", "total"),
        *texts("error", "holder"),
        *counts("until", "at", "ended"),
    )
    op.create_index("documents_jobs_status", "documents_jobs", ["status", "at"])
    op.create_index("documents_jobs_item", "documents_jobs", ["item"])
    op.create_index("documents_jobs_owner", "documents_jobs", ["owner", "at"])
