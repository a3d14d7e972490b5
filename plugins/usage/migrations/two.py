"""Calls and sums record the prompt template."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "two", "one"


def upgrade() -> None:
    for name in ("usage_calls", "usage_minutes", "usage_hours", "usage_days"):
        op.add_column(name, sa.Column("template", sa.Text, nullable=False, server_default=""))
