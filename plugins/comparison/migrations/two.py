"""Adds the passages of documents that answers are based on."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "two", "one"


def upgrade() -> None:
    op.add_column("comparison_results", sa.Column("sources", sa.Text, nullable=False, server_default=""))
