"""A later migration, which adds a column."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "two", "one"


def upgrade() -> None:
    op.add_column("test_notes", sa.Column("at", sa.BigInteger, nullable=False, server_default="0"))
