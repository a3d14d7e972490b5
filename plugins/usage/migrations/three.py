"""A row of tries may stand for several: those that went well at once are told together."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "three", "two"


def upgrade() -> None:
    op.add_column("usage_attempts", sa.Column("times", sa.Integer, nullable=False, server_default="1"))
