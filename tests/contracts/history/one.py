"""A first table."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "one", None


def upgrade() -> None:
    op.create_table("test_notes", sa.Column("id", sa.BigInteger, primary_key=True), sa.Column("text", sa.Text))
