"""Adds the API key to jobs, for accounting."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "paying", "expiring"


def upgrade() -> None:
    op.add_column("documents_jobs", sa.Column("key_id", sa.Text, nullable=False, server_default=""))
