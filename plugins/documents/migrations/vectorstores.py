"""Adds the tables of vector stores and of the files that documents are made of."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "vectorstores", "two"


def number(name: str, kind: type[sa.Integer] = sa.Integer) -> sa.Column[int]:
    return sa.Column(name, kind, nullable=False, server_default="0")


def short(name: str, length: int = 64) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=False, server_default="")


def upgrade() -> None:
    op.create_table(
        "documents_stores",
        sa.Column("collection", sa.String(64), primary_key=True),
        sa.Column("title", sa.Text, nullable=False, server_default=""),
        sa.Column("metadata", sa.Text, nullable=False, server_default=""),
        sa.Column("days", sa.BigInteger, nullable=True),
        number("active", sa.BigInteger),
        number("expired", sa.SmallInteger),
    )
    op.create_index("documents_stores_expired", "documents_stores", ["expired", "active"])
    op.create_table(
        "documents_origins",
        sa.Column("item", sa.String(64), primary_key=True),
        sa.Column("collection", sa.String(64), nullable=False),
        sa.Column("file", sa.String(64), nullable=False),
        sa.Column("name", sa.Text, nullable=False, server_default=""),
        number("bytes", sa.BigInteger),
        short("batch"),
        number("size"),
        number("overlap"),
        number("read", sa.SmallInteger),
        short("code", 32),
        sa.UniqueConstraint("collection", "file", name="documents_origins_file"),
    )
    op.create_index("documents_origins_batch", "documents_origins", ["batch"])
    op.create_index("documents_origins_of", "documents_origins", ["file"])
    op.create_table(
        "documents_batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("collection", sa.String(64), nullable=False),
        number("cancelled", sa.SmallInteger),
        number("at", sa.BigInteger),
    )
    op.create_index("documents_batches_collection", "documents_batches", ["collection"])
