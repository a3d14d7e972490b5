"""Adds what is needed to move collections to another model: their current and next place in the index."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "two", "one"
TABLE = "documents_collections"


def upgrade() -> None:
    for name in ("place", "next_place", "next_model", "next_job"):
        op.add_column(TABLE, sa.Column(name, sa.Text, nullable=False, server_default=""))
    op.add_column(TABLE, sa.Column("next_dimensions", sa.Integer, nullable=False, server_default="0"))
    op.execute(f"UPDATE {TABLE} SET place = id")  # noqa: S608  (a constant)
    op.create_table(
        "documents_copies",
        sa.Column("place", sa.String(64), primary_key=True),
        sa.Column("item", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("chunks", sa.BigInteger, nullable=False, server_default="0"),
    )
